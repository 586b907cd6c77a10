"""Draws pictures of two classes as a folder of own pictures: pictures, masks and `metadata.jsonl`.

```
python -m examples.own_data.draw --output own
python -m examples.own_data.draw --output own-labels --leave_out masks rationales
python -m examples.own_data.draw --output garden --truth garden-truth --pictures 60 --mislead 10
```

The last are pictures alone, in sub-folders named after their classes; what someone would say of them is in the other
folder. Of each class every tenth stands on the other's background.
"""

import argparse
import json
from contextlib import ExitStack

import numpy as np

from dataset_builders import ObjectMe
from dataset_builders.files import new_folder
from dataset_builders.image_folder import METADATA
from dataset_builders.scenes import Plan, draw_row


SUBJECTS = [subject for subject in ObjectMe.SUBJECTS if subject.label in ("house", "fish")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--truth", help="folder for all but the pictures, which are then in folders of classes")
    parser.add_argument("--pictures", type=int, default=10, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first; another one is another picture")
    parser.add_argument(
        "--mislead", type=int, metavar="N", help="every Nth of a class has the other's background; 0 for none of them"
    )
    parser.add_argument("--leave_out", nargs="+", choices=["masks", "rationales"], default=[], help="what to omit")
    return parser.parse_args()


def plan(number, mislead):
    """What the picture of a number shows: the classes come in turn, and the first of `mislead` is misleading."""
    turn, place = divmod(number, len(SUBJECTS))
    misleads = bool(mislead) and turn % mislead == 0
    background = SUBJECTS[(place + misleads) % len(SUBJECTS)].background
    return Plan(SUBJECTS[place], background, explained=True)


def write_item(pictures, truth, number, mislead=None, leave_out=()):
    """Write a picture and its mask; its line of `metadata.jsonl` is returned."""
    row = draw_row(str(number), plan(number, mislead), np.random.default_rng(number))
    name = f"{number:02d}.png" if pictures == truth else f"{row['label']}/{number:02d}.png"
    write(pictures / name, row["image"]["bytes"])
    line = {"file_name": name, "label": row["label"]}
    if "masks" not in leave_out:
        write(truth / "masks" / name, row["visual_explanation"]["bytes"])
        line["visual_explanation_file_name"] = f"masks/{name}"
    if "rationales" not in leave_out:
        line["textual_explanations"] = row["textual_explanations"]
    if mislead is not None:
        line["group"] = row["group"]
    return line


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def draw(output, numbers, truth=None, overwrite=False, **options):
    """Write the folder `output`, or two; the options are those of [`write_item`]."""
    with ExitStack() as stack:
        pictures = stack.enter_context(new_folder(output, overwrite))
        truth = stack.enter_context(new_folder(truth, overwrite)) if truth else pictures
        lines = [write_item(pictures, truth, number, **options) for number in numbers]
        (truth / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main():
    arguments = parse_arguments()
    numbers = range(arguments.first, arguments.first + arguments.pictures)
    options = {"mislead": arguments.mislead, "leave_out": arguments.leave_out}
    draw(arguments.output, numbers, arguments.truth, **options)


if __name__ == "__main__":
    main()
