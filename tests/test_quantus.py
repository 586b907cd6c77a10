"""The scores that Quantus has too are its own. Skipped without it: `pip install quantus`, in no extra."""

import numpy as np
import pytest


quantus = pytest.importorskip("quantus", reason="quantus is not installed: pip install quantus")


def unlike_maps(count, size):
    """Maps without two equal pixels, from even to sparse, and masks."""
    rng = np.random.default_rng(0)
    maps = rng.permuted(np.tile(np.arange(size * size), (count, 1)), axis=1) / size**2
    maps **= np.linspace(0.5, 3, count)[:, None]
    return maps.reshape(count, size, size).astype(np.float32), rng.random((count, size, size)) > 0.7


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("energy", "RelevanceMassAccuracy"),
        ("relevance_rank_accuracy", "RelevanceRankAccuracy"),
        ("sparseness", "Sparseness"),
    ],
)
def test_scores_of_maps(load, name, theirs):
    maps, masks = unlike_maps(7, 12)
    metric = getattr(quantus, theirs)(disable_warnings=True)
    inputs = {"x_batch": np.zeros((7, 1, 12, 12)), "y_batch": np.zeros(7, dtype=int), "s_batch": masks[:, None]}
    expected = metric(model=None, a_batch=maps[:, None].astype(float), **inputs)
    found = load("saliency").compute(predictions=maps, references=masks.astype(float), per_item=True)["per_item"]
    assert found[name] == pytest.approx(expected, abs=1e-6) and np.std(expected) > 1e-3
