"""Answers `megl annotate` as a person would, from what is known of drawn pictures, in the order of its queue.

```
python -m examples.own_data.annotate_by_truth garden --truth garden-truth --pictures 20
python -m examples.own_data.annotate_by_truth garden --truth garden-truth --pictures 20 --model garden-1
```

It starts `megl annotate`, waits until the model has looked at all pictures, and saves label, mask and rationales of
one picture after the other by the requests that the page sends.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

from dataset_builders.image_folder import METADATA
from megl.annotation.store import MASK, RATIONALES, to_runs


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="pictures that examples.own_data.draw drew")
    parser.add_argument("--truth", required=True, help="folder that it wrote by its option --truth")
    parser.add_argument("--pictures", type=int, required=True, help="how many to annotate")
    parser.add_argument("--model", help="whose answers order the queue")
    parser.add_argument("--random", type=int, metavar="SEED", help="take pictures at random instead")
    return parser.parse_args()


@contextmanager
def annotating(folder, model=None):
    """The address at which `megl annotate` serves a folder of pictures."""
    options = ["--model", str(model)] if model else []
    command = [sys.executable, "-m", "megl", "annotate", str(folder), "--name", "drawn", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            line = program.stdout.readline()
            if "http://" not in line:
                sys.exit(f"`megl annotate` does not serve: {line or 'its message is above'}")
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            program.terminate()


def ask(address, body=None):
    """The answer to a request, or to a save."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address, data, {"Content-Type": "application/json"}), timeout=60) as answer:
        return json.load(answer)


def read_queue(address):
    """The pictures in their order, once the model, if there is one, has looked at all."""
    while (queue := ask(f"{address}queue"))["looked_at"] not in (None, len(queue["items"])):
        time.sleep(0.2)
    return queue["items"]


def say(address, item, line, truth):
    """Save what is known of a picture."""
    mask = np.asarray(Image.open(truth / line[MASK])) > 127
    version = ask(f"{address}items/{item['number']}")["version"]
    said = {"version": version, "who": "drawn", "label": line["label"], "rationales": line[RATIONALES]}
    ask(f"{address}items/{item['number']}", {**said, "mask": to_runs(mask)})


def annotate(folder, truth, pictures, model=None, seed=None):
    """
    Annotate some pictures of a folder in the order of the queue, or, with a seed, at random.

    Returns:
        `list[tuple[str, str]]`: their names, and why each stood where it did.
    """
    rows = map(json.loads, Path(truth, METADATA).read_text(encoding="utf-8").splitlines())
    lines = {row["file_name"]: row for row in rows}
    chance, said = random.Random(seed), []
    with annotating(folder, model) as address:
        while len(said) < pictures and (waiting := [item for item in read_queue(address) if not item["done"]]):
            item = waiting[0] if seed is None else chance.choice(waiting)
            say(address, item, lines[item["name"]], Path(truth))
            said.append((item["name"], item["reason"]))
    return said


def main():
    arguments = parse_arguments()
    options = {"model": arguments.model, "seed": arguments.random}
    for name, reason in annotate(arguments.folder, arguments.truth, arguments.pictures, **options):
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
