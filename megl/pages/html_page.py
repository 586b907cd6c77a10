"""What the self-contained HTML pages share: the document and its style, pictures as data URIs, histograms as SVG.

A page needs no network and no JavaScript, follows the reader's light or dark setting, and prints. Every function
escapes the text that it is given; `body` alone is HTML.
"""

import base64
import html
import io
import math

from PIL import Image


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #5c5c5c; --line: #d9d9d9; --strong: #2a6fb0;
  --pale: #bcd5eb; --good: #176f2c; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e4e4e4; --soft: #a5a5a5; --line: #3b3f45;
  --strong: #6aa9e4; --pale: #34536f; --good: #6fcf86; --bad: #ff8a80 } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --strong: #2a6fb0;
  --pale: #bcd5eb; --good: #176f2c; --bad: #b3261e } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; print-color-adjust: exact; -webkit-print-color-adjust: exact }
h1 { font-size: 1.5em } .figures { color: var(--soft) }
.items { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34em, 100%), 1fr)); gap: 1.2em;
  margin-top: .8em }
.item { border: 1px solid var(--line); border-radius: 8px; padding: .8em }
.pictures { display: flex; gap: .5em } figure { margin: 0; flex: 1 }
img { width: 100%; max-height: 24em; object-fit: contain; border-radius: 4px }
figcaption { font-size: .8em; color: var(--soft); text-align: center }
.right { color: var(--good) } .wrong { color: var(--bad) } .reference { color: var(--soft) } p { margin: .4em 0 0 }
@media print { body { margin: 0; max-width: none; font-size: 11px } h2, .figures { break-after: avoid }
  .items { grid-template-columns: 1fr 1fr } .item, figure, tr, li, svg { break-inside: avoid } }
"""


def document(title, body, style=""):
    """A whole page of the HTML `body`, with the shared style and a page's own."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def figure(image, caption, alt=None, side=192):
    """A picture, shrunk to `side` pixels in width and at most twice that in height, with its caption."""
    scale = min(side / image.width, 2 * side / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(alt or caption)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def nice_step(span, steps, units=(1, 2, 2.5, 5)):
    """The smallest of `units` times a power of ten that covers `span` in at most `steps` steps."""
    power = 10 ** math.floor(math.log10(span / steps))
    return next(unit * power for unit in (*units, 10) if unit * power * steps >= span * (1 - 1e-9))


def histogram(counts, step, label, unit, count_label, open_end=False):
    """
    Bars as inline SVG.

    Args:
        counts (`list[int]`): one for each bin `[i * step, (i + 1) * step)`; the largest is above 0.
        step (`float`): width of a bin.
        label, count_label (`str`): what the two axes show.
        unit (`str`): written after each value of the horizontal axis.
        open_end (`bool`): whether the last bin also holds all that is larger.
    """
    left, right, top, bottom, width, height = 64, 616, 14, 200, 640, 250
    bar, tallest = (right - left) / len(counts), max(counts)
    count_step = max(nice_step(tallest, 4, (1, 2, 5)), 1)
    every = math.ceil(len(counts) / 10)

    def y(count):
        return bottom - (bottom - top) * count / tallest

    parts = []
    for number in range(int(tallest / count_step) + 1):
        at, text = y(number * count_step), f"{number * count_step:,.0f}"
        parts.append(f'<path d="M{left} {at:.1f}H{right}"/><text x="{left - 8}" y="{at + 4:.1f}">{text}</text>')
    for index, count in enumerate(counts):
        last = open_end and index == len(counts) - 1
        span = f"{index * step:g}{unit} or more" if last else f"{index * step:g} to {(index + 1) * step:g}{unit}"
        x, size = left + index * bar, f'width="{max(bar - 2, 1):.1f}" height="{bottom - y(count):.1f}"'
        parts.append(f'<rect x="{x + 1:.1f}" y="{y(count):.1f}" {size}><title>{span}: {count:,}</title></rect>')
    for index in range(0, len(counts) + 1, every):
        parts.append(
            f'<text class="middle" x="{left + index * bar:.1f}" y="{bottom + 18}">{index * step:g}{unit}</text>'
        )
    axis = f"{label} (last bar: {(len(counts) - 1) * step:g}{unit} or more)" if open_end else label
    title = html.escape(f"Histogram of {label}: {sum(counts):,} in {len(counts)} bins of {step:g}{unit}")
    middle, centre = (left + right) / 2, (top + bottom) / 2
    return f"""<svg role="img" aria-label="{title}" viewBox="0 0 {width} {height}">{"".join(parts)}
<text class="middle" x="{middle:.0f}" y="{height - 8}">{html.escape(axis)}</text>
<text class="middle" transform="translate(14 {centre:.0f}) rotate(-90)">{html.escape(count_label)}</text></svg>"""
