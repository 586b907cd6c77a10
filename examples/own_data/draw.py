"""Draws ten pictures of two classes as a folder of own pictures: pictures, masks and `metadata.jsonl`.

```
python -m examples.own_data.draw --output own
python -m examples.own_data.draw --output own-labels --leave_out masks rationales
```
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dataset_builders import ObjectMe
from dataset_builders.files import new_folder
from dataset_builders.scenes import Plan, draw_row


LABELS = ("house", "fish")
EACH = 5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--leave_out", nargs="+", choices=["masks", "rationales"], default=[], help="what to omit")
    return parser.parse_args()


def write_item(folder, number, subject, leave_out):
    """Write a picture and its mask; its line of `metadata.jsonl` is returned."""
    name = f"{number:02d}.png"
    row = draw_row(name, Plan(subject, subject.background, explained=True), np.random.default_rng(number))
    (folder / name).write_bytes(row["image"]["bytes"])
    line = {"file_name": name, "label": row["label"]}
    if "masks" not in leave_out:
        (folder / "masks" / name).write_bytes(row["visual_explanation"]["bytes"])
        line["visual_explanation_file_name"] = f"masks/{name}"
    if "rationales" not in leave_out:
        line["textual_explanations"] = row["textual_explanations"]
    return line


def main():
    arguments = parse_arguments()
    subjects = [subject for subject in ObjectMe.SUBJECTS if subject.label in LABELS] * EACH
    with new_folder(arguments.output) as folder:
        if "masks" not in arguments.leave_out:
            Path(folder, "masks").mkdir()
        lines = [write_item(folder, number, subject, arguments.leave_out) for number, subject in enumerate(subjects)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
