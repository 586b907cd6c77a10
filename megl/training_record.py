"""What a training leaves to look at: its curves beside the model, and the run as one page."""

import shlex
from pathlib import Path

from transformers import TrainerCallback
from transformers.utils import logging

from megl.evaluation.card import TRAINING_CURVES
from megl.explanation_sheet import FOLDER
from megl.pages.training import write_curves, write_training


logger = logging.get_logger(__name__)

PAGE = "training.html"


class TrainingRecord(TrainerCallback):
    """
    Writes the curves of what was logged, `training_curves.svg`, into the output folder at each evaluation and at the
    end, and the run as a page, `training.html`, if asked for. A training that goes on from a checkpoint shows all of
    it.

    Args:
        settings (`dict`, *optional*): What the page says of the training; without, there is no page.
        next_commands (`list[str]`): What it says to type after the training.
    """

    def __init__(self, settings=None, next_commands=()):
        self.settings, self.next_commands = settings, list(next_commands)

    def on_evaluate(self, args, state, control, **kwargs):
        self._write(args, state, [])

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, state, self.next_commands)

    def _write(self, args, state, next_commands):
        if not state.is_world_process_zero:
            return
        output = Path(args.output_dir)
        try:
            write_curves(output / TRAINING_CURVES, state.log_history)
            if self.settings is not None:
                sheets = sorted(output.glob(f"{FOLDER}/step-*.png"))
                # A run that goes on from an earlier checkpoint makes the later ones anew.
                sheets = [sheet for sheet in sheets if int(sheet.stem[len("step-") :]) <= state.global_step]
                write_training(output / PAGE, state, self.settings, sheets, next_commands)
        except OSError as error:  # which is no reason to lose the training
            logger.warning(f"What was logged is not drawn in {output}: {error}")


def next_steps(output, data, options=()):
    """
    The commands that follow a training.

    Args:
        output (`str`): Folder of the model.
        data (`str`): Hub id or folder of the data set.
        options (`list[str]`): Options that the evaluation needs besides, such as names of columns.
    """
    name = Path(output).resolve().name.lstrip("-")
    lines = [
        ["evaluate", "--model", output, "--dataset", data, "--output", f"{name}-evaluation", "--update_card"],
        ["explain", "--model", output, "PICTURE", "--output", f"{name}-explanations"],
        ["push", output, f"ME/{name}", "--dry_run"],
    ]
    lines[0] += options
    return [shlex.join(["megl", *line]) for line in lines]
