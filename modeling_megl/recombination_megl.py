"""
Recombination: an annotated picture keeps its object and gets another one's background, so that the label can follow
from the object alone.

The background is that of an annotated picture too, with its own object filled in: where it is left in, a model learns
"the object that does not fit the rest". Related: ForAug (Nauen et al. 2025) trains transformers on such pictures, and
Noise or Signal (Xiao et al. 2021) measures by them.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset


# Shares of a picture that a mask may cover: of less there is no object to see, and of more no background.
LEAST, MOST = 0.001, 0.9


def has_object(masks):
    """Which masks `(batch_size, height, width)` in [0, 1] leave both an object and a background to see: `(B,)`."""
    share = (masks > 0.5).float().mean(dim=(1, 2))
    return (share >= LEAST) & (share <= MOST)


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
            Their objects, in [0, 1]. The hole is larger by a 32nd of the picture, as the edge of an object tells its
            shape.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, height, width)`; what lies outside the hole is as it was.
    """
    reach = max(1, min(masks.shape[1:]) // 32)
    hole = F.max_pool2d(masks[:, None], 2 * reach + 1, stride=1, padding=reach)
    known = (hole < 0.5).to(pixel_values.dtype)
    return _pull_push(pixel_values * known, known)


def move(pixel_values, masks, draws):
    """
    Mirror, resize and move what lies inside the masks.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Pictures.
        masks (`torch.Tensor` of shape `(batch_size, height, width)`): Their objects, in [0, 1]; none is empty.
        draws (`torch.Tensor` of shape `(batch_size, 4)`):
            Numbers in [0, 1) that say, in this order, whether the object is mirrored (below 1/2); its size, from
            1/sqrt(2) to sqrt(2) of what it was, and no larger than the picture; and its place, from the left to the
            right and from the top to the bottom edge.

    Returns:
        `(pixel_values, masks)` of the same shapes; 0 where something from beyond the picture's edge would be.
    """
    centres, halves = _boxes(masks > 0.5, masks.dtype)
    scales = torch.minimum(torch.exp2(draws[:, 1] - 0.5), 1 / halves.amax(dim=1))[:, None]
    places = (2 * draws[:, 2:] - 1) * (1 - halves * scales)
    steps = 1 / scales.repeat(1, 2)
    steps[:, 0] *= torch.where(draws[:, 0] < 0.5, -1, 1)
    theta = torch.cat([torch.diag_embed(steps), (centres - steps * places)[:, :, None]], dim=2)
    both = torch.cat([pixel_values, masks[:, None]], dim=1)
    both = F.grid_sample(both, F.affine_grid(theta, both.shape, align_corners=False), align_corners=False)
    return both[:, :-1], both[:, -1]


def _boxes(inside, dtype):
    """Centres and half sides of the boxes around what is inside, `(B, 2)` each: x and y, the picture is [-1, 1]."""
    ends = []
    for dim in (1, 2):  # of which the maximum is taken: what is left is x, then y
        line = inside.any(dim=dim).to(dtype)
        side = line.shape[1]
        ends.append(torch.stack([line.argmax(dim=1), side - line.flip(1).argmax(dim=1)]) * 2 / side - 1)
    first, last = torch.stack(ends, dim=2).to(dtype)
    return (first + last) / 2, (last - first) / 2


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


# What a process keeps of backgrounds that it has made: 256 MB, 446 of 224 x 224 pixels.
KEPT_BYTES = 2**28


@dataclass
class Recombination:
    """
    Draws which pictures' places are taken by recombined ones, and of which two these are made.

    What is drawn follows from seed, epoch and the picture in that place, whatever the batch, the worker and the
    process.

    Args:
        dataset (`datasets.Dataset` or a sequence of rows): Where objects and backgrounds come from.
        share (`float`): Share of the rows whose place a recombined picture takes, in [0, 1].
        moved (`float`, *optional*, defaults to 0.0):
            Share of the recombined pictures whose object is mirrored, resized and moved besides, see [`move`]. Their
            rationales, which may say where the object is, are left out.
        seed (`int`, *optional*, defaults to 0): Draws the rows.

    Raises:
        `ValueError`: where fewer than two rows have a visual explanation.
    """

    dataset: object
    share: float
    moved: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self.places, self._kept = annotated_places(self.dataset), {}
        if len(self.places) < 2:
            raise ValueError(
                f"`recombine` needs two training pictures with a visual explanation or more, got {len(self.places)}: "
                "one gives its object, the other its background."
            )

    def draw(self, row, epoch, process):
        """
        What takes this row's place in this epoch.

        Args:
            row (`dict`): A row of the training data.
            epoch (`int`): The epoch.
            process (`Callable`): Rows to `pixel_values` `(B, C, H, W)` and `visual_explanations` `(B, H, W)`.

        Returns:
            `(row, background, draws)`: the row that gives the object, which is this one if it has a visual
            explanation; a background `(C, H, W)`, and what [`move`] takes, each `None` where that is not done.
        """
        key = _checksum(row)
        draw = np.random.default_rng([self.seed, epoch, key])
        if draw.random() >= self.share:
            return row, None, None
        draws = draw.random(4).tolist() if draw.random() < self.moved else None
        first, second = (int(place) for place in draw.choice(self.places, 2, replace=False))
        own, background = self._background(first, process)
        if row.get("visual_explanation") is None:
            row = self.dataset[second]
        elif own == key:
            _, background = self._background(second, process)
        return row if draws is None else {**row, "textual_explanations": None}, background, draws

    def _background(self, place, process):
        """Checksum of the picture in a place, and its background; `None` where its mask leaves none."""
        if place in self._kept:
            return self._kept[place]
        row = self.dataset[place]
        batch = process([row])
        pixel_values, masks = batch["pixel_values"], batch["visual_explanations"]
        background = fill_in(pixel_values, masks)[0] if has_object(masks).item() else None
        if (len(self._kept) + 1) * pixel_values.nbytes <= KEPT_BYTES:
            self._kept[place] = _checksum(row), background
        return _checksum(row), background


def _checksum(row):
    return zlib.crc32(np.ascontiguousarray(row["image"]))


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


__all__ = ["Recombination", "fill_in", "has_object", "move", "recombine"]
