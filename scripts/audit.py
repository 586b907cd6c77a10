"""Tells whether an image classifier is right for the right reasons: do its labels come from objects or backgrounds?

```
megl audit microsoft/resnet-18 my-pictures --output audit
megl audit megl-trained object_me --split validation --saliency_method layer_cam --output audit
megl audit megl-trained object_me --fail_if 'background_gap>0.1' 'accuracy<0.8' --output audit
megl audit microsoft/resnet-18 my-pictures --beside resnet-18-mended --output audit
```

Takes any image classifier of Transformers' Auto classes, or a MEGL model, as it is: nothing is trained, and no text is
written. The data set needs labels whose names are the model's, or as many classes where the model has no names;
and masks for some pictures, 50 do. Without masks there is the accuracy alone. Pictures are resized as a whole, as a
map has to cover them.

Writes `index.html` (the verdict, the figures, the pictures that tell the most, and the commands that would mend the
classifier) and `audit.json` (the same figures; docs/audit.md says what each is), and prints a table. With `--fail_if`
the exit status is 3 where a condition holds.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from dataset_builders.files import check_new, new_folder
from megl.arguments import AuditArguments, ColumnArguments, given_options, shared_options
from megl.evaluation.audit import audit, figures, mending, verdict
from megl.evaluation.classifier import has_names, load_classifier, match_classes
from megl.evaluation.comparison import check_distinct_ids, compare
from megl.evaluation.conditions import FIGURES, met
from megl.evaluation.headlines import metrics_table
from megl.pages.audit import write_audit
from megl.parser import parse
from megl.tables import open_table
from megl.terminal import interrupted_writing, print_anywhere, program
from modeling_megl.configuration_megl import one_line
from modeling_megl.recombination_megl import annotated_places


FAILED = 3
# What the next audit of the page's commands is told by itself, or is told like each of them.
ANEW = ("model", "dataset", "output", "beside", "split", "trust_remote_code")
SPLITS = ("test", "validation", "train")  # the first that there is


def open_splits(arguments, columns, class_names):
    """
    `(split, dataset, train, backgrounds, donors)`: name and rows of the audited split; the rows of another one called
    `train`, or `None`; name and rows, `None` if they are the first, of the split that gives the backgrounds.
    """
    opened = partial(open_table, arguments.dataset, columns=columns)
    split = arguments.split
    if split:
        dataset = opened(split, class_names=class_names)
    else:
        there = ((name, opened(name, class_names=class_names, optional=True)) for name in SPLITS)
        split, dataset = next((pair for pair in there if pair[1] is not None), (None, None))
    if dataset is None:
        raise ValueError(f"{arguments.dataset} has none of the splits {', '.join(SPLITS)}: name one by `--split`.")
    names = dataset.features["label"].names
    train = None if split == "train" else opened("train", class_names=names, optional=True)
    if arguments.backgrounds:
        donors = opened(arguments.backgrounds, class_names=names, option="--backgrounds")
        return split, dataset, train, arguments.backgrounds, donors
    if train is None or not len(annotated_places(train)):
        return split, dataset, train, split, None
    return split, dataset, train, "train", train


def load_all(arguments, names):
    """The classifiers and their processors; a layer is named of the first alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = []
    for name in names:
        layer = arguments.saliency_layer if name == arguments.model else None
        classifier, processor = load_classifier(name, arguments.saliency_method, layer, arguments.trust_remote_code)
        loaded.append((classifier.to(device), processor))
    return loaded


def summary(arguments, names, runs, split, backgrounds, commands):
    """What is in `audit.json`."""
    models = []
    for name, (metrics, _, _) in zip(names, runs.values(), strict=True):
        found = figures(metrics)
        decided, sentence = verdict(found)
        parts = {"model": name, "verdict": decided, "sentence": sentence, "figures": found}
        models.append(parts | {"accuracy_by_group": metrics["accuracy_by_group"], "n_by_group": metrics["n_by_group"]})
    tests = None
    if len(runs) > 1:
        given = {name: (metrics, items) for name, (metrics, items, _) in runs.items()}
        (tests,) = compare(given, arguments.resamples, arguments.seed)["tests"].values()
        tests = {name: tests[".".join(path)] for name, path in FIGURES.items() if ".".join(path) in tests}
    return {
        "dataset": arguments.dataset,
        "split": split,
        "backgrounds": backgrounds if metrics["interventions"] else None,
        "bootstrap": metrics["bootstrap"],
        "models": models,
        "tests": tests,
        "failed": met(arguments.fail_if or [], models[0]["figures"]),
        "mending": commands,
    }


def main():
    arguments, columns = parse(__doc__, AuditArguments, ColumnArguments)
    names = [arguments.model, *([arguments.beside] if arguments.beside else [])]
    try:
        check_new(arguments.output)
        loaded = load_all(arguments, names)
        known = loaded[0][0].class_names
        known = known if has_names(loaded[0][0]) and len(set(known)) == len(known) else None
        split, dataset, train, backgrounds, donors = open_splits(arguments, columns, known)
        for name, (classifier, _) in zip(names, loaded, strict=True):
            guess = match_classes(classifier, name, dataset.features["label"].names, arguments.dataset)
            if guess:
                print_anywhere(guess)
        if len(names) > 1:
            check_distinct_ids(dataset)
        labels = names if len(names) == 1 else [f"{number}-{Path(name).name}" for number, name in enumerate(names, 1)]
        settings = (arguments.batch_size, arguments.resamples, arguments.seed)
        runs = {label: audit(*parts, dataset, donors, *settings) for label, parts in zip(labels, loaded, strict=True)}
        options = shared_options(columns, arguments.trust_remote_code)
        again = given_options(arguments, but=ANEW)
        commands = mending(arguments.model, arguments.dataset, split, train, options, again)
        found = summary(arguments, names, runs, split, backgrounds, commands)
        with new_folder(arguments.output) as folder:
            write_audit(folder / "index.html", dataset, runs, found, arguments.examples)
            (folder / "audit.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")
    except KeyboardInterrupt:
        interrupted_writing(arguments.output)
    for label, (metrics, _, _) in runs.items():
        print_anywhere(f"{label} on {split} of {arguments.dataset}, {len(dataset)} images\n{metrics_table(metrics)}")
    for model in found["models"]:
        print_anywhere(f"{model['model']}: {model['sentence']}")
    for line in found["failed"]:
        print_anywhere(f"failed: {line}")
    if found["failed"]:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
