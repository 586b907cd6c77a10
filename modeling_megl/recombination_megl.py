"""
Recombination: an annotated picture keeps its object and gets another one's background, so that the label can follow
from the object alone.

The background is that of an annotated picture too, with its own object filled in: where it is left in, a model learns
"the object that does not fit the rest". Related: ForAug (Nauen et al. 2025) trains transformers on such pictures, and
Noise or Signal (Xiao et al. 2021) measures by them.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Shares of a picture that a mask may cover: of less there is no object to see, and of more no background.
LEAST, MOST = 0.001, 0.9
# Above the first a mask shows the object, above the second there may be something of it, as on the rim of a soft mask.
OBJECT, TRACE = 0.5, 0.1


def has_object(masks):
    """
    Which masks `(batch_size, height, width)` in [0, 1] leave both an object and a background to see, `(B,)`: a
    thousandth of the picture above 0.5, and a tenth not above 0.1.
    """
    object_share, hole_share = ((masks > level).float().mean(dim=(1, 2)) for level in (OBJECT, TRACE))
    return (object_share >= LEAST) & (hole_share <= MOST)


def recombine(pixel_values, masks, backgrounds):
    """
    What lies inside the masks, on other backgrounds.

    Args:
        pixel_values, backgrounds (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Pictures, in any units that are linear in the pixels' values; [`fill_in`] makes backgrounds of pictures.
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            The objects, in [0, 1]; the edge between object and background is softened by a pixel.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`.
    """
    inside = F.avg_pool2d(masks[:, None], 3, stride=1, padding=1, count_include_pad=False)
    return inside * pixel_values + (1 - inside) * backgrounds


def fill_in(pixel_values, masks):
    """
    Pictures without their objects: a hole is filled from its surroundings, coarsely where they are far away, by the
    pull-push algorithm (Gortler et al. 1996, "The Lumigraph", section 3.4).

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures.
        masks (`torch.Tensor` of shape `(batch_size, height, width)`):
            Their objects, in [0, 1]. The hole is where they are above 0.1, and larger by a 32nd of the picture, as the
            edge of an object tells its shape.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`; what lies outside the hole is as it was.
    """
    reach = max(1, min(masks.shape[1:]) // 32)
    size = 2 * reach + 1
    # Columns, then rows: a quarter of the time of the square at once.
    hole = F.max_pool2d(masks[:, None], (size, 1), stride=1, padding=(reach, 0))
    hole = F.max_pool2d(hole, (1, size), stride=1, padding=(0, reach))
    known = (hole <= TRACE).to(pixel_values.dtype)
    return _pull_push(pixel_values * known, known)


def _pull_push(weighted, known):
    """Means of what is known, `weighted / known`, with the gaps taken from the same at half the resolution."""
    means = weighted / torch.where(known > 0, known, 1.0)
    if max(known.shape[-2:]) == 1:
        return means
    coarse = _pull_push(
        *(F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (weighted, known))
    )
    filled = F.interpolate(coarse, size=known.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, means, filled)


# What a process keeps of the pictures that it has cut out: 256 MB, 190 of 224 x 224 pixels.
KEPT_BYTES = 2**28


class CutOut(NamedTuple):
    """An annotated row without its pictures; the checksum of these; picture, mask and background as tensors."""

    row: dict
    checksum: int
    pixel_values: torch.Tensor
    mask: torch.Tensor
    background: torch.Tensor | None  # none where the mask leaves no object or no background to see


class Pair(NamedTuple):
    """What takes the place of a row: an object and a background."""

    object: CutOut
    background: CutOut


@dataclass
class Recombination:
    """
    Draws which pictures' places are taken by recombined ones, and of which two these are made.

    What is drawn follows from seed, epoch and the picture in that place, whatever the batch, the worker and the
    process.

    Args:
        dataset (`datasets.Dataset` or a sequence of rows): Where objects and backgrounds come from.
        share (`float`): Share of the rows whose place a recombined picture takes, in [0, 1].
        seed (`int`, *optional*, defaults to 0): Draws the rows.

    Raises:
        `ValueError`: where fewer than two rows have a visual explanation.
    """

    dataset: object
    share: float
    seed: int = 0

    def __post_init__(self):
        self._kept = {}
        self.places = annotated_places(self.dataset)
        if len(self.places) < 2:
            raise ValueError(
                f"`recombine` needs two training pictures with a visual explanation or more, got {len(self.places)}: "
                "one gives its object, the other its background."
            )

    def check_objects(self, process, tried=16):
        """A `ValueError` where none of the first masks leaves an object and a background to see."""
        rows = [self.dataset[int(place)] for place in self.places[:tried]]
        if not any(has_object(process([row])["visual_explanations"]).item() for row in rows):
            raise ValueError(
                f"`recombine` found no object in the first {len(rows)} visual explanations: it needs more than "
                f"{LEAST:.1%} of a picture above {OBJECT} of white, and at most {MOST:.0%} above {TRACE}."
            )

    def draw(self, row, epoch, process):
        """
        What takes a row's place in an epoch: its own object, if it has a visual explanation, else another one's, on
        the background of yet another.

        Args:
            row (`dict`): A row of the training data.
            epoch (`int`): The epoch.
            process (`Callable`): Rows to `pixel_values` `(B, C, H, W)` and `visual_explanations` `(B, H, W)`.

        Returns:
            [`Pair`], or `None` where the row stays.
        """
        checksum = _checksum(row)
        draw = np.random.default_rng([self.seed, epoch, checksum])
        if draw.random() >= self.share:
            return None
        first, second = (int(place) for place in draw.choice(self.places, 2, replace=False))
        background = self._cut_out(first, process)
        if row.get("visual_explanation") is None:
            return Pair(self._cut_out(second, process), background)
        own = self._kept.get(("checksum", checksum)) or _cut_out(row, process)
        if background.checksum == checksum or row.get("id") is not None and background.row.get("id") == row["id"]:
            background = self._cut_out(second, process)
        # Another row may have the same picture, and say other things of it.
        return Pair(CutOut(_without_pictures(row), *own[1:]), background)

    def _cut_out(self, place, process):
        """The row in a place of the data set, cut out, and kept as far as there is room."""
        if place in self._kept:
            return self._kept[place]
        found = _cut_out(self.dataset[place], process)
        size = 2 * found.pixel_values.nbytes + found.mask.nbytes
        if (len(self._kept) // 2 + 1) * size <= KEPT_BYTES:
            self._kept[place] = self._kept["checksum", found.checksum] = found
        return found


def _cut_out(row, process):
    batch = process([row])
    pixel_values, masks = batch["pixel_values"], batch["visual_explanations"]
    background = None
    if has_object(masks).item():
        background = fill_in(pixel_values, masks)[0]
    else:
        logger.warning_once(
            f"Some masks show no object (less than {LEAST:.1%} of their picture is above {OBJECT} of white) or no "
            f"background (more than {MOST:.0%} is above {TRACE}): these pictures are not recombined, and lend nothing."
        )
    return CutOut(_without_pictures(row), _checksum(row), pixel_values[0], masks[0], background)


def _without_pictures(row):
    return {name: value for name, value in row.items() if name not in ("image", "visual_explanation")}


def _checksum(row):
    """Of a row's picture and mask."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("image", "visual_explanation"):
        picture = row.get(name)
        pixels = np.ascontiguousarray(picture) if picture is not None else np.empty(0)
        # The same numbers are another picture in another mode or shape, or by another palette.
        mode = getattr(picture, "mode", None)
        palette = picture.getpalette() if mode == "P" else None
        digest.update(f"{name} {mode} {pixels.dtype} {pixels.shape} {palette}".encode())
        digest.update(pixels)
    return int.from_bytes(digest.digest())


def make_pictures(pairs):
    """
    The pictures of some [`Pair`]s; where either mask leaves no object or no background to see, the object keeps its
    own background.

    Returns:
        `dict`: `pixel_values` `(B, C, H, W)`, `visual_explanations` `(B, H, W)`, `has_visual_explanation` `(B,)`.
    """
    pixel_values = torch.stack([pair.object.pixel_values for pair in pairs])
    masks = torch.stack([pair.object.mask for pair in pairs])
    usable = [all(part.background is not None for part in (pair.object, pair.background)) for pair in pairs]
    places = [place for place, use in enumerate(usable) if use]
    if places:
        backgrounds = torch.stack([pairs[place].background.background for place in places])
        pixel_values[places] = recombine(pixel_values[places], masks[places], backgrounds)
    return {
        "pixel_values": pixel_values,
        "visual_explanations": masks,
        "has_visual_explanation": torch.ones(len(pairs), dtype=torch.bool),
    }


def annotated_places(dataset):
    """Places of the rows with a visual explanation, without decoding a picture where that can be done."""
    if isinstance(dataset, Dataset) and "visual_explanation" not in dataset.column_names:
        return np.array([], dtype=int)
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        columns = dataset.select_columns(["visual_explanation"]).with_format("arrow").iter(1000)
        given = np.concatenate([batch["visual_explanation"].is_valid().to_numpy() for batch in columns])
    else:
        given = np.array([row.get("visual_explanation") is not None for row in dataset])
    return np.flatnonzero(given)


__all__ = ["Recombination", "fill_in", "has_object", "make_pictures", "recombine"]
