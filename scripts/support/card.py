"""
Model cards: filled from the template `model_card.md`, or brought up to date with the figures of one more evaluation.

The figures of an evaluation stand between two comments that name its data set and split, so that the next evaluation
on the same replaces them and leaves all else as it is.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .output_folder import write_file
from .scores import at, count_of


# Ends the figures of an evaluation in a card.
EVALUATED = "<!-- end of evaluation -->"
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
    ("rationale", "place_accuracy"): ("place_accuracy", "Rationale names the place"),
    ("rationale", "shuffled_place_accuracy"): ("shuffled_place_accuracy", "- under another picture's map"),
    ("rationale", "no_evidence_place_accuracy"): ("no_evidence_place_accuracy", "- of the label alone"),
    ("rationale", "no_evidence_cider"): ("no_evidence_cider", "Rationale CIDEr of the label alone"),
    ("clip_score",): ("clip_score", "CLIPScore"),
}


def card_facts(folder, model, processor):
    """What the card says of a model besides its evaluation."""
    config, folder = model.config, Path(folder)
    return {
        "model_name": folder.resolve().name if folder.is_dir() else str(folder),
        "vision_model": config.vision_config.model_type,
        "text_model": config.text_config.model_type,
        "parameters": f"{model.num_parameters() / 1e6:.1f} million",
        "labels": ", ".join(config.id2label.values()),
        "saliency_method": config.saliency_method,
        "rationale_gradient": config.rationale_gradient,
        "rationale_prompt": processor.rationale_prompt,
        "training": _training_rows(folder),
        "base_model": [name for name in (_hub_id(config.vision_config), _hub_id(config.text_config)) if name],
    }


def _hub_id(config):
    """Where a pretrained part came from, if that was the Hub."""
    name = getattr(config, "_name_or_path", None) or ""
    return name if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists() else None


def write_card(path, facts, metrics, dataset_id=None):
    """
    Write a whole card, with the evaluation's figures in its metadata (`model-index`) and in words.

    Args:
        path (`Path`): The Markdown file.
        facts (`dict`): What [`card_facts`] gives.
        metrics (`dict`): What is in `metrics.json`.
        dataset_id (`str`, *optional*): The data set's id on the Hub, where `metrics` name a folder.
    """
    write_file(path, str(_filled(facts, metrics, dataset_id or _dataset_id(metrics["dataset"]))))


def update_card(folder, facts, metrics, dataset_id=None):
    """
    Enter an evaluation into the `README.md` of a checkpoint's folder, and into `.eval_results/<data set>.yaml`, where
    the Hub looks for figures. Of a card that is there, text and metadata stay, and so do the figures of other splits
    and data sets; those of this one are replaced.

    Raises:
        `OSError`: where the folder cannot be written.
    """
    folder, dataset_id = Path(folder), dataset_id or _dataset_id(metrics["dataset"])
    card = _filled(facts, metrics, dataset_id)
    if (folder / "README.md").is_file():
        card = _merged(ModelCard.load(folder / "README.md"), card, metrics["split"], dataset_id, facts["model_name"])
    path = folder / ".eval_results" / f"{dataset_id.replace('/', '--')}.yaml"
    entries = eval_result_entries_to_yaml(_eval_result_entries(metrics, dataset_id))
    if path.is_file():
        old = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        if not isinstance(old, list):
            raise ValueError(f"{path} is no list of figures: mend it, or remove it.")
        entries = [entry for entry in old if not _is_ours(entry, metrics["split"])] + entries
    write_file(folder / "README.md", str(card))
    write_file(path, yaml_dump(entries))


def _filled(facts, metrics, dataset_id):
    figures = _figures(metrics)
    data = ModelCardData(
        model_name=facts["model_name"],
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=facts["base_model"] or None,
        tags=["megl", "explainability", "saliency", "image-classification", "image-to-text"],
        datasets=[dataset_id],
        metrics=list(dict.fromkeys(metric_type for _, metric_type, _, _ in figures)),
        eval_results=_eval_results(metrics, dataset_id),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **{name: value for name, value in facts.items() if name != "base_model"},
        evaluation=_evaluation(metrics, dataset_id),
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "peft")),
    )


def _merged(old, new, split, dataset_id, model_name):
    """The old card with the new one's figures, and with its metadata where the old one has none."""
    begin, end = _marks(dataset_id, split)
    figures = new.text[new.text.index(begin) : new.text.index(end) + len(end)]
    head, found, rest = old.text.partition(begin)
    if found and end in rest:
        text = head + figures + rest.partition(end)[2]
    elif EVALUATED in old.text:
        before, last, after = old.text.rpartition(EVALUATED)
        text = f"{before}{last}\n\n{figures}{after}"
    else:
        text = f"{old.text.rstrip()}\n\n## Evaluation\n\n{figures}\n"
    data = old.data
    ours = {(dataset_id, split, metric_type) for metric_type, _ in FIGURES.values()}
    kept = [
        result
        for result in data.eval_results or []
        if (result.dataset_type, result.dataset_split, result.metric_type) not in ours
    ]
    for name in ("datasets", "metrics", "tags"):
        given = getattr(data, name) or []
        given = [given] if isinstance(given, str) else given
        setattr(data, name, list(dict.fromkeys([*given, *(getattr(new.data, name) or [])])))
    for name in ("library_name", "pipeline_tag", "base_model"):
        if getattr(data, name) is None:
            setattr(data, name, getattr(new.data, name))
    data.model_name = getattr(data, "model_name", None) or model_name
    data.eval_results = [*kept, *new.data.eval_results]
    old.text = text
    return old


def _marks(dataset_id, split):
    """The comments around the figures of an evaluation."""
    return f"<!-- evaluation on {split} of {dataset_id} -->".replace("--->", "- -->"), EVALUATED


def _evaluation(metrics, dataset_id):
    begin, end = _marks(dataset_id, metrics["split"])
    not_scored = at(metrics, ("rationale", "not_scored"))
    note = f"\nRationales are not scored: {not_scored}.\n" if not_scored else ""
    return f"""{begin}
On the `{metrics["split"]}` split of `{dataset_id}`:

| metric | value | 95 % interval | images |
|---|---|---|---|
{_result_rows(metrics)}
{note}{end}"""


def _is_ours(entry, split):
    """Whether an entry is one that `_eval_result_entries` made for the split."""
    notes = entry.get("notes") if isinstance(entry, dict) else None
    return str(notes).split(", ")[1:2] == [f"{split} split"]


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
        f"| {name} | {value:.3f} | {_interval(metrics, path, '{:.3f} to {:.3f}')} | {count_of(metrics, path):,} |"
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
    settings = json.loads(path.read_text(encoding="utf-8"))
    return "\n".join(
        ["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in settings.items())]
    )
