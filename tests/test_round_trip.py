"""The round trip of docs/own_data.md, with few pictures and steps: from a folder of pictures to a corrected model."""

import json
import shutil
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from examples.own_data import annotate_by_truth, round_trip
from examples.own_data.draw import draw, plan
from megl import cli
from megl.annotation.server import AnnotationServer
from megl.annotation.store import Annotations
from megl.annotation.suggestions import Suggestions, load_suggester
from megl.tables import open_table
from modeling_megl import MeglForImageClassification


SHORT = "--max_steps 2 --per_device_train_batch_size 2 --report_to none --disable_tqdm True"


@contextmanager
def serving(folder, model=None):
    """What `annotate_by_truth.annotating` starts, in this process."""
    suggest, names = load_suggester(str(model)) if model else (None, [])
    with Annotations(folder) as annotations:
        suggestions = Suggestions(annotations, suggest) if suggest else None
        with AnnotationServer(annotations, 0, suggestions, names, "drawn") as server:
            if suggestions:
                suggestions.start()
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            yield server.address
            server.shutdown()
            thread.join()


@pytest.fixture
def garden(tmp_path, monkeypatch, own_cache):
    """Four fish and four houses, of which the first and the third of each stand on the other's background."""
    monkeypatch.setattr(annotate_by_truth, "annotating", serving)
    draw(tmp_path / "garden", range(8), tmp_path / "truth", mislead=2)
    return tmp_path / "garden"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_drawn(garden, tmp_path):
    assert [plan(number, 10).background for number in (0, 1, 2, 3, 20, 21)] == [
        "sea",
        "sand",
        "sand",
        "sea",
        "sea",
        "sand",
    ]
    assert [plan(number, 0).background for number in (0, 1)] == ["sand", "sea"]
    names = [f"{('house', 'fish')[number % 2]}/{number:02d}.png" for number in range(8)]
    found = [path.relative_to(garden).as_posix() for path in garden.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(names)
    lines = read_lines(tmp_path / "truth" / "metadata.jsonl")
    assert [line["file_name"] for line in lines] == names
    assert [line["group"] for line in lines] == ["conflicting"] * 2 + ["aligned"] * 2 + ["conflicting"] * 2 + [
        "aligned"
    ] * 2


def test_a_corrected_folder_is_trained_on_from_the_last_model(garden, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = annotate_by_truth.annotate(garden, tmp_path / "truth", 4)
    assert said == [(name, "no mask") for name in ("fish/01.png", "house/00.png", "fish/03.png", "house/02.png")]
    truth = {line["file_name"]: line for line in read_lines(tmp_path / "truth" / "metadata.jsonl")}
    for row in read_lines(garden / "metadata.jsonl"):
        if row["file_name"] in dict(said):
            drawn = np.asarray(Image.open(tmp_path / "truth" / "masks" / row["file_name"])) > 127
            np.testing.assert_array_equal(Image.open(garden / row["visual_explanation_file_name"]), 255 * drawn)
            assert row["textual_explanations"] == truth[row["file_name"]]["textual_explanations"]

    first, second = "megl-resnet-tiny", "second"  # a preset's name is a preset until there is a folder of that name
    settings = ("--dataset_name", garden, *SHORT.split(), "--recombine", 1)
    run("train_megl", "--model_name_or_path", first, "--output_dir", first, *settings)
    rows = open_table(garden, "train")
    assert len(rows) == 8 and sum(mask is not None for mask in rows["visual_explanation"]) == 4

    suggest, names = load_suggester(first)
    assert names == rows.features["label"].names == ["fish", "house"]
    waiting = [name for name in truth if name not in dict(said)]
    places = {}
    for name in waiting:
        answer = suggest(Image.open(garden / name))
        wrong = answer.label != truth[name]["label"]
        places[name] = (0, -answer.score) if wrong else (2, answer.score)
    more = annotate_by_truth.annotate(garden, tmp_path / "truth", 2, first)
    assert [name for name, _ in more] == sorted(waiting, key=places.get)[:2]

    # A step that changes nothing shows what it starts from.
    still = ("--learning_rate", 0, "--max_steps", 1)
    run("train_megl", "--model_name_or_path", first, "--output_dir", second, *settings, *still, "--training_page")
    next_command = f"megl evaluate --model {second} --dataset {garden} --output second-evaluation --update_card"
    assert f"{next_command} --split train" in (tmp_path / second / "training.html").read_text()
    rows = open_table(garden, "train")
    assert sum(mask is not None for mask in rows["visual_explanation"]) == 6
    before, after = (
        dict(MeglForImageClassification.from_pretrained(name).named_parameters()) for name in (first, second)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_table_of_the_page(garden, tmp_path, monkeypatch, capsys):
    audits = []

    def run(*words):
        if words[0] == "audit":
            audits.append(words[-1])
        if len(audits) > 1 and words[0] == "audit":  # the others as the first, which takes long enough
            shutil.copytree(audits[0], words[-1])
            return
        short = ("--resamples", 2) if words[0] == "audit" else ()
        monkeypatch.setattr(sys, "argv", ["megl", *map(str, (*words, *short))])
        cli.main()

    monkeypatch.setattr(round_trip, "run", run)
    options = f"--draws 1 --pictures 6 --annotate 2 --held_out 8 --output {tmp_path / 'trip'}"
    monkeypatch.setattr(sys, "argv", ["round_trip", *options.split(), "--training", SHORT])
    round_trip.main()
    lines = capsys.readouterr().out.splitlines()[-7:]
    assert lines[0] == "| learnt from | accuracy where misled | accuracy | IoU of the map |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| labels alone",
        "| 2 annotated",
        "| trained on, 2 more: in the queue's order",
        "| trained on, 2 more: at random",
        "| trained on, 2 more: none",
    ]
    done = {path.parent.name: len(read_lines(path)) for path in (tmp_path / "trip").rglob("annotations.jsonl")}
    assert done == {"garden": 2, "garden in the queue's order": 4, "garden at random": 4, "garden none": 2}


def test_figures_over_draws():
    rows = {"labels": [{"accuracy": 0.5, "IoU": 0.25}, {"accuracy": 1.0, "IoU": 0.75}]}
    assert round_trip.table(rows).splitlines() == [
        "| learnt from | accuracy | IoU |",
        "|---|---:|---:|",
        "| labels | 0.75 (0.50 to 1.00) | 0.50 (0.25 to 0.75) |",
    ]
