"""The page of a study: its figures as charts, with the tables of its results."""

import html
import re
from collections import defaultdict
from statistics import mean

from megl.pages.charts import STYLE, bars, curve, dot, frame, named_dots, table, unit_chart, within
from megl.pages.html_page import document
from studies.study import COLUMNS


BARS = ("accuracy", "accuracy_conflicting", "iou", "pointing_game", "rouge_l", "place_accuracy")


def page(study, name, groups):
    """The HTML of `(group, texts)`: the figures of a data set and architecture as charts, and what is said of them."""
    parts = [f"<h1>Study: {html.escape(name)}</h1>"]
    if study.get("description"):
        parts.append(f"<p>{html.escape(study['description'].strip())}</p>")
    for group, texts in groups:
        parts.append(f"<h2>{html.escape(group.dataset)}, {html.escape(group.architecture)}</h2>")
        parts += [f'<p class="figures">{html.escape(line)}</p>' for line in texts["run"]]
        parts.append(table(*texts["figures"]) + f'<p class="figures">{html.escape(texts["note"])}</p>')
        parts.append(
            f'<div class="charts">{"".join(_bar_charts(group))}{_against_iou(group)}{_against_masks(group)}</div>'
        )
        for title, heads, rows in texts["tables"]:
            parts.append(f"<h3>{html.escape(title)}</h3>{table(heads, rows)}")
    return document(f"MEGL: study {name}", "\n".join(parts), STYLE)


def _bar_charts(group):
    for metric in BARS:
        having = [method for method, values in group.values.items() if metric in values]
        if not having:
            continue
        means = {method: mean(group.values[method][metric]) for method in having}
        rows = [(_label(method), value, group.interval(method, metric), "") for method, value in means.items()]
        yield f"<div><h3>{html.escape(COLUMNS[metric])}</h3>{bars(COLUMNS[metric], rows)}</div>"


def _label(method):
    """A method's name in a chart, where there is room for the values of its settings alone."""
    return re.sub(r"\w+=", "", method)


def _against_iou(group):
    having = {method: values for method, values in group.values.items() if "iou" in values}
    if not having:
        return ""
    places = {method: (mean(values["iou"]), mean(values["accuracy"])) for method, values in having.items()}
    x_ends, y_ends = (frame(values) for values in zip(*places.values(), strict=True))
    points = [
        (within(x, x_ends), within(y, y_ends), _label(method), f"{method}: IoU {x:.3f}, accuracy {y:.3f}", "")
        for method, (x, y) in places.items()
    ]
    title = "Accuracy against IoU"
    chart = unit_chart(title, "IoU of the maps", "accuracy", named_dots(points), x_ends, y_ends)
    return f"<div><h3>{title}</h3>{chart}</div>"


def _against_masks(group):
    """Metrics against the share of masks: a curve for each method that the study varies it of, and the reference."""
    curves = defaultdict(list)
    for method, runs in group.runs.items():
        name, *varied = method.split(" ")
        others = [part for part in varied if not part.startswith("mask_share=")]
        if len(others) < len(varied):
            curves[" ".join([name, *others])].append((runs[0].settings["mask_share"], method))
    charts = [_share_chart(group, metric, curves) for metric in ("accuracy", "accuracy_conflicting", "iou")]
    return "".join(charts) if curves else ""


def _share_chart(group, metric, curves):
    lines = {
        name: [
            (x, mean(group.values[method][metric])) for x, method in sorted(shares) if metric in group.values[method]
        ]
        for name, shares in curves.items()
    }
    reference = group.values.get(group.reference, {}).get(metric)
    if reference is not None:
        lines[group.reference] = [(0, mean(reference)), (1, mean(reference))]
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return ""
    ends = frame(values)
    marks, named = [], []
    for name, points in lines.items():
        places = [(x, within(y, ends)) for x, y in points]
        if not places:
            continue
        marks.append(curve(places, "" if name == group.reference else "curve"))
        titles = [f"{name}, {x:.0%} of the masks: {y:.3f}" for x, y in points]
        marks += [dot(*at, title) for at, title in zip(places, titles, strict=True)]
        named.append((*places[-1], name, titles[-1], ""))
    title = f"{COLUMNS[metric]} against the share of masks"
    chart = unit_chart(title, "share of the masks", COLUMNS[metric], marks + named_dots(named), y_ends=ends)
    return f"<div><h3>{html.escape(title)}</h3>{chart}</div>"
