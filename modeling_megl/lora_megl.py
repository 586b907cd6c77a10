"""Low-rank adapters (Hu et al. 2021) on the language model, by PEFT."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D


def add_lora(model, rank):
    """
    A `PeftModel` that trains low-rank adapters (Hu et al. 2021) on the language model's linear layers, and the vision
    model and the grounding in full.

    Raises:
        `ValueError`: where `rank` is not positive, and where the model has adapters already or no linear layer.
    """
    if hasattr(model, "peft_config"):
        raise ValueError("`lora_rank` puts adapters on a model that has some already: leave it out to train those.")
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


__all__ = ["add_lora"]
