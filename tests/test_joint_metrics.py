"""The metrics that join label, map and rationale: explained_accuracy and grounding."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
from metric_modules import CLIP, REFERENCES, TEXTS, clip_images, direct_embeddings, module_of
from PIL import Image

from megl.evaluation import bootstrap, scores


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def at_workplace(clip_workplace, without_meteor, monkeypatch):  # noqa: F811
    monkeypatch.chdir(clip_workplace)


@pytest.fixture
def explained_accuracy(at_workplace):
    return evaluate.load("metrics/explained_accuracy")


@pytest.fixture
def grounding(at_workplace):
    return evaluate.load("metrics/grounding")


# explained_accuracy

LABELS = {"predictions": ["owl", "cat", "cat", "owl", "cat"], "references": ["owl", "cat", "owl", "cat", "cat"]}


def test_explained_accuracy_hand_computed(explained_accuracy):
    scores = [1.0, 0.4, 0.2, 0.1, None]
    results = explained_accuracy.compute(**LABELS, explanation_scores=scores, score_name="iou", per_item=True)
    expected = {"task_score": 3 / 5, "iou_unfiltered": 1.7 / 4, "iou_filtered": 0.7, "iou_overall": 0.42}
    expected |= {"n": 5, "n_filtered": 3, "n_undefined": 1, "n_undefined_filtered": 1}
    assert results.pop("per_item") == {"correct": [1, 1, 0, 0, 1], "iou": scores}
    assert results == pytest.approx(expected)


def test_explained_accuracy_overall_is_the_mean_with_zero_for_wrong_answers(explained_accuracy):
    rng = np.random.default_rng(0)
    labels, predictions, scores = rng.integers(3, size=40), rng.integers(3, size=40), rng.random(40)
    results = explained_accuracy.compute(predictions=predictions, references=labels, explanation_scores=scores)
    assert results["explanation_score_overall"] == pytest.approx(np.mean(scores * (labels == predictions)))
    order = rng.permutation(40)
    permuted = explained_accuracy.compute(
        predictions=predictions[order], references=labels[order], explanation_scores=scores[order]
    )
    assert permuted == pytest.approx(results)


JUDGED_TEXTS = {
    "explanations": [
        "an owl at the left",
        "a cat",
        "a red cat sleeps",
        "dogs and more",
        "the cat in the middle of it",
    ],
    "explanation_references": [
        ["the owl at the left"],
        ["a cat at the left"],
        ["an owl"],
        ["a cat"],
        ["a cat in the middle"],
    ],
}


def test_explained_accuracy_filters_before_the_corpus_is_scored(explained_accuracy):
    rationale = evaluate.load("metrics/rationale")
    texts, references = JUDGED_TEXTS.values()
    results = explained_accuracy.compute(**LABELS, **JUDGED_TEXTS, explanation_metric=rationale)
    chosen = [0, 1, 4]
    everything = rationale.compute(predictions=texts, references=references, per_item=True)
    filtered = rationale.compute(predictions=[texts[i] for i in chosen], references=[references[i] for i in chosen])
    # CIDEr keeps the document frequencies of all items.
    filtered["cider"] = sum(everything["per_item"]["cider"][i] for i in chosen) / 3
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider"):
        assert results[f"{name}_unfiltered"] == pytest.approx(everything[name])
        assert results[f"{name}_filtered"] == pytest.approx(filtered[name])
        assert results[f"{name}_overall"] == pytest.approx(0.6 * filtered[name])
    assert results["bleu_1_filtered"] != pytest.approx(results["bleu_1_unfiltered"])
    assert (results["n"], results["n_filtered"], results["n_undefined"]) == (5, 3, 0)
    counts = {"n", "n_filtered", "n_undefined", "n_undefined_filtered"}
    assert {name for name in results if name.startswith("n_") or name == "n"} == counts


def test_explained_accuracy_of_cider_by_hand(explained_accuracy):
    """The right item alone would be the whole corpus, in which every word is in every document: CIDEr would be 0."""
    results = explained_accuracy.compute(
        predictions=["x", "x"],
        references=["x", "y"],
        explanations=["a", "c"],
        explanation_references=[["a b"], ["c"]],
        explanation_metric=evaluate.load("metrics/rationale"),
    )
    # of two documents each word is in one: log(2)^2 / (log(2) * log(2) sqrt(2)), one bigram less, three orders empty
    right = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert results["cider_filtered"] == pytest.approx(right)
    assert results["cider_unfiltered"] == pytest.approx((right + 10 / 4) / 2)
    assert results["cider_overall"] == pytest.approx(right / 2)
    # BLEU's counts are those of the right item: one word of one, of two
    assert results["bleu_1_filtered"] == pytest.approx(math.exp(1 - 2))
    assert results["bleu_1_unfiltered"] == pytest.approx(math.exp(1 - 3 / 2))


def test_explained_accuracy_leaves_out_texts_without_references(explained_accuracy):
    texts, references = JUDGED_TEXTS.values()
    rationale = evaluate.load("metrics/rationale")
    partly = [references[0], None, references[2], [], references[4]]
    results = explained_accuracy.compute(
        **LABELS, explanations=texts, explanation_references=partly, explanation_metric=rationale
    )
    known = [0, 2, 4]
    expected = explained_accuracy.compute(
        **{name: [values[i] for i in known] for name, values in LABELS.items()},
        explanations=[texts[i] for i in known],
        explanation_references=[references[i] for i in known],
        explanation_metric=rationale,
    )
    for name in ("bleu_4", "rouge_l", "cider"):
        assert results[f"{name}_unfiltered"] == expected[f"{name}_unfiltered"]
        assert results[f"{name}_filtered"] == expected[f"{name}_filtered"]
        assert results[f"{name}_overall"] == pytest.approx(3 / 5 * expected[f"{name}_filtered"])
    assert (results["task_score"], results["n"], results["n_filtered"]) == (3 / 5, 5, 3)
    assert (results["n_undefined"], results["n_undefined_filtered"]) == (2, 1)

    nothing = explained_accuracy.compute(
        **LABELS, explanations=texts, explanation_references=[[], None, [], [], []], explanation_metric=rationale
    )
    kinds = ("unfiltered", "filtered", "overall")
    assert [nothing[f"{name}_{kind}"] for name in ("bleu_4", "cider") for kind in kinds] == [None] * 6
    assert (nothing["task_score"], nothing["n_undefined"], nothing["n_undefined_filtered"]) == (3 / 5, 5, 3)


def test_explained_accuracy_of_a_metric_that_knows_no_items(explained_accuracy):
    """What says nothing of `corpus_scores` scores the right items by themselves, and sees no item without texts."""

    class Lengths:
        def compute(self, predictions, references):
            assert all(references)
            return {"length": sum(map(len, predictions)) / len(predictions), "count": len(predictions)}

    results = explained_accuracy.compute(
        predictions=["x", "x", "x"],
        references=["x", "y", "x"],
        explanations=["a", "abc", "abcdef"],
        explanation_references=[["a"], ["b"], None],
        explanation_metric=Lengths(),
    )
    lengths = [results[f"length_{kind}"] for kind in ("unfiltered", "filtered", "overall")]
    assert lengths == pytest.approx([2, 1, 2 / 3]) and "count_filtered" not in results


def test_explained_accuracy_extremes(explained_accuracy):
    perfect = explained_accuracy.compute(predictions=["a"], references=["a"], explanation_scores=[1.0])
    assert (perfect["task_score"], perfect["explanation_score_overall"]) == (1, 1)
    wrong = explained_accuracy.compute(predictions=["a"], references=["b"], explanation_scores=[1.0])
    assert (wrong["explanation_score_filtered"], wrong["explanation_score_overall"]) == (None, 0)
    undefined = explained_accuracy.compute(
        predictions=["a", "a", "a"], references=["a", "b", "b"], explanation_scores=[float("nan"), 0.5, None]
    )
    assert undefined["explanation_score_filtered"] is None and undefined["explanation_score_overall"] is None
    assert undefined["task_score"] == pytest.approx(1 / 3)
    assert (undefined["n_undefined"], undefined["n_undefined_filtered"]) == (2, 1)
    lost = explained_accuracy.compute(predictions=["a"], references=["b"], explanation_scores=[None])
    assert (lost["task_score"], lost["explanation_score_overall"], lost["n_undefined"]) == (0, None, 1)
    nothing = explained_accuracy.compute(predictions=[], references=[], explanation_scores=[])
    assert (nothing["task_score"], nothing["explanation_score_overall"], nothing["n"]) == (None, None, 0)


def test_explained_accuracy_of_a_score_that_is_absent(explained_accuracy):
    results = explained_accuracy.compute(
        predictions=["a"],
        references=["b"],
        explanations=["x"],
        explanation_references=[["x"]],
        explanation_metric=evaluate.load("metrics/rationale"),
    )
    assert (results["rouge_l_overall"], results["meteor_unfiltered"], results["meteor_overall"]) == (0, None, None)


def test_explained_accuracy_collects_items(explained_accuracy):
    scores = [1.0, 0.4, 0.2, 0.1, None]
    whole = explained_accuracy.compute(**LABELS, explanation_scores=scores)
    explained_accuracy.add_batch(
        predictions=LABELS["predictions"][:4], references=LABELS["references"][:4], explanation_scores=scores[:4]
    )
    explained_accuracy.add(prediction="cat", reference="cat", explanation_scores=None)
    assert explained_accuracy.compute() == whole


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either `explanation_scores`, or .*, got neither"),
        ({"explanation_scores": [1.0, 0.5], "explanation_references": [["a"], ["b"]]}, "got both"),
        (
            {"explanation_references": [["a"], ["b"]]},
            "`explanation_metric` must be what scores the texts, .* got None",
        ),
        ({"explanation_scores": [1.0, 0.5], "explanation_metric": "rouge"}, "`explanation_metric` scores texts"),
        ({"explanation_scores": [1.0]}, "Mismatch in the number of predictions"),
        ({"predictions": ["a", None], "explanation_scores": [1.0, 1.0]}, r"`predictions\[1\]` must be the name or id"),
        ({"references": [0.5, "a"], "explanation_scores": [1.0, 1.0]}, r"`references\[0\]` must be .*, got 0.5"),
    ],
)
def test_explained_accuracy_bad_inputs(explained_accuracy, arguments, message):
    with pytest.raises(ValueError, match=message):
        explained_accuracy.compute(**{"predictions": ["a", "b"], "references": ["a", "a"]} | arguments)


def test_explained_accuracy_names_the_item_with_a_reference_that_is_none(explained_accuracy):
    with pytest.raises(ValueError, match=r"`explanation_references\[1\]` must be a list of strings, got \[None\]"):
        explained_accuracy.compute(
            predictions=["a", "b"],
            references=["a", "a"],
            explanations=["x", "y"],
            explanation_references=[["x"], [None]],
            explanation_metric=evaluate.load("metrics/rationale"),
        )


def test_scores_of_an_evaluation_without_some_references(without_meteor):  # noqa: F811
    texts, references = JUDGED_TEXTS.values()
    names = zip(LABELS["predictions"], LABELS["references"], texts, strict=True)
    items = [{"prediction": a, "label": b, "rationale": text, "group": None, "per_item": {}} for a, b, text in names]
    partly = [references[0], None, references[2], [], references[4]]
    result = scores.rationale_scores(items, partly, ["cat", "owl"])
    assert (result["n"], result["n_without_reference"], result["kind_n"]) == (3, 2, 3)
    assert [item["per_item"]["rationale.rouge_l"] is None for item in items] == [False, True, False, True, False]
    assert not any(name in items[0]["per_item"] for name in ("rationale.bleu_4", "rationale.meteor"))
    assert items[1]["bleu_statistics"] == items[3]["bleu_statistics"] == [0] * 10
    found = bootstrap.point_figures(items)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider", "kind_accuracy"):
        assert found["rationale", name] == pytest.approx(result[name]), name

    joint = scores.explained_accuracy(items, partly, None)
    assert (joint["n"], joint["n_without_reference"], joint["n_without_reference_filtered"]) == (5, 2, 1)
    right = [items[i]["per_item"]["rationale.cider"] for i in (0, 4)]
    assert joint["cider_filtered"] == pytest.approx(sum(right) / 2)


# grounding


def grounding_inputs():
    """Pictures of four coloured quarters, and maps that show one of them more than the others."""
    rng = np.random.default_rng(3)
    quarters = [Image.fromarray(rng.integers(256, size=(2, 2, 3), dtype=np.uint8)) for _ in range(4)]
    images = [quarter.resize((40, 32), Image.Resampling.NEAREST) for quarter in quarters]
    maps = [[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.6, 0.1]], [[0.1, 0.0], [0.9, 0.0]], [[0.0], [0.0], [0.5]]]
    return {"predictions": TEXTS, "images": images, "maps": maps, "model_name_or_path": CLIP}


def seen_through(image, saliency):
    """The image in which the map fades to the mean colour, by the formula."""
    size = (image.height, image.width)
    weights = np.asarray(Image.fromarray(np.array(saliency, np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    weights = np.broadcast_to((weights / weights.max())[..., None], (*size, 3))
    pixels = np.asarray(image, np.float64)
    mean = pixels.reshape(-1, 3).mean(axis=0)
    return [
        Image.fromarray((part * pixels + (1 - part) * mean).round().astype(np.uint8))
        for part in (weights, 1 - weights)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_grounding_equals_direct_computation(grounding, batch_size):
    inputs = grounding_inputs()
    results = grounding.compute(**inputs, local_files_only=True, batch_size=batch_size, per_item=True)
    pairs = [seen_through(*pair) for pair in zip(inputs["images"], inputs["maps"], strict=True)]
    shown, texts = direct_embeddings([pair[0] for pair in pairs], TEXTS)
    hidden, _ = direct_embeddings([pair[1] for pair in pairs], TEXTS[:1])
    found = results["per_item"]
    np.testing.assert_allclose(found["inside"], (shown * texts).sum(axis=1), atol=5e-4)
    np.testing.assert_allclose(found["outside"], (hidden * texts).sum(axis=1), atol=5e-4)
    np.testing.assert_allclose(found["grounding"], (texts * (shown - hidden)).sum(axis=1), atol=1e-3)
    partners = module_of(grounding).partners(4, 0)
    np.testing.assert_allclose(
        found["shuffled_grounding"], (texts[partners] * (shown - hidden)).sum(axis=1), atol=1e-3
    )
    assert np.ptp(found["grounding"]) > 0.05  # far more than the tolerance
    assert results["grounding"] == pytest.approx(np.mean(found["grounding"]))
    assert (results["n"], results["n_undefined"], results["n_truncated"]) == (4, 0, 1)


def test_grounding_masks_by_hand(grounding):
    image = Image.new("RGB", (4, 2), (100, 0, 0))
    image.paste((200, 40, 0), (2, 0, 4, 2))  # the mean colour is (150, 20, 0)
    masked = module_of(grounding).masked
    map_of_right_half = np.array([[0, 0, 0.5, 0.5]] * 2, np.float32)
    inside = np.asarray(masked(image, map_of_right_half, inside=True))
    outside = np.asarray(masked(image, map_of_right_half, inside=False))
    assert inside[0].tolist() == [[150, 20, 0]] * 2 + [[200, 40, 0]] * 2
    assert outside[1].tolist() == [[100, 0, 0]] * 2 + [[150, 20, 0]] * 2
    half = np.asarray(masked(image, np.array([[1, 0.5, 0.5, 1]] * 2, np.float32), inside=True))
    assert half[0].tolist() == [[100, 0, 0], [125, 10, 0], [175, 30, 0], [200, 40, 0]]


def test_grounding_invariances(grounding):
    inputs = grounding_inputs()
    results = grounding.compute(**inputs, per_item=True)["per_item"]
    scaled = {**inputs, "maps": [(np.array(saliency) * 0.25).tolist() for saliency in inputs["maps"]]}
    np.testing.assert_allclose(
        grounding.compute(**scaled, per_item=True)["per_item"]["grounding"], results["grounding"], atol=1e-3
    )
    order = [2, 0, 3, 1]
    permuted = {
        name: values if name == "model_name_or_path" else [values[i] for i in order] for name, values in inputs.items()
    }
    np.testing.assert_allclose(
        grounding.compute(**permuted, per_item=True)["per_item"]["grounding"],
        [results["grounding"][i] for i in order],
        atol=1e-5,
    )


def test_grounding_without_a_map_is_undefined(grounding):
    inputs = grounding_inputs()
    inputs["maps"][1] = [[0.0, 0.0]]
    results = grounding.compute(**inputs, per_item=True)
    items = results["per_item"]
    assert (results["n"], results["n_undefined"]) == (4, 1)
    assert (items["grounding"][1], items["shuffled_grounding"][1]) == (0, 0)
    assert items["inside"][1] is None and items["outside"][1] is None
    assert results["inside"] == pytest.approx(np.mean([items["inside"][i] for i in (0, 2, 3)]))
    assert results["grounding"] == pytest.approx(sum(items["grounding"]) / 4)


def test_grounding_of_one_item_and_of_none(grounding):
    inputs = grounding_inputs()
    one = {name: values if name == "model_name_or_path" else values[:1] for name, values in inputs.items()}
    results = grounding.compute(**one)
    assert results["shuffled_grounding"] is None and results["grounding"] is not None
    none = {name: values if name == "model_name_or_path" else [] for name, values in inputs.items()}
    results = grounding.compute(**none)
    assert (results["grounding"], results["shuffled_grounding"], results["n"]) == (None, None, 0)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_grounding_control_takes_every_other_item_once(grounding, count):
    partners = module_of(grounding).partners
    for seed in range(5):
        drawn = partners(count, seed)
        assert sorted(drawn) == list(range(count)) and not np.any(drawn == np.arange(count))
    assert len({tuple(partners(10, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_name_or_path": None}, "`model_name_or_path` must name a CLIP model"),
        ({"predictions": ["a", None, "b", "c"]}, r"`predictions\[1\]` must be a string, got None"),
        ({"images": [None] * 4}, r"`images\[0\]` must be an image, got None"),
        ({"maps": [[[0.5]], [[0.1, 0.2], [0.3]], [[1.0]], [[1.0]]]}, r"`maps\[1\]` must be a map of shape"),
        ({"maps": [[[0.5]], [[1.0]], [], [[1.0]]]}, r"`maps\[2\]` must be a map of shape"),
        ({"maps": [[[0.5]], [[1.0]], [[1.0]], [[1.5]]]}, r"`maps\[3\]` must have values in \[0, 1\], got .* to 1.5"),
        ({"maps": [[[float("nan")]], [[1.0]], [[1.0]], [[1.0]]]}, r"`maps\[0\]` must have values in \[0, 1\]"),
        ({"maps": [[[0.5]]]}, "Mismatch in the number of predictions"),
    ],
)
def test_grounding_bad_inputs(grounding, changes, message):
    with pytest.raises(ValueError, match=message):
        grounding.compute(**(grounding_inputs() | changes))


@pytest.mark.parametrize("as_copy", [False, True])
def test_grounding_loads_from_elsewhere(grounding, tmp_path, monkeypatch, as_copy):
    inputs = grounding_inputs() | {"model_name_or_path": str(Path(CLIP).resolve())}
    expected = grounding.compute(**inputs)
    folder = ROOT / "metrics" / "grounding"
    if as_copy:
        folder = Path(shutil.copytree(folder, tmp_path / "copies" / "grounding"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate.load(str(folder)).compute(**inputs) == pytest.approx(expected)


def test_grounding_has_the_clip_score():
    """As a copy, since `evaluate` takes no file from outside of a metric's folder."""
    copy, original = (ROOT / "metrics" / name / "clip_score.py" for name in ("grounding", "clip_score"))
    assert not copy.is_symlink()
    assert copy.read_bytes() == original.read_bytes()


# all


DISTRIBUTED = {
    "explained_accuracy": ({**LABELS, "explanation_scores": [1.0, 0.4, 0.2, 0.1, 0.6]}, {}),
    "rationale": ({"predictions": TEXTS, "references": REFERENCES}, {}),
    "clip_score": ({"predictions": TEXTS, "references": REFERENCES}, {"model_name_or_path": CLIP}),
}


@pytest.mark.parametrize("name", [*DISTRIBUTED, "grounding"])
def test_distributed_equals_one_process(at_workplace, tmp_path, name):
    if name == "grounding":
        inputs = grounding_inputs()
        arguments = {"model_name_or_path": inputs.pop("model_name_or_path")}
    else:
        inputs, arguments = DISTRIBUTED[name]
    if name == "clip_score":
        inputs = {**inputs, "images": clip_images()}
    whole = evaluate.load(f"metrics/{name}").compute(**inputs, **arguments)
    parts = [{key: values[:2] for key, values in inputs.items()}, {key: values[2:] for key, values in inputs.items()}]

    def process(rank):
        metric = evaluate.load(
            f"metrics/{name}", num_process=2, process_id=rank, experiment_id="two", cache_dir=str(tmp_path)
        )
        metric.add_batch(**parts[rank])
        return metric.compute(**arguments)

    # Each waits for the other's files, so they run at the same time.
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    assert first.pop("absent", None) == whole.pop("absent", None)
    assert second is None and first == pytest.approx(whole)
