"""Tests over seeds and images: by hand, beside scipy's where there is one factor, and how often they are wrong."""

import numpy as np
import pytest
from scipy import stats

from megl.evaluation import bootstrap
from studies.random_effects import contrast, estimate, holm


def parts(values):
    """Figures that are means over images, `(seeds,)`, and the influences of the images."""
    figures = values.mean(axis=1)
    return figures, (values - figures[:, None]) / values.shape[1]


def test_estimate_by_hand():
    # Mean squares: seeds 2 * (1/4² + 1/4²), images the same, and a rest of 4 * 1/4².
    found = estimate(*parts(np.array([[0.0, 1], [0, 0]])))
    assert (found.mean, found.seeds) == (0.25, 2)
    assert found.error == pytest.approx(np.sqrt((1 / 4 + 0) / 4))
    assert found.freedom == pytest.approx((5 / 4) ** 2 / ((5 / 4) ** 2 + 2 / 4**2))
    low, high = found.interval()
    assert low == pytest.approx(0.5 - high) and found.p(low) == pytest.approx(0.05) == found.p(high)


def test_one_factor_is_the_t_test():
    rng = np.random.default_rng(0)
    images = rng.normal(0.1, 1, (1, 50))
    expected = stats.ttest_1samp(images[0], 0)
    found = estimate(*parts(images))
    assert found.p() == pytest.approx(expected.pvalue) and found.freedom == 49 and found.seeds == 1
    assert found.interval() == pytest.approx(list(expected.confidence_interval(0.95)))
    # Several seeds that agree on every image say no more than one.
    several = estimate(*parts(np.repeat(images, 3, axis=0)))
    assert several.p() == pytest.approx(expected.pvalue) and several.seeds == 3

    seeds = rng.normal(0.5, 1, (4, 1))  # images that are all alike
    expected = stats.ttest_1samp(seeds[:, 0], 0)
    found = estimate(*parts(np.repeat(seeds, 30, axis=1)))
    assert found.p() == pytest.approx(expected.pvalue) and found.freedom == pytest.approx(3)
    assert found.interval() == pytest.approx(list(expected.confidence_interval(0.95)))


def test_nothing_varies_and_images_that_do_not_count():
    for seeds in (1, 2, 3):
        assert estimate(np.ones(seeds), np.zeros((seeds, 4))) is None
        alike = estimate(np.zeros(seeds), np.zeros((seeds, 4)))
        assert alike.interval() == [0, 0] and alike.p() == alike.p(-0.1) == 1
    values = np.array([[0.2, 0.4, 0.9], [0.1, 0.5, 0.3]])
    figures, influences = parts(values)
    padded = np.full((2, 5), np.nan)
    padded[:, [0, 2, 3]] = influences
    assert estimate(figures, padded) == estimate(figures, influences)
    assert estimate(figures, padded[:, :2]) is None and estimate(figures, padded[:, [1, 4]]) is None
    sums = contrast(np.array([np.nan, np.nan, 1]), np.array([np.nan, 2, 3]), (2, -1))
    np.testing.assert_array_equal(sums, [np.nan, -2, -1])


def runs(rng, of_seeds, seeds=3, images=400):
    """Whether each image is rightly classified, by two methods that are equally good, `(2, seeds, images)`."""
    hardness, taste = rng.normal(0, 1, images), rng.normal(0, 0.7, (2, 1, images))
    luck, noise = rng.normal(0, of_seeds, (2, seeds, 1)), rng.normal(0, 1, (2, seeds, images))
    return (0.5 + hardness + taste + luck + noise > 0).astype(float)


@pytest.mark.parametrize("of_seeds", [0, 0.1, 0.2, 0.4, 1])
def test_equal_methods_differ_as_often_as_is_said(of_seeds):
    """
    Three seeds and 400 images, from seeds that do not vary to such as vary far more than images: of the variance of a
    difference 0, a fifth, a half, 0.8 and 0.96 come from them.
    """
    rng = np.random.default_rng(7)
    found = []
    for _ in range(1500):
        (figures, moved), (others, others_moved) = map(parts, runs(rng, of_seeds))
        found.append(estimate(figures - others, contrast(moved, others_moved)).p() < 0.05)
    assert 0.035 <= np.mean(found) <= 0.065


def test_a_difference_is_seen():
    """Not by never finding any: 14 points."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        first, second = runs(rng, 0.05)
        (figures, moved), (others, others_moved) = parts(np.maximum(first, rng.random(400) < 0.4)), parts(second)
        found.append(estimate(figures - others, contrast(moved, others_moved)).p() < 0.05)
    assert np.mean(found) > 0.95


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1] and holm([0.03]) == [0.03] and holm([]) == []


# ---- What each image does to a figure ----


def make_items(count, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        lengths, counts = rng.integers([4, 9], [9, 14]), rng.integers(1, 5, size=(4, 2)).cumsum(axis=1)
        item = {"id": f"i{number}", "label": "a", "prediction": str(rng.choice(["a", "b"])), "group": "xy"[number % 2]}
        score = None if rng.random() < 0.2 else float(rng.random())
        item["bleu_statistics"] = [*lengths.tolist(), *counts.ravel().tolist()]
        items.append({**item, "per_item": {"saliency.iou": score}})
    return items


def test_influences_are_what_a_figure_loses_without_the_item():
    items = make_items(12)
    whole = bootstrap.point_figures(items)
    found = bootstrap.influences(items)
    assert {("accuracy",), ("accuracy_by_group", "x"), ("saliency", "iou"), ("rationale", "bleu_4")} <= set(found)
    assert ("worst_group_accuracy",) not in found
    for path, values in found.items():
        assert np.nansum(values) == pytest.approx(0, abs=1e-12)
        counting = np.flatnonzero(~np.isnan(values))
        left = [bootstrap.point_figures(items[:i] + items[i + 1 :])[path] for i in counting]
        lost = whole[path] - np.array(left)
        share = (len(counting) - 1) / len(counting)
        np.testing.assert_allclose(values[counting], (lost - lost.mean()) * share, atol=1e-12)


def test_influences_give_the_variance_that_resampling_gives():
    items = make_items(150)
    (resampled,) = bootstrap.resampled_figures([items], 1500, seed=0)
    found = bootstrap.influences(items)
    for path in (("accuracy",), ("saliency", "iou"), ("rationale", "bleu_4"), ("accuracy_by_group", "y")):
        assert np.sqrt(np.nansum(found[path] ** 2)) == pytest.approx(np.nanstd(resampled[path]), rel=0.1)


def test_items_without_references_do_not_count():
    items = make_items(10)
    silent = {**items[0], "id": "silent", "bleu_statistics": [0] * 10, "per_item": {"saliency.iou": None}}
    absent = {**silent, "id": "absent", "bleu_statistics": None}
    found, expected = bootstrap.influences([*items, silent, absent]), bootstrap.influences(items)
    for path in (("rationale", "bleu_4"), ("saliency", "iou")):
        np.testing.assert_allclose(found[path], [*expected[path], np.nan, np.nan])
    both = [silent, {**silent, "id": "too"}]
    assert not {("rationale", "bleu_4"), ("saliency", "iou")} & set(bootstrap.influences(both))
    assert ("rationale", "bleu_4") not in bootstrap.point_figures(both)
    assert bootstrap.point_figures([*items, silent])["rationale", "bleu_4"] == pytest.approx(
        bootstrap.point_figures(items)["rationale", "bleu_4"]
    )
