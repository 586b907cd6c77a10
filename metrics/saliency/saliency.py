"""How well saliency maps agree with the masks that people drew."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Compares saliency maps with human masks: IoU, precision, recall and F1 of the thresholded map, the share of the map's
energy inside the mask, the pointing game, and the mean absolute error. Maps and masks may have any size: each map is
resized to its mask.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of maps): maps of shape `(h, w)`, nested lists or arrays, values in [0, 1].
    references (`list` of masks): masks of shape `(H, W)`, values in [0, 1]; above 0.5 is inside. Sizes may differ from
        item to item and from the map's.
    threshold (`float`, defaults to 0.5): a pixel is chosen when the map, divided by its own maximum, exceeds it.
    tolerance (`float`, defaults to 0): the pointing game also counts a maximum at most this many pixels of the mask
        (Euclidean distance) away from the inside.
    signed (`bool`, defaults to `False`): masks have values in [-1, 1]: above 0 is inside, below 0 is outside, 0 is
        unlabelled and left out of every count.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `iou`, `precision`, `recall`, `f1`, `energy`, `pointing_game` (in [0, 1], higher is better) and `mae` (in [0, 1],
    lower is better): means over the items whose mask is not empty; `None` where there are no such items.
    `n`: the number of items in the means.
    `n_undefined`: the number of items whose map is zero everywhere (they score 0, and their `mae` is that of a zero
    map) or whose mask has nothing inside (they are left out).
    `per_item`: with `per_item=True`, a dict of lists, `None` where the mask is empty.
Examples:
    >>> import evaluate
    >>> saliency = evaluate.load("metrics/saliency")
    >>> maps = [[[1.0, 0.25], [0.75, 0.0]]]
    >>> masks = [[[1.0, 0.0], [0.0, 0.0]]]
    >>> results = saliency.compute(predictions=maps, references=masks)
    >>> results["iou"], results["precision"], results["recall"], results["energy"], results["mae"]
    (0.5, 0.5, 1.0, 0.5, 0.25)

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
"""

SCORES = ["iou", "precision", "recall", "f1", "energy", "pointing_game", "mae"]
PIXELS_AT_ONCE = 2**21
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
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
        if tolerance < 0:
            raise ValueError(f"`tolerance` must be 0 or more pixels, got {tolerance}.")
        maps = to_arrays(predictions, "predictions", lowest=0)
        masks = to_arrays(references, "references", lowest=-1 if signed else 0)

        scores = {name: np.zeros(len(maps)) for name in SCORES}
        zero_map = np.zeros(len(maps), dtype=bool)
        empty_mask = np.zeros(len(maps), dtype=bool)
        for items in batches_of_equal_sizes(maps, masks):
            resized = resize(np.stack([maps[i] for i in items]), masks[items[0]].shape)
            mask = np.stack([masks[i] for i in items])
            labelled = mask != 0 if signed else np.ones(mask.shape, dtype=bool)
            target = (mask > 0).astype(np.float64) if signed else mask
            inside = target > 0.5
            peak = resized.max(axis=(1, 2))
            scaled = resized / np.where(peak > 0, peak, 1)[:, None, None]
            zero_map[items] = peak == 0
            empty_mask[items] = ~inside.any(axis=(1, 2))
            for name, values in overlap(scaled, inside, labelled, threshold).items():
                scores[name][items] = values
            scores["energy"][items] = energy(scaled, inside, labelled)
            scores["pointing_game"][items] = (peak > 0) & pointing_game(scaled, inside, labelled, tolerance)
            scores["mae"][items] = mean_absolute_error(scaled, target, labelled)

        counted = ~empty_mask
        results = {name: float(scores[name][counted].mean()) if counted.any() else None for name in SCORES}
        results["n"] = int(counted.sum())
        results["n_undefined"] = int((zero_map | empty_mask).sum())
        if per_item:
            results["per_item"] = {
                name: [None if empty else float(value) for value, empty in zip(scores[name], empty_mask, strict=True)]
                for name in SCORES
            }
        return results


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
    maps = maps.astype(np.float64)
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


def overlap(scaled, inside, labelled, threshold):
    chosen = (scaled > threshold) & labelled
    hits = (chosen & inside).sum(axis=(1, 2))
    n_chosen = chosen.sum(axis=(1, 2))
    n_inside = inside.sum(axis=(1, 2))
    return {
        "iou": divide(hits, n_chosen + n_inside - hits),
        "precision": divide(hits, n_chosen),
        "recall": divide(hits, n_inside),
        "f1": divide(2 * hits, n_chosen + n_inside),
    }


def energy(scaled, inside, labelled):
    """Energy pointing game (Wang et al. 2020): the share of the map's sum that lies inside."""
    return divide((scaled * inside).sum(axis=(1, 2)), (scaled * labelled).sum(axis=(1, 2)))


def pointing_game(scaled, inside, labelled, tolerance):
    """Whether the first maximum, row by row, is inside or within `tolerance` pixels of it (Zhang et al. 2016)."""
    count, _, width = scaled.shape
    first = np.where(labelled, scaled, -1).reshape(count, -1).argmax(axis=1)
    if tolerance == 0:
        return inside.reshape(count, -1)[np.arange(count), first]
    row, column = (part[:, None, None] for part in np.divmod(first, width))
    rows, columns = np.indices(scaled.shape[1:])
    distance = np.hypot(rows - row, columns - column)  # (B, H, W)
    return (inside & (distance <= tolerance)).any(axis=(1, 2))


def mean_absolute_error(scaled, target, labelled):
    return divide((np.abs(scaled - target) * labelled).sum(axis=(1, 2)), labelled.sum(axis=(1, 2)))
