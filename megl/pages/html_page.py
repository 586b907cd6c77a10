"""What the self-contained HTML pages share: their templates, and pictures as data URIs.

A page needs no network and no JavaScript, follows the reader's light or dark setting, and prints. The templates escape
every text that they are given. Tables, the confusion matrix and the bars of coverage are HTML and not drawn: their
text wraps, and can be searched and copied.
"""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


TEMPLATES = Path(__file__).with_name("templates")


def render(template, **values):
    """The HTML of a template, the path of a file, which may extend and import those of `TEMPLATES`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number="{:,}".format, percent="{:.0%}".format)
    return environment.get_template(template.name).render(values)


def figure(image, caption, alt=None, side=192):
    """What a page shows of a picture: it is shrunk to `side` pixels in width and at most twice that in height."""
    scale = min(side / image.width, 2 * side / image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"source": f"data:image/jpeg;base64,{data}", "caption": caption, "alt": alt or caption}
