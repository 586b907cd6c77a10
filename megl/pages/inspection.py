"""The page that `inspect_dataset.py` writes: sections of HTML from the figures of a data set."""

import math
from html import escape

import numpy as np
from PIL import Image

from megl.pages.html_page import document, figure, histogram, nice_step
from megl.pages.pictures import overlay


_STYLE = """
h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto; margin: .8em 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25em .9em .25em 0; text-align: left; vertical-align: top; font-weight: normal }
thead th { color: var(--soft); border-bottom: 1px solid var(--line) } td.number, th.number { text-align: right }
th, td { white-space: nowrap } td:last-child { white-space: normal; min-width: 11em }
.classes { width: 100%; table-layout: fixed } .classes th, .classes td { white-space: normal; min-width: 0 }
.classes th:first-child { width: 24% } .count { display: block; margin-top: .2em; font-size: .8em; color: var(--soft) }
.bar, .key { background: var(--pale); height: .8em; min-width: 1px }
.bar div { height: 100% } .bar div, .key.strong { background: var(--strong) }
.key { display: inline-block; width: .8em; margin: 0 .3em 0 .6em } .legend { white-space: nowrap }
ul.warnings { padding-left: 1.2em } .warnings li { margin: .5em 0 } .names { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5em, 1fr)); gap: 1em; margin-top: 1em }
.tiles img { border: 1px solid var(--line) }
svg { display: block; width: 100%; max-width: 44em; margin: .8em 0; font-size: 12px; fill: var(--soft) }
svg path { stroke: var(--line) } svg rect { fill: var(--strong) } svg text { text-anchor: end }
svg text.middle { text-anchor: middle } .item .figures { font-size: .85em }
"""
_TEXT_LENGTH = 400  # characters of a rationale that an example shows


def page(summary, inspection):
    """The HTML of `Inspection.summary()`, with the maps and examples of the inspection itself."""
    return document(f"Data set {summary['dataset']}", "\n".join(_sections(summary, inspection)), _STYLE)


def example(name, class_name, group, image, mask, rationales):
    """
    One item of the sheet of examples.

    Args:
        image (`PIL.Image.Image`): The picture, of any size and mode.
        mask (`np.ndarray` of shape `(height, width)` or `None`): The visual explanation, in [0, 1].
    """
    image = image.convert("RGB")
    image.thumbnail((384, 384))
    pictures = [figure(image, "picture", f"Picture {name}, {class_name}")]
    if mask is not None:
        pictures.append(figure(overlay(image, mask), "map over it", f"Picture {name} with its map"))
    texts = "".join(f'<p class="reference">{escape(_shortened(text))}</p>' for text in rationales)
    details = escape(name if group is None else f"{name}, {group}")
    return f"""<div class="item"><div class="pictures">{"".join(pictures)}</div>
<p><b>{escape(class_name)}</b> <span class="figures">{details}</span></p>{texts}</div>"""


def _sections(summary, inspection):
    splits = summary["splits"].values()
    pictures, maps = sum(split["pictures"] for split in splits), sum(split["maps"] for split in splits)
    rationales = sum(split["rationales"] for split in splits)
    share = f" ({maps / pictures:.0%})" if pictures else ""
    yield f"""<h1>Data set {escape(summary["dataset"])}</h1>
<p class="figures">{pictures:,} pictures of {len(summary["classes"]):,} classes, {maps:,} with a map{share},
{rationales:,} rationales.</p>"""
    yield from _warnings(summary["warnings"])
    yield from _splits(summary["splits"])
    yield from _classes(summary)
    yield from _maps(summary, inspection)
    yield from _rationales(summary, inspection, rationales)
    yield from _examples(inspection)


def _warnings(warnings):
    yield "<h2>Warnings</h2>"
    if not warnings:
        yield '<p class="right">None: nothing is duplicate, empty or unreadable.'
        yield "Each class has pictures, maps and rationales.</p>"
        return
    yield '<ul class="warnings">'
    for warned in warnings.values():
        rest = warned["count"] - len(warned["items"])
        names = [*map(escape, warned["items"]), *([f"and {rest:,} more"] if rest else [])]
        yield f"""<li><b class="wrong">{warned["count"]:,}</b> {escape(warned["meaning"])}.
<div class="names">{"; ".join(names)}</div></li>"""
    yield "</ul>"


def _splits(splits):
    yield "<h2>Splits</h2>"
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
    yield _table(heads, rows, numbers=range(1, 6))
    yield '<p class="figures">In brackets after a median: the range from 5% to 95% of the values.</p>'


def _share(number, pictures):
    return f"{number:,} ({number / pictures:.0%})" if pictures else f"{number:,}"


def _classes(summary):
    yield "<h2>Balance of the classes and coverage by maps and rationales</h2>"
    yield (
        '<p class="figures">Pictures of each class; the widest bar of a column is its largest class.'
        ' <span class="legend"><span class="key strong"></span>with a map</span>'
        ' <span class="legend"><span class="key"></span>without</span></p>'
    )
    cells, kinds = [], ("pictures", "maps", "with_rationale")
    for name, found in summary["classes"].items():
        bars = "".join(
            _bar(*(found[kind][split] for kind in kinds), summary["splits"][split]["largest_class"])
            for split in summary["splits"]
        )
        cells.append(f'<tr><th scope="row">{escape(name)}</th>{bars}</tr>')
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ("class", *summary["splits"]))
    yield f"""<div class="scroll"><table class="classes"><thead><tr>{heads}</tr></thead>
<tbody>{"".join(cells)}</tbody></table></div>"""


def _bar(pictures, maps, told, largest):
    if not pictures:
        return '<td><span class="count wrong">no pictures</span></td>'
    width, covered = 100 * pictures / largest, 100 * maps / pictures
    return f"""<td><div class="bar" style="width: {width:.1f}%"><div style="width: {covered:.1f}%"></div></div>
<span class="count">{maps:,} of {pictures:,} with a map ({covered:.0f}%)</span>
<span class="count">{told:,} with a rationale ({told / pictures:.0%})</span></td>"""


def _maps(summary, inspection):
    yield "<h2>Sizes and positions of the maps</h2>"
    if summary["map_area"] is None:
        yield '<p class="figures">There are no maps.</p>'
        return
    yield f"""<p class="figures">Area of a map: its mean value, for a map of 0 and 1 the share of the picture that it
covers. Median {_spread(summary["map_area"], "{:.1%}")}.</p>"""
    areas = 100 * np.concatenate([np.asarray(areas) for areas in inspection.areas])
    yield _histogram(areas, "area of a map, % of the picture", "%", "maps", limit=100)
    yield '<p class="figures">Mean map of each class, over all splits, from white (0) to red (its peak).</p>'
    tiles = (_tile(label, *item, inspection) for label, item in enumerate(summary["classes"].items()))
    yield f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(label, name, found, inspection):
    mean = inspection.mean_map(label)
    if mean is None or not mean.max():
        return f"<figure><figcaption><b>{escape(name)}</b>: no map</figcaption></figure>"
    across, down = found["map_centre"]
    number = len(inspection.areas[label])
    caption = (
        f"{name}: {number:,} {'map' if number == 1 else 'maps'}, area {_spread(found['map_area'], '{:.0%}')}, "
        f"peak {mean.max():.2f}, centre {across:.0%} from the left, {down:.0%} from the top"
    )
    white = Image.new("RGB", (192, 192), "white")
    return figure(overlay(white, mean / mean.max(), strength=1), caption, f"Mean map of {name}")


def _rationales(summary, inspection, rationales):
    yield "<h2>Lengths of the rationales</h2>"
    if not rationales:
        yield '<p class="figures">There are no rationales.</p>'
        return
    pictures = sum(split["pictures"] for split in summary["splits"].values())
    yield f"""<p class="figures">Median {_spread(summary["rationale_words"], "{:.0f}")} words, at most
{summary["rationale_words"]["max"]:,.0f}. {rationales / pictures:.1f} rationales a picture.
{summary["rationales_naming_own_class"] / rationales:.0%} of them name their picture's own class.</p>"""
    lengths = np.concatenate([np.asarray(lengths) for lengths in inspection.lengths])
    yield _histogram(lengths, "words of a rationale", "", "rationales", whole=True)


def _examples(inspection):
    items = inspection.examples()
    if not items:
        return
    yield f"""<h2>Examples</h2>
<p class="figures">{len(items)} pictures, spread over the classes, drawn at random with preference for those with a
map.</p>
<div class="items">"""
    yield from items
    yield "</div>"


def _histogram(values, label, unit, count_label, limit=None, whole=False):
    """About 20 bins; the last also holds the 1 % or less that are much larger than the rest."""
    top = max(float(np.quantile(values, 0.99)), 1)
    step = max(nice_step(top, 20, (1, 2, 5) if whole else (1, 2, 2.5, 5)), 1 if whole else 0)
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


def _table(heads, rows, numbers):
    """A table of text; the columns in `numbers` are aligned to the right."""
    kinds = [' class="number"' if column in numbers else "" for column in range(len(heads))]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, heads, strict=True))
    body = ""
    for name, *texts in rows:
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds[1:], texts, strict=True))
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shortened(text):
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH].rstrip()}…"
