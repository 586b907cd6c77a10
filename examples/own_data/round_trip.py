"""The round trip of docs/own_data.md with several draws of pictures, and what each step bought, as a table.

```
python -m examples.own_data.round_trip --output round-trip
```

Of 60 pictures 20 are annotated in the queue's order, and a model is trained. It is trained on after 20 more in the
order of its queue, after 20 more at random, and after no more. Each is audited on 200 other pictures, half of which
mislead.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from dataset_builders.files import check_new

from .annotate_by_truth import annotate
from .draw import draw


TRAINING = "--recombine 1 --num_train_epochs 40 --per_device_train_batch_size 6 --learning_rate 3e-3"
PRESET = "megl-resnet-tiny"
PLAIN = "--recombine 0 --visual_loss_weight 0 --text_loss_weight 0"
FIGURES = {"accuracy": "accuracy", "IoU of the map": "iou"}  # of audit.json
HELD_OUT = 1000  # number of the first picture to audit on


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--draws", type=int, default=3, help="how often, with other pictures each time")
    parser.add_argument("--pictures", type=int, default=60, help="how many there are")
    parser.add_argument("--annotate", type=int, default=20, help="how many are annotated each time")
    parser.add_argument("--held_out", type=int, default=200, help="how many to evaluate on")
    parser.add_argument("--training", default=TRAINING, help="options of `megl train`")
    return parser.parse_args()


def run(*words):
    subprocess.run([sys.executable, "-m", "megl", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def train(model, pictures, output, options):
    """The folder of a new model."""
    parts = ("--model_name_or_path", model, "--dataset_name", pictures, "--output_dir", output)
    run("train", *parts, *options.split(), "--report_to", "none", "--disable_tqdm", "True")
    return output


def round_trip(folder, first, arguments):
    """`(what it learnt from, folder)` of each model, with the pictures of one draw."""
    garden, truth, count = folder / "garden", folder / "garden-truth", arguments.annotate
    draw(garden, range(first, first + arguments.pictures), truth, mislead=10)
    yield "labels alone", train(PRESET, garden, folder / "labels", f"{arguments.training} {PLAIN}")
    annotate(garden, truth, count)
    model = train(PRESET, garden, folder / "garden-1", arguments.training)
    yield f"{count} annotated", model
    more = {
        "in the queue's order": {"pictures": count, "model": model},
        "at random": {"pictures": count, "seed": 0},
        "none": {"pictures": 0},
    }
    for name, options in more.items():
        pictures = shutil.copytree(garden, folder / f"garden {name}")
        annotate(pictures, truth, **options)
        yield f"trained on, {count} more: {name}", train(model, pictures, folder / f"model {name}", arguments.training)


def audit(model, held_out):
    """The figures of a model."""
    output = model.with_name(f"{model.name}-audit")
    run("audit", model, held_out, "--output", output)
    (found,) = json.loads((output / "audit.json").read_text(encoding="utf-8"))["models"]
    figures = {name: found["figures"][key]["value"] for name, key in FIGURES.items()}
    return {"accuracy where misled": found["accuracy_by_group"]["conflicting"], **figures}


def table(rows):
    """Mean, least and greatest of each figure over the draws, in Markdown."""
    names = list(next(iter(rows.values()))[0])
    lines = [f"| learnt from | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for learnt, found in rows.items():
        columns = [[one[name] for one in found] for name in names]
        cells = [f"{sum(each) / len(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in columns]
        lines.append(f"| {learnt} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    arguments = parse_arguments()
    folder = Path(check_new(arguments.output, False))
    held_out, rows = folder / "held-out", {}
    draw(held_out / "test", range(HELD_OUT, HELD_OUT + arguments.held_out), mislead=2)
    for number in range(arguments.draws):
        for name, model in round_trip(folder / f"draw-{number}", 100 * number, arguments):
            rows.setdefault(name, []).append(audit(model, held_out))
    print(table(rows))


if __name__ == "__main__":
    main()
