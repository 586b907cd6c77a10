"""Bars of progress: every long step of a command has one on a terminal, and none shows where nobody looks."""

import io
import sys
from functools import partial

import pytest
from dataset_sources import make_image_folder
from datasets import disable_progress_bars, enable_progress_bars
from explained_rows import make_dataset

from dataset_builders import ObjectMe, build_dataset
from megl.annotation.suggestions import Suggestions
from megl.evaluation import bootstrap
from megl.terminal import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture()
def bars(monkeypatch):
    """`bars(call, *words)`: what a call writes to standard error, a terminal."""

    def bars(call, *words, stream=Terminal):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr", stream())
            call(*words)
            return sys.stderr.getvalue()

    return bars


@pytest.fixture()
def model(make_model, processor, tmp_path):
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture()
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        make_dataset(6, masks="all").to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path / "data"


def go(**settings):
    assert list(progress([1, 2], "steps", **settings)) == [1, 2]


def test_a_bar_on_a_terminal_alone(bars):
    assert "steps: 100%" in bars(go)
    assert bars(go, stream=io.StringIO) == ""


def test_no_bar_where_it_is_not_wanted(bars):
    assert bars(lambda: go(shown=False)) == ""
    disable_progress_bars()
    try:
        assert bars(go) == ""
    finally:
        enable_progress_bars()


def test_prepare_counts_pictures_or_the_parts_of_several_processes(tmp_path, bars):
    sizes = {"train": 4, "validation": 3, "test": 2}
    shown = bars(partial(build_dataset, ObjectMe, "sample", tmp_path / "drawn", sample_sizes=sizes))
    assert "train: 4 pictures" in shown and "test: 2 pictures" in shown and "parts" not in shown
    source = make_image_folder(tmp_path / "source", 8)
    options = {"num_proc": 2, "max_shard_size": 100, "validation_share": 0, "test_share": 0}
    shown = bars(partial(build_dataset, ObjectMe, source, tmp_path / "own", **options))
    assert "prepare train: 100%" in shown and "8/8" in shown and "pictures" not in shown


def test_evaluate_and_explain(run, model, data, tmp_path, bars):
    words = ("--dataset", data, "--split", "test", "--interventions", "train", "--resamples", 5)
    shown = bars(run, "evaluate_megl", "--model", model, *words, "--output", tmp_path / "evaluation")
    for step in ("objects", "predict", "control", "texts", "bootstrap"):
        assert f"{step}: 100%" in shown, step
    picture = tmp_path / "evaluation" / "examples.png"
    shown = bars(run, "explain", "--model", model, picture, "--output", tmp_path / "explanations")
    assert "explain: 100%" in shown


def test_export(run, model, tmp_path, bars):
    shown = bars(run, "export", model, "--format", "torch", "--output", tmp_path / "program")
    assert "export: 100%" in shown and "3/3" in shown


def test_blocks_of_resamples_are_counted(monkeypatch, bars):
    items = [{"label": "a", "prediction": "a", "group": None, "per_item": {}}] * 9
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 36)  # four resamples of nine items
    shown = bars(bootstrap.intervals, items, 50, 0)
    assert "bootstrap: 100%" in shown and "13/13" in shown


def test_suggestions(bars):
    class Nothing(list):
        def image(self, number):
            raise OSError("no picture")

    suggestions = Suggestions(Nothing([0, 1, 2]), None)
    assert "suggestions: 100%" in bars(suggestions.run) and suggestions.failed.keys() == {0, 1, 2}
