"""Transformers whose class is read at the class token: their last layer, computed for that token alone."""

import copy
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


_ATTENTION = "megl_class_token"


def _attend(module, query, key, value, attention_mask, **kwargs):
    """An attention function of Transformers for the first token's query; the other rows of its output are zero."""
    attend = ALL_ATTENTION_FUNCTIONS[module.config.all_tokens_attention]
    if attention_mask is not None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    output, weights = attend(module, query[:, :, :1], key, value, None, **kwargs)
    return F.pad(output, (0, 0, 0, 0, 0, query.shape[2] - 1)), weights


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attend)


@contextmanager
def class_token_alone(layer, norm):
    """
    Computes of a layer's output the class token's row; the other rows mean nothing. Attention takes keys and values of
    all tokens, by whatever function of Transformers' `AttentionInterface` the layer has, and what follows `norm`, the
    layer's last one, the class token.
    """
    before = {}
    for module in layer.modules():
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None)
        if implementation in ALL_ATTENTION_FUNCTIONS:
            before[module] = config
            module.config = copy.copy(config)  # which all layers share
            module.config.all_tokens_attention = implementation
            module.config._attn_implementation = _ATTENTION
    # The one row is then added to all rows of the residual, which costs next to nothing.
    handle = norm.register_forward_pre_hook(lambda module, args: (args[0][:, :1], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
        for module, config in before.items():
            module.config = config


@contextmanager
def other_rows_lost(layer):
    """Makes all rows of a layer's output but the first NaN, which whatever is computed from them then is as well."""

    def lose(module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        rows = torch.arange(tensor.shape[1], device=tensor.device)[:, None]
        tensor = torch.where(rows == 0, tensor, torch.nan)
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    handle = layer.register_forward_hook(lose)
    try:
        yield
    finally:
        handle.remove()
