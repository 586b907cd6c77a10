import doctest
import io
import math
import unicodedata
from itertools import pairwise
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from metric_modules import (
    CLIP,
    PTB_TOKENS,
    REFERENCES,
    TEXTS,
    clip_images,
    direct_embeddings,
    module_of,
    needs_golden,
    read_golden,
)
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]


def random_maps(count, height=8, width=8):
    rng = np.random.default_rng(0)
    return rng.random((count, height, width)), (rng.random((count, height, width)) > 0.6).astype(float)


# saliency


@pytest.fixture
def saliency(load):
    return load("saliency")


def test_saliency_hand_computed(saliency):
    maps = [[[0.8, 0.6, 0.0], [0.2, 0.4, 0.0]]]
    masks = [[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]
    results = saliency.compute(predictions=maps, references=masks)
    # divided by 0.8: 1, 0.75, 0, 0.25, 0.5, 0; chosen: the first two; inside: the second and the fourth
    expected = {"iou": 1 / 3, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "energy": 0.8 / 2.0}
    expected |= {"pointing_game": 0, "mae": (1 + 0.25 + 0 + 0.75 + 0.5 + 0) / 6, "n": 1, "n_undefined": 0}
    # mean 5/12, so the centred map is 7/12, 4/12, -5/12, -2/12, 1/12, -5/12, and its variance 120/144/6
    deviation = math.sqrt(120 / 144 / 6)
    expected |= {"nss": (4 - 2) / 12 / 2 / deviation, "cc": 2 / 12 / 6 / deviation / math.sqrt(2 / 9)}
    expected["kl"] = 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.1)
    # 0.75 exceeds three of the four outside, 0.25 two
    expected["auc"] = (3 + 2) / 8
    # Two are inside, and of the two most salient ones one is. Sorted: 0, 0, 0.25, 0.5, 0.75, 1, whose sum is 2.5.
    expected["relevance_rank_accuracy"] = 1 / 2
    expected["sparseness"] = (-1 * 0.25 + 1 * 0.5 + 3 * 0.75 + 5 * 1) / (6 * 2.5)
    assert results == pytest.approx(expected | {"threshold": 0.5}, abs=1e-6)


def test_saliency_threshold(saliency):
    maps = [[[1.0, 0.6, 0.2]]]
    masks = [[[1.0, 1.0, 0.0]]]
    for threshold, iou in [(0.1, 2 / 3), (0.5, 1.0), (0.8, 0.5)]:
        assert saliency.compute(predictions=maps, references=masks, threshold=threshold)["iou"] == pytest.approx(iou)


def test_saliency_thresholds_of_maps_and_of_the_data(saliency):
    maps = [[[1.0, 0.59, 0.2, 0.01]], [[1.0, 0.2, 0.1, 0.1]]]
    masks = [[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0, 0.0]]]
    results = saliency.compute(predictions=maps, references=masks, threshold="adaptive", per_item=True)
    # 0.9 and 0.7: one pixel each
    assert results["per_item"]["iou"] == [1.0, 0.5] and results["threshold"] == pytest.approx(0.8)
    results = saliency.compute(predictions=maps, references=masks, threshold="best", per_item=True)
    # at 0.15: 1/3 and 1; at 0.25 to 0.55: 1/2 and 1/2; from 0.6: 1 and 1/2
    assert results["per_item"]["iou"] == [1.0, 0.5] and results["threshold"] == pytest.approx(0.6)
    assert results["precision"] == 1.0 and results["recall"] == 0.75
    constant = saliency.compute(predictions=[[[0.5, 0.5]]], references=[[[1.0, 0.0]]], threshold="adaptive")
    assert constant["iou"] == 0.5 and constant["threshold"] == 0.99


def plain_nss_cc_kl_auc(one_map, mask):
    """The definitions of the saliency benchmarks, one item and one threshold at a time."""
    inside = mask > 0.5
    nss = ((one_map - one_map.mean()) / one_map.std())[inside].mean()
    cc = np.corrcoef(one_map.ravel(), mask.ravel())[0, 1]
    p, q = one_map / one_map.sum(), mask / mask.sum()
    eps = np.finfo(float).eps
    kl = (q * np.log(eps + q / (p + eps))).sum()
    thresholds = sorted({*one_map.ravel(), np.inf}, reverse=True)
    points = [((one_map[~inside] >= v).mean(), (one_map[inside] >= v).mean()) for v in thresholds]
    auc = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))
    return {"nss": nss, "cc": cc, "kl": kl, "auc": auc}


def test_saliency_benchmarks_scores_equal_their_definitions(saliency):
    maps, masks = random_maps(6)
    masks[3:] *= np.random.default_rng(1).random((3, 8, 8))  # soft masks
    maps, masks = maps.astype(np.float32).astype(float), masks.astype(np.float32).astype(float)
    found = saliency.compute(predictions=maps, references=masks, per_item=True)["per_item"]
    for index, (one_map, mask) in enumerate(zip(maps, masks, strict=True)):
        for name, value in plain_nss_cc_kl_auc(one_map, mask).items():
            assert found[name][index] == pytest.approx(value, rel=1e-9), name


def test_saliency_auc_is_near_the_one_with_corners_inside_only(saliency):
    """The benchmarks' code, with the noise that tells equal values apart."""
    rng = np.random.default_rng(0)
    one_map, mask = rng.integers(0, 9, (60, 60)) / 9, (rng.random((60, 60)) > 0.6).astype(float)
    noisy, inside = one_map + 1e-6 * rng.random((60, 60)), mask > 0.5
    points = [(0.0, 0.0)]
    for count, value in enumerate(sorted(noisy[inside], reverse=True), start=1):
        points.append(((noisy[~inside] >= value).mean(), count / inside.sum()))
    points.append((1.0, 1.0))
    auc = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))
    assert saliency.compute(predictions=[one_map], references=[mask])["auc"] == pytest.approx(auc, abs=5e-3)


def test_saliency_benchmarks_scores_at_their_ends(saliency):
    masks = np.zeros((1, 4, 4))
    masks[:, 1:3, 1:3] = 1
    perfect = saliency.compute(predictions=masks, references=masks)
    assert [perfect[name] for name in ("nss", "cc", "kl", "auc")] == pytest.approx([math.sqrt(3), 1, 0, 1])
    opposite = saliency.compute(predictions=1 - masks, references=masks)
    assert [opposite[name] for name in ("nss", "cc", "auc")] == pytest.approx([-math.sqrt(3), -1, 0])
    assert opposite["kl"] > 30
    # A zero map says no more than a constant one.
    for value in (0.0, 0.7):
        chance = saliency.compute(predictions=np.full((1, 4, 4), value), references=masks)
        found = [chance[name] for name in ("nss", "cc", "kl", "auc", "sparseness")]
        assert found == pytest.approx([0, 0, math.log(4), 0.5, 0])
    # Of a mask without outside neither correlation nor curve are defined, and the means are of the other item.
    both = saliency.compute(predictions=[masks[0]] * 2, references=[masks[0], np.ones((4, 4))], per_item=True)
    assert both["per_item"]["cc"] == [pytest.approx(1), None] and both["per_item"]["auc"] == [1.0, None]
    assert (both["cc"], both["auc"], both["n"], both["n_undefined"]) == (pytest.approx(1), 1.0, 2, 1)


def test_saliency_equals_the_loop_that_it_is_timed_against(monkeypatch):
    from benchmarks.metrics import compare_saliency

    pairs = compare_saliency(items=5, repeats=2, size=28)  # compares their scores first
    assert len(pairs) == 2 and all(seconds > 0 for pair in pairs for seconds in pair)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float16])
def test_saliency_takes_masks_of_zeros_and_ones_of_any_type(saliency, kind):
    maps, masks = random_maps(3)
    results = saliency.compute(predictions=maps, references=masks)
    assert saliency.compute(predictions=maps, references=masks.astype(kind)) == results
    assert saliency.compute(predictions=maps, references=masks.astype(kind).tolist()) == results


def test_saliency_perfect_and_disjoint(saliency):
    _, masks = random_maps(3)
    higher_is_better = ["iou", "precision", "recall", "f1", "energy", "pointing_game", "relevance_rank_accuracy"]
    perfect = saliency.compute(predictions=masks, references=masks)
    disjoint = saliency.compute(predictions=1 - masks, references=masks)
    assert all(perfect[name] == 1 for name in higher_is_better) and perfect["mae"] == 0
    assert all(disjoint[name] == 0 for name in higher_is_better) and disjoint["mae"] == 1


def test_saliency_invariances(saliency):
    maps, masks = random_maps(6)
    results = saliency.compute(predictions=maps, references=masks)
    order = [3, 1, 5, 0, 4, 2]
    assert saliency.compute(predictions=maps[order], references=masks[order]) == pytest.approx(results)
    assert saliency.compute(predictions=maps * 0.25, references=masks) == pytest.approx(results)
    enlarged = [array.repeat(3, axis=1).repeat(2, axis=2) for array in (maps, masks)]
    assert saliency.compute(predictions=enlarged[0], references=enlarged[1]) == pytest.approx(results, abs=1e-6)


@pytest.mark.parametrize("shape", [(13, 20), (3, 4), (7, 9), (28, 2)])
def test_saliency_resizes_as_torch_does(saliency, shape):
    maps, _ = random_maps(4, 7, 5)
    _, masks = random_maps(4, *shape)
    resized = torch.nn.functional.interpolate(
        torch.tensor(maps)[:, None], size=shape, mode="bilinear", align_corners=False
    )[:, 0]
    results = saliency.compute(predictions=maps, references=masks)
    assert saliency.compute(predictions=resized.numpy(), references=masks) == pytest.approx(results, abs=1e-6)


def test_saliency_mixed_sizes_equal_one_at_a_time(saliency):
    pairs = [random_maps(1, 4, 4), random_maps(1, 6, 3), random_maps(1, 4, 4)]
    masks = [random_maps(1, 9, 9)[1][0], random_maps(1, 6, 3)[1][0], random_maps(1, 5, 8)[1][0]]
    maps = [pair[0][0] for pair in pairs]
    together = saliency.compute(predictions=maps, references=masks, per_item=True)["per_item"]
    for index, (one_map, mask) in enumerate(zip(maps, masks, strict=True)):
        alone = saliency.compute(predictions=[one_map.tolist()], references=[mask.tolist()])
        assert {name: values[index] for name, values in together.items()} == pytest.approx(
            {name: alone[name] for name in together}
        )


def test_saliency_undefined_items(saliency):
    half = [[1.0, 0.0, 0.0, 0.0]]
    zero = [[0.0, 0.0, 0.0, 0.0]]
    results = saliency.compute(
        predictions=[half, zero, half, zero], references=[half, half, zero, zero], per_item=True
    )
    assert (results["n"], results["n_undefined"]) == (2, 3)
    assert results["per_item"]["iou"] == [1.0, 0.0, None, None]
    assert results["per_item"]["pointing_game"] == [1.0, 0.0, None, None]
    assert results["per_item"]["mae"] == [0.0, 0.25, None, None]
    assert results["energy"] == 0.5

    nothing = saliency.compute(predictions=[half], references=[zero])
    assert nothing["iou"] is None and (nothing["n"], nothing["n_undefined"]) == (0, 1)


def test_saliency_undefined_for_the_benchmarks_scores(saliency):
    half, full = [[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 1.0]]
    soft = [[0.9, 0.6, 0.6, 0.6]]  # all inside, but not constant
    results = saliency.compute(
        predictions=[half, full, half, half], references=[half, half, full, soft], per_item=True
    )
    assert (results["n"], results["n_undefined"]) == (4, 3)
    found = results["per_item"]
    assert found["nss"] == [pytest.approx(math.sqrt(3)), 0.0, None, None] and found["auc"] == [1.0, 0.5, None, None]
    assert found["cc"] == [pytest.approx(1), 0.0, None, pytest.approx(1)] and None not in found["kl"]
    assert results["nss"] == pytest.approx(math.sqrt(3) / 2) and results["auc"] == 0.75


def test_saliency_map_that_is_zero_where_labelled_is_a_zero_map(saliency):
    results = saliency.compute(predictions=[[[1.0, 0.0, 0.0]]], references=[[[0.0, 1.0, -1.0]]], signed=True)
    assert (results["n"], results["n_undefined"]) == (1, 1)
    assert [results[name] for name in ("pointing_game", "energy", "iou", "nss", "cc", "auc")] == [0, 0, 0, 0, 0, 0.5]
    assert results["kl"] == pytest.approx(math.log(2))


def test_saliency_of_values_that_rounding_made_negative(saliency):
    exact = saliency.compute(predictions=[[[1.0, 0.0]]], references=[[[0.0, 1.0]]])
    rounded = saliency.compute(predictions=[[[1.0, -1e-7]]], references=[[[-1e-7, 1.0]]])
    assert rounded == pytest.approx(exact) and exact["kl"] > 30


def test_saliency_auc_takes_equals_for_equals_after_resizing(saliency):
    """Rounding in the resizing must not tell the pixels of a plateau apart."""
    rng = np.random.default_rng(0)
    maps, masks = (rng.random((4, 12, 15)) > 0.5).astype(float), (rng.random((4, 97, 101)) > 0.5).astype(float)
    resized = torch.nn.functional.interpolate(torch.tensor(maps)[:, None], size=(97, 101), mode="bilinear")[:, 0]
    plateaus = resized.numpy().round(9)  # what rounding told apart is the same again
    expected = [plain_nss_cc_kl_auc(one, mask)["auc"] for one, mask in zip(plateaus, masks, strict=True)]
    found = saliency.compute(predictions=maps, references=masks, per_item=True)["per_item"]["auc"]
    assert found == pytest.approx(expected, rel=1e-9)


def test_saliency_pointing_game_tolerance_and_ties(saliency):
    maps = [[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    masks = [[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    for tolerance, hit in [(0, 0), (1.9, 0), (2, 1)]:
        assert saliency.compute(predictions=maps, references=masks, tolerance=tolerance)["pointing_game"] == hit
    constant = [[[1.0, 1.0]], [[1.0, 1.0]]]
    ties = saliency.compute(predictions=constant, references=[[[1.0, 0.0]], [[0.0, 1.0]]], per_item=True)
    assert ties["per_item"]["pointing_game"] == [1.0, 0.0]


@pytest.mark.parametrize(
    "one_map, mask, expected",
    [
        ([0.9, 0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0, 0], (1 + 1 / 3) / 2),  # one of three equals, one of them inside
        ([0.9, 0.5, 0.5, 0.5, 0.1], [0, 1, 1, 0, 1], (0 + 2 * 2 / 3) / 3),
        ([0.9, 0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0], (1 + 1 / 4) / 2),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1, 1, 0, 0, 0], 2 / 5),
        ([0.0, 0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0, 0], 0),
        ([0.0, 0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1, 1], 1),
    ],
)
def test_saliency_rank_accuracy_where_pixels_are_equal(saliency, one_map, mask, expected):
    results = saliency.compute(predictions=[[one_map]], references=[[np.array(mask, dtype=float).tolist()]])
    assert results["relevance_rank_accuracy"] == pytest.approx(expected)


def test_saliency_sparseness_at_its_ends(saliency):
    mask = [[1.0] + [0.0] * 9]
    # One of ten has everything: (2 * 10 - 10 - 1) / 10.
    assert saliency.compute(predictions=[mask], references=[mask])["sparseness"] == pytest.approx(0.9)
    assert saliency.compute(predictions=[[[0.2] * 10]], references=[mask])["sparseness"] == pytest.approx(0)


def test_saliency_signed_masks_leave_unlabelled_pixels_out(saliency):
    maps = [[[1.0, 0.8, 0.6, 0.0]]]
    results = saliency.compute(predictions=maps, references=[[[0.0, 1.0, -1.0, -1.0]]], signed=True)
    assert results["precision"] == 0.5 and results["recall"] == 1 and results["iou"] == 0.5
    assert results["energy"] == pytest.approx(0.8 / 1.4) and results["mae"] == pytest.approx((0.2 + 0.6) / 3)
    assert results["pointing_game"] == 1 and results["relevance_rank_accuracy"] == 1
    assert results["sparseness"] == pytest.approx((0 * 0.6 + 2 * 0.8) / (3 * 1.4))  # of 0, 0.6 and 0.8


def test_saliency_add_batch(saliency):
    maps, masks = random_maps(5)
    results = saliency.compute(predictions=maps, references=masks)
    saliency.add_batch(predictions=maps[:2], references=masks[:2])
    saliency.add_batch(predictions=maps[2:], references=masks[2:])
    assert saliency.compute() == pytest.approx(results)


def test_saliency_leaves_its_input_unchanged(saliency):
    maps, masks = random_maps(2)
    before = maps.copy(), masks.copy()
    saliency.compute(predictions=maps, references=masks)
    assert np.array_equal(maps, before[0]) and np.array_equal(masks, before[1])


GOOD = [[1.0, 0.0]]


@pytest.mark.parametrize(
    "maps, masks, arguments, message",
    [
        ([GOOD, [[1.0], [0.5, 0.5]]], [GOOD, GOOD], {}, r"`predictions\[1\]` must have rows of one length.*1, 2"),
        ([GOOD, []], [GOOD, GOOD], {}, r"`predictions\[1\]` must be a map of shape .*got an empty one"),
        ([GOOD, [[float("nan")]]], [GOOD, GOOD], {}, r"`predictions\[1\]` must have finite values"),
        ([[[-0.5]]], [GOOD], {}, r"`predictions\[0\]` must have values in \[0, 1\], got values from -0.5"),
        ([GOOD], [[[255.0]]], {}, r"`references\[0\]` must have values in \[0, 1\], got values from 255"),
        ([GOOD], [[[-1.0, 1.0]]], {}, r"`references\[0\]` must have values in \[0, 1\]"),
        ([GOOD], [[[-2.0, 1.0]]], {"signed": True}, r"`references\[0\]` must have values in \[-1, 1\]"),
        ([GOOD], [GOOD], {"threshold": 1}, r"`threshold` must be 'adaptive', 'best' or in \[0, 1\), got 1"),
        ([GOOD], [GOOD], {"threshold": "otsu"}, "`threshold` must be 'adaptive', 'best' or .*, got 'otsu'"),
        ([GOOD], [GOOD], {"tolerance": -1}, "`tolerance` must be 0 or more pixels, got -1"),
        ([GOOD, GOOD], [GOOD], {}, r"Mismatch in the number of predictions \(2\) and references \(1\)"),
        (np.ones((2, 1, 3, 3)), np.ones((2, 3, 3)), {}, "don't match the expected format"),
    ],
)
def test_saliency_bad_inputs(saliency, maps, masks, arguments, message):
    with pytest.raises(ValueError, match=message):
        saliency.compute(predictions=maps, references=masks, **arguments)


@needs_golden
@pytest.mark.golden
def test_saliency_golden(saliency):
    golden = read_golden("guidance.json")
    maps, masks, signed_masks = golden["maps"], golden["mask"], golden["res"]["signed_labels"]
    signed = saliency.compute(predictions=maps, references=signed_masks, signed=True, per_item=True)["per_item"]
    ours = np.array([signed["precision"], signed["recall"], signed["f1"]]).T
    expected = golden["res_metrics_at_0.5"]
    np.testing.assert_allclose(ours, expected["precision_recall_f1_on_signed_labels"], rtol=1e-4)
    plain = saliency.compute(predictions=maps, references=masks, per_item=True)["per_item"]
    np.testing.assert_allclose(plain["iou"], expected["iou_on_mask"], rtol=1e-4)

    expected = golden["model_guidance_metrics"]
    np.testing.assert_allclose(plain["energy"], expected["energy_pointing_game"], rtol=1e-4)
    np.testing.assert_allclose(plain["mae"], golden["model_guidance_losses_per_map"]["L1"], rtol=1e-4)
    maps = np.array(maps)
    lowest, highest = (bound(axis=(1, 2), keepdims=True) for bound in (maps.min, maps.max))
    stretched = saliency.compute(predictions=(maps - lowest) / (highest - lowest), references=masks, per_item=True)[
        "per_item"
    ]
    np.testing.assert_allclose(stretched["iou"], expected["iou_of_minmax_scaled_map_at_0.5"], rtol=1e-4)


# rationale


def test_rationale_hand_computed(rationale):
    results = rationale.compute(predictions=["a b c d"], references=[["a b c e"]])
    assert results["bleu_1"] == pytest.approx(3 / 4)
    assert results["bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert results["bleu_3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert results["bleu_4"] == pytest.approx(0, abs=1e-3)
    assert results["rouge_l"] == pytest.approx(3 / 4)
    assert results["cider"] == 0  # every document frequency is that of the whole corpus
    short = rationale.compute(predictions=["a b"], references=[["a b c d", "x y z x y z"]])
    assert short["bleu_1"] == pytest.approx(math.exp(1 - 4 / 2))
    assert short["rouge_l"] == pytest.approx((1 + 1.44) * 0.5 / (0.5 + 1.44))


def test_rationale_cider_hand_computed(rationale):
    results = rationale.compute(predictions=["a", "c"], references=[["a b"], ["c"]], per_item=True)
    # item 0, words: log(2)^2 / (log(2) * log(2) sqrt(2)); one bigram less; the other three orders are empty
    expected = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert results["per_item"]["cider"] == pytest.approx([expected, 10 / 4])


def test_rationale_perfect_disjoint_and_order(rationale):
    texts = ["the owl sits at the upper left", "a red apple lies there in the centre"]
    perfect = rationale.compute(predictions=texts, references=[[text] for text in texts])
    assert [perfect[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert perfect["rouge_l"] == pytest.approx(1) and perfect["cider"] == pytest.approx(10)
    disjoint = rationale.compute(predictions=["x y z w", ""], references=[[text] for text in texts])
    assert [disjoint[name] for name in ("bleu_1", "bleu_4", "rouge_l", "cider")] == [0] * 4

    predictions = ["the owl at the left", "a green apple in the centre"]
    forward = rationale.compute(predictions=predictions, references=[[text] for text in texts])
    backward = rationale.compute(predictions=predictions[::-1], references=[[text] for text in texts[::-1]])
    assert forward.pop("absent") == backward.pop("absent")
    assert forward == pytest.approx(backward)


def test_rationale_empty_texts_score_zero(rationale):
    results = rationale.compute(predictions=["", "..."], references=[["..."], ["a"]])
    assert [results[name] for name in ("bleu_1", "bleu_4", "rouge_l", "cider")] == [0] * 4
    assert rationale.compute(predictions=[], references=[])["n"] == 0


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("The owl, at (upper) left.", "the owl at -lrb- upper -rrb- left"),
        ("It's “red-brown”; they don't can't.", "it 's red-brown they do n't ca n't"),
        ("Mr. Fox cannot see 1,000 dogs' 3.5 bones...", "mr. fox can not see 1,000 dogs 3.5 bones"),
        ("a black/white o'clock -- wow!", "a black/white o'clock wow"),
        ("two\nlines", "two lines"),
    ],
)
def test_rationale_tokens(rationale, text, tokens):
    assert " ".join(module_of(rationale).tokenize(text)) == tokens


PLACES = {"place": ["upper centre", "centre", "upper left"]}


@pytest.mark.parametrize(
    "prediction, references, hit",
    [
        ("at the upper centre", ["in the centre"], 0),
        ("at the centre", ["in the Centre."], 1),
        ("at the upper-left!", ["at the upper left", "centre"], 1),
        ("at the upper left, not the centre", ["in the centre"], 0),
        ("epicentre", ["in the centre"], 0),
        ("", ["in the centre"], 0),
        ("at the centre", ["epicentre"], None),
    ],
)
def test_rationale_phrases(rationale, prediction, references, hit):
    results = rationale.compute(predictions=[prediction], references=[references], phrases=PLACES, per_item=True)
    assert (results["place_accuracy"], results["place_n"]) == (hit, int(hit is not None))
    assert results["per_item"]["place_accuracy"] == [hit]


@pytest.mark.parametrize("kind", PTB_TOKENS)
def test_rationale_tokens_are_those_of_the_reference(rationale, kind):
    tokenize = module_of(rationale).tokenize
    for text, tokens in PTB_TOKENS[kind].items():
        assert " ".join(tokenize(text)) == tokens, text


@pytest.mark.parametrize(
    "prediction, reference",
    [
        ("हिन्दी वाक्य", "मीठी किताब"),
        ("தமிழ் மொழி", "சிறிய வீடு"),
        ("שָׁלוֹם", "עֲלֵיכֶם"),
        (unicodedata.normalize("NFD", "café noir"), unicodedata.normalize("NFD", "été froid")),
        ("C++ x", "C# y"),
    ],
)
def test_rationale_texts_without_a_common_word_score_zero(rationale, prediction, reference):
    results = rationale.compute(predictions=[prediction], references=[[reference]])
    assert [results[name] for name in ("bleu_1", "rouge_l", "cider")] == [0, 0, 0]
    same = rationale.compute(predictions=[prediction], references=[[prediction]])
    assert [same["bleu_1"], same["rouge_l"]] == pytest.approx([1, 1])


NAMES = {"kind": ["C", "C++", "C#", "+", "=", "?", "🐱", "❤️", "बाए", "café", "10 %"]}


@pytest.mark.parametrize(
    "text, name",
    [
        ("It is written in C++.", "C++"),
        ("It is written in (C#)!", "C#"),
        ("Vitamin C.", "C"),
        ("two strokes that cross: '+'", "+"),
        ("1+2", "+"),
        ("++", None),
        ("1 = 2", "="),
        ("Is it a ?", "?"),
        ("a 🐱!", "🐱"),
        ("the 🐶🐱", "🐱"),
        ("a ❤ of paper", "❤️"),
        ("बाए ऊपर", "बाए"),
        ("बाएं", None),
        (unicodedata.normalize("NFD", "CAFÉ noir"), "café"),
        ("10%", "10 %"),
        ("10 % of it", "10 %"),
    ],
)
def test_rationale_phrases_in_any_script(rationale, text, name):
    """Found where the references have the name itself, and not where they have another."""
    for other in NAMES["kind"]:
        results = rationale.compute(predictions=[text], references=[[other]], phrases=NAMES, meteor=False)
        assert (results["kind_accuracy"], results["kind_n"]) == (int(other == name), 1), other
    found = rationale.compute(predictions=[""], references=[[text]], phrases=NAMES, meteor=False)
    assert found["kind_n"] == int(name is not None)


def test_rationale_leaves_out_items_without_references(rationale):
    texts = ["the owl at the left", "anything", "a green apple in the centre", "more"]
    references = [["the owl sits at the left"], [], ["a red apple in the centre"], None]
    phrases = {"place": ["left", "centre", "right"]}
    results = rationale.compute(predictions=texts, references=references, phrases=phrases, per_item=True)
    expected = rationale.compute(predictions=texts[::2], references=references[::2], phrases=phrases, per_item=True)
    assert (results.pop("n_without_reference"), expected.pop("n_without_reference")) == (2, 0)
    items, expected_items = results.pop("per_item"), expected.pop("per_item")
    assert results == expected and results["n"] == 2 and results["place_n"] == 2
    assert items.pop("meteor") is None and expected_items.pop("meteor") is None
    assert items == {name: [one, None, other, None] for name, (one, other) in expected_items.items()}

    nothing = rationale.compute(predictions=texts[:2], references=[None, []], phrases=phrases, per_item=True)
    scores = ["bleu_1", "bleu_4", "rouge_l", "meteor", "cider", "place_accuracy"]
    assert [nothing[name] for name in scores] == [None] * 6
    assert (nothing["n"], nothing["n_without_reference"], nothing["place_n"]) == (0, 2, 0)
    assert nothing["per_item"]["cider"] == nothing["per_item"]["place_accuracy"] == [None, None]


@pytest.mark.parametrize(
    "predictions, references, arguments, message",
    [
        (["a", "b"], [["a"], ["b", None]], {}, r"`references\[1\]` must be a list of strings, got \['b', None\]"),
        (["a", None], [["a"], ["b"]], {}, r"`predictions\[1\]` must be a string, got None"),
        (["a"], ["a"], {}, "Got a string but expected a list"),
        (["a", "b"], [["a"]], {}, r"Mismatch in the number of predictions \(2\) and references \(1\)"),
        (["a"], [["a"]], {"phrases": {"place": []}}, r"`phrases\['place'\]` must be a list of one or more phrases"),
        (
            ["a"],
            [["a"]],
            {"phrases": {"place": ["a", "\u200b "]}},
            r"`phrases\['place'\]` must be .* visible characters",
        ),
    ],
)
def test_rationale_bad_inputs(rationale, predictions, references, arguments, message):
    with pytest.raises(ValueError, match=message):
        rationale.compute(predictions=predictions, references=references, **arguments)


@needs_golden
@pytest.mark.golden
def test_rationale_golden(rationale):
    golden = read_golden("captions.json")
    results = rationale.compute(predictions=golden["predictions"], references=golden["references"], per_item=True)
    bleu = golden["scores"]["bleu"]
    expected = {f"bleu_{n + 1}": {"corpus": bleu["corpus"][n], "each": bleu["each"][n]} for n in range(4)}
    expected |= {name: golden["scores"][name] for name in ("rouge_l", "cider")}
    assert results["n"] == len(golden["predictions"])
    for name, scores in expected.items():
        np.testing.assert_allclose(results[name], scores["corpus"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(results["per_item"][name], scores["each"], rtol=1e-4, atol=1e-8, err_msg=name)


@needs_golden
@pytest.mark.golden
def test_rationale_tokens_golden(rationale):
    golden = read_golden("captions.json")
    tokenize = module_of(rationale).tokenize
    assert [" ".join(tokenize(text)) for text in golden["predictions"]] == golden["ptb_predictions"]
    for texts, expected in zip(golden["references"], golden["ptb_references"], strict=True):
        assert [" ".join(tokenize(text)) for text in texts] == expected


# clip_score


@pytest.fixture
def clip_score(clip_workplace, monkeypatch):
    monkeypatch.chdir(clip_workplace)
    return evaluate.load("metrics/clip_score")


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_clip_score_equals_direct_computation(clip_score, batch_size):
    images = clip_images()
    results = clip_score.compute(
        predictions=TEXTS,
        images=images,
        references=REFERENCES,
        model_name_or_path=CLIP,
        local_files_only=True,
        batch_size=batch_size,
        per_item=True,
    )
    image_embeds, text_embeds = direct_embeddings(images, TEXTS)
    expected = [2.5 * max(0.0, float(i @ t)) for i, t in zip(image_embeds, text_embeds, strict=True)]
    assert min(expected) == 0 < max(expected)  # the seed gives clipped and unclipped items
    assert results["per_item"]["clip_score"] == pytest.approx(expected, abs=1e-5)
    assert results["clip_score"] == pytest.approx(np.mean(expected), abs=1e-5)

    expected_ref = []
    for score, text, texts in zip(expected, text_embeds, REFERENCES, strict=True):
        best = max(0.0, float((direct_embeddings(images[:1], texts)[1] @ text).max()))
        expected_ref.append(2 * score * best / (score + best) if score + best else 0.0)
    assert results["per_item"]["ref_clip_score"] == pytest.approx(expected_ref, abs=1e-5)
    assert results["ref_clip_score"] == pytest.approx(np.mean(expected_ref), abs=1e-5)
    assert (results["n"], results["n_truncated"]) == (4, 1)


def test_clip_score_without_references(clip_score):
    arrays = [np.asarray(image) for image in clip_images()]
    whole = clip_score.compute(predictions=TEXTS, images=arrays, model_name_or_path=CLIP)
    assert sorted(whole) == ["clip_score", "n", "n_truncated"]
    clip_score.add_batch(predictions=TEXTS[:3], images=arrays[:3])
    clip_score.add(prediction=TEXTS[3], images=arrays[3])
    assert clip_score.compute(model_name_or_path=CLIP) == pytest.approx(whole)
    order = [2, 0, 3, 1]
    permuted = clip_score.compute(
        predictions=[TEXTS[i] for i in order], images=[arrays[i] for i in order], model_name_or_path=CLIP
    )
    assert permuted == pytest.approx(whole)


def test_clip_score_of_items_without_references(clip_score):
    images, inputs = clip_images(), {"model_name_or_path": CLIP, "per_item": True}
    whole = clip_score.compute(predictions=TEXTS, images=images, references=REFERENCES, **inputs)
    partly = [REFERENCES[0], None, REFERENCES[2], []]
    results = clip_score.compute(predictions=TEXTS, images=images, references=partly, **inputs)
    assert results["per_item"]["clip_score"] == pytest.approx(whole["per_item"]["clip_score"])
    first, _, third, _ = whole["per_item"]["ref_clip_score"]
    assert results["per_item"]["ref_clip_score"] == [pytest.approx(first), None, pytest.approx(third), None]
    assert results["ref_clip_score"] == pytest.approx((first + third) / 2)
    assert (results["n"], results["n_without_reference"], whole["n_without_reference"]) == (4, 2, 0)

    nothing = clip_score.compute(predictions=TEXTS, images=images, references=[[], None, [], []], **inputs)
    assert (nothing["ref_clip_score"], nothing["n_without_reference"]) == (None, 4)
    assert nothing["clip_score"] == pytest.approx(whole["clip_score"])
    for text, image, texts in zip(TEXTS, images, partly, strict=True):
        clip_score.add(prediction=text, images=image, reference=texts or [])
    assert clip_score.compute(**inputs) == results


@pytest.fixture
def deep_and_moving(tmp_path):
    """Pictures by name, with what is said of them."""
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "int32.tif")
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    in_memory = Image.open(io.BytesIO((tmp_path / "two.gif").read_bytes()))
    eight = "a picture of 8 bits a channel, got"
    return {
        "16 bits": (str(tmp_path / "grey16.png"), rf"{eight} one of mode I;16: scale it"),
        "32 bits": (str(tmp_path / "int32.tif"), rf"{eight} one of mode I: scale it"),
        "float": (Image.fromarray(grey.astype(np.float32)), rf"{eight} one of mode F: scale it"),
        "array": (np.zeros((8, 8, 3)), rf"{eight} an array of float64: scale it"),
        "animation": (str(tmp_path / "two.gif"), "a still picture, got 2 frames"),
        "animation in memory": (in_memory, "a still picture, got 2 frames"),
    }


@pytest.mark.parametrize("case", ["16 bits", "32 bits", "float", "array", "animation", "animation in memory"])
@pytest.mark.parametrize("name", ["clip_score", "grounding"])
def test_pictures_are_still_and_of_8_bits(clip_workplace, monkeypatch, deep_and_moving, name, case):
    monkeypatch.chdir(clip_workplace)
    metric = evaluate.load(f"metrics/{name}")
    picture, message = deep_and_moving[case]
    inputs = {"predictions": ["a", "b"], "images": [Image.new("RGB", (8, 8)), picture]}
    if name == "grounding":
        inputs["maps"] = [[[0.5]], [[0.5]]]
    with pytest.raises(ValueError, match=rf"`images\[1\]` must be {message}"):
        metric.compute(**inputs, model_name_or_path=CLIP)


def test_clip_score_takes_the_pictures_of_a_camera(clip_score, tmp_path):
    """An MPO holds several pictures, of which the first is the picture."""
    first, second = clip_images()[:2]
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "a.mpo").n_frames == 2
    alone = Image.open(tmp_path / "a.mpo").convert("RGB")
    inputs = {"predictions": TEXTS[:1], "model_name_or_path": CLIP}
    found = clip_score.compute(images=[str(tmp_path / "a.mpo")], **inputs)
    assert found == pytest.approx(clip_score.compute(images=[alone], **inputs))


def test_clip_score_shows_progress_unless_told_not_to(clip_score, capsys):
    inputs = {"predictions": TEXTS, "images": clip_images(), "model_name_or_path": CLIP}
    clip_score.compute(**inputs)
    assert "CLIP images" in capsys.readouterr().err
    evaluate.disable_progress_bar()
    try:
        clip_score.compute(**inputs)
    finally:
        evaluate.enable_progress_bar()
    assert "CLIP images" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_name_or_path": None}, "`model_name_or_path` must name a CLIP model"),
        ({"references": [["a"], [None], ["b"], ["c"]]}, r"`references\[1\]` must be a list of strings, got \[None\]"),
        ({"predictions": ["a", None, "b", "c"]}, r"`predictions\[1\]` must be a string, got None"),
        ({"images": [*clip_images()[:3], None]}, r"`images\[3\]` must be an image, got None"),
        ({"predictions": TEXTS[:2]}, "Mismatch in the number of predictions"),
    ],
)
def test_clip_score_bad_inputs(clip_score, changes, message):
    inputs = {"predictions": TEXTS, "images": clip_images(), "model_name_or_path": CLIP}
    with pytest.raises(ValueError, match=message):
        clip_score.compute(**(inputs | changes))


# all modules


MODULES = [
    *("saliency", "faithfulness", "interventions", "rationale", "clip_score", "explained_accuracy", "grounding"),
    *("simulatability", "retrieval", "self_consistency"),
]


@pytest.mark.parametrize("name", MODULES)
def test_documented_examples(clip_workplace, without_meteor, monkeypatch, name):
    monkeypatch.chdir(clip_workplace)
    outcome = doctest.testmod(module_of(evaluate.load(f"metrics/{name}")))
    assert outcome.attempted > 1 and outcome.failed == 0
    card = (ROOT / "metrics" / name / "README.md").read_text(encoding="utf-8").replace("```", "")
    examples = doctest.DocTestParser().get_doctest(card, {}, f"{name}/README.md", None, None)
    outcome = doctest.DocTestRunner().run(examples)
    assert outcome.attempted > 1 and outcome.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_folder_is_complete(name):
    folder = ROOT / "metrics" / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    headings = ["Description", "How to Use", "Inputs", "Output Values", "Examples", "Limitations", "Citation"]
    assert all(heading in card for heading in headings)
    assert (folder / "requirements.txt").is_file() and (folder / "app.py").is_file()
