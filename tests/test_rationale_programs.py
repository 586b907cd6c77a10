"""The scores of `metrics/rationale` that other programs compute: METEOR, SPICE and BERTScore."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from metric_modules import PTB_TOKENS, needs_golden, read_golden
from transformers import BertConfig, BertModel, BertTokenizer

from benchmarks import metrics as benchmark_metrics


TEXTS = ["the owl sits at the upper left", "a red apple lies in the centre", ""]
REFERENCES = [["the owl sits at the upper left"], ["dogs run", "a red apple"], ["a thing"]]


@pytest.fixture
def with_meteor(load):
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap, which is in the extra `captions`")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    return load("rationale")


# METEOR. Its program takes seconds to start, so that few tests run it.


@needs_golden
@pytest.mark.golden
def test_meteor_golden(with_meteor):
    golden = read_golden("captions.json")
    expected = golden["scores"]["meteor"]
    results = with_meteor.compute(predictions=golden["predictions"], references=golden["references"], per_item=True)
    assert results["meteor"] == pytest.approx(expected["corpus"], rel=1e-4)
    assert results["per_item"]["meteor"] == pytest.approx(expected["each"], rel=1e-4, abs=1e-8)
    assert "meteor" not in results["absent"]


def test_meteor_perfect_disjoint_empty_and_order(with_meteor):
    predictions, references = [*TEXTS, "it ||| is", "x"], [*REFERENCES, ["it ||| is"], ["..."]]
    forward = with_meteor.compute(predictions=predictions, references=references, per_item=True)
    items = forward["per_item"]["meteor"]
    assert items[0] == items[3] == 1 and items[2] == items[4] == 0
    assert 0 < items[1] < 1
    backward = with_meteor.compute(predictions=predictions[::-1], references=references[::-1], per_item=True)
    assert backward["per_item"]["meteor"] == pytest.approx(items[::-1])
    assert backward["meteor"] == pytest.approx(forward["meteor"]) and 0 < forward["meteor"] < 1


def test_tokens_equal_the_program_of_the_reference(with_meteor):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    expected = {text: tokens for texts in PTB_TOKENS.values() for text, tokens in texts.items()}
    found = PTBTokenizer().tokenize({text: [{"caption": text}] for text in expected})
    assert {text: tokens for text, (tokens,) in found.items()} == expected


def test_meteor_names_a_java_that_does_not_work(with_meteor, tmp_path, monkeypatch):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no runtime here' >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    results = with_meteor.compute(predictions=TEXTS, references=REFERENCES, per_item=True)
    assert results["meteor"] is None and results["per_item"]["meteor"] is None
    assert results["absent"]["meteor"] == "METEOR needs a Java that runs its program: no runtime here"
    assert results["rouge_l"] > 0


def test_meteor_without_pycocoevalcap(rationale):
    results = rationale.compute(predictions=TEXTS, references=REFERENCES, per_item=True)
    scores = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider"]
    assert list(results) == [*scores, "n", "n_without_reference", "absent", "per_item"]
    assert results["meteor"] is None and results["per_item"]["meteor"] is None
    assert results["absent"] == {
        "meteor": "METEOR needs the package pycocoevalcap: `pip install pycocoevalcap`",
        "spice": "not asked for",
        "bert_score": "not asked for",
    }


def test_meteor_without_java(rationale, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", SimpleNamespace())
    monkeypatch.setenv("PATH", "")
    absent = rationale.compute(predictions=TEXTS, references=REFERENCES)["absent"]
    assert absent["meteor"] == "METEOR needs Java: there is no `java` on the PATH"


def test_meteor_is_not_run_when_it_is_not_wanted(rationale, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", SimpleNamespace())  # has no program to start
    results = rationale.compute(predictions=TEXTS, references=REFERENCES, meteor=False, per_item=True)
    assert (results["meteor"], results["absent"]["meteor"]) == (None, "not asked for")
    assert "meteor" not in results["per_item"]


def test_nothing_to_score(rationale):
    results = rationale.compute(predictions=[], references=[], spice=True, bert_score="a", per_item=True)
    assert (results["meteor"], results["spice"], results["bert_score"]) == (None, None, None)
    assert (results["absent"], results["n"], results["per_item"]["spice"]) == ({}, 0, [])


# SPICE. The program itself needs an old Java and 400 MB of parsers; what is tested is what it is given and gives.


@pytest.fixture
def spice(tmp_path, monkeypatch):
    """A stand-in for `pycocoevalcap.spice.spice`: `given` are its inputs, and `answer` what it does."""
    stand_in = SimpleNamespace(__file__=str(tmp_path / "spice.py"), given=[], folder=tmp_path / "lib")

    class Spice:
        def compute_score(self, references, hypotheses):
            stand_in.given.append((references, hypotheses))
            return stand_in.answer()

    stand_in.Spice = Spice
    stand_in.folder.mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (stand_in.folder / name).touch()
    java = tmp_path / "java"
    java.touch()
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", stand_in)
    return stand_in


def test_spice(rationale, spice):
    spice.answer = lambda: (np.nan, [{"All": {"f": score}, "Color": {"f": 1.0}} for score in (1.0, 0.5, np.nan)])
    results = rationale.compute(predictions=TEXTS, references=REFERENCES, spice=True, per_item=True)
    assert results["spice"] == pytest.approx(0.5) and results["per_item"]["spice"] == [1, 0.5, 0]
    assert "spice" not in results["absent"]
    assert spice.given == [
        (dict(enumerate(REFERENCES)), {0: [TEXTS[0]], 1: [TEXTS[1]], 2: [""]}),
    ]


def test_spice_names_what_is_missing(rationale, spice, monkeypatch):
    def answer():
        raise subprocess.CalledProcessError(1, ["java"])

    spice.answer = answer
    inputs = {"predictions": TEXTS, "references": REFERENCES, "spice": True}
    results = rationale.compute(**inputs)
    assert results["spice"] is None
    assert results["absent"]["spice"] == "SPICE needs a Java that runs its program, from 8 to 15, and 8 GB: 1"
    (spice.folder / "stanford-corenlp-3.6.0-models.jar").unlink()
    assert "needs stanford-corenlp-3.6.0-models.jar in" in rationale.compute(**inputs)["absent"]["spice"]
    monkeypatch.setenv("PATH", "")
    assert rationale.compute(**inputs)["absent"]["spice"] == "SPICE needs Java: there is no `java` on the PATH"
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", None)
    assert rationale.compute(**inputs)["absent"]["spice"].startswith("SPICE needs the package pycocoevalcap")
    assert len(spice.given) == 1


# CIDEr, which is our own


def test_cider_equals_pycocoevalcap_where_they_are_timed():
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap, which is in the extra `captions`")
    pairs = benchmark_metrics.compare_cider(items=30, references=3, repeats=2)  # compares their scores first
    assert len(pairs) == 2 and all(seconds > 0 for pair in pairs for seconds in pair)


def test_benchmark_names_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    monkeypatch.setattr(sys, "argv", ["benchmark_metrics.py", "--maps", "2", "--repeats", "1"])
    with pytest.raises(SystemExit, match="compares with pycocoevalcap: `pip install pycocoevalcap`"):
        benchmark_metrics.main()


# BERTScore


WORDS = sorted({word for texts in [TEXTS, *REFERENCES] for text in texts for word in text.split()})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a tiny random BERT."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=0.5, **sizes)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def direct_bert_score(folder, text, reference, layer):
    """The F1 of greedily matched words, one pair at a time. A word may match a special token, which does not count."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    words = []
    for sentence in (text, reference):
        with torch.no_grad():
            hidden = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states
        words.append(torch.nn.functional.normalize(hidden[layer][0], dim=-1))
    cosines = words[0] @ words[1].T
    precision, recall = cosines[1:-1].max(dim=1).values.mean(), cosines[:, 1:-1].max(dim=0).values.mean()
    return (2 * precision * recall / (precision + recall)).item()


def test_bert_score_equals_direct_computation(rationale, bert):
    pytest.importorskip("bert_score", reason="needs bert-score, which is in the extra `captions`")
    references = [*REFERENCES[:2], ["a thing", ""], ["", " "]]
    arguments = {"bert_score": bert, "bert_score_layers": 2, "per_item": True}
    results = rationale.compute(predictions=[*TEXTS, "a red owl"], references=references, **arguments)
    expected = [
        max(direct_bert_score(bert, text, reference, layer=2) for reference in several)
        for text, several in zip(TEXTS[:2], REFERENCES[:2], strict=True)
    ]
    assert expected[0] == pytest.approx(1) and expected[1] < 0.99
    assert results["per_item"]["bert_score"] == pytest.approx([*expected, 0, 0], abs=1e-5)
    assert results["bert_score"] == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert "bert_score" not in results["absent"]


def test_bert_score_needs_a_layer(rationale, bert):
    pytest.importorskip("bert_score", reason="needs bert-score, which is in the extra `captions`")
    with pytest.raises(ValueError, match="`bert_score_layers` must say which layer of .* to compare, got None"):
        rationale.compute(predictions=TEXTS, references=REFERENCES, bert_score=bert)


def test_bert_score_without_its_package(rationale, monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    results = rationale.compute(predictions=TEXTS, references=REFERENCES, bert_score="a", per_item=True)
    assert results["bert_score"] is None and results["per_item"]["bert_score"] is None
    assert results["absent"]["bert_score"] == "BERTScore needs the package bert-score: `pip install bert-score`"
