"""Measures the CIDEr of `metrics/rationale` against that of pycocoevalcap, in turns on the same captions.

```
pip install pycocoevalcap
python scripts/benchmark_captions.py --items 2000 --references 5
```
"""

import argparse
import statistics
import sys
import time

import evaluate
import numpy as np

from bootstrap import METRICS


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--references", type=int, default=5, help="of each item")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs, after one warm-up")
    return parser.parse_args()


def compare_cider(items, references, repeats):
    """
    Seconds of this project's CIDEr and of pycocoevalcap's, over the same random captions of 6 to 16 tokens.

    Returns:
        `list[tuple[float, float]]`: a pair for each repeat.
    """
    from pycocoevalcap.cider.cider import Cider

    functions = sys.modules[type(evaluate.load(str(METRICS / "rationale"))).__module__]
    rng = np.random.default_rng(0)
    # Like words, the k-th commonest of them is drawn in proportion to 1 / k.
    words, shares = [f"w{k}" for k in range(2000)], 1 / np.arange(1, 2001)

    def caption():
        return rng.choice(words, size=rng.integers(6, 17), p=shares / shares.sum()).tolist()

    targets = [[caption() for _ in range(references)] for _ in range(items)]
    # A prediction is the first half of a reference with other words after it, so that orders 1 to 4 all match.
    hypotheses = [several[0][: len(several[0]) // 2] + caption()[:6] for several in targets]
    in_coco_form = functions.coco_form(hypotheses, targets)

    def ours():
        return functions.cider(hypotheses, targets)

    def theirs():
        return Cider().compute_score(*in_coco_form)[1]

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-6)  # also the warm-up
    return [(seconds(ours), seconds(theirs)) for _ in range(repeats)]


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    arguments = parse_arguments()
    try:
        pairs = compare_cider(arguments.items, arguments.references, arguments.repeats)
    except ImportError as error:
        sys.exit(f"benchmark_captions: it compares with pycocoevalcap: `pip install pycocoevalcap` ({error})")
    ratios = [first / second for first, second in pairs]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"CIDEr of {arguments.items} items with {arguments.references} references each: {first:.2f} s, "
        f"pycocoevalcap's {second:.2f} s; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs in turns)"
    )


if __name__ == "__main__":
    main()
