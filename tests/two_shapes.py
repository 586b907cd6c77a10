"""Pictures with two of three coloured squares: several labels, a mask and rationales for each."""

import numpy as np
from conftest import LABELS
from datasets import Dataset
from PIL import Image

from dataset_builders.build import multi_label_features


COLOURS = np.array([[230, 30, 30], [30, 230, 30], [30, 30, 230]])
PLACES = [(0, 0), (0, 16), (16, 0), (16, 16)]  # of squares of 16 x 16 in a picture of 32 x 32


def make_rows(count, masks="all", empty=()):
    """
    Rows with the labels 0 and 1, 1 and 2, or 2 and 0, in this order.

    Args:
        count (`int`): Their number.
        masks (`str`): `"all"`, or `"first"`: of the first label alone, and of every third row none.
        empty (`tuple`): Places of rows without a square, and so without a label.
    """
    random, rows = np.random.default_rng(0), []
    for index in range(count):
        labels = [] if index in empty else [index % 3, (index + 1) % 3]
        pixels, drawn = random.integers(90, 120, (32, 32, 3)).astype(np.uint8), []
        for label, place in zip(labels, random.permutation(4), strict=False):
            top, left = PLACES[place]
            mask = np.zeros((32, 32), dtype=np.uint8)
            mask[top : top + 16, left : left + 16] = 255
            pixels[mask > 0] = COLOURS[label]
            drawn.append(Image.fromarray(mask))
        if masks == "first":
            drawn = None if index % 3 == 2 else drawn[:1] + [None] * len(drawn[1:])
        rows.append(
            {
                "id": str(index),
                "image": Image.fromarray(pixels),
                "label": labels,
                "visual_explanation": drawn,
                "textual_explanations": [[f"one of {LABELS[label]}", "or another"] for label in labels],
                "group": None,
            }
        )
    return rows


def make_dataset(count, **kwargs):
    """The same as a data set; `kwargs` as for `make_rows`."""
    rows = make_rows(count, **kwargs)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return Dataset.from_dict(columns, features=multi_label_features(LABELS))
