"""
A temperature for a model's probabilities, fitted on a split that it was not trained on (Guo et al. 2017, "On
Calibration of Modern Neural Networks", section 4.2). It changes no label and no map.
"""

import json
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from dataset_builders.files import write_file
from megl.evaluation.predictions import in_all_processes, own_batches, read_batch
from megl.evaluation.scores import expected_calibration_error


# Where a temperature is looked for: at the first, most probabilities are 1, at the second all classes are alike.
LOWEST, HIGHEST = 0.05, 20.0


def calibrate(model, processor, dataset, batch_size):
    """
    Fit `score_temperature` of a model's configuration, which is set, though not saved.

    Args:
        model ([`MeglForImageClassification`]), processor ([`MeglProcessor`]): The model, in evaluation mode.
        dataset: The split, with the columns of the data set builders.
        batch_size (`int`): Images at a time; nothing depends on it.

    Returns:
        `dict`: `temperature`, and the expected calibration error `before` and `after` on that split.
    """
    logits = class_scores(model, processor, dataset, batch_size)
    labels = np.array(dataset["label"])
    temperature = fit_temperature(logits, labels)
    model.config.score_temperature = temperature
    before, after = (_error(logits / divisor, labels) for divisor in (1.0, temperature))
    return {"temperature": temperature, "before": before, "after": after}


def fit_temperature(logits, labels):
    """
    The temperature with the lowest negative log-likelihood.

    Args:
        logits (`np.ndarray` of shape `(images, classes)`), labels (`np.ndarray` of shape `(images,)`): Class scores,
            and the ids of the right classes.

    Raises:
        `ValueError`: where the likelihood has no maximum: all images are right, which asks for a temperature of 0, or
            the right classes score no higher than others, which asks for an infinite one.
    """
    rows = np.arange(len(labels))
    if (logits.argmax(axis=1) == labels).all():
        raise ValueError(
            f"`--calibrate`: the model names all {len(labels)} images of the split right, which tells nothing of how "
            "sure it may be: name a split with mistakes in it."
        )
    if (logits[rows, labels] - logits.mean(axis=1)).mean() <= 0:
        raise ValueError(
            "`--calibrate`: on the split the right classes score no higher than the others: the model knows nothing "
            "of it that could be calibrated."
        )

    def error(log_temperature):
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    found = minimize_scalar(error, bounds=np.log([LOWEST, HIGHEST]), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


@torch.no_grad()
def class_scores(model, processor, dataset, batch_size):
    """The class scores of a split, `(images, classes)`, in all processes alike."""

    def of_batch(places):
        _, inputs = read_batch(processor, dataset, places)
        pixel_values = inputs["pixel_values"].to(model.device, model.dtype)
        return places[0], model(pixel_values, output_saliency=False).logits.double().cpu().numpy()

    batches = in_all_processes(
        lambda: [of_batch(places) for places in own_batches(len(dataset), batch_size, "scores")]
    )
    return np.concatenate([scores for _, scores in sorted(batches, key=lambda batch: batch[0])])


def save_temperature(folder, temperature):
    """Enter the temperature into the `config.json` of a checkpoint's folder, and leave all else as it is."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["score_temperature"] = temperature
    write_file(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _error(logits, labels):
    probabilities = np.exp(log_softmax(logits, axis=1))
    return expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)["ece"]
