"""One process of the test of what processes exchange: `torchrun --nproc_per_node 2 exchanged_bytes.py FOLDER`."""

import json
import sys
from pathlib import Path

from explained_rows import make_rows
from processes import FSDP, allow_fsdp_on_cpus

from benchmarks.communication import step_bytes
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


def main(folder):
    found = {}
    for name, settings in (("ddp", {}), ("fsdp", {"fsdp": True, "fsdp_config": FSDP})):
        args = MeglTrainingArguments(
            output_dir=str(folder / name),
            per_device_train_batch_size=2,
            max_steps=3,
            optim="sgd",
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        if args.fsdp:
            allow_fsdp_on_cpus()
        trainer = MeglTrainer(
            model=MeglForImageClassification.from_pretrained(folder / "model"),
            processing_class=MeglProcessor.from_pretrained(folder / "model"),
            args=args,
            train_dataset=make_rows(12),
        )
        found[name] = step_bytes(trainer)
    if trainer.is_world_process_zero():
        (folder / "bytes.json").write_text(json.dumps(found))
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
