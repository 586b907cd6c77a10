"""What the tests of the metrics share: reference numbers, texts, pictures and a tiny CLIP asked directly."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer


ROOT = Path(__file__).resolve().parents[1]


GOLDEN = Path(os.environ.get("MEGL_SHARED", ROOT.parent / "shared")) / "golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden files are absent: set MEGL_SHARED to the folder that holds golden/"
)


def read_golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


# By kind of text: texts with the tokens of pycocoevalcap 1.2, from its own program.
PTB_TOKENS = json.loads((ROOT / "tests" / "ptb_tokens.json").read_text(encoding="utf-8"))
CLIP = "openai/clip-vit-base-patch32"
TEXTS = ["a red owl", "there is an apple in the centre", "", "a very long rationale about a dog and more than that"]
REFERENCES = [["an owl", "a red owl"], ["an apple"], ["a thing"], ["dogs", "a long text", "what"]]


def clip_images():
    return [Image.new("RGB", (48, 40), colour) for colour in ("red", "lime", "black", "white")]


def direct_embeddings(images, texts):
    """One at a time, through the whole model, so without batches and padding."""
    model = CLIPModel.from_pretrained(CLIP).eval()
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    processor = CLIPImageProcessor.from_pretrained(CLIP)
    image_embeds, text_embeds = [], []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer("A photo depicts " + text, truncation=True, max_length=40, return_tensors="pt")
            pixels = processor(images=images[0], return_tensors="pt")["pixel_values"]
            text_embeds.append(model(**inputs, pixel_values=pixels).text_embeds[0].numpy())
        for image in images:
            inputs = tokenizer("a", return_tensors="pt")
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
            image_embeds.append(model(**inputs, pixel_values=pixels).image_embeds[0].numpy())
    return np.array(image_embeds), np.array(text_embeds)


def module_of(metric):
    return sys.modules[type(metric).__module__]
