"""What a training leaves to look at: points where the figures are, the whole history, and a page of it all."""

import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from explained_rows import make_dataset
from pages import Page
from PIL import Image

from megl.evaluation.card import card_facts
from megl.pages.training import curves, write_curves, write_training
from megl.training_record import TrainingRecord, next_steps


SVG = "{http://www.w3.org/2000/svg}"
HISTORY = [
    {"step": 5, "loss": 4.0, "loss_text": 2.0, "learning_rate": 1.0},
    {"step": 10, "loss": 1.0, "loss_text": float("nan")},
    {"step": 10, "eval_loss": 2.0, "eval_accuracy": 0.5, "eval_runtime": 3.0},
    {"step": 10, "train_loss": 2.5, "train_runtime": 9.0},
]
# Of a chart of 560 by 220: what its axes leave at the left, the right, the top and the bottom.
LEFT, RIGHT, TOP, BOTTOM = 56, 560 - 12 - 6.5 * 22, 12, 220 - 44


def lines(chart, colour):
    """The places that the lines of a colour go through, of those with more than one."""
    paths = [path for path in ElementTree.fromstring(chart).iter() if path.tag.removeprefix(SVG) == "path"]
    paths = [path.get("d") for path in paths if f"stroke: var(--{colour})" in path.get("style", "")]
    places = [[tuple(map(float, place)) for place in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)] for path in paths]
    return [line for line in places if len(line) > 1]


def test_a_curve_goes_through_what_was_logged():
    (name, loss), (_, text), (_, accuracy) = found = curves(HISTORY)
    assert [name for name, _ in found] == ["loss, the weighted sum", "text loss", "accuracy"]
    middle = (LEFT + RIGHT) / 2
    assert lines(loss, "strong") == [[(middle, TOP), (RIGHT, BOTTOM - (BOTTOM - TOP) / 4)]]  # 4 at step 5, 1 at 10
    assert "training, step 10: 1.000" in loss and "evaluation, step 10: 2.000" in loss
    assert lines(text, "strong") == [] and "training, step 5: 2.000" in text  # what is no number is no point
    assert "evaluation, step 10: 0.500" in accuracy and "training" not in accuracy


def test_thousands_of_steps_are_thinned_and_keep_their_ends():
    chart = curves([{"step": step, "loss": 1.0} for step in range(1, 5001)])[0][1]
    assert chart.count("<title>") == 200 and "step 1:" in chart and "step 5,000:" in chart


def test_the_figure_stands_by_itself(tmp_path):
    path = tmp_path / "curves.svg"
    assert write_curves(path, HISTORY)
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == f"{SVG}svg" and root.get("viewBox") == "0 0 1132 452"  # two in a row, with a gap of 12
    places = [(chart.get("x"), chart.get("y")) for chart in root.findall(f"{SVG}svg")]
    assert places == [("0", "0"), ("572", "0"), ("0", "232")]
    assert "--strong: #2a6fb0" in root.find(f"{SVG}style").text
    assert not re.search(r"http(?!://www.w3.org/2000/svg)|<script", path.read_text())


def test_without_anything_logged_there_is_no_figure(tmp_path):
    assert not write_curves(tmp_path / "curves.svg", HISTORY[3:]) and not list(tmp_path.iterdir())
    state = SimpleNamespace(log_history=HISTORY[3:], global_step=1, max_steps=1)
    write_training(tmp_path / "training.html", state, {}, [], [])
    text = " ".join(Page((tmp_path / "training.html").read_text()).texts)
    assert "Nothing was logged" in text and "Under way" in text and "--resume_from_checkpoint True" in text


def test_figures_of_pictures_that_were_trained_on_are_called_so(tmp_path):
    state = SimpleNamespace(log_history=HISTORY, global_step=1000, max_steps=1000)
    for split, words in (
        ("train", "On the pictures that it was trained on"),
        ("validation", "On the evaluation split"),
    ):
        write_training(tmp_path / "training.html", state, {"train_split": "train", "eval_split": split}, [], [])
        assert words in (tmp_path / "training.html").read_text()


def test_the_page_has_settings_sheets_figures_and_what_is_next(tmp_path):
    sheets = []
    for step in (1, 2, 3, 4, 5, 6, 7, 8, 100):
        sheets.append(tmp_path / f"step-{step:06d}.png")
        Image.new("RGB", (40, 20)).save(sheets[-1])
    history = [*HISTORY, {"step": 1000, "eval_loss": 0.25, "eval_accuracy": 1.0, "eval_runtime": 1.0}]
    state = SimpleNamespace(log_history=history, global_step=1000, max_steps=1000)
    settings = {"dataset_name": "<b>birds</b>", "seed": 3, "frozen_layer": None}
    write_training(
        tmp_path / "training.html", state, settings, sheets, next_steps("out/a b", "birds", ["--group", "g"])
    )
    page = Page((tmp_path / "training.html").read_text())
    text = " ".join(" ".join(page.texts).split())
    for words in (
        "Done: step 1,000 of 1,000.",
        "step 10 step 1,000 loss, the weighted sum 2.000 0.250 accuracy 0.500 1.000 On the evaluation",
        "6 of 9 sheets",
        "dataset_name <b>birds</b> seed 3 What",
        "megl evaluate --model 'out/a b' --dataset birds --output 'a b-evaluation' --update_card --group g",
        "megl push 'out/a b' 'ME/a b' --dry_run",
    ):
        assert words in text, words
    shown = [image["alt"].rpartition("step ")[2] for image in page.all("img")]
    assert shown == ["1", "3", "4", "6", "7", "100"] and len(page.all("svg")) == 3
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))


def recorded(make_trainer, output, **settings):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, **settings}
    trainer = make_trainer(evaluated=make_dataset(4), output=output, **settings)
    trainer.add_callback(TrainingRecord({"seed": 0}, ["megl evaluate"]))
    return trainer


def test_a_resumed_training_shows_all_of_it(make_trainer, tmp_path):
    recorded(make_trainer, "run").train()
    first = (tmp_path / "run" / "training_curves.svg").read_text()
    assert "training, step 2:" in first and "step 3:" not in first
    sheets = tmp_path / "run" / "explanations"
    sheets.mkdir()
    for step in (2, 9):  # the later one of a run that went on from an earlier checkpoint than its last
        Image.new("RGB", (8, 8)).save(sheets / f"step-{step:06d}.png")
    recorded(make_trainer, "run", max_steps=4).train(resume_from_checkpoint=True)
    whole = (tmp_path / "run" / "training_curves.svg").read_text()
    assert all(f"training, step {step}:" in whole for step in (1, 2, 3, 4)) and "evaluation, step 2:" in whole
    page = Page((tmp_path / "run" / "training.html").read_text())
    assert "megl evaluate" in page.texts and [image["alt"].rpartition(" ")[2] for image in page.all("img")] == ["2"]
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    value = next(entry["loss_visual"] for entry in state["log_history"] if entry["step"] == 1)
    assert f"training, step 1: {value:.3f}" in whole


def test_what_cannot_be_drawn_ends_no_training(make_trainer, tmp_path):
    (tmp_path / "full" / "training_curves.svg").mkdir(parents=True)
    trainer = recorded(make_trainer, "full", save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("drawn", [True, False])
def test_the_card_shows_the_curves_that_there_are(drawn, make_model, processor, tmp_path):
    if drawn:
        (tmp_path / "training_curves.svg").write_text("<svg/>")
    shown = card_facts(tmp_path, make_model("megl-resnet-tiny"), processor)["curves"]
    words = "Loss, its terms and accuracy over the steps, in training and in evaluation"
    assert shown == (f"\n\n![{words}](training_curves.svg)" if drawn else "")
