"""The page of a study: its figures as charts, with the tables of its results."""

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

from megl.pages.charts import LINE, Points, bars, chart_of_points, frame
from megl.pages.html_page import render
from studies.study import COLUMNS


BARS = ("accuracy", "accuracy_conflicting", "iou", "pointing_game", "rouge_l", "place_accuracy")


def page(study, name, groups):
    """The HTML of `(group, texts)`: the figures of a data set and architecture as charts, and what is said of them."""
    shown = [
        {
            "title": f"{group.dataset}, {group.architecture}",
            "charts": [*_bar_charts(group), *_against_iou(group), *_against_masks(group)],
            **texts,
        }
        for group, texts in groups
    ]
    description = (study.get("description") or "").strip()
    return render(Path(__file__).with_name("study.html"), name=name, description=description, groups=shown)


def _bar_charts(group):
    """`(heading, chart)` for each of `BARS` that there is."""
    for metric in BARS:
        means = {method: mean(values[metric]) for method, values in group.values.items() if metric in values}
        rows = [(_label(method), value, group.interval(method, metric), "") for method, value in means.items()]
        if rows:
            yield COLUMNS[metric], bars(_title(group, COLUMNS[metric]), rows)


def _title(group, heading):
    """For those who do not see the chart, which they find by this among those of the other groups."""
    return f"{heading}: {group.dataset}, {group.architecture}"


def _label(method):
    """A method's name in a chart, where there is room for the values of its settings alone."""
    return re.sub(r"\w+=", "", method)


def _against_iou(group):
    places = {
        method: (mean(values["iou"]), mean(values["accuracy"]))
        for method, values in group.values.items()
        if "iou" in values
    }
    if not places:
        return
    x, y = zip(*places.values(), strict=True)
    tips = [f"{method}: IoU {iou:.3f}, accuracy {accuracy:.3f}" for method, (iou, accuracy) in places.items()]
    points = Points(x, y, tips, [_label(method) for method in places], sizes=5)
    title = "Accuracy against IoU"
    yield title, chart_of_points(_title(group, title), "IoU of the maps", "accuracy", [points], frame(x), frame(y))


def _against_masks(group):
    """Metrics against the share of masks: a curve for each method that the study varies it of, and the reference."""
    curves = defaultdict(list)
    for method, runs in group.runs.items():
        name, *varied = method.split(" ")
        others = [part for part in varied if not part.startswith("mask_share=")]
        if len(others) < len(varied):
            curves[" ".join([name, *others])].append((runs[0].settings["mask_share"], method))
    if curves:
        for metric in ("accuracy", "accuracy_conflicting", "iou"):
            yield from _share_chart(group, metric, curves)


def _share_chart(group, metric, curves):
    lines = {}
    for name, shares in curves.items():
        having = [(x, mean(group.values[method][metric])) for x, method in shares if metric in group.values[method]]
        if having:
            lines[name] = sorted(having)
    reference = group.values.get(group.reference, {}).get(metric)
    if reference is not None:
        lines[group.reference] = [(0, mean(reference)), (1, mean(reference))]
    if not lines:
        return
    series = []
    for name, points in lines.items():
        x, y = zip(*points, strict=True)
        tips = [f"{name}, {share:.0%} of the masks: {value:.3f}" for share, value in points]
        names = [""] * (len(points) - 1) + [name]
        look = {"colour": LINE} if name == group.reference else {}
        series.append(Points(x, y, tips, names, line=True, **look))
    title = f"{COLUMNS[metric]} against the share of masks"
    y_ends = frame([y for points in series for y in points.y])
    chart = chart_of_points(_title(group, title), "share of the masks", COLUMNS[metric], series, y_ends=y_ends)
    yield title, chart
