"""The figures of docs/results.md, drawn from the groups of `results.read_groups` by matplotlib."""

from io import BytesIO
from statistics import mean

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dataset_builders.object_me.object_me import ObjectMe
from dataset_builders.scenes import Scenes


# One file for the same cells, on any day and machine.
STYLE = {"svg.hashsalt": "megl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5, "legend.frameon": False}
# A data set with an architecture, in words.
PLACES = {
    ("sample", "resnet-tiny"): "sample",
    ("photographs", "efficientnet-lite0"): "photographs",
    ("photographs", "efficientnet-lite0-frozen"): "photographs, frozen",
    ("photographs", "resnet-tiny"): "photographs, from scratch",
    ("sample", "vit-tiny"): "sample, ViT",
    ("sample", "swin-tiny"): "sample, Swin",
    ("photographs", "vit-tiny"): "photographs, ViT",
    ("photographs", "dinov2-small"): "photographs, DINOv2",
}
# Of the study paper, and of the study interventions.
CONVOLUTIONAL, TRANSFORMERS = list(PLACES.values())[:4], list(PLACES.values())[4:7]
RECOMBINED = [
    "sample, ViT",
    "photographs",
    "photographs, DINOv2",
    "photographs, ViT",
    "photographs, from scratch",
    "sample",
]
GREY, ORANGE, GREEN, BLUE, PURPLE = "#555555", "#c2570c", "#1a7f37", "#0b5cad", "#8250df"
# Method of the study paper: its name in words, colour and marker.
METHODS = {
    "plain": ("plain", GREY, "o"),
    "gradia": ("GRADIA", ORANGE, "o"),
    "gradia weight 1": ("GRADIA, weight 1", ORANGE, "s"),
    "haics": ("HAICS", ORANGE, "^"),
    "res_g": ("RES-G", ORANGE, "D"),
    "res_l": ("RES-L", ORANGE, "v"),
    "text": ("rationales alone", GREEN, "o"),
    "megl without vedc": ("MEGL (default)", BLUE, "o"),
    "megl": ("MEGL with VEDC", BLUE, "^"),
    "balanced": ("GRADIA, weight 1, and rationales", BLUE, "s"),
    "res_g and text": ("RES-G and rationales", BLUE, "D"),
    "balanced res_g": ("RES-G, weight 1, and rationales", BLUE, "P"),
}
IN_FOREST = ("gradia", "res_g", "text", "res_g and text", "megl", "megl without vedc")
# Methods of the study masks, without the share of the masks: name, colour, line.
CURVES = {
    "res_g": ("RES-G", ORANGE, "-"),
    "gradia": ("GRADIA", ORANGE, ":"),
    "res_g and text": ("RES-G and rationales", BLUE, "-"),
    "megl": ("MEGL with VEDC", BLUE, ":"),
    "res_g and vedc": ("RES-G and VEDC", PURPLE, "-"),
    "all three": ("RES-G, rationales and VEDC", GREEN, "-"),
}
# Methods of the study interventions: name and colour.
INTERVENTIONS = {
    "plain": ("plain", GREY),
    "megl without vedc": ("MEGL (default)", BLUE),
    "recombined": ("recombined", PURPLE),
    "recombined megl": ("recombined MEGL", GREEN),
}
METRICS = {"accuracy": "accuracy", "accuracy_conflicting": "accuracy, conflicting pictures", "iou": "IoU of the map"}


def place_of(group):
    """Its data set and architecture in words."""
    place = (group.dataset, group.architecture)
    return PLACES.get(place, ", ".join(place))


def draw(make):
    """The SVG of the figure that `make` makes, or the PNG of one that shows pictures."""
    content = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = make()
        kind, unnamed = ("png", "Software") if any(axes.images for axes in figure.axes) else ("svg", "Date")
        figure.savefig(content, format=kind, metadata={unnamed: None}, dpi=110, facecolor="white", bbox_inches="tight")
    return content.getvalue()


def sample_pictures():
    """A row of training pictures with their masks in outline, and one of test pictures that the shortcut misleads."""
    rows = Scenes(ObjectMe.SUBJECTS, sizes={"train": 100, "test": 60})
    train, test = (list(rows.rows(split, [])) for split in ("train", "test"))
    labels = [subject.label for subject in ObjectMe.SUBJECTS]
    figure = Figure(figsize=(1.4 * len(labels), 3.2), layout="constrained")
    axes = figure.subplots(2, len(labels))
    for place, label in enumerate(labels):
        explained = (row for row in train if row["visual_explanation"] and row["group"] == "aligned")
        conflicting = (row for row in test if row["group"] == "conflicting")
        for axis, rows, words in zip(axes[:, place], (explained, conflicting), ("training", "test"), strict=True):
            row = next(row for row in rows if row["label"] == label)
            axis.imshow(_picture(row["image"]))
            axis.contour(_picture(row["visual_explanation"]), levels=[127], colors="white", linewidths=1.5)
            axis.set(xticks=[], yticks=[], title=f"{words}: {label}")
    return figure


def _picture(image):
    return np.asarray(Image.open(BytesIO(image["bytes"])))


def forest(groups):
    """Differences of accuracy and IoU from plain and from the best guidance by masks alone, a column a group."""
    methods = [name for name in IN_FOREST if any(name in group.runs for group in groups)]
    figure = Figure(figsize=(2.6 * len(groups) + 1.4, 4.4), layout="constrained")
    axes = figure.subplots(2, len(groups), sharey=True, squeeze=False)
    for row, (metric, scale, words) in enumerate(
        [("accuracy", 100, "points of accuracy"), ("iou", 1, "IoU of the map")]
    ):
        for axis, group in zip(axes[row], groups, strict=True):
            _forest_panel(axis, group, methods, metric, scale)
            axis.set_xlabel(f"difference, {words}")
            axis.set_title(place_of(group) if row == 0 else "")
    handles = [
        axes[0, 0].plot([], [], marker, color=colour, label=words)[0]
        for marker, colour, words in (
            ("o", BLUE, "from plain training"),
            ("D", ORANGE, "from the best of the guidances by masks alone"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _forest_panel(axis, group, methods, metric, scale):
    axis.axvline(0, color=GREY, linewidth=0.8)
    for height, method in enumerate(methods):
        if method not in group.runs:
            continue
        for mark, opponent in group.opponents(method, metric).items():
            test = group.difference(method, opponent, metric)
            if test is None:
                continue
            low, high = test.interval()
            colour, marker, shift = (BLUE, "o", 0.14) if mark == "*" else (ORANGE, "D", -0.14)
            axis.plot([scale * low, scale * high], [height + shift] * 2, color=colour, linewidth=1.5)
            axis.plot(scale * test.mean, height + shift, marker, color=colour, markersize=4.5)
    axis.set_yticks(range(len(methods)), [METHODS[name][0] for name in methods])
    axis.set_ylim(-0.6, len(methods) - 0.4)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def interventions(groups):
    """Conflicting pictures, background gap and IoU of each seed, and their means, a column a group."""
    metrics = {name: METRICS[name] for name in ("accuracy_conflicting", "iou")} | {"background_gap": "background gap"}
    figure = Figure(figsize=(2.3 * len(groups) + 1.4, 4.6), layout="constrained")
    axes = figure.subplots(len(metrics), len(groups), sharex="row", sharey=True, squeeze=False)
    for row, (metric, words) in zip(axes, metrics.items(), strict=True):
        for axis, group in zip(row, groups, strict=True):
            for height, (method, (_, colour)) in enumerate(reversed(INTERVENTIONS.items())):
                values = group.values.get(method, {}).get(metric, [])
                axis.plot(values, [height] * len(values), ".", color=colour, markersize=4)
                axis.plot(values and [mean(values)], values and [height], "|", color=colour, markersize=14)
            axis.set_xlabel(words)
            axis.set_title(place_of(group) if metric == "accuracy_conflicting" else "")
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.set_axisbelow(True)
        row[0].set_yticks(range(len(INTERVENTIONS)), [words for words, _ in reversed(INTERVENTIONS.values())])
        row[0].set_ylim(-0.6, len(INTERVENTIONS) - 0.4)
    return figure


def accuracy_against_iou(groups):
    """The methods' means over the seeds, a panel a group."""
    rows = -(-(len(groups) + 1) // 4)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, 4).ravel()
    shown = {}
    for axis, group in zip(axes, groups, strict=False):
        for method, (words, colour, marker) in METHODS.items():
            values = group.values.get(method)
            if values:
                at = (mean(values["iou"]), mean(values["accuracy"]))
                (shown[words],) = axis.plot(*at, marker, color=colour, markersize=6, linestyle="", label=words)
        axis.set(title=place_of(group), xlabel=METRICS["iou"], ylabel=METRICS["accuracy"])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    order = [words for words, _, _ in METHODS.values() if words in shown]
    axes[len(groups)].legend(handles=[shown[words] for words in order], loc="center", fontsize=8)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    return figure


def shares_of_masks(group):
    """Accuracy and IoU of the study masks against the share of the masks; plain training, which has none, is level."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, len(METRICS))
    shares = sorted({runs[0].settings["mask_share"] for method, runs in group.runs.items() if "mask_share" in method})
    for axis, (metric, words) in zip(axes, METRICS.items(), strict=True):
        axis.axhline(mean(group.values["plain"][metric]), color=GREY, linewidth=1, label="plain training")
        for name, (label, colour, line) in CURVES.items():
            methods = {share: f"{name} mask_share={share:g}" for share in shares}
            points = [
                (place, mean(group.values[methods[share]][metric]))
                for place, share in enumerate(shares)
                if methods[share] in group.values
            ]
            axis.plot(*zip(*points, strict=True), line, color=colour, marker="o", markersize=4, label=label)
        axis.set_xticks(range(len(shares)), [f"{100 * share:g} %" for share in shares])
        axis.set(xlabel="share of the masks", title=words)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    figure.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=4)
    return figure
