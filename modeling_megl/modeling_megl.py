"""MEGL (Multimodal Explanation-Guided Learning, Zhang et al., arXiv:2411.13053): label, saliency map and rationale."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_utils import is_valid_image
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.utils import ModelOutput

from .configuration_megl import (
    MeglConfig,
    check_remote_code,
    faults,
    infer_feature_size,
    infer_image_size,
    read_config,
)
from .language_megl import (
    ADAPTER_FOLDER,
    checksum,
    load_adapted,
    load_language_model,
    max_positions,
    place_evidence,
    probe_language_model,
)
from .losses_megl import multi_label_loss, positive_classes, rationale_loss, resize_masks, visual_losses
from .processing_megl import load_image_processor
from .saliency_megl import SALIENCY_METHODS, compute_saliency, explained_scores
from .tap_megl import keep_gathered, open_tap, probe_class_token, probe_evidence_layers, probe_tap


if TYPE_CHECKING:
    # Never run: a saved checkpoint takes along the files that are named in imports here, and the pipeline's is needed.
    from .pipeline_megl import ExplainedImageClassificationPipeline  # noqa: F401


@dataclass
class MeglOutput(ModelOutput):
    """
    Output of [`MeglForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels`):
            Weighted sum of the losses below that could be computed.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Class scores before softmax.
        saliency (`torch.FloatTensor` of shape `(batch_size, map_height, map_width)`):
            The map of the explained class, in [0, 1]; `(batch_size, n, map_height, map_width)` of several classes.
        rationale_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Returned with `input_ids`; `rationale_logits[:, t]` are the scores of the token at `input_ids[:, t]`.
        evidence_tokens (`torch.FloatTensor` of shape `(batch_size, num_tokens, text_hidden_size)`, *optional*):
            What the language model sees of the picture, under the first of several maps; in training mode returned
            with `input_ids`.
        features (`torch.FloatTensor` of shape `(batch_size, channels, map_height, map_width)`):
            What the evidence is taken from: the features at the tap, which the map lies on, and in the channels behind
            them those of `config.evidence_layers`, averaged over the cells of the map.
        loss_classification, loss_visual, loss_text (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Unweighted losses, each where its targets are given.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    saliency: torch.FloatTensor | None = None
    rationale_logits: torch.FloatTensor | None = None
    evidence_tokens: torch.FloatTensor | None = None
    features: torch.FloatTensor | None = None
    loss_classification: torch.FloatTensor | None = None
    loss_visual: torch.FloatTensor | None = None
    loss_text: torch.FloatTensor | None = None


class MeglPooledClassifier(nn.Module):
    """A linear head on the pooled features of a vision model that has no image classification class."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        auto_class, pooled_size = _auto_class(config), _pooled_size(config)
        self.backbone = auto_class.from_config(config)
        self.classifier = nn.Linear(pooled_size, config.num_labels)

    def forward(self, pixel_values, **kwargs):
        outputs = self.backbone(pixel_values, **kwargs)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:
            hidden = outputs.feature_maps[-1] if "feature_maps" in outputs else outputs.last_hidden_state
            pooled = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        pooled = pooled.flatten(1)
        if pooled.shape[1] != self.classifier.in_features:
            raise ValueError(
                f"its pooled features have {pooled.shape[1]} channels, where its config says "
                f"{self.classifier.in_features}"
            )
        return ImageClassifierOutput(logits=self.classifier(pooled), attentions=getattr(outputs, "attentions", None))


def _pooled_size(vision_config):
    try:
        return infer_feature_size(vision_config)
    except ValueError as error:
        raise ValueError(
            f"A model of type {vision_config.model_type!r} is no image classifier, and its config does not say how "
            "wide its features are: take an image classifier or a vision encoder."
        ) from error


def _auto_class(vision_config):
    """`AutoModel`, or `AutoBackbone` for what exists as a backbone alone."""
    for auto_class, mapping in ((AutoModel, MODEL_MAPPING), (AutoBackbone, MODEL_FOR_BACKBONE_MAPPING)):
        if type(vision_config) in mapping:
            return auto_class
    raise ValueError(
        f"`vision` is of type {vision_config.model_type!r}, which none of AutoModelForImageClassification, AutoModel "
        "and AutoBackbone knows: take an image classifier or a vision encoder."
    )


class MeglGrounding(nn.Module):
    """
    Saliency-Driven Textual Grounding (SDTG): what the language model sees of the picture is what the map weights.

    The evidence is two means under the map: of the features, expanded to tokens that say what is there, and of the
    positions, a last token that says where. It is a bottleneck on purpose: tokens that are merely multiplied by the
    map still tell the language model the whole picture, and its rationale then ignores the map. The positions have a
    token of their own since the features, which differ from picture to picture, would drown them in a common sum:
    small language models then name places at random.

    Features at the tap tell classes apart and little else. The means of features of earlier layers under the same map
    (`config.evidence_layers`), which tell colour and texture, come in a token for each layer in front of the last.

    Args:
        config ([`MeglConfig`]): The model's configuration.
        hidden_size (`int`): Width of the language model's input embeddings.
    """

    def __init__(self, config, hidden_size):
        super().__init__()
        self.channels = [config.feature_size, *config.evidence_sizes]
        self.num_feature_tokens = config.num_evidence_tokens - len(self.channels)
        self.norm = nn.LayerNorm(config.feature_size)
        self.feature_projection = nn.Linear(config.feature_size, config.evidence_size)
        self.expansion = nn.Linear(config.evidence_size, self.num_feature_tokens * hidden_size)
        self.position_projection = nn.Linear(4 * _NUM_FREQUENCIES, hidden_size)
        self.earlier_norms = nn.ModuleList(nn.LayerNorm(size) for size in config.evidence_sizes)
        self.earlier_projections = nn.ModuleList(nn.Linear(size, hidden_size) for size in config.evidence_sizes)

    @torch.no_grad()
    def leave_zero(self, value):
        """
        Begin with tokens of this value in place of zeros where the map is zero: at a zero an RMSNorm has the steepest
        gradient, and those of the many layers of a pretrained language model together overflow.
        """
        for layer in (self.expansion, self.position_projection, *self.earlier_projections):
            layer.bias.fill_(value)

    @torch.no_grad()
    def match_words(self, size):
        """
        Begin with tokens of about this root mean square, that of a pretrained language model's word embeddings: it is
        slow to learn from tokens that are much smaller.
        """
        nn.init.normal_(self.feature_projection.weight, std=self.feature_projection.in_features**-0.5)
        for layer in (self.expansion, self.position_projection, *self.earlier_projections):
            nn.init.normal_(layer.weight, std=size * layer.in_features**-0.5)

    def forward(self, features, saliency):
        """
        Args:
            features (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Features at the tap, then those
                of `config.evidence_layers`.
            saliency (`torch.Tensor` of shape `(batch_size, height, width)`): Maps in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_evidence_tokens, text_hidden_size)`. Where the map is zero there
            is no evidence: all means are zero.
        """
        if features.shape[1] != sum(self.channels):
            raise ValueError(
                f"The features have {features.shape[1]} channels, where `feature_size` and `evidence_sizes` say "
                f"{self.channels}: the configuration is not that of the checkpoint's weights."
            )
        patches = features.flatten(2).transpose(1, 2).split(self.channels, dim=2)  # (B, h * w, C) each
        positions = _position_features(
            *saliency.shape[1:], features.device, features.dtype
        )  # (h * w, 4 * frequencies)
        mass = saliency.sum(dim=(1, 2))
        weights = saliency.flatten(1) / torch.where(mass > 0, mass, torch.ones_like(mass))[:, None]
        weights = weights.to(features.dtype)
        means = [
            torch.einsum("bn,bnc->bc", weights, norm(layer))
            for norm, layer in zip([self.norm, *self.earlier_norms], patches, strict=True)
        ]
        what = self.expansion(self.feature_projection(means[0])).unflatten(1, (self.num_feature_tokens, -1))
        earlier = [project(mean) for project, mean in zip(self.earlier_projections, means[1:], strict=True)]
        where = self.position_projection(weights @ positions)
        return torch.cat([what, torch.stack([*earlier, where], dim=1)], dim=1)


_NUM_FREQUENCIES = 4

# Options of `generate` that make it return more than tokens.
_OTHER_ANSWERS = (
    "assistant_model",
    "attention_mask",
    "guidance_scale",
    "input_ids",
    "inputs_embeds",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
)


def _position_features(height, width, device, dtype):
    """Sines and cosines of the cells' centres, at frequencies that any grid shares: `(height * width, 16)`."""
    rows = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    columns = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    centres = torch.cartesian_prod(rows, columns)  # (h * w, 2)
    frequencies = torch.pi * 2 ** torch.arange(_NUM_FREQUENCIES, device=device, dtype=dtype) / 2
    angles = (centres[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@contextmanager
def _own_class(model):
    """FSDP 2 gives a model a class that torch makes on the fly, whose code would be saved in place of ours."""
    given = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(base for base in given.__mro__ if not issubclass(base, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = given


class MisfitError(RuntimeError, ValueError):
    """Weights of other shapes: a `RuntimeError`, as in Transformers, and as all that is wrong with a checkpoint."""


# Where a checkpoint's files are, the config's and the weights'.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MeglPreTrainedModel(PreTrainedModel):
    config_class = MeglConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    # Of the vision model up to the tap and of the language model; what follows the tap is differentiated twice.
    supports_gradient_checkpointing = True
    # The Trainer would take `**kwargs` for a loss that is already divided over accumulation steps.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        """Weights of MEGL's own modules; the vision and the language model initialise theirs."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, trust_remote_code=None, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`; `trust_remote_code` also covers a vision model's own code. Classes
        (`id2label`, `label2id`, `num_labels`) with `ignore_mismatched_sizes=True` give the model a new head for them.
        Of a checkpoint that holds adapters of a language model, that one is fetched and the two are joined;
        `text_base_model` names another copy of it.
        """
        if config is None and pretrained_model_name_or_path is not None:
            config, unused = cls.config_class.from_pretrained(
                pretrained_model_name_or_path,
                trust_remote_code=trust_remote_code,
                return_unused_kwargs=True,
                **kwargs,
            )
            kwargs = {name: kwargs[name] for name in _WHERE if name in kwargs} | unused
        elif trust_remote_code is False and isinstance(config, PreTrainedConfig):
            check_remote_code(config.vision_config.to_dict(), pretrained_model_name_or_path, trust_remote_code)
        if config is not None and config.text_adapter and pretrained_model_name_or_path is not None:
            config = copy.deepcopy(config)  # the caller's stays
            config.text_adapter = False
            with torch.device("meta"):
                expected = cls(config).state_dict()
            where = {name: kwargs.pop(name) for name in _WHERE if name in kwargs}
            adapters = f"{pretrained_model_name_or_path} and its {ADAPTER_FOLDER}/adapter_config.json"
            with faults(adapters, but=ValueError):
                kwargs["state_dict"] = load_adapted(pretrained_model_name_or_path, config, where, expected)
            pretrained_model_name_or_path = None
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise MisfitError(
                f"The weights of {pretrained_model_name_or_path} do not have the shapes that its config.json says, "
                "and `ignore_mismatched_sizes` is not set."
            ) from error

    def save_pretrained(self, save_directory, *args, save_original_format=False, **kwargs):
        """
        As `PreTrainedModel.save_pretrained`, with two differences.

        Weights keep the names they have in the model: the Trainer loads checkpoints by these names, and would silently
        leave a ViT as it is if they were saved under their older ones (`save_original_format=True`). And the code of a
        vision model that Transformers does not know is saved along.
        """
        with _own_class(self):
            super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)
        vision_config = self.config.vision_config
        own_code = isinstance(self.vision_model, PreTrainedModel) and self.vision_model.is_remote_code()
        if not own_code or not kwargs.get("is_main_process", True):
            return
        custom_object_save(vision_config, save_directory, config=vision_config)
        custom_object_save(self.vision_model, save_directory, config=vision_config)
        self.config.save_pretrained(save_directory)


class MeglForImageClassification(MeglPreTrainedModel):
    """
    An image classifier that shows and says what its decision rests on.

    ```python
    >>> import torch
    >>> from modeling_megl import MeglConfig, MeglForImageClassification

    >>> config = MeglConfig.from_preset("megl-resnet-tiny", labels=["cat", "dog"], vocab_size=64)
    >>> model = MeglForImageClassification(config).eval()
    >>> output = model(torch.rand(2, 3, 128, 128))
    >>> output.logits.shape, output.saliency.shape, output.evidence_tokens.shape
    (torch.Size([2, 2]), torch.Size([2, 8, 8]), torch.Size([2, 4, 96]))

    ```"""

    def __init__(self, config):
        super().__init__(config)
        where = f"The config.json of {config.name_or_path}" if config.name_or_path else "The configuration"
        with faults(f"{where}: its `vision_config` makes no model"):
            if type(config.vision_config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
                self.vision_model = AutoModelForImageClassification.from_config(config.vision_config)
            else:
                self.vision_model = MeglPooledClassifier(config.vision_config)
        with faults(f"{where}: its `text_config` makes no model"):
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        # Some language models have embeddings that are narrower than their layers.
        self.grounding = MeglGrounding(config, self.get_input_embeddings().embedding_dim)
        self._class_token_alone = False
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.language_model.set_output_embeddings(value)

    @property
    def _active_vision_model(self):
        # PEFT trains a copy of each module in `modules_to_save`: the tap belongs on the copy that runs.
        vision_model = self.vision_model
        if hasattr(vision_model, "modules_to_save"):
            if vision_model.disable_adapters:
                return vision_model.original_module
            return vision_model.modules_to_save[vision_model.active_adapters[0]]
        return vision_model

    @property
    def _tap_name(self):
        return self.config.saliency_layer or getattr(self.config.vision_config, "saliency_layer", None)

    def probe_saliency_layer(self):
        """
        Channels of the layer that maps are computed on; a `ValueError` where `config.saliency_layer` is no module of
        the vision model, or one at which every map would be zero.
        """
        return probe_tap(self._active_vision_model, self._tap_name, infer_image_size(self.config.vision_config))

    def probe_evidence_layers(self, layers):
        """
        Names and numbers of channels for `config.evidence_layers` and `evidence_sizes`, by modules' names or
        `["auto"]`; a `ValueError` where the output of one is no grid that lies over the picture.
        """
        image_size = infer_image_size(self.config.vision_config)
        return probe_evidence_layers(self._active_vision_model, self._tap_name, image_size, layers)

    def probe_class_token(self):
        """
        Find out whether the class is read at the class token of the last layer alone: then what is trained from here
        on computes there, for maps that are differentiated, what that token needs and nothing else.
        """
        image_size, layers = infer_image_size(self.config.vision_config), self.config.evidence_layers
        self._class_token_alone = probe_class_token(self._active_vision_model, self._tap_name, image_size, layers)
        return self._class_token_alone

    def probe_language_model(self):
        """A `ValueError` with the reason where the language model cannot learn or write rationales."""
        probe_language_model(self.language_model, self.config.num_evidence_tokens)

    def _open_tap(self, pixel_values, create_graph, evidence_layers):
        reads = SALIENCY_METHODS[self.config.saliency_method].reads
        shape = tuple(pixel_values.shape[-2:])
        options = {"evidence_layers": evidence_layers, "class_token_alone": self._class_token_alone}
        return open_tap(self._active_vision_model, self._tap_name, shape, create_graph, reads, **options)

    def forward(
        self,
        pixel_values=None,
        labels=None,
        visual_explanations=None,
        has_visual_explanation=None,
        input_ids=None,
        attention_mask=None,
        rationale_labels=None,
        target=None,
        foil=None,
        evidence_features=None,
        features=None,
        saliency=None,
        output_saliency=True,
        visual_loss="gradia",
        loss_weights=None,
        num_items_in_batch=None,
        visual_loss_kwargs=None,
        return_dict=None,
    ):
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Normalised images; or `features` and `saliency`.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class ids; of a multi-label model 1 for each class that a picture shows and else 0, floats of shape
                `(batch_size, num_labels)`.
            visual_explanations (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
                Human masks in [0, 1], 1 is inside. Rows without one hold anything. Of several classes a mask for each,
                `(batch_size, n, height, width)`.
            has_visual_explanation (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
                Which rows have one, `(batch_size, n)` of several classes. `None`: all.
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Prompt and rationale.
            rationale_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                `input_ids` where they belong to the rationale and -100 elsewhere.
            target (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The class that the map explains, -1 for the predicted one; or several, `(batch_size, n)`, with a map
                for each, of which the first is what the rationale is of. The vision model runs once, and what follows
                the tap is differentiated for each. `None`: `labels` in training mode (of a multi-label model all
                classes that they name, ascending), else the predicted class.
            foil (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The class that `target` is contrasted with: the map shows what speaks for one rather than the other.
            evidence_features (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`, *optional*):
                Features of the first of `config.evidence_layers` in the cells of the map, where the caller has them
                from `features`.
            features (`torch.FloatTensor` of shape `(batch_size, channels, map_height, map_width)`, *optional*) and
            saliency (`torch.FloatTensor` of shape `(batch_size, map_height, map_width)`, *optional*):
                What a forward pass gave, in place of the images: the vision model is not run, and there are no
                `logits`.
            output_saliency (`bool`, *optional*, defaults to `True`):
                Whether to compute the map, and with it evidence and rationale logits. Without, this is the plain
                classifier at its plain cost.
            visual_loss (`str`, *optional*, defaults to `"gradia"`):
                A key of `losses_megl.VISUAL_LOSSES`; `None` leaves the visual loss to the caller.
            loss_weights (`dict[str, float]`, *optional*):
                Weights in `loss` of `"visual"` and `"text"`; 1 where not given.
            num_items_in_batch (`dict[str, float]`, *optional*):
                What the losses are divided by: `"images"`, `"visual_explanations"` and `"rationale_tokens"` of the
                whole batch where this is a part of it. `None`: this batch's own.
            visual_loss_kwargs (`dict`, *optional*):
                What the visual loss takes besides: `slack` of `res_g`, and `kernel` of `res_l`, which needs one.

        The map can be differentiated, a second derivative of the tail, wherever the caller's gradients are on. Under
        `torch.no_grad()` or `torch.inference_mode()` it is computed all the same and leaves no graph behind.
        """
        if len({pixel_values is None, features is not None, saliency is not None}) > 1:
            raise ValueError("Pass either `pixel_values`, or the `features` and `saliency` of a forward pass.")
        if labels is not None and self.config.is_multi_label and labels.ndim != 2:
            raise ValueError(
                f"`labels` of a multi-label model must be 1 or 0 for each of {self.config.num_labels} classes, of "
                f"shape `(batch_size, num_labels)`, got the shape {tuple(labels.shape)}."
            )
        logits = evidence_tokens = rationale_logits = None
        if pixel_values is not None:
            logits, saliency, features = self._classify(
                pixel_values.to(self.dtype), labels, target, foil, evidence_features, output_saliency
            )
        # Where no text is trained, parameters that have no part in the loss are to have none in the output.
        if saliency is not None and (input_ids is not None or not self.training):
            maps = self.grounding_maps(*_first_maps(saliency, visual_explanations, has_visual_explanation))
            evidence_tokens = self._ground(features, maps)
            if input_ids is not None:
                rationale_logits = self._score_rationales(evidence_tokens, input_ids, attention_mask)
        num_items = num_items_in_batch or {}
        visual_targets = visual_explanations, has_visual_explanation
        losses = {
            "classification": _classification_loss(logits, labels, num_items, self.config.is_multi_label),
            "visual": _visual_loss(saliency, *visual_targets, visual_loss, visual_loss_kwargs or {}, num_items),
            "text": _text_loss(rationale_logits, rationale_labels, num_items),
        }
        output = MeglOutput(
            loss=_weighted_sum(losses, loss_weights or {}),
            logits=logits,
            saliency=saliency,
            rationale_logits=rationale_logits,
            evidence_tokens=evidence_tokens,
            features=features,
            **{f"loss_{name}": loss for name, loss in losses.items()},
        )
        return output if return_dict is not False else output.to_tuple()

    def _classify(self, pixel_values, labels, target, foil, evidence_features, output_saliency):
        """Class scores, maps and features, or scores alone; without a graph where the caller wants no gradients."""
        if not output_saliency:
            return self.vision_model(pixel_values).logits, None, None
        differentiable = torch.is_grad_enabled()
        known = [] if evidence_features is None else [evidence_features]
        # Those of layers that are known need not be looked at.
        channels = list(accumulate(self.config.evidence_sizes, initial=0))
        layers = self.config.evidence_layers[channels.index(sum(part.shape[1] for part in known)) :]
        with keep_gathered(self), self._open_tap(pixel_values, differentiable, layers) as tap:
            logits = tap(pixel_values)
            saliency = self._maps(tap, logits, self._explained(logits, labels, target), foil)
            features = tap.features(known)
        outputs = (logits, saliency, features)
        return outputs if differentiable else tuple(output.detach() for output in outputs)

    def _explained(self, logits, labels, target):
        """The classes that the maps explain, `(batch_size,)` or `(batch_size, n)`."""
        predicted = logits.argmax(dim=-1)
        if target is None and self.training and labels is not None:
            target = positive_classes(labels) if self.config.is_multi_label else labels
        if target is None:
            return predicted
        return torch.where(target < 0, predicted if target.ndim == 1 else predicted[:, None], target)

    def _maps(self, tap, logits, target, foil, retain_graph=None):
        """The map of each class that is explained, of several of a picture one after the other."""
        if target.ndim == 2:
            return torch.stack([self._maps(tap, logits, one, foil, retain_graph=True) for one in target.T], dim=1)
        with torch.inference_mode(False), torch.enable_grad():
            scores = explained_scores(logits, target, self.config.saliency_score, foil)
        return compute_saliency(tap, scores, self.config.saliency_method, retain_graph)

    def grounding_maps(self, saliency, visual_explanations=None, has_visual_explanation=None):
        """
        The maps that weight the evidence, by `config.grounding_map`: the saliency itself, or an ablation of SDTG.

        All of them pass the same bottleneck with the same parameters, so that models differ in the weights of the mean
        alone. `"uniform"` and `"random"` keep the saliency out of the text, and the text out of the saliency: then
        `rationale_gradient="map"` lets the rationale's loss reach no part of the classifier, and what is usual without
        SDTG, a text that trains the features, is `"map_and_features"`. `"random"` shuffles the cells of each picture's
        own map, anew in each pass: what it selects is as small and as uneven as before, in the wrong places. The mean
        of independent noise would be that of the uniform map. `"visual_explanation"` is the upper bound, a map that is
        right: in training where there is a mask, elsewhere the saliency with its gradient; an evaluation that
        measures the bound hands over the masks as well.

        Args:
            saliency (`torch.FloatTensor` of shape `(batch_size, map_height, map_width)`): The model's maps.
            visual_explanations, has_visual_explanation: As in `forward`.

        Returns:
            `torch.FloatTensor` of the shape of `saliency`, in [0, 1].
        """
        kind = self.config.grounding_map
        if kind == "uniform":
            return torch.ones_like(saliency)
        if kind == "random":
            cells = saliency.detach().flatten(1)
            return cells.gather(1, torch.rand_like(cells).argsort(dim=1)).view_as(saliency)
        if kind == "visual_explanation" and visual_explanations is not None:
            masks = resize_masks(visual_explanations.nan_to_num().to(saliency.dtype), saliency.shape[1:])
            if has_visual_explanation is None:
                return masks
            return torch.where(has_visual_explanation[:, None, None], masks, saliency)
        return saliency

    def _ground(self, features, saliency):
        """The evidence, with the rationale's gradient let through where `config.rationale_gradient` says."""
        if self.config.rationale_gradient != "map_and_features":
            features = features.detach()
        if self.config.rationale_gradient == "none":
            saliency = saliency.detach()
        return self.grounding(features.to(self.grounding.norm.weight.dtype), saliency)

    @torch.no_grad()
    def ground(self, features, saliency):
        """
        Evidence tokens under maps of the caller's choice: what if the model had looked there?

        Args:
            features (`torch.FloatTensor` of shape `(batch_size, channels, map_height, map_width)`):
                `features` of a forward pass.
            saliency (`torch.FloatTensor` of shape `(batch_size, map_height, map_width)`): Maps in [0, 1].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_evidence_tokens, text_hidden_size)`.
        """
        return self._ground(features, saliency)

    def _embed(self, evidence_tokens, input_ids, attention_mask):
        """Evidence, then text: `inputs_embeds` and `attention_mask` of the language model."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        embed = self.get_input_embeddings()
        if isinstance(embed.weight, DTensor) and not isinstance(embed, FSDPModule):  # which would gather it
            raise ValueError(
                "The language model's embeddings are sharded here. Apply `fully_shard` to layers and to the whole "
                "model, not to `language_model`; and let FSDP know of `explain` or `generate_rationales` before it is "
                "called, by `torch.distributed.fsdp.register_fsdp_forward_method(model, name)`."
            )
        return place_evidence(evidence_tokens, embed(input_ids), attention_mask)

    def _score_rationales(self, evidence_tokens, input_ids, attention_mask):
        inputs_embeds, attention_mask = self._embed(evidence_tokens, input_ids, attention_mask)
        logits = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).logits
        # Position i predicts token i + 1, and the text begins after the evidence.
        return logits[:, evidence_tokens.shape[1] - 1 : -1]

    @torch.no_grad()
    def generate_rationales(
        self, input_ids, attention_mask=None, pixel_values=None, evidence_tokens=None, **generate_kwargs
    ):
        """
        Write a rationale for each image, with the language model's `generate` and its key-value cache.

        Args:
            input_ids, attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
                Prompts, padded on the left ([`MeglProcessor.prompts`] makes them).
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
                Normalised images; or
            evidence_tokens (`torch.FloatTensor` of shape `(batch_size, num_evidence_tokens, text_hidden_size)`):
                what a forward pass has made of them.
            generate_kwargs: As in `GenerationMixin.generate`; by default greedy, at most 40 new tokens. Never more
                than the language model has positions for.

        Returns:
            `torch.LongTensor` of shape `(batch_size, new_tokens)`: the rationales' tokens, without the prompts.

        Raises:
            `ValueError`: where the prompts leave no room for a rationale, and for options that make something else of
            the answer than one row of tokens for each image.
        """
        if (pixel_values is None) == (evidence_tokens is None):
            raise ValueError("Pass either `pixel_values` or the `evidence_tokens` of a forward pass.")
        if evidence_tokens is None:
            evidence_tokens = self(pixel_values).evidence_tokens
        inputs_embeds, attention_mask = self._embed(evidence_tokens, input_ids, attention_mask)
        options = self._generation_options(inputs_embeds.shape[1], **generate_kwargs)
        return self.language_model.generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **options)

    def _generation_options(self, length, generation_config=None, **options):
        """What `generate` is told about a prompt of `length` tokens, evidence included."""
        if generation_config is not None:
            options = {**generation_config.to_diff_dict(), **options}
            options.pop("transformers_version", None)
        for name in _OTHER_ANSWERS:
            if options.get(name):
                raise ValueError(
                    f"`{name}` is no option here: a rationale is a row of tokens for each image. Call "
                    "`model.language_model.generate` yourself for more."
                )
        if options.get("num_return_sequences") not in (None, 1):
            raise ValueError(
                f"`num_return_sequences` must be 1, got {options['num_return_sequences']}: an explanation has one "
                "rationale. Repeat the images, with `do_sample=True`, for several."
            )
        if options.get("max_length") is not None:
            raise ValueError("`max_length` would count the evidence and the prompt: pass `max_new_tokens`.")
        limit = max_positions(self.config.text_config)
        if limit is not None and length >= limit:
            raise ValueError(
                f"Evidence and prompt have {length} tokens, which leaves nothing for a rationale: the language model "
                f"takes {limit}. Shorten the class names or the processor's `rationale_prompt`."
            )
        wanted = options.pop("max_new_tokens", None)
        wanted = 40 if wanted is None else wanted
        # Not every config has these fields.
        text_config = self.config.text_config.get_text_config()
        eos_token_id, pad_token_id = (getattr(text_config, f"{name}_token_id", None) for name in ("eos", "pad"))
        if pad_token_id is None or pad_token_id < 0:
            pad_token_id = eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id
        defaults = {
            "max_new_tokens": wanted if limit is None else min(wanted, limit - length),
            "do_sample": False,
            "use_cache": True,
            "eos_token_id": eos_token_id,
            "pad_token_id": pad_token_id,
        }
        return {**defaults, **options}

    @torch.no_grad()
    def explain(
        self, images, processor, target=None, foil=None, batch_size=8, top_k=1, threshold=None, **generate_kwargs
    ):
        """
        The whole answer for each image: why the predicted class, or why `target`, or why `target` rather than `foil`?
        And why not the next classes?

        Args:
            images (`PIL.Image.Image` or `Iterable[PIL.Image.Image]`): Pictures of any size; a batch of them is
                decoded at a time.
            processor ([`MeglProcessor`]): The checkpoint's processor.
            target (`str` or `int`, *optional*): Class to explain, by name or id; by default the predicted one.
            foil (`str` or `int`, *optional*): Class that it is contrasted with in the map.
            batch_size (`int`, *optional*, defaults to 8): Images at a time.
            top_k (`int`, *optional*, defaults to 1): Number of classes to explain: that one, and besides it the most
                probable others. They cost a second forward pass together, and each a map and a rationale.
            threshold (`float`, *optional*): Of a multi-label model, the probability from which on a class is explained
                besides that one, in the place of `top_k`; by default 0.5 where neither `top_k` nor `target` is given.
            generate_kwargs: See [`~MeglForImageClassification.generate_rationales`].

        Returns:
            `list[dict]`: for each image `"label"` (`str`, the explained class), `"score"` (its probability),
            `"saliency"` (`np.ndarray` of the picture's height and width, float32 in [0, 1]), `"coverage"` (share of
            the picture where that is above 0.5) and `"rationale"` (`str`). With `top_k` above 1 also
            `"alternatives"`, a `list[dict]` with the same of each other class, the most probable first. Of a
            multi-label model there always are `"alternatives"`, which may be none; the most probable class comes
            first also where its `"score"` is below the threshold.

        Raises:
            `ValueError`: in training mode, where `target` or `foil` is no class of the model, where `foil` is the
            class to explain (`target` or, without one, what the model predicts), where `top_k` is not in 1 to the
            number of classes, where it is above 1 beside a `foil`, and where `threshold` is not in [0, 1], or given
            beside them or to a model that is not multi-label.
        """
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more, got {batch_size!r}.")
        single = is_valid_image(images) or isinstance(images, str)
        explanations, waiting = [], iter([images] if single else images)
        # A few at a time: all of a folder of photographs would not fit into memory as RGB.
        while batch := list(islice(waiting, batch_size)):
            start = len(explanations)
            batch = processor.load_images(batch, start)
            pixel_values = processor(images=batch, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
            explained = self.explain_pixels(
                pixel_values, processor, target, foil, start, top_k, threshold, **generate_kwargs
            )
            sizes = [(image.height, image.width) for image in batch]
            explanations += self.read_explanations(explained, sizes, processor)
        return explanations

    def explain_pixels(
        self, pixel_values, processor, target=None, foil=None, start=0, top_k=1, threshold=None, **generate_kwargs
    ):
        """
        What [`~MeglForImageClassification.explain`] gives, as tensors, of images that are processed already.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): The images.
            processor, target, foil, top_k, threshold, generate_kwargs: As in `explain`.
            start (`int`, *optional*, defaults to 0): The first image's number, for errors.

        Returns:
            `dict`: `"labels"` and `"scores"` of shape `(batch_size, top_k)`, `"saliency"` `(batch_size, top_k,
            map_height, map_width)` and `"rationale_ids"` `(batch_size, top_k, length)`. With a `threshold` there are
            as many as the picture with the most classes has; behind the last one of another the label is -1.

        Raises:
            `ValueError`: as `explain`.
        """
        if self.training:
            raise ValueError("`explain` needs the model in evaluation mode: call `model.eval()` first.")
        target, foil = self._class_id(target, "target"), self._class_id(foil, "foil")
        self._check_asked(target, foil, top_k, threshold)
        if self.config.is_multi_label and threshold is target is foil is None and top_k == 1:
            threshold = 0.5
        target, foil = (
            None if class_id is None else torch.full((len(pixel_values),), class_id, device=self.device)
            for class_id in (target, foil)
        )
        output = self(pixel_values, target=target, foil=foil)
        labels = output.logits.argmax(dim=-1) if target is None else target
        if foil is not None and (labels == foil).any():
            index = (labels == foil).nonzero()[0].item()
            raise ValueError(
                f"`foil` must be another class than the one to explain, got {self.config.id2label[foil[0].item()]!r}, "
                f"which the model predicts for `images[{start + index}]`: pass the class to explain as `target`."
            )
        others = self._others(output.logits, labels, top_k, threshold)
        labels, saliency = torch.cat([labels[:, None], others], dim=1), output.saliency[:, None]
        evidence_tokens = [output.evidence_tokens]
        if others.shape[1]:
            maps = self(pixel_values, target=others).saliency
            saliency = torch.cat([saliency, maps], dim=1)
            evidence_tokens += [self.ground(output.features, self.grounding_maps(one)) for one in maps.unbind(dim=1)]
        evidence_tokens = torch.stack(evidence_tokens, dim=1)
        return {
            "labels": labels,
            "scores": self.probabilities(output.logits).gather(1, labels.clamp_min(0)),
            "saliency": saliency,
            "rationale_ids": self._write(processor, labels, evidence_tokens, **generate_kwargs),
        }

    def _check_asked(self, target, foil, top_k, threshold):
        """Refuse what `explain` cannot answer, of class ids."""
        if foil is not None and foil == target:
            raise ValueError(
                f"`foil` must be another class than `target`, got {self.config.id2label[foil]!r} as both."
            )
        if type(top_k) is not int or not 1 <= top_k <= self.config.num_labels:
            raise ValueError(f"`top_k` must be a number of classes, 1 to {self.config.num_labels}, got {top_k!r}.")
        if foil is not None and top_k > 1:
            raise ValueError("`foil` goes with one class: leave out `top_k`, or `foil`.")
        if threshold is None:
            return
        if not self.config.is_multi_label:
            raise ValueError("`threshold` goes with a multi-label model, which this is not: use `top_k`.")
        if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be a probability in [0, 1], got {threshold!r}.")
        if foil is not None or top_k > 1:
            raise ValueError("`threshold` goes neither with `foil` nor with `top_k`: leave them out, or `threshold`.")

    def _others(self, logits, labels, top_k, threshold):
        """The classes to explain besides `labels` `(batch_size,)`, the most probable first, `(batch_size, n)`."""
        logits = logits.scatter(1, labels[:, None], -torch.inf)
        if threshold is None:
            return logits.topk(top_k - 1).indices
        probable = (self.probabilities(logits) >= threshold).scatter(1, labels[:, None], False)
        others = logits.topk(int(probable.sum(dim=1).max())).indices
        return torch.where(probable.gather(1, others), others, -1)

    def _write(self, processor, labels, evidence_tokens, **generate_kwargs):
        """Rationales `(batch_size, n, length)` of classes `(batch_size, n)`; -100 where the class is -1."""
        given = labels >= 0
        prompts = processor.prompts([self.config.id2label[label] for label in labels[given].tolist()])
        rationales = self.generate_rationales(
            **prompts.to(self.device), evidence_tokens=evidence_tokens[given], **generate_kwargs
        )
        written = rationales.new_full((*labels.shape, rationales.shape[1]), -100)
        written[given] = rationales
        return written

    def probabilities(self, logits):
        """
        Of class scores `(batch_size, num_labels)`, at the temperature that `megl evaluate --calibrate` fitted; of a
        multi-label model each class's own.
        """
        scores = logits.float() / self.config.score_temperature
        return scores.sigmoid() if self.config.is_multi_label else scores.softmax(dim=-1)

    def read_explanations(self, explained, sizes, processor):
        """
        The tensors of [`~MeglForImageClassification.explain_pixels`] as a dictionary for each image, see `explain`.

        Args:
            explained (`dict`): What `explain_pixels` returned.
            sizes (`list[tuple[int, int]]`): Height and width of each picture.
            processor ([`MeglProcessor`]): The checkpoint's processor.
        """
        columns = [explained[name].flatten(0, 1) for name in ("labels", "scores", "saliency", "rationale_ids")]
        labels, scores, maps, rationale_ids = columns
        top_k = explained["labels"].shape[1]
        sizes = [size for size in sizes for _ in range(top_k)]
        maps = [_resize_map(*pair) for pair in zip(maps, sizes, strict=True)]
        texts = processor.batch_decode_rationales(rationale_ids)
        found = [
            None
            if label < 0
            else {
                "label": self.config.id2label[label],
                "score": score,
                "saliency": saliency,
                "coverage": float((saliency > 0.5).mean()),
                "rationale": text,
            }
            for label, score, saliency, text in zip(labels.tolist(), scores.tolist(), maps, texts, strict=True)
        ]
        if top_k == 1 and not self.config.is_multi_label:
            return found
        return [
            {**found[place], "alternatives": [one for one in found[place + 1 : place + top_k] if one]}
            for place in range(0, len(found), top_k)
        ]

    def _class_id(self, name, argument):
        """The id of a class that is given by name or id; `None` stays."""
        class_id = self.config.label2id.get(name) if isinstance(name, str) else name
        if name is None or (type(class_id) is int and class_id in self.config.id2label):
            return class_id
        raise ValueError(f"`{argument}` must be one of {sorted(self.config.label2id)} or its id, got {name!r}.")

    @classmethod
    def from_vision_text_pretrained(cls, vision, text, labels, trust_remote_code=False, **config_kwargs):
        """
        Compose a model of a pretrained vision model and a pretrained language model; the grounding between them, and
        the head where the classes are others, begin at random.

        Args:
            vision (`str` or `dict`): Hub id or local folder of an image classifier or vision encoder; or the
                configuration of one to be trained from scratch.
            text (`str`, `dict` or `PreTrainedConfig`): Hub id or local folder of a causal language model, or a GGUF
                file in a local folder; or the configuration of one to be trained from scratch.
            labels (`list[str]`): Names of the classes, in the order of their ids.
            trust_remote_code (`bool`, *optional*, defaults to `False`): Whether `vision` may run its own code. A
                language model with its own code is refused, as a checkpoint does not carry it.
            config_kwargs: Fields of [`MeglConfig`], such as `saliency_layer`; `["auto"]` finds `evidence_layers`.

        Raises:
            `ValueError`: where a part cannot be used, tried on one random image, with the reason.
        """
        id2label = dict(enumerate(labels))
        if isinstance(vision, str):
            check_remote_code(read_config(vision), vision, trust_remote_code)
        vision_model = _load_vision_model(vision, id2label, trust_remote_code)
        language_model, base = _load_language_model(text)
        vision_config, text_config = vision_model.config, language_model.config
        config_kwargs |= base
        if isinstance(vision, str):
            config_kwargs |= {"vision_base_model": vision}
        saliency_layer = config_kwargs.get("saliency_layer") or getattr(vision_config, "saliency_layer", None)
        image_size = _picture_size(vision, vision_config, trust_remote_code)
        found = {"feature_size": probe_tap(vision_model, saliency_layer, image_size)}
        wanted = config_kwargs.pop("evidence_layers", [])
        layers, sizes = probe_evidence_layers(vision_model, saliency_layer, image_size, wanted)
        if wanted == ["auto"]:  # as many as there are tokens for
            room = max(config_kwargs.get("num_evidence_tokens", MeglConfig.num_evidence_tokens) - 2, 0)
            layers, sizes = layers[:room], sizes[:room]
        else:
            config_kwargs.setdefault("num_evidence_tokens", max(MeglConfig.num_evidence_tokens, 2 + len(layers)))
        found |= {"evidence_layers": layers, "evidence_sizes": sizes}
        # A new config would set those of its parts back, which are in use.
        attention = {
            "vision_config": vision_config._attn_implementation,
            "text_config": text_config._attn_implementation,
        }
        config = MeglConfig(
            **{**found, "attn_implementation": attention, **config_kwargs},
            vision_config=vision_config,
            text_config=text_config,
            id2label=id2label,
            label2id={name: label for label, name in id2label.items()},
        )
        return cls._join(config, vision_model, language_model)

    def with_language_model(self, text):
        """
        This vision model with another language model; the grounding between them begins at random.

        Args:
            text (`str`, `dict` or `PreTrainedConfig`): The language model, as in
                [`~MeglForImageClassification.from_vision_text_pretrained`].

        Returns:
            [`MeglForImageClassification`]: A new model, which shares the vision model's weights with this one.

        Raises:
            `ValueError`: where the language model cannot be used, with the reason.
        """
        language_model, base = _load_language_model(text)
        config = copy.deepcopy(self.config)
        config.text_config = language_model.config
        config.text_base_model, config.text_base_checksum = base.values()
        return self._join(config, self.vision_model, language_model)

    @classmethod
    def _join(cls, config, vision_model, language_model):
        # What a chat model is to generate with is no matter of rationales, and no part of a MEGL checkpoint.
        language_model.generation_config = GenerationConfig.from_model_config(language_model.config)
        model = cls(config)
        model.vision_model, model.language_model = vision_model, language_model
        if config.text_base_model is not None:
            words = model.get_input_embeddings().weight.detach()
            model.grounding.match_words(words.float().square().mean().sqrt().item())
            model.grounding.leave_zero(config.initializer_range)
        model.probe_language_model()
        return model.eval()

    def match_processor(self, processor):
        """
        Make sure that a processor's texts fit the language model, and let rationales end at its end of text.

        Args:
            processor ([`MeglProcessor`]): The processor.

        Raises:
            `ValueError`: where a prompt leaves nothing for a rationale, where the tokenizer has tokens that the
            language model has not, and where texts are longer than it takes.
        """
        processor.check_prompts(self.config.id2label.values())
        text_config, rows = self.config.text_config.get_text_config(), self.get_input_embeddings().num_embeddings
        last = max(processor.tokenizer.get_vocab().values())
        if last >= rows:
            raise ValueError(
                f"The tokenizer is not the language model's: it has a token of id {last}, while the model has "
                f"{rows} embeddings."
            )
        limit, num_tokens = max_positions(text_config), self.config.num_evidence_tokens
        if limit is not None and num_tokens + processor.max_rationale_length > limit:
            raise ValueError(
                f"`max_rationale_length={processor.max_rationale_length}` and {num_tokens} tokens of evidence are "
                f"more than the {limit} that the language model takes: choose {limit - num_tokens} or less."
            )
        eos, known = processor.end_token_id, getattr(text_config, "eos_token_id", None)
        if known is None:
            text_config.eos_token_id = eos
        elif eos not in (known if isinstance(known, list) else [known]):
            text_config.eos_token_id = [eos, *(known if isinstance(known, list) else [known])]


def _load_language_model(text):
    """The language model, and what the config says of where a pretrained one is from."""
    with faults(f"{text} cannot be loaded as its config.json says", but=ValueError):
        language_model = load_language_model(text)
    base = (text, checksum(language_model.state_dict())) if isinstance(text, str) else (None, None)
    return language_model, dict(zip(("text_base_model", "text_base_checksum"), base, strict=True))


def _load_vision_model(vision, id2label, trust_remote_code):
    try:
        with faults(f"{vision} cannot be loaded as its config.json says", but=ValueError):
            return _load_vision_parts(vision, id2label, trust_remote_code)
    except ImportError as error:
        reason = " ".join(str(error).split()[:12])
        raise ValueError(f"{vision} needs a package that is not installed: {reason} ...") from error


def _load_vision_parts(vision, id2label, trust_remote_code):
    if isinstance(vision, dict):
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(**vision, id2label=id2label))
    config = AutoConfig.from_pretrained(vision, trust_remote_code=trust_remote_code)
    config.id2label, config.label2id = id2label, {name: label for label, name in id2label.items()}
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "auto_map" in config.to_dict():
        return AutoModelForImageClassification.from_pretrained(
            vision,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
        )
    vision_model = MeglPooledClassifier(config)
    auto_class = _auto_class(config)
    if auto_class is AutoBackbone:  # which looks for folders on the Hub
        auto_class = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    vision_model.backbone = auto_class.from_pretrained(vision, config=config, dtype=torch.float32)
    return vision_model


def _picture_size(vision, vision_config, trust_remote_code):
    """Height and width of what the model's own image processor makes; what its config says, where it has none."""
    if isinstance(vision, dict) or not get_image_processor_config(vision):
        return infer_image_size(vision_config)
    size = load_image_processor(vision, trust_remote_code).size
    return size["height"], size["width"]


def _first_maps(saliency, *masks):
    """Of several maps of a picture, and of what belongs to them, the first, which the rationale is of."""
    if saliency.ndim == 3:
        return saliency, *masks
    return saliency[:, 0], *(part if part is None else part[:, 0] for part in masks)


def _classification_loss(logits, labels, num_items, is_multi_label):
    if labels is None or logits is None:
        return None
    if is_multi_label:
        return multi_label_loss(logits, labels).sum() / num_items.get("images", len(labels))
    return F.cross_entropy(logits.float(), labels, reduction="sum") / num_items.get("images", len(labels))


def _visual_loss(saliency, masks, annotated, name, settings, num_items):
    """Mean over the annotated images, or classes of images; 0 where none is."""
    if name is None or saliency is None or masks is None:
        return None
    if masks.ndim != saliency.ndim:
        raise ValueError(
            f"`visual_explanations` must have a mask for each map, which have the shape {tuple(saliency.shape)}, got "
            f"the shape {tuple(masks.shape)}: pass the classes of several masks as `target`."
        )
    losses = visual_losses(name, saliency, masks, annotated, **settings)
    count = losses.numel() if annotated is None else annotated.sum()
    return losses.sum() / max(num_items.get("visual_explanations", count), 1)


def _text_loss(logits, labels, num_items):
    """Mean over the rationales' tokens."""
    if logits is None or labels is None:
        return None
    return rationale_loss(logits, labels).sum() / max(num_items.get("rationale_tokens", (labels != -100).sum()), 1)


def _weighted_sum(losses, weights):
    """The training loss, where there are labels, of the losses that could be computed."""
    if losses["classification"] is None:
        return None
    return sum(weights.get(name, 1.0) * loss for name, loss in losses.items() if loss is not None)


def _resize_map(saliency, size):
    """One map `(h, w)` at the size of its picture, height and width, as `np.ndarray`."""
    resized = F.interpolate(saliency[None, None].float(), size=tuple(size), mode="bilinear", align_corners=False)
    return resized[0, 0].cpu().numpy()


MeglForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["MeglForImageClassification", "MeglOutput", "MeglPreTrainedModel"]
