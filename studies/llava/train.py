"""Fine-tunes a LLaVA to answer by chain of thought, the rationale and then the label: what MEGL is compared with.

```
python -m studies.llava.train --vision clip-tiny --text llama-tiny --dataset_name object_me --output_dir llava \\
    --num_train_epochs 36 --per_device_train_batch_size 16 --learning_rate 1e-3
python -m studies.llava.train --vision openai/clip-vit-large-patch14-336 --text HuggingFaceTB/SmolLM2-135M \\
    --dataset_name object_me --output_dir llava-smollm2 --bf16 True
```

`--vision` takes a Hub id or folder of a CLIP model, or `clip-vit-l14-336` or `clip-tiny` to train one from scratch;
`--text` is that of `megl init`. All of it is trained. `evaluate.py` evaluates the folder that is written.
"""

import json
import sys

from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from dataset_builders.files import check_new
from megl.arguments import RECORDED, ColumnArguments
from megl.parser import parse
from megl.tables import open_table
from modeling_megl.training_megl import TellEpoch
from studies.llava.arguments import LlavaTrainArguments
from studies.llava.model import LlavaDataCollator, make_llava


def check_arguments(training_args):
    """The output folder; a `ValueError` for what the Trainer would get wrong without a word."""
    if training_args.resume_from_checkpoint or training_args.load_best_model_at_end:
        # A LLaVA's weights are saved under older names, by which the Trainer does not find them again.
        raise ValueError(
            "`--resume_from_checkpoint` and `--load_best_model_at_end` would leave a LLaVA's weights as they are: "
            "train it in one run."
        )
    return check_new(training_args.output_dir)


def main():
    script_args, columns, training_args = parse(__doc__, LlavaTrainArguments, ColumnArguments, TrainingArguments)
    training_args.remove_unused_columns = False  # the collator reads the data set's own columns
    set_seed(training_args.seed)
    try:
        output = check_arguments(training_args)
        train = open_table(script_args.dataset_name, script_args.train_split, columns, option="--train_split")
        labels = train.features["label"].names
        rationales = [text for texts in train["textual_explanations"] for text in texts]
        model, processor = make_llava(script_args.vision, script_args.text, labels, rationales)
    except (ValueError, OSError) as error:
        sys.exit(f"train_llava: {error}")
    collator = LlavaDataCollator(processor, model.config.id2label, seed=training_args.seed)
    trainer = Trainer(
        model=model,
        args=training_args,
        data_collator=collator,
        processing_class=processor,
        train_dataset=train,
        callbacks=[TellEpoch(collator)],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        (output / TRAINING_ARGS_NAME).unlink()  # a pickle; this says in plain text what matters of it:
        settings = {name: getattr(training_args, name) for name in RECORDED if hasattr(training_args, name)}
        (output / "training_settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    trainer.end()


if __name__ == "__main__":
    main()
