"""The evaluation of a multi-label model: average precision and F1 of labels, and the map of each label with a mask."""

from functools import partial

import numpy as np
import torch

from megl.evaluation.bootstrap import divide, point_figures
from megl.evaluation.predictions import in_all_processes, own_batches
from megl.evaluation.scores import score_maps
from megl.tables import class_names, read_row
from modeling_megl.processing_megl import read_mask


THRESHOLD = 0.5  # from which probability on a label counts as predicted
OF_MAPS = ("iou", "energy", "pointing_game")


def label_items(model, processor, dataset, batch_size=32):
    """
    Args:
        model ([`MeglForImageClassification`]), processor ([`MeglProcessor`]): A multi-label model, in evaluation mode.
        dataset: The split, of [`open_table`].
        batch_size (`int`): Images at a time; no figure depends on it.

    Returns:
        `list[dict]`: for each image `id`, `group`, `labels` (the names of those that it shows), `scores` (name of each
        class to its probability) and `maps`: name of each label with a mask to the scores of its map, `OF_MAPS`.

    Raises:
        `ValueError`: in all processes alike, where a picture or a mask cannot be read in one of them.
    """
    work = partial(_items_of_batch, model, processor, dataset)
    batches = in_all_processes(lambda: [work(places) for places in own_batches(len(dataset), batch_size, "predict")])
    return [item for _, items in sorted(batches, key=lambda batch: batch[0]) for item in items]


@torch.no_grad()
def _items_of_batch(model, processor, dataset, places):
    """The first place, and the items."""
    names, pictures, masks, items = class_names(dataset), [], [], []
    for place in places:
        row = read_row(dataset, place)
        try:
            pictures.append(processor(images=[row["image"]])["pixel_values"])
        except ValueError as error:
            raise ValueError(f"item {row['id']!r}: {error}") from error
        items.append({"id": row["id"], "group": row["group"], "labels": [names[label] for label in row["label"]]})
        masks.append(_masks_by_label(row, names))
    pixel_values = torch.cat(pictures).to(model.device, model.dtype)
    output = model(pixel_values, **_explained(model, masks))
    for item, scores in zip(items, model.probabilities(output.logits).tolist(), strict=True):
        item |= {"scores": dict(zip(model.config.id2label.values(), scores, strict=True)), "maps": {}}
    pairs = []
    for index, (item, own) in enumerate(zip(items, masks, strict=True)):
        for place, (name, mask) in enumerate(own.items()):
            saliency = output.saliency[index, place].float().cpu().numpy()
            pairs.append((item["maps"], name, {"saliency": saliency, "per_item": {}}, mask))
    score_maps((scored, mask) for *_, scored, mask in pairs)
    for maps, name, scored, _ in pairs:
        maps[name] = {score: scored["per_item"][f"saliency.{score}"] for score in OF_MAPS}
    return places[0], items


def _masks_by_label(row, names):
    """Name of each label of a row with a mask to the mask `(height, width)` in [0, 1]."""
    found = {}
    for label, mask in zip(row["label"], row["visual_explanation"] or (), strict=False):
        if mask is not None:
            where = f"item {row['id']!r}: its visual explanation of {names[label]!r}"
            found[names[label]] = read_mask(mask, row["image"].size, where)
    return found


def _explained(model, masks):
    """What the model is asked for: maps of the labels with a mask, where there are any."""
    count = max(map(len, masks))
    if not count:
        return {"output_saliency": False}
    rows = [[model.config.label2id[name] for name in own] for own in masks]
    target = [row + [-1] * (count - len(row)) for row in rows]
    return {"target": torch.tensor(target, device=model.device)}


def label_figures(items, weights):
    """
    Every figure, for each resample, as `bootstrap.figures` gives those of one label an image.

    Args:
        items (`list[dict]`): Of [`label_items`].
        weights (`np.ndarray` of shape `(resamples, items)`): Not negative. All ones give the figures themselves.

    Returns:
        `dict[tuple[str, ...], np.ndarray]`: path to values of shape `(resamples,)`, NaN where nothing counts. Means
        over labels are over those that some image shows, means over maps over all labels of all images with a mask.
    """
    names = list(items[0]["scores"])
    shown = np.array([[name in item["labels"] for name in names] for item in items])
    scores = np.array([[item["scores"][name] for name in names] for item in items])
    predicted = scores >= THRESHOLD
    hits, of_either = weights @ (shown & predicted), weights @ shown + weights @ predicted
    occurs = (weights @ shown) > 0
    f1 = np.where(occurs, divide(2 * hits, of_either), np.nan)
    precision = np.stack(
        [average_precision(scores[:, place], shown[:, place], weights) for place in range(len(names))], axis=1
    )
    found = {
        ("mean_average_precision",): _mean(precision),
        ("f1_micro",): divide(2 * hits.sum(axis=1), of_either.sum(axis=1)),
        ("f1_macro",): _mean(f1),
    }
    by_label = {"average_precision": precision, "f1": f1}
    for score in OF_MAPS:
        values = np.array([[_score(item, name, score) for name in names] for item in items])
        sums, counts = weights @ np.nan_to_num(values), weights @ ~np.isnan(values)
        found["saliency", score] = divide(sums.sum(axis=1), counts.sum(axis=1))
        by_label[score] = divide(sums, counts)
    for figure, values in by_label.items():
        found |= {(f"{figure}_by_label", name): column for name, column in zip(names, values.T, strict=True)}
    return found


def _score(item, name, score):
    """Of the map of a label; NaN without a mask, and where the score is undefined."""
    value = item["maps"].get(name, {}).get(score)
    return np.nan if value is None else value


def _mean(values):
    """Mean over the labels of values `(resamples, labels)`, but for NaN."""
    return divide(np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1))


def average_precision(scores, shown, weights):
    """
    Average precision: the mean, over the images that show a label, of the precision among the images that score at
    least as high. As scikit-learn has it, and without the interpolation of PASCAL VOC.

    Args:
        scores (`np.ndarray` of shape `(images,)`): Probabilities of the label, or scores.
        shown (`np.ndarray` of shape `(images,)`): Whether an image shows it.
        weights (`np.ndarray` of shape `(resamples, images)`): How often each image counts.

    Returns:
        `np.ndarray` of shape `(resamples,)`: in [0, 1], NaN where no image shows it.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)  # images of one score are found together
    drawn = weights[:, order]
    hits, found = ((drawn * kind).cumsum(axis=1)[:, ends] for kind in (shown[order], 1))
    gains = np.diff(hits, axis=1, prepend=0)
    return divide((gains * np.nan_to_num(divide(hits, found))).sum(axis=1), hits[:, -1])


def label_scores(items):
    """The figures of `metrics.json`, nested, and how many images or masks they are of."""
    nested = {}
    for path, value in point_figures(items, label_figures).items():
        part = nested
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
    names = list(items[0]["scores"])
    masks = {name: sum(name in item["maps"] for item in items) for name in names}
    nested["saliency"]["n"] = sum(masks.values())
    return {
        **nested,
        "threshold": THRESHOLD,
        "n": len(items),
        "n_by_label": {name: sum(name in item["labels"] for item in items) for name in names},
        "n_masks_by_label": masks,
    }


def label_table(metrics):
    """A line for each label: images that show it, average precision, F1, masks, IoU and energy of the maps."""
    columns = ("average_precision_by_label", "f1_by_label", "iou_by_label", "energy_by_label")
    width = max(len("label"), *map(len, metrics["n_by_label"]))
    lines = [f"{'label':<{width}}{'images':>8}{'AP':>8}{'F1':>8}{'masks':>8}{'IoU':>8}{'energy':>8}"]
    for name, count in metrics["n_by_label"].items():
        ap, f1, iou, energy = (
            "-" if (value := metrics[column][name]) is None else f"{value:.3f}" for column in columns
        )
        masks = metrics["n_masks_by_label"][name]
        lines.append(f"{name:<{width}}{count:>8,}{ap:>8}{f1:>8}{masks:>8,}{iou:>8}{energy:>8}")
    return "\n".join(lines)
