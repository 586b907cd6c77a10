"""How well saliency maps agree with the masks that people drew."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Compares saliency maps with human masks: IoU, precision, recall and F1 of the thresholded map, the share of the map's
energy inside the mask, the pointing game, relevance rank accuracy, the mean absolute error, and NSS, CC, KL and
AUC-Judd as saliency benchmarks have them; and how sparse the map is. Maps and masks may have any size: each map is
resized to its mask.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of maps): maps of shape `(h, w)`, nested lists or arrays, values in [0, 1].
    references (`list` of masks): masks of shape `(H, W)`, values in [0, 1]; above 0.5 is inside. Sizes may differ from
        item to item and from the map's.
    threshold (`float` or `str`, defaults to 0.5): a pixel is chosen when the map, divided by its own maximum, exceeds
        it. `"adaptive"`: twice the mean of each map so divided, at most 0.99. `"best"`: of 0.05, 0.1, ..., 0.95 the
        one that gives the greatest mean IoU over all items; it has seen the masks.
    tolerance (`float`, defaults to 0): the pointing game also counts a maximum at most this many pixels of the mask
        (Euclidean distance) away from the inside.
    signed (`bool`, defaults to `False`): masks have values in [-1, 1]: above 0 is inside, below 0 is outside, 0 is
        unlabelled and left out of every count.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `iou`, `precision`, `recall`, `f1`, `energy`, `pointing_game`, `relevance_rank_accuracy` (in [0, 1], higher is
    better) and `mae` (in [0, 1], lower is better): means over the items whose mask is not empty; `None` where there
    are no such items. `energy` is the relevance mass accuracy of Arras et al. 2022; `relevance_rank_accuracy` the
    share inside of the most salient pixels, as many of them as are inside.
    `sparseness` (in [0, 1], neither end is better): the Gini index of the map, 0 where all pixels are equal and near 1
        where one has everything.
    `nss` (0 is chance, higher is better): mean inside of the map standardised to mean 0 and standard deviation 1.
    `cc` (in [-1, 1], higher is better): Pearson's correlation of map and mask.
    `kl` (0 or more, lower is better): the divergence in nats of the map from the mask, each divided by its sum.
    `auc` (in [0, 1], 0.5 is chance, higher is better): AUC-Judd, area under the curve of the share of pixels inside
        over the share of those outside that are at least as salient as a threshold.
    `threshold`: the threshold that was used; with `"adaptive"` its mean over the items.
    `n`: the number of items in the means.
    `n_undefined`: the number of items whose map is zero everywhere (they score 0, their `mae` is that of a zero map,
        and `nss`, `cc`, `kl`, `auc` and `sparseness` those of a constant one) or has one value everywhere (`nss`, `cc`
        and `sparseness` are 0, `auc` is 0.5), whose mask has nothing inside (they are left out), or whose mask is
        constant (`cc` is left out) or has nothing outside (`nss` and `auc` are).
    `per_item`: with `per_item=True`, a dict of lists, `None` where an item is left out.
Examples:
    >>> import evaluate
    >>> saliency = evaluate.load("metrics/saliency")
    >>> maps = [[[1.0, 0.25], [0.75, 0.0]]]
    >>> masks = [[[1.0, 0.0], [0.0, 0.0]]]
    >>> results = saliency.compute(predictions=maps, references=masks)
    >>> results["iou"], results["precision"], results["recall"], results["energy"], results["mae"], results["auc"]
    (0.5, 0.5, 1.0, 0.5, 0.25, 1.0)
    >>> results["relevance_rank_accuracy"], results["sparseness"]
    (1.0, 0.4375)
    >>> saliency.compute(predictions=maps, references=masks, threshold="best")["threshold"]
    0.75

    A zero map scores 0, an empty mask is left out, and both are counted:

    >>> maps = [[[1.0, 0.0]], [[0.0, 0.0]], [[1.0, 0.0]]]
    >>> masks = [[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]
    >>> results = saliency.compute(predictions=maps, references=masks, per_item=True)
    >>> results["iou"], results["n"], results["n_undefined"]
    (0.5, 2, 2)
    >>> results["per_item"]["iou"]
    [1.0, 0.0, None]
"""

_CITATION = """
@inproceedings{rao2023studying,
    title={Studying How to Efficiently and Effectively Guide Models with Explanations},
    author={Rao, Sukrut and B{\\"o}hle, Moritz and Parchami-Araghi, Amin and Schiele, Bernt},
    booktitle={ICCV},
    year={2023}
}
@inproceedings{zhang2016top,
    title={Top-down Neural Attention by Excitation Backprop},
    author={Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan},
    booktitle={ECCV},
    year={2016}
}
@inproceedings{wang2020score,
    title={Score-{CAM}: Score-Weighted Visual Explanations for Convolutional Neural Networks},
    author={Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui
        and Mardziel, Piotr and Hu, Xia},
    booktitle={CVPR Workshops},
    year={2020}
}
@article{arras2022clevr,
    title={{CLEVR-XAI}: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations},
    author={Arras, Leila and Osman, Ahmed and Samek, Wojciech},
    journal={Information Fusion},
    year={2022}
}
@inproceedings{chalasani2020concise,
    title={Concise Explanations of Neural Networks using Adversarial Training},
    author={Chalasani, Prasad and Chen, Jiefeng and Chowdhury, Amrita Roy and Wu, Xi and Jha, Somesh},
    booktitle={ICML},
    year={2020}
}
@article{bylinskii2019what,
    title={What Do Different Evaluation Metrics Tell Us About Saliency Models?},
    author={Bylinskii, Zoya and Judd, Tilke and Oliva, Aude and Torralba, Antonio and Durand, Fr{\\'e}do},
    journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
    year={2019}
}
@inproceedings{judd2009learning,
    title={Learning to Predict Where Humans Look},
    author={Judd, Tilke and Ehinger, Krista and Durand, Fr{\\'e}do and Torralba, Antonio},
    booktitle={ICCV},
    year={2009}
}
@inproceedings{achanta2009frequency,
    title={Frequency-tuned Salient Region Detection},
    author={Achanta, Radhakrishna and Hemami, Sheila and Estrada, Francisco and S{\\"u}sstrunk, Sabine},
    booktitle={CVPR},
    year={2009}
}
"""

OVERLAPS = ["iou", "precision", "recall", "f1"]
OTHERS = ["energy", "pointing_game", "relevance_rank_accuracy", "mae", "nss", "cc", "kl", "auc", "sparseness"]
SCORES = [*OVERLAPS, *OTHERS]
THRESHOLDS = np.arange(1, 20) / 20  # what "best" chooses from
EPSILON = np.finfo(np.float64).eps  # as in the MIT saliency benchmark's KL
PIXELS_AT_ONCE = 2**18  # whose arrays fit into the processor's cache
SLACK = 1e-6  # what float32 rounding may add to the ends of the value range


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Saliency(evaluate.Metric):
    def _info(self):
        grid = datasets.List(datasets.List(datasets.Value("float32")))
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": grid, "references": grid}),
        )
        # Python lists of 1,000 masks of 224 x 224 take 1.6 GB. Arrow columns take an eighth and need no conversion,
        # but `MetricInfo(format=...)` refuses every format for nested features, so it is set here.
        info.format = "arrow"
        return info

    def _compute(self, predictions, references, threshold=0.5, tolerance=0, signed=False, per_item=False):
        check_options(threshold, tolerance)
        maps = to_arrays(predictions, "predictions", lowest=0)
        masks = to_arrays(references, "references", lowest=-1 if signed else 0)

        scores = {name: np.full(len(maps), np.nan) for name in OTHERS}
        # A row for each threshold that "best" tries; there is one row otherwise.
        overlaps = {name: np.full((len(candidates(threshold)), len(maps)), np.nan) for name in OVERLAPS}
        thresholds = np.zeros((len(candidates(threshold)), len(maps)))
        undefined, counted = np.zeros(len(maps), dtype=bool), np.zeros(len(maps), dtype=bool)
        for items in batches_of_equal_sizes(maps, masks):
            batch = Batch(np.stack([maps[i] for i in items]), np.stack([masks[i] for i in items]), signed)
            undefined[items], counted[items] = batch.undefined, batch.inside.any(axis=(1, 2))
            for row, candidate in enumerate(candidates(threshold)):
                thresholds[row, items] = adaptive_threshold(batch) if candidate is None else candidate
                for name, values in overlap(batch, thresholds[row, items]).items():
                    overlaps[name][row, items] = values
            scores["energy"][items] = energy(batch)
            scores["pointing_game"][items] = ~batch.zero & pointing_game(batch, tolerance)
            scores["relevance_rank_accuracy"][items] = relevance_rank_accuracy(batch)
            scores["mae"][items] = mean_absolute_error(batch)
            scores["nss"][items] = normalized_scanpath_saliency(batch)
            scores["cc"][items] = correlation(batch)
            scores["kl"][items] = divergence(batch)
            scores["auc"][items] = auc_judd(batch)
            scores["sparseness"][items] = sparseness(batch)

        best = np.argmax(overlaps["iou"][:, counted].sum(axis=1))
        scores = {name: overlaps[name][best] for name in OVERLAPS} | scores
        items = {
            name: [float(v) if c and not np.isnan(v) else None for v, c in zip(scores[name], counted, strict=True)]
            for name in SCORES
        }
        results = {name: mean([value for value in values if value is not None]) for name, values in items.items()}
        results["threshold"] = mean(thresholds[best, counted].tolist())
        results["n"] = int(counted.sum())
        results["n_undefined"] = int(undefined.sum())
        if per_item:
            results["per_item"] = items
        return results


def check_options(threshold, tolerance):
    if isinstance(threshold, str):
        if threshold not in ("adaptive", "best"):
            raise ValueError(f"`threshold` must be 'adaptive', 'best' or in [0, 1), got {threshold!r}.")
    elif not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be 'adaptive', 'best' or in [0, 1), got {threshold}.")
    if tolerance < 0:
        raise ValueError(f"`tolerance` must be 0 or more pixels, got {tolerance}.")


def candidates(threshold):
    """The thresholds to try; `None` is each map's own."""
    if threshold == "best":
        return THRESHOLDS
    return [None if threshold == "adaptive" else threshold]


def mean(values):
    return float(np.mean(values)) if values else None


class Batch:
    """
    Maps and masks of one size, the maps resized and divided by their maxima.

    Attributes:
        scaled, target (`np.ndarray` of shape `(B, H, W)`): Maps and masks in [0, 1].
        inside, labelled (`np.ndarray` of shape `(B, H, W)`): Which pixels count as inside, and which count.
        zero (`np.ndarray` of shape `(B,)`): Whether the map is 0 at each pixel that counts.
        undefined (`np.ndarray` of shape `(B,)`): Whether some score is a matter of convention or left out.
    """

    def __init__(self, maps, masks, signed):
        resized = resize(maps, masks.shape[1:])
        self.labelled = masks != 0 if signed else np.ones(masks.shape, dtype=bool)
        self.target = (masks > 0 if signed else masks.clip(min=0)).astype(np.float64)
        self.inside = self.target > 0.5
        peak = resized.max(axis=(1, 2))
        self.scaled = resized / np.where(peak > 0, peak, 1)[:, None, None]
        self.zero = ~((self.scaled > 0) & self.labelled).any(axis=(1, 2))
        self.without_outside = ~(self.labelled & ~self.inside).any(axis=(1, 2))
        self.standardized, self.standardized_target = self.standardize(self.scaled), self.standardize(self.target)
        # A mask of one value correlates with nothing.
        self.constant = ~self.standardized_target.any(axis=(1, 2))
        self.undefined = self.constant | self.without_outside | ~self.inside.any(axis=(1, 2))
        self.undefined |= ~self.standardized.any(axis=(1, 2))  # a map of one value, as a zero map is
        self.ordered, self.ordered_inside, self.ordered_labelled = self.in_order()

    def in_order(self):
        """
        The pixels of each item by saliency, the least first and of equals those outside first: their saliency in
        single precision, in which what resizing makes of equals is equal again, whether they are inside, and whether
        they are labelled. Three arrays of shape `(B, H * W)`.
        """
        inside, labelled = (values.reshape(len(self.scaled), -1) for values in (self.inside, self.labelled))
        # The bits of such numbers in [0, 1] order as the numbers do and leave two free, so that what is known of the
        # pixels is sorted along.
        bits = self.scaled.reshape(inside.shape).astype(np.float32).view(np.uint32)
        pixels = (bits << 2) | (inside.astype(np.uint32) << 1) | labelled
        pixels.sort(axis=1)
        return (pixels >> 2).view(np.float32), (pixels >> 1 & 1).astype(bool), (pixels & 1).astype(bool)

    def mean(self, values):
        """Mean over the labelled pixels of each item."""
        return divide(product_sum(values, self.labelled), self.labelled.sum(axis=(1, 2)))

    def standardize(self, values):
        """Mean 0 and standard deviation 1 over the labelled pixels; constant values become 0."""
        centred = values - self.mean(values)[:, None, None]
        centred *= self.labelled
        deviation = np.sqrt(divide(product_sum(centred, centred), self.labelled.sum(axis=(1, 2))))
        return centred * divide(np.ones(len(deviation)), np.where(deviation > SLACK, deviation, 0))[:, None, None]


def product_sum(first, second):
    """Sum over the pixels of the product, for each item."""
    return np.einsum("bhw,bhw->b", first, second)


def to_arrays(column, name, lowest):
    """Views of an Arrow column of nested lists as float32 arrays of shape `(height, width)`, checked one by one."""
    arrays = []
    for chunk in column.chunks:
        rows = chunk.flatten()
        values = rows.flatten().to_numpy(zero_copy_only=False)
        widths = rows.value_lengths().fill_null(0).to_numpy()
        first_row, first_value = 0, 0
        for height in chunk.value_lengths().fill_null(0).to_numpy():
            row_widths = widths[first_row : first_row + height]
            size = row_widths.sum()
            array = values[first_value : first_value + size]
            check_item(array, row_widths, f"{name}[{len(arrays)}]", lowest)
            arrays.append(array.reshape(height, row_widths[0]))
            first_row += height
            first_value += size
    return arrays


def check_item(values, row_widths, name, lowest):
    if len(values) == 0:
        raise ValueError(f"`{name}` must be a map of shape (height, width), got an empty one.")
    if row_widths.min() != row_widths.max():
        raise ValueError(f"`{name}` must have rows of one length, got lengths {sorted(set(row_widths.tolist()))}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must have finite values, got NaN, infinity or None.")
    if values.min() < lowest - SLACK or values.max() > 1 + SLACK:
        raise ValueError(
            f"`{name}` must have values in [{lowest}, 1], got values from {values.min():g} to {values.max():g}."
        )


def batches_of_equal_sizes(maps, masks):
    """Lists of item indices with one map size and one mask size each, short enough to be computed at once."""
    groups = {}
    for index, (one_map, mask) in enumerate(zip(maps, masks, strict=True)):
        groups.setdefault((one_map.shape, mask.shape), []).append(index)
    for (map_shape, mask_shape), items in groups.items():
        step = max(1, PIXELS_AT_ONCE // max(np.prod(map_shape), np.prod(mask_shape)))
        for start in range(0, len(items), step):
            yield items[start : start + step]


def resize(maps, shape):
    """Bilinear, pixel centres at half-integers (`align_corners=False`), no smoothing before shrinking."""
    maps = maps.astype(np.float64).clip(min=0)
    if maps.shape[1:] == shape:
        return maps
    rows = interpolation_weights(maps.shape[1], shape[0])
    columns = interpolation_weights(maps.shape[2], shape[1])
    return rows @ maps @ columns.T  # (B, h, w) -> (B, H, W)


def interpolation_weights(size, new_size):
    """Matrix of shape `(new_size, size)` that interpolates a line of `size` values linearly at `new_size` places."""
    places = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    places = places.clip(0, size - 1)
    left = np.floor(places).astype(int)
    right = np.minimum(left + 1, size - 1)
    weights = np.zeros((new_size, size))
    lines = np.arange(new_size)
    np.add.at(weights, (lines, left), 1 - (places - left))
    np.add.at(weights, (lines, right), places - left)
    return weights


def divide(numerator, denominator):
    """The quotient, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)


def adaptive_threshold(batch):
    """Twice the map's mean (Achanta et al. 2009), below the maximum, so that something is chosen."""
    return np.minimum(2 * batch.mean(batch.scaled), 0.99)


def overlap(batch, thresholds):
    chosen = (batch.scaled > thresholds[:, None, None]) & batch.labelled
    hits = (chosen & batch.inside).sum(axis=(1, 2))
    n_chosen = chosen.sum(axis=(1, 2))
    n_inside = batch.inside.sum(axis=(1, 2))
    return {
        "iou": divide(hits, n_chosen + n_inside - hits),
        "precision": divide(hits, n_chosen),
        "recall": divide(hits, n_inside),
        "f1": divide(2 * hits, n_chosen + n_inside),
    }


def energy(batch):
    """Energy pointing game (Wang et al. 2020): the share of the map's sum that lies inside."""
    return divide(product_sum(batch.scaled, batch.inside), product_sum(batch.scaled, batch.labelled))


def pointing_game(batch, tolerance):
    """Whether the first maximum, row by row, is inside or within `tolerance` pixels of it (Zhang et al. 2016)."""
    count, _, width = batch.scaled.shape
    first = np.where(batch.labelled, batch.scaled, -1).reshape(count, -1).argmax(axis=1)
    if tolerance == 0:
        return batch.inside.reshape(count, -1)[np.arange(count), first]
    row, column = (part[:, None, None] for part in np.divmod(first, width))
    rows, columns = np.indices(batch.scaled.shape[1:])
    distance = np.hypot(rows - row, columns - column)  # (B, H, W)
    return (batch.inside & (distance <= tolerance)).any(axis=(1, 2))


def relevance_rank_accuracy(batch):
    """
    The share inside of the k most salient pixels, where k is how many are inside (Arras et al. 2022). Of equals that
    the k-th is one of, as many count as their share of what is left of the k; 0 of a zero map.
    """
    values, inside, labelled = batch.ordered, batch.ordered_inside, batch.ordered_labelled
    count = inside.sum(axis=1)
    as_salient = labelled[:, ::-1].cumsum(axis=1)[:, ::-1]  # how many of those labelled stand here or behind
    last = (as_salient >= count[:, None]).sum(axis=1) - 1  # the place of the k-th
    level = np.take_along_axis(values, last[:, None], axis=1)
    above, equal = values > level, values == level
    left = count - (above & labelled).sum(axis=1)
    hits = (above & inside).sum(axis=1) + left * divide((equal & inside).sum(axis=1), (equal & labelled).sum(axis=1))
    return np.where(batch.zero, 0, divide(hits, count))


def mean_absolute_error(batch):
    return batch.mean(np.abs(batch.scaled - batch.target))


def normalized_scanpath_saliency(batch):
    """NSS (Peters et al. 2005), every pixel inside being a fixation; NaN where nothing is outside."""
    means = divide(product_sum(batch.standardized, batch.inside), batch.inside.sum(axis=(1, 2)))
    return np.where(batch.without_outside, np.nan, means)


def correlation(batch):
    """CC; NaN where the mask is constant."""
    return np.where(batch.constant, np.nan, batch.mean(batch.standardized * batch.standardized_target))


def divergence(batch):
    """KL as Bylinskii et al. 2019 define it; a zero map counts as a uniform one."""
    maps = np.where(batch.zero[:, None, None], 1, batch.scaled) * batch.labelled
    density, target = (
        values / np.maximum(values.sum(axis=(1, 2), keepdims=True), EPSILON)
        for values in (maps, batch.target * batch.labelled)
    )
    return (target * np.log(EPSILON + target / (EPSILON + density))).sum(axis=(1, 2))


def sparseness(batch):
    """The Gini index (Chalasani et al. 2020) of the labelled pixels; 0 of a zero map."""
    labelled = batch.ordered_labelled
    count = labelled.sum(axis=1)
    places = labelled.cumsum(axis=1)  # of the labelled ones from 1, the least salient first
    values = batch.ordered.astype(np.float64) * labelled
    weights = 2 * places - count[:, None] - 1
    return divide((weights * values).sum(axis=1), count * values.sum(axis=1))


def auc_judd(batch):
    """
    AUC-Judd (Judd et al. 2009), every pixel inside being a fixation: the share of pairs of a pixel inside and one
    outside in which the one inside is the more salient, half of the pairs of equals. The benchmarks' code has corners
    of the curve at the pixels inside only, which adds at most 1 / (2 pixels inside) and changes when both are resized,
    and tells equals apart by noise. NaN where nothing is inside, or nothing outside.
    """
    # Not by `scipy.stats.rankdata`, which gives the same in 2.3 times the time and is no requirement else.
    positive = batch.ordered_inside.astype(np.int32)
    negative = batch.ordered_labelled.astype(np.int32) - positive
    up_to = negative.cumsum(axis=1, dtype=np.int32)
    # Of equals the negatives come first: how many are below is known at the first of them.
    below = up_to - negative
    below[:, 1:][batch.ordered[:, 1:] == batch.ordered[:, :-1]] = 0
    np.maximum.accumulate(below, axis=1, out=below)
    won = (positive * (below + up_to)).sum(axis=1, dtype=np.int64) / 2
    areas = divide(won, positive.sum(axis=1) * negative.sum(axis=1))
    return np.where(batch.without_outside | ~positive.any(axis=1), np.nan, areas)
