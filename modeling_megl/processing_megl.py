"""MeglProcessor: pictures, visual explanations and rationales to model inputs, and rationales back to text."""

import base64
import io
import os

import numpy as np
import torch
from huggingface_hub.utils import HFValidationError, httpx
from PIL import Image, ImageOps, UnidentifiedImageError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    ViTImageProcessorPil,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from .configuration_megl import PRESETS, faults, not_found, one_line, read_config, untrusted
from .language_megl import check_language_model, split_gguf


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
        chat_turns (`list[str]`, *optional*):
            Of a chat model, what stands before the prompt, what stands between prompt and rationale, and the token
            that ends the rationale, as [`find_chat_turns`] reads them off a chat template. `None`: the rationale goes
            on in the prompt's line, and the tokenizer's end of text ends it.

    Raises:
        `ValueError`: where the prompt has no place for the class name, where the tokenizer has no end of text, and
            where `chat_turns` are no three texts, the last of them a token of the tokenizer.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        rationale_prompt="This is a {label} because",
        max_rationale_length=64,
        chat_turns=None,
        **kwargs,
    ):
        if not isinstance(rationale_prompt, str) or "{label}" not in rationale_prompt:
            raise ValueError(f"`rationale_prompt` must contain '{{label}}', got {rationale_prompt!r}.")
        if type(max_rationale_length) is not int or max_rationale_length < 1:
            raise ValueError(f"`max_rationale_length` must be 1 or more, got {max_rationale_length!r}.")
        if tokenizer is not None and tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}) has no end-of-text token, which ends each rationale: "
                "choose another language model, or set its `eos_token`."
            )
        if tokenizer is not None and chat_turns is not None:
            _check_chat_turns(chat_turns, tokenizer)
        self.rationale_prompt = rationale_prompt
        self.max_rationale_length = max_rationale_length
        self.chat_turns = chat_turns
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, trust_remote_code=False, **kwargs):
        """As `ProcessorMixin.from_pretrained`. The parts need no code of the checkpoint, so none is asked for."""
        try:
            processor_dict, unused_kwargs = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        except (OSError, HFValidationError) as error:  # the second of what cannot be a Hub id
            raise not_found(pretrained_model_name_or_path, error) from error
        if "rationale_prompt" not in processor_dict:
            if not os.path.isdir(pretrained_model_name_or_path):
                read_config(pretrained_model_name_or_path, **kwargs)  # which there may be none of either
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
                Still pictures of any size, of 8 bits a channel.
            visual_explanations (`list[PIL.Image.Image or None]`, *optional*):
                Grey mask of each picture, of the same aspect ratio at any size, or `None`; or for each picture a list
                of these, one for each class that it shows.
            label_names (`list[str]`, *optional*):
                Class name of each picture, for the prompt.
            rationales (`list[str or None]`, *optional*):
                Rationale of each picture, or `None`; needs `label_names`.

        Returns:
            `BatchFeature` with, for what was given, `pixel_values` `(B, 3, H, W)`, `visual_explanations` `(B, H, W)`
            in [0, 1] with zeros where there is none and `has_visual_explanation` `(B,)`, of lists `(B, n, H, W)` and
            `(B, n)`, `input_ids`, `attention_mask` and `rationale_labels` `(B, L)`, -100 outside the rationale.
        """
        data = {}
        if isinstance(visual_explanations, Image.Image):
            visual_explanations = [visual_explanations]
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
    def load_images(images, start=0):
        """
        Pictures as a list of upright RGB images (EXIF orientation applied); errors count them from `start` on.

        Raises:
            `ValueError`: where one is no `PIL.Image.Image` but, say, an array; has several frames; has more than 8
                bits a channel, of which nobody but the user knows which are black and white; or has more pixels than
                `PIL.Image.MAX_IMAGE_PIXELS`.
        """
        single = isinstance(images, (Image.Image, str, np.ndarray, torch.Tensor))
        images = [images] if single else images
        return [_load_image(image, f"`images[{index}]`") for index, image in enumerate(images, start)]

    def _masks(self, visual_explanations, images):
        if images is None or len(images) != len(visual_explanations):
            count = None if images is None else len(images)
            raise ValueError(
                f"`visual_explanations` must have an entry, a mask or `None`, for each image: got "
                f"{len(visual_explanations)} for `images` of length {count}."
            )
        if not any(isinstance(masks, list) for masks in visual_explanations):
            names = [f"`visual_explanations[{index}]`" for index in range(len(images))]
            return self._resized_masks(visual_explanations, images, names)
        lists = [[] if masks is None else masks for masks in visual_explanations]
        if not all(isinstance(masks, list) for masks in lists):
            raise ValueError("`visual_explanations` must be lists of masks for all images, or for none.")
        count = max(1, *map(len, lists))
        places = [(index, place) for index in range(len(images)) for place in range(count)]
        found = self._resized_masks(
            [lists[index][place] if place < len(lists[index]) else None for index, place in places],
            [images[index] for index, _ in places],
            [f"`visual_explanations[{index}][{place}]`" for index, place in places],
        )
        return {name: values.unflatten(0, (len(images), count)) for name, values in found.items()}

    def _resized_masks(self, masks, images, names):
        """Masks or `None`, of an image each, at the model's input size, and which of them there are."""
        given = [index for index, mask in enumerate(masks) if mask is not None]
        masks = [_mask_image(masks[index], images[index], names[index]) for index in given]
        height, width = self._size()
        resized = torch.zeros(len(images), height, width)
        if masks:
            # By the image processor itself, so that a mask can never be moved otherwise than its image. What it does
            # to colours besides, whatever that is, is undone: what it makes of black and white is 0 and 1.
            ends = [Image.new("RGB", (1, 1), colour) for colour in ("black", "white")]
            pixels = self.image_processor([*ends, *masks], return_tensors="pt")["pixel_values"][:, 0]
            black, white = pixels[:2]
            resized[given] = ((pixels[2:] - black) / (white - black)).clamp(0, 1).to(resized.dtype)
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
            prompt = self._prompt_ids(name)
            # What is cut has no end, so that none is learnt.
            room = self.max_rationale_length - len(prompt)
            if room < 1:
                self.check_prompts([name])
            text = []
            if rationale is not None:
                text = [*self._rationale_ids(rationale), self.end_token_id][:room]
            rows.append((prompt, text))
        length = max(len(prompt) + len(text) for prompt, text in rows)
        input_ids = torch.full((len(rows), length), self._pad_token_id())
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for row, (prompt, text) in enumerate(rows):
            end = len(prompt) + len(text)
            input_ids[row, :end] = torch.tensor(prompt + text)
            attention_mask[row, :end] = 1
            labels[row, len(prompt) : end] = torch.tensor(text, dtype=torch.long)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "rationale_labels": labels}

    def _prompt_ids(self, label_name):
        # Not `format`: other braces of a prompt are its own.
        text = self.rationale_prompt.replace("{label}", label_name)
        if self.chat_turns is not None:
            before, between, _ = self.chat_turns
            text = before + text + between
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def end_token_id(self):
        """The token that ends a rationale."""
        if self.chat_turns is None:
            return self.tokenizer.eos_token_id
        return self.tokenizer.convert_tokens_to_ids(self.chat_turns[-1])

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
        text = rationale.strip() if self.chat_turns is not None else " " + rationale.strip()
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
    def from_vision_text_pretrained(cls, vision, text, trust_remote_code=False, chat_template=False, **kwargs):
        """
        The processor of [`~MeglForImageClassification.from_vision_text_pretrained`]: the vision model's image
        processor, without its crop, and the language model's tokenizer.

        `chat_template` puts prompt and rationale into the tokenizer's chat template, whose own tokens come on top of a
        default `max_rationale_length`.
        """
        folder, gguf_kwargs = split_gguf(text)
        with faults(f"The config.json of {text}", but=ValueError):
            check_language_model(text)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf_kwargs)
        chat_turns = find_chat_turns(tokenizer) if chat_template else None
        if chat_turns is not None:
            added = sum(len(tokenizer(turn, add_special_tokens=False)["input_ids"]) for turn in chat_turns[:2])
            kwargs = {"max_rationale_length": 64 + added, **kwargs}
        return cls(load_image_processor(vision, trust_remote_code), tokenizer, chat_turns=chat_turns, **kwargs)

    @classmethod
    def from_vision_pretrained(cls, vision, labels, rationales, trust_remote_code=False, **kwargs):
        """The same, with a tokenizer made for these classes and rationales."""
        tokenizer = train_rationale_tokenizer([*rationales, *labels])
        return cls(load_image_processor(vision, trust_remote_code), tokenizer, **kwargs)

    @classmethod
    def from_preset(cls, name, labels, rationales, **kwargs):
        """The processor of [`MeglConfig.from_preset`], with a tokenizer made for these classes and rationales."""
        image_processor = load_image_processor(PRESETS[name]["vision_config"])
        return cls(image_processor, train_rationale_tokenizer([*rationales, *labels]), **kwargs)


# What a chat template is rendered with, to see what it puts around them.
_ASKED, _ANSWERED = "What is this?", "Something."


def find_chat_turns(tokenizer):
    """
    What a tokenizer's chat template puts around a user's prompt and the assistant's answer: `chat_turns` of
    [`MeglProcessor`].

    The template, a program of the checkpoint, is run here alone, once, by Transformers in Jinja's sandbox.

    Raises:
        `ValueError`: where there is no template, it fails, or it does not show prompt and answer once each, in this
            order.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"The tokenizer ({type(tokenizer).__name__}) has no chat template: leave out `--chat_template`, in Python "
            "`chat_template=True`."
        )
    turns = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        before, rest = text.split(_ASKED)
        between, end = rest.split(_ANSWERED)
    except Exception as error:  # a template raises what it likes
        raise ValueError(
            f"The chat template of the tokenizer cannot be used, of a user's and an assistant's turn "
            f"({type(error).__name__}: {one_line(error)}): leave out `--chat_template`, in Python "
            "`chat_template=True`."
        ) from error
    ids = tokenizer(end.strip(), add_special_tokens=False)["input_ids"][:1]
    special = ids and tokenizer.added_tokens_decoder.get(ids[0])
    return [before, between, str(special) if special and special.special else tokenizer.eos_token]


def _check_chat_turns(chat_turns, tokenizer):
    texts = isinstance(chat_turns, list | tuple) and all(isinstance(text, str) for text in chat_turns)
    if not texts or len(chat_turns) != 3 or chat_turns[2] not in tokenizer.get_vocab():
        raise ValueError(
            "`chat_turns` must be three texts, before the prompt, between prompt and rationale, and a token of the "
            f"tokenizer that ends the rationale, got {chat_turns!r}."
        )


def load_image_processor(vision, trust_remote_code=False):
    """
    A vision model's own image processor, changed in one thing only: it resizes the whole picture to the model's size
    and neither crops nor pads it, since the map must cover the picture. Of a picture of that size it makes the pixels
    that the model was trained on. Of a vision model's configuration, a dictionary, it is a new one of its size.

    Raises:
        `ValueError`: where the image processor makes no pictures of one size, or cannot do without its crop, and where
        it has code that is not trusted. `OSError`: where there is none.
    """
    if isinstance(vision, dict):
        size = vision.get("image_size", 224)
        return make_image_processor((size, size), IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    try:
        source = AutoImageProcessor.from_pretrained(vision, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise ValueError(f"The image processor of {vision} needs a package: {one_line(error)}") from error
    except OSError as error:
        raise not_found(vision, error) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise untrusted(vision, error) from error
        raise
    height, width = _picture_size(source, vision)
    for make in (_without_crop, _plain):
        try:
            processor = make(source, height, width)
            if _shows_all_as_before(processor, source, height, width):
                return processor
        except Exception:  # each class has its own idea of which settings go together
            continue
    raise ValueError(
        f"The image processor of {vision}, {type(source).__name__}, cannot resize a whole picture to {height} x "
        f"{width} pixels and treat its colours as before. Save one beside the model that can, such as a "
        "ViTImageProcessor."
    )


def _shows_all_as_before(processor, source, height, width):
    """Whether `processor` makes of a whole picture, at any size, what `source` makes of one that needs no resizing."""
    picture = _ramp(height, width)
    found = _pixels(processor, picture)
    try:
        same = _alike(found, _pixels(source, picture, do_resize=False, do_center_crop=False))
    except TypeError:  # timm's cannot be told so; what a crop leaves of a single colour is that colour
        plain = [Image.new("RGB", picture.size, colour) for colour in ("black", "red", "lime", "blue")]
        same = all(_alike(_pixels(processor, image), _pixels(source, image)) for image in plain)
    # A crop or a border moves the ends of the ramp.
    tolerance = 0.05 * (found.max() - found.min())
    others = [_pixels(processor, _ramp(*shape)) for shape in ((3 * height, 3 * width), (height, 2 * width))]
    return same and all(_alike(other, found, tolerance) for other in others)


def _alike(found, expected, tolerance=1e-5):
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=float(tolerance))


def _picture_size(source, vision):
    """Height and width of what an image processor makes of square pictures, whatever its settings are called."""
    try:
        shapes = [_pixels(source, _ramp(side, side)).shape for side in (320, 640)]
    except Exception as error:
        raise ValueError(
            f"The image processor of {vision}, {type(source).__name__}, makes no `pixel_values` of shape (1, 3, "
            f"height, width) of a picture, as a map needs ({one_line(error)})."
        ) from error
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The image processor of {vision}, {type(source).__name__}, makes pictures of several sizes: of 320 x 320 "
            f"pixels {tuple(shapes[0][2:])}, of 640 x 640 {tuple(shapes[1][2:])}. Give it `do_resize` and a `size`."
        )
    return tuple(shapes[0][2:])


def _pixels(image_processor, image, **options):
    """`pixel_values` `(1, 3, H, W)` of one picture."""
    pixel_values = image_processor([image], return_tensors="pt", **options)["pixel_values"]
    if pixel_values.ndim != 4 or pixel_values.shape[:2] != (1, 3):
        raise ValueError(f"its `pixel_values` are of shape {tuple(pixel_values.shape)}")
    return pixel_values.float()


def _ramp(height, width):
    """A picture that is unlike any crop of itself: red grows to the right, green downwards, blue to the left."""
    rows, columns = ((np.arange(length) + 0.5) / length * 255 for length in (height, width))
    colours = np.broadcast_arrays(columns, rows[:, None], 255 - columns)
    return Image.fromarray(np.stack(colours, axis=2).round().astype(np.uint8))


def _without_crop(source, height, width):
    """The image processor itself, told to resize to `height` x `width` and no more."""
    settings = {**source.to_dict(), "size": {"height": height, "width": width}, "do_resize": True}
    settings.update(do_center_crop=False, do_pad=False, do_convert_rgb=True)
    if "AutoImageProcessor" in settings.get("auto_map", {}):
        raise ValueError("its code would have to go along with the checkpoint")
    processor = type(source).from_dict(settings)
    if (processor.size["height"], processor.size["width"]) != (height, width):
        raise ValueError("it takes `size` for something else")
    return processor


def _plain(source, height, width):
    """An image processor without ideas of its own on `size`, that rescales and normalises as `source` does."""
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
    settings = {name: getattr(source, name) for name in names if getattr(source, name, None) is not None}
    if hasattr(source, "data_config"):  # timm's
        resample = Image.Resampling[source.data_config["interpolation"].upper()]
        settings = {f"image_{name}": list(source.data_config[name]) for name in ("mean", "std")}
        settings["resample"] = resample
    return ViTImageProcessorPil(size={"height": height, "width": width}, do_convert_rgb=True, **settings)


def make_image_processor(size, mean, std, resample=Image.Resampling.BILINEAR):
    """An image processor that resizes the whole picture to `size`, height and width in pixels."""
    return ViTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        image_mean=list(mean),
        image_std=list(std),
        resample=resample,
        do_convert_rgb=True,
    )


def open_image(source, timeout=None):
    """
    The picture that a path, a URL or a base64 text names, as `transformers.image_utils.load_image` finds it, but as it
    was stored: [`MeglProcessor.load_images`] has to see its frames and bits. Anything but a text is handed on.
    """
    if not isinstance(source, str):
        return source
    name = source if len(source) <= 200 else f"{source[:200]}..."
    try:
        if source.startswith(("http://", "https://")):
            response = httpx.get(source, timeout=timeout, follow_redirects=True)
            return Image.open(io.BytesIO(response.raise_for_status().content))
        if os.path.isfile(source):
            return Image.open(source)
        content = base64.b64decode(source.partition(",")[2] if source.startswith("data:image/") else source)
        return Image.open(io.BytesIO(content))
    except (httpx.HTTPError, OSError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own words on an unknown format have an address in memory.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(
            f"{name} is no picture: expected the path of an image file, a URL that begins with `http://` or "
            f"`https://`, or a base64 text ({reason})."
        ) from error


def _load_image(image, where):
    """A picture as an upright RGB image, if RGB can show it; `where` is what an error names."""
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"{where} must be a `PIL.Image.Image`, got {type(image).__name__}; `PIL.Image.fromarray` makes one of an "
            "array of 8-bit values."
        )
    name = f"{where} ({image.filename})" if getattr(image, "filename", None) else where
    _check_size(image, name, "picture")
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name} must be a picture of 8 bits a channel, got mode {image.mode}: convert it, since nobody but you "
            "knows which of its values are black and white."
        )
    _check_still(image, name)
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise ValueError(f"{name} must be a whole picture, but does not decode ({one_line(error)}).") from error


def _check_size(image, name, kind):
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{name} must be a {kind} of at most {Image.MAX_IMAGE_PIXELS:,} pixels, got {image.width} x "
            f"{image.height}: store it smaller."
        )


def _check_still(image, name):
    # A camera's MPO holds the picture and copies of it, or its other eye.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"{name} must be a still picture, got {frames} frames: store the one that the label is of.")


def read_mask(mask, image_size, where):
    """
    A visual explanation as it counts in training and evaluation alike.

    Args:
        mask (`PIL.Image.Image`): Of 1, 8 or 16 bits of grey, of floats in [0, 1], or of colours, of which it is the
            mean times the opacity.
        image_size (`tuple[int, int]`): Width and height of its upright image.
        where (`str`): What an error names.

    Returns:
        `np.ndarray` of shape `(height, width)`, float32 in [0, 1], upright.

    Raises:
        `ValueError`: where it is no picture, has several frames or more than `PIL.Image.MAX_IMAGE_PIXELS`, is not of
            its image's aspect ratio, does not decode, or has values of which it is not known which stands for 1.
    """
    if not isinstance(mask, Image.Image):
        raise ValueError(f"{where} must be a `PIL.Image.Image` or `None`, got {type(mask).__name__}.")
    _check_size(mask, where, "mask")
    _check_still(mask, where)
    try:
        mask = ImageOps.exif_transpose(mask)
        mask.load()
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise ValueError(f"{where} must be a whole picture, but does not decode ({one_line(error)}).") from error
    width, height = image_size
    # Rounding to whole cells moves the ratio of a coarse mask by up to half a cell on each side.
    tolerance = 0.02 + 0.5 / min(mask.size)
    if abs(mask.width / mask.height * height / width - 1) > tolerance:
        raise ValueError(
            f"{where} is {mask.width} x {mask.height}, which is not the aspect ratio of its image of {width} x "
            f"{height} pixels: a mask must cover the whole image."
        )
    if mask.mode == "1":
        return np.asarray(mask).astype(np.float32)
    values, top = _mask_values(mask, where)
    return values.astype(np.float32).clip(0, top) / np.float32(top)


def _mask_image(mask, image, where):
    """A visual explanation as an 8-bit RGB image, which any image processor takes."""
    values = read_mask(mask, image.size, where)
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")


def _mask_values(mask, where):
    """The values of a mask and what stands for 1 among them, as the builders read them."""
    if mask.mode in ("L", "F") or mask.mode.startswith("I"):
        values = np.asarray(mask)
    else:  # the mean of the colours, times the opacity
        colours = np.asarray(mask.convert("RGBA"))
        values = colours[..., :3].mean(axis=2, dtype=np.float32) * (colours[..., 3] / np.float32(255))
    least, most = float(values.min()), float(values.max())
    # 16 bits where 8 do not suffice.
    top = 1 if mask.mode == "F" else 255 if most <= 255 else 65535
    # Sums of floats may be off by their last digits. Written so that NaN is refused.
    if not (least >= -1e-6 and most <= top * (1 + 1e-6)):
        raise ValueError(
            f"{where} of mode {mask.mode} must have values in 0..{top}, got {least:g} to {most:g}: rescale the mask."
        )
    if top > 1 and 0 < most <= 1:
        raise ValueError(
            f"{where} must be an integer visual explanation in 0..255, got one with 0 and 1 only, which would be "
            "almost black: multiply it by 255, or store floats or booleans."
        )
    return values, top


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
