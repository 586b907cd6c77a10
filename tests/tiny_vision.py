"""Tiny vision models of every kind, with random weights large enough to tell classes apart."""

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from modeling_megl.modeling_megl import MeglPooledClassifier
from modeling_megl.saliency_megl import SALIENCY_METHODS, compute_saliency, explained_scores
from modeling_megl.tap_megl import open_tap


TRANSFORMER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "initializer_range": 0.3,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}
BLOCKS = {
    "in_channels": [32, 8],
    "out_channels": [8, 16],
    "num_block_repeats": [1, 1],
    "strides": [2, 2],
    "kernel_sizes": [3, 3],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "hidden_dim": 1280,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}

# model_type: its settings, the name of its tap, and its class and register tokens.
VISION_MODELS = {
    "vit": (TRANSFORMER, "vit.layers.1.layernorm_before", 1),
    "deit": (
        {**TRANSFORMER, "architectures": ["DeiTForImageClassification"]},
        "deit.layers.1.layernorm_before",
        2,
    ),
    "dinov2": (TRANSFORMER, "dinov2.encoder.layer.1.norm1", 1),
    "dinov2_with_registers": (
        {**TRANSFORMER, "num_register_tokens": 2},
        "dinov2_with_registers.encoder.layer.1.norm1",
        3,
    ),
    "beit": (TRANSFORMER, "beit.layers.1.layernorm_before", 1),
    "swin": (WINDOWS, "swin.layernorm", 0),
    "ijepa": (TRANSFORMER, "ijepa.layernorm", 0),
    "resnet": ({**STAGES, "embedding_size": 8, "layer_type": "basic"}, "resnet.encoder.stages.1", 0),
    "convnext": ({**STAGES, "num_stages": 2}, "convnext.encoder.stages.1", 0),
    "efficientnet": (BLOCKS, "efficientnet.encoder.top_activation", 0),
    "mobilenet_v2": ({"depth_multiplier": 0.1, "output_stride": 8}, "mobilenet_v2.conv_1x1", 0),
    "clip_vision_model": (TRANSFORMER, "backbone.encoder.layers.1.layer_norm1", 1),
    "siglip_vision_model": (TRANSFORMER, "backbone.post_layernorm", 0),
    # Exists as an `AutoBackbone` alone.
    "rt_detr_resnet": (
        {**STAGES, "embedding_size": 8, "layer_type": "basic", "out_features": ["stage2"]},
        "backbone.encoder.stages.1",
        0,
    ),
}


def make_vision_model(model_type, seed=0, **settings):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**VISION_MODELS[model_type][0], "image_size": 32, **settings})
    config.num_labels = 3
    if type(config) in AutoModelForImageClassification._model_mapping:
        return AutoModelForImageClassification.from_config(config).eval()
    return MeglPooledClassifier(config).eval()


def random_images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(model, pixel_values, target=None, create_graph=False, name=None, method="grad_cam", **explained):
    """Maps and logits, in the caller's grad mode."""
    reads = SALIENCY_METHODS[method].reads
    with open_tap(model, name, tuple(pixel_values.shape[-2:]), create_graph, reads) as tap:
        logits = tap(pixel_values)
        target = logits.argmax(dim=-1) if target is None else target
        with torch.inference_mode(False), torch.enable_grad():
            scores = explained_scores(logits, target, **explained)
        return compute_saliency(tap, scores, method), logits
