"""What processes tell each other in a step of training: bytes by collective, counted in the Trainer's own step.

```
torchrun --nproc_per_node 2 -m benchmarks.communication --preset megl-vit-tiny
```

Counted is the whole tensor, whatever the number of processes: over a ring each of n processes sends 2 (n - 1) / n of
it in an all-reduce, and (n - 1) / n in an all-gather or a reduce-scatter.
"""

import argparse
import tempfile
from collections import Counter

import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from modeling_megl import PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import MeglTrainer, MeglTrainingArguments


LABELS = ["fish", "tree"]
RATIONALE = "the fins show that this is a fish"


class CountedBytes(TorchDispatchMode):
    """Adds up in `totals`, while it is entered, the bytes of each collective by its name."""

    def __init__(self):
        super().__init__()
        self.totals = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d":
            name = operation.overloadpacket.__name__.strip("_").removesuffix("_base")
            # Of a whole tensor and a process's share of it, the whole one.
            self.totals[name] += max(sum(map(_num_bytes, tree_leaves(argument))) for argument in args)
        return operation(*args, **(kwargs or {}))


def _num_bytes(value):
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


class _AtStepEnds(TrainerCallback):
    def __init__(self, counted):
        self.counted, self.totals = counted, []

    def on_step_end(self, args, state, control, **kwargs):
        self.totals.append(self.counted.totals.copy())


def step_bytes(trainer):
    """
    `Counter` of the bytes of each collective in the third step of a training: the first ones settle in which order
    gradients are sent.
    """
    counted = CountedBytes()
    ends = _AtStepEnds(counted)
    trainer.add_callback(ends)
    with counted:
        trainer.train()
    return ends.totals[2] - ends.totals[1]


def make_trainer(preset, output_dir):
    """Of a new model of a preset, on grey pictures, half of them with a mask."""
    processor = MeglProcessor.from_preset(preset, LABELS, [RATIONALE])
    model = MeglForImageClassification(MeglConfig.from_preset(preset, LABELS, **processor.text_config_kwargs()))
    picture, mask = Image.new("RGB", (64, 64), "grey"), Image.new("L", (64, 64), 255)
    rows = [
        {
            "id": str(index),
            "image": picture,
            "label": index % 2,
            "visual_explanation": mask if index % 2 else None,
            "textual_explanations": [RATIONALE],
        }
        for index in range(6)
    ]
    options = {"max_steps": 3, "per_device_train_batch_size": 1, "optim": "sgd", "save_strategy": "no"}
    args = MeglTrainingArguments(output_dir, **options, logging_strategy="no", report_to="none", disable_tqdm=True)
    return MeglTrainer(model, args, processing_class=processor, train_dataset=rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="megl-vit-tiny")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(parser.parse_args().preset, folder)
        found = step_bytes(trainer)
    if trainer.is_world_process_zero():
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        print(f"{parameters:,} parameters that are trained, {4 * parameters:,} bytes of gradients")
        for name, total in sorted(found.items()):
            print(f"{name}: {total:,} bytes")
    trainer.end()


if __name__ == "__main__":
    main()
