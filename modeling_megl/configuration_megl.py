"""MEGL configuration: one vision model, one causal language model, and how the saliency map ties them together."""

import math
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.dynamic_module_utils import get_class_from_dynamic_module, resolve_trust_remote_code
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging


logger = logging.get_logger(__name__)

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

# Pretrained ones that a short name stands for.
PRETRAINED_TEXTS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}

# The paper trains ViT-B/16 and ResNet-18; the tiny presets have the same structure, for tests and the sample data.
PRESETS = {
    "megl-vit-b16": {
        "vision_config": {"model_type": "vit"},
        "text_config": _LLAMA_SMALL,
        "evidence_size": 512,
        "evidence_layers": ["vit.layers.0", "vit.layers.6"],
        "evidence_sizes": [768, 768],
    },
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
        "evidence_layers": ["resnet.encoder.stages.0", "resnet.encoder.stages.2"],
        "evidence_sizes": [64, 256],
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
        "evidence_layers": ["vit.layers.0", "vit.layers.2"],
        "evidence_sizes": [96, 96],
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
        "evidence_layers": ["swin.encoder.layers.0"],
        "evidence_sizes": [96],
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
        "evidence_layers": ["resnet.encoder.stages.0"],
        "evidence_sizes": [48],
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
            Tokens of saliency-weighted evidence in front of the language model's prompt, at least 2 and one more for
            each of `evidence_layers`: the last one says where the map looks, the others what is there.
        evidence_size (`int`, *optional*, defaults to 256):
            Width of the vector that tells what is there, the bottleneck between features and rationale.
        evidence_layers (`list[str]`, *optional*):
            Names of earlier modules of the vision model whose features the rationale is written from as well, under
            the same map: they tell colour and texture, which features at the tap lose. No gradient reaches them.
        evidence_sizes (`list[int]`, *optional*):
            Channels of each of them ([`~MeglForImageClassification.probe_evidence_layers`] tells).
        rationale_gradient (`str`, *optional*, defaults to `"map"`):
            Where the rationale's loss may go in the vision model: through the saliency map alone (`"map"`: textual
            supervision on visual explanations), through the map and the features it weights (`"map_and_features"`), or
            nowhere (`"none"`).
        grounding_map (`str`, *optional*, defaults to `"saliency"`):
            The map that weights the evidence; the others are ablations of SDTG, see
            [`~MeglForImageClassification.grounding_maps`]. `"uniform"`: every cell alike. `"random"`: the saliency map
            with its cells shuffled. `"visual_explanation"`: the human mask where one is given.
        vision_base_model, text_base_model (`str`, *optional*):
            Hub id, folder or GGUF file that the vision and the language model were loaded from, if they were.
        text_base_checksum (`str`, *optional*):
            SHA-256 of the language model's weights as they were then.
        text_adapter (`bool`, *optional*, defaults to `False`):
            Whether the checkpoint holds adapters in place of the language model, see `save_adapter`.
        score_temperature (`float`, *optional*, defaults to 1.0):
            What class scores are divided by before they become probabilities (temperature scaling, Guo et al. 2017);
            `megl evaluate --calibrate` fits it, and a training sets it back.
        id2label (`dict[int, str]`, *optional*):
            Names of the classes, of ids 0, 1, …; the rationale's prompt uses them, and the vision model's head has a
            row for each. `from_pretrained(..., id2label=..., ignore_mismatched_sizes=True)` makes a head for others.
        problem_type (`str`, *optional*):
            As in Transformers: `"multi_label_classification"`, where a picture may show several classes, or none;
            `None` or `"single_label_classification"`, where it shows one.

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
    evidence_layers: list[str] | None = None
    evidence_sizes: list[int] | None = None
    rationale_gradient: Literal["map", "map_and_features", "none"] = "map"
    grounding_map: Literal["saliency", "uniform", "random", "visual_explanation"] = "saliency"
    vision_base_model: str | None = None
    text_base_model: str | None = None
    text_base_checksum: str | None = None
    text_adapter: bool = False
    score_temperature: float = 1.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is not None or self.label2id is not None:
            self.id2label = _classes(self.id2label, self.label2id, kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        self.evidence_layers, self.evidence_sizes = self.evidence_layers or [], self.evidence_sizes or []
        if len(self.evidence_layers) != len(self.evidence_sizes):
            raise ValueError(
                "`evidence_sizes` must have the number of channels of each of `evidence_layers`, got "
                f"{self.evidence_sizes} for {self.evidence_layers}."
            )
        sizes = {"evidence_size": self.evidence_size, "feature_size": self.feature_size or 1}
        sizes |= {f"evidence_sizes[{place}]": size for place, size in enumerate(self.evidence_sizes)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be a number of channels, 1 or more, got {size}.")
        fewest = 2 + len(self.evidence_layers)
        if self.num_evidence_tokens < fewest:
            raise ValueError(
                f"`num_evidence_tokens` must be {fewest} or more, for what the map shows, at the tap and in each of "
                f"`evidence_layers`, and where it lies, got {self.num_evidence_tokens}."
            )
        if self.problem_type == "regression":
            raise ValueError(
                "`problem_type` must be 'single_label_classification' or 'multi_label_classification', got "
                "'regression': a map explains a class."
            )
        if not 0 < self.score_temperature < math.inf:
            raise ValueError(f"`score_temperature` must be a number above 0, got {self.score_temperature}.")
        self.id2label = self.id2label  # now that there is a vision config to hear of it
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
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

    @property
    def is_multi_label(self):
        """Whether a picture may show several classes, or none."""
        return self.problem_type == "multi_label_classification"

    def __setattr__(self, name, value):
        # The head belongs to the vision model, so both configs must speak of the same classes, whoever names them.
        super().__setattr__(name, value)
        if name == "id2label" and value and isinstance(self.__dict__.get("vision_config"), PreTrainedConfig):
            for config in (self, self.vision_config):
                config.__dict__["id2label"] = {int(label): class_name for label, class_name in value.items()}
                config.__dict__["label2id"] = {class_name: int(label) for label, class_name in value.items()}

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
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`; classes in `kwargs` (`id2label`, `label2id`, `num_labels`)
        replace those of the dict. `text_base_model` is refused unless the checkpoint holds adapters."""
        if kwargs.get("text_base_model") is not None and not config_dict.get("text_adapter"):
            raise ValueError(
                "`text_base_model` names the language model that a checkpoint's adapters are joined with, and this "
                f"one holds a whole model, got {kwargs['text_base_model']!r}: leave it out."
            )
        id2label, label2id, num_labels = (kwargs.pop(name, None) for name in ("id2label", "label2id", "num_labels"))
        if id2label is None and label2id is None and num_labels not in (None, len(config_dict.get("id2label") or ())):
            id2label = {label: f"LABEL_{label}" for label in range(num_labels)}  # as Transformers names them
        if id2label is not None or label2id is not None:
            config_dict = {**config_dict, "id2label": _classes(id2label, label2id, num_labels)}
        if config_dict.get("id2label"):  # which the other way round follows from; checkpoints may have an older one
            config_dict = {**config_dict, "label2id": None}
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, trust_remote_code=None, **kwargs):
        """
        As `PreTrainedConfig.from_pretrained`; besides, a vision model that brings its own code (an `auto_map` in
        `vision_config`) is registered first. That code runs only if it is trusted: by `trust_remote_code=True`, or,
        where nothing is said, because this class itself was loaded, with trust, from the code of a checkpoint, or the
        code was before. `trust_remote_code=False` refuses it in any case.

        Raises:
            `ValueError`: where the checkpoint is no MEGL model, and where its code is not trusted.
        """
        config_dict = read_config(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is no MEGL model: its `model_type` is "
                f"{config_dict.get('model_type')!r}, expected {cls.model_type!r}. `init_megl.py` makes a MEGL model "
                "of a vision and a language model."
            )
        where = f"The config.json of {pretrained_model_name_or_path}"
        vision_config = config_dict.get("vision_config") or {}
        _check_settings(vision_config, f"{where}: `vision_config`")
        known = trust_remote_code is None and vision_config.get("model_type") in CONFIG_MAPPING
        if trust_remote_code is None and (known or cls.__module__.startswith(_REMOTE)):
            trust_remote_code = True
        if check_remote_code(vision_config, pretrained_model_name_or_path, trust_remote_code) and not known:
            _register_vision_code(vision_config, pretrained_model_name_or_path, kwargs)
        # "auto" is the model's business: the config keeps the type that the checkpoint has.
        auto = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if kwargs.get(name) == "auto"}
        with faults(where):
            config = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return (config[0], {**config[1], **auto}) if isinstance(config, tuple) else config


# Where Transformers imports the code of checkpoints to.
_REMOTE = f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."


def read_config(name, **kwargs):
    """
    What the `config.json` of a Hub id or folder holds.

    Raises:
        `OSError`: where there is none, in one line that names the checkpoint. `ValueError`: where it holds no
            settings.
    """
    try:
        with faults(f"The config.json of {name}"):
            config_dict = PreTrainedConfig.get_config_dict(name, **kwargs)[0]
    except OSError as error:
        raise not_found(name, error) from error
    _check_settings(config_dict, f"The config.json of {name}")
    return config_dict


def _check_settings(found, where):
    if not isinstance(found, dict):
        raise ValueError(f"{where} must be settings with a `model_type`, got {textwrap.shorten(repr(found), 80)}.")
    if not isinstance(found.get("model_type"), str | None):
        raise ValueError(f"{where} must have the name of a `model_type`, got {found['model_type']!r}.")


# What libraries raise where settings are not as they expect.
_FAULTS = (
    *(StrictDataclassError, ArithmeticError, AssertionError, AttributeError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)


@contextmanager
def faults(where, but=None):
    """
    Errors of settings that are not as they should be, as a `ValueError` of one line that says `where`; those of the
    very type `but`, which say it themselves, stay as they are.
    """
    try:
        yield
    except _FAULTS as error:
        if type(error) is but:
            raise
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        kind = "" if isinstance(error, ValueError | StrictDataclassError) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{reason}") from error


def one_line(error):
    """The first line of an error, which says what is wrong; libraries add more."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def not_found(name, error):
    """The error of a checkpoint that cannot be read, in one line that names it."""
    if Path(name).is_dir():
        return OSError(one_line(error))
    return OSError(f"{name} is neither a folder nor a Hub id that can be reached: check the name, and the network.")


def check_remote_code(config_dict, name, trust_remote_code):
    """
    Whether a model's code lies in its checkpoint; named in a warning where that is another repository.

    Args:
        config_dict (`dict`): The model's config.
        name (`str`): The checkpoint, for errors.
        trust_remote_code (`bool` or `None`): `None` asks on the terminal.

    Raises:
        `ValueError`: where there is such code and it is not trusted, also if it was earlier in this process.
    """
    entries, model_type = config_dict.get("auto_map") or {}, config_dict.get("model_type")
    if model_type in CONFIG_MAPPING:
        remote = CONFIG_MAPPING[model_type].__module__.startswith(_REMOTE)
    else:
        remote = bool(entries)
    if not remote:
        return False
    others = sorted({entry.split("--")[0] for entry in entries.values() if entry and "--" in entry})
    try:
        resolve_trust_remote_code(trust_remote_code, str(name), False, True, upstream_repo=", ".join(others) or None)
    except ValueError as error:
        raise untrusted(name, error) from error
    if others:
        logger.warning(f"The vision model of {name} runs code of another repository: {', '.join(others)}.")
    return True


def untrusted(name, error):
    """The error of a checkpoint whose own code may not run, in one line that says whose code that is."""
    reason = one_line(error).split(" You can inspect")[0]
    reason = reason if str(name) in reason else f"{name}: {reason}"
    return ValueError(f"{reason} Read it, then pass `--trust_remote_code`, in Python `trust_remote_code=True`.")


def _classes(id2label, label2id, num_labels):
    """Names of the classes by their ids, of what `from_pretrained` was told; refused where that contradicts itself."""
    try:
        named = None if label2id is None else {int(label): name for name, label in label2id.items()}
        id2label = named if id2label is None else {int(label): name for label, name in id2label.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"`id2label` must map ids to names, and `label2id` names to ids, got {id2label} and {label2id}."
        ) from None
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(f"`id2label` must name the ids 0, 1, …, one class each, got the ids {sorted(id2label)}.")
    if len(set(id2label.values())) < len(id2label):
        raise ValueError(f"`id2label` must name each class once, got {list(id2label.values())}.")
    if label2id is not None and (named != id2label or len(label2id) != len(id2label)):
        raise ValueError(f"`id2label` and `label2id` contradict each other: {id2label} and {label2id}.")
    if num_labels not in (None, len(id2label)):
        raise ValueError(f"`num_labels={num_labels}` contradicts `id2label`, which has {len(id2label)} classes.")
    return id2label


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

__all__ = ["PRESETS", "PRETRAINED_TEXTS", "TEXT_PRESETS", "MeglConfig"]
