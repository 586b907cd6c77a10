"""MEGL configuration: one vision model, one causal language model, and how the saliency map ties them together."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.dynamic_module_utils import get_class_from_dynamic_module, resolve_trust_remote_code
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


# Small language models that are trained from scratch; `vocab_size` comes from the tokenizer.
_LLAMA_SMALL = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
_LLAMA_TINY = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}

TEXT_PRESETS = {"llama-small": _LLAMA_SMALL, "llama-tiny": _LLAMA_TINY}

# The paper trains ViT-B/16 and ResNet-18; the tiny presets have the same structure, for tests and the sample data.
PRESETS = {
    "megl-vit-b16": {"vision_config": {"model_type": "vit"}, "text_config": _LLAMA_SMALL, "evidence_size": 512},
    "megl-resnet18": {
        "vision_config": {
            "model_type": "resnet",
            "layer_type": "basic",
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
            "image_size": 224,
        },
        "text_config": _LLAMA_SMALL,
        "evidence_size": 512,
    },
    "megl-vit-tiny": {
        "vision_config": {
            "model_type": "vit",
            "image_size": 96,
            "patch_size": 8,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        "text_config": _LLAMA_TINY,
        "evidence_size": 128,
    },
    "megl-swin-tiny": {
        "vision_config": {
            "model_type": "swin",
            "image_size": 128,
            "patch_size": 4,
            "embed_dim": 48,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        "text_config": _LLAMA_TINY,
        "evidence_size": 128,
        "saliency_score": "contrast",
    },
    "megl-resnet-tiny": {
        "vision_config": {
            "model_type": "resnet",
            "layer_type": "basic",
            # Two stages: a cell of the map sees 51 of 128 pixels, an object and little of its scene.
            "embedding_size": 32,
            "hidden_sizes": [48, 96],
            "depths": [1, 1],
            "image_size": 128,
        },
        "text_config": _LLAMA_TINY,
        "evidence_size": 128,
        "saliency_score": "contrast",
    },
}


@strict
class MeglConfig(PreTrainedConfig):
    r"""
    Configuration of [`MeglForImageClassification`].

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ViT-B/16):
            Any vision model of `AutoModelForImageClassification`, or of `AutoModel` where it has no classification
            class. A `model_type` that Transformers does not know is accepted with an `auto_map` whose code lies in the
            checkpoint (see [`MeglConfig.from_pretrained`]).
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to Llama):
            Any model of `AutoModelForCausalLM`.
        saliency_method (`str`, *optional*, defaults to `"grad_cam"`):
            How the map is made: from the features at the tap and the score's gradient there (`"grad_cam"`,
            `"grad_cam_elementwise"`, `"hires_cam"`, `"layer_cam"`, `"grad_cam_plus_plus"`, `"xgrad_cam"`), which costs
            little; from the pixels (`"input_x_gradient"`); or, of transformers, from the attentions of all layers
            (`"attention_rollout"`, `"attention_relevance"`).
        saliency_score (`str`, *optional*, defaults to `"logit"`):
            What the map explains: the class score, or its `"contrast"` to the mean of all class scores.
        saliency_layer (`str`, *optional*):
            Name of the tap: the module of the vision model whose output the map is computed on. `None` takes
            `vision_config.saliency_layer` where there is one and else finds it from the model's structure.
        feature_size (`int`, *optional*):
            Channels at the tap. `None` reads it off the vision config.
        num_evidence_tokens (`int`, *optional*, defaults to 4):
            Tokens of saliency-weighted evidence in front of the language model's prompt, at least 2: the last one says
            where the map looks, the others what is there.
        evidence_size (`int`, *optional*, defaults to 256):
            Width of the vector that tells what is there, the bottleneck between features and rationale.
        rationale_gradient (`str`, *optional*, defaults to `"map"`):
            Where the rationale's loss may go in the vision model: through the saliency map alone (`"map"`: textual
            supervision on visual explanations), through the map and the features it weights (`"map_and_features"`), or
            nowhere (`"none"`).
        grounding_map (`str`, *optional*, defaults to `"saliency"`):
            The map that weights the evidence; the others are ablations of SDTG, see
            [`~MeglForImageClassification.grounding_maps`]. `"uniform"`: every cell alike. `"random"`: the saliency map
            with its cells shuffled. `"visual_explanation"`: the human mask where one is given.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes; the rationale's prompt uses them.

    Example:

    ```python
    >>> from modeling_megl import MeglConfig

    >>> config = MeglConfig.from_preset("megl-resnet-tiny", labels=["cat", "dog"], vocab_size=64)
    >>> config.vision_config.model_type, config.text_config.model_type, config.id2label
    ('resnet', 'llama', {0: 'cat', 1: 'dog'})

    ```"""

    model_type = "megl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    saliency_method: Literal[
        "grad_cam",
        "grad_cam_elementwise",
        "hires_cam",
        "layer_cam",
        "grad_cam_plus_plus",
        "xgrad_cam",
        "input_x_gradient",
        "attention_rollout",
        "attention_relevance",
    ] = "grad_cam"
    saliency_score: Literal["logit", "contrast"] = "logit"
    saliency_layer: str | None = None
    feature_size: int | None = None
    num_evidence_tokens: int = 4
    evidence_size: int = 256
    rationale_gradient: Literal["map", "map_and_features", "none"] = "map"
    grounding_map: Literal["saliency", "uniform", "random", "visual_explanation"] = "saliency"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.num_evidence_tokens < 2:
            raise ValueError(
                "`num_evidence_tokens` must be 2 or more, for what the map shows and where it lies, got "
                f"{self.num_evidence_tokens}."
            )
        # The head belongs to the vision model, so both configs must speak of the same classes.
        self.vision_config.id2label = dict(self.id2label)
        self.vision_config.label2id = {name: label for label, name in self.id2label.items()}
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        if self.feature_size is None:
            self.feature_size = infer_feature_size(self.vision_config)
        # Written into config.json, so that every Auto class finds its code in a saved checkpoint.
        self.auto_map = {
            "AutoConfig": "configuration_megl.MeglConfig",
            "AutoModel": "modeling_megl.MeglForImageClassification",
            "AutoModelForImageClassification": "modeling_megl.MeglForImageClassification",
            "AutoProcessor": "processing_megl.MeglProcessor",
        }
        self.custom_pipelines = {
            task: {"impl": f"pipeline_megl.{name}", "pt": ["AutoModelForImageClassification"]}
            for task, name in (
                ("explained-image-classification", "ExplainedImageClassificationPipeline"),
                ("image-classification", "MeglImageClassificationPipeline"),
            )
        }

    @classmethod
    def from_preset(cls, name, labels, **text_kwargs):
        """
        A configuration of a known size.

        Args:
            name (`str`): One of `PRESETS`.
            labels (`list[str]`): Names of the classes, in the order of their ids.
            text_kwargs: Settings of the language model, such as `vocab_size` and `eos_token_id`.
        """
        if name not in PRESETS:
            raise ValueError(f"`name` must be one of {sorted(PRESETS)}, got {name!r}.")
        preset = PRESETS[name]
        return cls(
            **{**preset, "text_config": {**preset["text_config"], **text_kwargs}},
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, trust_remote_code=None, **kwargs):
        """
        As `PreTrainedConfig.from_pretrained`; besides, a vision model that brings its own code (an `auto_map` in
        `vision_config`) is registered first. That code runs only if it is trusted: by `trust_remote_code=True`, or
        because this class itself was already loaded, with trust, from the code of a checkpoint.
        """
        config_dict, _ = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        vision_config = config_dict.get("vision_config") or {}
        if vision_config.get("model_type") not in CONFIG_MAPPING and "auto_map" in vision_config:
            trust_remote_code = trust_remote_code or cls.__module__.startswith("transformers_modules.")
            resolve_trust_remote_code(trust_remote_code, str(pretrained_model_name_or_path), False, True)
            _register_vision_code(vision_config, pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)


def _register_vision_code(vision_config, pretrained_model_name_or_path, kwargs):
    """Load the vision model's own classes from the checkpoint and make them known to the Auto classes."""
    hub_kwargs = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
    auto_map = vision_config["auto_map"]
    config_class, model_class = (
        get_class_from_dynamic_module(auto_map[name], pretrained_model_name_or_path, **hub_kwargs)
        for name in ("AutoConfig", "AutoModelForImageClassification")
    )
    # Remembered, so that saving copies the code along.
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModelForImageClassification")
    AutoConfig.register(vision_config["model_type"], config_class, exist_ok=True)
    AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)


def infer_feature_size(vision_config):
    """Channels of the last layer or stage, by the names that Transformers' configs give them."""
    hidden_sizes = getattr(vision_config, "hidden_sizes", None)
    if hidden_sizes:
        return hidden_sizes[-1]
    hidden_size = getattr(vision_config, "hidden_size", None) or getattr(vision_config, "hidden_dim", None)
    if hidden_size is None:
        raise ValueError(
            f"The width of the features of a {vision_config.model_type!r} model is not in its config: pass "
            "`feature_size`, the number of channels at `saliency_layer`."
        )
    return hidden_size


def infer_image_size(vision_config):
    """
    Height and width in pixels of the pictures that a vision model takes, by its config or that of its vision part;
    224, as is usual, where neither says.
    """
    for config in (vision_config, getattr(vision_config, "vision_config", None)):
        size = getattr(config, "image_size", None)
        if size is None and getattr(config, "pretrained_cfg", None):  # timm's (channels, height, width)
            size = config.pretrained_cfg.get("input_size", (224,))[1:]
        if isinstance(size, int):
            return size, size
        if size:
            return tuple(size) if len(size) == 2 else (size[0], size[0])
    return 224, 224


MeglConfig.register_for_auto_class()

__all__ = ["PRESETS", "TEXT_PRESETS", "MeglConfig"]
