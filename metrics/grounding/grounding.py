"""Does a text speak of what a saliency map shows?"""

import datasets
import evaluate
import numpy as np
from PIL import Image

from .clip_score import ClipEncoder, check_picture, check_pictures, mean


_DESCRIPTION = """
Measures whether a rationale speaks of what its saliency map shows: the CLIP similarity of the text to the image seen
through the map, minus its similarity to what the map leaves out. As a control, each text is also scored on the image
and map of another item.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): one rationale per image.
    images (`list` of images): `PIL.Image.Image`, `uint8` arrays of shape `(H, W, 3)`, or paths. Still ones of 8 bits a
        channel.
    maps (`list` of maps): saliency maps of shape `(h, w)`, nested lists or arrays, values in [0, 1], of any size. Each
        is resized to its image (bilinear) and divided by its maximum.
    model_name_or_path (`str`): Hub id or local folder of a CLIP model with its tokenizer and image processor.
    batch_size (`int`, defaults to 32): images or texts that go through the model at once.
    device (`str`, *optional*): where the model runs; the GPU if there is one, else the CPU.
    local_files_only (`bool`, defaults to `False`): never look for the model on the Hub.
    seed (`int`, defaults to 0): draws which other item's rationale the control takes.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `grounding` (in [-2, 2], higher is better): mean over the items of `inside` - `outside`.
    `inside`, `outside` (in [-1, 1]): mean cosine of the rationale's embedding ("A photo depicts " before it) to that
        of the image where the map is, and where it is not. The rest of the image takes the image's mean colour.
    `shuffled_grounding` (in [-2, 2]): `grounding` with the rationale of another item; `None` for a single item. A
        model is grounded as far as `grounding` exceeds it.
    `n`: the number of items. All means are `None` where it is 0.
    `n_undefined`: the number of items whose map is zero everywhere: they show nothing and leave nothing out, so both
        of their differences count 0, and they are left out of `inside` and `outside`.
    `n_truncated`: how many rationales were longer than the model reads and were cut.
    `per_item`: with `per_item=True`, a dict of lists.
Raises:
    `ValueError`: a text or an image that is `None`, an image of more bits a channel or of several frames, or a map
        that is not one.
Examples:
    >>> import evaluate
    >>> from PIL import Image
    >>> grounding = evaluate.load("metrics/grounding")
    >>> image = Image.new("RGB", (64, 64), "white")
    >>> image.paste("red", (0, 0, 32, 64))
    >>> results = grounding.compute(
    ...     predictions=["a red thing at the left", "a white thing at the right"],
    ...     images=[image, image],
    ...     maps=[[[1.0, 0.0]], [[0.0, 1.0]]],
    ...     model_name_or_path="openai/clip-vit-base-patch32",
    ... )
    >>> sorted(results)
    ['grounding', 'inside', 'n', 'n_truncated', 'n_undefined', 'outside', 'shuffled_grounding']
    >>> abs(results["grounding"] - (results["inside"] - results["outside"])) < 1e-6
    True
"""

_CITATION = """
@inproceedings{hessel2021clipscore,
    title={{CLIPScore}: A Reference-free Evaluation Metric for Image Captioning},
    author={Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Le Bras, Ronan and Choi, Yejin},
    booktitle={EMNLP},
    year={2021}
}
"""

SCORES = ["grounding", "inside", "outside", "shuffled_grounding"]
SLACK = 1e-6  # what float32 rounding may add to the ends of the value range


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Grounding(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "images": datasets.Image(),
                    "maps": datasets.List(datasets.List(datasets.Value("float32"))),
                }
            ),
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one rationale with its image and map."""
        check_picture(kwargs.get("images"), "images")
        super().add(prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add rationales with their images and maps."""
        check_pictures(kwargs.get("images"))
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions,
        images,
        maps,
        model_name_or_path=None,
        batch_size=32,
        device=None,
        local_files_only=False,
        seed=0,
        per_item=False,
    ):
        if model_name_or_path is None:
            raise ValueError(
                "`model_name_or_path` must name a CLIP model or its folder, such as 'openai/clip-vit-base-patch32'."
            )
        maps = [to_array(saliency, index) for index, saliency in enumerate(maps)]
        check_items(predictions, images)
        encoder = ClipEncoder(model_name_or_path, batch_size, device, local_files_only)
        texts = encoder.embed_texts(predictions).numpy()
        shown = encoder.embed_images(MaskedImages(images, maps, inside=True)).numpy()
        hidden = encoder.embed_images(MaskedImages(images, maps, inside=False)).numpy()

        defined = np.array([saliency.max() > 0 for saliency in maps], dtype=bool)
        inside, outside = (texts * shown).sum(axis=1), (texts * hidden).sum(axis=1)
        others = texts[partners(len(texts), seed)]
        items = {
            "grounding": np.where(defined, inside - outside, 0),
            "inside": np.where(defined, inside, np.nan),
            "outside": np.where(defined, outside, np.nan),
            "shuffled_grounding": np.where(defined, (others * (shown - hidden)).sum(axis=1), 0),
        }
        if len(texts) == 1:
            items["shuffled_grounding"] = np.array([np.nan])
        items = {name: [None if np.isnan(value) else float(value) for value in items[name]] for name in SCORES}
        results = {name: mean(values) for name, values in items.items()}
        results["n"], results["n_undefined"] = len(maps), int((~defined).sum())
        results["n_truncated"] = encoder.n_truncated
        if per_item:
            results["per_item"] = items
        return results


def to_array(saliency, index):
    """A nested list as a float32 array of shape `(height, width)`, checked."""
    name = f"`maps[{index}]`"
    if not saliency or not all(saliency) or len({len(row) for row in saliency}) != 1:
        raise ValueError(f"{name} must be a map of shape (height, width) with rows of one length, got {saliency}.")
    array = np.array(saliency, dtype=np.float32)
    if not (array.min() >= -SLACK and array.max() <= 1 + SLACK):  # false for NaN as well
        raise ValueError(f"{name} must have values in [0, 1], got values from {array.min():g} to {array.max():g}.")
    return array.clip(0, 1)


def check_items(predictions, images):
    check_pictures(images)
    for index, (prediction, image) in enumerate(zip(predictions, images, strict=True)):
        if prediction is None:
            raise ValueError(f"`predictions[{index}]` must be a string, got None; an empty rationale is ''.")
        if image is None:
            raise ValueError(f"`images[{index}]` must be an image, got None.")


def partners(count, seed):
    """For each item the index of another, each once, drawn at random as one cycle through all of them."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, dtype=int)
    others[order] = np.roll(order, 1)
    return others


class MaskedImages:
    """What the maps show of their images, or what they leave out; masked when a slice of them is asked for."""

    def __init__(self, images, maps, inside):
        self.images, self.maps, self.inside = images, maps, inside

    def __len__(self):
        return len(self.images)

    def __getitem__(self, span):
        pairs = zip(self.images[span], self.maps[span], strict=True)
        return [masked(image, saliency, self.inside) for image, saliency in pairs]


def masked(image, saliency, inside):
    """The image where the map is 1 (`inside`) or 0, fading into its mean colour elsewhere."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    weights = np.asarray(Image.fromarray(saliency).resize(image.size, Image.Resampling.BILINEAR))
    weights = weights / (weights.max() or 1)
    weights = (weights if inside else 1 - weights)[..., None]
    blank = pixels.mean(axis=(0, 1))
    return Image.fromarray((blank + weights * (pixels - blank)).round().clip(0, 255).astype(np.uint8))
