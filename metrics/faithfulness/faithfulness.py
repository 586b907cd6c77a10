"""Does a classifier's score depend on what its saliency maps show?"""

import copy
import math

import datasets
import evaluate
import numpy as np
import pandas as pd
import torch

from .road import check_percentages, road_names, road_scores


_DESCRIPTION = """
Measures whether an image classifier decides by what its saliency maps show: deletion and insertion AUC, sufficiency
and comprehensiveness, and ROAD. Pixels are replaced in the order of the map, and the classifier is asked again. As a
control, the same is done with each map's cells in random order. `sanity_check` tells whether maps depend on the
weights at all, `max_sensitivity` how far noise in the images changes them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of maps): saliency maps of shape `(h, w)`, nested lists, arrays or tensors, of any size and
        finite values; only their order counts. Each is resized to its image (bilinear).
    images (`list` of images): what the classifier takes, of shape `(C, H, W)`: arrays or tensors, normalised as its
        training asked for. Sizes may differ from item to item.
    references (`list` of `int`, *optional*): the class that each map explains; without, the predicted one.
    model (`callable`): a classifier: a float32 tensor of shape `(B, C, H, W)` to one of shape `(B, K)`.
    outputs (`str`, defaults to `"logits"`): what `model` returns: `"logits"`, which go through a softmax, or
        `"probabilities"`.
    baseline (`str`, defaults to `"blur"`): what stands in for a pixel: the image under a Gaussian blur of a standard
        deviation of 1/20 of its longer side (`"blur"`), its mean colour (`"mean"`), or normal noise of its mean and
        standard deviation in each channel (`"noise"`).
    steps (`int`, defaults to 20): equal steps of the deletion and the insertion curve.
    shares (`list` of `float`, defaults to `[0.01, 0.05, 0.1, 0.2, 0.5]`): the shares of the pixels, in (0, 1], over
        which sufficiency and comprehensiveness are averaged. A share is one pixel at least.
    road (`list` of `int`, defaults to none): the percentages of the pixels, from 1 to 99, without which ROAD looks at
        the label. Pixels are filled in from their neighbours (noisy linear imputation), so that what was removed shows
        as little as can be.
    control (`bool`, defaults to `True`): also score each map with its cells in random order, at the same cost again.
    batch_size (`int`, defaults to 32): images that go through the model at once.
    device (`str`, *optional*): where images are put; that of the model's parameters if it is a `torch.nn.Module`, else
        the CPU.
    seed (`int`, defaults to 0): draws the control, the noise, and the order of pixels of equal saliency.
    first (`int`, defaults to 0): the first item's place in the whole of which the items are a part, for the control's
        draw: parts that are computed one by one score as they do together.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `deletion` (in [0, 1], lower is better): area under the explained class's probability over the share of pixels
        replaced, the most salient first.
    `insertion` (in [0, 1], higher is better): the same over the share of pixels shown, the most salient first, on the
        baseline.
    `comprehensiveness` (in [-1, 1], higher is better): by how much the probability falls without the most salient
        pixels; mean over `shares`.
    `sufficiency` (in [-1, 1], lower is better): by how much it falls with the most salient pixels alone.
    `road_10`, … (in [0, 1], lower is better): with `road`, the share of items whose predicted class is the explained
        one without this percentage of the pixels, the most salient first.
    `road`: the mean of these.
    `random_deletion`, `random_insertion`, `random_comprehensiveness`, `random_sufficiency`, `random_road`, …: the
        control, or `None`.
    `full`, `blank` (in [0, 1]): the probability for the whole image, and for its baseline.
    `n`: the number of items. All means are `None` where it is 0.
    `n_undefined`: the number of items whose map is zero everywhere or otherwise constant: it puts no pixel before
        another, so nothing is deleted and nothing inserted. Such items are in the means: `deletion` is `full`,
        `insertion` is `blank`, `comprehensiveness` 0, `sufficiency` `full` - `blank` and `road` 1 where the explained
        class is the predicted one, for the control as well.
    `per_item`: with `per_item=True`, a dict of lists.
Examples:
    A classifier that looks at the left pixel alone, and a map that says so:

    >>> import evaluate
    >>> import torch
    >>> faithfulness = evaluate.load("metrics/faithfulness")
    >>> def model(images):
    ...     left = images[:, 0, 0, 0]
    ...     return torch.stack([left, 1 - left], dim=1)
    >>> inputs = {"images": [[[[1.0, 0.0]]]], "model": model, "outputs": "probabilities", "baseline": "mean"}
    >>> results = faithfulness.compute(predictions=[[[1.0, 0.0]]], steps=2, shares=[0.5], **inputs)
    >>> results["full"], results["blank"], results["deletion"], results["insertion"]
    (1.0, 0.5, 0.625, 0.875)
    >>> results["comprehensiveness"], results["sufficiency"]
    (0.5, 0.0)

    A map that says the opposite:

    >>> results = faithfulness.compute(predictions=[[[0.0, 1.0]]], steps=2, shares=[0.5], **inputs)
    >>> results["deletion"], results["insertion"], results["comprehensiveness"], results["sufficiency"]
    (0.875, 0.625, 0.0, 0.5)
"""

_CITATION = """
@inproceedings{petsiuk2018rise,
    title={{RISE}: Randomized Input Sampling for Explanation of Black-box Models},
    author={Petsiuk, Vitali and Das, Abir and Saenko, Kate},
    booktitle={BMVC},
    year={2018}
}
@inproceedings{deyoung2020eraser,
    title={{ERASER}: A Benchmark to Evaluate Rationalized {NLP} Models},
    author={DeYoung, Jay and Jain, Sarthak and Rajani, Nazneen Fatema and Lehman, Eric and Xiong, Caiming
        and Socher, Richard and Wallace, Byron C.},
    booktitle={ACL},
    year={2020}
}
@inproceedings{rong2022consistent,
    title={A Consistent and Efficient Evaluation Strategy for Attribution Methods},
    author={Rong, Yao and Leemann, Tobias and Borisov, Vadim and Kasneci, Gjergji and Kasneci, Enkelejda},
    booktitle={ICML},
    year={2022}
}
@inproceedings{adebayo2018sanity,
    title={Sanity Checks for Saliency Maps},
    author={Adebayo, Julius and Gilmer, Justin and Muelly, Michael and Goodfellow, Ian and Hardt, Moritz
        and Kim, Been},
    booktitle={NeurIPS},
    year={2018}
}
@inproceedings{yeh2019fidelity,
    title={On the (In)fidelity and Sensitivity of Explanations},
    author={Yeh, Chih-Kuan and Hsieh, Cheng-Yu and Suggala, Arun Sai and Inouye, David I. and Ravikumar, Pradeep},
    booktitle={NeurIPS},
    year={2019}
}
"""

SCORES = ["deletion", "insertion", "comprehensiveness", "sufficiency"]
OUTPUTS = ["logits", "probabilities"]
BASELINES = ["blur", "mean", "noise"]
BLUR = 1 / 20  # standard deviation of the blur, as a share of the image's longer side
SLACK = 1e-4  # what half precision may add to the ends of the range of probabilities


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Faithfulness(evaluate.Metric):
    def _info(self):
        grid = datasets.List(datasets.List(datasets.Value("float32")))
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": grid, "references": datasets.Value("int64"), "images": datasets.List(grid)}
            ),
        )
        # As in the module `saliency`: Python lists of images take eight times the memory of Arrow columns.
        info.format = "arrow"
        return info

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one map with its image and, optionally, the class that it explains."""
        check_whole("reference", reference)
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add maps with their images and, optionally, the classes that they explain."""
        for index, value in enumerate(() if references is None else references):
            check_whole(f"references[{index}]", value)
        # `evaluate` stores every declared input of every item: without references each is stored as `None`.
        if references is None and predictions is not None:
            references = [None] * len(predictions)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions,
        references,
        images,
        model=None,
        outputs="logits",
        baseline="blur",
        steps=20,
        shares=(0.01, 0.05, 0.1, 0.2, 0.5),
        road=(),
        control=True,
        batch_size=32,
        device=None,
        seed=0,
        first=0,
        per_item=False,
    ):
        check_options(outputs, baseline, steps, shares, batch_size)
        check_percentages(road)
        classifier = Classifier(model, outputs, device)
        maps = to_arrays(predictions, "predictions", ["height", "width"])
        images = to_arrays(images, "images", ["channels", "height", "width"])
        targets = references.to_pylist()

        orders = {"": maps}
        if control:
            orders["random_"] = [shuffle_cells(one_map, [seed, place]) for place, one_map in enumerate(maps, first)]
        scores = [*SCORES, *road_names(road)]
        names = [prefix + name for prefix in orders for name in scores]
        items = {name: np.zeros(len(maps)) for name in [*names, "full", "blank"]}
        constant = np.array([one_map.min() == one_map.max() for one_map in maps], dtype=bool)
        batches = list(batches_of_equal_sizes(maps, images, batch_size))
        for places in evaluate.utils.logging.tqdm(batches, desc="faithfulness"):
            pixels = torch.from_numpy(np.stack([images[i] for i in places])).to(classifier.device)
            blanks = make_blanks(pixels, baseline, seed)
            probabilities = classifier(pixels)
            target = choose_targets(probabilities, places, targets)
            ends = [part.gather(1, target[:, None]) for part in (probabilities, classifier(blanks))]
            items["full"][places], items["blank"][places] = (end[:, 0].cpu() for end in ends)
            counts = PixelCounts(pixels[0, 0].numel(), steps, shares)
            for prefix, ordered in orders.items():
                ranks = rank_pixels(np.stack([ordered[i] for i in places]), pixels.shape[2:], seed).to(pixels.device)
                pair = curves(classifier, pixels, blanks, ranks, target, counts.inner, ends, batch_size)
                found = counts.scores(*pair, constant[places])
                if len(road):
                    found |= road_scores(classifier, pixels, ranks, target, road, constant[places], seed)
                for name, values in found.items():
                    items[prefix + name][places] = values

        results = {f"{prefix}{name}": None for prefix in ("", "random_") for name in scores}
        results |= {name: float(values.mean()) if len(maps) else None for name, values in items.items()}
        results["n"], results["n_undefined"] = len(maps), int(constant.sum())
        if per_item:
            results["per_item"] = {name: values.tolist() for name, values in items.items()}
        return results

    def sanity_check(self, model, explain, layers=None, steps=10, seed=0):
        """
        Do maps depend on what the model has learnt? Its weights are randomised layer by layer from the top down, and
        after each of some steps the maps are compared with those of the model itself: the cascading randomisation of
        Adebayo et al. 2018, section 3.1. The weights of a layer are randomised by permuting those of each tensor,
        which keeps their distribution.

        Args:
            model (`torch.nn.Module`): Left as it is: the weights of a copy are randomised.
            explain (`callable`): The maps of some images by the model that it is called with, `explain(model)`: of
                shape `(B, h, w)`, of the same images and classes at each call.
            layers (`list[str]`, *optional*): Names of modules, from the top; by default all modules that have weights
                of their own, the last defined first.
            steps (`int`, defaults to 10): How often maps are compared, evenly spaced over the layers.
            seed (`int`, defaults to 0): Draws the permutations.

        Returns:
            `dict`: `spearman`, the rank correlation (in [-1, 1]) of the model's maps with those of the model whose
            layers are all randomised, mean over the items: 1 tells of maps that do not depend on the weights. `n`, the
            items in the mean, and `n_undefined`, those with a constant map, which has no ranks. `steps`: the same
            figures for each step, with the `layer` that was the last to be randomised.

        Examples:
            A map that is the image itself does not depend on the weights:

            >>> import evaluate
            >>> import torch
            >>> faithfulness = evaluate.load("metrics/faithfulness")
            >>> images = torch.rand(4, 3, 8, 8)
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
            >>> results = faithfulness.sanity_check(model, lambda model: images.mean(dim=1))
            >>> round(results["spearman"], 6), results["n"], results["steps"][0]["layer"]
            (1.0, 4, '1')
        """
        if steps < 1:
            raise ValueError(f"`steps` must be 1 or more, got {steps}.")
        layers = names_of_layers(model) if layers is None else list(layers)
        check_layers(model, layers)
        expected = checked_maps(explain(model))
        randomized = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        found = []
        for names in np.array_split(layers, min(steps, len(layers))):
            for name in names:
                permute_weights(randomized.get_submodule(name), generator)
            maps = checked_maps(explain(randomized), expected)
            values = spearman(expected, maps)
            defined = ~np.isnan(values)
            mean = float(values[defined].mean()) if defined.any() else None
            counted = {"n": int(defined.sum()), "n_undefined": int((~defined).sum())}
            found.append({"layer": str(names[-1]), "spearman": mean, **counted})
        return {**{key: value for key, value in found[-1].items() if key != "layer"}, "steps": found}

    def max_sensitivity(self, explain, images, radius=0.2, samples=10, seed=0):
        """
        How far do maps change where the images hardly do? Uniform noise in [-`radius`, `radius`] is added to each
        value of the images, and the maps are compared: the max-sensitivity of Yeh et al. 2019, estimated by some
        samples of the noise, and divided by the norm of the map, as Quantus does.

        Args:
            explain (`callable`): The maps of images, `explain(images)`: of shape `(B, h, w)`, of the same classes at
                each call.
            images (`torch.Tensor` of shape `(B, C, H, W)`): What `explain` takes.
            radius (`float`, defaults to 0.2): In the units of the images' values.
            samples (`int`, defaults to 10): How often noise is drawn; the more often, the greater is the greatest
                change. Quantus draws 200 times by default.
            seed (`int`, defaults to 0): Draws the noise, the same for all images.

        Returns:
            `dict`: `max_sensitivity` (0 or more, lower is more stable), the greatest Euclidean norm of the change of
            a map over the norm of that map, mean over the items; `n`, the items in the mean, and `n_undefined`, those
            whose map is zero everywhere.

        Examples:
            A map that is the image itself changes as the image does, and one that is always the same never:

            >>> import evaluate
            >>> import torch
            >>> faithfulness = evaluate.load("metrics/faithfulness")
            >>> images = torch.ones(2, 1, 8, 8)
            >>> results = faithfulness.max_sensitivity(lambda images: images[:, 0], images, radius=0.1)
            >>> 0.05 < results["max_sensitivity"] < 0.1, results["n"]
            (True, 2)
            >>> faithfulness.max_sensitivity(lambda images: torch.ones(2, 4, 4), images)["max_sensitivity"]
            0.0
        """
        images = torch.as_tensor(images)
        if images.ndim != 4:
            raise ValueError(
                f"`images` must have the shape (images, channels, height, width), got {tuple(images.shape)}."
            )
        if not 0 < radius < math.inf:
            raise ValueError(f"`radius` must be above 0, got {radius}.")
        if samples < 1:
            raise ValueError(f"`samples` must be 1 or more, got {samples}.")
        maps = checked_maps(explain(images))
        if len(maps) != len(images):
            raise ValueError(f"`explain` must return a map for each image, got {len(maps)} for {len(images)}.")
        generator = torch.Generator().manual_seed(seed)
        changes = np.zeros(len(maps))
        for _ in range(samples):
            noise = radius * (2 * torch.rand(images.shape[1:], generator=generator) - 1)
            noisy = checked_maps(explain(images + noise.to(images)), maps)
            changes = np.maximum(changes, np.linalg.norm(noisy - maps, axis=1))
        norms = np.linalg.norm(maps, axis=1)
        values = changes[norms > 0] / norms[norms > 0]
        mean = float(values.mean()) if len(values) else None
        return {"max_sensitivity": mean, "n": len(values), "n_undefined": len(norms) - len(values)}


def check_whole(name, value):
    """Refuse a class id that is no integer, which would be stored as one."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        raise ValueError(f"`{name}` must be a class id, an integer, got {value!r}.")


def check_options(outputs, baseline, steps, shares, batch_size):
    if outputs not in OUTPUTS:
        raise ValueError(f"`outputs` must be one of {OUTPUTS}, got {outputs!r}.")
    if baseline not in BASELINES:
        raise ValueError(f"`baseline` must be one of {BASELINES}, got {baseline!r}.")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"`shares` must be one or more shares of the pixels in (0, 1], got {list(shares)}.")


class Classifier:
    """`model`, giving probabilities: images `(B, C, H, W)` to `(B, K)`, checked."""

    def __init__(self, model, outputs, device):
        if not callable(model):
            raise ValueError(f"`model` must be a callable that classifies a batch of images, got {model!r}.")
        weights = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
        if isinstance(model, torch.nn.Module) and model.training:
            raise ValueError("`model` is in training mode, where its outputs depend on chance: call `model.eval()`.")
        self.model, self.outputs = model, outputs
        self.device = device or (weights[0].device if weights else "cpu")

    @torch.no_grad()
    def __call__(self, pixels):
        scores = self.model(pixels)
        if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or len(scores) != len(pixels):
            got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise ValueError(
                f"`model` must return a tensor of shape ({len(pixels)}, classes) for {len(pixels)} images, got {got}. "
                "Of a model of transformers pass `lambda images: model(images).logits`."
            )
        scores = scores.float()
        if not scores.isfinite().all():
            raise ValueError("`model` must return finite scores, got NaN or infinity.")
        if self.outputs == "logits":
            return scores.softmax(dim=1)
        if scores.min() < -SLACK or scores.max() > 1 + SLACK:
            raise ValueError(
                f"`model` must return values in [0, 1] with `outputs='probabilities'`, got values from "
                f"{scores.min():g} to {scores.max():g}: are they `outputs='logits'`?"
            )
        return scores


def to_arrays(column, name, axes):
    """Views of an Arrow column of nested lists as float32 arrays with these axes, checked one by one."""
    items = (item for chunk in column.chunks for item in chunk)
    return [to_array(item.values, f"`{name}[{index}]`", axes) for index, item in enumerate(items)]


def to_array(values, name, axes):
    shape = [0 if values is None else len(values)]
    for _ in axes[1:] if values is not None else []:
        lengths = values.value_lengths().fill_null(0).unique().to_pylist()
        shape.append(lengths[0] if len(lengths) == 1 else 0)
        values = values.flatten()
    if 0 in shape:
        raise ValueError(
            f"{name} must have the shape ({', '.join(axes)}), got one that is empty or has rows of several lengths."
        )
    array = values.to_numpy(zero_copy_only=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must have finite values, got NaN, infinity or None.")
    return array.reshape(shape)


def batches_of_equal_sizes(maps, images, batch_size):
    """Lists of at most `batch_size` item indices, of one map size and one image size each."""
    groups = {}
    for index, (one_map, image) in enumerate(zip(maps, images, strict=True)):
        groups.setdefault((one_map.shape, image.shape), []).append(index)
    for items in groups.values():
        for start in range(0, len(items), batch_size):
            yield items[start : start + batch_size]


def shuffle_cells(one_map, seed):
    return np.random.default_rng(seed).permutation(one_map.ravel()).reshape(one_map.shape)


def choose_targets(probabilities, places, targets):
    """The class of each row: the target of the item at its place, or the predicted class where that is `None`."""
    chosen = probabilities.argmax(dim=1)
    for row, place in enumerate(places):
        if targets[place] is None:
            continue
        if not 0 <= targets[place] < probabilities.shape[1]:
            raise ValueError(
                f"`references[{place}]` must be a class id from 0 to {probabilities.shape[1] - 1}, as `model` has "
                f"{probabilities.shape[1]} classes, got {targets[place]}."
            )
        chosen[row] = targets[place]
    return chosen


def make_blanks(pixels, baseline, seed):
    """What stands in for the pixels of each image: `(B, C, H, W)`, the same noise pattern for all of a size."""
    if baseline == "blur":
        return blur(pixels)
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    if baseline == "mean":
        return mean.expand_as(pixels)
    noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed)).to(pixels.device)
    return mean + pixels.std(dim=(2, 3), keepdim=True, correction=0) * noise


def blur(pixels):
    """Gaussian blur, three standard deviations far; beyond the edges are the pixels at the edges."""
    deviation = BLUR * max(pixels.shape[2:])
    radius = math.ceil(3 * deviation)
    offsets = torch.arange(-radius, radius + 1, device=pixels.device)
    kernel = torch.softmax(-0.5 * (offsets / deviation) ** 2, dim=0)
    padded = torch.nn.functional.pad(pixels.flatten(0, 1)[:, None], [radius] * 4, mode="replicate")  # (B * C, 1, ...)
    rows = torch.nn.functional.conv2d(padded, kernel[None, None, None])
    return torch.nn.functional.conv2d(rows, kernel[None, None, :, None]).view_as(pixels)


def rank_pixels(maps, size, seed):
    """
    How many pixels of an image of `size` each map `(B, h, w)` puts before each pixel: `(B, H * W)`.

    Maps are resized by bilinear interpolation, `align_corners=False`, no smoothing before shrinking. Pixels of equal
    saliency come in random order, the same for all maps.
    """
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None].double(), size=size, mode="bilinear", align_corners=False
    )
    # Single precision again, as the interpolation's own rounding would put pixels of a plateau into an order.
    flat = resized.float().flatten(1)
    # `scipy.stats.rankdata` draws no order among equals, and is no requirement else.
    drawn = torch.from_numpy(np.random.default_rng(seed).permutation(flat.shape[1]))
    order = drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1)


def curves(classifier, pixels, blanks, ranks, target, counts, ends, batch_size):
    """
    The target's probability while the pixels are deleted, and while they are inserted, in the order of their ranks.

    Args:
        pixels, blanks (`torch.Tensor` of shape `(B, C, H, W)`): The images and their baselines.
        ranks (`torch.Tensor` of shape `(B, H * W)`): The place of each pixel in the order.
        target (`torch.Tensor` of shape `(B,)`): Class ids.
        counts (`np.ndarray` of shape `(P,)`): How many pixels are deleted or inserted.
        ends (`list` of two `torch.Tensor` of shape `(B, 1)`): The probability for the images, and for the baselines.

    Returns:
        Two `np.ndarray` of shape `(B, P + 2)`, from none to all pixels.
    """
    counts = torch.from_numpy(counts).to(pixels.device)
    sides, places = torch.arange(2, device=pixels.device), torch.arange(len(pixels), device=pixels.device)
    # Every side (0: deletion, 1: insertion), image and count is a job of its own, so that all batches are full.
    sides, places, counts = (part.flatten() for part in torch.meshgrid(sides, places, counts, indexing="ij"))
    found = torch.zeros(len(sides), device=pixels.device)
    for start in range(0, len(sides), batch_size):
        jobs = slice(start, start + batch_size)
        place = places[jobs]
        chosen = ranks[place] < counts[jobs, None]  # (jobs, H * W)
        shown = (chosen == sides[jobs, None]).view(-1, 1, *pixels.shape[2:])
        mixed = torch.where(shown, pixels[place], blanks[place])
        found[jobs] = classifier(mixed).gather(1, target[place, None])[:, 0]
    deleted, inserted = found.view(2, len(pixels), -1)
    full, blank = ends
    pair = torch.cat([full, deleted, blank], dim=1), torch.cat([blank, inserted, full], dim=1)
    return [curve.double().cpu().numpy() for curve in pair]


class PixelCounts:
    """How many of `size` pixels are replaced at each point of the curves, and what the curves come to."""

    def __init__(self, size, steps, shares):
        grid = np.rint(np.linspace(0, size, steps + 1)).astype(int)
        of_shares = np.maximum(np.rint(np.array(shares) * size), 1).astype(int)
        self.all = np.union1d(grid, of_shares)
        self.inner = self.all[1:-1]
        self.on_grid = np.unique(np.searchsorted(self.all, grid))
        self.at_shares = np.searchsorted(self.all, of_shares)

    def scores(self, deleted, inserted, constant):
        """The scores of the curves `(B, P)`; `constant` maps delete and insert nothing."""
        deleted, inserted = (np.where(constant[:, None], curve[:, :1], curve) for curve in (deleted, inserted))
        x = self.all[self.on_grid] / self.all[-1]
        full = deleted[:, :1]
        return {
            "deletion": np.trapezoid(deleted[:, self.on_grid], x),
            "insertion": np.trapezoid(inserted[:, self.on_grid], x),
            # Equations 1 and 2 of ERASER, averaged over the shares as its program does.
            "comprehensiveness": (full - deleted[:, self.at_shares]).mean(axis=1),
            "sufficiency": (full - inserted[:, self.at_shares]).mean(axis=1),
        }


def names_of_layers(model):
    """The modules that have weights of their own, the last defined first."""
    return [name for name, part in model.named_modules() if any(True for _ in part.parameters(recurse=False))][::-1]


def check_layers(model, layers):
    known = dict(model.named_modules())
    for name in layers:
        if name not in known:
            raise ValueError(f"`layers` must name modules of {type(model).__name__}, got {name!r}.")
    if not any(True for name in layers for _ in known[name].parameters()):
        raise ValueError(f"`layers` must name modules of {type(model).__name__} that have weights, got {layers}.")


@torch.no_grad()
def permute_weights(module, generator):
    for weights in module.parameters():
        order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
        weights.copy_(weights.flatten()[order].view_as(weights))


def checked_maps(maps, first=None):
    """What `explain` gave, as an array of shape `(B, h * w)`, which is that of what it gave `first`."""
    maps = torch.as_tensor(maps).detach().double().cpu()
    if maps.ndim != 3:
        raise ValueError(f"`explain` must return maps of shape (images, height, width), got {tuple(maps.shape)}.")
    if not maps.isfinite().all():
        raise ValueError("`explain` must return finite maps, got NaN or infinity.")
    maps = maps.flatten(1).numpy()
    if first is not None and maps.shape != first.shape:
        raise ValueError(
            f"`explain` must return as many maps of one size at each call, got {len(maps)} of {maps.shape[1]} cells "
            f"after {len(first)} of {first.shape[1]}."
        )
    return maps


def spearman(first, second):
    """Rank correlation of each row with the same row, ties at their mean rank; NaN where a row is constant."""
    first, second = (pd.DataFrame(rows).rank(axis=1) for rows in (first, second))
    return first.corrwith(second, axis=1).to_numpy()
