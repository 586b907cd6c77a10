"""Compares evaluations of several models on the same images: figures with intervals, and paired bootstrap tests.

```
megl compare-evaluations evaluation-plain evaluation-megl --output comparison
megl compare-evaluations plain gradia megl --resamples 10000 --output comparison
```

Each folder is what `megl evaluate` wrote for one model; the first is what the others are tested against. Writes
`comparison.md` (a table for a paper, and the differences with their p values) and `comparison.json`, and prints the
former.
"""

import sys

from dataset_builders.files import new_folder
from megl.arguments import CompareArguments
from megl.evaluation.comparison import check_same_data, read_evaluation, run_names, write_comparison
from megl.parser import parse
from megl.terminal import program
from modeling_megl.configuration_megl import one_line


def main():
    (arguments,) = parse(__doc__, CompareArguments)
    try:
        names = run_names(arguments.evaluations)
        if len(set(names)) < len(names):
            raise ValueError(f"expected different folders, got {', '.join(names)}.")
        runs = {name: read_evaluation(folder) for name, folder in zip(names, arguments.evaluations, strict=True)}
        check_same_data(runs)
        with new_folder(arguments.output) as folder:
            write_comparison(folder, runs, arguments.resamples, arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")


if __name__ == "__main__":
    main()
