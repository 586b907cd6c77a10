"""Charts of shares in [0, 1] as inline SVG, and tables, for the self-contained HTML pages.

Every function escapes the text that it is given; `marks` and `cells` alone are SVG and HTML.
"""

import math
from html import escape


STYLE = """
h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid var(--line) }
h3 { font-size: 1em; margin: 1em 0 0 }
.scroll { overflow-x: auto; margin: .8em 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25em .9em .25em 0; text-align: left; font-weight: normal; white-space: pre }
thead th { color: var(--soft); border-bottom: 1px solid var(--line) } td, thead th + th { text-align: right }
.matrix td { padding: .35em .7em; text-align: center; border: 1px solid var(--line) } .matrix thead th { border: 0 }
.figures + .items { margin-top: .8em }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30em, 100%), 1fr)); gap: 0 1.5em }
svg { display: block; width: 100%; max-width: 40em; margin: .8em 0; font-size: 12px; fill: var(--soft) }
svg path { stroke: var(--line); fill: none } svg text { text-anchor: end } svg .bar { fill: var(--strong) }
svg text.middle { text-anchor: middle } svg text.start { text-anchor: start } svg path.whisker { stroke: var(--ink) }
svg path.curve { stroke: var(--strong); stroke-width: 2 } svg circle { fill: var(--strong) }
svg circle.right { fill: var(--good) } svg circle.wrong { fill: var(--bad) } svg circle.faint { fill-opacity: .45 }
svg circle.ring { fill: none; stroke: var(--bad); stroke-width: 2 }
"""

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 616, 56, 464, 12, 332  # with room for a name at the right
_BAR_LEFT, _BAR_RIGHT, _BAR_HEIGHT = 160, 440, 24
_NAME_LENGTH = 22


def bars(title, rows):
    """
    Horizontal bars.

    Args:
        title (`str`): What they show, for those who do not see them.
        rows (`list` of `(str, float or None, list[float] or None, str)`): Name, share in [0, 1], ends of its interval,
            and a note that is written at the end.
    """
    parts = []
    bottom = 8 + _BAR_HEIGHT * len(rows)
    for step in range(5):
        x = _BAR_LEFT + (_BAR_RIGHT - _BAR_LEFT) * step / 4
        parts.append(
            f'<path d="M{x:.0f} 4V{bottom}"/><text class="middle" x="{x:.0f}" y="{bottom + 16}">{step / 4:g}</text>'
        )
    for number, (name, value, ends, note) in enumerate(rows):
        parts.append(_bar(8 + _BAR_HEIGHT * number, name, value, ends, note))
    return f"""<svg role="img" aria-label="{escape(title)}" viewBox="0 0 560 {bottom + 22}">{"".join(parts)}</svg>"""


def _bar(top, name, value, ends, note):
    middle, span = top + _BAR_HEIGHT / 2 - 2, _BAR_RIGHT - _BAR_LEFT
    label = f'<text x="{_BAR_LEFT - 8}" y="{middle + 4}">{escape(_short(name))}</text>'
    end = f'<text class="start" x="{_BAR_RIGHT + 8}" y="{middle + 4}">{escape(note)}</text>'
    if value is None:
        return label + end
    bar = f'<rect class="bar" x="{_BAR_LEFT}" y="{top}" width="{span * value:.1f}" height="{_BAR_HEIGHT - 6}">'
    bar += f"<title>{escape(name)}: {value:.3f}</title></rect>"
    if ends is not None:
        low, high = (_BAR_LEFT + span * end for end in ends)
        ticks = f"M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
        bar += f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}{ticks}"/>'
    return label + bar + end


def unit_chart(title, x_label, y_label, marks, x_ends=(0, 1), y_ends=(0, 1)):
    """
    A square from (0, 0) to (1, 1) with `marks` of `dot`, `named_dots` and `curve` in it. Where its sides stand for
    other `x_ends` and `y_ends`, as [`frame`] gives them, the marks are already at their places between these.
    """
    parts = []
    for step in range(6):
        x, y = place(step / 5, step / 5)
        x_text, y_text = (f"{low + (high - low) * step / 5:.3g}" for low, high in (x_ends, y_ends))
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}">{y_text}</text>')
        parts.append(f'<text class="middle" x="{x:.1f}" y="{_BOTTOM + 16}">{x_text}</text>')
    across, down = (_LEFT + _RIGHT) / 2, (_TOP + _BOTTOM) / 2
    return f"""<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} 376">{"".join(parts)}{"".join(marks)}
<text class="middle" x="{across:.0f}" y="{_BOTTOM + 36}">{escape(x_label)}</text>
<text class="middle" transform="translate(14 {down:.0f}) rotate(-90)">{escape(y_label)}</text></svg>"""


def frame(values):
    """Ends of an axis of shares that shows what differs: tenths around the values."""
    return math.floor(10 * min(values)) / 10, min(1.0, math.floor(10 * max(values) + 1) / 10)


def within(value, ends):
    """Where a value lies between the ends of an axis, 0 at the lower one and 1 at the upper."""
    return (value - ends[0]) / (ends[1] - ends[0])


def place(x, y):
    """Where a point of the unit square lies in the chart."""
    return _LEFT + (_RIGHT - _LEFT) * x, _BOTTOM - (_BOTTOM - _TOP) * y


def dot(x, y, title, kind="", size=4):
    """A mark with its title, of the CSS classes `kind`."""
    x, y = place(x, y)
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"><title>{escape(title)}</title></circle>'


def named_dots(points):
    """
    Marks with their names at the right, moved down where they would lie over others; a line leads to a moved name.

    Args:
        points (`list` of `(float, float, str, str, str)`): Place, name, title, and CSS classes.
    """
    marks = []
    taken = [(across - 6, across + 6, down) for across, down in (place(x, y) for x, y, *_ in points)]
    for x, y, name, title, kind in sorted(points, key=lambda point: -point[1]):
        name = _short(name)
        across, at = place(x, y)
        start, down, width = across + 8, at, 6.5 * len(name)
        while any(start < end and begin < start + width and abs(down - height) < 12 for begin, end, height in taken):
            down += 1
        taken.append((start, start + width, down))
        if down - at > 6:
            marks.append(f'<path d="M{across:.1f} {at:.1f}L{start:.1f} {down:.1f}"/>')
        marks.append(dot(x, y, title, kind, 5))
        marks.append(f'<text class="start" x="{start:.1f}" y="{down + 4:.1f}">{escape(name)}</text>')
    return marks


def _short(name):
    """What is too long loses its middle: names that begin alike are told apart by their ends."""
    half = _NAME_LENGTH // 2
    return name if len(name) <= _NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def curve(points, kind=""):
    """A line through points of the unit square."""
    return f'<path class="{kind}" d="M{"L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in points)}"/>'


def table(heads, rows):
    """A table of text, whose first column names the row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def matrix(names, counts):
    """A confusion matrix: rows are the true classes, each shaded by its shares."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        cells = "".join(_cell(count, sum(row)) for count in row)
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return f"""<div class="scroll"><table class="matrix">
<thead><tr><th scope="col">is \\ taken for</th>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""


def _cell(count, total):
    share = 100 * count / total if total else 0
    colour = f"color-mix(in srgb, var(--pale) {share:.0f}%, var(--paper))"
    return f'<td style="background: {colour}" title="{share:.0f}%">{count:,}</td>'
