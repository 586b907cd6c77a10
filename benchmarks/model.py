"""What explanations cost: ratios of two things timed in turns in one process, with their spread, as a Markdown page.

```
python -m benchmarks.model --output docs/benchmarks.md
python -m benchmarks.model --models resnet18 vit-s16 --repeats 3 --dtype bfloat16 --compile --output benchmarks.md
```

Weights and images are random, which costs the same as real ones. Each row runs in a process of its own, so that its
peak memory is its own.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from dataset_builders.files import write_file
from megl.machine import KEEP_MEMORY, Page, machine, table, timed_header
from modeling_megl import PRESETS, TEXT_PRESETS, MeglConfig, MeglForImageClassification, compile_parts
from modeling_megl.losses_megl import distribution_consistency, gradia
from modeling_megl.saliency_megl import SALIENCY_METHODS, normalize_map


NUM_LABELS = 100
RESNET_TAP = "resnet.encoder.stages.3"
VIT_S16 = {"model_type": "vit", "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
RESNET50 = {"model_type": "resnet"}  # what Transformers' default configuration is
VISION_CONFIGS = {
    "vit-b16": PRESETS["megl-vit-b16"]["vision_config"],
    "vit-s16": VIT_S16,
    "resnet18": PRESETS["megl-resnet18"]["vision_config"],
    "resnet50": RESNET50,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(VISION_CONFIGS), default=list(VISION_CONFIGS))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of each comparison, after one warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: by autocast")
    parser.add_argument("--compile", action="store_true", help="compile, for training, what lies before the tap")
    parser.add_argument("--output", required=True, help="Markdown file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    return parser.parse_args()


# ---- What is timed ----


class Bench:
    """A model with an optimizer and a batch, and the steps to compare on them."""

    memory_steps = 3  # the optimizer's state comes with the first

    def __init__(self, name, arguments, batch_size=None, image_size=None, saliency_method="grad_cam", compiled=False):
        self.device = torch.device(arguments.device)
        self.size = image_size or arguments.image_size
        config = MeglConfig(
            vision_config={**VISION_CONFIGS[name], "image_size": self.size},
            text_config={**TEXT_PRESETS["llama-tiny"], "vocab_size": 64},
            saliency_method=saliency_method,
            id2label={i: str(i) for i in range(NUM_LABELS)},
            label2id={str(i): i for i in range(NUM_LABELS)},
        )
        torch.manual_seed(0)
        self.model = MeglForImageClassification(config).to(self.device)
        self.model.probe_class_token()  # as the Trainer does
        self.model.vision_model.to(memory_format=torch.channels_last)
        if arguments.compile or compiled:
            compile_parts(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        batch_size = batch_size or arguments.batch_size
        self.images = torch.randn(batch_size, 3, self.size, self.size, device=self.device)
        self.labels = torch.arange(batch_size, device=self.device) % NUM_LABELS
        self.masks = (torch.rand(batch_size, self.size, self.size, device=self.device) > 0.7).float()
        self.annotated = torch.arange(batch_size, device=self.device) % 3 == 0
        self.autocast = (
            partial(torch.autocast, self.device.type, dtype=torch.bfloat16)
            if arguments.dtype == "bfloat16"
            else nullcontext
        )

    def plain_step(self):
        """The classifier's training step."""
        self.model.train()
        with self.autocast():
            loss = self.model(self.images, labels=self.labels, output_saliency=False).loss
        self._update(loss)

    def guided_step(self):
        """The same with map, visual loss and VEDC."""
        self.model.train()
        with self.autocast():
            output = self.model(self.images, labels=self.labels, target=self.labels)
            loss = output.loss_classification + self._guidance(output.saliency, self.masks, self.annotated)
        self._update(loss)

    def eager_step(self):
        """The guided step without what is compiled of it."""
        with torch.compiler.set_stance("force_eager"):
            self.guided_step()

    def checkpointed_step(self):
        """The guided step, the stem's layers computed again in the backward pass."""
        self.model.gradient_checkpointing_enable()
        self.guided_step()
        self.model.gradient_checkpointing_disable()

    def one_at_a_time_step(self):
        """The guided step image by image: the same gradient, in one graph."""
        self.model.train()
        classifier, features = self.model.vision_model, []
        layer = classifier.get_submodule(RESNET_TAP)
        handle = layer.register_forward_hook(lambda module, args, output: features.append(output))
        loss = 0.0
        with self.autocast():
            for i in range(len(self.images)):
                features.clear()
                logits = classifier(self.images[i : i + 1]).logits
                score = logits[0, self.labels[i]]
                (gradient,) = torch.autograd.grad(score, features[0], create_graph=True)
                saliency = normalize_map((gradient.mean(dim=(2, 3), keepdim=True) * features[0]).sum(dim=1))
                guidance = self._guidance(saliency, self.masks[i : i + 1], self.annotated[i : i + 1])
                loss = loss + torch.nn.functional.cross_entropy(logits, self.labels[i : i + 1]) + guidance
        handle.remove()
        self._update(loss / len(self.images))

    def literature_step(self):
        """
        The guided step as published code of explanation guidance is often written: the batch is classified, then each
        image passes alone once more, and its score is differentiated back to the pixels for a map whose weights are
        constants to the loss.
        """
        self.model.train()
        classifier, features, gradients = self.model.vision_model, [], []

        def keep(module, args, output):
            features.append(output)
            output.register_hook(gradients.append)

        with self.autocast():
            loss = torch.nn.functional.cross_entropy(classifier(self.images).logits, self.labels)
            handle = classifier.get_submodule(RESNET_TAP).register_forward_hook(keep)
            for i in range(len(self.images)):
                features.clear(), gradients.clear()
                classifier(self.images[i : i + 1]).logits[0, self.labels[i]].backward(retain_graph=True)
                weights = gradients[0].mean(dim=(2, 3), keepdim=True)
                saliency = normalize_map((weights * features[0]).sum(dim=1))
                guidance = self._guidance(saliency, self.masks[i : i + 1], self.annotated[i : i + 1])
                loss = loss + guidance / len(self.images)
            handle.remove()
        self.optimizer.zero_grad()  # what the scores left
        self._update(loss)

    @torch.no_grad()
    def label(self):
        """What the bare classifier costs."""
        self.model.eval()
        with self.autocast():
            self.model.vision_model(self.images)

    @torch.no_grad()
    def label_and_map(self):
        """Label, map and evidence tokens."""
        self.model.eval()
        with self.autocast():
            self.model(self.images)

    def _guidance(self, saliency, masks, annotated):
        mean, std = saliency.new_tensor([0.3, 0.2]), saliency.new_tensor([0.1, 0.1])
        visual = gradia(saliency, masks, annotated).sum()
        return (visual + torch.where(annotated, 0.0, distribution_consistency(saliency, mean, std)).sum()) / len(masks)

    def _update(self, loss):
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


# ---- The page ----


def write_page(arguments):
    page = Page(Bench, arguments)
    models = arguments.models
    guided = [[name, *page.ratio(name, "guided_step", "plain_step")] for name in models]
    memory = [[name, *page.memory_ratio(name, "guided_step", "plain_step")] for name in models]
    compiled = [[name, *page.ratio(name, "guided_step", "eager_step", compiled=True)] for name in models]
    # The networks of convolutions have no layers that could be computed again.
    vits = [name for name in models if name.startswith("vit")]
    checkpointed = [[name, *page.ratio(name, "checkpointed_step", "guided_step")] for name in vits]
    smaller = [[name, *page.memory_ratio(name, "checkpointed_step", "guided_step")] for name in vits]
    inference = [[name, *page.ratio(name, "label_and_map", "label")] for name in models]
    resnets = [name for name in models if name.startswith("resnet")]
    loops = [
        [f"{name}, {what}", *page.ratio(name, step, "guided_step")]
        for name in resnets
        for what, step in (("as published", "literature_step"), ("the same gradient", "one_at_a_time_step"))
    ]
    methods = [
        [f"{method}, {name}", *page.ratio(name, "label_and_map", "label", saliency_method=method)]
        for name in models
        if name in ("vit-s16", "resnet18")
        for method in SALIENCY_METHODS
        if SALIENCY_METHODS[method].reads != "attentions" or name.startswith("vit")
    ]
    sizes = [{"batch_size": batch_size} for batch_size in (1, 4, 16, 32)]
    sizes += [{"image_size": image_size} for image_size in (160, 224, 320)]
    growth = [
        [f"{name}, {key.replace('_', ' ')} {value}", *page.ratio(name, "guided_step", "plain_step", **{key: value})]
        for name in models
        if name in ("vit-s16", "resnet18")
        for options in sizes
        for key, value in options.items()
    ]
    sections = [
        "# Benchmarks",
        f"`{' '.join(['python -m benchmarks.model', *sys.argv[1:]])}`, {machine(arguments)}. Batch "
        f"{arguments.batch_size}, {arguments.image_size} pixels, unless a row says otherwise. Ratios are medians over "
        f"{arguments.repeats} pairs that were timed in turns, the spread is their least and greatest; times are "
        "medians of this machine and mean nothing on another. glibc is told to keep freed memory "
        f"(`{' '.join(f'{name}={value}' for name, value in KEEP_MEMORY.items())}`), as `make quickstart` does.",
        "## Training step: map, visual loss and VEDC, over the plain step",
        table(timed_header("model", "guided", "plain"), guided),
        "## Peak memory of that step",
        table(["model", "ratio", "guided, MiB", "plain, MiB"], memory),
        "## Guided step compiled: stem by `--torch_compile`, over the same as it is",
        table(timed_header("model", "compiled", "as it is"), compiled),
        "## Guided step with `--activation_checkpointing`: time, then peak memory",
        table(timed_header("model", "checkpointed", "as it is"), checkpointed),
        table(["model", "ratio", "checkpointed, MiB", "as it is, MiB"], smaller),
        "## Inference: label and map, over the label",
        table(timed_header("model", "label and map", "label"), inference),
        "## One image at a time, over the batched guided step",
        "*As published*: the batch is classified, then each image passes alone once more and its score is "
        "differentiated back to the pixels, as code of explanation guidance is often written; the map's weights are "
        "constants to the loss. *The same gradient*: the least that a loop of single images needs for the batched "
        "step's gradient.",
        table(timed_header("model, loop", "one at a time", "batched"), loops),
        "## Methods: label and map, over the label",
        table(timed_header("method, model", "label and map", "label"), methods),
        "## Growth: guided step over plain step",
        table(timed_header("model, size", "guided", "plain"), growth),
    ]
    return "\n\n".join(sections) + "\n"


def main():
    arguments = parse_arguments()
    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        sys.exit(f"benchmark: {output} exists: choose another `--output`, or `--overwrite` it.")
    os.environ.update(KEEP_MEMORY)  # read by the processes that are started from here
    page = write_page(arguments)
    write_file(output, page)
    print(page)


if __name__ == "__main__":
    main()
