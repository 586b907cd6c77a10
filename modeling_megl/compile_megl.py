"""Compiling the parts of a model that a guided training differentiates once."""

from functools import wraps
from types import MethodType

import torch
from torch import nn

from .configuration_megl import infer_image_size
from .saliency_megl import SALIENCY_METHODS
from .tap_megl import probe_stem


def compile_parts(model, apart=(), **options):
    """
    Compile the parts of the vision model before the tap and the layers of the language model, each for itself, in
    place. They run compiled in training mode alone: evaluation, which meets other shapes with each rationale that it
    writes, stays as it was.

    What follows the tap stays as it is, since its gradient is taken inside the forward pass and differentiated again,
    which is not defined for compiled code; so does all of the vision model where the map is made of pixels or
    attentions.

    Args:
        model ([`MeglForImageClassification`]): The model.
        apart (`list[str]`, *optional*): Names of modules of the vision model, beside its evidence layers, that hooks
            are on, which compiled code would not see: what is compiled has none of them inside.
        options: Of `torch.compile`, such as `backend` and `mode`.

    Returns:
        `list[str]`: the names of what is compiled, in the vision model and in the language model.
    """
    vision_model, parts = model._active_vision_model, {}
    if SALIENCY_METHODS[model.config.saliency_method].reads == "features":
        size, apart = infer_image_size(model.config.vision_config), (*model.config.evidence_layers, *apart)
        for name in probe_stem(vision_model, model._tap_name, size, apart):
            parts[f"vision_model.{name}"] = vision_model.get_submodule(name)
    parts |= {f"language_model.{name}": layer for name, layer in _layers(model.language_model)}
    for module in parts.values():
        # Bound like a method of the class: a copy of the module runs its own weights.
        module.forward = MethodType(_compiled_in_training(type(module).forward, options), module)
    return list(parts)


def _layers(module, prefix=""):
    """The members of the outermost lists of modules, by name."""
    for name, child in module.named_children():
        if isinstance(module, nn.ModuleList):
            yield f"{prefix}{name}", child
        else:
            yield from _layers(child, f"{prefix}{name}.")


def _compiled_in_training(forward, options):
    compiled = torch.compile(forward, **options)

    @wraps(forward)
    def run(self, *args, **kwargs):
        return (compiled if self.training else forward)(self, *args, **kwargs)

    return run


__all__ = ["compile_parts"]
