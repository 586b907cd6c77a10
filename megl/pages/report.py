"""The report of an evaluation as one self-contained HTML page: figures, charts, and items to look at."""

from collections import Counter

import numpy as np

from megl.evaluation.headlines import at, count_of, headlines, interval_head, interval_text
from megl.pages.charts import BAD, GOOD, LINE, Points, bars, chart_of_points
from megl.pages.html_page import TEMPLATES, render
from megl.pages.interventions import intervention_charts, made_pictures
from megl.pages.pictures import shown_item
from megl.tables import evenly_spaced, read_row


CASES = 6  # items of each kind of case
MOST_BARS = 40
MOST_CLASSES = 25  # of a confusion matrix
MOST_NAMES = 30  # of classes and groups in a chart
MOST_DOTS = 2000


def write_report(path, dataset, items, metrics, count, interventions=None):
    """
    Write the page, with `count` items evenly spaced over the data set after the cases.

    Args:
        path (`Path`): The HTML file.
        dataset: The split.
        items (`list[dict]`): The lines of `predictions.jsonl`, in the order of the data set.
        metrics (`dict`): What is in `metrics.json`.
        count (`int`): Items to show besides the cases.
        interventions ([`Interventions`], *optional*): Where objects and backgrounds were exchanged: how.
    """
    with_maps = metrics["label_and_map"] is not None
    page = render(
        TEMPLATES / "report.html",
        metrics=metrics,
        images=len(items),
        figures=_figures(metrics),
        not_scored=at(metrics, ("rationale", "not_scored")),
        class_charts=_class_charts(items, metrics),
        mistakes=_mistakes(**metrics["confusion"]),
        label_and_map=_label_and_map(metrics["label_and_map"]) if with_maps else None,
        class_points=_class_points(metrics) if with_maps else None,
        image_points=_image_points(items) if with_maps else None,
        interventions=None if interventions is None else _interventions(interventions, items, metrics),
        reliability=_reliability(metrics["calibration"]),
        reliability_table=_reliability_table(metrics["calibration"]),
        cases=[_shown_case(dataset, items, *case) for case in cases(items)],
        examples=[shown_item(read_row(dataset, index), items[index]) for index in evenly_spaced(count, len(items))],
    )
    path.write_text(page, encoding="utf-8")


def _figures(metrics):
    rows = [
        [name, f"{value:.3f}", interval_text(at(metrics["intervals"], path)), f"{count_of(metrics, path):,}"]
        for path, name, value in headlines(metrics)
    ]
    return ["", "value", interval_head(metrics), "images"], rows


def _class_charts(items, metrics):
    """`(heading, chart)` of accuracy and IoU by class and by group, of those that there are."""
    mapped = _mapped(items)
    charts = []
    for title, name, sizes in (
        ("Accuracy by class", "accuracy_by_class", metrics["n_by_class"]),
        ("IoU of the maps by class", "iou_by_class", Counter(item["label"] for item in mapped)),
        ("Accuracy by group", "accuracy_by_group", metrics["n_by_group"]),
        ("IoU of the maps by group", "iou_by_group", Counter(item["group"] for item in mapped)),
    ):
        values, intervals = metrics[name], at(metrics["intervals"], (name,)) or {}
        if not values:
            continue
        names = sorted(values, key=lambda name: np.inf if values[name] is None else values[name])[:MOST_BARS]
        rows = [(name, values[name], intervals.get(name), f"n = {sizes[name]:,}") for name in names]
        rest = f", the lowest {len(names)} of {len(values)}" if len(names) < len(values) else ""
        charts.append((f"{title}{rest}", bars(title, rows)))
    return charts


def _mapped(items):
    return [item for item in items if item["per_item"].get("saliency.iou") is not None]


def _mistakes(classes, counts):
    """The most frequent mistakes as a table, where the classes are too many for a matrix."""
    if len(classes) <= MOST_CLASSES:
        return None
    counts = np.array(counts)
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MOST_BARS]
    rows = [
        [f"{classes[row]} taken for {classes[column]}", f"{wrong[row, column]:,}", f"{counts[row].sum():,}"]
        for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True)
        if wrong[row, column]
    ]
    return ["most frequent", "images", "of"], rows


def _label_and_map(pairs):
    rows = [
        [f"label {label}", *(f"{pairs[f'label_{label}_map_{peak}']:,}" for peak in ("right", "wrong"))]
        for label in ("right", "wrong")
    ]
    return ["images", "map peaks inside the human map", "outside"], rows


def _class_points(metrics):
    series = []
    for kind, look in (("class", {}), ("group", {"ring": True, "colour": BAD})):
        accuracies, ious = metrics[f"accuracy_by_{kind}"], metrics[f"iou_by_{kind}"]
        names = [name for name in list(ious)[:MOST_NAMES] if ious[name] is not None]
        tips = [f"{kind} {name}: IoU {ious[name]:.2f}, accuracy {accuracies[name]:.2f}" for name in names]
        x, y = ([values[name] for name in names] for values in (ious, accuracies))
        series.append(Points(x, y, tips, names, sizes=5, **look))
    return chart_of_points("Accuracy over IoU of classes and groups", "mean IoU of the maps", "accuracy", series)


def _image_points(items):
    mapped = _mapped(items)
    items = [mapped[index] for index in evenly_spaced(MOST_DOTS, len(mapped))]
    series = []
    for verdict, colour in (("right", GOOD), ("wrong", BAD)):
        shown = [item for item in items if (item["prediction"] == item["label"]) == (verdict == "right")]
        x, y = [item["per_item"]["saliency.iou"] for item in shown], [item["score"] for item in shown]
        tips = [
            f"{item['id']}: {item['prediction']} is {verdict}, IoU {iou:.2f}, probability {score:.2f}"
            for item, iou, score in zip(shown, x, y, strict=True)
        ]
        series.append(Points(x, y, tips, colour=colour, faint=True))
    title = "Probability over IoU of images"
    return chart_of_points(title, "IoU of the map", "probability of the predicted class", series)


def _interventions(interventions, items, metrics):
    """Charts of accuracy and agreement on the pictures made of others, and some of these with their labels."""
    places = list(interventions.places)
    chosen = [places[index] for index in evenly_spaced(CASES, len(places))]
    return {
        "charts": intervention_charts(metrics),
        "items": [made_pictures(interventions, place, items[place]) for place in chosen],
    }


def _reliability(calibration):
    filled = [part for part in calibration["bins"] if part["n"]]
    most = max(part["n"] for part in filled)
    x, y = ([part[name] for part in filled] for name in ("confidence", "accuracy"))
    tips = [f"{part['n']:,} images at {part['confidence']:.2f}: accuracy {part['accuracy']:.2f}" for part in filled]
    sizes = [3 + 7 * (part["n"] / most) ** 0.5 for part in filled]
    series = [Points([0, 1], [0, 1], colour=LINE, line=True), Points(x, y, tips, sizes=sizes, line=True)]
    return chart_of_points("Reliability curve", "mean probability of the predicted class", "accuracy", series)


def _reliability_table(calibration):
    rows = [
        [f"{part['low']:.1f} to {part['high']:.1f}", f"{part['n']:,}"]
        + [f"{part[name]:.3f}" for name in ("confidence", "accuracy")]
        for part in calibration["bins"]
        if part["n"]
    ]
    return ["probability", "images", "mean", "accuracy"], rows


def cases(items):
    """
    `(title, explanation, indices)` of the items to look at: the best, the worst, and those where label and map part.

    The quality of an item is the mean of label (1 or 0), IoU of its map and ROUGE-L of its rationale, where it has
    them.
    """
    quality = np.array([_quality(item) for item in items])
    right = np.array([item["prediction"] == item["label"] for item in items])
    iou, peak = (_column(items, f"saliency.{name}") for name in ("iou", "pointing_game"))
    order = np.argsort(-quality, kind="stable")
    by = "By the mean of label (1 or 0), IoU and ROUGE-L"
    half = min(CASES, len(items) // 2)
    found = [("Best", by, order[:half]), ("Worst", by, order[::-1][:half])]
    if np.isnan(iou).all():
        return found
    for title, chosen, direction in (
        ("Label right, map wrong", right & (peak == 0), 1),
        ("Label wrong, map right", ~right & (peak == 1), -1),
    ):
        places = np.flatnonzero(chosen)
        ordered = places[np.argsort(direction * iou[places], kind="stable")]
        where = "outside" if direction == 1 else "inside"
        words = f"The map peaks {where} the human map: {len(places):,} of {len(items):,} images, the clearest first"
        found.append((title, words, ordered[:CASES]))
    return found


def _column(items, name):
    return np.array([np.nan if item["per_item"].get(name) is None else item["per_item"][name] for item in items])


def _quality(item):
    scores = [float(item["prediction"] == item["label"])]
    scores += [item["per_item"].get(name) for name in ("saliency.iou", "rationale.rouge_l")]
    return float(np.mean([score for score in scores if score is not None]))


def _shown_case(dataset, items, title, explanation, indices):
    shown = [shown_item(read_row(dataset, int(index)), items[index], _note(items[index])) for index in indices]
    return title, explanation, shown


def _note(item):
    names = {"saliency.iou": "IoU", "rationale.rouge_l": "ROUGE-L"}
    values = [(name, item["per_item"].get(path)) for path, name in names.items()]
    return ", ".join([item["id"], *(f"{name} {value:.2f}" for name, value in values if value is not None)])
