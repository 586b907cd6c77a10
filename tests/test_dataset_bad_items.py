"""Tests of bad items: each is named, and skipped if asked; and of unusual ones that are good."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections import Counter
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from dataset_sources import (
    GRID,
    REPOSITORY,
    build_release,
    leftovers,
    make_act_x,
    make_image_folder,
    make_release,
    write_json,
)
from datasets import Image, load_dataset
from PIL import Image as PILImage

from dataset_builders import ActionMe, build_dataset
from dataset_builders.items import BYTE_ORDER_MARK, read_picture
from dataset_builders.release import Release


pytestmark = pytest.mark.usefixtures("own_cache")

MAP, NPZ, PNG, TIFF = ({"visual_exp": f"visual_exp/b.{kind}"} for kind in ("npy", "npz", "png", "tiff"))
BINARY = PILImage.fromarray((GRID > 100).astype(np.uint8))


def save(name, array):
    return lambda root: np.save(root / name, array)


def write(name, content):
    return lambda root: (root / name).write_bytes(content)


def truncate(name, number):
    def change(root):
        (root / name).write_bytes((root / name).read_bytes()[:number])

    return change


def link_out(name):
    def change(root):
        target = root.parent / "source_elsewhere"
        target.write_bytes(b"secret")
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)

    return change


def truncated_map(root):
    np.save(root / "visual_exp" / "b.npy", GRID / 255)
    truncate("visual_exp/b.npy", 200)(root)


def pickled_map(root):
    np.save(root / "visual_exp" / "b.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def archive_map(root):
    with open(root / "visual_exp" / "b.npy", "wb") as file:
        np.savez(file, map=GRID, other=GRID)


def nan_map(root):
    values = GRID / 255
    values[2, 3] = np.nan
    np.save(root / "visual_exp" / "b.npy", values)


def spoil_header(root):
    """Another length of the first table: Pillow opens the file and fails when it decodes."""
    path = root / "images" / "b.jpg"
    content = path.read_bytes()
    table = content.index(b"\xff\xc4")
    path.write_bytes(content[: table + 5] + b"\xff" * 8 + content[table + 13 :])


def spoil_png(root):
    picture("PNG")(root)
    path = root / "images" / "b.jpg"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    path.write_bytes(content)


def picture(format, mode="RGB", frames=1):
    def change(root):
        images = [PILImage.new(mode, (40, 30), index) for index in range(frames)]
        images[0].save(root / "images" / "b.jpg", format=format, append_images=images[1:], save_all=frames > 1)

    return change


def huge_png(width, height, name="images/b.jpg"):
    """The header of a PNG is enough: it must be refused before anything is decoded."""

    def change(root):
        stream = io.BytesIO()
        PILImage.new("1", (1, 1)).save(stream, format="PNG")
        content = bytearray(stream.getvalue())
        content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        (root / name).write_bytes(content)

    return change


huge_map_png = huge_png(12_000, 12_000, "visual_exp/b.png")


def claim(format, width, height):
    """A picture of 8 x 8 whose header claims another size; its memory must not be asked for."""

    def jpeg(content):
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)

    def webp(content):
        place = content.index(b"VP8L") + 9
        bits = int.from_bytes(content[place : place + 4], "little") >> 28 << 28
        content[place : place + 4] = (bits | height - 1 << 14 | width - 1).to_bytes(4, "little")

    def tiff(content):
        for tag, value in ((256, width), (257, height)):
            place = min(content.find(struct.pack("<HHI", tag, kind, 1)) % len(content) for kind in (3, 4))
            content[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)

    def gif(content):
        content[6:10] = struct.pack("<HH", width, height)

    def change(root):
        stream = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        PILImage.new("P" if format == "GIF" else "RGB", (8, 8)).save(stream, format=format, **options)
        content = bytearray(stream.getvalue())
        {"JPEG": jpeg, "WEBP": webp, "TIFF": tiff, "GIF": gif}[format](content)
        (root / "images" / "b.jpg").write_bytes(content)

    return change


def map_picture(image, name="b.png", **options):
    return lambda root: image.save(root / "visual_exp" / name, **options)


def npy_header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def map_bomb(root):
    """An archive of some hundred kilobytes that holds 120 million values."""
    with ZipFile(root / "visual_exp" / "b.npz", "w", ZIP_DEFLATED) as archive:
        with archive.open("map.npy", "w") as file:
            file.write(npy_header((10_000, 12_000), "|u1"))
            for _ in range(120):
                file.write(bytes(1_000_000))


def deep_map_picture(root):
    PILImage.fromarray(np.full((30, 40), 70_000, dtype=np.int32)).save(root / "visual_exp" / "b.tiff")


def link_folder_out(root):
    """The item's folder is a link to one outside, which has the picture."""
    outside = root.parent / "source_elsewhere"
    outside.mkdir()
    (root / "images" / "b.jpg").rename(outside / "b.jpg")
    (root / "images" / "more").symlink_to(outside)
    annotation = root / "exp_annotation.json"
    annotation.write_text(annotation.read_text().replace("images/b.jpg", "images/more/b.jpg"))


def nest_rationale(root):
    annotation = root / "exp_annotation.json"
    annotation.write_text(annotation.read_text().replace('"It is b."', "[" * 5000 + "]" * 5000))


BAD_ITEMS = {
    "image_cut": ({}, truncate("images/b.jpg", 300), "`image_path` to be a whole picture, got b.jpg"),
    "image_empty": ({}, write("images/b.jpg", b""), "which does not decode"),
    "image_is_text": ({}, write("images/b.jpg", b"not a picture"), "which does not decode"),
    "image_missing": ({"image_path": "images/x.jpg"}, None, "no file 'images/x.jpg'"),
    "image_absolute": ({"image_path": "/etc/hostname"}, None, "`image_path` .* got '/etc/hostname'. Absolute"),
    "image_above": ({"image_path": "images/../../b.jpg"}, None, "Absolute paths and `..` are refused"),
    "image_link": ({}, link_out("images/b.jpg"), "a symbolic link out of it"),
    "image_no_text": ({"image_path": 3}, None, "inside the source folder, got 3"),
    "image_zero_byte_name": ({"image_path": "a\0b"}, None, r"no file 'a\\x00b'"),
    "image_half": ({}, lambda root: truncate("images/b.jpg", 500)(root), "b.jpg, which does not decode"),
    "image_without_header": ({}, spoil_header, "b.jpg, which does not decode"),
    "image_png_changed": ({}, spoil_png, "b.jpg, which does not decode"),
    "image_animated": ({}, picture("GIF", frames=3), "to be a still picture, got b.jpg with 3 frames"),
    "image_16_bit": ({}, picture("PNG", mode="I;16"), "8 bits a channel, got b.jpg of mode I;16.*clip it to white"),
    "image_bomb": ({}, huge_png(20_000, 20_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_half_a_bomb": ({}, huge_png(10_000, 10_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_jpeg_bomb": ({}, claim("JPEG", 30_000, 30_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_webp_bomb": ({}, claim("WEBP", 16_000, 16_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_tiff_bomb": ({}, claim("TIFF", 30_000, 30_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_gif_bomb": ({}, claim("GIF", 30_000, 30_000), "at most 89,478,485 pixels, got b.jpg"),
    "image_huge_file": ({}, lambda root: os.truncate(root / "images" / "b.jpg", 10**12), "b.jpg of 1,000,000,000,000"),
    "image_folder": ({"image_path": "images"}, None, "no file 'images'"),
    "image_link_chain": ({}, link_folder_out, "a symbolic link out of it"),
    "map_missing": (MAP, None, "the file that `visual_exp` names, got no file 'visual_exp/b.npy'"),
    "map_absolute": ({"visual_exp": "/elsewhere/b.npy"}, None, "`visual_exp` .* Absolute"),
    "map_above": ({"visual_exp": "../b.npy"}, None, "Absolute paths and `..` are refused"),
    "map_link": (MAP, link_out("visual_exp/b.npy"), "a symbolic link out of it"),
    "map_aspect": (MAP, save("visual_exp/b.npy", GRID.T), r"aspect ratio \(40 x 30 pixels\), got b.npy of 6 x 8"),
    "map_nan": (MAP, nan_map, "NaN or infinite"),
    "map_negative": (MAP, save("visual_exp/b.npy", GRID / 255 - 0.1), "in 0..1, got b.npy with values from -0.1"),
    "map_above_one": (MAP, save("visual_exp/b.npy", GRID / 100), "float64 in 0..1, got .* to 2.35. Rescale"),
    "map_above_255": (MAP, save("visual_exp/b.npy", GRID.astype(int) * 2), "int64 in 0..255"),
    "map_zero": (MAP, save("visual_exp/b.npy", GRID * 0.0), "all zero. Give null"),
    "map_zero_one": (MAP, save("visual_exp/b.npy", (GRID > 9).astype(int)), "Multiply it by 255"),
    "map_class_numbers": (
        MAP,
        save("visual_exp/b.npy", GRID // 16),
        "16 of 255 .*b.npy with at most 14 of 255, which",
    ),
    "map_two": (
        MAP,
        save("visual_exp/b.npy", (GRID > 9).astype(int) * 2),
        "at most 2 of 255, .* almost black. Scale it",
    ),
    "map_deep_class_numbers": (MAP, save("visual_exp/b.npy", GRID.astype(np.uint16) * 17), "at most 15.5 of 255"),
    "map_picture_class_numbers": (PNG, map_picture(PILImage.fromarray(GRID // 16)), "at most 14 of 255"),
    "map_colour_class_numbers": (PNG, map_picture(PILImage.fromarray(GRID // 16).convert("RGB")), "at most 14 of 255"),
    "map_shape": (MAP, save("visual_exp/b.npy", np.ones((2, 2, 6, 8))), r"of shape \(2, 2, 6, 8\)"),
    "map_text": (MAP, save("visual_exp/b.npy", np.full((6, 8), "x")), "of type <U1"),
    "map_pickled": (MAP, pickled_map, "Pickled content is never loaded"),
    "map_bare_pickle": (MAP, write("visual_exp/b.npy", pickle.dumps(GRID)), "Pickled content is never loaded"),
    "map_cut": (MAP, truncated_map, "a whole .npy file of plain numbers.*, got b.npy"),
    "map_empty": (MAP, write("visual_exp/b.npy", b""), "a whole .npy file of plain numbers.*, got b.npy"),
    "map_archive": (MAP, archive_map, "a whole .npy file of plain numbers.* got b.npy: too many values"),
    "map_claims_terabytes": (MAP, write("visual_exp/b.npy", npy_header((10**6, 10**6))), "above the limit of 89,478"),
    "map_claims_text": (MAP, write("visual_exp/b.npy", npy_header((6, 8), "<U90000000")), "above the limit of 89,478"),
    "map_archive_bomb": (
        NPZ,
        map_bomb,
        r"b.npz: shape \(10000, 12000\) of uint8, above the limit of 89,478,485 values",
    ),
    "map_picture_bomb": (PNG, huge_map_png, r"b.png, which does not decode \(Image size \(144000000 pixels\) exceeds"),
    "map_frames": (TIFF, map_picture(BINARY, "b.tiff", save_all=True, append_images=[BINARY]), "it has 2 frames"),
    "map_32_bit": (TIFF, deep_map_picture, "values from 70000 to 70000 instead of 0..65535"),
    "map_picture_zero_one": (PNG, map_picture(BINARY), "with 0 and 1 only, .* Multiply it by 255"),
    "map_colour_zero_one": (PNG, map_picture(BINARY.convert("RGB")), "with 0 and 1 only"),
    "map_palette_zero_one": (PNG, map_picture(BINARY.convert("P")), "with 0 and 1 only"),
    "map_alpha_zero_one": (
        PNG,
        map_picture(PILImage.merge("LA", [PILImage.new("L", BINARY.size, 255), BINARY])),
        "with 0 and 1 only",
    ),
    "map_deep_zero_one": (PNG, map_picture(PILImage.fromarray(np.asarray(BINARY).astype(np.uint16))), "0 and 1 only"),
    "class_unknown": ({"class_id": 7}, None, r"label_class_id_mapping.json, got 7. Its ids are \[2, 5, 9\]"),
    "class_text": ({"class_id": "2"}, None, "got '2'"),
    "class_disagrees": ({"ans": "cat"}, None, "`ans` to be 'dog', the class of `class_id` 2, got 'cat'"),
    "class_no_name": ({"ans": None}, None, "got None. Correct one"),
    "rationales_text": ({"exp": "It is b."}, None, "`exp` to be a list of rationales, got 'It is b.'"),
    "rationales_object": ({"exp": {}}, None, "`exp` to be a list of rationales, got {}. Write a list, empty if there"),
    "rationale_blank": ({"exp": ["It is b.", " \n"]}, None, "every rationale to be text"),
    "rationale_long": ({"exp": ["long " * 3000]}, None, r"at most 10,000 characters, got 'long lo.*long ' of 15,000"),
    "rationale_list": ({"exp": [["It is b."]]}, None, "every rationale to be text"),
    "rationale_deep": ({}, nest_rationale, "every rationale to be text, got .{,200}$"),
    "rationale_number": ({"exp": [4]}, None, "every rationale to be text, got 4"),
    "split_unknown": ({"split": "val"}, None, r"\['train', 'validation', 'test'\], got 'val'"),
    "group_number": ({"group": 1}, None, "`group` to be a name, got 1"),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_bad_item_is_named_and_nothing_is_left(tmp_path, name):
    changes, spoil, message = BAD_ITEMS[name]
    root = make_release(tmp_path / "source", **changes)
    if spoil is not None:
        spoil(root)
    with pytest.raises(ValueError, match=message) as caught:
        build_release(root, tmp_path / "out")
    assert str(caught.value).startswith(f"{root / 'exp_annotation.json'}: item 'b': expected ")
    assert [name for name in leftovers(tmp_path) if name != "source_elsewhere"] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("exp_annotation.json", None, "exp_annotation.json: expected a JSON file, got no such file"),
        ("label_class_id_mapping.json", None, "label_class_id_mapping.json: expected a JSON file, got no such file"),
        ("exp_annotation.json", "[]", r"expected a JSON object in UTF-8, got text that begins with b'\['"),
        ("exp_annotation.json", "{}", "expected at least one item"),
        ("exp_annotation.json", "{", "a JSON object in UTF-8"),
        ("exp_annotation.json", "", "a JSON object in UTF-8, got an empty file"),
        ("exp_annotation.json", '{"a": NaN}', "a JSON object in UTF-8"),
        ("exp_annotation.json", '{"a": {}} {}', "expected "),
        ("label_class_id_mapping.json", '{"cat": 1, "cat": 2}', "every key once, got the key 'cat' twice"),
        ("exp_annotation.json", '{"a": 3}', "item 'a': expected a JSON object, got 3"),
        ("label_class_id_mapping.json", "[]", r"expected a JSON object in UTF-8, got text that begins with b'\['"),
        ("label_class_id_mapping.json", '{"cat": "5"}', "whole numbers"),
        ("label_class_id_mapping.json", '{"cat": 1, "dog": 1}', "a class id of its own"),
    ],
)
def test_bad_release_files(tmp_path, name, content, message):
    root = make_release(tmp_path / "source")
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        build_release(root, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_annotation_in_another_encoding(tmp_path):
    root = make_release(tmp_path / "source")
    text = (root / "exp_annotation.json").read_text()
    (root / "exp_annotation.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [key for key, *_ in Release(root).raw_items()] == ["a", "b", "c", "d"]
    (root / "exp_annotation.json").write_bytes(text.replace("It is a", "C'est très a").encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        build_release(root, tmp_path / "out")


def test_no_such_source(tmp_path):
    with pytest.raises(ValueError, match="expected a source folder or the word `sample`"):
        build_release(tmp_path / "nowhere", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_duplicate_ids(tmp_path):
    root = make_release(tmp_path / "source")
    annotation = root / "exp_annotation.json"
    annotation.write_text(annotation.read_text().replace('"c": {', '"b": {'))
    with pytest.raises(ValueError, match="item 'b': expected an id of its own, got 'b', which occurs twice"):
        build_release(root, tmp_path / "out")
    root = make_image_folder(tmp_path / "own", id="a.jpg")
    with pytest.raises(ValueError, match=r"line 2 \('b.jpg'\): expected an id of its own, got 'a.jpg'"):
        build_release(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 2: expected a JSON object in UTF-8"),
        (b"[1]", r"line 2: expected a JSON object, got \[1\]"),
        ('{"label": "h\u00e4user"}'.encode("latin-1"), "line 2: expected a JSON object in UTF-8"),
        (b"[" * 100_000, "line 2: expected a JSON object in UTF-8"),
        (b'{"file_name": 3}', "line 2: expected `file_name` to be a name, got 3"),
        (b'{"file_name": "b.jpg", "label": ""}', r"line 2 \('b.jpg'\): expected `label` to be a name, got ''"),
        (
            b'{"file_name": "b.jpg", "label": "x", "textual_explanations": [" "]}',
            r"line 2 \('b.jpg'\): expected every",
        ),
        (
            b'{"file_name": "b.jpg", "label": "\\ud800"}',
            r"line 2 \('b.jpg'\): expected `label` to be text, got half a",
        ),
        (b'{"file_name": "\\udce4.jpg"}', "line 2: expected `file_name` to be text, got half a character"),
        (b'{"file_name": "b.jpg", "label": "x", "group": "\\ud800"}', "expected `group` to be text, got half a"),
        (
            b'{"file_name": "b.jpg", "label": "x", "textual_explanations": ["\\ud800"]}',
            "every rationale to be text, got half a character",
        ),
        (b'{"file_name": "b.jpg", "label": 1, "textual_explanations": ["x"]}', "`label` to be a name, got 1"),
        (b'{"file_name": "b.jpg", "split": "dev"}', "`split` to be one of"),
        (b'{"file_name": "b.jpg", "visual_explanation_file_name": 1}', "`visual_explanation_file_name` to be a name"),
        (b'{"file_name": "/b.jpg", "label": "x", "textual_explanations": ["x"]}', "Absolute paths and `..` are"),
    ],
)
def test_bad_lines_of_an_image_folder(tmp_path, content, message):
    root = make_image_folder(tmp_path / "own")
    lines = (root / "metadata.jsonl").read_bytes().splitlines()
    (root / "metadata.jsonl").write_bytes(BYTE_ORDER_MARK + b"\n".join([lines[0], content, b"", *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        build_release(root, tmp_path / "out")
    counts = build_release(root, tmp_path / "out", on_error="skip")
    assert counts == {"train": {"cat": (2, 0, 2), "dog": (1, 0, 1)}}


@pytest.mark.parametrize(
    ("split", "raw", "message"),
    [
        ("train", {"iid": "0001", "ans": "rowing", "exp": 3}, "item 'k': expected `exp` to be a list of rationales"),
        ("val", {"iid": 1, "ans": "rowing", "exp": ["x"]}, "item 'k': expected `iid` to be a name, got 1"),
        ("val", {"iid": "../0001", "ans": "rowing", "exp": ["x"]}, "Absolute paths and `..` are refused"),
        ("test", {"iid": "0001", "ans": " ", "exp": ["x"]}, "`ans` to be a name, got ' '"),
        ("test", ["0001"], r"item 'k': expected a JSON object, got \['0001'\]"),
    ],
)
def test_bad_items_of_act_x(tmp_path, split, raw, message):
    root = make_act_x(tmp_path / "ACT-X")
    path = root / "textual" / f"exp_{split}_split.json"
    write_json(path, {**json.loads(path.read_text()), "k": raw})
    with pytest.raises(ValueError, match=message) as caught:
        build_dataset(ActionMe, root, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    build_dataset(ActionMe, root, tmp_path / "out", on_error="skip")
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    name = {"train": "train", "val": "validation", "test": "test"}[split]
    assert json.loads(line) == {"id": "k", "split": name, "reason": str(caught.value)}


def test_lines_that_never_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_builders.image_folder.LONGEST_LINE", 1000)
    root = make_image_folder(tmp_path / "own")
    with open(root / "metadata.jsonl", "ab") as file:
        file.write(b"{" + b" " * 5000)
    with pytest.raises(ValueError, match="line 5: expected lines of less than 1,000 bytes, got a longer one"):
        build_release(root, tmp_path / "out", on_error="skip")


def test_brackets_that_nest_without_end(tmp_path):
    """ijson would need 25 GB for the 200 kB of this file."""
    root = make_release(tmp_path / "source")
    annotation = root / "exp_annotation.json"
    annotation.write_text(annotation.read_text().replace('"It is b."', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(
        ValueError, match="a JSON object in UTF-8, got text that is not: brackets more than 6,000 deep"
    ):
        build_release(root, tmp_path / "out")


# Unusual, but good


@pytest.mark.parametrize(
    ("format", "mode", "size", "options"),
    [
        ("JPEG", "CMYK", (40, 30), {}),
        ("JPEG", "L", (40, 30), {}),
        ("JPEG", "RGB", (40, 30), {"progressive": True}),
        ("JPEG", "RGB", (40, 30), {"restart_marker_rows": 1}),
        ("PNG", "P", (40, 30), {"transparency": 0}),
        ("PNG", "RGBA", (40, 30), {}),
        ("PNG", "1", (40, 30), {}),
        ("GIF", "P", (40, 30), {}),
        ("WEBP", "RGB", (40, 30), {}),
        ("BMP", "RGB", (40, 30), {}),
        ("TIFF", "RGB", (40, 30), {}),
        ("PNG", "RGB", (1, 1), {}),
        ("JPEG", "RGB", (20_000, 20), {}),
    ],
)
def test_pictures_of_any_kind_keep_their_bytes(tmp_path, format, mode, size, options):
    root = make_release(tmp_path / "source", visual_exp="visual_exp/b.npy")
    PILImage.new(mode, size).save(root / "images" / "b.jpg", format=format, **options)
    np.save(root / "visual_exp" / "b.npy", np.full(size[::-1], 0.2))
    build_release(root, tmp_path / "out")
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert rows[1]["image"].size == rows[1]["visual_explanation"].size == size
    assert rows[1]["image"].convert("RGB").getpixel((0, 0)) in ((0, 0, 0), (255, 255, 255))
    raw = rows.cast_column("image", Image(decode=False))[1]["image"]["bytes"]
    assert raw == (root / "images" / "b.jpg").read_bytes()


def test_what_is_taken_without_decoding_decodes(tmp_path):
    """JPEGs are checked by header and markers: on damaged ones that must tell the same as decoding all of them."""
    rng = np.random.default_rng(0)
    scene = PILImage.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((160, 120))
    kinds = []
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 2}, {"optimize": True}):
        stream = io.BytesIO()
        scene.save(stream, format="JPEG", **options)
        kinds.append(stream.getvalue())
    outcomes = Counter()
    for number in range(1200):
        content = bytearray(kinds[number % 4])
        first, second = sorted(rng.integers(0, len(content), 2))
        if number % 3 == 0:
            content[first] = rng.integers(256)
        elif number % 3 == 1:
            del content[first:second]
        else:
            del content[second:]
        path = tmp_path / "damaged.jpg"
        path.write_bytes(content)
        try:
            with PILImage.open(path) as image:
                image.load()
            decodes = True
        except Exception:
            decodes = False
        try:
            read_picture(path, "here", "image")
            taken = True
        except ValueError:
            taken = False
        outcomes[decodes, taken] += 1
    assert outcomes[True, False] == outcomes[False, True] == 0, outcomes
    assert min(outcomes[True, True], outcomes[False, False]) > 100


# Skipping


def test_bad_items_are_skipped_and_told(tmp_path):
    root = make_release(tmp_path / "source", number=8, ans="zebra")
    (root / "images" / "d.jpg").write_bytes(b"")
    (root / "images" / "f.jpg").write_bytes(b"text")
    with pytest.raises(ValueError, match="item 'b'"):
        build_release(root, tmp_path / "out")
    counts = build_release(root, tmp_path / "out", on_error="skip")
    assert counts == {"train": {"dog": (1, 0, 2), "cat": (4, 0, 8), "owl": (0, 0, 0)}}
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert list(rows["id"]) == ["a", "c", "e", "g", "h"]
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(item["id"], item["split"]) for item in skipped] == [("b", None), ("d", "train"), ("f", "train")]
    assert "`ans` to be 'dog'" in skipped[0]["reason"] and "d.jpg, which does not decode" in skipped[1]["reason"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Bad items that were skipped: 3 (1 of no split yet, 2 of train)" in text
    with pytest.raises(ValueError, match="expected `on_error` to be 'stop' or 'skip', got 'ignore'"):
        build_release(root, tmp_path / "out", on_error="ignore", overwrite=True)


@pytest.mark.parametrize("factor", [1, 257])
def test_integer_maps_just_above_what_is_almost_black(tmp_path, factor):
    root = make_release(tmp_path / "source", **MAP)
    values = (GRID > 100).astype(np.uint16) * 16 * factor
    np.save(root / "visual_exp" / "b.npy", values)
    build_release(root, tmp_path / "out")
    explanation = load_dataset(str(tmp_path / "out"), split="train")[1]["visual_explanation"]
    np.testing.assert_array_equal(np.asarray(explanation), values // factor)


def test_faint_maps_of_floats_are_taken(tmp_path):
    root = make_release(tmp_path / "source", **MAP)
    np.save(root / "visual_exp" / "b.npy", GRID / 255 / 100)
    build_release(root, tmp_path / "out")
    explanation = load_dataset(str(tmp_path / "out"), split="train")[1]["visual_explanation"]
    np.testing.assert_allclose(np.asarray(explanation) / 65535, GRID / 25500, atol=1e-5)


@pytest.mark.parametrize(("key", "meant"), [("visual_explanation", "visual_exp"), ("rationales", "exp")])
def test_misspelt_keys_of_the_release(tmp_path, key, meant):
    root = make_release(tmp_path / "source")
    annotation = root / "exp_annotation.json"
    items = json.loads(annotation.read_text())
    del items["b"][meant]
    items["b"][key] = ["It is b."]
    annotation.write_text(json.dumps(items))
    with pytest.raises(ValueError, match=f"item 'b': expected keys among .*, got '{key}'. Did you mean `{meant}`"):
        build_release(root, tmp_path / "out")


def test_skipped_items_are_readable_in_any_script(tmp_path):
    root = make_image_folder(tmp_path / "source", file_name="V\u00f6gel_\u732b.jpg")
    build_release(root, tmp_path / "out", on_error="skip")
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert "no file 'V\u00f6gel_\u732b.jpg'" in line and "\\u" not in line
    assert json.loads(line)["id"] == "metadata.jsonl:2"
    source = Release(make_release(tmp_path / "release"))
    refusal = {"id": "b", "split": None, "reason": "no text: " + os.fsdecode(b"V\xf6gel")}
    source.note([refusal])
    assert json.loads(source.skip_log.read_text(encoding="utf-8")) == refusal


def test_nothing_is_built_of_bad_items_alone(tmp_path):
    root = make_release(tmp_path / "source", number=2, ans="zebra")
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="at least one item, got 2 bad items and 0 that the selection leaves out"):
        build_release(root, tmp_path / "out", on_error="skip")
    root = make_release(tmp_path / "other" / "source", number=1)
    (root / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="at least one good item, got 1 bad ones"):
        build_release(root, tmp_path / "out", on_error="skip")
    assert leftovers(tmp_path) == ["other"]


def test_huge_json_is_not_held_in_memory(tmp_path):
    """60 MB of annotation; the peak of a process that goes through them stays within some of that."""
    path = tmp_path / "huge.json"
    with open(path, "w") as file:
        file.write("{")
        for number in range(60_000):
            file.write(("," if number else "") + json.dumps(str(number)) + ":" + json.dumps({"exp": ["x" * 980]}))
        file.write("}")
    # `ru_maxrss` would begin with the peak of the process that runs this test.
    code = (
        "import re, sys; from pathlib import Path; from dataset_builders.items import stream_json\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "print(sum(1 for _ in stream_json(Path(sys.argv[1]))))\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(path)]
    number, growth = subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True).stdout.split()
    assert path.stat().st_size > 59_000_000
    assert int(number) == 60_000 and int(growth) < 16_000  # kB
