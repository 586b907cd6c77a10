"""Training with explanations: the Trainer and its losses."""

import copy
import gc
import os
import shutil
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import TorchDynamoPlugin
from datasets import Dataset, Image, List
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress, hf_api, logging

from .checkpoints_megl import TRAINING_STATE, check_checkpoint, last_whole_checkpoint
from .collator_megl import MeglDataCollator, TellEpoch, check_labels
from .compile_megl import compile_parts
from .frozen_megl import FrozenLayers, encode_evidence
from .lora_megl import add_lora
from .losses_megl import (
    DISTRIBUTION_STATISTICS,
    distribution_consistency,
    multi_label_loss,
    positive_classes,
    rationale_loss,
    res_kernel,
    visual_losses,
)
from .recombination_megl import Recombination
from .training_arguments_megl import MeglTrainingArguments


logger = logging.get_logger(__name__)


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

    def reset(self):
        """Forget all masks."""
        for average in self.buffers():
            average.zero_()

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


class _BesideTheModel(TrainerCallback):
    """
    Treats what the visual loss itself learns as the Trainer treats the model's parameters, and the model's second way
    to be called, `generate_rationales`, as `forward`.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.is_fsdp_enabled:
            register_fsdp_forward_method(self.trainer.model, "generate_rationales")

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.visual_loss_parameters.zero_grad()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for parameter in self.trainer.visual_loss_parameters.values():
            if parameter.grad is not None:
                parameter.grad = self.trainer.accelerator.reduce(parameter.grad, reduction="mean")


class MeglTrainer(Trainer):
    """
    `Trainer` for [`MeglForImageClassification`]: the classification, visual, textual and distribution losses.

    Each loss is the mean over what it applies to in the *whole* batch of an optimizer step (all accumulation steps and
    processes), so k accumulation steps have the gradient of one batch k times as large. Each is logged under its name,
    `loss_classification`, `loss_visual`, `loss_text`, `loss_distribution`, in training and, with the prefix `eval_`,
    in evaluation, where it is the mean over what it applies to in the whole data set, and `eval_loss` their weighted
    sum.

    `compute_metrics` gets `predictions = (logits, saliency[, rationale token ids])`, the last with
    `predict_with_generate`, and `label_ids = (labels, visual_explanations, has_visual_explanation, rationale_labels)`;
    of a multi-label model `predictions` are the logits and `label_ids` the labels, both `(num_images, num_labels)`.

    Of a multi-label model the visual loss is the mean over the masks, of which a picture may have one for each of its
    classes; the rationale is of one of these.

    Args:
        args ([`MeglTrainingArguments`]): The settings.
        processing_class ([`MeglProcessor`]): Makes the default collator and is saved with each checkpoint.
        compute_loss_func (`Callable`, *optional*):
            `f(outputs, labels, num_items_in_batch)` is the loss, in place of all of MEGL's; `num_items_in_batch` is
            the number of images in the whole batch.
        Others: as in `Trainer`.
    """

    # `compute_loss` divides by the counts of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(self, model=None, args=None, data_collator=None, processing_class=None, **kwargs):
        args = args if args is not None else MeglTrainingArguments()
        _check_combination(args, data_collator, processing_class, kwargs)
        if args.accelerator_config.dispatch_batches is None:
            # Batches of a stream are of different lengths, which one process cannot hand on to the others.
            args.accelerator_config.dispatch_batches = False
        if args.ddp_find_unused_parameters is None:
            # A loss with a weight of 0 leaves the language model out of the graph.
            args.ddp_find_unused_parameters = True
        evaluated = kwargs.get("eval_dataset")
        evaluated = evaluated.values() if isinstance(evaluated, dict) else [evaluated]
        self._labelled_datasets = [kwargs.get("train_dataset"), *evaluated]
        self._processor = data_collator.processor if isinstance(data_collator, MeglDataCollator) else processing_class
        if model is not None:
            model = self._ready(model, args)
        super().__init__(
            model=model, args=args, data_collator=data_collator, processing_class=processing_class, **kwargs
        )
        self._check_sharding()
        if data_collator is None:
            self.data_collator = MeglDataCollator(
                processing_class,
                self.model.config.id2label,
                seed=args.seed,
                multi_label=self.model.config.is_multi_label,
            )
        if isinstance(self.data_collator, MeglDataCollator):
            if self.data_collator.multi_label != self.model.config.is_multi_label:
                raise ValueError(
                    f"`data_collator` must have `multi_label={self.model.config.is_multi_label}`, as the model's "
                    f"`problem_type` says, got {self.data_collator.multi_label}."
                )
            self.add_callback(TellEpoch(self.data_collator))
        if args.recombine > 0 and self.train_dataset is not None:
            self._recombine()
        self.frozen_layers = None
        if args.frozen_layer is not None:
            self._freeze(args.frozen_layer)
        elif args.freeze_vision:
            self._keep_evidence()
        self._class_weights = self._weigh_classes()
        self._sums = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._num_items = None  # what each loss is divided by in the step that is under way
        self.add_callback(_BesideTheModel(self))

    # ---- Model ----

    def _ready(self, model, args):
        """A model that is fit to be trained, with what is trained beside it; a `ValueError` where it cannot be."""
        if model.config.is_multi_label:
            _check_multi_label(args)
        for dataset in self._labelled_datasets:
            check_labels(model.config.id2label, dataset, model.config.is_multi_label)
        model.probe_saliency_layer()
        model.probe_class_token()
        if args.text_loss_weight > 0:
            model.probe_language_model()
            if self._processor is not None:
                model.match_processor(self._processor)
        if args.freeze_vision:
            model.vision_model.requires_grad_(False)
        if args.lora_rank is not None:
            model = add_lora(model, args.lora_rank, args.freeze_vision)
        if args.torch_compile:
            apart = [args.frozen_layer] if args.frozen_layer else []
            compile_parts(model, apart, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        self.statistic = VisualExplanationStatistic(args.distribution_statistic).to(args.device)
        # The convolution of RES-L: part of the training, not of the model.
        learnt = {"kernel": res_kernel(args.device)} if args.visual_loss == "res_l" else {}
        self.visual_loss_parameters = nn.ParameterDict(learnt)
        return model

    def call_model_init(self, trial=None):
        return self._ready(super().call_model_init(trial), self.args)

    def create_accelerator_and_postprocess(self):
        """As `Trainer`'s, without its way to compile, of the whole model: [`compile_parts`] compiles what can be."""
        super().create_accelerator_and_postprocess()
        state, whole = self.accelerator.state, TorchDynamoPlugin(backend="no")
        if state.dynamo_plugin.backend != whole.backend and not self.args.torch_compile:
            raise ValueError(
                "Accelerate's `dynamo_backend` compiles the model as a whole, which a gradient inside the forward "
                "pass forbids: leave it out, and pass `torch_compile`, which compiles the parts that can be."
            )
        state.dynamo_plugin = whole

    def _check_sharding(self):
        """Refuse what cannot be sharded as asked, with what can."""
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise ValueError("`fsdp` shards on accelerators alone, which there are none of: leave it out.")
        if self.is_fsdp_enabled and getattr(self.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1:
            raise ValueError(
                "FSDP 1 shards again after the gradient that a map is, inside the forward pass: use FSDP 2, "
                "`fsdp_config={'version': 2}`."
            )
        if self.is_fsdp_enabled and self.args.lora_rank is not None:
            raise ValueError(
                "`lora_rank` puts PEFT's wrapper around the model, under which FSDP shards what the map's gradient "
                "must find whole: leave out `fsdp`, or use DeepSpeed's ZeRO-2."
            )
        if (self.is_deepspeed_enabled or self.is_fsdp_enabled) and len(self.visual_loss_parameters):
            raise ValueError(
                "`visual_loss='res_l'` learns a parameter beside the model, which FSDP and DeepSpeed do not take: use "
                "`res_g`, or plain data parallelism."
            )

    # ---- Data ----

    def _recombine(self):
        """Have the collator give pictures other backgrounds."""
        if not isinstance(self.data_collator, MeglDataCollator):
            raise ValueError("`recombine` needs the `MeglDataCollator`: leave out `data_collator`.")
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("`recombine` takes backgrounds from anywhere in the training data: it takes no stream.")
        recombination = Recombination(self.train_dataset, self.args.recombine, self.args.seed)
        if isinstance(self.train_dataset, Dataset | list):
            labels = np.array(_column(self.train_dataset, "label"))
            without = sorted(set(labels) - set(labels[recombination.places]))
            if without:
                names = ", ".join(self.model.config.id2label[label] for label in without)
                raise ValueError(
                    f"`recombine` needs a visual explanation in every class, and there is none of {names}: that a "
                    "picture is recombined would tell its class. Give some, or leave these classes out."
                )
        recombination.check_objects(self.data_collator.process)
        self.data_collator = _with(self.data_collator, recombination=recombination)

    def _freeze(self, name):
        """Freeze the vision model up to a module; take its output in place of the training images if they stay."""
        self._check_encoded("frozen_layer")
        processor = self.data_collator.processor
        size = processor.image_processor.size
        self.frozen_layers = FrozenLayers(self.model, name, (size["height"], size["width"]))
        if self.train_dataset is not None and self.args.recombine == 0:  # which makes new pictures in each epoch
            self.train_dataset = self.frozen_layers.encode(
                self.train_dataset, processor, self.args.per_device_eval_batch_size, self.args.device
            )

    def _keep_evidence(self):
        """Take what rationales are written from in place of the training images."""
        self._check_encoded("freeze_vision")
        if self.train_dataset is not None:
            self.train_dataset = encode_evidence(
                self.model,
                self.train_dataset,
                self.data_collator.processor,
                self.args.per_device_eval_batch_size,
                self.args.device,
            )

    def _check_encoded(self, option):
        """Refuse training data that cannot be computed before the training."""
        if not isinstance(self.data_collator, MeglDataCollator):
            raise ValueError(f"`{option}` needs the `MeglDataCollator`: leave out `data_collator`.")
        if self.train_dataset is not None and not hasattr(self.train_dataset, "__len__"):
            raise ValueError(f"`{option}` computes all images before the training: it takes no stream.")

    def _weigh_classes(self):
        """Weights of the classes `(num_labels,)`, or `None`."""
        weights, num_labels = self.args.class_weights, self.model.config.num_labels
        if weights is None:
            return None
        if weights == "balanced":
            if self.train_dataset is None:
                return None
            if not isinstance(self.train_dataset, Dataset | list):
                raise ValueError(
                    "`class_weights='balanced'` counts the labels of a `datasets.Dataset`, got a "
                    f"{type(self.train_dataset).__name__}: give a number for each class."
                )
            counts = self._label_counts()
            weights = counts.sum() / (num_labels * counts.clamp_min(1))
        if len(weights) != num_labels:
            raise ValueError(f"`class_weights` must be a number for each of {num_labels} classes, got {len(weights)}.")
        return torch.as_tensor(weights, dtype=torch.float32, device=self.args.device)

    def _label_counts(self):
        """How many pictures of each class an epoch trains on `(num_labels,)`: with `recombine`, what is expected."""
        labels, num_labels = torch.tensor(_column(self.train_dataset, "label")), self.model.config.num_labels
        counts, share = torch.bincount(labels, minlength=num_labels).float(), self.args.recombine
        if share == 0:
            return counts
        annotated = torch.bincount(labels[self.data_collator.recombination.places], minlength=num_labels).float()
        return (1 - share) * counts + share * counts.sum() * annotated / annotated.sum()

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if isinstance(self.data_collator, MeglDataCollator):
            self._signature_columns += _COLUMNS

    def get_eval_dataloader(self, eval_dataset=None):
        if not isinstance(eval_dataset, str):
            check_labels(self.model.config.id2label, eval_dataset, self.model.config.is_multi_label)
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        check_labels(self.model.config.id2label, test_dataset, self.model.config.is_multi_label)
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_collator(self):
        """Evaluation takes the same rationale of an image in every epoch, and each picture as it is."""
        collator = self.data_collator
        if isinstance(collator, MeglDataCollator):
            self.data_collator = _with(collator, epoch=None)
        try:
            yield
        finally:
            self.data_collator = collator

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step and their number of images; keeps what each loss is divided by there."""
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sums["train"]["steps"] += 1
        totals = torch.zeros(len(_LOSSES), dtype=torch.float64, device=device)
        mask_sums = torch.zeros(2, len(self.statistic.first), dtype=torch.float64, device=device)
        for batch in batch_samples:
            batch = _with_flags({name: batch[name].to(device) for name in _TARGETS if name in batch})
            counts = self._counts(batch)
            totals += torch.stack([counts[name].sum() if name in counts else totals[0] * 0 for name in _LOSSES])
            if "visual" in counts:
                mask_sums += self.statistic.sums(batch["visual_explanations"][batch["has_visual_explanation"]])
        images = totals.new_tensor([sum(len(batch["labels"]) for batch in batch_samples)])
        sums = self.accelerator.reduce(torch.cat([images, totals, mask_sums.flatten()]), reduction="sum")
        images, totals, mask_sums = sums[0], sums[1 : len(_LOSSES) + 1], sums[len(_LOSSES) + 1 :].view_as(mask_sums)
        self._num_items = dict(zip(_LOSSES, totals.tolist(), strict=True))
        if self._num_items["visual"]:
            self.statistic.update(mask_sums, self._num_items["visual"])
        return batch_samples, int(images)

    # ---- Losses ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        evaluating, inputs = not model.training, _with_flags(inputs)
        weights = {name: self._weight(name) for name in _LOSSES}
        with_map = evaluating or any(weights[name] > 0 for name in _LOSSES[1:])
        names = {"evidence_features", "features", "saliency"}
        if evaluating or weights["text"] > 0:
            names |= {"input_ids", "attention_mask"}
        if self.model.config.grounding_map == "visual_explanation":
            names |= {"visual_explanations", "has_visual_explanation"}
        with self._pictures(inputs) as pixel_values:
            outputs = model(
                pixel_values,
                **{name: inputs[name] for name in names if name in inputs},
                target=self._target(inputs, evaluating),
                output_saliency=with_map,
                visual_loss=None,
            )
        wanted = [name for name in _LOSSES if evaluating or weights[name] > 0]
        losses = self._losses(outputs, inputs, wanted)
        counts = self._counts(inputs)
        num_items = self._num_items
        if num_items_in_batch is None or num_items is None:  # of no step: this batch is the whole one
            num_items = {name: count.sum().item() for name, count in counts.items()}
        terms = {name: loss.sum() / (num_items[name] or 1) for name, loss in losses.items()}
        if evaluating:
            self._record_rows(losses, counts)
        else:
            self._record_terms(terms)
        loss = sum(weights[name] * term for name, term in terms.items())
        if self.compute_loss_func is not None:
            images = len(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
            loss = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=images)
        if not evaluating:
            # Gradients are averaged over processes, while the losses are already shares of the sum over all of them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _target(self, inputs, evaluating):
        """The classes that maps are computed of: labels, and in evaluation the predicted class where it is one."""
        if not self.model.config.is_multi_label:
            return None if evaluating else inputs["labels"]
        return inputs["target"] if "target" in inputs else positive_classes(inputs["labels"])

    def _pictures(self, inputs):
        """`pixel_values`, in the context in which the model is to see them."""
        if "frozen_features" in inputs:
            return self.frozen_layers.given(inputs["frozen_features"])
        return nullcontext(inputs.get("pixel_values"))  # none where `freeze_vision` has their evidence

    def _counts(self, inputs):
        """What each loss is a mean over, by its name: how much of it each row has, `(B,)`."""
        labels = inputs["labels"]
        counts = {"classification": torch.ones(len(labels), dtype=torch.float64, device=labels.device)}
        if self._class_weights is not None:
            counts["classification"] = self._class_weights[inputs["labels"]].double()
        if "has_visual_explanation" in inputs:
            annotated = inputs["has_visual_explanation"]
            counts |= {"visual": _of_rows(annotated.double()), "distribution": _of_rows((~annotated).double())}
        if "rationale_labels" in inputs:
            counts["text"] = (inputs["rationale_labels"] != -100).sum(dim=1).double()
        return counts

    def _losses(self, outputs, inputs, names):
        """Those of the losses that can be computed, by name: the sum over what each row has, `(B,)`."""
        losses = {}
        if outputs.logits is not None and self.model.config.is_multi_label:
            losses["classification"] = multi_label_loss(outputs.logits, inputs["labels"])
        elif outputs.logits is not None:
            losses["classification"] = F.cross_entropy(
                outputs.logits.float(),
                inputs["labels"],
                weight=self._class_weights,
                label_smoothing=self.args.label_smoothing_factor,
                reduction="none",
            )
        if "text" in names and outputs.rationale_logits is not None and "rationale_labels" in inputs:
            losses["text"] = rationale_loss(outputs.rationale_logits, inputs["rationale_labels"])
        if outputs.saliency is None or "has_visual_explanation" not in inputs:
            return losses
        if "visual" in names:
            losses["visual"] = _of_rows(self._visual_losses(outputs.saliency, inputs))
        if "distribution" in names and self.statistic.weight > 0 and not self.model.config.is_multi_label:
            distances = self.statistic.distance(outputs.saliency)
            losses["distribution"] = torch.where(inputs["has_visual_explanation"], 0.0, distances)
        return losses

    def _visual_losses(self, saliency, inputs):
        settings = dict(self.visual_loss_parameters)
        if self.args.visual_loss in ("res_g", "res_l"):
            settings["slack"] = self.args.res_slack
        masks, annotated = inputs["visual_explanations"], inputs["has_visual_explanation"]
        return visual_losses(self.args.visual_loss, saliency, masks, annotated, **settings)

    # ---- Logs ----

    def _record_terms(self, terms):
        """Add up each term for the log: it is this batch's share of the mean of its step."""
        for name, term in terms.items():
            self._sums["train"][name] += term.detach().double()

    def _record_rows(self, losses, counts):
        """Add up losses, and what they are means over, of all processes; rows that fill up a last batch count once."""
        names = [name for name in _LOSSES if name in losses]
        table = torch.stack([part[name].double() for name in names for part in (losses, counts)], dim=1)
        table = self.accelerator.gather_for_metrics(table).sum(dim=0)
        for index, name in enumerate(names):
            self._sums["eval"][name] += table[2 * index].item()
            self._sums["eval"][f"{name}_count"] += table[2 * index + 1].item()

    def _pop_terms(self):
        """Means over the steps since the last log, of each term that there was in one of them, on any process."""
        sums, self._sums["train"] = self._sums["train"], defaultdict(float)
        # Every process takes part, also one that had no item of this kind.
        pairs = [[float(sums.get(name, 0)), float(name in sums)] for name in _LOSSES]
        pairs = torch.tensor(pairs, dtype=torch.float64, device=self.args.device)
        totals, known = self.accelerator.reduce(pairs, reduction="sum").T.tolist()
        found = zip(_LOSSES, totals, known, strict=True)
        return {f"loss_{name}": total / max(sums["steps"], 1) for name, total, times in found if times}

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs = {**logs, **self._pop_terms()}
        super().log(logs, start_time)

    # ---- Evaluation ----

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self._sums["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self._sums["eval"]
        means = {name: sums[name] / sums[f"{name}_count"] for name in _LOSSES if sums[f"{name}_count"]}
        output.metrics.update({f"{metric_key_prefix}_loss_{name}": value for name, value in means.items()})
        if means and self.compute_loss_func is None:
            output.metrics[f"{metric_key_prefix}_loss"] = sum(self._weight(name) * means[name] for name in means)
        return output

    def _weight(self, name):
        return 1.0 if name == "classification" else getattr(self.args, f"{name}_loss_weight")

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        if self.model.config.is_multi_label:  # pictures differ in their number of maps
            return loss, outputs.logits, inputs["labels"]
        predictions = (outputs.logits, outputs.saliency)
        if self.args.predict_with_generate:
            predictions += (self._generate(outputs),)
        return loss, predictions, tuple(inputs[name] for name in _TARGETS if name in inputs)

    def _generate(self, outputs):
        model = self.accelerator.unwrap_model(self.model)
        names = [model.config.id2label[label] for label in outputs.logits.argmax(dim=-1).tolist()]
        prompts = self.processing_class.prompts(names).to(outputs.logits.device)
        return model.generate_rationales(
            **prompts,
            evidence_tokens=outputs.evidence_tokens,
            max_new_tokens=self.args.generation_max_new_tokens,
            # Parameters that are sharded are gathered by all processes, as long as one of them still writes.
            synced_gpus=self.is_fsdp_enabled,
        )

    # ---- Optimizer and training state ----

    def create_optimizer(self, model=None):
        """As `Trainer`'s, the first thing of each training, before the model is wrapped and a checkpoint is read."""
        # What is left of another one: `auto_find_batch_size` begins anew where it has found a batch too large.
        self._sums["train"].clear()
        self.statistic.reset()
        # FSDP and DeepSpeed refuse the layout, and what is frozen shall answer to the bit as before.
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.freeze_vision):
            # On CPUs and GPUs alike convolutions run fastest on it; other layers do not mind.
            self.model.vision_model.to(memory_format=torch.channels_last)
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

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`; of the checkpoints in `output_dir`, `True` takes the newest that is whole."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"`resume_from_checkpoint=True`: {self.args.output_dir} has no whole checkpoint.")
        elif resume_from_checkpoint is not None and resume_from_checkpoint is not False:
            check_checkpoint(resume_from_checkpoint)
        self._warn_of_idle_weights()
        if not self.args.freeze_vision:
            model = self.accelerator.unwrap_model(self.model)
            model.config.score_temperature = 1.0  # fitted to the weights as they were
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _warn_of_idle_weights(self):
        """One warning of the loss weights that find nothing in the training data to act on."""
        dataset = self.train_dataset
        if self.args.recombine == 1 and isinstance(dataset, Dataset | list):  # no other pictures are trained on
            places = self.data_collator.recombination.places
            dataset = dataset.select(places) if isinstance(dataset, Dataset) else [dataset[place] for place in places]
        found = _explanations(dataset)
        if found is None:
            return
        acts = {
            "visual": "visual_explanation" in found,
            "text": "textual_explanations" in found,
            "distribution": "visual_explanation" in found and "no visual_explanation" in found,
        }
        idle = [f"`{name}_loss_weight`" for name, does in acts.items() if self._weight(name) > 0 and not does]
        if idle:
            logger.warning(f"{' and '.join(idle)}: the training data have no explanations that this acts on.")

    def save_model(self, output_dir=None, _internal_call=False):
        """As `Trainer.save_model`; called by the user, it writes a whole model also where checkpoints are sharded."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and not _internal_call:
            plugin.set_state_dict_type("FULL_STATE_DICT")
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            # A pickle that nothing reads back, in what shall be a model repository without any.
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def end(self):
        """As `Trainer.end`, at the very end of a program: the processes leave together, with no work under way."""
        # A thread of gloo that lets go of its last tensors while the interpreter ends aborts the process. Waiting
        # gives it time where something keeps the group, as FSDP does. DDP's wrapper, part of a cycle, is let go of, so
        # that the group ends here with its threads.
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        super().end()

    def _push_from_checkpoint(self, checkpoint_folder):
        """As `Trainer`'s; what is uploaded is the checkpoint's repository, with its code and without a pickle."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A copy, as the checkpoint may be rotated away during the upload.
        for path in Path(checkpoint_folder).iterdir():
            if path.is_file() and path.suffix not in TRAINING_STATE:
                shutil.copy(path, self.args.output_dir)
        options = {
            "repo_id": self.hub_model_id,
            "commit_message": f"Training in progress, step {self.state.global_step}",
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "run_as_future": True,
        }
        ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", *(f"*{suffix}" for suffix in TRAINING_STATE)]
        jobs = [hf_api().upload_folder(folder_path=self.args.output_dir, ignore_patterns=ignored, **options)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if last else Path(checkpoint_folder).name
            jobs.append(hf_api().upload_folder(folder_path=checkpoint_folder, path_in_repo=place, **options))
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            for name, module in self._saved_modules().items():
                save_model(module, os.path.join(output_dir, name))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        for name, module in self._saved_modules().items() if checkpoint is not None else ():
            path = os.path.join(checkpoint, name)
            if os.path.isfile(path):
                _load_beside(module, path)
            else:  # as of the optimizer, with `save_only_model`
                logger.warning(f"The checkpoint {checkpoint} has no {name}, which begins anew.")

    def _saved_modules(self):
        """What is trained beside the model, by the name of its file in a checkpoint."""
        modules = {"visual_explanation_statistic.safetensors": self.statistic}
        if len(self.visual_loss_parameters):
            modules["visual_loss.safetensors"] = self.visual_loss_parameters
        return modules


_LOSSES = ("classification", "visual", "text", "distribution")
# What a batch has besides pictures and prompts.
_TARGETS = ("labels", "visual_explanations", "has_visual_explanation", "rationale_labels")
_EXPLANATIONS = ("visual_explanation", "textual_explanations")
# What the collator reads of a row.
_COLUMNS = ["id", "image", "label", *_EXPLANATIONS, "encoded"]


def _check_combination(args, data_collator, processing_class, options):
    """Refuse arguments of [`MeglTrainer`] that do not go together."""
    if not isinstance(args, MeglTrainingArguments):
        raise ValueError(
            f"`args` must be `MeglTrainingArguments`, which have the weights of the losses, got "
            f"`{type(args).__name__}`."
        )
    if data_collator is None and not isinstance(processing_class, ProcessorMixin):
        raise ValueError(
            "Pass a `data_collator`, or the model's `MeglProcessor` as `processing_class` to make the default one "
            f"with, got {type(processing_class).__name__}."
        )
    encoded = "freeze_vision" if args.freeze_vision else "frozen_layer"
    if options.get("model_init") is not None and getattr(args, encoded):
        raise ValueError(f"`{encoded}` computes its images once, for one `model`: leave out `model_init`.")
    if options.get("compute_loss_func") is not None and args.freeze_vision:
        raise ValueError("`freeze_vision` trains on the rationale loss alone: leave out `compute_loss_func`.")
    if options.get("compute_loss_func") is not None and args.class_weights is not None:
        raise ValueError("`compute_loss_func` takes the place of the losses: leave out `class_weights`.")
    if args.ddp_find_unused_parameters is False and args.text_loss_weight == 0 and args.world_size > 1:
        raise ValueError(
            "`ddp_find_unused_parameters` must not be False with `text_loss_weight=0`, which leaves the language "
            "model unused: leave the option out."
        )
    train_dataset, column = options.get("train_dataset"), args.length_column_name
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        if getattr(args, encoded) or column not in (getattr(train_dataset, "column_names", None) or ()):
            raise ValueError(
                f"`train_sampling_strategy={args.train_sampling_strategy!r}` needs lengths in a column {column!r} of "
                f"a `datasets.Dataset`, and no `{encoded}`: pictures have one size. Leave it out."
            )
    if args.n_gpu > 1:
        raise ValueError(
            f"Got {args.n_gpu} GPUs in one process: start a process for each by `torchrun --nproc_per_node "
            f"{args.n_gpu}`, or let it see one GPU alone by CUDA_VISIBLE_DEVICES."
        )


# What is not trained by where a picture has several labels.
_SINGLE_LABEL = {
    "recombine": 0,
    "distribution_loss_weight": 0,
    "frozen_layer": None,
    "freeze_vision": False,
    "class_weights": None,
    "label_smoothing_factor": 0,
    "predict_with_generate": False,
}


def _check_multi_label(args):
    """Refuse what is meant for one label a picture."""
    given = [f"`{name}`" for name, off in _SINGLE_LABEL.items() if getattr(args, name) != off]
    if given:
        raise ValueError(f"A multi-label model cannot be trained with {' and '.join(given)}: leave it out.")


def _of_rows(values):
    """What each row has in all, `(B,)`, of values `(B,)` or of several for each row `(B, n)`."""
    return values.sum(dim=1) if values.ndim == 2 else values


def _with_flags(inputs):
    """A batch that says which rows have a visual explanation: all, where its collator does not say."""
    if "visual_explanations" not in inputs or "has_visual_explanation" in inputs:
        return inputs
    masks = inputs["visual_explanations"]
    flags = torch.ones(masks.shape[:-2], dtype=torch.bool, device=masks.device)
    return {**inputs, "has_visual_explanation": flags}


def _load_beside(module, path):
    """Load what was trained beside the model."""
    try:
        load_model(module, path)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is of a training with another `distribution_statistic` or `visual_loss`: go on with the same."
        ) from error


def _with(collator, **settings):
    """A collator with other settings, and all else that the user's class may have."""
    changed = copy.copy(collator)
    for name, value in settings.items():
        setattr(changed, name, value)
    return changed


def _column(dataset, name):
    """A column of a data set or of a list of rows, as a list."""
    return list(dataset.with_format(None)[name]) if isinstance(dataset, Dataset) else [row[name] for row in dataset]


def encoded_masks(dataset):
    """A data set with `visual_explanation`, whose masks are not decoded."""
    several = isinstance(dataset.features["visual_explanation"], List)
    return dataset.cast_column("visual_explanation", List(Image(decode=False)) if several else Image(decode=False))


def some(value):
    """Whether there is an explanation, also in a list of them for each label."""
    return any(map(some, value)) if isinstance(value, list) else bool(value)


def _explanations(dataset):
    """
    Which kinds of explanations some row of a data set has, and whether some row has no visual one; `None` where that
    would take to decode pictures. Reading ends when nothing is left to be found.
    """
    if isinstance(dataset, Dataset):
        columns = [name for name in ("id", *_EXPLANATIONS) if name in dataset.column_names]
        dataset = dataset.select_columns(columns)
        if "visual_explanation" in columns:
            dataset = encoded_masks(dataset)
    elif not isinstance(dataset, list):
        return None
    found = set()
    try:
        for row in dataset:
            mask = some(row.get("visual_explanation")) or row.get("encoded", {}).get("has_visual_explanation")
            found.add("visual_explanation" if mask else "no visual_explanation")
            if some(row.get("textual_explanations")):
                found.add("textual_explanations")
            if len(found) == 3:
                break
    except Exception:  # of a transform of the user's, which may want all columns, and pictures decoded
        return None
    return found


__all__ = ["MeglDataCollator", "MeglTrainer", "MeglTrainingArguments", "TellEpoch", "add_lora", "check_labels"]
