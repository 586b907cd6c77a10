"""Items as pictures and words: image, human map, model's map, label with probability, rationales."""

import math
import textwrap
from functools import cache

import torch
from PIL import Image, ImageDraw, ImageFont

from megl.demo.drawing import overlay
from megl.pages.html_page import figure
from megl.tables import evenly_spaced, human_map, read_row


# Fonts that systems have, in any of which there is more than ASCII.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf")


@cache
def font(size):
    """An installed font with the letters of many languages, or else Pillow's own, which has few besides ASCII."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def wrapped(text, width, size):
    """The lines of a text in letters of `size` that fit into `width` pixels."""
    text = " ".join(text.split())  # without the marks that the layout of fonts refuses
    if not text:
        return []
    # By the mean width of its own letters, with room for lines of wider ones.
    letters = 0.9 * width * len(text) / max(font(size).getlength(text), 1)
    return textwrap.wrap(text, max(int(letters), 1))


def write_sheet(path, dataset, predictions):
    """The same as a PNG of six items, evenly spaced over the data set, for a README."""
    chosen = evenly_spaced(6, len(dataset))
    draw_sheet([(read_row(dataset, index), predictions[index]) for index in chosen]).save(path)


def draw_sheet(pairs, columns=2, side=160):
    """
    One picture of several items, row by row.

    Args:
        pairs (`list[tuple[dict, dict]]`): Rows of a data set and their predictions.
        columns (`int`): Items in a row.
        side (`int`): Of each picture in pixels.
    """
    width, height = 3 * (side + 8) + 24, side + 108
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pairs) / columns) * height), "white")
    for position, (row, prediction) in enumerate(pairs):
        corner = (position % columns * width + 16, position // columns * height + 12)
        _paste_item(sheet, corner, side, row, prediction)
    return sheet


def _paste_item(sheet, corner, side, row, prediction):
    left, top = corner
    pictures = [picture for picture, _ in row_pictures(row, prediction)]
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left + number * (side + 8), top))
    right = prediction["prediction"] == prediction["label"]
    colour = "#176f2c" if right else "#b3261e"
    draw = ImageDraw.Draw(sheet)
    verdict = " ".join(f"{prediction['prediction']} {prediction['score']:.0%}".split())
    draw.text((left, top + side + 6), verdict, fill=colour, font=font(17))
    text = "\n".join(wrapped(prediction["rationale"], 3 * side + 16, 15)[:3])
    draw.text((left, top + side + 30), text, fill="#222", font=font(15), spacing=4)


def row_pictures(row, prediction):
    """`(picture, caption)` of the image, the human map where there is one, and the model's map."""
    image, mask = row["image"], human_map(row)
    pictures = [(image.convert("RGB"), "image")]
    if mask is not None:
        pictures.append((overlay(image, mask), "human map"))
    return [*pictures, (overlay(image, prediction["saliency"]), "model's map")]


def shown_item(row, prediction, note=""):
    """
    What a page shows of an item, for the macro `item` of the templates.

    Args:
        row (`dict`): The item of the data set.
        prediction (`dict`): Its line of `predictions.jsonl`.
        note (`str`): Text about the item.
    """
    names = ("label", "prediction", "score", "rationale")
    pictures = [figure(picture, caption) for picture, caption in row_pictures(row, prediction)]
    references = row["textual_explanations"] or []
    return {"pictures": pictures, "references": references, "note": note, **{name: prediction[name] for name in names}}


def as_pictures(pixel_values, image_processor):
    """
    What a model sees `(B, 3, H, W)` as pictures: what the image processor does to colours, whatever it is, is undone.
    """
    ends = [Image.new("RGB", (1, 1), colour) for colour in ("black", "red", "lime", "blue")]
    black, *axes = image_processor(ends, return_tensors="pt")["pixel_values"].double().mean(dim=(2, 3))
    colours = (pixel_values.permute(0, 2, 3, 1).double() - black) @ torch.linalg.pinv(torch.stack(axes) - black)
    return [Image.fromarray(one) for one in (255 * colours.clamp(0, 1)).round().byte().numpy()]
