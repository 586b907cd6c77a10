"""MeglProcessor: pictures, visual explanations and rationales to model inputs, and rationales back to text."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from .configuration_megl import PRESETS
from .language_megl import check_language_model


class MeglProcessor(ProcessorMixin):
    r"""
    Image processor and tokenizer in one, with the geometry of images applied to visual explanations as well.

    Args:
        image_processor: Resizes the whole picture to one size, without cropping: the map then covers the picture.
        tokenizer: The language model's tokenizer.
        rationale_prompt (`str`, *optional*, defaults to `"This is a {label} because"`):
            What the rationale continues, with the class name for `{label}`, in any language.
        max_rationale_length (`int`, *optional*, defaults to 64):
            Tokens of prompt, rationale and end-of-text; longer rationales are cut, and then have no end-of-text.

    Raises:
        `ValueError`: where the prompt has no place for the class name, and where the tokenizer has no end of text.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        rationale_prompt="This is a {label} because",
        max_rationale_length=64,
        **kwargs,
    ):
        if "{label}" not in rationale_prompt:
            raise ValueError(f"`rationale_prompt` must contain '{{label}}', got {rationale_prompt!r}.")
        if max_rationale_length < 1:
            raise ValueError(f"`max_rationale_length` must be 1 or more, got {max_rationale_length}.")
        if tokenizer is not None and tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}) has no end-of-text token, which ends each rationale: "
                "choose another language model, or set its `eos_token`."
            )
        self.rationale_prompt = rationale_prompt
        self.max_rationale_length = max_rationale_length
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, trust_remote_code=False, **kwargs):
        """As `ProcessorMixin.from_pretrained`. The parts need no code of the checkpoint, so none is asked for."""
        processor_dict, unused_kwargs = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "rationale_prompt" not in processor_dict:
            raise ValueError(
                f"{pretrained_model_name_or_path} is no MEGL model: it has no `processor_config.json` with a "
                "`rationale_prompt`. `init_megl.py` makes a MEGL model of a vision and a language model."
            )
        parts = [
            AutoImageProcessor.from_pretrained(
                pretrained_model_name_or_path, trust_remote_code=trust_remote_code, **kwargs
            ),
            # An empty config: the tokenizer's own files say what it is, and the model's type has no tokenizer class.
            AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path,
                config=PreTrainedConfig(),
                trust_remote_code=trust_remote_code,
                **kwargs,
            ),
        ]
        return cls.from_args_and_dict(parts, processor_dict, **unused_kwargs)

    def __call__(
        self, images=None, visual_explanations=None, label_names=None, rationales=None, return_tensors="pt", **kwargs
    ):
        """
        Args:
            images (`PIL.Image.Image` or `list[PIL.Image.Image]`, *optional*):
                Pictures of any size and mode.
            visual_explanations (`list[PIL.Image.Image or None]`, *optional*):
                Grey mask of each picture, of the same aspect ratio at any size, or `None`.
            label_names (`list[str]`, *optional*):
                Class name of each picture, for the prompt.
            rationales (`list[str]`, *optional*):
                Rationale of each picture; needs `label_names`.

        Returns:
            `BatchFeature` with, for what was given, `pixel_values` `(B, 3, H, W)`, `visual_explanations` `(B, H, W)`
            in [0, 1] with zeros where there is none and `has_visual_explanation` `(B,)`, `input_ids`, `attention_mask`
            and `rationale_labels` `(B, L)`, -100 outside the rationale.
        """
        data = {}
        if images is not None:
            images = self.load_images(images)
            # The image-classification pipeline hands over options of its own, such as `timeout`: they are not ours.
            data["pixel_values"] = self.image_processor(images, return_tensors="pt")["pixel_values"]
        if visual_explanations is not None:
            data.update(self._masks(visual_explanations, images))
        if rationales is not None:
            data.update(self._rationales(label_names, rationales))
        if not data:
            raise ValueError("Pass `images`, `rationales` with `label_names`, or both.")
        return BatchFeature(data, tensor_type=return_tensors)

    @staticmethod
    def load_images(images):
        """Pictures as a list of upright RGB images (EXIF orientation applied)."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        for index, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise ValueError(f"`images[{index}]` must be a `PIL.Image.Image`, got {type(image).__name__}.")
        return [ImageOps.exif_transpose(image).convert("RGB") for image in images]

    def _masks(self, visual_explanations, images):
        if images is None or len(images) != len(visual_explanations):
            count = None if images is None else len(images)
            raise ValueError(
                f"`visual_explanations` must have an entry, a mask or `None`, for each image: got "
                f"{len(visual_explanations)} for `images` of length {count}."
            )
        given = [index for index, mask in enumerate(visual_explanations) if mask is not None]
        masks = [_mask_image(visual_explanations[index], images[index], index) for index in given]
        height, width = self._size()
        resized = torch.zeros(len(images), height, width)
        if masks:
            # By the image processor itself, so that a mask can never be moved otherwise than its image.
            pixels = self.image_processor(masks, do_normalize=False, return_tensors="pt")["pixel_values"]
            resized[given] = pixels[:, 0].clamp(0, 1).to(resized.dtype)
        has_mask = torch.zeros(len(images), dtype=torch.bool)
        has_mask[given] = True
        return {"visual_explanations": resized, "has_visual_explanation": has_mask}

    def _size(self):
        size = self.image_processor.size
        return size["height"], size["width"]

    def _rationales(self, label_names, rationales):
        if label_names is None or len(label_names) != len(rationales):
            raise ValueError("`rationales` need `label_names` of the same length: the prompt names the class.")
        rows = []
        for name, rationale in zip(label_names, rationales, strict=True):
            prompt, text = self._prompt_ids(name), self._rationale_ids(rationale)
            # What is cut has no end, so that none is learnt.
            room = self.max_rationale_length - len(prompt)
            if room < 1:
                self.check_prompts([name])
            text = [*text, self.tokenizer.eos_token_id][:room]
            rows.append((prompt, text))
        length = max(len(prompt) + len(text) for prompt, text in rows)
        input_ids = torch.full((len(rows), length), self._pad_token_id())
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for row, (prompt, text) in enumerate(rows):
            end = len(prompt) + len(text)
            input_ids[row, :end] = torch.tensor(prompt + text)
            attention_mask[row, :end] = 1
            labels[row, len(prompt) : end] = torch.tensor(text)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "rationale_labels": labels}

    def _prompt_ids(self, label_name):
        # Not `format`: other braces of a prompt are its own.
        return self.tokenizer(self.rationale_prompt.replace("{label}", label_name), add_special_tokens=False)[
            "input_ids"
        ]

    def check_prompts(self, label_names):
        """Raise a `ValueError` where the prompt of a class leaves nothing of `max_rationale_length`."""
        name, length = max(((name, len(self._prompt_ids(name))) for name in label_names), key=lambda pair: pair[1])
        if length >= self.max_rationale_length:
            raise ValueError(
                f"The prompt of the class {name!r} has {length} tokens, which leaves nothing for its rationales of "
                f"`max_rationale_length={self.max_rationale_length}`: choose a larger one, or shorter names."
            )

    def rationale_lengths(self, label_names, rationales):
        """Tokens of prompt, rationale and end-of-text of each, a list; those above `max_rationale_length` are cut."""
        prompts = {name: len(self._prompt_ids(name)) for name in set(label_names)}
        return [
            prompts[name] + len(self._rationale_ids(text)) + 1
            for name, text in zip(label_names, rationales, strict=True)
        ]

    def _rationale_ids(self, rationale):
        if not isinstance(rationale, str) or not rationale.strip():
            raise ValueError(f"A rationale must be a text that is not blank, got {rationale!r}.")
        # A text that quotes the end-of-text token does not end there.
        text = " " + rationale.strip()
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _pad_token_id(self):
        # Language models without a pad token are padded with the end of text, which the attention mask hides.
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def prompts(self, label_names):
        """
        What [`~MeglForImageClassification.generate_rationales`] continues: `input_ids` and `attention_mask` of the
        prompts that name these classes, padded on the left.
        """
        rows = [self._prompt_ids(name) for name in label_names]
        length = max(map(len, rows))
        input_ids = [[self._pad_token_id()] * (length - len(row)) + row for row in rows]
        attention_mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        return BatchFeature({"input_ids": input_ids, "attention_mask": attention_mask}, tensor_type="pt")

    def batch_decode_rationales(self, token_ids):
        """Texts of generated rationales `(B, L)`; -100 is left out, as padding between processes is."""
        rows = torch.as_tensor(token_ids)
        rows = rows.masked_fill(rows == -100, self._pad_token_id())
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def text_config_kwargs(self):
        """What a language model that is trained from scratch takes from the tokenizer."""
        return {
            "vocab_size": len(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }

    @classmethod
    def from_vision_text_pretrained(cls, vision, text, trust_remote_code=False, **kwargs):
        """
        The processor of [`~MeglForImageClassification.from_vision_text_pretrained`]: the vision model's size and
        normalisation, without its crop, and the language model's tokenizer.
        """
        folder, gguf_kwargs = split_gguf(text)
        check_language_model(text)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf_kwargs)
        return cls(load_image_processor(vision, trust_remote_code), tokenizer, **kwargs)

    @classmethod
    def from_vision_pretrained(cls, vision, labels, rationales, trust_remote_code=False, **kwargs):
        """The same, with a tokenizer made for these classes and rationales."""
        tokenizer = train_rationale_tokenizer([*rationales, *labels])
        return cls(load_image_processor(vision, trust_remote_code), tokenizer, **kwargs)

    @classmethod
    def from_preset(cls, name, labels, rationales, **kwargs):
        """The processor of [`MeglConfig.from_preset`], with a tokenizer made for these classes and rationales."""
        size = PRESETS[name]["vision_config"].get("image_size", 224)
        image_processor = make_image_processor((size, size), IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
        return cls(image_processor, train_rationale_tokenizer([*rationales, *labels]), **kwargs)


def split_gguf(text):
    """`(folder, {"gguf_file": name})` of the path of a GGUF file, and `(text, {})` of anything else."""
    path = Path(text)
    return (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (text, {})


def load_image_processor(vision, trust_remote_code=False):
    """The size and normalisation of a vision model's image processor, without its crop."""
    source = AutoImageProcessor.from_pretrained(vision, trust_remote_code=trust_remote_code)
    size = getattr(source, "crop_size", None) or source.size
    height, width = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2
    return make_image_processor((height, width), source.image_mean, source.image_std, source.resample)


def make_image_processor(size, mean, std, resample=Image.Resampling.BILINEAR):
    """An image processor that resizes the whole picture to `size`, height and width in pixels."""
    return ViTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        image_mean=list(mean),
        image_std=list(std),
        resample=resample,
        do_convert_rgb=True,
    )


def _mask_image(mask, image, index):
    """A visual explanation as an 8-bit RGB image, which any image processor takes."""
    mask = ImageOps.exif_transpose(mask)
    # Rounding to whole cells moves the ratio of a coarse mask by up to half a cell on each side.
    tolerance = 0.02 + 0.5 / min(mask.size)
    if abs(mask.width / mask.height * image.height / image.width - 1) > tolerance:
        raise ValueError(
            f"`visual_explanations[{index}]` is {mask.width} x {mask.height}, which is not the aspect ratio of its "
            f"image of {image.width} x {image.height} pixels: a mask must cover the whole image."
        )
    if mask.mode.startswith(("I", "F")):
        # 16-bit integers, or floating point in [0, 1].
        values = np.asarray(mask).astype(np.float32) / (65535 if mask.mode.startswith("I") else 1)
        mask = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
    return mask.convert("L").convert("RGB")


def train_rationale_tokenizer(texts, vocab_size=2048):
    """
    A byte-level BPE tokenizer (Sennrich et al. 2016) for a language model that is trained from scratch.

    Args:
        texts (`Iterable[str]`): Rationales and prompts of the training split.
        vocab_size (`int`): Upper bound of the vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


MeglProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["MeglProcessor"]
