"""Tests of the page about a data set: its figures, each warning alone, hostile text, and what is left on the disk."""

import io
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Image, Value
from pages import Page
from PIL import Image as PILImage

from dataset_builders import ObjectMe, build_dataset
from dataset_builders.build import features


ROOT = Path(__file__).resolve().parents[1]
NAMES = ["cat", "dog"]
LEFT = np.zeros((32, 32), dtype=np.uint8)
LEFT[:, :16] = 255
CORNER = np.zeros((32, 32), dtype=np.uint8)
CORNER[:8, 24:] = 255


@pytest.fixture()
def inspect(tmp_path, monkeypatch, capsys):
    """`inspect(folder, *arguments)` runs the script and returns the JSON summary, the page and what it printed."""

    def inspect(folder, *arguments):
        from megl.scripts import inspect_dataset

        output = tmp_path / "page.html"
        command = ["inspect_dataset", folder, "--output", output, "--json", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        capsys.readouterr()
        inspect_dataset.main()
        page = output.read_text(encoding="utf-8")
        return json.loads(output.with_suffix(".json").read_text(encoding="utf-8")), page, capsys.readouterr().out

    return inspect


def encoded(image, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def picture(colour, form="PNG") -> bytes:
    """A picture of its own for each colour."""
    values = np.full((12, 16, 3), colour, dtype=np.uint8)
    values[3:6, 2:9] = 250
    return encoded(PILImage.fromarray(values), form)


def grey(values) -> bytes:
    return encoded(PILImage.fromarray(np.asarray(values)))


def clean_rows():
    """Two splits of two classes, nothing to warn of."""
    return {
        "train": [
            row("a", 0, 10, LEFT, ["The cat purrs.", "It has whiskers and soft paws."], group="aligned"),
            row("b", 1, 20, CORNER, ["A dog barks."], group="conflicting"),
        ],
        "test": [row("c", 0, 30, CORNER, ["It purrs."]), row("d", 1, 40, LEFT, ["It barks at night."])],
    }


def row(key, label, colour, mask, texts, group=None):
    return {
        "id": key,
        "image": {"bytes": picture(colour), "path": None},
        "label": label,
        "visual_explanation": None if mask is None else {"bytes": grey(mask), "path": None},
        "textual_explanations": texts,
        "group": group,
    }


def write(folder, splits, names=NAMES, **changed_features):
    """A folder of Parquet files as `prepare_dataset.py` names them; here nothing checks the rows."""
    (folder / "data").mkdir(parents=True)
    columns = features(list(names))
    columns.update(changed_features)
    for split, rows in splits.items():
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        Dataset.from_list(rows, features=columns).to_parquet(str(path))
    return folder


def write_clean(tmp_path, change=None, name="pets"):
    splits = clean_rows()
    if change is not None:
        change({item["id"]: item for rows in splits.values() for item in rows}, splits)
    return write(tmp_path / name, splits)


# What is counted


def test_figures_of_a_clean_data_set(tmp_path, inspect):
    summary, page, printed = inspect(write_clean(tmp_path))
    assert summary["dataset"] == "pets" and summary["warnings"] == {}
    assert summary["splits"]["train"] == {
        "pictures": 2,
        "maps": 2,
        "with_rationale": 2,
        "rationales": 3,
        "smallest_class": 1,
        "largest_class": 1,
        "groups": {"aligned": 1, "conflicting": 1},
        "rationale_words": {"p5": 3.0, "median": 3.0, "p95": 5.7, "max": 6.0},
    }
    assert summary["splits"]["test"]["groups"] == {} and summary["splits"]["test"]["rationales"] == 2
    half, sixteenth = 0.5, 1 / 16
    assert summary["classes"]["cat"]["pictures"] == summary["classes"]["cat"]["maps"] == {"train": 1, "test": 1}
    assert summary["classes"]["cat"]["map_area"]["median"] == round((half + sixteenth) / 2, 4)
    # Masses 512 and 64 with centres (8, 16) and (28, 4), of 32 cells.
    centre = [(512 * 8 + 64 * 28) / 576 / 32, (512 * 16 + 64 * 4) / 576 / 32]
    assert summary["classes"]["cat"]["map_centre"] == pytest.approx(centre, abs=1e-4)
    assert summary["map_area"]["max"] == half and summary["rationale_words"]["median"] == 3
    assert summary["rationales_naming_own_class"] == 2
    assert "no warnings" in printed and re.search(r"train +2 +1 to 1 +2 +100% +3 +3", printed)
    assert "None: nothing is duplicate" in page


def test_counts_by_split_and_class(tmp_path, inspect):
    splits = {"train": [row(f"t{i}", i % 3 == 0, i, LEFT if i < 6 else None, ["Look."]) for i in range(9)]}
    summary, page, _ = inspect(write(tmp_path / "pets", splits), "--examples", "0")
    assert [summary["classes"][name]["pictures"]["train"] for name in NAMES] == [6, 3]
    assert [summary["classes"][name]["maps"]["train"] for name in NAMES] == [4, 2]
    assert summary["splits"]["train"]["smallest_class"] == 3 and summary["splits"]["train"]["largest_class"] == 6
    bars = re.findall(r'class="bar" style="width: ([\d.]+)%">\s*<div style="width: ([\d.]+)%"', page)
    assert bars == [("100.0", "66.7"), ("50.0", "66.7")]
    assert "4 of 6 with a map (67%)" in page and "Examples" not in page


def test_coverage_by_rationales(tmp_path, inspect):
    splits = {"train": [row(f"t{i}", i % 3 == 0, i, LEFT, ["Look.", "See."] if i < 4 else []) for i in range(9)]}
    splits["test"] = [row(f"s{i}", i % 2, 20 + i, LEFT, None if i else ["Look."]) for i in range(2)]
    summary, page, printed = inspect(write(tmp_path / "pets", splits))
    assert [summary["classes"][name]["with_rationale"] for name in NAMES] == [
        {"train": 2, "test": 1},
        {"train": 2, "test": 0},
    ]
    assert summary["splits"]["train"]["with_rationale"] == 4 and summary["splits"]["train"]["rationales"] == 8
    assert summary["warnings"]["classes_without_rationales"]["items"] == ["test/dog"]
    assert list(summary["warnings"]) == ["classes_without_rationales"]
    texts = Page(page).texts
    assert "2 with a rationale (33%)" in texts and "2 with a rationale (67%)" in texts and "4 (44%)" in texts
    assert re.search(r"train +9 +3 to 6 +9 +100% +8 +1 +4 +44%\n", printed)


def test_labels_alone_of_one_class(tmp_path, inspect):
    """From files on the disk to the page: a label is all that a picture needs."""
    source = tmp_path / "own"
    source.mkdir()
    for colour in (10, 20):
        (source / f"{colour}.png").write_bytes(picture(colour))
    lines = [json.dumps({"file_name": f"{colour}.png", "label": "cat"}) + "\n" for colour in (10, 20)]
    (source / "metadata.jsonl").write_text("".join(lines))
    build_dataset(ObjectMe, source, tmp_path / "cats", validation_share=0, test_share=0)
    summary, page, printed = inspect(tmp_path / "cats")
    assert set(summary["warnings"]) == {"classes_without_maps", "classes_without_rationales"}
    assert summary["classes"]["cat"]["with_rationale"] == summary["classes"]["cat"]["maps"] == {"train": 0}
    assert summary["rationale_words"] is None and summary["map_area"] is None
    assert "There are no maps" in page and "There are no rationales" in page and "0 with a rationale (0%)" in page


def test_unlabelled_pictures_are_counted_apart(tmp_path, inspect):
    """As test sets are published: nothing of them is in the figures of a class, not even of the last one."""
    splits = {
        "train": clean_rows()["train"],
        "test": [row(f"r{i}", -1, 50 + i, CORNER, ["A cat or a dog."], group="aligned") for i in range(7)],
    }
    splits["test"][6]["image"] = splits["train"][0]["image"]
    summary, page, printed = inspect(write(tmp_path / "pets", splits))
    assert summary["warnings"]["unlabelled_pictures"]["count"] == 7
    assert summary["warnings"]["classes_without_pictures"]["items"] == ["test/cat", "test/dog"]
    assert summary["warnings"]["same_file_across_splits"]["items"] == ["train/a = test/r6 (labelled cat, and not)"]
    assert len(summary["warnings"]) == 3
    assert summary["splits"]["test"]["pictures"] == summary["splits"]["test"]["maps"] == 7
    assert summary["splits"]["test"]["largest_class"] == 0
    assert [summary["classes"][name]["pictures"] for name in NAMES] == [{"train": 1, "test": 0}] * 2
    assert summary["classes"]["dog"]["map_centre"] == pytest.approx([28 / 32, 4 / 32])
    assert summary["rationales_naming_own_class"] == 2 and page.count('class="item"') == 2


def test_mean_map(tmp_path):
    from megl.scripts.inspect_dataset import inspect, open_dataset

    inspection = inspect(*open_dataset(write_clean(tmp_path)), examples=0)
    expected = (LEFT / 255 + CORNER / 255) / 2
    for label in (0, 1):
        np.testing.assert_allclose(inspection.mean_map(label), expected, atol=1e-6)


def test_sixteen_bit_maps_of_another_size(tmp_path):
    from megl.scripts.inspect_dataset import inspect, open_dataset

    values = np.full((8, 8), 13107, dtype=np.uint16)
    values[:, 4:] = 52428

    def change(items, splits):
        items["a"]["visual_explanation"]["bytes"] = grey(values)
        items["c"]["visual_explanation"]["bytes"] = grey(values)

    inspection = inspect(*open_dataset(write_clean(tmp_path, change)), examples=0)
    np.testing.assert_allclose(inspection.areas[0], 0.5, atol=1e-6)
    mean = inspection.mean_map(0)
    np.testing.assert_allclose(mean[:, [0, -1]], [[0.2, 0.8]] * 32, atol=1e-6)


def test_the_built_sample_has_no_warnings(tmp_path, inspect):
    build_dataset(ObjectMe, "sample", tmp_path / "object_me", sample_sizes={"train": 20, "validation": 5, "test": 5})
    summary, page, _ = inspect(tmp_path / "object_me", "--examples", "7")
    assert summary["splits"]["train"]["pictures"] == 20 and len(summary["classes"]) == 5
    # Of four training pictures of a class, not all have a map; no class is without pictures.
    assert set(summary["warnings"]) <= {"classes_without_maps"}
    assert page.count('class="item"') == 7


def test_read_anew_after_a_rebuild(tmp_path, inspect):
    folder = write_clean(tmp_path)
    inspect(folder)
    path = folder / "data" / "test-00000-of-00001.parquet"
    rows = [row("c", 0, 30, None, ["It purrs."]), row("d", 1, 40, LEFT, ["It barks at night."])]
    Dataset.from_list(rows, features=features(NAMES)).to_parquet(str(path))
    summary, _, _ = inspect(folder, "--overwrite")
    assert summary["splits"]["test"]["maps"] == 1


# Warnings


def set_image(key, content):
    return lambda items, splits: items[key]["image"].update(bytes=content)


def set_map(key, content):
    return lambda items, splits: items[key].update(
        visual_explanation=None if content is None else {"bytes": content, "path": None}
    )


def set_texts(key, *texts):
    return lambda items, splits: items[key].update(textual_explanations=list(texts))


def turned():
    """The picture of colour 10, stored on its side with an EXIF tag that turns it back."""
    image = PILImage.open(io.BytesIO(picture(10))).transpose(PILImage.Transpose.ROTATE_90)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


def extra(split, key, label, content):
    def change(items, splits):
        added = row(key, label, 0, LEFT, ["Look."])
        added["image"]["bytes"] = content
        splits[split].append(added)

    return change


def claim(width, height):
    """A PNG of a pixel whose header claims another size."""
    content = bytearray(grey(np.zeros((1, 1), np.uint8)))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def frames(form):
    first, second = PILImage.fromarray(LEFT), PILImage.fromarray(CORNER)
    return encoded(first, form, save_all=True, append_images=[second])


def unlabelled(items, splits):
    splits["test"].append(row("e", -1, 50, LEFT, ["A cat, and no dog."]))


TRUNCATED = picture(20)[:60]
WARNINGS = {
    "truncated": (set_image("b", TRUNCATED), "unreadable_pictures", r"train/b \(.*truncated.*\)"),
    "not_a_picture": (set_image("b", b"text"), "unreadable_pictures", r"train/b \(not a format .* known\)"),
    "zero_bytes": (set_image("b", b""), "unreadable_pictures", r"train/b \(no bytes are stored\)"),
    "no_picture": (
        lambda items, splits: items["b"].update(image=None),
        "unreadable_pictures",
        r"train/b \(no bytes are stored\)",
    ),
    "broken_map": (set_map("d", grey(LEFT)[:60]), "unreadable_maps", r"test/d \(.*\)"),
    "colour_map": (set_map("d", picture(5)), "unreadable_maps", r"test/d \(mode RGB, not 8- or 16-bit grey\)"),
    "empty_map": (set_map("a", grey(0 * LEFT)), "empty_maps", "train/a"),
    "empty_deep_map": (set_map("a", grey(np.zeros((4, 4), np.uint16))), "empty_maps", "train/a"),
    "full_map": (set_map("c", grey(np.full((4, 4), 255, np.uint8))), "full_maps", "test/c"),
    "constant_map": (set_map("c", grey(np.full((4, 4), 9000, np.uint16))), "full_maps", "test/c"),
    "half_full_map": (set_map("c", grey(np.uint8([[100, 200]]))), "full_maps", "test/c"),
    "same_file": (set_image("c", picture(10)), "same_file_across_splits", "train/a = test/c"),
    "same_file_other_class": (
        set_image("d", picture(10)),
        "same_file_across_splits",
        r"train/a = test/d \(labelled cat, dog\)",
    ),
    "same_file_in_split": (extra("test", "e", 0, picture(30)), "same_file_within_split", "test/c = test/e"),
    "same_pixels": (set_image("c", picture(10, "BMP")), "same_pixels_across_splits", "train/a = test/c"),
    "same_pixels_turned": (set_image("c", turned()), "same_pixels_across_splits", "train/a = test/c"),
    "same_pixels_in_split": (
        extra("test", "e", 0, picture(30, "TIFF")),
        "same_pixels_within_split",
        "test/c = test/e",
    ),
    "class_without_pictures": (lambda items, splits: splits["test"].pop(), "classes_without_pictures", "test/dog"),
    "class_without_maps": (set_map("d", None), "classes_without_maps", "test/dog"),
    "leak": (set_texts("a", "It purrs.", "No Dogs-only sign."), "leaking_rationales", r"train/a \(cat, names dog\)"),
    "class_without_rationales": (set_texts("b"), "classes_without_rationales", "train/dog"),
    "null_rationales": (
        lambda items, splits: items["b"].update(textual_explanations=None),
        "classes_without_rationales",
        "train/dog",
    ),
    "blank_rationale": (set_texts("b", "It barks.", " \n"), "empty_rationales", "train/b"),
    "null_rationale": (set_texts("b", "It barks.", None), "empty_rationales", "train/b"),
    "picture_bomb": (set_image("b", claim(30_000, 30_000)), "unreadable_pictures", r"train/b \(.*exceeds limit.*\)"),
    "half_a_bomb": (
        set_image("b", claim(10_000, 12_000)),
        "unreadable_pictures",
        r"train/b \(10,000 x 12,000 pixels, above 89,478,485\)",
    ),
    "map_bomb": (set_map("d", claim(30_000, 30_000)), "unreadable_maps", r"test/d \(.*exceeds limit.*\)"),
    "half_a_map_bomb": (
        set_map("d", claim(10_000, 12_000)),
        "unreadable_maps",
        r"test/d \(10,000 x 12,000 pixels.*\)",
    ),
    "deep_picture": (
        set_image("b", grey(np.full((4, 4), 9000, np.uint16))),
        "unreadable_pictures",
        r"train/b \(mode I;16, not 8 bits a channel\)",
    ),
    "animation": (set_image("b", frames("GIF")), "unreadable_pictures", r"train/b \(2 frames\)"),
    "map_of_frames": (set_map("d", frames("TIFF")), "unreadable_maps", r"test/d \(2 frames\)"),
    "zero_one_map": (set_map("a", grey(LEFT // 255)), "faint_maps", "train/a"),
    "full_zero_one_map": (set_map("a", grey(np.ones((4, 4), np.uint8))), "faint_maps", "train/a"),
    "deep_zero_one_map": (set_map("a", grey(LEFT.astype(np.uint16) // 255)), "faint_maps", "train/a"),
    "class_numbers": (set_map("a", grey(LEFT // 17)), "faint_maps", "train/a"),
    "eight_bits_in_sixteen": (set_map("a", grey(LEFT.astype(np.uint16))), "faint_maps", "train/a"),
    "unlabelled": (unlabelled, "unlabelled_pictures", "test/e"),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_each_warning_alone(tmp_path, inspect, case):
    change, kind, item = WARNINGS[case]
    summary, page, printed = inspect(write_clean(tmp_path, change))
    assert list(summary["warnings"]) == [kind]
    warned = summary["warnings"][kind]
    assert warned["count"] == 1 and len(warned["items"]) == 1
    assert re.fullmatch(item, warned["items"][0])
    assert f"warning: {warned['meaning']}: 1 ({warned['items'][0]})" in printed
    texts = Page(page).texts
    assert warned["items"][0] in texts and f" {warned['meaning']}.\n" in texts
    assert "no warnings" not in printed and "None: nothing" not in page


def test_every_warning_has_a_case():
    from megl import inspection

    kinds = {kind for _, kind, _ in WARNINGS.values()}
    assert kinds | {"similar_class_names"} == set(inspection.WARNINGS)


def test_nothing_to_warn_of(tmp_path, inspect):
    def change(items, splits):
        items["a"]["visual_explanation"]["bytes"] = grey(np.uint8([[99, 200]]))  # just below half of its maximum
        items["b"]["visual_explanation"]["bytes"] = grey(np.uint8([[0, 16]]))  # just above what is faint
        items["c"]["textual_explanations"] = ["Catalogue, dogma, hotdog, cats."]  # other words, and its own class

    summary, _, _ = inspect(write_clean(tmp_path, change))
    assert summary["warnings"] == {}


def test_the_longest_class_name_counts(tmp_path, inspect):
    splits = {
        "train": [
            row("a", 0, 1, LEFT, ["A polar bear."]),
            row("b", 1, 2, LEFT, ["Polar bears on ice, and no other bear."]),
            row("c", 2, 3, LEFT, ["Bicycling: a mountain. BICYCLING, MOUNTAIN!"]),
        ]
    }
    names = ["bear", "polar_bear", "bicycling, mountain"]
    summary, _, _ = inspect(write(tmp_path / "bears", splits, names))
    leaks = summary["warnings"]["leaking_rationales"]
    assert leaks["items"] == ["train/a (bear, names polar bear)", "train/b (polar_bear, names bear)"]
    assert leaks["count"] == 2 and summary["rationales_naming_own_class"] == 2


def test_class_names_in_any_script(tmp_path, inspect):
    """Marks belong to their letter, signs and emoji are names, "c" is not in "c++"; what is written in two parts is
    one letter."""
    hindi_cat, hindi_dog = "\u092c\u093f\u0932\u094d\u0932\u0940", "\u0915\u0941\u0924\u094d\u0924\u093e"
    cases = [  # own class, text, whether it names the own class, what else it names
        ("c", "Written in C.", True, None),
        ("c", "C++ is not it, nor C# nor objective-c++.", False, "c#, c++"),
        ("c++", "(C++11 has more than C)", True, "c"),
        ("+", "a + b, and a ++ b", True, None),
        ("+", "a ++ b", False, None),
        ("\u00d7", "2 \u00d7 3=6", True, None),
        ("\U0001f436", "what \U0001f436\U0001f436!", True, None),
        ("\U0001f436", "\U0001f468\u200d\U0001f469 and no \U0001f431\ufe0f", False, "\U0001f431"),
        ("\U0001f431", "\U0001f431\ufe0f sleeps", True, None),
        (hindi_cat, f"\u092f\u0939 {hindi_cat} \u0939\u0948\u0964", True, None),
        (hindi_cat, f"{hindi_dog}\u0964", False, hindi_dog),
        (hindi_dog, "\u0915 \u0924", False, None),
        ("caf\u00e9", "A cafe\u0301.", True, None),
        ("cafe", "A cafe\u0301.", False, "caf\u00e9"),
        ("\u732b", "\u8fd9\u662f\u4e00\u53ea\u732b\u3002", True, None),
        ("\u732b", "\u5317\u6781\u718a\u3067\u3059", False, "\u5317 \u6781 \u718a"),
        ("\u0e41\u0e21\u0e27", "\u0e19\u0e35\u0e48\u0e04\u0e37\u0e2d\u0e41\u0e21\u0e27", True, None),
        ("?", "Is it? Yes!", False, None),
        ("a.b", "a b", True, None),
        ("a.b", "axb", False, None),
    ]
    names = sorted({own for own, *_ in cases} | {hindi_dog, "c#", "c++", "\U0001f431", "\u5317\u6781\u718a"})
    for own, text, names_own, other in cases:
        rows = [row("x", names.index(own), 1, LEFT, [text])]
        folder = write(tmp_path / f"{own.encode().hex()}-{text.encode().hex()[:100]}", {"train": rows}, names)
        summary, _, _ = inspect(folder, "--overwrite", "--examples", 0)
        assert summary["rationales_naming_own_class"] == names_own, (own, text)
        leaks = summary["warnings"].get("leaking_rationales", {"items": []})["items"]
        assert leaks == ([] if other is None else [f"train/x ({own}, names {other})"]), (own, text)


def test_words_of_scripts_without_spaces_are_characters(tmp_path, inspect):
    texts = ["\u8fd9\u662f\u732b\u3002", "\u092c\u093f\u0932\u094d\u0932\u0940 \u0939\u0948"]
    splits = {"train": [row("a", 0, 1, LEFT, texts[:1]), row("b", 1, 2, LEFT, texts[1:])]}
    summary, _, _ = inspect(write(tmp_path / "pets", splits))
    assert summary["rationale_words"] == {"p5": 2.05, "median": 2.5, "p95": 2.95, "max": 3}


def test_class_names_that_look_alike(tmp_path, inspect):
    names = ["cat", "Cat", "polar bear", "polar_bear ", "caf\u00e9", "cafe\u0301", "cafe", "dog", "dogs"]
    splits = {"train": [row(f"r{i}", i, i, LEFT, ["Look."]) for i in range(len(names))]}
    summary, _, _ = inspect(write(tmp_path / "pets", splits, names))
    assert list(summary["warnings"]) == ["similar_class_names"]
    found = ["'cat' = 'Cat'", "'polar bear' = 'polar_bear '", "'caf\u00e9' = 'cafe\u0301'"]
    assert summary["warnings"]["similar_class_names"]["items"] == found


def test_groups_of_many_duplicates(tmp_path, inspect):
    rows = [row(f"r{i}", 0, 7, LEFT, ["Look."]) for i in range(8)]
    rows.append(row("s", 0, 7, LEFT, ["Look."]))
    rows[-1]["image"]["bytes"] = picture(7, "BMP")
    summary, _, _ = inspect(write(tmp_path / "pets", {"train": rows}, ["cat"]))
    first = "train/r0 = train/r1 = train/r2 = train/r3 = train/r4"
    assert summary["warnings"]["same_file_within_split"]["items"] == [f"{first} = 3 more"]
    assert summary["warnings"]["same_pixels_within_split"]["items"] == [f"{first} = 4 more"]


def test_the_first_items_and_the_count(tmp_path, inspect):
    rows = [row(f"r{i}", 0, i, LEFT, [" "]) for i in range(7)]
    summary, page, printed = inspect(write(tmp_path / "pets", {"train": rows}, ["cat"]))
    names = [f"train/r{i}" for i in range(5)]
    assert summary["warnings"]["empty_rationales"]["count"] == 7
    assert summary["warnings"]["empty_rationales"]["items"] == names
    assert summary["warnings"]["classes_without_rationales"]["items"] == ["train/cat"]
    assert f": 7 ({'; '.join(names)}; and 2 more)" in printed
    assert "; ".join(names) + "; and 2 more" in Page(page).texts
    assert summary["rationale_words"] is None and "There are no rationales" in page


def test_no_maps_at_all(tmp_path, inspect):
    summary, page, _ = inspect(write(tmp_path / "pets", {"train": [row("a", 0, 1, None, ["Look."])]}, ["cat"]))
    assert summary["map_area"] is None and summary["classes"]["cat"]["map_centre"] is None
    assert "There are no maps" in page


# The page


def test_page_is_self_contained_and_accessible(tmp_path, inspect):
    _, text, _ = inspect(write_clean(tmp_path))
    page = Page(text)
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    pictures = page.all("img")
    assert len(pictures) == 2 + 4 * 2  # mean maps; four examples with picture and overlay
    for attributes in pictures:
        assert attributes["alt"].strip()
        content = attributes["src"].removeprefix("data:image/jpeg;base64,")
        assert content != attributes["src"]
    assert "Mean map of cat" in [attributes["alt"] for attributes in pictures]
    assert [attributes["aria-label"] for attributes in page.all("svg")] == [
        "Histogram of area of a map, % of the picture: 4 in 21 bins of 2.5%",
        "Histogram of words of a rationale: 5 in 6 bins of 1",
    ]
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_histograms(tmp_path):
    from megl.pages.inspection import _histogram

    values = np.array([0] + [1] * 2 + [9] * 150 + [400])
    page = Page(_histogram(values, "words", "", "texts", whole=True))
    assert [text for text in page.texts if re.search(r": \d+$", text)] == [
        *("0 to 1: 1", "1 to 2: 2", *(f"{i} to {i + 1}: 0" for i in range(2, 9))),
        "9 or more: 151",
    ]
    assert "words (last bar: 9 or more)" in page.texts
    page = Page(_histogram(np.array([0.0, 51, 100]), "area", "%", "maps", limit=100))
    counts = dict(text.split(": ") for text in page.texts if ": " in text)
    ticks = [text for text in Page(_histogram(np.zeros(10), "area", "%", "maps", limit=100)).texts if text.isdigit()]
    assert ticks[:3] == ["0", "5", "10"]
    assert len(counts) == 20 and {span for span, count in counts.items() if count == "1"} == {
        *("0 to 5%", "50 to 55%", "95 to 100%")
    }


def test_foreign_text_is_escaped(tmp_path, inspect):
    evil = '<script>alert("1")</script>&\x1b[2J'
    names = [evil, "dog"]
    splits = {"train": [row(evil, 0, 1, LEFT, [evil, "dog " + evil], group=evil), row("b", 1, 2, LEFT, ["x" * 1000])]}
    summary, text, printed = inspect(write(tmp_path / "pets<i>", splits, names))
    assert "<script" not in text and "<i>" not in text and evil not in text
    page = Page(text)
    assert page.all("script") == [] and f"train/{evil}, {evil}" in page.texts
    assert "x" * 400 + "…" in page.texts and "x" * 401 not in text
    assert summary["warnings"]["leaking_rationales"]["count"] == 1
    assert "\x1b" not in printed and evil.replace("\x1b", "\N{REPLACEMENT CHARACTER}") in printed


def test_pictures_of_extreme_shape():
    import base64

    from megl.pages.html_page import figure

    for size, shown in (((20000, 1), (192, 1)), ((1, 20000), (1, 384)), ((1, 1), (192, 192))):
        content = re.search(r"base64,(.+)", figure(PILImage.new("RGB", size), "wide <i>")["source"])[1]
        assert PILImage.open(io.BytesIO(base64.b64decode(content))).size == shown


def test_examples_prefer_maps_and_are_the_same_each_time(tmp_path, inspect):
    splits = {"train": [row(f"r{i}", i % 2, i, LEFT if i >= 30 else None, ["Look."]) for i in range(40)]}
    folder = write(tmp_path / "pets", splits)
    _, first, _ = inspect(folder, "--examples", "6")
    shown = re.findall(r"Picture train/r(\d+) with its map", first)
    assert len(shown) == 6 and all(int(number) >= 30 for number in shown)
    assert sorted(int(number) % 2 for number in shown) == [0, 0, 0, 1, 1, 1]
    _, second, _ = inspect(folder, "--examples", "6", "--overwrite")
    assert first == second


# Files and faults


def test_files_are_replaced_only_if_asked_for(tmp_path, inspect):
    folder = write_clean(tmp_path)
    for name in ("page.html", "page.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SystemExit, match=f"{name} exists: choose another `--output`, or set `--overwrite`"):
            inspect(folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "pets"])
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "page.html").write_text("mine")
    _, page, _ = inspect(folder, "--overwrite")
    assert page.startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "page.json", "pets"]


def test_a_failed_run_leaves_the_old_page(tmp_path, inspect, monkeypatch):
    folder = write_clean(tmp_path)
    (tmp_path / "page.html").write_text("old")

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(SystemExit, match="no space"):
        inspect(folder, "--overwrite")
    assert (tmp_path / "page.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "pets"]


def test_bad_data_sets(tmp_path, inspect):
    with pytest.raises(SystemExit, match="expected a folder that prepare_dataset.py wrote, got .*nowhere"):
        inspect(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="inspect_dataset: .*empty"):
        inspect(tmp_path / "empty")
    text_ids = write(tmp_path / "unlabelled", {"train": clean_rows()["train"]}, label=Value("int64"))
    with pytest.raises(
        SystemExit, match="expected a column `label` of type a ClassLabel with class names, got Value.*Cast it"
    ):
        inspect(text_ids)
    rows = [{key: value for key, value in item.items() if key != "group"} for item in clean_rows()["train"]]
    columns = features(NAMES)
    del columns["group"]
    (tmp_path / "lacking" / "data").mkdir(parents=True)
    path = tmp_path / "lacking" / "data" / "train-00000-of-00001.parquet"
    Dataset.from_list(rows, features=columns).to_parquet(str(path))
    with pytest.raises(SystemExit, match=r"expected a column `group` of type Value\('string'\), got None"):
        inspect(path.parents[1])
    for column, feature, values in (
        ("label", Value("string"), ["cat", "dog"]),
        ("id", Value("int64"), [1, 2]),
    ):
        changed = [{**item, column: value} for item, value in zip(clean_rows()["train"], values, strict=True)]
        with pytest.raises(SystemExit, match=f"expected a column `{column}` of type .*, got Value"):
            inspect(write(tmp_path / f"text_{column}", {"train": changed}, **{column: feature}))
    (write_clean(tmp_path, name="card") / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(SystemExit, match="card: expected a data set of Parquet files, got one that does not open"):
        inspect(tmp_path / "card")
    (write_clean(tmp_path, name="code") / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(SystemExit, match="code: expected a data set of Parquet files, got one that does not open"):
        inspect(tmp_path / "code")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SystemExit, match="inspect_dataset: "):
        inspect(path.parents[1])
    unknown = clean_rows()
    unknown["test"][1]["label"] = None
    with pytest.raises(SystemExit, match=r"test/d: expected `label` to be in 0..1, got None.* or give -1 for an"):
        inspect(write(tmp_path / "unknown", unknown))
    assert not list(tmp_path.glob("page*")) and not list(tmp_path.glob(".page*"))


def test_bad_arguments(tmp_path, monkeypatch):
    from megl.scripts import inspect_dataset

    folder = write_clean(tmp_path)
    (tmp_path / "file").write_text("mine")
    for arguments, message in (
        (["--output", tmp_path / "page.json"], "`--output` to be a file name that ends in .html"),
        (["--output", tmp_path / "file" / "p.html"], "`--output` in a folder that can be written, got .*file. Give"),
    ):
        monkeypatch.setattr(sys, "argv", ["inspect_dataset", *map(str, [folder, *arguments])])
        with pytest.raises(SystemExit, match=message):
            inspect_dataset.main()


def test_columns_that_are_not_asked_for_are_left_alone(tmp_path, inspect):
    rows = [{**item, "thumbnail": item["image"]} for item in clean_rows()["train"]]
    summary, _, _ = inspect(write(tmp_path / "pets", {"train": rows}, thumbnail=Image()))
    assert summary["warnings"] == {}
