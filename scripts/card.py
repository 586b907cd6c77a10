"""Fills a model's card from the template `model_card.md`."""

import json
import os
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData


TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"


def write_card(folder, model, metrics):
    """
    Write `README.md` into a local checkpoint folder, with the evaluation's figures in its metadata (`model-index`). A
    model that lies on the Hub is left as it is.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    name = folder.resolve().name
    config = model.config
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-classification",
        license="apache-2.0",
        tags=["megl", "explainability", "saliency", "image-classification", "image-to-text"],
        datasets=None,
        eval_results=_eval_results(metrics),
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
        dataset=Path(metrics["dataset"]).name,
        split=metrics["split"],
        results=_result_rows(metrics),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "peft")),
    )
    partial = folder / ".README.md.partial"
    partial.write_text(str(card))
    os.replace(partial, folder / "README.md")


def _figures(metrics):
    """`(metric type, name, value)` of what the card reports."""
    saliency, rationale = metrics["saliency"] or {}, metrics["rationale"] or {}
    figures = [
        ("accuracy", "Accuracy", metrics["accuracy"]),
        ("worst_group_accuracy", "Worst-group accuracy", metrics["worst_group_accuracy"]),
        ("f1", "Macro F1", metrics["macro_f1"]),
        ("iou", "Saliency IoU at 0.5", saliency.get("iou")),
        ("energy", "Energy pointing game", saliency.get("energy")),
        ("pointing_game", "Pointing game", saliency.get("pointing_game")),
        ("bleu", "Rationale BLEU-4", rationale.get("bleu_4")),
        ("rouge", "Rationale ROUGE-L", rationale.get("rouge_l")),
        ("clip_score", "CLIPScore", metrics["clip_score"]),
    ]
    return [figure for figure in figures if figure[2] is not None]


def _eval_results(metrics):
    dataset = Path(metrics["dataset"]).name
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Explained image classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=metrics["split"],
            metric_type=metric_type,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for metric_type, name, value in _figures(metrics)
    ]


def _result_rows(metrics):
    return "\n".join(f"| {name} | {value:.3f} |" for _, name, value in _figures(metrics))


def _training_rows(folder):
    """What `train_megl.py` recorded of the run, where it did."""
    path = folder / "training_settings.json"
    if not path.is_file():
        return "Not recorded: this checkpoint was not written by `train_megl.py`."
    settings = json.loads(path.read_text())
    return "\n".join(
        ["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in settings.items())]
    )
