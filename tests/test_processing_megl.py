"""The processor: exact tensors, masks that move as their images do, clear errors, saving and reloading."""

import base64
import io
import json
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from modeling_megl import TEXT_PRESETS, MeglForImageClassification, MeglProcessor
from modeling_megl.processing_megl import (
    find_chat_turns,
    load_image_processor,
    make_image_processor,
    open_image,
    read_mask,
    split_gguf,
    train_rationale_tokenizer,
)


MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def random_picture(height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def random_mask(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def as_mask(values):
    return torch.from_numpy(np.array(values, dtype=np.float32))


# ---- Images ----


def test_pixel_values_by_hand(processor):
    picture = random_picture(32, 32)
    batch = processor(images=[picture])
    assert list(batch) == ["pixel_values"]
    expected = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    torch.testing.assert_close(batch["pixel_values"], expected[None], rtol=1e-5, atol=1e-5)


def test_whole_picture_is_resized_without_cropping(processor):
    picture = Image.new("RGB", (64, 128), "black")
    picture.paste("white", (0, 0, 64, 4))
    picture.paste("white", (0, 124, 64, 128))
    pixels = processor(images=picture)["pixel_values"][0] * torch.tensor(STD)[:, None, None]
    pixels += torch.tensor(MEAN)[:, None, None]
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, 0] > 0.8).all() and (pixels[:, -1] > 0.8).all() and (pixels[:, 8:-8] < 1e-5).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pictures_of_any_mode(mode, processor):
    picture = random_picture(32, 32).convert(mode)
    expected = processor(images=picture.convert("RGB"))["pixel_values"]
    assert torch.equal(processor(images=picture)["pixel_values"], expected)


def with_orientation(picture, orientation):
    """As a camera writes it: pixels as they lie on the sensor, and which way is up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    return Image.open(file)


def test_exif_orientation_is_applied_before_the_mask_is_compared(processor):
    upright, mask = random_picture(60, 40), random_mask(60, 40)
    turned = with_orientation(upright.transpose(Image.Transpose.ROTATE_90), 6)
    assert turned.size == (60, 40) != upright.size
    expected = processor(images=[upright], visual_explanations=[mask])
    batch = processor(images=[turned], visual_explanations=[mask])
    for name in ("pixel_values", "visual_explanations"):
        assert torch.equal(batch[name], expected[name]), name
    # A mask may have an orientation of its own.
    turned_mask = with_orientation(mask.transpose(Image.Transpose.ROTATE_90), 6)
    batch = processor(images=[turned], visual_explanations=[turned_mask])
    assert torch.equal(batch["visual_explanations"], expected["visual_explanations"])
    (image,) = MeglProcessor.load_images(turned)
    assert image.size == (40, 60) and image.mode == "RGB"


def test_inputs_are_not_changed(processor):
    picture, mask = random_picture(20, 30), random_mask(20, 30)
    before = picture.tobytes(), mask.tobytes()
    processor(images=[picture], visual_explanations=[mask])
    assert (picture.tobytes(), mask.tobytes()) == before


def test_a_damaged_picture_is_named(tmp_path):
    content = io.BytesIO()
    random_picture(64, 64).save(content, "PNG")
    (tmp_path / "half.png").write_bytes(content.getvalue()[:4000])
    with pytest.raises(ValueError, match=r"`images\[0\]` \(.*half.png\) must be a whole picture, but does not decode"):
        MeglProcessor.load_images(Image.open(tmp_path / "half.png"))


DEEP = {
    "I;16": np.full((8, 8), 300, dtype=np.uint16),
    "I;16B": np.full((8, 8), 300, dtype=">u2"),
    "I": np.full((8, 8), 300, dtype=np.int32),
    "F": np.full((8, 8), 0.5, dtype=np.float32),
}


@pytest.mark.parametrize("mode", list(DEEP))
def test_pictures_of_more_than_8_bits_are_refused(mode, processor, tmp_path):
    deep = Image.fromarray(DEEP[mode])
    assert deep.mode == mode
    message = (
        rf"`images\[1\]` must be a picture of 8 bits a channel, got mode {mode}: convert it, since nobody but you"
    )
    with pytest.raises(ValueError, match=message):
        processor(images=[random_picture(8, 8), deep])
    deep.save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"`images\[0\]` \(.*deep.tif\) must be a picture of 8 bits"):
        MeglProcessor.load_images(Image.open(tmp_path / "deep.tif"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused(kind, processor, tmp_path):
    frames = [random_picture(8, 8, seed) for seed in range(3)]
    frames[0].save(tmp_path / "moving", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"`images\[0\]` \(.*moving\) must be a still picture, got 3 frames: store"):
        processor(images=Image.open(tmp_path / "moving"))
    # One of its frames is a picture, as is a file with one frame.
    assert len(processor(images=Image.open(tmp_path / "moving").copy())["pixel_values"]) == 1
    frames[0].save(tmp_path / "still", kind, save_all=True)
    assert len(processor(images=Image.open(tmp_path / "still"))["pixel_values"]) == 1


def test_a_camera_s_mpo_is_its_first_picture(processor, tmp_path):
    first, second = random_picture(32, 32), random_picture(32, 32, 1)
    first.save(tmp_path / "photo.mpo", "MPO", save_all=True, append_images=[second])
    photo = Image.open(tmp_path / "photo.mpo")
    assert (photo.format, photo.n_frames) == ("MPO", 2)
    expected = processor(images=photo.convert("RGB"))["pixel_values"]
    assert torch.equal(processor(images=Image.open(tmp_path / "photo.mpo"))["pixel_values"], expected)


@pytest.mark.parametrize("given", [np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8), "picture.png", b"bytes", None])
def test_what_is_no_picture_is_refused_by_one_message(given, processor):
    message = (
        rf"`images\[0\]` must be a `PIL.Image.Image`, got {type(given).__name__}; `PIL.Image.fromarray` makes one"
    )
    for images in ([given],) if given is None or isinstance(given, bytes) else (given, [given]):
        with pytest.raises(ValueError, match=message):
            processor(images=images)


def test_pictures_too_large_to_be_one_are_stopped_before_they_are_decoded(monkeypatch, tmp_path):
    Image.new("1", (400, 300)).save(tmp_path / "bomb.png")
    large = Image.open(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    message = (
        r"`images\[0\]` \(.*bomb.png\) must be a picture of at most 100,000 pixels, got 400 x 300: store it smaller"
    )
    with pytest.raises(ValueError, match=message):
        MeglProcessor.load_images(large)
    # `tile` says where in the file the pixels are that are still to be decoded.
    assert large.tile
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ValueError, match=r"bomb.png is no picture: .* exceeds limit of 100000 pixels"):
        open_image(str(tmp_path / "bomb.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert MeglProcessor.load_images(open_image(str(tmp_path / "bomb.png")))[0].size == (400, 300)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_files_urls_and_base64_are_opened_as_they_were_stored(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(DEEP["I;16"]).save(path)
    text = base64.encodebytes(path.read_bytes()).decode()
    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://localhost:{server.server_port}"
        for source in (str(path), text, f"data:image/png;base64,{text}", f"{url}/deep.png"):
            image = open_image(source, timeout=10)
            assert image.mode == "I;16" and np.array_equal(np.asarray(image), DEEP["I;16"])
        with pytest.raises(ValueError, match="missing.png is no picture: expected the path .* '404 "):
            open_image(f"{url}/missing.png", timeout=10)
    finally:
        server.shutdown()
        server.server_close()
    (tmp_path / "text.png").write_text("no picture")
    for source in ("no_such_file.png", str(tmp_path / "text.png"), 2000 * "not base64 "):
        with pytest.raises(ValueError, match=r"is no picture: expected the path of an image file, a URL") as caught:
            open_image(source)
        assert len(str(caught.value)) < 500 and "0x" not in str(caught.value)
    assert open_image(image) is image


# ---- Masks ----


def test_masks_by_hand(processor):
    values = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    fine = values.astype(np.uint16) * 257  # the same fractions of 65535
    inside = values > 127
    masks = [
        Image.fromarray(values),
        None,
        Image.fromarray(fine),
        Image.fromarray(fine.astype(np.int32)),
        Image.fromarray(inside),
        Image.fromarray(values.astype(np.float32) / 255),
    ]
    assert [mask.mode for mask in masks if mask] == ["L", "I;16", "I", "1", "F"]
    batch = processor(images=[random_picture(32, 32)] * 6, visual_explanations=masks)
    assert batch["visual_explanations"].dtype == torch.float32
    assert torch.equal(batch["has_visual_explanation"], torch.tensor([True, False, True, True, True, True]))
    expected = as_mask(values / 255)
    torch.testing.assert_close(
        batch["visual_explanations"],
        torch.stack([expected, torch.zeros(32, 32), expected, expected, as_mask(inside), expected]),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_masks_of_zeros_and_ones_are_refused(dtype, processor):
    values = np.zeros((32, 32), dtype=dtype)
    empty = processor(images=[random_picture(32, 32)], visual_explanations=[Image.fromarray(values)])
    assert not empty["visual_explanations"].any() and empty["has_visual_explanation"].all()
    values[8:24, 8:24] = 1
    message = (
        r"`visual_explanations\[1\]` must be an integer visual explanation in 0..255, got one with 0 and 1 only, "
        "which would be almost black: multiply it by 255, or store floats or booleans"
    )
    with pytest.raises(ValueError, match=message):
        processor(images=[random_picture(32, 32)] * 2, visual_explanations=[None, Image.fromarray(values)])
    for right in (values * np.array(255, dtype), values.astype(bool), values.astype(np.float32)):
        batch = processor(images=[random_picture(32, 32)], visual_explanations=[Image.fromarray(right)])
        assert torch.equal(batch["visual_explanations"][0], as_mask(values))


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        (np.array([[0, 65536]], np.int32), "I must have values in 0..65535, got 0 to 65536"),
        (np.array([[-1, 255]], np.int32), "I must have values in 0..255, got -1 to 255"),
        (np.array([[0, 255]], np.float32), "F must have values in 0..1, got 0 to 255"),
        (np.array([[-0.5, 1]], np.float32), "F must have values in 0..1, got -0.5 to 1"),
        (np.array([[np.nan, 1]], np.float32), "F must have values in 0..1, got nan to nan"),
    ],
)
def test_masks_out_of_range_are_refused(values, bounds, processor):
    mask = Image.fromarray(values.repeat(8, axis=0).repeat(4, axis=1))
    with pytest.raises(ValueError, match=rf"`visual_explanations\[0\]` of mode {bounds}: rescale the mask"):
        processor(images=[random_picture(8, 8)], visual_explanations=[mask])


def test_masks_with_colours_and_transparency(processor):
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    opacity = np.where(np.arange(32) < 16, 255, 0).astype(np.uint8).repeat(32).reshape(32, 32)
    palette = Image.fromarray(grey // 128).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    rgb = np.stack([grey, grey // 2, 0 * grey], axis=2)
    expected = {
        "RGB": (Image.fromarray(rgb), rgb.astype(np.float64).mean(axis=2) / 255),
        "LA": (Image.merge("LA", [Image.fromarray(x) for x in (grey, opacity)]), grey / 255 * opacity / 255),
        "RGBA": (
            Image.merge("RGBA", [Image.fromarray(x) for x in (grey,) * 3 + (opacity,)]),
            grey * (opacity / 65025),
        ),
        "P": (palette, grey // 128),
    }
    # Eight bits in 16: the builders read them so as well.
    expected["I;16"] = (Image.fromarray(grey.astype(np.uint16)), grey / 255)
    assert [mask.mode for mask, _ in expected.values()] == list(expected)
    masks = [mask for mask, _ in expected.values()]
    batch = processor(images=[random_picture(32, 32)] * len(masks), visual_explanations=masks)
    for found, (mask, values) in zip(batch["visual_explanations"], expected.values(), strict=True):
        torch.testing.assert_close(found, as_mask(values), rtol=0, atol=0.6 / 255, msg=mask.mode)
    dark = palette.copy()
    dark.putpalette([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="0 and 1 only"):
        processor(images=[random_picture(32, 32)], visual_explanations=[dark])


def test_a_mask_is_a_picture(processor):
    with pytest.raises(
        ValueError, match=r"`visual_explanations\[0\]` must be a `PIL.Image.Image` or `None`, got ndarray"
    ):
        processor(images=[random_picture(8, 8)], visual_explanations=[np.ones((8, 8))])


def test_a_mask_is_still(processor, tmp_path):
    random_mask(8, 8).save(tmp_path / "mask.gif", save_all=True, append_images=[random_mask(8, 8, 1)])
    with pytest.raises(ValueError, match=r"`visual_explanations\[0\]` must be a still picture, got 2 frames"):
        processor(images=[random_picture(8, 8)], visual_explanations=[Image.open(tmp_path / "mask.gif")])


def test_a_mask_has_the_limit_of_a_picture_and_decodes(processor, tmp_path, monkeypatch):
    random_mask(80, 80).save(tmp_path / "mask.png")
    (tmp_path / "mask.png").write_bytes((tmp_path / "mask.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"`visual_explanations\[0\]` must be a whole picture, but does not decode"):
        processor(images=[random_picture(8, 8)], visual_explanations=[Image.open(tmp_path / "mask.png")])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    message = r"`visual_explanations\[0\]` must be a mask of at most 100 pixels, got 11 x 11: store it smaller"
    with pytest.raises(ValueError, match=message):
        processor(images=[random_picture(8, 8)], visual_explanations=[random_mask(11, 11)])


def test_a_mask_is_read_as_floats_that_are_upright():
    values = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2849
    found = read_mask(Image.fromarray(values), (60, 40), "the mask")
    assert found.dtype == np.float32 and np.array_equal(found, values.astype(np.float32) / np.float32(65535))
    turned = with_orientation(Image.fromarray((values >> 8).astype(np.uint8)).transpose(Image.Transpose.ROTATE_90), 6)
    assert np.array_equal(read_mask(turned, (60, 40), "it"), (values >> 8).astype(np.float32) / np.float32(255))
    with pytest.raises(ValueError, match="^the mask is 6 x 4, which is not the aspect ratio of its image of 40 x 60"):
        read_mask(Image.fromarray(values), (40, 60), "the mask")


def test_no_masks_at_all(processor):
    batch = processor(images=[random_picture(32, 32)] * 2, visual_explanations=[None, None])
    assert torch.equal(batch["visual_explanations"], torch.zeros(2, 32, 32))
    assert torch.equal(batch["has_visual_explanation"], torch.tensor([False, False]))


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("shape", [(32, 32), (90, 45), (17, 61)])
def test_a_mask_is_moved_exactly_like_its_image(shape, resample, tokenizer):
    processor = MeglProcessor(make_image_processor((24, 40), MEAN, STD, resample), tokenizer)
    mask = random_mask(*shape)
    batch = processor(images=[mask], visual_explanations=[mask])
    pixels = batch["pixel_values"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert batch["visual_explanations"].shape == (1, 24, 40)
    for channel in range(3):
        torch.testing.assert_close(batch["visual_explanations"], pixels[:, channel].clamp(0, 1), rtol=0, atol=1e-5)


def test_a_mask_may_be_of_another_size(processor):
    coarse = np.zeros((4, 6), dtype=np.uint8)
    coarse[1, 2] = 255
    batch = processor(images=[random_picture(40, 60)], visual_explanations=[Image.fromarray(coarse)])
    mask = batch["visual_explanations"][0]
    assert mask[12, 13] == mask.max() and mask.max() > 0.9
    assert mask[:, 24:].max() == 0 and mask[24:].max() == 0
    # 3 x 5 cells are a coarse mask of 640 x 1000 pixels: whole cells cannot have the ratio exactly.
    processor(images=[Image.new("RGB", (1000, 640))], visual_explanations=[Image.new("L", (5, 3))])


def test_a_mask_of_another_aspect_ratio_is_refused(processor):
    pictures = [random_picture(40, 60), random_picture(40, 60)]
    message = (
        r"`visual_explanations\[1\]` is 40 x 40, which is not the aspect ratio of its image of 60 x 40 pixels: a mask "
        "must cover the whole image"
    )
    with pytest.raises(ValueError, match=message):
        processor(images=pictures, visual_explanations=[random_mask(40, 60), random_mask(40, 40)])


def test_a_mask_for_each_image(processor):
    message = (
        r"`visual_explanations` must have an entry, a mask or `None`, for each image: got 1 for `images` of length"
    )
    with pytest.raises(ValueError, match=f"{message} 2"):
        processor(images=[random_picture(8, 8)] * 2, visual_explanations=[None])
    with pytest.raises(ValueError, match=f"{message} None"):
        processor(visual_explanations=[None])


# ---- Rationales ----


def test_rationales_by_hand(processor, tokenizer):
    names, texts = ["cat", "polar bear"], ["it has whiskers", "  a large white animal walks on the ice  "]
    batch = processor(label_names=names, rationales=texts)
    assert list(batch) == ["input_ids", "attention_mask", "rationale_labels"]
    rows = []
    for name, text in zip(names, texts, strict=True):
        prompt = tokenizer.encode(f"This is a {name} because")
        rows.append((prompt, tokenizer.encode(f" {text.strip()}") + [tokenizer.eos_token_id]))
    length = max(len(prompt) + len(text) for prompt, text in rows)
    assert len({len(prompt) + len(text) for prompt, text in rows}) == 2, "rows of several lengths"
    for row, (prompt, text) in enumerate(rows):
        rest = length - len(prompt) - len(text)
        assert batch["input_ids"][row].tolist() == prompt + text + [tokenizer.pad_token_id] * rest
        assert batch["attention_mask"][row].tolist() == [1] * (length - rest) + [0] * rest
        assert batch["rationale_labels"][row].tolist() == [-100] * len(prompt) + text + [-100] * rest
    decoded = tokenizer.decode(batch["input_ids"][1], skip_special_tokens=True)
    assert decoded == "This is a polar bear because a large white animal walks on the ice"
    assert processor.batch_decode_rationales(batch["rationale_labels"]) == [text.strip() for text in texts]


def test_long_rationales_are_cut_and_have_no_end(processor, tokenizer):
    text = "two round eyes look out of the feathers"
    prompt, words = tokenizer.encode("This is a owl because"), tokenizer.encode(f" {text}")
    whole = len(prompt) + len(words) + 1
    for length in (len(prompt) + 1, whole - 2, whole - 1, whole, whole + 9):
        processor = MeglProcessor(processor.image_processor, tokenizer, max_rationale_length=length)
        batch = processor(label_names=["owl"], rationales=[text])
        expected = [*words, tokenizer.eos_token_id][: length - len(prompt)]
        assert batch["input_ids"][0].tolist() == prompt + expected
        assert batch["rationale_labels"][0].tolist() == [-100] * len(prompt) + expected
        assert (tokenizer.eos_token_id in expected) == (length >= whole)
        # What is said to be cut is cut.
        (said,) = processor.rationale_lengths(["owl"], [text])
        assert said == whole


def test_a_prompt_that_leaves_nothing_for_the_rationale_is_refused(processor, tokenizer):
    short, long = (len(tokenizer.encode(f"This is a {name} because")) for name in ("owl", "polar bear"))
    processor = MeglProcessor(processor.image_processor, tokenizer, max_rationale_length=long)
    processor.check_prompts(["owl"])
    message = f"The prompt of the class 'polar bear' has {long} tokens, which leaves nothing .*_length={long}`"
    with pytest.raises(ValueError, match=message):
        processor.check_prompts(["owl", "polar bear"])
    with pytest.raises(ValueError, match=message):
        processor(label_names=["owl", "polar bear"], rationales=["it", "it"])
    with pytest.raises(ValueError, match="The prompt of the class 'xxx.* has 5.. tokens"):
        processor.check_prompts(["x" * 500])
    with pytest.raises(ValueError, match="`max_rationale_length` must be 1 or more, got 0"):
        MeglProcessor(processor.image_processor, tokenizer, max_rationale_length=0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Это {label}, потому что", "Это сова, потому что"),
        ("これは{label}です。なぜなら、", "これは сова です。なぜなら、"),
        ("Porque es un {label}", "Porque es un сова"),
        ("هذا {label} لأن", "هذا сова لأن"),
        ("{label}", "сова"),
        ('{"class": "{label}", "{}": {0}}', '{"class": "сова", "{}": {0}}'),
        ("{label}: a {label} because", "сова: a сова because"),
    ],
)
def test_prompts_of_any_language_and_with_braces(prompt, expected, processor, tokenizer):
    processor = MeglProcessor(processor.image_processor, tokenizer, rationale_prompt=prompt, max_rationale_length=200)
    expected = expected.replace("これは сова です", "これはсоваです")
    assert tokenizer.decode(processor.prompts(["сова"])["input_ids"][0]) == expected
    batch = processor(label_names=["сова"], rationales=["у неё круглые глаза"])
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == expected + " у неё круглые глаза"
    assert processor.batch_decode_rationales(batch["rationale_labels"]) == ["у неё круглые глаза"]


def test_a_class_named_like_the_place_holder_is_named_so(processor, tokenizer):
    processor = MeglProcessor(processor.image_processor, tokenizer, rationale_prompt="{label}, as")
    assert tokenizer.decode(processor.prompts(["{label} {0} {"])["input_ids"][0]) == "{label} {0} {, as"


def test_a_tokenizer_without_an_end_of_text_is_refused(processor):
    tokenizer = train_rationale_tokenizer(["it has whiskers"], vocab_size=300)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end-of-text token, which ends each rationale"):
        MeglProcessor(processor.image_processor, tokenizer)


def test_a_rationale_that_quotes_the_end_of_text_does_not_end_there(processor, tokenizer):
    batch = processor(label_names=["owl"], rationales=["<eos> is <pad>"])
    labels = batch["rationale_labels"][0]
    assert (labels == tokenizer.eos_token_id).sum() == 1 and labels[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in labels
    assert processor.batch_decode_rationales(batch["rationale_labels"]) == ["<eos> is <pad>"]


def test_prompts_are_padded_on_the_left(processor, tokenizer):
    batch = processor.prompts(["cat", "polar bear"])
    short, long = (tokenizer.encode(f"This is a {name} because") for name in ("cat", "polar bear"))
    rest = len(long) - len(short)
    assert rest > 0
    assert batch["input_ids"].tolist() == [[tokenizer.pad_token_id] * rest + short, long]
    assert batch["attention_mask"].tolist() == [[0] * rest + [1] * len(short), [1] * len(long)]


def test_training_rows_begin_with_the_prompt_of_generation(processor):
    batch = processor(label_names=["polar bear"], rationales=["a large white animal"])
    prompt = processor.prompts(["polar bear"])["input_ids"][0]
    assert torch.equal(batch["input_ids"][0, : len(prompt)], prompt)


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_of_text(processor):
    tokenizer = train_rationale_tokenizer(["it has whiskers"], vocab_size=300)
    tokenizer.pad_token = None
    processor = MeglProcessor(processor.image_processor, tokenizer)
    batch = processor(label_names=["a", "a long name"], rationales=["it", "it"])
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id
    assert batch["attention_mask"][0, -1] == 0 and batch["rationale_labels"][0, -1] == -100
    # The end of text that belongs to the rationale is learnt.
    assert (batch["rationale_labels"] == tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1]


def test_rationale_prompt_of_the_user(processor, tokenizer):
    processor = MeglProcessor(processor.image_processor, tokenizer, rationale_prompt="Why {label}?")
    assert tokenizer.decode(processor.prompts(["owl"])["input_ids"][0]) == "Why owl?"
    with pytest.raises(ValueError, match=r"`rationale_prompt` must contain '\{label\}', got 'Why\?'"):
        MeglProcessor(processor.image_processor, tokenizer, rationale_prompt="Why?")


CHAT = "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}<end>\n{% endfor %}"


@pytest.fixture()
def chat_tokenizer():
    tokenizer = train_rationale_tokenizer(["This is a polar bear because", "it has whiskers"], vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def test_prompt_and_rationale_in_a_chat_template_by_hand(processor, chat_tokenizer):
    turns = find_chat_turns(chat_tokenizer)
    assert turns == ["<user>", "<end>\n<assistant>", "<end>"]
    processor = MeglProcessor(processor.image_processor, chat_tokenizer, max_rationale_length=200, chat_turns=turns)
    end = chat_tokenizer.convert_tokens_to_ids("<end>")
    assert processor.end_token_id == end != chat_tokenizer.eos_token_id
    prompt = chat_tokenizer.encode("<user>This is a owl because<end>\n<assistant>")
    words = chat_tokenizer.encode("it has whiskers")
    batch = processor(label_names=["owl"], rationales=[" it has whiskers"])
    assert batch["input_ids"].tolist() == [[*prompt, *words, end]]
    assert batch["rationale_labels"].tolist() == [[-100] * len(prompt) + [*words, end]]
    assert processor.prompts(["owl"])["input_ids"].tolist() == [prompt]
    assert processor.rationale_lengths(["owl"], ["it has whiskers"]) == [len(prompt) + len(words) + 1]
    conversation = [
        {"role": "user", "content": "This is a owl because"},
        {"role": "assistant", "content": "it has whiskers"},
    ]
    whole = chat_tokenizer.apply_chat_template(conversation, return_dict=False)
    assert batch["input_ids"][0].tolist() == whole[: -len(chat_tokenizer.encode("\n"))]
    assert processor.batch_decode_rationales(batch["rationale_labels"]) == ["it has whiskers"]


def test_a_saved_chat_keeps_its_turns_and_an_older_processor_has_none(processor, chat_tokenizer, tmp_path):
    turns = find_chat_turns(chat_tokenizer)
    for folder, given in (("chat", turns), ("older", None)):
        MeglProcessor(processor.image_processor, chat_tokenizer, chat_turns=given).save_pretrained(tmp_path / folder)
    settings = json.loads((tmp_path / "older" / "processor_config.json").read_text())
    settings.pop("chat_turns", None)
    (tmp_path / "older" / "processor_config.json").write_text(json.dumps(settings))
    assert MeglProcessor.from_pretrained(tmp_path / "chat").chat_turns == turns
    older = MeglProcessor.from_pretrained(tmp_path / "older")
    expected = chat_tokenizer.encode("This is a owl because") + chat_tokenizer.encode(" it has whiskers")
    found = older(label_names=["owl"], rationales=["it has whiskers"])["input_ids"][0].tolist()
    assert older.chat_turns is None and found == [*expected, chat_tokenizer.eos_token_id]


def test_a_template_without_a_token_at_the_end_takes_the_end_of_text(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ messages[0]['content'] }} -> {{ messages[1]['content'] }}\n"
    assert find_chat_turns(chat_tokenizer) == ["", " -> ", "<eos>"]
    chat_tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: leave out `--chat_template`"):
        find_chat_turns(chat_tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Only for tools.') }}", "TemplateError: Only for tools."),
        ("{{ messages.append.__globals__ }}", "SecurityError: access to attribute 'append'"),
        ("{{ messages[0]['content'] }}", "ValueError: "),
        ("{% for turn in messages %}", "TemplateSyntaxError: "),
    ],
)
def test_chat_templates_that_cannot_be_used_are_refused_in_a_line(chat_tokenizer, template, reason):
    chat_tokenizer.chat_template = template
    with pytest.raises(ValueError, match="The chat template of the tokenizer cannot be used.*--chat_template") as info:
        find_chat_turns(chat_tokenizer)
    assert reason in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("turns", [["a", "b"], ["a", "b", "no token"], "abc", ["a", 1, "<end>"]])
def test_chat_turns_are_three_texts(processor, chat_tokenizer, turns):
    with pytest.raises(ValueError, match="`chat_turns` must be three texts, .* got "):
        MeglProcessor(processor.image_processor, chat_tokenizer, chat_turns=turns)


@pytest.mark.parametrize("rationale", ["", "  ", 7, ["it has whiskers"]])
def test_a_rationale_is_a_text(rationale, processor):
    with pytest.raises(ValueError, match="A rationale must be a text that is not blank, got "):
        processor(label_names=["cat"], rationales=[rationale])


def test_rationales_need_class_names(processor):
    message = "`rationales` need `label_names` of the same length: the prompt names the class"
    with pytest.raises(ValueError, match=message):
        processor(rationales=["it has whiskers"])
    with pytest.raises(ValueError, match=message):
        processor(label_names=["cat", "owl"], rationales=["it has whiskers"])


def test_nothing_given(processor):
    with pytest.raises(ValueError, match="Pass `images`, `rationales` with `label_names`, or both"):
        processor()
    with pytest.raises(ValueError, match=r"`images\[1\]` must be a `PIL.Image.Image`, got ndarray"):
        processor(images=[random_picture(8, 8), np.zeros((8, 8, 3))])


# ---- Made of pretrained parts, saved and reloaded ----


def test_image_processor_of_a_vision_model_loses_its_crop(tmp_path):
    source = ViTImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True, image_mean=MEAN,
        image_std=STD, resample=Image.Resampling.BICUBIC,
    )  # fmt: skip
    source.save_pretrained(tmp_path)
    loaded = load_image_processor(tmp_path)
    assert (loaded.size["height"], loaded.size["width"]) == (32, 32)
    assert not getattr(loaded, "do_center_crop", False)
    assert list(loaded.image_mean) == MEAN and list(loaded.image_std) == STD
    assert loaded.resample == Image.Resampling.BICUBIC


SIZE, EDGE, CROP = {"height": 40, "width": 40}, {"shortest_edge": 46}, {"height": 40, "width": 40}
CLIPPED = {"size": EDGE, "crop_size": CROP, "resample": Image.Resampling.BICUBIC}
# Image processors with their published peculiarities, all for 40 x 40 pixels: the class, its settings, and whether
# our own is of the same class. Others crop by what they call `size`, and nothing else sets them apart from ViT's.
IMAGE_PROCESSORS = {
    "vit": ("ViT", {"size": SIZE}, True),
    "vit_unnormalised": ("ViT", {"size": SIZE, "do_normalize": False}, True),
    "vit_rescaled": (
        "ViT",
        {"size": SIZE, "rescale_factor": 1 / 127.5, "image_mean": [1] * 3, "image_std": [1] * 3},
        True,
    ),
    "vit_of_bytes": (
        "ViT",
        {"size": SIZE, "do_rescale": False, "image_mean": [127.0] * 3, "image_std": [64.0] * 3},
        True,
    ),
    "deit": ("DeiT", {**CLIPPED, "size": {"height": 46, "width": 46}}, True),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 40}, "crop_pct": 0.875}, False),
    "convnext_raw": ("ConvNext", {"size": {"shortest_edge": 40}, "rescale_factor": 0.5, "do_normalize": False}, False),
    "efficientnet": ("EfficientNet", {"size": SIZE, "image_std": [0.48, 0.47, 0.46]}, True),
    "efficientnet_offset": ("EfficientNet", {"size": SIZE, "rescale_factor": 1 / 127.5, "rescale_offset": True}, True),
    "mobilevit": ("MobileViT", CLIPPED, True),
    "mobilevit_rgb": ("MobileViT", {**CLIPPED, "do_flip_channel_order": False}, True),
    "mobilenet_v2": ("MobileNetV2", CLIPPED, True),
    "beit": ("Beit", {**CLIPPED, "size": {"height": 46, "width": 46}, "do_center_crop": True}, True),
    "clip": ("CLIP", CLIPPED, True),
    "siglip": ("Siglip", {"size": SIZE}, True),
    "levit": ("Levit", {"size": {"shortest_edge": 40}, "crop_size": CROP}, True),
    "poolformer": ("PoolFormer", {"size": {"shortest_edge": 40}, "crop_size": CROP, "crop_pct": 0.9}, False),
    "bit": ("Bit", CLIPPED, True),
    "perceiver": ("Perceiver", {"size": SIZE, "crop_size": {"height": 46, "width": 46}}, True),
    "pvt": ("Pvt", {"size": SIZE}, True),
    "segformer": ("Segformer", {"size": SIZE}, True),
    "textnet": ("TextNet", {"size": {"shortest_edge": 64}}, False),
    "donut": ("Donut", {"size": SIZE}, False),
}


def class_name(image_processor):
    """Of either backend: Pillow's is what there is without torchvision."""
    return type(image_processor).__name__.removesuffix("Pil")


@pytest.mark.parametrize("kind", list(IMAGE_PROCESSORS))
def test_an_image_processor_makes_the_pixels_that_the_model_was_trained_on(kind, tokenizer, tmp_path):
    name, settings, same_class = IMAGE_PROCESSORS[kind]
    try:
        source = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    except ImportError:  # of Transformers before 5.22
        pytest.skip(f"{name}'s image processor needs torchvision here")
    source.save_pretrained(tmp_path / "vision")
    MeglProcessor(load_image_processor(tmp_path / "vision"), tokenizer).save_pretrained(tmp_path / "megl")
    processor = MeglProcessor.from_pretrained(tmp_path / "megl")
    assert (class_name(processor.image_processor) == f"{name}ImageProcessor") == same_class
    side = 64 if kind == "textnet" else 40
    assert (processor.image_processor.size["height"], processor.image_processor.size["width"]) == (side, side)

    picture = random_picture(side, side)
    expected = source([picture], do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    found = processor(images=picture)["pixel_values"]
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    if kind in ("efficientnet", "mobilevit", "vit_rescaled", "vit_of_bytes", "efficientnet_offset"):
        plain = make_image_processor((40, 40), source.image_mean, source.image_std)
        assert (plain([picture], return_tensors="pt")["pixel_values"] - expected).abs().max() > 0.1

    # The whole of a picture that is larger, and its mask with it, whatever happens to colours.
    corner = np.zeros((2 * side, 3 * side), dtype=np.uint8)
    corner[:8, -8:] = 255
    corner = Image.fromarray(corner)
    batch = processor(images=[corner], visual_explanations=[corner])
    (mask,) = batch["visual_explanations"]
    assert (
        mask.shape == (side, side) and mask[0, -1] == 1 and mask[side // 2 :].max() == mask[:, : side // 2].max() == 0
    )
    black, white = (processor(images=Image.new("RGB", (5, 5), c))["pixel_values"] for c in ("black", "white"))
    masks = (batch["pixel_values"] - black) / (white - black)
    torch.testing.assert_close(masks.clamp(0, 1)[0], mask.expand(3, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "Siglip2",
            {},
            r"Siglip2ImageProcessor(Pil)?, makes no `pixel_values` of shape \(1, 3, height, width\) of a picture",
        ),
        ("ImageGPT", {}, r"ImageGPTImageProcessor(Pil)?, makes no `pixel_values` of shape \(1, 3, height, width\)"),
        ("GLPN", {}, r"makes pictures of several sizes: of 320 x 320 pixels \(320, 320\), of 640 x 640 \(640, 640\)"),
        ("ViT", {"do_resize": False}, "makes pictures of several sizes: .*. Give it `do_resize` and a `size`"),
    ],
)
def test_an_image_processor_without_one_size_is_refused(name, settings, message, tmp_path):
    getattr(transformers, f"{name}ImageProcessorPil")(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_image_processor(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


class LikeTimm:
    """What timm's image processor has: a configuration of its own, and no options."""

    def __init__(self, mean):
        self.data_config = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
        settings = {"image_mean": mean, "image_std": [0.2, 0.3, 0.4]}
        self.transforms = CLIPImageProcessorPil(size={"shortest_edge": 46}, crop_size=SIZE, **settings)

    def __call__(self, images, return_tensors):
        return self.transforms(images, return_tensors=return_tensors)


def test_timm_s_image_processors_become_plain_ones(monkeypatch):
    source = LikeTimm([0.4, 0.5, 0.6])
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *args, **kwargs: source)
    processor = load_image_processor("timm/model")
    assert processor.resample == Image.Resampling.BICUBIC and processor.size["height"] == 40
    picture = random_picture(40, 40)
    expected = source.transforms([picture], do_resize=False, do_center_crop=False, return_tensors="pt")
    found = processor([picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected["pixel_values"].float())
    source = LikeTimm([0.4, 0.5, 0.5])  # whose configuration is not what it does
    with pytest.raises(ValueError, match="The image processor of timm/model, LikeTimm, cannot resize a whole picture"):
        load_image_processor("timm/model")


OWN_CODE = """
from transformers import ViTImageProcessorPil

class OwnImageProcessor(ViTImageProcessorPil):
    def normalize(self, image, mean, std, **kwargs):
        return {normalize}
"""


@pytest.mark.parametrize("as_usual", [True, False])
def test_an_image_processor_with_code_of_its_own(as_usual, tmp_path, modules_cache):
    normalize = "super().normalize(image, mean, std)" if as_usual else "image ** 2"
    (tmp_path / "own.py").write_text(OWN_CODE.format(normalize=normalize))
    ViTImageProcessorPil(size=SIZE).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    auto_map = {"AutoImageProcessor": "own.OwnImageProcessor"}
    path.write_text(json.dumps({**settings, "image_processor_type": "OwnImageProcessor", "auto_map": auto_map}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_image_processor(tmp_path, trust_remote_code=False)
    if as_usual:  # which needs none of that code
        assert class_name(load_image_processor(tmp_path, trust_remote_code=True)) == "ViTImageProcessor"
    else:
        with pytest.raises(ValueError, match="OwnImageProcessor, cannot resize a whole picture to 40 x 40 pixels and"):
            load_image_processor(tmp_path, trust_remote_code=True)


def test_vision_models_that_need_another_package_are_refused(tmp_path):
    save_file({}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoConfig.for_model("dinat").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a package that is not installed: .* requires the natten") as caught:
        MeglForImageClassification.from_vision_text_pretrained(str(tmp_path), {"model_type": "llama"}, ["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_size_that_the_vision_model_does_not_take_is_refused_when_composing(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(tmp_path)
    text = {**TEXT_PRESETS["llama-tiny"], "vocab_size": 64}
    for side, fits in ((32, True), (48, False)):
        ViTImageProcessorPil(size={"height": side, "width": side}).save_pretrained(tmp_path)
        if fits:
            MeglForImageClassification.from_vision_text_pretrained(str(tmp_path), text, ["a", "b"])
            continue
        with pytest.raises(ValueError, match=r"\(batch_size, 3, 48, 48\): Input image size \(48\*48\) doesn't match"):
            MeglForImageClassification.from_vision_text_pretrained(str(tmp_path), text, ["a", "b"])


def test_gguf_paths():
    assert split_gguf("models/small.gguf") == ("models", {"gguf_file": "small.gguf"})
    assert split_gguf("owner/name") == ("owner/name", {})


def test_tokenizer_is_lossless_and_deterministic():
    texts = ["an owl", "an owl at night", "naïve café"]
    first, second = (train_rationale_tokenizer(texts, vocab_size=300) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert len(first) <= 300
    for text in [*texts, "Unseen: 漢字 ~"]:
        assert first.decode(first.encode(text)) == text
    assert (first.pad_token, first.eos_token) == ("<pad>", "<eos>")


def test_settings_for_a_language_model(processor, tokenizer):
    assert processor.text_config_kwargs() == {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def test_saved_processor_is_loaded_as_it_was(processor, make_config, tmp_path, modules_cache, caplog):
    processor = MeglProcessor(
        processor.image_processor, processor.tokenizer, rationale_prompt="A {label}, as", max_rationale_length=17
    )
    folder = tmp_path / "saved"
    processor.save_pretrained(folder)
    make_config("megl-vit-tiny").save_pretrained(folder)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        direct = MeglProcessor.from_pretrained(folder)
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []

    automatic = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(automatic).__module__.startswith("transformers_modules.")
    inputs = {
        "images": [random_picture(50, 70)],
        "visual_explanations": [random_mask(50, 70)],
        "label_names": ["owl"],
        "rationales": ["two round eyes look out of the feathers, and more than seventeen tokens of it"],
    }
    expected = processor(**inputs)
    for loaded in (direct, automatic):
        assert (loaded.rationale_prompt, loaded.max_rationale_length) == ("A {label}, as", 17)
        for name, value in expected.items():
            assert torch.equal(loaded(**inputs)[name], value), name
        for name, value in processor.prompts(["owl", "polar bear"]).items():
            assert torch.equal(loaded.prompts(["owl", "polar bear"])[name], value), name
        assert loaded.text_config_kwargs() == processor.text_config_kwargs()
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoProcessor.from_pretrained(folder, trust_remote_code=False)
