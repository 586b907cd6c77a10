"""
The chain of thought that MEGL is compared with: LLaVA (Liu et al. 2023, arXiv:2304.08485), in Transformers' own
classes, which is taught to write the rationale first and the label after it.
"""

import sys

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from megl.evaluation.metrics import load
from modeling_megl import PRESETS, TEXT_PRESETS, MeglProcessor
from modeling_megl.language_megl import load_language_model
from modeling_megl.processing_megl import (
    load_image_processor,
    make_image_processor,
    split_gguf,
    train_rationale_tokenizer,
)
from modeling_megl.training_megl import MeglDataCollator


IMAGE_TOKEN = "<image>"
PROMPT = f"{IMAGE_TOKEN} What is this? Because"
MARKER = "Answer:"
ANSWER = " {rationale} " + MARKER + " {label}"

# Vision towers that are trained from scratch: LLaVA-1.5's, and one of the very shape of the tiny ViT preset.
VISION_PRESETS = {
    "clip-vit-l14-336": {
        "model_type": "clip_vision_model",
        "image_size": 336,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "clip-tiny": {**PRESETS["megl-vit-tiny"]["vision_config"], "model_type": "clip_vision_model"},
}


def make_config(vision_config, text_config, image_token_id, **kwargs):
    """
    A `LlavaConfig` whose language model has room for the picture's tokens.

    Args:
        vision_config (`dict` or `CLIPVisionConfig`): The vision tower.
        text_config (`dict` or `PreTrainedConfig`): The language model.
        image_token_id (`int`): The token that stands for a patch of the picture.
        kwargs: Fields of `LlavaConfig`, such as `id2label`.
    """
    config = LlavaConfig(
        vision_config=vision_config, text_config=text_config, image_token_index=image_token_id, **kwargs
    )
    config.image_seq_length = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return config


def make_llava(vision, text, labels, rationales):
    """
    An untrained LLaVA and its processor, for a data set's classes. The counterpart of `init_megl.py`.

    Args:
        vision (`str`): A key of `VISION_PRESETS`, or Hub id or folder of a CLIP model.
        text (`str`): A key of `TEXT_PRESETS`, or Hub id, folder or GGUF file of a causal language model.
        labels (`list[str]`): Names of the classes, in the order of their ids.
        rationales (`list[str]`): Texts of the training split, for a language model from scratch.

    Returns:
        `LlavaForConditionalGeneration`, whose config names the classes, and its `LlavaProcessor`.

    Raises:
        `ValueError`: where `vision` is another model than CLIP.
    """
    tower, vision_config, image_processor = _vision(vision)
    tokenizer = _tokenizer(text, labels, rationales)
    patches = (vision_config.image_size // vision_config.patch_size) ** 2
    language_model = _language_model(text, tokenizer, patches)
    config = make_config(
        vision_config,
        language_model.config,
        tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        # LLaVA skips the last layer since pretraining spoilt it for patches; from scratch it would never be trained.
        vision_feature_layer=-1 if tower is None else -2,
        id2label=dict(enumerate(labels)),
        label2id={name: label for label, name in enumerate(labels)},
    )
    model = LlavaForConditionalGeneration(config)
    if tower is not None:
        model.model.vision_tower = tower
    model.model.language_model = language_model.get_decoder()
    model.lm_head = language_model.get_output_embeddings()
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
    return model, processor


def _vision(vision):
    """The vision tower where it is pretrained, its configuration and its image processor."""
    if vision in VISION_PRESETS:
        config = AutoConfig.for_model(**VISION_PRESETS[vision])
        size = (config.image_size, config.image_size)
        return None, config, make_image_processor(size, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    model_type = PreTrainedConfig.get_config_dict(vision)[0].get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise ValueError(
            f"`vision` must be one of {sorted(VISION_PRESETS)}, or a CLIP model as LLaVA has it: {vision} is of type "
            f"{model_type!r}."
        )
    tower = CLIPVisionModel.from_pretrained(vision, dtype=torch.float32)
    return tower, tower.config, load_image_processor(vision)


def _tokenizer(text, labels, rationales):
    if text in TEXT_PRESETS:
        prompt = PROMPT.removeprefix(IMAGE_TOKEN)
        tokenizer = train_rationale_tokenizer([*rationales, *labels, *(len(rationales) * [prompt, " " + MARKER])])
    else:
        folder, gguf_kwargs = split_gguf(text)
        tokenizer = AutoTokenizer.from_pretrained(folder, **gguf_kwargs)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        # The attention mask and the labels hide the padding.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _language_model(text, tokenizer, patches):
    if text not in TEXT_PRESETS:
        language_model = load_language_model(text)
        if language_model.config.vocab_size < len(tokenizer):
            # The new token is only a place for the picture: its own embedding is never read.
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return language_model
    preset = TEXT_PRESETS[text]
    return load_language_model(
        {
            **preset,
            "max_position_embeddings": preset["max_position_embeddings"] + patches,
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )


class LlavaDataCollator(MeglDataCollator):
    """
    Rows of a data set with the columns `image`, `label` and `textual_explanations` to a batch. The rationales of a row
    take turns as in [`MeglDataCollator`].

    Returns, called with a list of rows:
        `BatchFeature` with `pixel_values` `(B, 3, H, W)`, `input_ids` and `attention_mask` `(B, L)`: the picture's
        tokens, the prompt, the rationale, the label and the end of text; and `labels` `(B, L)`, which are -100 up to
        the rationale and in the padding.
    """

    def __call__(self, rows):
        batch = prompt_inputs(self.processor, [row["image"] for row in rows])
        tokenizer = self.processor.tokenizer
        answers = tokenizer(
            [
                ANSWER.format(rationale=(self.draw(row) or "").strip(), label=self.id2label[row["label"]])
                + tokenizer.eos_token
                for row in rows
            ],
            add_special_tokens=False,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        unseen = answers["attention_mask"] == 0
        labels = answers["input_ids"].masked_fill(unseen, -100)
        batch["labels"] = torch.cat([torch.full_like(batch["input_ids"], -100), labels], dim=1)
        for name in ("input_ids", "attention_mask"):
            batch[name] = torch.cat([batch[name], answers[name]], dim=1)
        return batch


def prompt_inputs(processor, images):
    """`pixel_values`, `input_ids` and `attention_mask` of the prompt for each picture; all are of one length."""
    images = MeglProcessor.load_images(images)
    return processor(images=images, text=len(images) * [PROMPT], return_tensors="pt")


@torch.no_grad()
def write_answers(model, processor, images, max_new_tokens=96):
    """What the model writes of each picture (`list[str]`), greedily."""
    inputs = prompt_inputs(processor, images).to(model.device, model.dtype)
    tokens = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def parse_answer(text, class_names):
    """
    The rationale and the label of what the model wrote. The label is the longest class name that follows the last
    marker, without regard to case, punctuation and what comes after; `None`, which counts as wrong, where none does.
    """
    rationale, marker, answer = text.rpartition(MARKER)
    if not marker:
        return text.strip(), None
    # The words of any script, and the symbols of names such as "C++", as the scores of rationales take them.
    metric = sys.modules[type(load("rationale")).__module__]
    symbols = {character for name in class_names for character in metric.symbols_of(name)}
    answer = f"{metric.words(answer, symbols)} "
    found = [name for name in class_names if answer.startswith(f"{metric.words(name, symbols)} ")]
    return rationale.strip(), max(found, key=len, default=None)
