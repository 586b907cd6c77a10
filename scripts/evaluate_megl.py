"""Evaluates MEGL models on a split: label, saliency map and rationale against what humans gave.

```
megl evaluate --model megl-trained --dataset object_me --split test --output evaluation
megl evaluate --model megl-plain megl-trained --dataset object_me --output evaluations
torchrun --nproc_per_node 4 -m megl evaluate --model megl-trained --dataset object_me --output evaluation
```

Writes `metrics.json` (figures with bootstrap intervals; docs/evaluation.md says what each is), `predictions.jsonl`
(one line an image, with its scores), `index.html` (the report), `examples.png` (a few pictures) and `model_card.md`,
and prints a table. The model's folder stays as it is, but for two options: `--update_card` enters the figures into its
`README.md` and its `.eval_results`, and keeps what else stands there; `--calibrate` first fits the temperature of the
probabilities on another split, and stores it in `config.json`. With `--clip` (a Hub id or folder of a CLIP model) it
also computes CLIPScore and the grounding of the rationales, with `--faithfulness` whether the class scores depend on
what the maps show, with `--interventions` whether the labels come from the objects or from the backgrounds. Several
models go into a folder each, and are compared as by `megl compare-evaluations`. Under `torchrun` the pictures are
shared over the processes. The data set's columns may have other names, and all but the pictures and the labels may be
missing: what there is is scored, and each figure says of how many images it is.

Of a multi-label model it gives mean average precision, F1 at a probability of 0.5, and for each label besides its
average precision IoU and energy of the maps of that label on the pictures with a mask of it; the page, the sheet of
pictures and the scores of rationales there are not.
"""

import json
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from transformers import CLIPConfig, PreTrainedConfig

from dataset_builders.files import check_new, new_folder
from megl.arguments import ColumnArguments, EvaluateArguments
from megl.evaluation.calibration import calibrate, save_temperature
from megl.evaluation.card import card_facts, check_card, update_card, write_card
from megl.evaluation.comparison import check_distinct_ids, write_comparison
from megl.evaluation.headlines import metrics_table
from megl.evaluation.interventions import Interventions, intervention_scores, label_interventions
from megl.evaluation.multi_label import label_figures, label_items, label_scores, label_table
from megl.evaluation.predictions import predict, why_untaught
from megl.evaluation.scores import (
    compute_scores,
    faithfulness_scores,
    joined,
    map_checks,
    saliency_scores,
    with_intervals,
)
from megl.pages.pictures import write_sheet
from megl.pages.report import write_report
from megl.parser import parse
from megl.tables import open_table
from megl.terminal import interrupted_writing, print_anywhere, program
from modeling_megl import MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.collator_megl import class_label
from modeling_megl.configuration_megl import one_line
from modeling_megl.training_megl import check_labels


def open_dataset(arguments, columns, name, option="split"):
    """The split that an option names, with the classes of a model; a `ValueError` where they are others."""
    config = MeglConfig.from_pretrained(name, trust_remote_code=arguments.trust_remote_code)
    classes = [label for _, label in sorted(config.id2label.items())]
    split = getattr(arguments, option)
    dataset = open_table(arguments.dataset, split, columns, classes, option=f"--{option}", multi_label=True)
    check_labels(config.id2label, dataset, config.is_multi_label)
    return dataset


def check_arguments(arguments, dataset):
    """Refuse before the work what would only be found after it."""
    check_new(arguments.output)
    if class_label(dataset)[1]:
        check_multi_label(arguments)
    if arguments.clip is not None:
        check_clip(arguments.clip)
    for option in ("update_card", "calibrate"):
        for name in arguments.model if getattr(arguments, option) else []:
            if not Path(name).is_dir():
                raise ValueError(f"`--{option}` needs the folder of a model, got {name}, which is no folder.")
    for name in arguments.model if arguments.update_card else []:
        check_card(name, arguments.dataset, arguments.dataset_id)
    if len(arguments.model) > 1:
        check_distinct_ids(dataset)


def check_multi_label(arguments):
    """Refuse what is meant for one label a picture."""
    names = ("clip", "faithfulness", "interventions", "calibrate")
    given = [f"`--{name}`" for name in names if getattr(arguments, name) is not None]
    if given:
        raise ValueError(f"a multi-label model cannot be evaluated with {' and '.join(given)}: leave it out")
    if len(arguments.model) > 1:
        raise ValueError(f"multi-label models are evaluated one at a time, got {len(arguments.model)}")


def check_clip(name):
    try:
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    except OSError as error:
        raise ValueError(f"`--clip` must be the Hub id or folder of a CLIP model: {one_line(error)}") from error
    if model_type != CLIPConfig.model_type:
        raise ValueError(f"`--clip` must be a CLIP model, got {name}, whose `model_type` is {model_type!r}.")


def load(arguments, name):
    """A model in evaluation mode, on its device, and its processor."""
    processor = MeglProcessor.from_pretrained(name)
    model = MeglForImageClassification.from_pretrained(name, trust_remote_code=arguments.trust_remote_code).eval()
    state = PartialState()
    model.to(state.device if state.device.type == "cuda" else "cpu")
    model.vision_model.to(memory_format=torch.channels_last)  # as in training, the fastest for convolutions
    return model, processor


def evaluate_labels(arguments, name, dataset):
    """The items of a multi-label model, and what its evaluation is written from."""
    model, processor = load(arguments, name)
    items = label_items(model, processor, dataset, arguments.batch_size)
    return {"name": name, "dataset": dataset, "items": items, "facts": card_facts(name, model, processor)}


def evaluate(arguments, name, dataset, donors=None, calibration=None):
    """The items of a model, scored as far as no other item is needed, and what its evaluation is written from."""
    (model, processor), state = load(arguments, name), PartialState()
    baseline, batch_size = arguments.faithfulness, arguments.batch_size
    if calibration is not None:
        fitted = calibrate(model, processor, calibration, batch_size)
        if state.is_main_process:
            print_anywhere(
                f"{name}: temperature {fitted['temperature']:.3f} by {len(calibration)} images of "
                f"{arguments.calibrate}, where the expected calibration error was {fitted['before']:.3f} and is "
                f"{fitted['after']:.3f}"
            )
    not_scored = why_untaught(name)
    if not_scored and state.is_main_process:
        print_anywhere(f"{name}: rationales are not scored: {not_scored}")
    scorers = {"saliency": lambda items, places, pixel_values: saliency_scores(items, places, dataset)}
    if baseline:
        scorers["faithfulness"] = partial(faithfulness_scores, model=model, baseline=baseline, batch_size=batch_size)
    interventions = None
    if arguments.interventions is not None:
        interventions = Interventions(processor, dataset, donors, batch_size, arguments.seed)
        scorers["interventions"] = partial(
            label_interventions,
            model=model,
            interventions=interventions,
            max_new_tokens=0 if not_scored else arguments.max_new_tokens,
        )
    items, parts = predict(
        *(model, processor, dataset, batch_size, arguments.max_new_tokens, arguments.seed, scorers),
        writes=not_scored is None,
    )
    scores = {part: joined(items, f"{part}.", found) for part, found in parts.items()}
    scores |= {"not_scored": not_scored, "temperature": model.config.score_temperature}
    if baseline and state.is_main_process:
        checks = map_checks(items, dataset, model, processor, batch_size)
        scores["faithfulness"] = {"baseline": baseline, **scores["faithfulness"], **checks}
    if interventions is not None:
        scores["interventions"] = intervention_scores(items, dataset.features["label"].names)
        scores["interventions"]["backgrounds"] = arguments.interventions or arguments.split
    return {
        "name": name,
        "dataset": dataset,
        "items": items,
        "interventions": interventions,
        "scores": scores,
        "facts": card_facts(name, model, processor),
    }


def write_evaluation(arguments, run, folder):
    """Write the evaluation of one model into a folder; its metrics are returned."""
    dataset, items = run["dataset"], run["items"]
    classes = dataset.features["label"].names
    metrics = {
        "model": run["name"],
        "dataset": arguments.dataset,
        "split": arguments.split,
        **compute_scores(items, dataset, classes, arguments.clip, **run["scores"]),
    }
    metrics = with_intervals(metrics, items, arguments.resamples, arguments.seed)
    write_figures(folder, metrics, ({**item, "saliency": item["saliency"].round(4).tolist()} for item in items))
    write_report(folder / "index.html", dataset, items, metrics, arguments.examples, run["interventions"])
    write_sheet(folder / "examples.png", dataset, items)
    write_card(folder / "model_card.md", run["facts"], metrics, arguments.dataset_id)
    print_anywhere(f"{run['name']} on {arguments.split} of {arguments.dataset}, {len(dataset)} images")
    print_anywhere(metrics_table(metrics))
    return metrics


def write_labels(arguments, run, folder):
    """Write the evaluation of a multi-label model into a folder; its metrics are returned."""
    named = {"model": run["name"], "dataset": arguments.dataset, "split": arguments.split}
    metrics = {**named, **label_scores(run["items"])}
    metrics = with_intervals(metrics, run["items"], arguments.resamples, arguments.seed, label_figures)
    write_figures(folder, metrics, run["items"])
    write_card(folder / "model_card.md", run["facts"], metrics, arguments.dataset_id)
    print_anywhere(f"{run['name']} on {arguments.split} of {arguments.dataset}, {len(run['items'])} images")
    print_anywhere(metrics_table(metrics))
    print_anywhere(label_table(metrics))
    return metrics


def write_figures(folder, metrics, items):
    """Write `metrics.json` and `predictions.jsonl`."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as lines:
        for item in items:
            lines.write(json.dumps(item, ensure_ascii=False) + "\n")


def write_all(arguments, runs):
    """Write what the models gave, all of it or nothing; then the cards in the models' folders, if asked for."""
    with new_folder(arguments.output) as folder:
        several = len(runs) > 1
        names = [f"{number}-{Path(run['name']).name}" for number, run in enumerate(runs, start=1)]
        compared = {}
        for name, run in zip(names, runs, strict=True):
            own = folder / name if several else folder
            own.mkdir(exist_ok=True)
            write = write_labels if class_label(run["dataset"])[1] else write_evaluation
            compared[name] = (write(arguments, run, own), run["items"])
        if several:
            write_comparison(folder, compared, arguments.resamples, arguments.seed)
    failures = []
    for run in runs if arguments.calibrate else []:
        try:
            save_temperature(run["name"], run["scores"]["temperature"])
        except OSError as error:
            failures.append(f"the temperature of {run['name']} cannot be stored: {one_line(error)}")
    for run, (metrics, _) in zip(runs if arguments.update_card else [], compared.values(), strict=False):
        try:
            update_card(run["name"], run["facts"], metrics, arguments.dataset_id)
        except (OSError, ValueError, yaml.YAMLError) as error:
            failures.append(f"the card of {run['name']} cannot be updated: {one_line(error)}")
    if failures:
        raise ValueError(f"{arguments.output} is whole, but {'; '.join(failures)}")


def main():
    arguments, columns = parse(__doc__, EvaluateArguments, ColumnArguments)
    # Some processes may have far fewer or smaller pictures than others.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    try:
        # All that can be known before the work is checked before it.
        datasets = [open_dataset(arguments, columns, name) for name in arguments.model]
        donors, calibrations = (
            [
                open_dataset(arguments, columns, name, option) if getattr(arguments, option) else None
                for name in arguments.model
            ]
            for option in ("interventions", "calibrate")
        )
        check_arguments(arguments, datasets[0])
        given = zip(arguments.model, datasets, donors, calibrations, strict=True)
        if class_label(datasets[0])[1]:
            runs = [evaluate_labels(arguments, name, dataset) for name, dataset, *_ in given]
        else:
            runs = [evaluate(arguments, *one) for one in given]
        # From here on one process works alone.
        state.destroy_process_group()
        if state.is_main_process:
            write_all(arguments, runs)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}" if state.is_main_process else 1)
    except KeyboardInterrupt:
        interrupted_writing(arguments.output)


if __name__ == "__main__":
    main()
