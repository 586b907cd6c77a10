"""
Model cards: filled from the template `model_card.md`, or brought up to date with the figures of one more evaluation.

The figures of an evaluation stand between two comments that name its data set and split, so that the next evaluation
on the same replaces them and leaves all else as it is.
"""

import html
import json
import re
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from dataset_builders.files import write_file
from megl.evaluation.headlines import at, count_of


# Ends the figures of an evaluation in a card.
EVALUATED = "<!-- end of evaluation -->"
FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(?P<yaml>.*?)(?=^---[ \t]*\r?$)", re.DOTALL | re.MULTILINE)
NULL, STRING, SEQUENCE, MAPPING = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "seq", "map"))
# What `megl train` draws of itself beside the model.
TRAINING_CURVES = "training_curves.svg"
TEMPLATE = Path(__file__).with_name("model_card.md")

# What the card reports, of what there is: path in `metrics.json` to the metric's type and its name in words.
FIGURES = {
    ("accuracy",): ("accuracy", "Accuracy"),
    ("worst_group_accuracy",): ("worst_group_accuracy", "Worst-group accuracy"),
    ("macro_f1",): ("f1", "Macro F1"),
    ("mean_average_precision",): ("mean_average_precision", "Mean average precision"),
    ("f1_micro",): ("f1", "Micro F1 of labels at 0.5"),
    ("f1_macro",): ("f1", "Macro F1 of labels at 0.5"),
    ("calibration", "ece"): ("expected_calibration_error", "Expected calibration error"),
    ("saliency", "iou"): ("iou", "Saliency IoU at 0.5"),
    ("saliency", "energy"): ("energy", "Energy pointing game"),
    ("saliency", "pointing_game"): ("pointing_game", "Pointing game"),
    ("saliency", "relevance_rank_accuracy"): ("relevance_rank_accuracy", "Relevance rank accuracy"),
    ("interventions", "other_accuracy"): ("other_background_accuracy", "Accuracy on another class's background"),
    ("interventions", "object_alone_accuracy"): ("object_alone_accuracy", "Accuracy on the object alone"),
    ("interventions", "background_alone_accuracy"): ("background_alone_accuracy", "Accuracy on the background alone"),
    ("interventions", "background_gap"): ("background_gap", "Background gap"),
    ("interventions", "relative_foreground_sensitivity"): (
        "relative_foreground_sensitivity",
        "Relative foreground sensitivity",
    ),
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
        "labels": ", ".join(_plain(name) for name in config.id2label.values()),
        "saliency_method": config.saliency_method,
        "rationale_gradient": config.rationale_gradient,
        "rationale_prompt": " ".join(processor.rationale_prompt.split()).replace("<!--", "<! --"),
        "training": _training_rows(folder),
        "curves": _curves(folder),
        "base_model": base_models(config.vision_base_model, config.text_base_model),
    }


def _plain(text):
    """Text in a table of a card: on one line, and no mark-up."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


def base_models(*names):
    """Those of pretrained parts' names that are Hub ids; where else one lies is no one's business."""
    return [name for name in names if name and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()]


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


def check_card(folder, dataset, dataset_id=None):
    """
    Refuse, before the work, what [`update_card`] cannot update.

    Raises:
        `ValueError`: where the card is no UTF-8, its front matter is no YAML mapping with a key a line, or its
        `model-index` or the figures in `.eval_results` are no lists.
    """
    _read_card(Path(folder) / "README.md")
    _read_entries(_entries_path(Path(folder), dataset_id or _dataset_id(dataset)))


def update_card(folder, facts, metrics, dataset_id=None):
    """
    Enter an evaluation into the `README.md` of a checkpoint's folder, and into `.eval_results/<data set>.yaml`, where
    the Hub looks for figures. A card that is there stays as it is but for the figures of this data set and split, and
    for what its metadata lack.

    Raises:
        `ValueError`: as [`check_card`]. `OSError`: where the folder cannot be written.
    """
    folder, dataset_id = Path(folder), dataset_id or _dataset_id(metrics["dataset"])
    card = str(_filled(facts, metrics, dataset_id))
    if (folder / "README.md").is_file():
        card = _merged(folder / "README.md", ModelCard(card), metrics["split"], dataset_id, facts["model_name"])
    path = _entries_path(folder, dataset_id)
    entries = [entry for entry in _read_entries(path) if not _is_ours(entry, metrics["split"])]
    entries += eval_result_entries_to_yaml(_eval_result_entries(metrics, dataset_id))
    write_file(folder / "README.md", card)
    write_file(path, yaml_dump(entries))


def _entries_path(folder, dataset_id):
    return folder / ".eval_results" / f"{dataset_id.replace('/', '--')}.yaml"


def _read_entries(path):
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        found = False
    if found is not None and not isinstance(found, list):
        raise ValueError(f"{path} is no list of figures: mend it, or remove it.")
    return found or []


def _read_card(path):
    """Text of a card, the place of its front matter in it, and the key and value nodes there."""
    if not path.is_file():
        return "", (0, 0), []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: save it as UTF-8.") from error
    found = FRONT_MATTER.match(text)
    place = found.span("yaml") if found else (0, 0)
    try:
        root = yaml.compose(text[slice(*place)], Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: the front matter between its lines `---` is no YAML ({reason}): mend it."
        ) from error
    if root is not None and (not isinstance(root, yaml.MappingNode) or root.flow_style):
        raise ValueError(f"{path}: expected front matter with a `key: value` a line between its lines `---`: mend it.")
    pairs = root.value if root else []
    _results(dict(_named(pairs)).get("model-index"), None, path)
    return text, place, pairs


def _named(pairs):
    """Key to value node of those that have a value."""
    return [(key.value, value) for key, value in pairs if value.tag != NULL]


def _results(models, model_name, path):
    """The node of the results in `model-index` of the model of that name, else of the first; `None` of none."""
    if models is None:
        return None
    if isinstance(models, yaml.SequenceNode) and all(isinstance(model, yaml.MappingNode) for model in models.value):
        by_name = {_text(_at(model, "name")): _at(model, "results") for model in reversed(models.value)}
        if all(isinstance(results, yaml.SequenceNode) for results in by_name.values()):
            return by_name.get(model_name, next(reversed(by_name.values()), None))
    raise ValueError(
        f"{path}: expected `model-index` to be a list of models, each with `name` and `results`: mend it."
    )


def _at(node, key):
    """The value node of a key, `None` where there is none."""
    return dict(_named(node.value)).get(key) if isinstance(node, yaml.MappingNode) else None


def _text(node):
    return node.value if isinstance(node, yaml.ScalarNode) else None


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


def _merged(path, new, split, dataset_id, model_name):
    """The card at the path with the new one's figures, and with its metadata where the old one has none."""
    text, (start, end), pairs = _read_card(path)
    newline = "\r\n" if "\r\n" in text else "\n"
    front = _merged_front(text[start:end], pairs, new.data.to_dict(), (path, split, dataset_id, model_name))
    front = front.replace("\r\n", "\n").replace("\n", newline)
    begin, mark = _marks(dataset_id, split)
    figures = new.text[new.text.index(begin) : new.text.index(mark) + len(mark)].replace("\n", newline)
    words = _merged_words(text[end:], figures, begin, newline)
    if not end:
        return f"---{newline}{front}---{newline}{newline}{words}"
    return text[:start] + front + words


def _merged_words(text, figures, begin, newline):
    head, found, rest = text.partition(begin)
    if found and EVALUATED in rest:
        return head + figures + rest.partition(EVALUATED)[2]
    if EVALUATED in text:
        before, last, after = text.rpartition(EVALUATED)
        return f"{before}{last}{newline * 2}{figures}{after}"
    return f"{text.rstrip()}{newline * 2}## Evaluation{newline * 2}{figures}{newline}"


def _merged_front(text, pairs, new, place):
    """
    The old front matter as it is written, but for keys that it lacks, for lists that lack something, and for the
    results of this evaluation in `model-index`, where nodes of YAML keep numbers and words as they are written.
    """
    path, split, dataset_id, model_name = place
    old = dict(_named(pairs))
    changed = {key: yaml.compose(yaml_dump(value)) for key, value in new.items() if key not in old}
    for key in ("datasets", "metrics", "tags"):
        given = old.get(key)
        if given is None or key not in new:
            continue
        items = given.value if isinstance(given, yaml.SequenceNode) else [given]
        more = [item for item in yaml.compose(yaml_dump(new[key])).value if item.value not in map(_text, items)]
        if more:
            changed[key] = yaml.SequenceNode(SEQUENCE, [*items, *more], flow_style=getattr(given, "flow_style", False))
    if "model-index" in old:
        own = yaml.compose(yaml_dump(new["model-index"]))
        results = _results(old["model-index"], model_name, path)
        if results is None:
            changed["model-index"] = own
        else:
            results.value = _others(results.value, split, dataset_id) + _at(own.value[0], "results").value
            changed["model-index"] = old["model-index"]
    return _replaced(text, pairs, changed)


def _others(results, split, dataset_id):
    """The results in `model-index` without those that an evaluation on the data set and split has written."""
    kept = []
    for result in results:
        dataset, metrics = _at(result, "dataset"), _at(result, "metrics")
        if (
            _keys(result) <= {"task", "dataset", "metrics"}
            and _keys(dataset) <= {"name", "type", "split"}
            and (_text(_at(dataset, "type")), _text(_at(dataset, "split"))) == (dataset_id, split)
            and isinstance(metrics, yaml.SequenceNode)
        ):
            metrics.value = [metric for metric in metrics.value if not _is_figure(metric)]
            if not metrics.value:
                continue
        kept.append(result)
    return kept


def _is_figure(metric):
    words = (_text(_at(metric, "type")), _text(_at(metric, "name")))
    return words in FIGURES.values() and _keys(metric) <= {"type", "name", "value"}


def _keys(node):
    return {_text(key) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {None}


def _replaced(text, pairs, changed):
    """The text of front matter with these nodes as values of their keys: in their place, or at the end."""
    changed = dict(changed)
    for key, value in reversed(pairs):
        node = changed.pop(key.value, None)
        if node is None:
            continue
        start = key.start_mark.index
        # A block ends where the next key begins: comments and empty lines before that are not of it.
        lines = text[start : value.end_mark.index].splitlines(keepends=True)
        while len(lines) > 1 and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
            lines.pop()
        block, appended = "".join(lines), _appended(lines, value, node)
        written = _yaml(key, node) if appended is None else appended
        end = start + len(block)
        text = text[:start] + (written if block.endswith("\n") else written.rstrip("\n")) + text[end:]
    if text and not text.endswith("\n"):
        text += "\n"
    text += "".join(_yaml(yaml.ScalarNode(STRING, key), node) for key, node in changed.items())
    yaml.compose(text)  # refuses an alias of what was replaced
    return text


def _appended(lines, value, node):
    """A list in lines of its own with more items behind what is written there; `None` of anything else."""
    if not isinstance(value, yaml.SequenceNode) or value.flow_style or value is node or not lines[-1].endswith("\n"):
        return None
    indent = " " * value.start_mark.column
    more = yaml.SequenceNode(SEQUENCE, node.value[len(value.value) :], flow_style=False)
    return "".join([*lines, *(indent + line for line in _serialized(more).splitlines(keepends=True))])


def _yaml(key, node):
    return _serialized(yaml.MappingNode(MAPPING, [(key, node)], flow_style=False))


def _serialized(node):
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=float("inf"))


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
        ["| setting | value |", "|---|---|", *(f"| {key} | {_plain(value)} |" for key, value in settings.items())]
    )


def _curves(folder):
    """The curves of the training as a picture, where there are any."""
    words = "Loss, its terms and accuracy over the steps, in training and in evaluation"
    return f"\n\n![{words}]({TRAINING_CURVES})" if (folder / TRAINING_CURVES).is_file() else ""
