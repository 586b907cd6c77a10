"""Training with explanations: the collator that joins pictures, masks and rationales, the Trainer and its losses."""

import os
import zlib
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer import TRAINING_ARGS_NAME

from .frozen_megl import FrozenLayers
from .losses_megl import DISTRIBUTION_STATISTICS, VISUAL_LOSSES, distribution_consistency, res_kernel
from .processing_megl import MeglProcessor


@dataclass
class MeglTrainingArguments(TrainingArguments):
    r"""
    `TrainingArguments` with the weights of MEGL's losses,
    L = L_cls + λ_visual L_visual + λ_text L_text + λ_dist L_dist.

    With every weight at 0 this is plain fine-tuning of the classifier, at its plain cost. `remove_unused_columns`
    defaults to `False`, as the collator reads the data set's own columns.

    Args:
        visual_loss_weight (`float`, *optional*, defaults to 3.0): λ_visual, on images with a visual explanation.
        text_loss_weight (`float`, *optional*, defaults to 1.0): λ_text, on all images.
        distribution_loss_weight (`float`, *optional*, defaults to 0.0):
            λ_dist of VEDC, on images without one. Off, as beside many masks some networks gain and others lose by it;
            where masks are few, 0.03 to 0.1 does the maps good.
        visual_loss (`str`, *optional*, defaults to `"gradia"`):
            A key of `losses_megl.VISUAL_LOSSES`: `gradia`, `haics`, `res_g`, `res_l`, `rrr`, `energy` or `ppce`.
        res_slack (`float`, *optional*, defaults to 0.0):
            How far a map may miss its mask in the robust term of `res_g` and `res_l` at no cost.
        distribution_statistic (`str`, *optional*, defaults to `"moments"`):
            What VEDC compares, a key of `losses_megl.DISTRIBUTION_STATISTICS`: `moments` (size and spread),
            `robust_moments` (the same, with a loss that grows linearly far from the explanations), `quantiles` (of a
            map's values) or `layout` (where the map lies, and its size).
        text_learning_rate (`float`, *optional*): Learning rate of the language model and the grounding; `None` takes
            `learning_rate`. A language model trained from scratch beside a pretrained vision model wants a larger one.
        frozen_layer (`str`, *optional*): Module of a convolutional vision model, such as `"stages.6"`, up to which it
            is frozen; what it makes of each training image is computed once and kept in memory.
        lora_rank (`int`, *optional*): Train the language model by LoRA adapters of this rank (PEFT) only.
        predict_with_generate (`bool`, *optional*, defaults to `False`): Write rationales while evaluating.
        generation_max_new_tokens (`int`, *optional*, defaults to 40): Their greatest length.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether to drop the columns that the model's forward does not name."}
    )
    visual_loss_weight: float = field(default=3.0, metadata={"help": "Weight of the visual explanation loss."})
    text_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the rationale loss."})
    distribution_loss_weight: float = field(default=0.0, metadata={"help": "Weight of the VEDC loss."})
    visual_loss: str = field(
        default="gradia", metadata={"help": "Visual explanation loss.", "choices": sorted(VISUAL_LOSSES)}
    )
    res_slack: float = field(default=0.0, metadata={"help": "Slack of the visual losses `res_g` and `res_l`."})
    distribution_statistic: str = field(
        default="moments", metadata={"help": "What VEDC compares.", "choices": sorted(DISTRIBUTION_STATISTICS)}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of language model and grounding; default: `learning_rate`."}
    )
    frozen_layer: str | None = field(
        default=None, metadata={"help": "Freeze the vision model up to this module, and run it once for each image."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the language model by LoRA adapters of this rank."}
    )
    predict_with_generate: bool = field(default=False, metadata={"help": "Write rationales while evaluating."})
    generation_max_new_tokens: int = field(default=40, metadata={"help": "Greatest length of those rationales."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("visual_loss_weight", "text_loss_weight", "distribution_loss_weight", "res_slack"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        for name, choices in (("visual_loss", VISUAL_LOSSES), ("distribution_statistic", DISTRIBUTION_STATISTICS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {getattr(self, name)!r}.")


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
        texts = {
            "label_names": [self.id2label[label] for label in labels],
            "rationales": [self.draw(row) for row in rows],
        }
        if "encoded" in rows[0]:  # by `FrozenLayers.encode`
            batch = self.processor(**texts)
            for name in rows[0]["encoded"]:
                batch[name] = torch.stack([row["encoded"][name] for row in rows])
        else:
            images = [row["image"] for row in rows]
            masks = [row.get("visual_explanation") for row in rows]
            batch = self.processor(images=images, visual_explanations=masks, **texts)
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
    Mean and standard deviation of a statistic over the visual explanations, as exponential moving averages: the data
    set's pattern that VEDC pulls the other maps to.

    Args:
        name (`str`, *optional*, defaults to `"moments"`): A key of `losses_megl.DISTRIBUTION_STATISTICS`.
    """

    MOMENTUM = 0.95

    def __init__(self, name="moments"):
        super().__init__()
        self.describe, self.smallest_std, self.delta = DISTRIBUTION_STATISTICS[name]
        size = self.describe(torch.zeros(1, 4, 4)).shape[1]
        self.register_buffer("first", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def sums(self, masks):
        """Sum of the statistic and of its square over some masks `(n, height, width)`: `(2, size)`."""
        # What nobody labelled is no part of an explanation.
        described = self.describe(masks.double().nan_to_num())
        return torch.stack([described.sum(dim=0), described.square().sum(dim=0)])

    def update(self, sums, count):
        """Take in one step's masks: [`~VisualExplanationStatistic.sums`] of all processes together, their number."""
        for average, total in zip((self.first, self.second), sums, strict=True):
            average.lerp_(total / count, 1 - self.MOMENTUM)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.MOMENTUM)

    @property
    def mean(self):
        return self.first / self.weight

    @property
    def std(self):
        variance = self.second / self.weight - self.mean**2
        return variance.clamp_min(self.smallest_std**2).sqrt()

    def distance(self, maps):
        """[`distribution_consistency`] of maps `(batch_size, height, width)` with the explanations so far."""
        mean, std = self.mean.to(maps.dtype), self.std.to(maps.dtype)
        return distribution_consistency(maps, mean, std, self.describe, self.delta)


class _MeglCallback(TrainerCallback):
    """
    Tells the collator the epoch before its batches are made, and treats what the visual loss itself learns as the
    Trainer treats the model's parameters.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.visual_loss_parameters.zero_grad()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for parameter in self.trainer.visual_loss_parameters.values():
            if parameter.grad is not None:
                parameter.grad = self.trainer.accelerator.reduce(parameter.grad, reduction="mean")

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
        model.probe_saliency_layer()
        if args.lora_rank is not None:
            model = add_lora(model, args.lora_rank)
        # On CPUs and GPUs alike convolutions run fastest on this layout; other layers do not mind.
        model.vision_model.to(memory_format=torch.channels_last)
        super().__init__(
            model=model, args=args, data_collator=data_collator, processing_class=processing_class, **kwargs
        )
        self.frozen_layers = None
        if args.frozen_layer is not None:
            self._freeze(args.frozen_layer)
        self.statistic = VisualExplanationStatistic(self.args.distribution_statistic).to(self.args.device)
        # The convolution of RES-L: part of the training, not of the model.
        learnt = {"kernel": res_kernel(self.args.device)} if self.args.visual_loss == "res_l" else {}
        self.visual_loss_parameters = nn.ParameterDict(learnt)
        self._sums = {"train": defaultdict(float), "eval": defaultdict(float)}
        self.add_callback(_MeglCallback(self))

    # ---- Data ----

    def _freeze(self, name):
        """Freeze the vision model up to a module, and take its output in place of the training images."""
        if not isinstance(self.data_collator, MeglDataCollator):
            raise ValueError("`frozen_layer` needs the `MeglDataCollator`: leave out `data_collator`.")
        processor = self.data_collator.processor
        size = processor.image_processor.size
        self.frozen_layers = FrozenLayers(self.model, name, (size["height"], size["width"]))
        if self.train_dataset is not None:
            self.train_dataset = self.frozen_layers.encode(
                self.train_dataset, processor, self.args.per_device_eval_batch_size, self.args.device
            )

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
        # images, annotated images, rationale tokens; then the sums of the masks' statistic
        counts = torch.zeros(3, dtype=torch.float64, device=device)
        mask_sums = torch.zeros(2, len(self.statistic.first), dtype=torch.float64, device=device)
        for batch in batch_samples:
            annotated = batch["has_visual_explanation"].to(device)
            counts[0] += len(annotated)
            counts[1] += annotated.sum()
            counts[2] += (batch["rationale_labels"] != -100).sum()
            mask_sums += self.statistic.sums(batch["visual_explanations"].to(device)[annotated])
        sums = self.accelerator.reduce(torch.cat([counts, mask_sums.flatten()]), reduction="sum")
        images, annotated, tokens = sums[:3].tolist()
        if annotated:
            self.statistic.update(sums[3:].view_as(mask_sums), annotated)
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
        # The losses of the map, which may learn something themselves, are computed here and not in the model.
        with self._pictures(inputs) as pixel_values:
            outputs = model(
                pixel_values,
                **{key: value for key, value in inputs.items() if key in self._model_inputs(evaluating)},
                output_saliency=with_map,
                loss_weights={"text": args.text_loss_weight, "visual": 0.0},
                num_items_in_batch=num_items_in_batch,
            )
        loss = outputs.loss
        terms = {"classification": outputs.loss_classification, "text": outputs.loss_text}
        if with_map and "visual_explanations" in inputs and (evaluating or args.visual_loss_weight > 0):
            terms["visual"] = self._visual_loss(outputs.saliency, inputs, num_items_in_batch)
        if with_map and self.statistic.weight > 0 and (evaluating or args.distribution_loss_weight > 0):
            terms["distribution"] = self._distribution_loss(outputs.saliency, inputs, num_items_in_batch)
        if loss is not None:
            for name in ("visual", "distribution"):
                loss = loss + getattr(args, f"{name}_loss_weight") * terms.get(name, 0)
        self._record(terms, num_items_in_batch, "eval" if evaluating else "train")
        if not evaluating:
            # Gradients are averaged over processes, while the losses are already shares of the sum over all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _pictures(self, inputs):
        """`pixel_values`, in the context in which the model is to see them."""
        if "frozen_features" in inputs:
            return self.frozen_layers.given(inputs["frozen_features"])
        return nullcontext(inputs["pixel_values"])

    def _model_inputs(self, evaluating):
        names = {"labels"}
        if evaluating or self.args.text_loss_weight > 0:
            names |= {"input_ids", "attention_mask", "rationale_labels"}
        if self.model.config.grounding_map == "visual_explanation":
            names |= {"visual_explanations", "has_visual_explanation"}
        return names

    def _visual_loss(self, saliency, inputs, num_items):
        settings = dict(self.visual_loss_parameters)
        if self.args.visual_loss in ("res_g", "res_l"):
            settings["slack"] = self.args.res_slack
        losses = VISUAL_LOSSES[self.args.visual_loss](
            saliency, inputs["visual_explanations"], inputs["has_visual_explanation"], **settings
        )
        return losses.sum() / max(num_items["visual_explanations"], 1)

    def _distribution_loss(self, saliency, inputs, num_items):
        losses = torch.where(inputs["has_visual_explanation"], 0.0, self.statistic.distance(saliency))
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
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        learnt = [value for value in self.visual_loss_parameters.values() if id(value) not in trained]
        if learnt:
            optimizer.add_param_group({"params": learnt, "weight_decay": 0.0})
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
            for name, module in self._saved_modules().items():
                save_model(module, os.path.join(output_dir, name))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            for name, module in self._saved_modules().items():
                load_model(module, os.path.join(checkpoint, name), device=str(self.args.device))

    def _saved_modules(self):
        """What is trained beside the model, by the name of its file in a checkpoint."""
        modules = {"visual_explanation_statistic.safetensors": self.statistic}
        if len(self.visual_loss_parameters):
            modules["visual_loss.safetensors"] = self.visual_loss_parameters
        return modules


# What each loss is a mean over.
_DENOMINATORS = {
    "classification": "images",
    "visual": "visual_explanations",
    "text": "rationale_tokens",
    "distribution": "without_visual_explanation",
}


def _count_items(inputs):
    """How many items of one batch each loss is a mean over."""
    counts = {"images": len(inputs["labels"])}
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

    Raises:
        `ValueError`: where `rank` is not positive, and where the language model has no linear layer.
    """
    if rank < 1:
        raise ValueError(f"`lora_rank` must be 1 or more, got {rank}.")
    layers = [f"language_model.{name}" for name in _linear_layers(model.language_model)]
    if not layers:
        raise ValueError(
            f"`lora_rank` needs a language model with linear layers, {type(model.language_model).__name__} has none: "
            "leave it out."
        )
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=layers, modules_to_save=["vision_model", "grounding"]
    )
    return get_peft_model(model, config)


@torch.no_grad()
def _linear_layers(language_model):
    """Names of the linear layers but the head that give one tensor, as an adapter does and a router does not."""
    head = language_model.get_output_embeddings()
    # GPT-2 and its kind have `Conv1D`, a linear layer whose weight is transposed.
    linear = {
        module: name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    given, hooks = {}, []
    for module in linear:
        hooks.append(module.register_forward_hook(lambda module, _, output: given.update({module: output})))
    training = language_model.training
    language_model.eval()(inputs_embeds=language_model.get_input_embeddings().weight[None, :2], use_cache=False)
    language_model.train(training)
    for hook in hooks:
        hook.remove()
    return [name for module, name in linear.items() if isinstance(given.get(module, torch.empty(0)), torch.Tensor)]


__all__ = ["MeglDataCollator", "MeglTrainer", "MeglTrainingArguments", "add_lora", "check_labels"]
