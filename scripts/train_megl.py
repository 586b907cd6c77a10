"""Fine-tunes a MEGL model with all its losses, or with the weights at 0 plainly; saves a complete repository.

```
megl train --model_name_or_path megl-tiny --dataset_name object_me --output_dir megl-trained \\
    --num_train_epochs 10 --per_device_train_batch_size 32 --learning_rate 1e-3
megl train --model_name_or_path megl-tiny --dataset_name object_me --output_dir plain \\
    --visual_loss_weight 0 --text_loss_weight 0 --distribution_loss_weight 0
megl train --model_name_or_path megl-resnet-tiny --dataset_name pictures --output_dir pictures-trained \\
    --num_train_epochs 40 --learning_rate 3e-3
```

The last makes a model of a preset of `megl init` first, and trains it on a folder that `megl annotate` wrote.
"""

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed

from megl.arguments import RECORDED, ColumnArguments, EvaluateArguments, TrainArguments, shared_options
from megl.explanation_sheet import ExplanationSheet
from megl.parser import parse
from megl.tables import class_names, labelled_texts, load_split, open_table, problem_type
from megl.terminal import interrupted, program, uninterrupted
from megl.training_record import TrainingRecord, next_steps
from modeling_megl import PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.checkpoints_megl import check_checkpoint, last_whole_checkpoint
from modeling_megl.configuration_megl import one_line
from modeling_megl.lora_megl import save_adapter
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments, encoded_masks, some


def keep_explanations(dataset, mask_share=1.0, rationale_share=1.0, seed=0):
    """
    The data set with the visual explanations of a share of the items that have one, and the textual explanations of a
    share of those that have any; the others have `None`, or an empty list.

    Which ones follows from the items' `id` and the seed alone, for masks and rationales apart: a smaller share is a
    subset of a larger one.
    """
    if mask_share == rationale_share == 1:
        return dataset
    given = dataset.select_columns(["id", "visual_explanation", "textual_explanations"])
    given = encoded_masks(given)
    annotated = [row["id"] for row in given if some(row["visual_explanation"])]
    explained = [row["id"] for row in given if some(row["textual_explanations"])]
    kept = {
        "visual_explanation": _draw(annotated, mask_share, f"{seed} " if seed else ""),
        "textual_explanations": _draw(explained, rationale_share, f"{seed} rationales "),
    }
    return dataset.with_transform(partial(_hide, kept=kept))


def _draw(ids, share, salt):
    ids = sorted(ids, key=lambda key: hashlib.sha256(f"{salt}{key}".encode()).digest())
    return frozenset(ids[: round(share * len(ids))])


def _hide(rows, kept):
    nothing = {"visual_explanation": None, "textual_explanations": []}
    return rows | {
        name: [
            value if key in kept[name] else nothing[name] for key, value in zip(rows["id"], rows[name], strict=True)
        ]
        for name in nothing
        if name in rows
    }


def find_checkpoint(training_args):
    """
    The checkpoint to go on from, or `None`: `--resume_from_checkpoint True` takes the last whole one of the output
    folder, and begins anew where there is none, so that one command line serves a job's first start and all others.

    Raises:
        `ValueError`: where the output folder holds something and is not to be gone on with, or the checkpoint is not
            whole.
    """
    output, wanted = Path(training_args.output_dir), training_args.resume_from_checkpoint
    wanted = {"true": "True", "false": "False"}.get(str(wanted).lower(), wanted)
    if wanted not in (None, "True", "False"):
        check_checkpoint(wanted)
        return wanted
    found = last_whole_checkpoint(output) if wanted == "True" else None
    taken = output.is_dir() and any(output.iterdir()) and (wanted != "True" or (output / "config.json").exists())
    if taken and found is None:
        raise ValueError(
            f"{output} exists and is not empty: choose another `--output_dir`, or go on with the run in it by "
            "`--resume_from_checkpoint True`."
        )
    return found


def _save_adapter(model, processor, folder):
    """Beside the merged model, which there is in any case."""
    try:
        save_adapter(model, processor, folder)
    except ValueError as error:
        print(f"{folder} is not written. {error}")


def load_model(arguments, opened):
    """
    The model, its processor and the training split, which `opened(split, class_names, option)` opens. A preset's name
    gives a new model for the classes and the rationales of that split.
    """
    name, split = arguments.model_name_or_path, arguments.train_split
    if name in PRESETS and not Path(name).exists():
        train_dataset = opened(split, class_names=None, option="--train_split")
        return *new_model(name, train_dataset), train_dataset
    processor = MeglProcessor.from_pretrained(name)
    model = MeglForImageClassification.from_pretrained(
        name, trust_remote_code=arguments.trust_remote_code, dtype=torch.float32
    )
    return model, processor, opened(split, class_names=model_classes(model), option="--train_split")


def model_classes(model):
    """Those of a model, in the order of their ids."""
    return [name for _, name in sorted(model.config.id2label.items())]


def new_model(preset, train_dataset):
    """A model of a preset and its processor for the classes and the rationales of a data set."""
    labels, rationales = class_names(train_dataset), [text for _, text in labelled_texts(train_dataset)]
    processor = MeglProcessor.from_preset(preset, labels, rationales)
    config = MeglConfig.from_preset(preset, labels, **processor.text_config_kwargs())
    config.problem_type = problem_type(train_dataset)
    model = MeglForImageClassification(config)
    model.match_processor(processor)
    return model, processor


def add_sheet(trainer, pictures):
    """Show what the model answers at each evaluation."""
    if trainer.eval_dataset is None or trainer.args.eval_strategy == "no":
        raise ValueError(
            "`--explanation_sheet` is made at each evaluation: name an `--eval_split` that there is, and an "
            "`--eval_strategy`, such as `epoch`."
        )
    if trainer.model.config.is_multi_label:
        raise ValueError(
            "`--explanation_sheet` shows one class a picture, and the model is multi-label: leave it out."
        )
    if trainer.is_fsdp_enabled:
        raise ValueError(
            "`--explanation_sheet` is made by one process, which FSDP gives a part of the model: leave it out."
        )
    trainer.add_callback(ExplanationSheet(trainer, pictures))


def recorded(script_args, training_args):
    """The settings that a model's card and the page of its training report."""
    settings = {name: getattr(training_args, name) for name in RECORDED}
    return settings | {name: getattr(script_args, name) for name in ("mask_share", "rationale_share", "share_seed")}


def add_record(trainer, script_args, columns):
    """Draw what is logged, and show the training as a page if asked for."""
    settings, commands = None, []
    if script_args.training_page:
        names = ("model_name_or_path", "dataset_name", "train_split", "eval_split")
        settings = {name: getattr(script_args, name) for name in names} | recorded(script_args, trainer.args)
        options = shared_options(columns, script_args.trust_remote_code)
        if load_split(script_args.dataset_name, EvaluateArguments.split, optional=True) is None:
            options += ["--split", script_args.train_split]
        commands = next_steps(trainer.args.output_dir, script_args.dataset_name, options)
    trainer.add_callback(TrainingRecord(settings, commands))


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions[0].argmax(-1) == prediction.label_ids[0]).mean())}


def f1_micro(prediction):
    """Of a multi-label model, at a probability of 0.5."""
    found, right = prediction.predictions > 0, prediction.label_ids > 0.5
    return {"f1_micro": float(2 * (found & right).sum() / max(found.sum() + right.sum(), 1))}


def make_trainer(script_args, columns, training_args):
    """The trainer of a model and its data, with what is to be seen of the training."""
    opened = partial(open_table, script_args.dataset_name, columns=columns, multi_label=True)
    model, processor, train_dataset = load_model(script_args, opened)
    # The default split may be absent; one that is asked for may not.
    optional = script_args.eval_split == TrainArguments.eval_split
    eval_dataset = opened(
        script_args.eval_split, class_names=model_classes(model), option="--eval_split", optional=optional
    )
    if eval_dataset is None and training_args.eval_strategy != "no":
        raise ValueError(
            f"`--eval_strategy {training_args.eval_strategy.value}` needs a split to evaluate on, and there is no "
            f"{script_args.eval_split!r}: name one by `--eval_split`; `train` shows how the training goes, no more."
        )
    trainer = MeglTrainer(
        model=model,
        args=training_args,
        processing_class=processor,
        train_dataset=keep_explanations(
            train_dataset, script_args.mask_share, script_args.rationale_share, script_args.share_seed
        ),
        eval_dataset=eval_dataset,
        compute_metrics=f1_micro if model.config.is_multi_label else accuracy,
    )
    if script_args.explanation_sheet:
        add_sheet(trainer, script_args.explanation_sheet)
    add_record(trainer, script_args, columns)
    return trainer


def save(trainer, settings):
    """Write the model, with its adapters alone in a folder of their own, and the settings of its training."""
    output = Path(trainer.args.output_dir)
    if trainer.args.lora_rank is not None:
        if trainer.is_world_process_zero():
            _save_adapter(trainer.model, trainer.processing_class, output / "adapter")
        trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        for folder in (output, output / "adapter"):
            if folder.is_dir():
                (folder / "training_settings.json").write_text(json.dumps(settings, indent=2) + "\n")


def kept_of(output):
    """What an interrupted training leaves in its output folder, and how to go on with it."""
    checkpoint = last_whole_checkpoint(output)
    if checkpoint is None:
        return "no checkpoint was written yet; the same command with `--resume_from_checkpoint True` begins anew."
    return f"{checkpoint} is kept; the same command with `--resume_from_checkpoint True` goes on from there."


def main():
    script_args, columns, training_args = parse(__doc__, TrainArguments, ColumnArguments, MeglTrainingArguments)
    set_seed(training_args.seed)
    output, saved = training_args.output_dir, False
    try:
        checkpoint = find_checkpoint(training_args)
        trainer = make_trainer(script_args, columns, training_args)
        trainer.train(resume_from_checkpoint=checkpoint)
        with uninterrupted():
            save(trainer, recorded(script_args, training_args))
            saved = True
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")
    except KeyboardInterrupt:
        interrupted(f"the trained model in {output} is whole." if saved else kept_of(output))
    trainer.end()


if __name__ == "__main__":
    main()
