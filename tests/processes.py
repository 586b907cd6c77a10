"""
One process of a training that is killed and resumed: `torchrun … processes.py FOLDER STRATEGY STEP`, where STEP is
`begin`, `resume` or `whole`; `whole`, in one process, is what the others are compared with.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from explained_rows import make_rows
from safetensors.torch import save_file
from transformers import TrainerCallback

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


FSDP = {"auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
STRATEGIES = {
    "ddp": {},
    "fsdp_full": {"fsdp": True, "fsdp_config": {**FSDP, "state_dict_type": "FULL_STATE_DICT"}},
    "fsdp_sharded": {"fsdp": True, "fsdp_config": {**FSDP, "state_dict_type": "SHARDED_STATE_DICT"}},
    "zero_2": {
        "deepspeed": {
            "zero_optimization": {"stage": 2},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    },
}
STEPS, KILLED_AT = 20, 12


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions[0].argmax(-1) == prediction.label_ids[0]).mean())}


def allow_fsdp_on_cpus():
    """Accelerate shards on accelerators alone, though torch can on CPUs."""
    PartialState()._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def threads_of_group():
    """The names of the threads by which a process group of gloo works, which Linux alone tells."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


def main(folder, strategy, step):
    processes = 1 if step == "whole" else 2
    settings = {} if step == "whole" else STRATEGIES[strategy]
    args = MeglTrainingArguments(
        output_dir=str(folder / strategy),
        per_device_train_batch_size=8 // processes,
        per_device_eval_batch_size=4,
        max_steps=STEPS,
        learning_rate=1e-3,
        optim="adamw_torch",
        adam_epsilon=1e-2,  # which keeps differences of rounding from being scaled up
        max_grad_norm=1.0,
        distribution_loss_weight=0.1,
        accelerator_config={"split_batches": False},
        logging_steps=1,
        save_steps=5,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        predict_with_generate=True,
        generation_max_new_tokens=4,
        **settings,
    )
    if args.fsdp:
        allow_fsdp_on_cpus()
    trainer = MeglTrainer(
        model=MeglForImageClassification.from_pretrained(folder / "model"),
        processing_class=MeglProcessor.from_pretrained(folder / "model"),
        args=args,
        train_dataset=make_rows(24, masks=set(range(0, 24, 3)), rationales=set(range(0, 24, 2))),
        # Not a multiple of two processes' batches.
        eval_dataset=make_rows(7, masks={0, 1, 5}, rationales={2, 5}),
        compute_metrics=accuracy,
        callbacks=[Kill()] if step == "begin" else [],
    )
    assert trainer.accelerator.num_processes == processes
    assert trainer.is_fsdp_enabled == bool(args.fsdp) and trainer.is_deepspeed_enabled == bool(args.deepspeed)
    trainer.train(resume_from_checkpoint=step == "resume" or None)
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        results = {f"log.{name}": torch.tensor([entry[name] for entry in logs]) for name in ("loss", "grad_norm")}
        results |= {f"eval.{name}": torch.tensor(value) for name, value in metrics.items() if "loss" in name}
        results["eval.accuracy"] = torch.tensor(metrics["eval_accuracy"])
        save_file(results, folder / f"{strategy}.safetensors")
    trainer.end()
    # FSDP's layers keep the group, and so do DeepSpeed's functions, by their default arguments, once imported.
    assert args.fsdp or "deepspeed" in sys.modules or not threads_of_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
