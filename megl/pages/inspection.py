"""The page that `inspect_dataset.py` writes: the figures of a data set as charts, tables and pictures."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from megl.demo.drawing import overlay
from megl.pages.charts import histogram
from megl.pages.html_page import TEMPLATES, figure, render


_TEXT_LENGTH = 400  # characters of a rationale that an example shows


def page(summary, inspection):
    """The HTML of `Inspection.summary()`, with the maps and examples of the inspection itself."""
    splits = summary["splits"].values()
    totals = {kind: sum(split[kind] for split in splits) for kind in ("pictures", "maps", "rationales")}
    return render(
        TEMPLATES / "inspection.html",
        summary=summary,
        totals=totals,
        split_table=_split_table(summary["splits"]),
        area=_spread(summary["map_area"], "{:.1%}"),
        areas=_areas(inspection.areas) if summary["map_area"] else None,
        mean_maps=[_mean_map(label, *item, inspection) for label, item in enumerate(summary["classes"].items())],
        words=_spread(summary["rationale_words"], "{:.0f}"),
        lengths=_lengths(inspection.lengths) if totals["rationales"] else None,
        examples=inspection.examples(),
    )


def example(name, class_name, group, image, mask, rationales):
    """
    What the page shows of one item.

    Args:
        image (`PIL.Image.Image`): The picture, of any size and mode.
        mask (`np.ndarray` of shape `(height, width)` or `None`): The visual explanation, in [0, 1].
    """
    image = image.convert("RGB")
    image.thumbnail((384, 384))
    pictures = [figure(image, "picture", f"Picture {name}, {class_name}")]
    if mask is not None:
        pictures.append(figure(overlay(image, mask), "map over it", f"Picture {name} with its map"))
    return {
        "pictures": pictures,
        "class_name": class_name,
        "details": name if group is None else f"{name}, {group}",
        "rationales": [_shortened(text) for text in rationales],
    }


def _split_table(splits):
    heads = ["split", "pictures", "a class has", "with a map", "with a rationale", "rationales"]
    heads += ["words of a rationale", "groups"]
    rows = []
    for name, split in splits.items():
        groups = ", ".join(f"{group} {count:,}" for group, count in split["groups"].items())
        rows.append(
            [
                name,
                f"{split['pictures']:,}",
                f"{split['smallest_class']:,} to {split['largest_class']:,}",
                *(_share(split[kind], split["pictures"]) for kind in ("maps", "with_rationale")),
                f"{split['rationales']:,}",
                _spread(split["rationale_words"], "{:.0f}"),
                groups or "-",
            ]
        )
    return heads, rows


def _share(number, pictures):
    return f"{number:,} ({number / pictures:.0%})" if pictures else f"{number:,}"


def _areas(areas):
    values = 100 * np.concatenate([np.asarray(some) for some in areas])
    return _histogram(values, "area of a map, % of the picture", "%", "maps", limit=100)


def _mean_map(label, name, found, inspection):
    """The mean of a class's maps over white, or the name of a class without one."""
    mean = inspection.mean_map(label)
    if mean is None or not mean.max():
        return {"without": name}
    across, down = found["map_centre"]
    number = len(inspection.areas[label])
    caption = (
        f"{name}: {number:,} {'map' if number == 1 else 'maps'}, area {_spread(found['map_area'], '{:.0%}')}, "
        f"peak {mean.max():.2f}, centre {across:.0%} from the left, {down:.0%} from the top"
    )
    white = Image.new("RGB", (192, 192), "white")
    return figure(overlay(white, mean / mean.max(), strength=1), caption, f"Mean map of {name}")


def _lengths(lengths):
    values = np.concatenate([np.asarray(some) for some in lengths])
    return _histogram(values, "words of a rationale", "", "rationales", whole=True)


def _histogram(values, label, unit, count_label, limit=None, whole=False):
    """About 20 bins; the last also holds the 1 % or less that are much larger than the rest."""
    top = max(float(np.quantile(values, 0.99)), 1)
    steps = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    edges = MaxNLocator(20, steps=steps, integer=whole).tick_values(0, top)
    step = float(edges[1] - edges[0])
    last = int(top / step)
    if limit is not None:
        last = min(last, math.ceil(limit / step) - 1)
    counts = np.bincount(np.minimum(values / step, last).astype(int), minlength=last + 1).tolist()
    end = (last + 1) * step
    open_end = bool(values.max() >= end) and end != limit
    return histogram(counts, step, label, unit, count_label, open_end)


def _spread(quantiles, form):
    """A median with the range from 5 % to 95 %."""
    if quantiles is None:
        return "-"
    median, low, high = (form.format(quantiles[name]) for name in ("median", "p5", "p95"))
    return f"{median} ({low} to {high})"


def _shortened(text):
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH].rstrip()}…"
