"""Low-rank adapters (Hu et al. 2021) on the language model, by PEFT."""

from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .language_megl import ADAPTER_FOLDER, check_base


def add_lora(model, rank, freeze_vision=False):
    """
    A `PeftModel` that trains low-rank adapters (Hu et al. 2021) on the language model's linear layers, and the
    grounding and, unless `freeze_vision` is given, the vision model in full.

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
    in_full = ["grounding"] if freeze_vision else ["vision_model", "grounding"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers, modules_to_save=in_full)
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


_CARD = """---
library_name: transformers
pipeline_tag: image-classification
tags: [megl, lora]
---

# {name}

An image classifier that shows and says why. This repository has its vision model, and low-rank adapters for the
language model, {base}, which is fetched and joined with them:

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("REPOSITORY", trust_remote_code=True)
```

`text_base_model="FOLDER"` takes another copy of the language model.
"""


def save_adapter(model, processor, folder):
    """
    Save a model with adapters without its language model; `from_pretrained` takes the folder as any other checkpoint.

    Args:
        model (`PeftModel`): What [`add_lora`] made of a [`MeglForImageClassification`].
        processor ([`MeglProcessor`]): Its processor.
        folder (`str` or `Path`): Where to.

    Raises:
        `ValueError`: where nobody could fetch the language model, as it was trained from scratch or has changed since
            it was loaded.
    """
    folder, megl = Path(folder), model.get_base_model()
    base = {name.replace(".base_layer.", "."): value for name, value in megl.language_model.state_dict().items()}
    base = {name: value for name, value in base.items() if ".lora_" not in name}
    check_base(megl.config, base, "the adapters alone are of no use")
    parts = {"vision_model": megl._active_vision_model, "grounding": megl.grounding.modules_to_save["default"]}
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    megl.config.text_adapter = True
    try:
        megl.save_pretrained(folder, state_dict=state)
    finally:
        megl.config.text_adapter = False
    processor.save_pretrained(folder)
    _save_language_adapter(model, folder / ADAPTER_FOLDER)
    base = megl.config.text_base_model
    local = Path(base).exists()  # where that lies is no one's business
    card = ModelCard(_CARD.format(base="the author's" if local else f"`{base}`", name=folder.resolve().name))
    if not local:
        card.data.base_model, card.data.base_model_relation = base, "adapter"
    card.save(folder / "README.md")


def _save_language_adapter(model, folder):
    """The adapters as PEFT would have saved those of the language model alone."""
    lora, inner = model.peft_config["default"], "base_model.model.language_model."
    replace(
        lora,
        target_modules={name.removeprefix("language_model.") for name in lora.target_modules},
        modules_to_save=None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.get_base_model().config.text_base_model,
        inference_mode=True,
    ).save_pretrained(folder)
    state = {
        name.replace(inner, "base_model.model."): value.contiguous()
        for name, value in get_peft_model_state_dict(model).items()
        if name.startswith(inner)
    }
    save_file(state, folder / "adapter_model.safetensors")


__all__ = ["add_lora", "save_adapter"]
