"""Tiny vision models of every kind, with random weights large enough to tell classes apart."""

import torch
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig, AutoModelForImageClassification

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
# An EfficientNet-Lite of examples/, of two stages with all that a block can be.
LITE = {
    "kernel_sizes": [3, 5],
    "strides": [2, 2],
    "expand_ratios": [1, 2],
    "out_channels": [8, 16],
    "num_block_repeats": [1, 2],
    "stem_channels": 8,
}
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
    "aimv2_vision_model": (TRANSFORMER, "backbone.rms_norm", 0),
    "pixio": (TRANSFORMER, "backbone.layers.1.layernorm_before", 8),
    "focalnet": (
        {**STAGES, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3], "patch_size": 4},
        "focalnet.layernorm",
        0,
    ),
    # Exists as an `AutoBackbone` alone.
    "rt_detr_resnet": (
        {**STAGES, "embedding_size": 8, "layer_type": "basic", "out_features": ["stage2"]},
        "backbone.encoder.stages.1",
        0,
    ),
}


_PYRAMID = {"image_size": 64, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
_DUAL = {
    "vision_config": {**TRANSFORMER, "image_size": 32},
    "text_config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
}

# Further kinds, at image sizes of their own: settings, the name of the tap, its class and register tokens, its grid.
MORE_VISION_MODELS = {
    "bit": ({**STAGES, "embedding_size": 8, "num_groups": 2}, "bit.encoder.stages.1", 0, 28),
    "clip": ({**_DUAL, "projection_dim": 8}, "vision_model.encoder.layers.1.layer_norm1", 1, 4),
    "siglip": (_DUAL, "vision_model.post_layernorm", 0, 4),
    "cvt": (
        {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
        "cvt.encoder.stages.2.layers.2.layernorm_before",
        1,
        14,
    ),
    "data2vec-vision": ({**TRANSFORMER, "image_size": 32}, "data2vec_vision.encoder.layer.1.layernorm_before", 1, 4),
    "dinov3_vit": (
        {**TRANSFORMER, "image_size": 32, "num_register_tokens": 4},
        "backbone.model.layer.1.norm1",
        5,
        4,
    ),
    "donut-swin": ({**WINDOWS, "image_size": 32}, "donut.encoder.layers.1", 0, 4),
    "glpn": (
        {**_PYRAMID, "num_attention_heads": [1, 1, 2, 2], "image_size": 224},
        "backbone.encoder.layer_norm.3",
        0,
        7,
    ),
    "hiera": (
        {
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "image_size": [32, 32],
            "num_query_pool": 1,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
        },
        "hiera.encoder.stages.1",
        0,
        4,
    ),
    "internvl_vision": (
        {**TRANSFORMER, "image_size": [32, 32], "patch_size": [8, 8]},
        "backbone.encoder.layer.1.layernorm_before",
        1,
        4,
    ),
    "poolformer": (_PYRAMID, "poolformer.encoder.block.3.0", 0, 2),
    "pvt": (
        {**_PYRAMID, "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 2]},
        "pvt.encoder.block.3.0.layer_norm_1",
        1,
        2,
    ),
    "pvt_v2": (
        {**_PYRAMID, "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 2]},
        "pvt_v2.encoder.layers.3.layer_norm",
        0,
        2,
    ),
    "regnet": ({**STAGES, "embedding_size": 8, "groups_width": 4}, "regnet.encoder.stages.1", 0, 28),
    "sapiens2": ({**TRANSFORMER, "image_size": 32}, "backbone.model.layer.1.norm1", 9, 4),
    "segformer": (
        {**_PYRAMID, "num_attention_heads": [1, 1, 2, 2]},
        "segformer.stages.3.layer_norm",
        0,
        2,
    ),
    "swiftformer": (
        {"image_size": 128, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
        "swiftformer.encoder.network.6",
        0,
        4,
    ),
    "swinv2": ({**WINDOWS, "image_size": 32}, "swinv2.layernorm", 0, 4),
    "textnet": (
        {"image_size": [64, 64], "hidden_sizes": [8, 8, 8, 16, 16], "stem_num_channels": 3, "stem_out_channels": 8},
        "textnet.encoder.stages.3",
        0,
        2,
    ),
    "vitdet": (
        {**TRANSFORMER, "image_size": 32, "window_block_indices": [], "residual_block_indices": []},
        "backbone.encoder.layer.1",
        0,
        4,
    ),
}


def make_vision_model(model_type, seed=0, **settings):
    torch.manual_seed(seed)
    default = VISION_MODELS.get(model_type, ({},))[0]
    config = AutoConfig.for_model(model_type, **{"image_size": 32, **default, **settings})
    return make_model_of(config)


def make_model_of(config):
    """A random model of three classes, in evaluation mode."""
    config.num_labels = 3
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
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
