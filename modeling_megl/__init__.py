"""Multimodal Explanation-Guided Learning for Hugging Face: image classifiers that show and say why."""

from importlib import import_module
from importlib.util import find_spec

from .configuration_megl import PRESETS, TEXT_PRESETS, MeglConfig
from .modeling_megl import MeglForImageClassification, MeglOutput, MeglPreTrainedModel
from .pipeline_megl import ExplainedImageClassificationPipeline
from .processing_megl import MeglProcessor


# What trains the model, by its file: imported at first use, as it needs the extra `train`.
_TRAINING = {
    "MeglDataCollator": "collator_megl",
    "MeglTrainer": "training_megl",
    "MeglTrainingArguments": "training_arguments_megl",
    "TellEpoch": "collator_megl",
    "add_lora": "lora_megl",
    "check_labels": "collator_megl",
    "compile_parts": "compile_megl",
    "save_adapter": "lora_megl",
}
# Listed where they can be imported: `from modeling_megl import *` and inspection take all that is listed.
_LISTED = _TRAINING if all(find_spec(name) for name in ("accelerate", "datasets", "peft")) else {}

__all__ = [
    "PRESETS",
    "TEXT_PRESETS",
    "ExplainedImageClassificationPipeline",
    "MeglConfig",
    "MeglForImageClassification",
    "MeglOutput",
    "MeglPreTrainedModel",
    "MeglProcessor",
    *_LISTED,
]


def __getattr__(name):
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_TRAINING[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"`{name}` needs the package {error.name}, which is not installed: pip install 'megl[train]'"
        ) from error
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_LISTED})
