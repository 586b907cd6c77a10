"""Fills a model's card from the template `model_card.md`, and the evaluation results beside it."""

import json
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .output_folder import write_file
from .scores import at


TEMPLATE = Path(__file__).resolve().parents[2] / "model_card.md"

# What the card reports, of what there is: path in `metrics.json` to the metric's type and its name in words.
FIGURES = {
    ("accuracy",): ("accuracy", "Accuracy"),
    ("worst_group_accuracy",): ("worst_group_accuracy", "Worst-group accuracy"),
    ("macro_f1",): ("f1", "Macro F1"),
    ("calibration", "ece"): ("expected_calibration_error", "Expected calibration error"),
    ("saliency", "iou"): ("iou", "Saliency IoU at 0.5"),
    ("saliency", "energy"): ("energy", "Energy pointing game"),
    ("saliency", "pointing_game"): ("pointing_game", "Pointing game"),
    ("rationale", "bleu_4"): ("bleu", "Rationale BLEU-4"),
    ("rationale", "meteor"): ("meteor", "Rationale METEOR"),
    ("rationale", "rouge_l"): ("rouge", "Rationale ROUGE-L"),
    ("rationale", "cider"): ("cider", "Rationale CIDEr"),
    ("clip_score",): ("clip_score", "CLIPScore"),
}


def write_card(folder, model, metrics, dataset_id=None):
    """
    Write `README.md` into a local checkpoint folder, with the evaluation's figures in its metadata (`model-index`),
    and `.eval_results/<data set>.yaml`, where the Hub looks for them. A model that lies on the Hub is left as it is.

    Args:
        folder (`str`): The checkpoint.
        model: The model.
        metrics (`dict`): What is in `metrics.json`.
        dataset_id (`str`, *optional*): The data set's id on the Hub, where `metrics` name a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    dataset_id = dataset_id or _dataset_id(metrics["dataset"])
    name = folder.resolve().name
    config = model.config
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["megl", "explainability", "saliency", "image-classification", "image-to-text"],
        datasets=None,
        eval_results=_eval_results(metrics, dataset_id),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        model_name=name,
        vision_model=config.vision_config.model_type,
        text_model=config.text_config.model_type,
        parameters=f"{model.num_parameters() / 1e6:.1f} million",
        labels=", ".join(config.id2label.values()),
        saliency_method=config.saliency_method,
        rationale_gradient=config.rationale_gradient,
        training=_training_rows(folder),
        dataset=dataset_id,
        split=metrics["split"],
        results=_result_rows(metrics),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "peft")),
    )
    write_file(folder / "README.md", str(card))
    results = folder / ".eval_results" / f"{dataset_id.replace('/', '--')}.yaml"
    write_file(results, yaml_dump(eval_result_entries_to_yaml(_eval_result_entries(metrics, dataset_id))))


def _dataset_id(dataset):
    """An id on the Hub as it is, a folder by its name with the characters that an id can have."""
    return re.sub(r"[^\w.-]+", "-", Path(dataset).resolve().name) if Path(dataset).is_dir() else dataset


def _figures(metrics):
    """`(path, metric type, name, value)` of what the card reports."""
    return [(path, *words, at(metrics, path)) for path, words in FIGURES.items() if at(metrics, path) is not None]


def _eval_results(metrics, dataset_id):
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Explained image classification",
            dataset_type=dataset_id,
            dataset_name=dataset_id.split("/")[-1],
            dataset_split=metrics["split"],
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for _, metric_type, name, value in _figures(metrics)
    ]


def _eval_result_entries(metrics, dataset_id):
    """The same in the Hub's newer form: a benchmark's task, here the metric, and its value."""
    return [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id=metric_type,
            value=round(value, 4),
            notes=f"{name}, {metrics['split']} split{_interval(metrics, path, ', 95% interval {:.3f} to {:.3f}')}",
        )
        for path, metric_type, name, value in _figures(metrics)
    ]


def _result_rows(metrics):
    return "\n".join(
        f"| {name} | {value:.3f} | {_interval(metrics, path, '{:.3f} to {:.3f}')} |"
        for path, _, name, value in _figures(metrics)
    )


def _interval(metrics, path, form):
    ends = at(metrics["intervals"], path)
    return "" if ends is None else form.format(*ends)


def _training_rows(folder):
    """What `train_megl.py` recorded of the run, where it did."""
    path = folder / "training_settings.json"
    if not path.is_file():
        return "Not recorded: this checkpoint was not written by `train_megl.py`."
    settings = json.loads(path.read_text())
    return "\n".join(
        ["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in settings.items())]
    )
