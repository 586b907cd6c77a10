"""The metric faithfulness, its sanity check, and what evaluate_megl.py reports of both."""

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch


ROOT = Path(__file__).resolve().parents[1]
SCORES = ["deletion", "insertion", "comprehensiveness", "sufficiency"]


@pytest.fixture
def faithfulness(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    # A cache of its own: `evaluate` waits for the locks of instances whose `compute` failed.
    return evaluate.load("metrics/faithfulness", cache_dir=str(tmp_path))


def module_of(metric):
    return sys.modules[type(metric).__module__]


def linear(weights):
    """A classifier whose first probability is the weighted sum of the pixels of the first channel."""
    weights = torch.tensor(weights)

    def model(images):
        score = images[:, 0].flatten(1) @ weights
        return torch.stack([score, 1 - score], dim=1)

    return model


def compute(metric, maps, images, model=None, **options):
    """With the linear classifier of four pixels, unless there is another."""
    model = model or linear([0.4, 0.3, 0.2, 0.1])
    options = {"outputs": "probabilities", "baseline": "mean", "steps": 4, "shares": [0.25, 0.5], **options}
    return metric.compute(predictions=maps, images=images, model=model, **options)


def network(seed=0, channels=3, classes=4):
    """A small random convolutional classifier of images of any size."""
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(channels, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 6, 3), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(24, classes)
    ).eval()


def random_inputs(count, size=(12, 10), map_size=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, *map_size)), rng.standard_normal((count, 3, *size)).astype(np.float32)


# values by hand


def test_linear_classifier_by_hand(faithfulness):
    """Pixels 1, 0, 0.5, 0.5 with weights 0.4 to 0.1: full 0.55; all at their mean, blank 0.5."""
    image = [[[[1.0, 0.0], [0.5, 0.5]]]]
    results = compute(faithfulness, [[[0.4, 0.3], [0.2, 0.1]]], image, control=False)
    # Deleted: 0.55 - 0.4 * 0.5 = 0.35, + 0.3 * 0.5 = 0.5, and the others are at their mean already.
    # Inserted: 0.5 + 0.2 = 0.7, - 0.15 = 0.55, 0.55, 0.55.
    expected = {
        "full": 0.55,
        "blank": 0.5,
        "deletion": (0.55 / 2 + 0.35 + 0.5 + 0.5 + 0.5 / 2) / 4,
        "insertion": (0.5 / 2 + 0.7 + 0.55 + 0.55 + 0.55 / 2) / 4,
        "comprehensiveness": ((0.55 - 0.35) + (0.55 - 0.5)) / 2,
        "sufficiency": ((0.55 - 0.7) + (0.55 - 0.55)) / 2,
        **{f"random_{name}": None for name in SCORES},
        "n": 1,
        "n_undefined": 0,
    }
    assert list(results) == [*SCORES, *(f"random_{name}" for name in SCORES), "full", "blank", "n", "n_undefined"]
    assert results == pytest.approx(expected, abs=1e-6)
    # The map upside down deletes 0.5, 0.5, 0 and 1 in turn.
    results = compute(faithfulness, [[[0.1, 0.2], [0.3, 0.4]]], image)
    assert results["deletion"] == pytest.approx((0.55 / 2 + 0.55 + 0.55 + 0.7 + 0.5 / 2) / 4)
    assert results["insertion"] == pytest.approx((0.5 / 2 + 0.5 + 0.5 + 0.35 + 0.55 / 2) / 4)


def test_class_is_the_given_or_the_predicted_one(faithfulness):
    maps, images = [[[1.0, 0.0]]] * 3, [[[[0.2, 0.0]]], [[[0.9, 0.0]]], [[[0.9, 0.0]]]]
    results = compute(faithfulness, maps, images, linear([1.0, 0.0]), per_item=True)
    assert results["per_item"]["full"] == pytest.approx([0.8, 0.9, 0.9])
    results = compute(faithfulness, maps, images, linear([1.0, 0.0]), references=[0, 1, 0], per_item=True)
    assert results["per_item"]["full"] == pytest.approx([0.2, 0.1, 0.9])


def test_logits_go_through_a_softmax(faithfulness):
    maps, images = random_inputs(3)
    model = network()
    logits = compute(faithfulness, maps, images, model, outputs="logits", steps=5)
    assert logits == pytest.approx(compute(faithfulness, maps, images, lambda x: model(x).softmax(1), steps=5))


def test_extremes(faithfulness):
    """A classifier that sees one pixel of 100: the perfect map deletes it first, the worst one last."""
    image = np.zeros((1, 1, 10, 10), dtype=np.float32)
    image[0, 0, 3, 6] = 1
    weights = image.ravel().tolist()
    options = {"steps": 100, "shares": [0.01, 0.2], "control": False}
    best = compute(faithfulness, image[0], image, linear(weights), **options)
    worst = compute(faithfulness, 1 - image[0], image, linear(weights), **options)
    assert (best["full"], best["blank"]) == pytest.approx((1, 0.01))
    # All but one step of the curves are flat.
    assert [best["deletion"], worst["insertion"]] == pytest.approx([0.01 + 0.99 * 0.005] * 2)
    assert [best["insertion"], worst["deletion"]] == pytest.approx([1 - 0.99 * 0.005] * 2)
    assert (best["comprehensiveness"], best["sufficiency"]) == pytest.approx((0.99, 0))
    assert (worst["comprehensiveness"], worst["sufficiency"]) == pytest.approx((0, 0.99))


def test_equals_a_direct_computation(faithfulness):
    """Pixel by pixel and image by image, as the papers tell it."""
    maps, images = random_inputs(3, map_size=(12, 10))
    model = network()
    found = compute(
        faithfulness, maps, images, model, outputs="logits", steps=6, shares=[0.05, 0.3, 1.0], per_item=True
    )["per_item"]
    for index, image in enumerate(torch.from_numpy(images)):
        order = (-maps[index].ravel()).argsort().tolist()
        label = model(image[None]).argmax().item()

        def score(count, delete, image=image, order=order, label=label):
            """With the first pixels at the mean colour, or all others."""
            changed = image.clone()
            for place in order[:count] if delete else order[count:]:
                changed[:, place // 10, place % 10] = image.mean(dim=(1, 2))
            return model(changed[None]).softmax(dim=1)[0, label].item()

        curves = [[score(20 * step, delete) for step in range(7)] for delete in (True, False)]
        expected = [(sum(curve) - curve[0] / 2 - curve[-1] / 2) / 6 for curve in curves]
        for delete in (True, False):
            expected.append(np.mean([score(120, False) - score(count, delete) for count in (6, 36, 120)]))
        assert [found[name][index] for name in SCORES] == pytest.approx(expected, abs=1e-6)


def test_steps_and_shares_of_few_pixels(faithfulness):
    """More steps than pixels are one a pixel, and a share is one pixel at least."""
    maps, images = [[[0.4, 0.3], [0.2, 0.1]]], [[[[1.0, 0.0], [0.5, 0.5]]]]
    exact = compute(faithfulness, maps, images)
    many = compute(faithfulness, maps, images, steps=50, shares=[0.001, 0.5])
    assert many == pytest.approx(exact)
    # Two points of the curve are on its ends, one in the middle.
    assert compute(faithfulness, maps, images, steps=2)["deletion"] == pytest.approx((0.55 / 2 + 0.5 + 0.5 / 2) / 2)


# baselines


def test_baselines(faithfulness):
    """What a classifier sees when all is replaced."""
    rng = np.random.default_rng(0)
    image = (3 + 2 * rng.standard_normal((1, 2, 60, 80))).astype(np.float32)
    seen = []

    def model(images):
        seen.append(images.clone())
        return images.new_zeros(len(images), 2)

    def blank(baseline, seed=0):
        seen.clear()
        options = {"steps": 1, "shares": [1.0], "control": False, "outputs": "logits"}
        compute(faithfulness, rng.random((1, 3, 3)), image, model, baseline=baseline, seed=seed, **options)
        assert len(seen) == 2 and torch.equal(seen[0], torch.from_numpy(image))
        return seen[1][0].numpy()

    means, deviations = image[0].mean(axis=(1, 2)), image[0].std(axis=(1, 2))
    np.testing.assert_allclose(blank("mean"), np.broadcast_to(means[:, None, None], (2, 60, 80)), rtol=1e-5)

    noise = blank("noise")
    np.testing.assert_allclose(noise.mean(axis=(1, 2)), means, atol=4 * 2 / 4800**0.5)
    np.testing.assert_allclose(noise.std(axis=(1, 2)), deviations, rtol=0.05)
    np.testing.assert_array_equal(noise, blank("noise"))
    assert abs(noise - blank("noise", seed=1)).mean() > 1

    # By the definition, at one pixel at an edge: standard deviation 80 / 20 = 4, 12 pixels far, edges repeated.
    offsets = np.arange(-12, 13)
    kernel = np.exp(-(offsets**2) / (2 * 4**2))
    kernel /= kernel.sum()
    rows, columns = (30 + offsets).clip(0, 59), (2 + offsets).clip(0, 79)
    expected = kernel @ image[0, 1][np.ix_(rows, columns)] @ kernel
    blurred = blank("blur")
    assert blurred[1, 30, 2] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(blurred.mean(axis=(1, 2)), means, rtol=0.05)
    assert blurred.std() < 0.3


def test_blur_keeps_a_constant_image(faithfulness):
    pixels = torch.full((1, 3, 7, 40), 0.3)
    torch.testing.assert_close(module_of(faithfulness).blur(pixels), pixels)


# order of the pixels


def test_maps_are_resized_as_torch_does(faithfulness):
    rank_pixels = module_of(faithfulness).rank_pixels
    maps = np.random.default_rng(0).random((3, 7, 5)).astype(np.float32)
    for size in ((14, 9), (3, 4), (7, 5)):
        resized = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None].double(), size, mode="bilinear")
        ranks = rank_pixels(maps, size, seed=0)
        assert torch.equal(ranks.argsort(dim=1), resized.flatten(1).argsort(dim=1, descending=True))


def test_equal_saliency_is_in_random_order(faithfulness):
    """Even where interpolation rounds: a plateau must not be swept from one side to the other."""
    rank_pixels = module_of(faithfulness).rank_pixels
    mask = np.zeros((1, 6, 6), dtype=np.float32)
    mask[0, 1:4, 1:4] = 0.3
    plateau = torch.zeros(20, 20, dtype=torch.bool)
    plateau[5:12, 5:12] = True
    ranks = rank_pixels(mask, (20, 20), seed=0)[0]
    inside = ranks[plateau.flatten()]
    assert sorted(inside.tolist()) == list(range(49))
    assert abs(np.corrcoef(inside, np.arange(49))[0, 1]) < 0.5
    assert not torch.equal(ranks, rank_pixels(mask, (20, 20), seed=1)[0])
    assert torch.equal(rank_pixels(mask * 0.7, (20, 20), seed=0)[0], ranks)


def test_control_is_the_map_with_its_cells_shuffled(faithfulness):
    """A classifier that sees one cell: the control finds it as late as chance does."""
    one_map = np.zeros((4, 4))
    one_map[2, 1] = 1
    image = one_map.repeat(2, axis=0).repeat(2, axis=1)[None] / 4
    count = 60
    model = linear(np.float32(image > 0).ravel().tolist())
    results = compute(
        faithfulness, [one_map] * count, [image] * count, model, references=[0] * count, steps=16, per_item=True
    )
    assert results["per_item"]["deletion"] == pytest.approx([results["deletion"]] * count)
    controls = np.array(results["per_item"]["random_deletion"])
    assert len(np.unique(controls.round(4))) > 8 and results["random_deletion"] > results["deletion"] + 0.2
    assert (controls >= results["deletion"] - 1e-6).all()
    assert results["random_insertion"] < results["insertion"] - 0.2
    again = compute(faithfulness, [one_map] * 2, [image] * 2, model, references=[0] * 2, steps=16, seed=1)
    assert again["deletion"] == pytest.approx(results["deletion"], abs=0.02)


# invariances


def test_scaled_and_permuted_items(faithfulness):
    maps, images = random_inputs(5)
    results = compute(faithfulness, maps, images, network(), outputs="logits", control=False)
    for changed in (maps * 0.3, maps * 4 - 1):
        same = compute(faithfulness, changed, images, network(), outputs="logits", control=False)
        assert same == pytest.approx(results)
    order = [3, 1, 4, 0, 2]
    same = compute(faithfulness, maps[order], images[order], network(), outputs="logits", control=False)
    assert same == pytest.approx(results)


@pytest.mark.parametrize("baseline", ["blur", "mean", "noise"])
def test_batches_and_mixed_sizes_equal_one_at_a_time(faithfulness, baseline):
    parts = [random_inputs(2), random_inputs(2, (8, 8), (8, 8), seed=1), random_inputs(1, (12, 10), (3, 3), seed=2)]
    maps, images = ([item for part in parts for item in part[side]] for side in (0, 1))
    order = [0, 2, 4, 1, 3]
    maps, images = ([items[i] for i in order] for items in (maps, images))
    options = {"outputs": "logits", "baseline": baseline, "per_item": True}
    sizes = []
    model = network()

    def watched(images):
        sizes.append(len(images))
        return model(images)

    together = compute(faithfulness, maps, images, watched, batch_size=7, **options)
    assert max(sizes) == 7
    # Three groups of sizes; each item has 2 passes for its ends, and 2 sides x 3 inner points, twice with the control.
    assert sum(sizes) == 5 * (2 + 2 * 2 * 3)
    single = compute(faithfulness, maps, images, model, batch_size=1, **options)
    for name, values in together["per_item"].items():
        assert values == pytest.approx(single["per_item"][name], abs=1e-6), name
    for index in range(5):
        alone = compute(faithfulness, maps[index : index + 1], images[index : index + 1], model, **options)
        for name in ("full", "blank", *SCORES):
            assert alone[name] == pytest.approx(together["per_item"][name][index], abs=1e-6), (name, index)


def test_items_in_parts_and_in_two_processes(faithfulness, tmp_path):
    maps, images = random_inputs(5)
    model, options = network(), {"steps": 3, "batch_size": 4}
    references = [0, 3, 2, 1, 0]
    whole = faithfulness.compute(predictions=maps, images=images, references=references, model=model, **options)
    faithfulness.add_batch(predictions=maps[:3], images=torch.from_numpy(images[:3]), references=references[:3])
    for index in (3, 4):
        faithfulness.add(prediction=maps[index], images=images[index], reference=references[index])
    assert faithfulness.compute(model=model, **options) == pytest.approx(whole)

    def process(rank):
        metric = evaluate.load(
            "metrics/faithfulness", num_process=2, process_id=rank, experiment_id="two", cache_dir=str(tmp_path)
        )
        part = slice(0, 2) if rank == 0 else slice(2, 5)
        metric.add_batch(predictions=maps[part], images=images[part], references=references[part])
        return metric.compute(model=model, **options)

    # Each waits for the other's files, so they run at the same time.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    assert second is None and first == pytest.approx(whole)


# undefined items


def test_constant_maps_delete_and_insert_nothing(faithfulness):
    image = [[[1.0, 0.0], [0.5, 0.5]]]
    maps = [[[0.4, 0.3], [0.2, 0.1]], [[0.0, 0.0], [0.0, 0.0]], [[0.3, 0.3], [0.3, 0.3]], [[1.0]]]
    results = compute(faithfulness, maps, [image] * 4, per_item=True)
    assert (results["n"], results["n_undefined"]) == (4, 3)
    for prefix in ("", "random_"):
        for index in (1, 2, 3):
            found = [results["per_item"][prefix + name][index] for name in SCORES]
            assert found == pytest.approx([0.55, 0.5, 0, 0.05]), (prefix, index)
    kept = compute(faithfulness, maps, [image] * 4, road=[50], per_item=True)["per_item"]
    assert kept["road"][:3] == kept["random_road"][:3] == [1.0, 1.0, 1.0]
    alone = compute(faithfulness, maps[:1], [image])
    assert results["per_item"]["deletion"][0] == pytest.approx(alone["deletion"])
    assert results["deletion"] == pytest.approx((alone["deletion"] + 3 * 0.55) / 4)


def test_no_items(faithfulness):
    faithfulness.add_batch(predictions=[], images=[])
    results = faithfulness.compute(model=network())
    assert (results["n"], results["n_undefined"], results["deletion"], results["random_insertion"]) == (
        0,
        0,
        None,
        None,
    )


# road


def test_road_by_hand(faithfulness):
    """
    A row of four pixels, 1 0 0 0, of which the first decides. Without it, its neighbour fills it in: 0. Without the
    first two, a and b: a = b and (1/6 + 1/6) b = (a + 0) / 6, so 0 as well. Another map leaves the first one in.
    """
    image = [[[1.0, 0.0, 0.0, 0.0]]]
    model = linear([1.0, 0.0, 0.0, 0.0])
    right, wrong = [[4.0, 3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0, 4.0]]
    results = compute(faithfulness, [right, wrong], [image] * 2, model, road=[25, 50, 74, 75, 99], per_item=True)
    # 74 % are two pixels, 99 % three, which leave the least salient one.
    assert results["per_item"]["road"] == [0.0, 1.0]
    assert (results["road"], results["road_25"], results["road_99"]) == (0.5, 0.5, 0.5)
    assert results["per_item"]["random_road"] != [0.0, 0.0] and "road_50" in results["per_item"]
    # A class that is not the predicted one is not the label, whatever is removed.
    first = compute(faithfulness, [right], [image], model, road=[25], references=[1], control=False)
    assert (first["road"], first["random_road"], first["random_road_25"]) == (1.0, None, None)
    assert compute(faithfulness, [wrong], [image], model, road=[25], references=[1])["road"] == 0.0
    assert "road" not in compute(faithfulness, [right], [image], model)


def test_filled_in_pixels_by_hand(faithfulness):
    impute = sys.modules[module_of(faithfulness).road_scores.__module__].impute
    # A corner: sides 2 and 4 weigh 1/6, the diagonal 9 1/12. The middle of a side: 5 neighbours of 1/6 and 1/12.
    image = torch.tensor([[[[7.0, 2.0, 0.0], [4.0, 9.0, 0.0], [0.0, 6.0, 0.0]]]])
    values = {
        (0, 0): (2 / 6 + 4 / 6 + 9 / 12) / (2 / 6 + 1 / 12),
        (1, 0): ((7 + 9 + 0) / 6 + (2 + 6) / 12) / (3 / 6 + 2 / 12),
    }
    for place, value in values.items():
        removed, expected = torch.zeros(1, 1, 3, 3, dtype=torch.bool), image.clone()
        removed[0, 0][place], expected[0, 0][place] = True, value
        torch.testing.assert_close(impute(image, removed), expected)
    # Two in a row between 0 and 3 that run on above and below: 1 and 2, as a straight line has it.
    line = torch.tensor([0.0, 5.0, 5.0, 3.0]).expand(2, 3, 6, 4)
    removed = torch.zeros(2, 1, 6, 4, dtype=torch.bool)
    removed[..., 1:3] = True
    removed[1] = False  # and an image of which nothing was removed
    filled = impute(line, removed)
    torch.testing.assert_close(filled[0], torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(3, 6, 4), atol=1e-4, rtol=0)
    assert torch.equal(filled[1], line[1])


def test_filled_in_pixels_solve_the_system(faithfulness):
    """Against the dense system, in double precision, for holes of all sizes and sizes that halve unevenly."""
    impute = sys.modules[module_of(faithfulness).road_scores.__module__].impute
    rng = np.random.default_rng(0)
    for height, width, share in ((13, 11, 0.3), (18, 7, 0.97), (9, 24, 0.7)):
        pixels, size = rng.standard_normal((3, height * width)), height * width
        rows, columns = np.divmod(np.arange(size), width)
        down, right = (np.abs(np.subtract.outer(part, part)) for part in (rows, columns))
        weights = np.select([np.maximum(down, right) != 1, down + right == 1], [0, 1 / 6], 1 / 12)
        removed = rng.random(size) < share
        system = np.diag(weights.sum(axis=1)) - weights
        known = weights[removed][:, ~removed] @ pixels[:, ~removed].T
        expected = pixels.copy()
        expected[:, removed] = np.linalg.solve(system[np.ix_(removed, removed)], known).T
        found = impute(
            torch.from_numpy(pixels).float().view(1, 3, height, width),
            torch.from_numpy(removed).view(1, 1, height, width),
        )
        np.testing.assert_allclose(found.flatten(2)[0], expected, atol=1e-4)


# refusals


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": None}, "`model` must be a callable that classifies a batch of images, got None"),
        ({"model": network().train()}, r"`model` is in training mode.* call `model.eval\(\)`"),
        ({"model": lambda x: {"logits": x}}, r"shape \(2, classes\) for 2 images, got dict.*\.logits"),
        ({"model": lambda x: x.mean(dim=(1, 2, 3))}, r"must return a tensor of shape \(2, classes\).*, got \(2,\)"),
        ({"model": lambda x: x[:1, 0, 0]}, r"for 2 images, got \(1, 6\)"),
        ({"model": lambda x: x[:, 0, 0] * float("nan")}, "`model` must return finite scores, got NaN"),
        ({"outputs": "probabilities"}, r"must return values in \[0, 1\] with `outputs='probabilities'`, got values"),
        ({"outputs": "scores"}, r"`outputs` must be one of \['logits', 'probabilities'\], got 'scores'"),
        ({"baseline": "black"}, r"`baseline` must be one of \['blur', 'mean', 'noise'\], got 'black'"),
        ({"steps": 0}, "`steps` must be 1 or more, got 0"),
        ({"batch_size": -1}, "`batch_size` must be 1 or more, got -1"),
        ({"shares": []}, r"`shares` must be one or more shares of the pixels in \(0, 1\], got \[\]"),
        ({"shares": [0.5, 50]}, r"`shares` must be .*, got \[0.5, 50\]"),
        ({"road": [10, 100]}, r"`road` must be whole percentages of the pixels from 1 to 99, got \[10, 100\]"),
        ({"road": [2.5]}, r"`road` must be whole percentages .*, got \[2.5\]"),
        ({"references": [0, 1.5]}, r"`references\[1\]` must be a class id, an integer, got 1.5"),
        ({"references": [0, 4]}, r"`references\[1\]` must be a class id from 0 to 3, as `model` has 4 classes, got 4"),
        (
            {"predictions": [[[0.1]], [[]]]},
            r"`predictions\[1\]` must have the shape \(height, width\), got one that is",
        ),
        ({"predictions": [[[0.1]], [[1.0], [1.0, 2.0]]]}, r"`predictions\[1\]` must have .* rows of several lengths"),
        ({"predictions": [[[0.1]], [[float("nan"), 1]]]}, r"`predictions\[1\]` must have finite values"),
        (
            {"images": [[[[1.0]]], None]},
            r"`images\[1\]` must have the shape \(channels, height, width\), got one that",
        ),
        ({"images": [[[[1.0]], [[1.0, 2.0]]]] * 2}, r"`images\[0\]` must have the shape .* rows of several lengths"),
        ({"images": [[[[1.0]]]]}, "Mismatch in the number of predictions"),
    ],
)
def test_bad_inputs(faithfulness, changes, message):
    maps, images = random_inputs(2, (6, 6), (3, 3))
    inputs = {"predictions": maps.tolist(), "images": images.tolist(), "model": network(), **changes}
    with pytest.raises(ValueError, match=message):
        faithfulness.compute(**inputs)
    if changes.get("references") == [0, 1.5]:  # and one by one
        with pytest.raises(ValueError, match="`reference` must be a class id, an integer, got 1.5"):
            faithfulness.add(prediction=maps[1], images=images[1], reference=1.5)


# sanity check


def input_x_gradient(images, classes):
    def explain(model):
        pixels = images.clone().requires_grad_()
        scores = model(pixels).gather(1, classes[:, None]).sum()
        return (torch.autograd.grad(scores, pixels)[0] * pixels).sum(dim=1).detach()

    return explain


def test_maps_that_depend_on_the_weights_change(faithfulness):
    images = torch.from_numpy(random_inputs(6)[1])
    model = network()
    before = copy.deepcopy(model.state_dict())
    explain = input_x_gradient(images, model(images).argmax(dim=1))
    results = faithfulness.sanity_check(model, explain)
    assert abs(results["spearman"]) < 0.35 and (results["n"], results["n_undefined"]) == (6, 0)
    # From the top down, one step a layer.
    assert [step["layer"] for step in results["steps"]] == ["6", "2", "0"]
    assert results["steps"][-1] == {"layer": "0", **{k: v for k, v in results.items() if k != "steps"}}
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert faithfulness.sanity_check(model, explain) == results
    assert faithfulness.sanity_check(model, explain, seed=1)["spearman"] != results["spearman"]


def test_maps_that_do_not_are_exposed(faithfulness):
    """An edge detector, in the place of a method that shows the image whatever the model has learnt."""
    images = torch.from_numpy(random_inputs(6)[1])
    edges = images.diff(dim=2).abs().sum(dim=1)
    results = faithfulness.sanity_check(network(), lambda model: edges)
    assert [step["spearman"] for step in results["steps"]] == pytest.approx([1, 1, 1])


def test_cascade_randomises_the_named_layers_and_keeps_their_values(faithfulness):
    model, seen = network(), []

    def explain(model):
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        return model[0].weight.flatten(1)[None]

    results = faithfulness.sanity_check(model, explain, layers=["6", "0", "2"], steps=2)
    changed = [[not torch.equal(a, b) for a, b in zip(seen[0], step, strict=True)] for step in seen[1:]]
    # Weights and biases of the modules 0, 2 and 6; two layers in the first step.
    assert changed == [[True, True, False, False, True, True], [True] * 6]
    for first, last in zip(seen[0], seen[-1], strict=True):
        assert torch.equal(first.flatten().sort().values, last.flatten().sort().values)
    assert [step["layer"] for step in results["steps"]] == ["0", "2"]
    assert results["steps"][0]["spearman"] == results["steps"][1]["spearman"] < 0.5


def test_spearman_by_hand(faithfulness):
    spearman = module_of(faithfulness).spearman
    first = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4], [0, 0, 5, 9], [1, 1, 1, 1]])
    second = np.array([[2.0, 4, 8, 99], [4, 1, 3, 2], [1, 2, 3, 3], [1, 2, 3, 4]])
    # The second row: 1 - 6 * (9 + 1 + 0 + 4) / (4 * 15). The third: ranks 1.5, 1.5, 3, 4 and 1, 2, 3.5, 3.5.
    np.testing.assert_allclose(spearman(first, second), [1, -0.4, 4 / np.sqrt(4.5 * 4.5), np.nan], atol=1e-12)


def test_constant_maps_have_no_ranks(faithfulness):
    model = network()
    maps = torch.rand(3, 2, 2)
    flat = torch.zeros(3, 2, 2)
    flat[0] = maps[0]
    results = faithfulness.sanity_check(model, lambda other: maps if other is model else flat, steps=1)
    assert {**results, "steps": None} == {"spearman": pytest.approx(1), "n": 1, "n_undefined": 2, "steps": None}
    nothing = faithfulness.sanity_check(model, lambda other: torch.zeros(3, 2, 2), steps=1)
    assert (nothing["spearman"], nothing["n"], nothing["n_undefined"]) == (None, 0, 3)


@pytest.mark.parametrize(
    "explain, options, message",
    [
        (
            lambda model: torch.rand(2, 3),
            {},
            r"`explain` must return maps of shape \(images, height, width\), got \(2, 3",
        ),
        (lambda model: torch.full((2, 3, 3), torch.nan), {}, "`explain` must return finite maps, got NaN"),
        (
            lambda model: torch.rand(2, 3, model[0].weight.argmax() + 2),
            {},
            "as many maps of one size at each call, got 2 of",
        ),
        (lambda model: torch.rand(2, 3, 3), {"layers": ["7"]}, "`layers` must name modules of Sequential, got '7'"),
        (lambda model: torch.rand(2, 3, 3), {"layers": ["1"]}, r"that have weights, got \['1'\]"),
        (lambda model: torch.rand(2, 3, 3), {"steps": 0}, "`steps` must be 1 or more, got 0"),
    ],
)
def test_sanity_check_refuses(faithfulness, explain, options, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.sanity_check(network(), explain, **options)


# sensitivity


def test_max_sensitivity_by_hand(faithfulness):
    """Maps of one cell: the image's sum, which noise changes by at most 3 x 0.5, of 1, of 4 and of nothing."""
    images = torch.tensor([[[[1.0, 0.0, 0.0]]], [[[1.0, 2.0, 1.0]]], [[[1.0, -1.0, 0.0]]]])
    sums = []

    def explain(images):
        sums.append(images.sum(dim=(1, 3))[:, :, None])
        return sums[-1]

    results = faithfulness.max_sensitivity(explain, images, radius=0.5, samples=7)
    changes = torch.stack([one - sums[0] for one in sums[1:]]).abs().amax(dim=0).flatten()
    assert len(sums) == 8 and torch.allclose(changes, changes[0]) and 0.5 < changes[0] < 1.5
    expected = float(changes[0] * (1 / 1 + 1 / 4) / 2)
    assert results == {"max_sensitivity": pytest.approx(expected, rel=1e-5), "n": 2, "n_undefined": 1}
    # Of twice the radius twice the change; with more samples of the same noise, no less; by the seed.
    twice = faithfulness.max_sensitivity(explain, images, radius=1.0, samples=7)["max_sensitivity"]
    more = faithfulness.max_sensitivity(explain, images, radius=0.5, samples=60)["max_sensitivity"]
    other = faithfulness.max_sensitivity(explain, images, radius=0.5, samples=7, seed=1)["max_sensitivity"]
    assert twice == pytest.approx(2 * expected, rel=1e-5) and more > expected and other not in (expected, more)


def test_max_sensitivity_of_zero_maps(faithfulness):
    results = faithfulness.max_sensitivity(lambda images: torch.zeros(2, 1, 1), torch.ones(2, 1, 2, 2))
    assert results == {"max_sensitivity": None, "n": 0, "n_undefined": 2}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": torch.ones(3, 4, 4)}, r"`images` must have the shape \(images, channels.*, got \(3, 4, 4\)"),
        ({"radius": 0}, "`radius` must be above 0, got 0"),
        ({"radius": float("nan")}, "`radius` must be above 0, got nan"),
        ({"samples": 0}, "`samples` must be 1 or more, got 0"),
        ({"explain": lambda images: images}, r"`explain` must return maps of shape .*, got \(2, 1, 4, 4\)"),
        ({"explain": lambda images: images[:1, 0]}, "`explain` must return a map for each image, got 1 for 2"),
        (
            {"explain": lambda images: images[:, 0, : 3 + int(images.min() == 1)]},
            "as many maps of one size at each call, got 2 of 12 cells after 2 of 16",
        ),
    ],
)
def test_max_sensitivity_refuses(faithfulness, changes, message):
    with pytest.raises(ValueError, match=message):
        faithfulness.max_sensitivity(
            **{"explain": lambda images: images[:, 0], "images": torch.ones(2, 1, 4, 4), **changes}
        )


# evaluate_megl.py


def test_evaluate_megl_reports_faithfulness(run, own_cache, tmp_path, capsys):
    from datasets import load_dataset

    from dataset_builders import ObjectMe, build_dataset
    from modeling_megl import MeglForImageClassification, MeglProcessor

    build_dataset(ObjectMe, "sample", tmp_path / "data", sample_sizes={"train": 8, "validation": 4, "test": 6})
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", tmp_path / "data", "--output", tmp_path / "model")
    common = ("--model", tmp_path / "model", "--dataset", tmp_path / "data", "--resamples", 20, "--batch_size", 4)
    run("evaluate_megl", *common, "--output", tmp_path / "without")
    assert json.loads((tmp_path / "without" / "metrics.json").read_text())["faithfulness"] is None
    capsys.readouterr()
    run("evaluate_megl", *common, "--output", tmp_path / "with", "--faithfulness", "mean")
    assert "map deletion AUC" in capsys.readouterr().out

    metrics = json.loads((tmp_path / "with" / "metrics.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "with" / "predictions.jsonl").read_text().splitlines()]
    found = metrics["faithfulness"]
    check, sensitivity = found.pop("sanity_check"), found.pop("sensitivity")
    assert found.pop("baseline") == "mean"

    # By the module itself. The saved maps are rounded to 4 digits, so maps are computed anew.
    model = MeglForImageClassification.from_pretrained(tmp_path / "model").eval()
    images = load_dataset(str(tmp_path / "data"), split="test")["image"]
    pixel_values = MeglProcessor.from_pretrained(tmp_path / "model")(images=list(images))["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values)
    direct = evaluate.load(str(ROOT / "metrics" / "faithfulness")).compute(
        predictions=output.saliency,
        images=pixel_values,
        model=lambda images: model(images).logits,
        baseline="mean",
        road=[10, 30, 50, 70, 90],
    )
    assert found == pytest.approx(direct, abs=1e-5)
    assert found["n"] == 6 and found["full"] == pytest.approx(np.mean([item["score"] for item in items]), abs=1e-5)
    scores = [*SCORES, "road", "road_10", "road_90"]
    for name in (*scores, *(f"random_{name}" for name in scores)):
        assert np.mean([item["per_item"][f"faithfulness.{name}"] for item in items]) == pytest.approx(found[name])
        low, high = metrics["intervals"]["faithfulness"][name]
        assert low <= found[name] <= high

    assert len(check["steps"]) == 10 and check["n"] + check["n_undefined"] == 4
    assert all(step["layer"].startswith("vision_model.") for step in check["steps"])
    assert check["steps"][-1]["layer"] == "vision_model.resnet.embedder.embedder.convolution"
    assert -1 <= check["spearman"] < 0.9

    chosen, classes = pixel_values[[0, 2, 3, 5]], output.logits[[0, 2, 3, 5]].argmax(dim=1)
    directly = evaluate.load(str(ROOT / "metrics" / "faithfulness")).max_sensitivity(
        lambda images: model(images, target=classes).saliency, chosen
    )
    assert sensitivity == pytest.approx(directly, rel=1e-4) and sensitivity["max_sensitivity"] > 0
    assert "map insertion AUC" in (tmp_path / "with" / "index.html").read_text()
