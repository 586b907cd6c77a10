"""Measures metrics against what they are compared with, in turns on the same items.

`saliency` against a loop over the items, as evaluation code of explanation guidance is often written, and the CIDEr of
`rationale` against that of pycocoevalcap.

```
pip install pycocoevalcap
python -m benchmarks.metrics
```
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from megl.evaluation.metrics import load


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=1000, help="of 14 x 14 cells, with masks of 224 x 224 pixels")
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--references", type=int, default=5, help="of each caption")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs, after one warm-up")
    return parser.parse_args()


def compare_saliency(items, repeats, size=224):
    """Seconds of `metrics/saliency` through `evaluate`, and of [`score_map`] in a loop, a pair for each repeat."""
    rng = np.random.default_rng(0)
    maps = rng.random((items, 14, 14), dtype=np.float32)
    masks = (rng.random((items, size, size)) > 0.7).astype(np.float32)
    metric = load("saliency")

    def ours():
        return metric.compute(predictions=maps, references=masks)

    def theirs():
        rows = [
            score_map(torch.from_numpy(one), torch.from_numpy(mask)) for one, mask in zip(maps, masks, strict=True)
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    found = ours()
    for name, value in theirs().items():  # also the warm-up
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    return [(seconds(ours), seconds(theirs)) for _ in range(repeats)]


def score_map(saliency, mask):
    """The scores of one map, each written out in torch."""
    saliency = F.interpolate(saliency[None, None], size=mask.shape, mode="bilinear", align_corners=False)[0, 0]
    saliency = (saliency / saliency.max()).double()
    inside = mask > 0.5
    chosen = saliency > 0.5
    hits = (chosen & inside).sum().item()
    precision, recall = hits / chosen.sum().item(), hits / inside.sum().item()
    standardized = (saliency - saliency.mean()) / saliency.std(correction=0)
    density, target = saliency / saliency.sum(), mask.double() / mask.sum()
    outside = saliency[~inside].sort().values
    below, up_to = (
        torch.searchsorted(outside, saliency[inside], right=right).double().mean() for right in (False, True)
    )
    most_salient = saliency.flatten().topk(inside.sum()).indices
    in_order = saliency.flatten().sort().values
    weights = 2.0 * torch.arange(1, len(in_order) + 1).double() - len(in_order) - 1
    return {
        "iou": hits / (chosen | inside).sum().item(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "energy": (saliency[inside].sum() / saliency.sum()).item(),
        "pointing_game": inside.flatten()[saliency.argmax()].item(),
        "mae": (saliency - mask).abs().mean().item(),
        "nss": standardized[inside].mean().item(),
        "cc": torch.corrcoef(torch.stack([saliency.flatten(), mask.double().flatten()]))[0, 1].item(),
        "kl": (target * torch.log(2.2e-16 + target / (density + 2.2e-16))).sum().item(),
        "auc": ((below + up_to) / 2 / len(outside)).item(),
        "relevance_rank_accuracy": inside.flatten()[most_salient].double().mean().item(),
        "sparseness": (weights @ in_order / (in_order.sum() * len(in_order))).item(),
    }


def compare_cider(items, references, repeats):
    """
    Seconds of this project's CIDEr and of pycocoevalcap's, over the same random captions of 6 to 16 tokens.

    Returns:
        `list[tuple[float, float]]`: a pair for each repeat.
    """
    from pycocoevalcap.cider.cider import Cider

    functions = sys.modules[type(load("rationale")).__module__]
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


def line(subject, pairs):
    ratios = [first / second for first, second in pairs]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return (
        f"{subject}: {first:.2f} s against {second:.2f} s; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} pairs in turns)"
    )


def main():
    arguments = parse_arguments()
    pairs = compare_saliency(arguments.maps, arguments.repeats)
    print(line(f"saliency of {arguments.maps} maps, against a loop", pairs))
    try:
        pairs = compare_cider(arguments.captions, arguments.references, arguments.repeats)
    except ImportError as error:
        sys.exit(f"benchmark_metrics: it compares with pycocoevalcap: `pip install pycocoevalcap` ({error})")
    print(line(f"CIDEr of {arguments.captions} captions, against pycocoevalcap's", pairs))


if __name__ == "__main__":
    main()
