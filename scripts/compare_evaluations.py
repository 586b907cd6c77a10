"""Compares evaluations of several models on the same images: figures with intervals, and paired bootstrap tests.

```
python scripts/compare_evaluations.py evaluation-plain evaluation-megl --output comparison
```

Each folder is what `evaluate_megl.py` wrote for one model; the first is what the others are tested against. Writes
`comparison.md` (a table for a paper, and the differences with their p values) and `comparison.json`, and prints the
former.
"""

import argparse
import sys

from dataset_builders.files import new_folder
from megl.evaluation.comparison import check_same_data, read_evaluation, run_names, write_comparison
from modeling_megl.configuration_megl import one_line


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", metavar="FOLDER", help="what evaluate_megl.py wrote, two or more")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="draws the resamples")
    arguments = parser.parse_args()
    if len(arguments.evaluations) < 2:
        parser.error("two or more folders are needed")
    for name, least in {"resamples": 1, "seed": 0}.items():
        if getattr(arguments, name) < least:
            parser.error(f"`--{name}` must be {least} or more, got {getattr(arguments, name)}")
    return arguments


def main():
    arguments = parse_arguments()
    try:
        names = run_names(arguments.evaluations)
        if len(set(names)) < len(names):
            raise ValueError(f"expected different folders, got {', '.join(names)}.")
        runs = {name: read_evaluation(folder) for name, folder in zip(names, arguments.evaluations, strict=True)}
        check_same_data(runs)
        with new_folder(arguments.output) as folder:
            write_comparison(folder, runs, arguments.resamples, arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"compare_evaluations: {one_line(error)}")


if __name__ == "__main__":
    main()
