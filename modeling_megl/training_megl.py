"""Training with explanations: the collator that joins pictures, masks and rationales, the Trainer and its losses."""

import os
import zlib
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from .losses_megl import VISUAL_LOSSES, distribution_consistency, map_moments
from .processing_megl import MeglProcessor


@dataclass
class MeglTrainingArguments(TrainingArguments):
    r"""
    `TrainingArguments` with the weights of MEGL's losses,
    L = L_cls + λ_visual L_visual + λ_text L_text + λ_dist L_dist.

    With every weight at 0 this is plain fine-tuning of the classifier, at its plain cost. `remove_unused_columns`
    defaults to `False`, as the collator reads the data set's own columns.

    Args:
        visual_loss_weight (`float`, *optional*, defaults to 1.0): λ_visual, on images with a visual explanation.
        text_loss_weight (`float`, *optional*, defaults to 0.3): λ_text, on all images.
        distribution_loss_weight (`float`, *optional*, defaults to 0.1): λ_dist, on images without one.
        visual_loss (`str`, *optional*, defaults to `"gradia"`): A key of `losses_megl.VISUAL_LOSSES`.
        text_learning_rate (`float`, *optional*): Learning rate of the language model and the grounding; `None` takes
            `learning_rate`. A language model trained from scratch beside a pretrained vision model wants a larger one.
        lora_rank (`int`, *optional*): Train the language model by LoRA adapters of this rank (PEFT) only.
        predict_with_generate (`bool`, *optional*, defaults to `False`): Write rationales while evaluating.
        generation_max_new_tokens (`int`, *optional*, defaults to 40): Their greatest length.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether to drop the columns that the model's forward does not name."}
    )
    visual_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the visual explanation loss."})
    text_loss_weight: float = field(default=0.3, metadata={"help": "Weight of the rationale loss."})
    distribution_loss_weight: float = field(default=0.1, metadata={"help": "Weight of the VEDC loss."})
    visual_loss: str = field(
        default="gradia", metadata={"help": "Visual explanation loss.", "choices": sorted(VISUAL_LOSSES)}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of language model and grounding; default: `learning_rate`."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the language model by LoRA adapters of this rank."}
    )
    predict_with_generate: bool = field(default=False, metadata={"help": "Write rationales while evaluating."})
    generation_max_new_tokens: int = field(default=40, metadata={"help": "Greatest length of those rationales."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("visual_loss_weight", "text_loss_weight", "distribution_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.visual_loss not in VISUAL_LOSSES:
            raise ValueError(f"`visual_loss` must be one of {sorted(VISUAL_LOSSES)}, got {self.visual_loss!r}.")


@dataclass
class MeglDataCollator:
    """
    Rows of a data set with the columns `image`, `label`, `visual_explanation` and `textual_explanations` to a batch.

    Each row contributes one of its rationales. In training they take turns from epoch to epoch, from a start that
    depends on `seed` and on the rationales themselves; so what is drawn depends on neither order, worker nor resuming.

    Args:
        processor ([`MeglProcessor`]): Makes the tensors.
        id2label (`dict[int, str]`): Names of the classes, for the rationales' prompts.
        seed (`int`, *optional*, defaults to 0): Which rationale comes first.
        epoch (`int`, *optional*): The epoch; `None`, for evaluation, takes the first rationale of each row.

    Returns, called with a list of rows:
        `BatchFeature` with `pixel_values` `(B, 3, H, W)`, `labels` `(B,)`, `visual_explanations` `(B, H, W)`,
        `has_visual_explanation` `(B,)`, `input_ids`, `attention_mask` and `rationale_labels` `(B, L)`.
    """

    processor: MeglProcessor
    id2label: dict[int, str]
    seed: int = 0
    epoch: int | None = None

    def __call__(self, rows):
        labels = [row["label"] for row in rows]
        batch = self.processor(
            images=[row["image"] for row in rows],
            visual_explanations=[row.get("visual_explanation") for row in rows],
            label_names=[self.id2label[label] for label in labels],
            rationales=[self.draw(row) for row in rows],
        )
        batch["labels"] = torch.tensor(labels)
        return batch

    def draw(self, row):
        """The rationale of this row in this epoch."""
        rationales = row["textual_explanations"]
        if not rationales:
            raise ValueError(
                f"Item {row.get('id')!r} has no `textual_explanations`: every image needs at least one rationale."
            )
        if self.epoch is None:
            return rationales[0]
        start = zlib.crc32(f"{self.seed} {rationales}".encode())
        return rationales[(start + self.epoch) % len(rationales)]


class VisualExplanationStatistic(nn.Module):
    """
    Mean and standard deviation of [`map_moments`] over the visual explanations, as exponential moving averages: the
    data set's pattern that VEDC pulls the other maps to.
    """

    MOMENTUM = 0.95
    # Explanations that are all alike would otherwise make the loss infinite.
    SMALLEST_STD = 0.02

    def __init__(self):
        super().__init__()
        self.register_buffer("first", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def update(self, moments_sum, squares_sum, count):
        """Take in one step's masks: sums over them, all processes together, and their number."""
        for average, total in ((self.first, moments_sum), (self.second, squares_sum)):
            average.lerp_(total / count, 1 - self.MOMENTUM)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.MOMENTUM)

    @property
    def mean(self):
        return self.first / self.weight

    @property
    def std(self):
        variance = self.second / self.weight - self.mean**2
        return variance.clamp_min(self.SMALLEST_STD**2).sqrt()


class _EpochCallback(TrainerCallback):
    """Tells the collator the epoch before its batches are made."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.trainer.data_collator, MeglDataCollator):
            self.trainer.data_collator.epoch = int(state.epoch or 0)


class MeglTrainer(Trainer):
    """
    `Trainer` for [`MeglForImageClassification`]: the classification, visual, textual and distribution losses.

    Each loss is the mean over what it applies to in the *whole* batch of an optimizer step (all accumulation steps and
    processes), so k accumulation steps have the gradient of one batch k times as large. Each is logged under its name,
    `loss_classification`, `loss_visual`, `loss_text`, `loss_distribution`, in training and, with the prefix `eval_`,
    in evaluation.

    `compute_metrics` gets `predictions = (logits, saliency[, rationale token ids])`, the last with
    `predict_with_generate`, and `label_ids = (labels, visual_explanations, has_visual_explanation, rationale_labels)`.

    Args:
        args ([`MeglTrainingArguments`]): The settings.
        processing_class ([`MeglProcessor`]): Makes the default collator and is saved with each checkpoint.
        Others: as in `Trainer`.
    """

    # `compute_loss` divides by the counts of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(self, model=None, args=None, data_collator=None, processing_class=None, **kwargs):
        args = args if args is not None else MeglTrainingArguments()
        if data_collator is None:
            if processing_class is None:
                raise ValueError("Pass a `data_collator`, or a `processing_class` to make the default one with.")
            data_collator = MeglDataCollator(processing_class, model.config.id2label, seed=args.seed)
        for dataset in (kwargs.get("train_dataset"), kwargs.get("eval_dataset")):
            check_labels(model.config.id2label, dataset)
        if args.lora_rank is not None:
            model = add_lora(model, args.lora_rank)
        # On CPUs and GPUs alike convolutions run fastest on this layout; other layers do not mind.
        model.vision_model.to(memory_format=torch.channels_last)
        super().__init__(
            model=model, args=args, data_collator=data_collator, processing_class=processing_class, **kwargs
        )
        self.statistic = VisualExplanationStatistic().to(self.args.device)
        self._sums = {"train": defaultdict(float), "eval": defaultdict(float)}
        self.add_callback(_EpochCallback(self))

    # ---- Data ----

    def get_eval_dataloader(self, eval_dataset=None):
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self):
        """Evaluation scores the same rationale of an image in every epoch."""
        collator = self.data_collator
        if isinstance(collator, MeglDataCollator):
            self.data_collator = replace(collator, epoch=None)
        try:
            yield
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step, and how many items each loss is divided by in all of them together."""
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sums["train"]["steps"] += 1
        # images, annotated images, rationale tokens, and two sums of two moments of the masks
        sums = torch.zeros(7, dtype=torch.float64, device=device)
        for batch in batch_samples:
            annotated = batch["has_visual_explanation"].to(device)
            sums[0] += len(annotated)
            sums[1] += annotated.sum()
            sums[2] += (batch["rationale_labels"] != -100).sum()
            moments = map_moments(batch["visual_explanations"].to(device).double()[annotated])
            sums[3:5] += moments.sum(dim=0)
            sums[5:7] += moments.square().sum(dim=0)
        sums = self.accelerator.reduce(sums, reduction="sum")
        images, annotated, tokens = sums[:3].tolist()
        if annotated:
            self.statistic.update(sums[3:5], sums[5:7], annotated)
        return batch_samples, {
            "images": images,
            "visual_explanations": annotated,
            "rationale_tokens": tokens,
            "without_visual_explanation": images - annotated,
        }

    # ---- Losses ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args = self.args
        evaluating = not model.training
        if num_items_in_batch is None:
            num_items_in_batch = _count_items(inputs)
        with_map = evaluating or max(args.visual_loss_weight, args.text_loss_weight, args.distribution_loss_weight) > 0
        outputs = model(
            **{key: value for key, value in inputs.items() if evaluating or key in self._needed_inputs()},
            output_saliency=with_map,
            visual_loss=args.visual_loss,
            loss_weights={"visual": args.visual_loss_weight, "text": args.text_loss_weight},
            num_items_in_batch=num_items_in_batch,
        )
        loss = outputs.loss
        terms = {name: getattr(outputs, f"loss_{name}") for name in ("classification", "visual", "text")}
        if with_map and self.statistic.weight > 0 and (evaluating or args.distribution_loss_weight > 0):
            terms["distribution"] = self._distribution_loss(outputs.saliency, inputs, num_items_in_batch)
            if loss is not None:
                loss = loss + args.distribution_loss_weight * terms["distribution"]
        self._record(terms, num_items_in_batch, "eval" if evaluating else "train")
        if not evaluating:
            # Gradients are averaged over processes, while the losses are already shares of the sum over all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _needed_inputs(self):
        needed = {"pixel_values", "labels"}
        if self.args.visual_loss_weight > 0:
            needed |= {"visual_explanations", "has_visual_explanation"}
        if self.args.text_loss_weight > 0:
            needed |= {"input_ids", "attention_mask", "rationale_labels"}
        return needed

    def _distribution_loss(self, saliency, inputs, num_items):
        mean, std = (value.to(saliency.dtype) for value in (self.statistic.mean, self.statistic.std))
        losses = distribution_consistency(saliency, mean, std)
        losses = torch.where(inputs["has_visual_explanation"], 0.0, losses)
        return losses.sum() / max(num_items["without_visual_explanation"], 1)

    def _record(self, terms, num_items, mode):
        """
        Add up each term for the log. In training a term is already a share of its step's mean, and counts for one
        step; in evaluation it is a batch's mean, and counts for as many items as it is the mean of.
        """
        sums = self._sums[mode]
        for name, loss in terms.items():
            if loss is None:
                continue
            weight = num_items[_DENOMINATORS[name]] if mode == "eval" else 1
            sums[name] += loss.detach().double() * weight
            sums[f"{name}_count"] += weight

    def _pop_means(self, mode):
        """Means of the recorded terms: over steps in training, over their items in evaluation."""
        sums = self._sums[mode]
        steps = sums["steps"]
        self._sums[mode] = defaultdict(float)
        means = {}
        for name in _DENOMINATORS:
            # Every process takes part, also one that had no item of this kind.
            pair = torch.tensor(
                [float(sums[name]), sums[f"{name}_count"]], dtype=torch.float64, device=self.args.device
            )
            total, count = self.accelerator.reduce(pair, reduction="sum").tolist()
            if count:
                means[f"loss_{name}"] = total / (steps or count)
        return means

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = {**logs, **self._pop_means("train")}
        super().log(logs, start_time)

    # ---- Evaluation ----

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self._sums["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in self._pop_means("eval").items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        predictions = (outputs.logits, outputs.saliency)
        if self.args.predict_with_generate:
            predictions += (self._generate(outputs),)
        names = ("labels", "visual_explanations", "has_visual_explanation", "rationale_labels")
        return loss, predictions, tuple(inputs[name] for name in names if name in inputs)

    def _generate(self, outputs):
        model = self.accelerator.unwrap_model(self.model)
        names = [model.config.id2label[label] for label in outputs.logits.argmax(dim=-1).tolist()]
        prompts = self.processing_class.prompts(names).to(outputs.logits.device)
        return model.generate_rationales(
            **prompts,
            evidence_tokens=outputs.evidence_tokens,
            max_new_tokens=self.args.generation_max_new_tokens,
        )

    # ---- Optimizer and training state ----

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if self.args.text_learning_rate is None:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        text = {id(parameter) for name, parameter in named if "language_model." in name or "grounding." in name}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in text]
            if moved:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in text]
                optimizer.add_param_group({**group, "params": moved, "lr": self.args.text_learning_rate})
        return optimizer

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        # A pickle that nothing reads back, in what shall be a model repository without any.
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink()

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_model(self.statistic, os.path.join(output_dir, _STATISTIC_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_model(self.statistic, os.path.join(checkpoint, _STATISTIC_FILE), device=str(self.args.device))


_STATISTIC_FILE = "visual_explanation_statistic.safetensors"

# What each loss is a mean over.
_DENOMINATORS = {
    "classification": "images",
    "visual": "visual_explanations",
    "text": "rationale_tokens",
    "distribution": "without_visual_explanation",
}


def _count_items(inputs):
    """How many items of one batch each loss is a mean over."""
    counts = {"images": len(inputs["pixel_values"])}
    if "has_visual_explanation" in inputs:
        annotated = inputs["has_visual_explanation"].sum().item()
        counts |= {"visual_explanations": annotated, "without_visual_explanation": counts["images"] - annotated}
    if "rationale_labels" in inputs:
        counts["rationale_tokens"] = (inputs["rationale_labels"] != -100).sum().item()
    return counts


def check_labels(id2label, dataset):
    """Raise a `ValueError` where the data set names other classes than the model, or in another order."""
    names = getattr((getattr(dataset, "features", None) or {}).get("label"), "names", None)
    expected = [id2label[label] for label in sorted(id2label)]
    if names is not None and names != expected:
        raise ValueError(
            f"The data set's classes are not the model's: `label` has {names}, `config.id2label` has {expected}. "
            "Make a model for this data set with `init_megl.py`, or load the data set that the model was made for."
        )


def add_lora(model, rank):
    """
    A `PeftModel` that trains low-rank adapters (Hu et al. 2021) on the language model's linear layers, and the vision
    model and the grounding in full.
    """
    head = model.get_output_embeddings()
    layers = {
        name.rsplit(".", 1)[-1]
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=rf"language_model\..*\.({'|'.join(sorted(layers))})",
        modules_to_save=["vision_model", "grounding"],
    )
    return get_peft_model(model, config)


__all__ = ["MeglDataCollator", "MeglTrainer", "MeglTrainingArguments", "add_lora", "check_labels"]
