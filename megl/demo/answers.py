"""What a MEGL model says of one picture, and of what its map shows on another background."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .drawing import paste, without_object


LARGEST_PICTURE = 50_000_000  # pixels of an upload
SIDE = 1024  # pixels of the longer side that is kept of a picture


@dataclass(frozen=True)
class Answer:
    """Why a class?

    Attributes:
        label (`str`), score (`float`): The class and its probability.
        rationale (`str`): Empty where the model does not write.
        saliency (`np.ndarray` of shape `(map_height, map_width)`): float32 in [0, 1], over the whole picture.
    """

    label: str
    score: float
    rationale: str
    saliency: np.ndarray


class Explainer:
    """
    A model that is asked about one picture at a time.

    Args:
        name (`str`): What the page calls it.
        model, processor: A MEGL model in evaluation mode and its processor, however they were loaded.
        writes (`bool`): Whether its rationales are worth reading, since it was trained to write them.
    """

    def __init__(self, name, model, processor, writes=True):
        self.name, self.model, self.processor, self.writes = name, model, processor, writes
        self.labels = [model.config.id2label[number] for number in range(model.config.num_labels)]

    def open(self, path):
        """
        The picture in a file, upright, in RGB, shrunk to `SIDE` pixels.

        Raises:
            `ValueError`: in one line, where it is no still picture of 8 bits a channel or has too many pixels.
        """
        with _read(path) as image:
            if image.width * image.height > LARGEST_PICTURE:
                size = f"{image.width} x {image.height}"
                raise ValueError(f"A picture has {LARGEST_PICTURE:,} pixels at most, got {size}: make it smaller.")
            image.filename = ""  # errors would name the server's file
            (picture,) = self.processor.load_images([image])
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return picture

    @torch.no_grad()
    def probabilities(self, image):
        """The probability of each class, `dict[str, float]`, the highest first."""
        logits = self.model(self._pixels(image), output_saliency=False).logits
        pairs = zip(self.labels, self.model.probabilities(logits)[0].tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    @torch.no_grad()
    def explain(self, image, target=None, foil=None):
        """
        The `Answer` for a class.

        Args:
            image (`PIL.Image.Image`): What [`Explainer.open`] gives.
            target (`str`, *optional*): The class; by default the predicted one.
            foil (`str`, *optional*): Another class: why `target` rather than that?
        """
        options = {} if self.writes else {"max_new_tokens": 1}
        explained = self.model.explain_pixels(self._pixels(image), self.processor, target, foil, **options)
        cells = tuple(explained["saliency"].shape[-2:])
        (found,) = self.model.read_explanations(explained, [cells], self.processor)
        rationale = found["rationale"] if self.writes else ""
        return Answer(found["label"], found["score"], rationale, found["saliency"])

    @torch.no_grad()
    def on_background(self, image, saliency, threshold, other=None):
        """
        The intervention: what the map shows of a picture, on another background.

        Args:
            image (`PIL.Image.Image`), saliency (`np.ndarray` of shape `(map_height, map_width)`): Picture and map.
            threshold (`float`): Pixels stay where the map is at least that.
            other (`PIL.Image.Image`, *optional*): The picture that gives its background, without what the model's own
                map shows of it; plain grey by default.

        Returns:
            `(PIL.Image.Image, dict[str, float])`: the picture, and what [`Explainer.probabilities`] gives for it.
        """
        background = Image.new("RGB", image.size, (128, 128, 128))
        if other is not None:
            seen = self.model(self._pixels(other)).saliency[0].float().cpu().numpy()
            background = without_object(other, seen)
        pasted = paste(image, saliency, threshold, background)
        return pasted, self.probabilities(pasted)

    def _pixels(self, image):
        pixel_values = self.processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixel_values.to(self.model.device, self.model.dtype)


def _read(path):
    """A file as Pillow opens it, whose every error is a `ValueError` in one line without the path."""
    Image.init()
    formats = [name for name in Image.OPEN if name != "EPS"]  # which would run Ghostscript on it
    try:
        return Image.open(path, formats=formats)
    except Exception as error:  # Pillow's plugins raise many kinds
        reason = "does not decode"
        if isinstance(error, UnidentifiedImageError):
            reason = "is in no known format"
        elif isinstance(error, Image.DecompressionBombError):
            reason = "has too many pixels"
        raise ValueError(f"This is no picture that can be shown: it {reason}.") from error


def verdict(before, after):
    """
    What became of the label, in a sentence.

    Args:
        before, after (`dict[str, float]`): Probabilities of the classes, the highest first.
    """
    label, changed = next(iter(before)), next(iter(after))
    if label == changed:
        return f"The label stays: {label}, {before[label]:.0%} before and {after[label]:.0%} after."
    return f"The label changes: {label} ({before[label]:.0%}) before, {changed} ({after[changed]:.0%}) after."
