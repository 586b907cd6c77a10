"""The metrics of what a rationale tells: simulatability, retrieval and self_consistency; alone, and of a split."""

import math
from functools import partial

import evaluate
import numpy as np
import pytest
import torch
from metric_modules import CLIP, TEXTS, clip_images, direct_embeddings, module_of
from transformers import LlamaConfig, LlamaForCausalLM

from megl.evaluation import scores


@pytest.fixture
def fresh(load, tmp_path):
    """A module in a cache of its own: `evaluate` waits for the locks of instances whose `compute` failed."""
    return lambda name: evaluate.load(f"metrics/{name}", cache_dir=str(tmp_path))


# simulatability

LEARNED = {"train_rationales": ["round eyes", "A round face.", "long tail"], "train_labels": ["owl", "owl", "cat"]}


def test_bag_of_words_by_hand(load):
    """Five words, of which owls have round twice, eyes and face, and cats have long and tail."""
    simulatability = load("simulatability")
    reader = module_of(simulatability).BagOfWords([*zip(*LEARNED.values(), strict=True)][1:])
    assert reader.classes == ["cat", "owl"] and list(reader.columns) == ["a", "round", "face", "long", "tail"]
    np.testing.assert_allclose(np.exp(reader.log_likelihood), [[1 / 7] * 3 + [2 / 7] * 2, [2 / 8] * 3 + [1 / 8] * 2])
    results = simulatability.compute(
        # of an owl (10 places, with "a") and of a cat (8): 2/3 3/11 1/11 against 1/3 1/8 2/8, then 2/3 1/11 against
        # 1/3 2/8; the last two have the prior alone
        predictions=["ROUND tail", "tail", "", "unheard of"],
        references=["owl", "cat", "owl", "cat"],
        labels=["owl", "owl", "owl", "cat"],
        per_item=True,
        **LEARNED,
    )
    assert results.pop("per_item") == {
        "accuracy": [1, 1, 1, 0],
        "accuracy_correct": [1, None, 1, 0],
        "accuracy_wrong": [None, 1, None, None],
    }
    expected = {"accuracy": 3 / 4, "chance": 2 / 4, "n": 4, "accuracy_wrong": 1, "chance_wrong": 1, "n_wrong": 1}
    assert results == pytest.approx(expected | {"accuracy_correct": 2 / 3, "chance_correct": 2 / 3, "n_correct": 3})


def test_each_of_k_equally_likely_classes_counts_its_share(load):
    learned = {"train_rationales": ["red", "red", "green"], "train_labels": [7, 8, 9]}
    results = load("simulatability").compute(
        predictions=["red", "?", "green"], references=[8, 9, 8], per_item=True, **learned
    )
    assert results["per_item"]["accuracy"] == pytest.approx([1 / 2, 1 / 3, 0])
    assert results["chance"] == pytest.approx(2 / 3) and "n_wrong" not in results


def test_a_rationale_is_not_read_by_who_learned_from_its_own_fold(load):
    texts = {"predictions": ["spots", "stripes"], "references": ["a", "b"]}
    learned = {"train_rationales": ["spots", "stripes"], "train_labels": ["a", "b"]}
    simulatability = load("simulatability")
    assert simulatability.compute(**texts, **learned)["accuracy"] == 1
    # Each is read by one who knows the other's class alone.
    assert simulatability.compute(**texts, **learned, folds=[0, 1], train_folds=[0, 1])["accuracy"] == 0
    assert simulatability.compute(**texts, **learned, folds=[1, 0], train_folds=[0, 1])["accuracy"] == 1


def test_hidden_words_are_not_read(load):
    texts = {"predictions": ["An Owl, with fur", "cat: feathers"], "references": ["owl", "cat"]}
    learned = {"train_rationales": ["owl owl feathers", "CAT cat fur"], "train_labels": ["owl", "cat"]}
    simulatability = load("simulatability")
    assert simulatability.compute(**texts, **learned)["accuracy"] == 1
    assert simulatability.compute(**texts, **learned, hide=["Owl", "a cat"])["accuracy"] == 0


@pytest.fixture(scope="module")
def language_model(tokenizer, tmp_path_factory):
    """The folder of a tiny random language model."""
    folder = tmp_path_factory.mktemp("language_model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=0.5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_language_model_takes_the_class_of_the_least_loss(load, language_model, tokenizer):
    simulatability, model = load("simulatability"), LlamaForCausalLM.from_pretrained(language_model).eval()
    classes, texts = ["cat", "polar bear", "owl"], ["it has whiskers", "two round eyes", ""]
    losses = []
    for text in texts:
        prompt = tokenizer(f"{text}\nThe picture shows:")["input_ids"]
        for name in classes:
            ids = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[-100] * len(prompt) + ids])
            losses.append(model(input_ids=torch.tensor([prompt + ids]), labels=labels).loss.item())
    losses = np.reshape(losses, (3, 3))
    reader = module_of(simulatability).LanguageModelReader(str(language_model), 32, "cpu", True)
    found = reader._log_likelihoods(
        tokenizer("two round eyes\nThe picture shows:")["input_ids"],
        [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in classes],
    )
    assert found == pytest.approx((-losses[1]).tolist(), abs=1e-5)
    for references in (["cat"] * 3, ["polar bear"] * 3, ["owl"] * 3):
        results = simulatability.compute(
            predictions=texts,
            references=references,
            language_model=str(language_model),
            classes=classes,
            batch_size=2,
            per_item=True,
        )
        right = [classes[place] == references[0] for place in losses.argmin(axis=1)]
        assert results["per_item"]["accuracy"] == right


def test_a_language_model_that_knows_nothing_is_at_chance(load, language_model, tmp_path, tokenizer):
    model = LlamaForCausalLM.from_pretrained(language_model)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = {"predictions": ["it has whiskers", "eyes"], "references": ["cat", "owl"]}
    options = {"language_model": str(tmp_path), "local_files_only": True}
    assert load("simulatability").compute(**texts, **options)["accuracy"] == 1 / 2
    options["classes"] = ["cat", "owl", "polar bear", "dog"]
    assert load("simulatability").compute(**texts, **options)["accuracy"] == 1 / 4


def test_no_language_model_is_loaded_unless_asked_for(load, monkeypatch):
    simulatability = load("simulatability")
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(module_of(simulatability), name, None)
    assert simulatability.compute(predictions=["eyes"], references=["owl"], **LEARNED)["n"] == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_labels": None}, "Expected either `train_rationales` with `train_labels`, or .*, got neither"),
        ({"language_model": "a"}, "`train_rationales` with `train_labels`, or `language_model`, got both"),
        ({"labels": ["owl"]}, "`labels` must have one value for each of the 2 predictions, got 1"),
        ({"predictions": ["a", None]}, r"`predictions\[1\]` must be given, got None"),
        ({"labels": ["owl", 1.5]}, r"`labels\[1\]` must be the name or id of a class, .* got 1.5"),
        ({"train_labels": ["owl"]}, "`train_labels` must have one value for each of the 3 train_rationales, got 1"),
        ({"folds": [0, 1]}, "`train_folds` must be given, since `folds` and `train_folds` belong together"),
        ({"folds": [0, 1], "train_folds": [1, 1, 1]}, "`train_rationales` must have texts of other folds than 1"),
        (
            {"train_rationales": None, "language_model": "a", "classes": ["cat", "dog"]},
            r"`references\[0\]` must be one of the classes \['cat', 'dog'\], got 'owl'",
        ),
    ],
)
def test_simulatability_bad_inputs(fresh, changes, message):
    given = {"predictions": ["eyes", "tail"], "references": ["owl", "cat"], **LEARNED}
    with pytest.raises(ValueError, match=message):
        fresh("simulatability").compute(**given | changes)


# retrieval


def test_ranks_by_hand(load):
    """The best, level with one as the best, level with one behind one, and the last."""
    similarities = [[0.9, 0.1, 0.5, 0], [0, 0.5, 0.1, 0.5], [0.4, 0.3, 0.3, 0], [0.3, 0.2, 0.1, -1]]
    results = load("retrieval").compute(
        predictions=list("abcd"), candidates=list("ABCD"), similarity=lambda *given: similarities, per_item=True
    )
    items = results.pop("per_item")
    assert items["rank"] == [1, 1.5, 2.5, 4]
    assert items["recall_at_1"] == [1, 0.5, 0, 0] and items["recall_at_5"] == [1] * 4
    assert items["mean_reciprocal_rank"] == pytest.approx([1, (1 + 1 / 2) / 2, (1 / 2 + 1 / 3) / 2, 1 / 4])
    expected = {"recall_at_1": 1.5 / 4, "recall_at_5": 1, "median_rank": 2, "n": 4}
    expected["mean_reciprocal_rank"] = (1 + 3 / 4 + 5 / 12 + 1 / 4) / 4
    expected |= {"chance_recall_at_1": 1 / 4, "chance_recall_at_5": 1, "chance_median_rank": 2.5}
    expected["chance_mean_reciprocal_rank"] = (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    assert results == pytest.approx(expected)


def test_recall_at_5_by_hand(load):
    """The own one shares the ranks 5 to 7 with two others, to within rounding; what is level with all is at chance."""
    similarities = np.zeros((8, 8))
    similarities[0] = [0.5, 0.5 + 1e-9, 0.5, 0.9, 0.9, 0.8, 0.7, 0]
    results = load("retrieval").compute(
        predictions=[""] * 8, candidates=[""] * 8, similarity=lambda *given: similarities, per_item=True
    )
    assert results["per_item"]["recall_at_5"] == pytest.approx([1 / 3] + [5 / 8] * 7)
    assert results["per_item"]["recall_at_1"] == pytest.approx([0] + [1 / 8] * 7)
    for name in ("recall_at_1", "recall_at_5", "mean_reciprocal_rank"):
        assert results["per_item"][name][1] == pytest.approx(results[f"chance_{name}"])
    assert results["median_rank"] == results["chance_median_rank"] == 4.5


def test_similarity_by_words_by_hand(load):
    """Of three items the fish is in all, and tells nothing; two are red, one is an owl."""
    references = [["red fish"], ["fish", "red fish owl"], ["fish"]]
    red, owl = math.log(3 / 2), math.log(3)
    found = load("rationale").similarities(["red owl", "fish"], references)
    unigrams = [red / math.hypot(red, owl), 1 / 2, 0]  # of the second item's two texts one is alike, to the full
    np.testing.assert_allclose(found, [np.divide(unigrams, 4), [0, 0, 0]], atol=1e-12)


def test_similarity_by_words_is_cider_where_that_neither_clips_nor_punishes(load, without_meteor):
    rationale = load("rationale")
    texts = ["an owl sits at the left", "a dog runs to the right", "an owl runs at the right"]
    references = [[text] for text in texts[1:] + texts[:1]]
    scores = rationale.compute(predictions=texts, references=references, meteor=False, per_item=True)["per_item"]
    assert np.diagonal(rationale.similarities(texts, references)) * 10 == pytest.approx(scores["cider"])
    assert rationale.similarities(texts[:1], [[], [texts[0]], None]).tolist() == [[0, pytest.approx(1), 0]]


def test_retrieval_by_words_and_by_clip(load, clip_workplace, monkeypatch):
    retrieval, clip_score = load("retrieval"), load("clip_score")
    monkeypatch.chdir(clip_workplace)
    images, texts = direct_embeddings(clip_images(), TEXTS)
    similarity = partial(clip_score.similarities, model_name_or_path=CLIP, batch_size=3)
    np.testing.assert_allclose(similarity(TEXTS[:3], clip_images()), texts[:3] @ images.T, atol=1e-5)
    results = retrieval.compute(predictions=TEXTS, candidates=clip_images(), similarity=similarity, per_item=True)
    cosines = texts @ images.T
    ranks = [1 + sum(row > row[place] + 1e-6) for place, row in enumerate(cosines)]
    assert results["per_item"]["rank"] == ranks and len(set(ranks)) > 1


def test_retrieval_without_items(load):
    retrieval = load("retrieval")
    retrieval.add_batch(predictions=[])
    results = retrieval.compute(candidates=[], similarity=lambda *given: None)
    assert results.pop("n") == 0 and set(results.values()) == {None}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"similarity": None}, "`similarity` must be a function of predictions and candidates, .* got None"),
        ({"candidates": None}, "`candidates` must be a list of one for each of the 2 predictions, got None"),
        ({"candidates": [["a"]]}, "`candidates` must be a list of one for each of the 2 predictions, got 1"),
        ({"candidates": [["a"], None]}, r"`candidates\[1\]` must be given, got None"),
        ({"predictions": ["a", None]}, r"`predictions\[1\]` must be given, got None"),
        ({"similarity": lambda *given: [[1, 2]]}, r"an array of shape \(2, 2\), got \(1, 2\)"),
        ({"similarity": lambda *given: [[1, 2], [3, math.nan]]}, "must give finite values, got NaN or infinity"),
    ],
)
def test_retrieval_bad_inputs(fresh, changes, message):
    given = {"predictions": ["a", "b"], "candidates": [["a"], ["b"]], "similarity": lambda *given: np.eye(2)}
    with pytest.raises(ValueError, match=message):
        fresh("retrieval").compute(**given | changes)


# self_consistency

TALES = {
    "predictions": ["a red fish, at the left", "An owl", "the the dog", ""],
    "swapped_map": ["a red fish, at the right", "an owl", None, ""],
    "swapped_background": ["a red fish, at the left", "a cat", "the dog dog dog", "fish"],
}


def test_self_consistency_by_hand(load):
    results = load("self_consistency").compute(**TALES, correct=[True, False, True, False], per_item=True)
    items = results.pop("per_item")
    # five of six words; the same but for a capital; no text; nothing in both
    assert items["map_sensitivity"] == pytest.approx([1 / 6, 0, None, 0])
    assert items["map_unchanged"] == [0, 0, None, 1]
    # the same; none in common; "the" and "dog" once each, of three and four words; a word against nothing
    assert items["background_stability"] == pytest.approx([1, 0, 2 * 2 / 7, 0])
    assert items["background_stability_correct"] == pytest.approx([1, None, 4 / 7, None])
    expected = {"map_sensitivity": 1 / 18, "map_unchanged": 1 / 3, "n_map": 3, "n_background": 4}
    expected |= {"background_stability": 11 / 28, "background_unchanged": 1 / 4}
    expected |= {"map_sensitivity_correct": 1 / 6, "map_unchanged_correct": 0, "n_map_correct": 1}
    expected |= {"background_stability_correct": 11 / 14, "background_unchanged_correct": 1 / 2}
    assert results == pytest.approx(expected | {"n_background_correct": 2})


def test_self_consistency_of_what_is_given(load):
    whole = load("self_consistency").compute(**TALES)
    results = load("self_consistency").compute(predictions=TALES["predictions"], swapped_map=TALES["swapped_map"])
    assert (results["background_stability"], results["n_background"]) == (None, 0)
    assert results["map_sensitivity"] == whole["map_sensitivity"] and not [key for key in whole if "correct" in key]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"swapped_map": None, "swapped_background": None}, "`swapped_map` or `swapped_background` must be given"),
        ({"swapped_map": ["a"]}, "`swapped_map` must have one value for each of the 4 predictions, got 1"),
        ({"correct": [True, False, None, True]}, r"`correct\[2\]` must be True or False, got None"),
        ({"predictions": ["a", "b", None, "c"]}, r"`predictions\[2\]` must be a string, got None"),
    ],
)
def test_self_consistency_bad_inputs(fresh, changes, message):
    with pytest.raises(ValueError, match=message):
        fresh("self_consistency").compute(**TALES | changes)


# megl evaluate


def make_items(rationales, labels, **more):
    columns = {"rationale": rationales, "label": labels, "prediction": labels, **more}
    return [dict(zip(columns, row, strict=True)) | {"per_item": {}} for row in zip(*columns.values(), strict=True)]


def test_the_reader_of_a_split_learns_from_other_items_human_texts():
    labels = ["a", "b"] * 5
    references = [
        [f"{label} with {'feathers' if label == 'a' else 'whiskers'}", f"w{i}"] for i, label in enumerate(labels)
    ]
    items = make_items([f"it has {texts[0]}" for texts in references], labels)
    found = scores.simulatability_scores(items, references, ["a", "b"])
    assert (found["accuracy"], found["unnamed_accuracy"], found["n"], found["n_wrong"]) == (1, 1, 10, 0)
    assert items[0]["per_item"]["simulatability.unnamed_accuracy"] == 1
    assert items[0]["per_item"]["simulatability.accuracy_wrong"] is None
    named = make_items([f"it is {label}" for label in labels], labels)
    found = scores.simulatability_scores(named, references, ["a", "b"])
    assert found["accuracy"] == 1 and found["unnamed_accuracy"] <= 0.5
    # A word of the item's own human text alone: five of each class are learned from at most.
    own = make_items([texts[1] for texts in references], labels)
    assert scores.simulatability_scores(own, references, ["a", "b"])["accuracy"] <= 0.5
    for texts in ([[]] * 10, [["one"]] + [[]] * 9):
        assert scores.simulatability_scores(items, texts, ["a", "b"]) is None


def test_pictures_are_looked_for_among_those_with_human_texts(monkeypatch):
    references = [["an owl"], [], ["a fish"], ["a tree"]]
    items = make_items(["an owl", "an owl", "a fish", "a star"], ["x"] * 4)
    found = scores.retrieval_scores(items, references)
    assert found["n"] == 3 and found["recall_at_1"] == pytest.approx((1 + 1 + 1 / 2) / 3)  # "a" is in two
    assert set(items[0]["per_item"]) == {
        f"retrieval.{name}" for name in ("recall_at_1", "recall_at_5", "mean_reciprocal_rank")
    }
    assert items[1]["per_item"] == {}
    monkeypatch.setattr(scores, "MOST_CANDIDATES", 2)
    assert scores.retrieval_scores(items, references)["n"] == 2
    assert scores.retrieval_scores(items, [[]] * 4) is None


def test_texts_on_other_backgrounds_are_compared_where_there_are_some():
    items = make_items(
        ["a b", "c"], ["x", "y"], shuffled_rationale=["a", "c"], other_background_rationale=[None, "c d"]
    )
    items[1]["prediction"] = "x"
    found = scores.self_consistency_scores(items)
    assert (found["map_sensitivity"], found["background_stability"]) == pytest.approx((1 / 6, 2 / 3))
    assert (found["n_map_correct"], found["n_background_correct"]) == (1, 0)
    assert items[0]["per_item"]["self_consistency.background_stability"] is None
    assert scores.self_consistency_scores(make_items(["a"], ["x"])) is None
