"""The metrics of what a rationale tells: simulatability, retrieval and self_consistency."""

import math
from functools import partial

import evaluate
import numpy as np
import pytest
import torch
from metric_modules import CLIP, TEXTS, clip_images, direct_embeddings, module_of
from transformers import LlamaConfig, LlamaForCausalLM


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


