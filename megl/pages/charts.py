"""Charts by matplotlib as inline SVG for the self-contained HTML pages: bars, histograms, points and lines.

Their letters and colours are those of the page, light or dark, and their marks have tooltips. The same figures give
the same bytes. Every text is shown as it stands: nothing in it is markup or a formula.
"""

import io
import math
import re
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dataset_builders.items import printable


# matplotlib draws in colours that no chart has, each of which then becomes one of the page's variables.
INK, SOFT, LINE, STRONG, GOOD, BAD = _COLOURS = [f"#00000{number}" for number in range(1, 7)]
_VARIABLES = dict(zip(_COLOURS, ("ink", "soft", "line", "strong", "good", "bad"), strict=True))
_STYLE = {
    "figure.dpi": 72,  # so that a pixel, a point and a unit of the SVG are one
    "font.size": 12,
    "text.color": SOFT,
    "text.parse_math": False,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "grid.color": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 7,
    "lines.solid_capstyle": "butt",
    "svg.fonttype": "none",
}
_LOCK = threading.Lock()  # the style is the whole process's while a chart is drawn
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_WIDTH = 560
_BAR_HEIGHT = 24
_NAME_LENGTH = 22
_LINE_HEIGHT, _LETTER_WIDTH = 13, 6.5


@dataclass
class _Chart:
    axes: Axes
    tips: dict
    svg: Markup = None

    def tip(self, artist, titles):
        """The marks of an artist, in their order, show a title each where the pointer rests on them."""
        gid = f"tip{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid] = titles


@contextmanager
def _chart(title, height, margins):
    """
    A chart to draw on within a `with` block, after which it has its `svg`.

    Args:
        title (`str`): What it shows, for those who do not see it.
        height (`float`): Of the whole, where the width is 560.
        margins (`tuple` of `float`): Left, right, top and bottom of the axes.
    """
    left, right, top, bottom = margins
    # The title makes the ids in a chart its own: a page has several charts.
    style = {**_STYLE, "svg.hashsalt": title}
    with _LOCK, matplotlib.style.context(["default", style]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has its own letters
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        figure.patch.set_visible(False)
        box = (left / _WIDTH, bottom / height, (_WIDTH - left - right) / _WIDTH, (height - top - bottom) / height)
        chart = _Chart(figure.add_axes(box), {})
        chart.axes.patch.set_visible(False)
        yield chart
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    chart.svg = _inline(text.getvalue(), title, chart.tips)


def _inline(text, title, tips):
    """What matplotlib wrote, as a part of a page: no names of its own, and the page's colours and letters."""
    root = ElementTree.fromstring(text)
    for definitions in root.findall(f"{_SVG}defs"):  # a style for the whole page, and areas to clip to
        root.remove(definitions)
    for group in root.iter(f"{_SVG}g"):
        titles = tips.get(group.attrib.pop("id", None))
        if titles is not None:
            marks = [mark for mark in group.iter() if mark.tag == f"{_SVG}use"] or group.findall(f"{_SVG}path")
            for mark, words in zip(marks, titles, strict=True):
                ElementTree.SubElement(mark, f"{_SVG}title").text = printable(words)
        styles = {mark.get("style") for mark in group}
        if len(styles) == 1 and None not in styles and len(group) > 1:  # thousands of points of one look
            group.set("style", styles.pop())
            for mark in group:
                del mark.attrib["style"]
    for element in root.iter():
        element.tag, element.tail = element.tag.removeprefix(_SVG), None
        if element.tag not in ("text", "title"):
            element.text = None
        element.attrib = dict(_inline_attributes(element.attrib))
    root.attrib = {"role": "img", "aria-label": printable(title), "viewBox": root.get("viewBox")}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _inline_attributes(attributes):
    for name, value in attributes.items():
        if name == "style":
            pairs = (pair.split(": ") for pair in value.split("; "))
            kept = [(key, given) for key, given in pairs if not key.startswith("font")]
            yield name, "; ".join(f"{key}: {_colour(given)}" for key, given in kept)
        elif name in ("d", "x", "y", "transform"):
            if not value.startswith("rotate(-0 "):
                value = re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value)
                yield name, " ".join(value.split())
        elif name == _HREF:
            yield "href", value
        elif name != "clip-path":
            yield name, value


def _colour(value):
    return f"var(--{_VARIABLES[value]})" if value in _VARIABLES else value


def _short(name):
    """What is too long loses its middle: names that begin alike are told apart by their ends."""
    half = _NAME_LENGTH // 2
    return printable(name if len(name) <= _NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}")


def bars(title, rows):
    """
    Horizontal bars.

    Args:
        title (`str`): What they show, for those who do not see them.
        rows (`list` of `(str, float or None, list[float] or None, str)`): Name, share in [0, 1], ends of its interval,
            and a note that is written at the end.
    """
    right = 120 if any(note for *_, note in rows) else 20
    with _chart(title, _BAR_HEIGHT * len(rows) + 32, (170, right, 6, 26)) as chart:
        axes = chart.axes
        for place, (name, value, ends, note) in enumerate(rows):
            axes.annotate(printable(note), (1, place), (8, 0), textcoords="offset points", va="center_baseline")
            if value is None:
                continue
            (bar,) = axes.barh(place, value, height=0.75, color=STRONG)
            interval = "" if ends is None else " ({:.3f} to {:.3f})".format(*ends)
            chart.tip(bar, [f"{name}: {value:.3f}{interval}"])
            if ends is not None:
                # An interval of a share may reach beyond 0 or 1, where the names are: it has no mark at that end.
                axes.plot(np.clip(ends, 0, 1), [place, place], color=INK, linewidth=1)
                within = [end for end in ends if 0 <= end <= 1]
                axes.plot(within, [place] * len(within), "|", color=INK, markersize=8)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels=[_short(name) for name, *_ in rows])
        axes.grid(visible=False, axis="y")
    return chart.svg


def histogram(counts, step, label, unit, count_label, open_end=False):
    """
    Args:
        counts (`list[int]`): one for each bin `[i * step, (i + 1) * step)`; the largest is above 0.
        step (`float`): width of a bin.
        label, count_label (`str`): what the two axes show.
        unit (`str`): written after each value of the horizontal axis.
        open_end (`bool`): whether the last bin also holds all that is larger.
    """
    title = f"Histogram of {label}: {sum(counts):,} in {len(counts)} bins of {step:g}{unit}"
    last = len(counts) - 1
    with _chart(title, 220, (60, 16, 12, 42)) as chart:
        axes = chart.axes
        drawn = axes.bar(range(len(counts)), counts, width=0.92, align="edge", color=STRONG)
        for place, (bar, count) in enumerate(zip(drawn, counts, strict=True)):
            span = f"{place * step:g} to {(place + 1) * step:g}{unit}"
            if open_end and place == last:
                span = f"{place * step:g}{unit} or more"
            chart.tip(bar, [f"{span}: {count:,}"])
        edges = range(0, len(counts) + 1, math.ceil(len(counts) / 10))
        axes.set_xticks(edges, labels=[f"{edge * step:g}{unit}" for edge in edges])
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlim=(0, len(counts)), ylim=(0, max(counts)), ylabel=count_label)
        axes.set_xlabel(f"{label} (last bar: {last * step:g}{unit} or more)" if open_end else label)
        axes.grid(visible=False, axis="x")
    return chart.svg


@dataclass
class Points:
    """
    Points of one look.

    Args:
        x, y (`list[float]`): Where they lie.
        tips (`list[str]`): A tooltip for each; without, the points are not marked.
        names (`list[str]`): Written beside them; `""` for none.
        sizes (`list[float]` or `float`): Their radii.
        colour (`str`): One of the colours above.
        line (`bool`): Whether a line goes through them.
        ring, faint (`bool`): Whether they are hollow, or let others shine through.
    """

    x: list
    y: list
    tips: list = ()
    names: list = ()
    sizes: list | float = 4
    colour: str = STRONG
    line: bool = False
    ring: bool = False
    faint: bool = False


def chart_of_points(title, x_label, y_label, series, x_ends=(0, 1), y_ends=(0, 1), height=376):
    """A chart of several [`Points`] between the ends of its axes."""
    right = 12 + _LETTER_WIDTH * _NAME_LENGTH if any(any(points.names) for points in series) else 20
    with _chart(title, height, (56, right, 12, 44)) as chart:
        axes = chart.axes
        axes.set(xlim=x_ends, ylim=y_ends, xlabel=x_label, ylabel=y_label)
        for points in series:
            if points.line:
                axes.plot(points.x, points.y, color=points.colour, linewidth=2, clip_on=False)
            if points.tips:
                look = {"facecolors": "none", "edgecolors": points.colour, "linewidths": 2}
                if not points.ring:
                    look = {"color": points.colour, "linewidths": 0, "alpha": 0.45 if points.faint else None}
                squares = np.square(2 * np.asarray(points.sizes))  # of the diameters, which is what matplotlib takes
                chart.tip(axes.scatter(points.x, points.y, squares, clip_on=False, zorder=3, **look), points.tips)
        _write_names(axes, series)
    return chart.svg


def _write_names(axes, series):
    """
    Names at the right of their points, moved up or down where they would lie over others; a line leads to those.

    matplotlib has nothing that keeps texts apart.
    """
    marked = [np.column_stack([points.x, points.y]) for points in series if points.tips and points.names]
    taken = [(across - 6, across + 6, up) for places in marked for across, up in axes.transData.transform(places)]
    named = [place for points in series for place in zip(points.x, points.y, points.names, strict=False)]
    bottom, top = axes.bbox.y0, axes.bbox.y1
    moves = sorted(range(-math.ceil(top - bottom), math.ceil(top - bottom)), key=abs)
    for x, y, name in sorted(named, key=lambda point: -point[1]):
        if not name:
            continue
        name = _short(name)
        across, up = axes.transData.transform((x, y))
        start, end = across + 8, across + 8 + _LETTER_WIDTH * len(name)
        others = [other for left, right, other in taken if start < right and left < end]
        free = (
            move
            for move in moves
            if bottom <= up + move <= top and all(abs(up + move - other) >= _LINE_HEIGHT for other in others)
        )
        move = next(free, 0)
        taken.append((start, end, up + move))
        axes.annotate(name, (x, y), (8, move), textcoords="offset points", va="center_baseline")
        if abs(move) > 6:
            line = {"arrowstyle": "-", "color": LINE, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), (8, move), textcoords="offset points", arrowprops=line)


def frame(values):
    """Ends of an axis of shares that shows what differs: tenths around the values."""
    return math.floor(10 * min(values)) / 10, min(1.0, math.floor(10 * max(values) + 1) / 10)
