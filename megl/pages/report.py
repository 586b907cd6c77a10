"""The report of an evaluation as one self-contained HTML page: figures, charts, and items to look at."""

import html
from collections import Counter

import numpy as np

from megl.evaluation.headlines import at, count_of, headlines, interval_head, interval_text
from megl.pages.charts import STYLE, bars, curve, dot, matrix, named_dots, table, unit_chart
from megl.pages.html_page import document
from megl.pages.pictures import item_html
from megl.tables import evenly_spaced, read_row


CASES = 6  # items of each kind of case
MOST_BARS = 40
MOST_CLASSES = 25  # of a confusion matrix
MOST_NAMES = 30  # of classes and groups in a chart
MOST_DOTS = 2000


def write_report(path, dataset, items, metrics, count):
    """
    Write the page, with `count` items evenly spaced over the data set after the cases.

    Args:
        path (`Path`): The HTML file.
        dataset: The split.
        items (`list[dict]`): The lines of `predictions.jsonl`, in the order of the data set.
        metrics (`dict`): What is in `metrics.json`.
        count (`int`): Items to show besides the cases.
    """
    title = f"MEGL: {metrics['model']} on {metrics['split']} of {metrics['dataset']}"
    sections = [
        _figures(metrics),
        _classes(items, metrics),
        _maps(items, metrics),
        _calibration(metrics["calibration"]),
    ]
    sections += [_cases(dataset, items, *case) for case in cases(items)]
    sections.append(_examples(dataset, items, count))
    body = f"""<h1>What the model sees, where it looks and what it says</h1>
<p class="figures">{html.escape(metrics["model"])}: {len(items):,} images of the {html.escape(metrics["split"])} split
of {html.escape(metrics["dataset"])}.</p>
{"".join(sections)}"""
    path.write_text(document(title, body, STYLE), encoding="utf-8")


def _figures(metrics):
    rows = [
        [name, f"{value:.3f}", interval_text(at(metrics["intervals"], path)), f"{count_of(metrics, path):,}"]
        for path, name, value in headlines(metrics)
    ]
    bootstrap, not_scored = metrics["bootstrap"], at(metrics, ("rationale", "not_scored"))
    note = f'<p class="figures">Rationales are not scored: {html.escape(not_scored)}.</p>' if not_scored else ""
    return f"""<h2>Figures</h2>{table(["", "value", interval_head(metrics), "images"], rows)}{note}
<p class="figures">Intervals: bootstrap over the images, {bootstrap["resamples"]:,} resamples.</p>"""


def _classes(items, metrics):
    charts = []
    mapped = [item for item in items if item["per_item"].get("saliency.iou") is not None]
    for title, name, sizes in (
        ("Accuracy by class", "accuracy_by_class", metrics["n_by_class"]),
        ("IoU of the maps by class", "iou_by_class", Counter(item["label"] for item in mapped)),
        ("Accuracy by group", "accuracy_by_group", metrics["n_by_group"]),
        ("IoU of the maps by group", "iou_by_group", Counter(item["group"] for item in mapped)),
    ):
        values = metrics[name]
        if values:
            charts.append(_bars(title, values, at(metrics["intervals"], (name,)) or {}, sizes))
    return f"""<h2>Classes and groups</h2><div class="charts">{"".join(charts)}</div>
<h3>Confusion</h3>{_confusion(**metrics["confusion"])}"""


def _bars(title, values, intervals, sizes):
    names = sorted(values, key=lambda name: np.inf if values[name] is None else values[name])[:MOST_BARS]
    rows = [(name, values[name], intervals.get(name), f"n = {sizes[name]:,}") for name in names]
    rest = f", the lowest {len(names)} of {len(values)}" if len(names) < len(values) else ""
    return f"<div><h3>{title}{rest}</h3>{bars(title, rows)}</div>"


def _confusion(classes, counts):
    if len(classes) <= MOST_CLASSES:
        return matrix(classes, counts)
    counts = np.array(counts)
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MOST_BARS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True)]
    rows = [
        [f"{classes[row]} taken for {classes[column]}", f"{wrong[row, column]:,}", f"{counts[row].sum():,}"]
        for row, column in pairs
        if wrong[row, column]
    ]
    return table(["most frequent", "images", "of"], rows)


def _maps(items, metrics):
    if metrics["label_and_map"] is None:
        return "<h2>Label and map</h2><p>No image has a human map.</p>"
    pairs = metrics["label_and_map"]
    rows = [
        [f"label {label}", *(f"{pairs[f'label_{label}_map_{peak}']:,}" for peak in ("right", "wrong"))]
        for label in ("right", "wrong")
    ]
    points = []
    for kind, style in (("class", ""), ("group", "ring")):
        accuracies, ious = metrics[f"accuracy_by_{kind}"], metrics[f"iou_by_{kind}"]
        for name, iou in list(ious.items())[:MOST_NAMES]:
            if iou is not None:
                title = f"{kind} {name}: IoU {iou:.2f}, accuracy {accuracies[name]:.2f}"
                points.append((iou, accuracies[name], name, title, style))
    dots = []
    known = [item for item in items if item["per_item"].get("saliency.iou") is not None]
    for index in evenly_spaced(MOST_DOTS, len(known)):
        item = known[index]
        verdict = "right" if item["prediction"] == item["label"] else "wrong"
        iou = item["per_item"]["saliency.iou"]
        title = f"{item['id']}: {item['prediction']} is {verdict}, IoU {iou:.2f}, probability {item['score']:.2f}"
        dots.append(dot(iou, item["score"], title, f"{verdict} faint"))
    return f"""<h2>Label and map</h2>
{table(["images", "map peaks inside the human map", "outside"], rows)}
<div class="charts"><div><h3>IoU against accuracy: classes, and groups as rings</h3>
{unit_chart("Accuracy over IoU of classes and groups", "mean IoU of the maps", "accuracy", named_dots(points))}</div>
<div><h3>Images: <span class="right">label right</span>, <span class="wrong">label wrong</span></h3>
{unit_chart("Probability over IoU of images", "IoU of the map", "probability of the predicted class", dots)}</div>
</div>"""


def _calibration(calibration):
    filled = [part for part in calibration["bins"] if part["n"]]
    most = max(part["n"] for part in filled)
    marks = [curve([(0, 0), (1, 1)]), curve([(part["confidence"], part["accuracy"]) for part in filled], "curve")]
    for part in filled:
        title = f"{part['n']:,} images at {part['confidence']:.2f}: accuracy {part['accuracy']:.2f}"
        marks.append(dot(part["confidence"], part["accuracy"], title, size=3 + 7 * (part["n"] / most) ** 0.5))
    rows = [
        [
            f"{part['low']:.1f} to {part['high']:.1f}",
            f"{part['n']:,}",
            f"{part['confidence']:.3f}",
            f"{part['accuracy']:.3f}",
        ]
        for part in filled
    ]
    return f"""<h2>Reliability</h2>
<p class="figures">Does a probability of 0.8 mean right in 8 of 10? Expected calibration error
{calibration["ece"]:.3f}. The area of a dot grows with its images.</p>
<div class="charts">
{unit_chart("Reliability curve", "mean probability of the predicted class", "accuracy", marks)}
{table(["probability", "images", "mean", "accuracy"], rows)}</div>"""


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
    by = "by the mean of label (1 or 0), IoU and ROUGE-L"
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
        words = f"the map peaks {where} the human map: {len(places):,} of {len(items):,} images, the clearest first"
        found.append((title, words, ordered[:CASES]))
    return found


def _column(items, name):
    return np.array([np.nan if item["per_item"].get(name) is None else item["per_item"][name] for item in items])


def _quality(item):
    scores = [float(item["prediction"] == item["label"])]
    scores += [item["per_item"].get(name) for name in ("saliency.iou", "rationale.rouge_l")]
    return float(np.mean([score for score in scores if score is not None]))


def _cases(dataset, items, title, explanation, indices):
    shown = "".join(item_html(read_row(dataset, int(i)), items[i], "item case", _note(items[i])) for i in indices)
    return f"""<h2>{title}</h2><p class="figures">{explanation[0].upper()}{explanation[1:]}.</p>
<div class="items">{shown}</div>"""


def _note(item):
    names = {"saliency.iou": "IoU", "rationale.rouge_l": "ROUGE-L"}
    values = [(name, item["per_item"].get(path)) for path, name in names.items()]
    return ", ".join([item["id"], *(f"{name} {value:.2f}" for name, value in values if value is not None)])


def _examples(dataset, items, count):
    chosen = evenly_spaced(count, len(items))
    shown = "".join(item_html(read_row(dataset, index), items[index]) for index in chosen)
    return f"""<h2>Examples</h2><p class="figures">{len(chosen)} images, evenly spaced over the split.</p>
<div class="items">{shown}</div>"""
