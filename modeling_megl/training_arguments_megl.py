"""The settings of a training with explanations: `TrainingArguments` with the weights of MEGL's losses."""

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .losses_megl import DISTRIBUTION_STATISTICS, VISUAL_LOSSES


@dataclass
class MeglTrainingArguments(TrainingArguments):
    r"""
    `TrainingArguments` with the weights of MEGL's losses,
    L = L_cls + λ_visual L_visual + λ_text L_text + λ_dist L_dist.

    With every weight at 0 this is plain fine-tuning of the classifier, at its plain cost. `remove_unused_columns`
    defaults to `False`, as the collator reads the data set's own columns. `torch_compile` compiles what is
    differentiated once, see [`compile_parts`].

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
        recombine (`float`, *optional*, defaults to 0.0): Share of the training pictures whose place is taken, in each
            epoch anew, by an annotated picture's object on the background of another annotated picture; see
            [`Recombination`].
        text_learning_rate (`float`, *optional*): Learning rate of the language model and the grounding; `None` takes
            `learning_rate`. A language model trained from scratch beside a pretrained vision model wants a larger one.
        frozen_layer (`str`, *optional*): Module of the vision model, such as `"stages.6"` or `"vit.layers.7"`, up to
            which it is frozen; what it makes of each training image is computed once and kept in memory, unless
            `recombine` makes new ones.
        freeze_vision (`bool`, *optional*, defaults to `False`): Leave the vision model as it is, label and map to the
            bit, and train the grounding and the language model alone, on the rationale loss; what the rationale of
            each training image is written from is computed once and kept in memory. The other losses' weights must
            be 0.
        lora_rank (`int`, *optional*): Train the language model by LoRA adapters of this rank (PEFT) only.
        class_weights (`list`, *optional*):
            Weights of the classes in the classification loss, as in `torch.nn.CrossEntropyLoss`, a number for each in
            the order of their ids; or `"balanced"`: n / (K n_k) for n training images of K classes, n_k of them of
            class k.
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
    recombine: float = field(
        default=0.0,
        metadata={"help": "Share of the pictures whose place an annotated object on another background takes."},
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of language model and grounding; default: `learning_rate`."}
    )
    frozen_layer: str | None = field(
        default=None,
        metadata={
            "help": "Freeze the vision model up to this module; it runs once for each image without `recombine`."
        },
    )
    freeze_vision: bool = field(
        default=False,
        metadata={
            "help": "Leave the vision model as it is and train rationales alone; it runs once for each image. Needs "
            "--visual_loss_weight 0."
        },
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train the language model by LoRA adapters of this rank."}
    )
    class_weights: list[str] | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in the classification loss, in the order of their ids, or: balanced."
        },
    )
    predict_with_generate: bool = field(default=False, metadata={"help": "Write rationales while evaluating."})
    generation_max_new_tokens: int = field(default=40, metadata={"help": "Greatest length of those rationales."})

    def __post_init__(self):
        if not torch.accelerator.is_available():
            # Without this, processes started by torchrun on CPUs would each train alone, on all the data.
            self.use_cpu, self.dataloader_pin_memory = True, False
            if self.fp16 or self.fp16_full_eval:
                raise ValueError("`fp16` needs an accelerator, which there is none of: use `bf16`, or leave it out.")
        for name, (allowed, reason) in _FIXED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be {allowed[0]} here, got {getattr(self, name)!r}: {reason}")
        super().__post_init__()
        for name in _WEIGHTS:
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # nor is NaN
                raise ValueError(f"`{name}` must be a number that is not negative, got {value}.")
        if self.recombine > 1:
            raise ValueError(f"`recombine` is a share of the pictures, in [0, 1], got {self.recombine}.")
        for name, choices in (("visual_loss", VISUAL_LOSSES), ("distribution_statistic", DISTRIBUTION_STATISTICS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {sorted(choices)}, got {getattr(self, name)!r}.")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")
        if self.freeze_vision:
            self._check_rationales_alone()
        if self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed's ZeRO-3 gathers parameters for one backward pass, while a map is a gradient that is taken "
                "inside the forward pass: use ZeRO-2, or FSDP 2."
            )
        self.class_weights = _read_class_weights(self.class_weights)

    def _check_rationales_alone(self):
        """Refuse what would train a vision model that stays as it is, and what would show it other images."""
        idle = [f"`{name}={value}`" for name, value in _FROZEN.items() if getattr(self, name) != value]
        if idle:
            raise ValueError(f"`freeze_vision` trains on rationales alone: set {' and '.join(idle)}.")
        if self.text_loss_weight == 0:
            raise ValueError("`freeze_vision` trains on rationales alone: `text_loss_weight` must be above 0.")


_WEIGHTS = ("visual_loss_weight", "text_loss_weight", "distribution_loss_weight", "res_slack", "recombine")
_COUNTS = (
    *("lora_rank", "generation_max_new_tokens", "gradient_accumulation_steps"),
    *("per_device_train_batch_size", "per_device_eval_batch_size"),
)
# What `freeze_vision` leaves nothing to do.
_FROZEN = {
    "visual_loss_weight": 0,
    "distribution_loss_weight": 0,
    "recombine": 0,
    "frozen_layer": None,
    "class_weights": None,
}
# Options of `TrainingArguments` that cannot be honoured: what they may be, and why.
_FIXED = {
    "parallelism_config": ((None,), "tensor, context and sequence parallelism would split the map's gradient."),
    "average_tokens_across_devices": (
        (True,),
        "each loss is the mean over what it applies to in the whole batch, on all processes together.",
    ),
}


def _read_class_weights(weights):
    """`None`, `"balanced"` or a list of `float`, of what a command line or a caller gives."""
    if weights is None:
        return None
    if isinstance(weights, str) or list(weights) == ["balanced"]:
        weights = weights if isinstance(weights, str) else weights[0]
        if weights == "balanced":
            return weights
    expected = "`class_weights` must be 'balanced' or numbers that are not negative, one for each class"
    try:
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise ValueError(f"{expected}, got {weights!r}.") from None
    if not all(0 <= number < math.inf for number in numbers) or not any(numbers):
        raise ValueError(f"{expected}, got {weights!r}.")
    return numbers


__all__ = ["MeglTrainingArguments"]
