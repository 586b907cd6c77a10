"""Makes masks, rationales and labels for a folder of pictures, on a page in the browser.

```
megl annotate pictures --labels fish,house
megl annotate pictures --model megl-trained --name Anna
megl annotate pictures --export_label_studio tasks.json
```

It prints an address to open on this machine, and serves until Ctrl-C, when it prints the command that trains on what
is done. The pictures lie in sub-folders named after their classes, or anyhow where `--labels` names the classes; a
folder with a `metadata.jsonl`, of an earlier time or by hand, is gone on with. Each save writes `metadata.jsonl` and a
mask in `masks/`, which `megl train` and `megl prepare` take, and enters who changed what in `annotations.jsonl`. With
`--model`, a MEGL model or any image classifier, the pictures that help it most come first, each with its map and, of a
MEGL model, its rationale to begin with.

The `--import` and `--export` options take in or write what other programs read, and end.
"""

import getpass
import itertools
import json
import shlex
import sys
from pathlib import Path

from dataset_builders.files import check_new_file, write_file
from dataset_builders.image_folder import split_folders
from dataset_builders.items import printable
from megl.annotation.exchange import export_annotations, import_annotations
from megl.annotation.server import AnnotationServer
from megl.annotation.store import MASK, Annotations
from megl.annotation.suggestions import Suggestions, load_suggester
from megl.arguments import AnnotateArguments
from megl.evaluation.classifier import is_megl
from megl.parser import parse
from megl.terminal import print_anywhere, program
from modeling_megl.configuration_megl import one_line


# What trains a first model on some dozen pictures.
PRESET = "megl-resnet-tiny"
FROM_SCRATCH = {
    "recombine": 1,
    "num_train_epochs": 40,
    "per_device_train_batch_size": 6,
    "learning_rate": 3e-3,
}


def user():
    """The name of who is logged in, or `me`."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return "me"


def exchange(arguments, annotations):
    """Take in and write the files that are asked for; whether there are any."""
    kinds, done = ("coco", "label_studio"), False
    for kind in kinds:
        path = getattr(arguments, f"import_{kind}")
        if path:
            saved, missing = import_annotations(annotations, path, kind)
            lacking = f"; {len(missing):,} that are not in the folder, such as {missing[0]}" if missing else ""
            print_anywhere(printable(f"{path}: {saved:,} pictures taken in{lacking}"))
            done = True
    for kind in kinds:
        path = getattr(arguments, f"export_{kind}")
        if path:
            write_file(check_new_file(path, False), export_annotations(annotations, kind))
            print_anywhere(f"{path} is written")
            done = True
    return done


def training_options(model):
    """Those that a model's folder records; those of a small data set and a preset for `None`."""
    if model is None:
        return FROM_SCRATCH
    path = Path(model, "training_settings.json")
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: recorded[name] for name in FROM_SCRATCH if name in recorded}


def next_step(folder, model, annotations):
    """How many pictures are done, and the command that makes use of them."""
    done = sum(item.done for item in annotations.items)
    said = f"{done:,} of {len(annotations):,} pictures are done."
    if not done:
        return said
    name = Path(folder).resolve().name.lstrip("-")
    if split_folders(annotations.folder):  # whose masks `load_dataset` would take for pictures
        words = ["megl", "prepare", "object_me", "--source", folder, "--output", f"{name}_me"]
        return printable(f"{said} Next: {shlex.join(words)}")
    if model and not is_megl(model):
        return f"{said} Next: {shlex.join(['megl', 'audit', model, folder, '--output', f'{name}-audit'])}"
    output = next(f"{name}-{number}" for number in itertools.count(1) if not Path(f"{name}-{number}").exists())
    words = ["megl", "train", "--model_name_or_path", model or PRESET, "--dataset_name", folder, "--output_dir"]
    masked = {item.row.get("label") for item in annotations.items if MASK in item.row}
    lacking = sorted({item.row["label"] for item in annotations.items if "label" in item.row} - masked)
    options = training_options(model)
    if lacking:
        options = {option: value for option, value in options.items() if option != "recombine"}
        said += f" There is no mask of {', '.join(lacking)} yet, which `--recombine 1` would need."
    words += [output, *(word for option, value in options.items() for word in (f"--{option}", f"{value:g}"))]
    return printable(f"{said} Next: {shlex.join(words)}")


def serve(arguments, annotations, suggest, class_names):
    """Serve the page until Ctrl-C."""
    suggestions = Suggestions(annotations, suggest) if suggest else None
    name = arguments.name or user()
    with AnnotationServer(annotations, arguments.port, suggestions, class_names, name) as server:
        if suggestions:
            suggestions.start()
        print_anywhere(f"{len(annotations):,} pictures. Open {server.address} on this machine; Ctrl-C ends.")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            if suggestions:
                suggestions.stop()
            print_anywhere(f"\n{next_step(arguments.dataset, arguments.model, annotations)}")


def main():
    (arguments,) = parse(__doc__, AnnotateArguments)
    try:
        suggest, class_names = None, []
        if arguments.model:
            suggest, class_names = load_suggester(arguments.model, arguments.trust_remote_code)
        labels = [label.strip() for label in (arguments.labels or "").split(",") if label.strip()]
        with Annotations(arguments.dataset, labels, class_names) as annotations:
            if not exchange(arguments, annotations):
                serve(arguments, annotations, suggest, class_names)
    except KeyboardInterrupt:
        print()
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")


if __name__ == "__main__":
    main()
