"""What a model answers in training: the same pictures with maps and rationales at each evaluation."""

from pathlib import Path

import numpy as np
from transformers import TrainerCallback
from transformers.utils import logging

from megl.pages.pictures import draw_sheet
from megl.tables import evenly_spaced, read_row


logger = logging.get_logger(__name__)

FOLDER = "explanations"


class ExplanationSheet(TrainerCallback):
    """
    At each evaluation explains the same pictures, evenly spaced over the evaluation split, and puts them on one sheet:
    `explanations/step-000100.png` in the output folder, and as `explanations` in TensorBoard, Trackio and Weights &
    Biases where the Trainer reports there. The training is what it would be without.

    Args:
        trainer ([`MeglTrainer`]): The trainer, with an evaluation split; its model must not be sharded.
        pictures (`int`): How many.
    """

    def __init__(self, trainer, pictures):
        dataset = trainer.eval_dataset
        self.trainer, self.processor = trainer, trainer.processing_class
        self.rows = [read_row(dataset, place) for place in evenly_spaced(pictures, len(dataset))]

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / FOLDER / f"step-{state.global_step:06d}.png"
        sheet = draw_sheet(self._explained(model))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        except OSError as error:  # which is no reason to lose the training
            logger.warning(f"The sheet {path} is not written: {error}")
        for callback in self.trainer.callback_handler.callbacks:
            _report(callback, sheet, state.global_step)

    def _explained(self, model):
        """The rows, each with what the model says of it."""
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        training = model.training
        taught = self.trainer.args.text_loss_weight > 0  # what is not writes noise
        model.eval()
        try:
            images = [row["image"] for row in self.rows]
            answers = model.explain(images, self.processor, **({} if taught else {"max_new_tokens": 1}))
        finally:
            model.train(training)
        pairs = []
        for row, answer in zip(self.rows, answers, strict=True):
            words = {"prediction": answer["label"], "label": model.config.id2label[row["label"]]}
            pairs.append((row, {**answer, **words, "rationale": answer["rationale"] if taught else ""}))
        return pairs


def _report(callback, sheet, step):
    """Hand the sheet on to where a callback of Transformers reports."""
    kind = type(callback).__name__
    if kind == "TensorBoardCallback" and callback.tb_writer is not None:
        callback.tb_writer.add_image(FOLDER, np.asarray(sheet), step, dataformats="HWC")
    elif kind == "TrackioCallback":
        import trackio

        trackio.log({FOLDER: trackio.Image(sheet)})
    elif kind == "WandbCallback":
        import wandb

        wandb.log({FOLDER: wandb.Image(sheet), "train/global_step": step})
