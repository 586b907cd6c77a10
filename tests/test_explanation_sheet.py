"""The sheet of explanations: where it goes, what is on it, and that the training is as it would be without."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from explained_rows import make_dataset
from PIL import Image
from transformers import TrainerCallback

from megl.explanation_sheet import ExplanationSheet
from modeling_megl import add_lora
from scripts.train_megl import add_sheet


class TensorBoardCallback(TrainerCallback):
    def __init__(self):
        self.shown = []
        self.tb_writer = SimpleNamespace(add_image=lambda *given, **options: self.shown.append((*given, options)))


class TrackioCallback(TrainerCallback):
    pass


class WandbCallback(TrainerCallback):
    pass


def trained(make_trainer, sheet, output, **settings):
    dataset = make_dataset(6)
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, **settings}
    trainer = make_trainer(evaluated=dataset, output=output, **settings)
    if sheet:
        trainer.add_callback(ExplanationSheet(trainer, 4))
    return trainer


def test_a_sheet_at_each_evaluation_changes_nothing_else(make_trainer, tmp_path):
    weights = []
    for name in ("with", "without"):
        trainer = trained(make_trainer, name == "with", name)
        trainer.train()
        weights.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    files = sorted(path.name for path in (tmp_path / "with" / "explanations").iterdir())
    assert files == ["step-000001.png", "step-000002.png"] and not (tmp_path / "without" / "explanations").exists()
    first, second = (Image.open(tmp_path / "with" / "explanations" / name) for name in files)
    assert first.size == second.size == (2 * 528, 2 * 268)
    assert not np.array_equal(np.asarray(first), np.asarray(second)), "the model has learned in between"


def test_the_sheet_goes_where_the_trainer_reports(make_trainer, monkeypatch):
    logged = []
    for name in ("trackio", "wandb"):
        module = SimpleNamespace(
            Image=lambda sheet: sheet.size, log=lambda given, name=name: logged.append((name, given))
        )
        monkeypatch.setitem(sys.modules, name, module)
    trainer = trained(make_trainer, True, "run", max_steps=1)
    board = TensorBoardCallback()
    for callback in (board, TrackioCallback(), WandbCallback()):
        trainer.add_callback(callback)
    trainer.train()
    ((tag, picture, step, options),) = board.shown
    assert (tag, picture.shape, step, options) == ("explanations", (536, 1056, 3), 1, {"dataformats": "HWC"})
    assert logged == [
        ("trackio", {"explanations": (1056, 536)}),
        ("wandb", {"explanations": (1056, 536), "train/global_step": 1}),
    ]


def test_beside_adapters_and_without_rationales(make_trainer, make_model, tmp_path):
    trainer = trained(make_trainer, True, "lora", model=add_lora(make_model("megl-resnet-tiny"), 2), max_steps=1)
    trainer.train()
    assert (tmp_path / "lora" / "explanations" / "step-000001.png").is_file()
    trainer = trained(make_trainer, True, "silent", text_loss_weight=0)
    ((_, shown), *_) = trainer.callback_handler.callbacks[-1]._explained(trainer.model)
    assert shown["rationale"] == "" and shown["prediction"] in trainer.model.config.id2label.values()


def test_a_sheet_that_cannot_be_written_ends_nothing(make_trainer, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "explanations").write_text("in the way")
    trainer = trained(make_trainer, True, "full", max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_sheet_needs_evaluations(make_trainer):
    with pytest.raises(ValueError, match="`--explanation_sheet` is made at each evaluation: name an `--eval_split`"):
        add_sheet(make_trainer(evaluated=make_dataset(4)), 4)
