"""Rows with explanations, whole and incomplete, and what a training changes."""

import numpy as np
from conftest import LABELS
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage


ALL_OFF = {"visual_loss_weight": 0.0, "text_loss_weight": 0.0, "distribution_loss_weight": 0.0}


def make_rows(count, masks="every third", rationales=None):
    """Rows with a mask where `masks` says, and two rationales each, or those of the set `rationales` alone."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[4 + index % 8 : 20, 8:24] = 255
        if isinstance(masks, set):
            has_mask = index in masks
        else:
            has_mask = {"every third": index % 3 == 0, "none": False, "all": True}[masks]
        rows.append(
            {
                "id": str(index),
                "image": PILImage.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)),
                "label": index % 3,
                "visual_explanation": PILImage.fromarray(mask) if has_mask else None,
                "textual_explanations": [f"first text of {LABELS[index % 3]}", "a second text, longer than the first"],
                "group": None,
            }
        )
        if rationales is not None and index not in rationales:
            rows[-1]["textual_explanations"] = None
    return rows


def make_dataset(count, names=LABELS, **kwargs):
    """The same as a data set; `kwargs` as for `make_rows`."""
    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "label": ClassLabel(names=list(names)),
            "visual_explanation": Image(),
            "textual_explanations": List(Value("string")),
            "group": Value("string"),
        }
    )
    rows = make_rows(count, **kwargs)
    return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]}, features=features)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(trainer):
    """All that training changes, by name."""
    statistic = {f"statistic.{name}": value.clone() for name, value in trainer.statistic.state_dict().items()}
    return {**weights(trainer.model), **weights(trainer.visual_loss_parameters), **statistic}
