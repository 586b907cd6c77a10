"""Multimodal Explanation-Guided Learning for Hugging Face: image classifiers that show and say why."""

from .configuration_megl import PRESETS, TEXT_PRESETS, MeglConfig
from .modeling_megl import MeglForImageClassification, MeglOutput, MeglPreTrainedModel
from .pipeline_megl import ExplainedImageClassificationPipeline
from .processing_megl import MeglProcessor


__all__ = [
    "PRESETS",
    "TEXT_PRESETS",
    "ExplainedImageClassificationPipeline",
    "MeglConfig",
    "MeglForImageClassification",
    "MeglOutput",
    "MeglPreTrainedModel",
    "MeglProcessor",
]
