"""One process of the test that two train as one: `torchrun --nproc_per_node 2 two_processes.py FOLDER`."""

import os
import sys
from pathlib import Path

import torch
import two_shapes
from explained_rows import make_rows, trained
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


# Each a visual loss and a distribution statistic: one with recombined pictures besides, each with a mask, and one of a
# multi-label model.
CASES = {"gradia": "moments", "res_g": "layout", "res_l": "quantiles", "energy": "moments", "rrr": "moments"}
RECOMBINED = {"energy": {"recombine": 0.7}}
MULTI_LABEL = {"rrr": {"distribution_loss_weight": 0.0}}
LOGGED = ("loss", "grad_norm", "loss_classification", "loss_visual", "loss_text", "loss_distribution")
# Three steps of eight images; with two processes the first takes four of each step, and the second four.
WITH_MASK = {*range(4), *range(20, 24)}


class TrainerInOrder(MeglTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def several_labels():
    """Two labels a picture, but for the second process's in the first step and all of the second step, with none."""
    return two_shapes.make_rows(24, masks="first", empty=range(4, 16))


def train(case, folder, batch_size, name):
    """Train three steps; write logs, weights and statistics to `{case}-{name}.safetensors`. The Trainer."""
    options = {"distribution_loss_weight": 0.1, **RECOMBINED.get(case, {}), **MULTI_LABEL.get(case, {})}
    trainer = TrainerInOrder(
        model=MeglForImageClassification.from_pretrained(folder / ("labels" if case in MULTI_LABEL else "model")),
        processing_class=MeglProcessor.from_pretrained(folder / "model"),
        args=MeglTrainingArguments(
            output_dir=str(folder / name),
            per_device_train_batch_size=batch_size,
            max_steps=3,
            optim="sgd",
            learning_rate=0.01,
            max_grad_norm=1e9,
            lr_scheduler_type="constant",
            visual_loss=case,
            distribution_statistic=CASES[case],
            **options,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=several_labels() if case in MULTI_LABEL else make_rows(24, masks=WITH_MASK),
    )
    before = trained(trainer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    logged = [key for key in LOGGED if key in logs[0]]
    results = {f"log.{key}": torch.tensor([entry[key] for entry in logs]) for key in logged}
    # Changes, not weights: a gradient that is twice too large must not hide behind the weights themselves.
    changes = {key: (value - before[key]).contiguous() for key, value in trained(trainer).items()}
    save_file({**results, **changes}, folder / f"{case}-{name}.safetensors")
    return trainer


if __name__ == "__main__":
    for visual_loss in CASES:
        trainer = train(visual_loss, Path(sys.argv[1]), batch_size=4, name=f"two-{os.environ['RANK']}")
    trainer.end()
