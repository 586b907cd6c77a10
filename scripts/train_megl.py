"""Fine-tunes a MEGL model with all its losses, or with the weights at 0 plainly; saves a complete repository.

```
python scripts/train_megl.py --model_name_or_path megl-tiny --dataset_name object_me --output_dir megl-trained \
    --num_train_epochs 10 --per_device_train_batch_size 32 --learning_rate 1e-3
python scripts/train_megl.py --model_name_or_path megl-tiny --dataset_name object_me --output_dir plain \
    --visual_loss_weight 0 --text_loss_weight 0 --distribution_loss_weight 0
```
"""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from datasets import Image
from transformers import HfArgumentParser, set_seed

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments
from support.tables import ColumnArguments, open_table


# What the model's card reports of the run.
RECORDED = (
    "visual_loss_weight",
    "text_loss_weight",
    "distribution_loss_weight",
    "visual_loss",
    "res_slack",
    "distribution_statistic",
    "learning_rate",
    "text_learning_rate",
    "frozen_layer",
    "lora_rank",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "seed",
)


@dataclass
class ScriptArguments:
    """What to train on what."""

    model_name_or_path: str = field(metadata={"help": "Hub id or folder of a MEGL model (`init_megl.py` makes one)."})
    dataset_name: str = field(metadata={"help": "Hub id or folder of a data set (`prepare_dataset.py` makes one)."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on; never the test split."})
    mask_share: float = field(
        default=1.0,
        metadata={"help": "Share of the training split's visual explanations to use; a smaller one is a subset."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Let the vision model run its own code."})

    def __post_init__(self):
        if not 0 <= self.mask_share <= 1:
            raise ValueError(f"`mask_share` must lie in [0, 1], got {self.mask_share}.")


def keep_masks(dataset, share):
    """
    The data set with the visual explanations of a share of the items that have one, `None` for the others.

    Which ones follows from the items' `id` alone: a smaller share is a subset of a larger one.
    """
    if share == 1:
        return dataset
    masks = dataset.select_columns(["visual_explanation"]).cast_column("visual_explanation", Image(decode=False))
    given = [key for key, mask in zip(dataset["id"], masks["visual_explanation"], strict=True) if mask is not None]
    given.sort(key=lambda key: hashlib.sha256(key.encode()).digest())
    return dataset.with_transform(partial(_hide_masks, kept=frozenset(given[: round(share * len(given))])))


def _hide_masks(rows, kept):
    masks = [mask if key in kept else None for key, mask in zip(rows["id"], rows["visual_explanation"], strict=True)]
    return {**rows, "visual_explanation": masks}


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions[0].argmax(-1) == prediction.label_ids[0]).mean())}


def make_parser():
    return HfArgumentParser((ScriptArguments, ColumnArguments, MeglTrainingArguments))


def main():
    try:
        script_args, columns, training_args = make_parser().parse_args_into_dataclasses()
    except ValueError as error:
        sys.exit(f"train_megl: {error}")
    output = Path(training_args.output_dir)
    if output.is_dir() and any(output.iterdir()) and not training_args.resume_from_checkpoint:
        sys.exit(
            f"train_megl: {output} exists and is not empty: choose another `--output_dir`, or go on with the run in "
            "it by `--resume_from_checkpoint True`."
        )
    set_seed(training_args.seed)
    try:
        processor = MeglProcessor.from_pretrained(script_args.model_name_or_path)
        model = MeglForImageClassification.from_pretrained(
            script_args.model_name_or_path, trust_remote_code=script_args.trust_remote_code, dtype=torch.float32
        )
        classes = [name for _, name in sorted(model.config.id2label.items())]
        opened = partial(open_table, script_args.dataset_name, columns=columns, class_names=classes)
        train_dataset = opened(script_args.train_split, option="--train_split")
        # The default split may be absent; one that is asked for may not.
        optional = script_args.eval_split == ScriptArguments.eval_split
        eval_dataset = opened(script_args.eval_split, option="--eval_split", optional=optional)
        trainer = MeglTrainer(
            model=model,
            args=training_args,
            processing_class=processor,
            train_dataset=keep_masks(train_dataset, script_args.mask_share),
            eval_dataset=eval_dataset,
            compute_metrics=accuracy,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"train_megl: {error}")
    resume = training_args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "True" else resume)
    if training_args.lora_rank is not None:
        trainer.save_model(output / "adapter")
        trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        settings = {name: getattr(training_args, name) for name in RECORDED}
        settings["mask_share"] = script_args.mask_share
        (output / "training_settings.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
