"""Tests of the layouts: ACT-X, VQA-X, an image folder, COCO instances, and how a layout is told."""

import json

import numpy as np
import pytest
from dataset_sources import (
    GRID,
    REPOSITORY,
    load,
    make_act_x,
    make_coco,
    make_image_folder,
    make_release,
    make_vqa_x,
    values_of,
    write_json,
    write_map,
    write_picture,
)
from datasets import Image
from huggingface_hub import DatasetCard
from PIL import Image as PILImage

from dataset_builders import ActionMe, ObjectMe, build_dataset
from dataset_builders.coco import polygon_mask, read_runs
from dataset_builders.vqa_x import VqaX, read_categories


pytestmark = pytest.mark.usefixtures("own_cache")
WHOLE = {"validation_share": 0, "test_share": 0}


def rows_of(folder, *splits) -> dict[str, dict]:
    return {row["id"]: row for split in splits for row in load(folder, split)}


def label_names(folder, split) -> list[str]:
    return load(folder, split).features["label"].names


# ACT-X


def test_act_x(tmp_path):
    root = make_act_x(tmp_path / "ACT-X")
    counts = build_dataset(ActionMe, root, tmp_path / "out")
    names = ["bicycling, mountain", "bicycling, racing", "rowing", "yoga, Power"]
    assert label_names(tmp_path / "out", "train") == names
    assert {split: sum(number for number, *_ in classes.values()) for split, classes in counts.items()} == {
        "train": 1,
        "validation": 1,
        "test": 2,
    }
    rows = rows_of(tmp_path / "out", "train", "validation", "test")
    assert [names[rows[key]["label"]] for key in ("t1", "v1", "s1", "s2")] == [names[0], names[1], names[3], names[2]]
    assert rows["t1"]["textual_explanations"] == ["he rides a bike uphill", "he wears a helmet"]
    assert rows["s1"]["textual_explanations"] == ["she stands on one leg"]
    assert rows["t1"]["visual_explanation"] is rows["s1"]["visual_explanation"] is None
    np.testing.assert_allclose(values_of(rows["v1"]["visual_explanation"]), GRID / 255 * 2 / 3, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(rows["s2"]["visual_explanation"]), GRID)
    raw = load(tmp_path / "out", "train").cast_column("image", Image(decode=False))[0]["image"]
    assert raw == {"bytes": (root / "images" / "0001.jpg").read_bytes(), "path": "0001.jpg"}
    assert "park2018multimodal" in (tmp_path / "out" / "README.md").read_text()


def test_act_x_by_the_first_part_of_the_activity(tmp_path):
    build_dataset(ActionMe, make_act_x(tmp_path / "ACT-X"), tmp_path / "out", activity_level="first")
    assert label_names(tmp_path / "out", "train") == ["bicycling", "rowing", "yoga"]


def test_pictures_may_lie_elsewhere(tmp_path):
    root = make_act_x(tmp_path / "ACT-X")
    (root / "images").rename(tmp_path / "mpii")
    with pytest.raises(ValueError, match="item 't1': expected the file that `iid` names, got no file '0001.jpg'"):
        build_dataset(ActionMe, root, tmp_path / "out")
    (root / "images").symlink_to(tmp_path / "mpii")
    assert build_dataset(ActionMe, root, tmp_path / "out", images=str(tmp_path / "mpii"))["test"]["rowing"][0] == 1
    with pytest.raises(ValueError, match="which holds the source"):
        build_dataset(ActionMe, root, tmp_path / "mpii", images=str(tmp_path / "mpii"), overwrite=True)
    with pytest.raises(ValueError, match="nowhere: expected a folder of pictures.*`--images`"):
        build_dataset(ActionMe, root, tmp_path / "out2", images=str(tmp_path / "nowhere"))


def test_maps_that_belong_to_no_item_are_not_lost_unseen(tmp_path):
    root = make_act_x(tmp_path / "ACT-X")
    for path in root.rglob("*.npy"):
        path.rename(path.with_name(f"map_{path.name}"))
    with pytest.raises(ValueError, match="visual: expected maps named <id>.npy .* got map_s2.npy"):
        build_dataset(ActionMe, root, tmp_path / "out")


def test_maps_in_archives(tmp_path):
    root = make_act_x(tmp_path / "ACT-X")
    (root / "visual" / "test" / "s2.npy").unlink()
    np.savez(root / "visual" / "test" / "0004.npz", GRID)
    build_dataset(ActionMe, root, tmp_path / "out")
    explanation = rows_of(tmp_path / "out", "test")["s2"]["visual_explanation"]
    np.testing.assert_array_equal(np.asarray(explanation), GRID)


# VQA-X


def test_vqa_x_keeps_what_names_one_category(tmp_path):
    counts = build_dataset(ObjectMe, make_vqa_x(tmp_path / "VQA-X"), tmp_path / "out")
    # In COCO's order; "cat" names no item that is kept.
    assert label_names(tmp_path / "out", "train") == ["person", "dog", "couch", "tv"]
    assert counts["train"] == {"person": (0, 0, 0), "dog": (2, 0, 2), "couch": (0, 0, 0), "tv": (0, 0, 0)}
    assert counts["validation"]["couch"] == (1, 1, 1) and counts["test"]["tv"] == (1, 0, 1)
    rows = rows_of(tmp_path / "out", "train", "validation", "test")
    assert list(rows) == ["42001", "42002", "9001", "10002", "11001"]
    assert rows["42002"]["textual_explanations"] == ["because of 42002"]
    np.testing.assert_array_equal(np.asarray(rows["9001"]["visual_explanation"]), GRID)
    raw = load(tmp_path / "out", "train").cast_column("image", Image(decode=False))["image"]
    assert [image["path"] for image in raw] == ["COCO_train2014_000000000042.jpg"] * 2
    text = DatasetCard.load(tmp_path / "out" / "README.md").text
    assert "- 1 items: the answer names no object category" in text
    assert "- 2 items: the picture's answers name different categories" in text
    assert "- 1 items: the picture is also in a later split" in text


def test_vqa_x_as_the_archive_is_published(tmp_path):
    root = make_vqa_x(tmp_path / "VQA-X")
    (root / "Annotations" / "visual").rename(root / "visual")
    (root / "Annotations").rename(root / "textual")
    assert build_dataset(ObjectMe, root, tmp_path / "out")["validation"]["couch"] == (1, 1, 1)


def test_vqa_x_needs_the_answers(tmp_path):
    root = make_vqa_x(tmp_path / "VQA-X")
    (root / "Annotations" / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(ValueError, match="item '9001': expected a question of VQA v2's annotations, got none"):
        build_dataset(ObjectMe, root, tmp_path / "out")
    (root / "Annotations" / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(ValueError, match=r"expected v2_mscoco_.*annotations.json of VQA v2"):
        build_dataset(ObjectMe, root, tmp_path / "out")


def test_synonyms_cover_cocos_categories(tmp_path):
    forms = read_categories()
    assert len(set(forms.values())) == 80
    assert all(form == form.lower().strip() for form in forms)
    source = VqaX(make_vqa_x(tmp_path))
    for answer, category in {
        "mice": "mouse",
        "Knives.": "knife",
        "the  sheep": "sheep",
        "a teddy bear": "teddy bear",
        "bear": "bear",
        "yes": None,
        "": None,
        "dog and cat": None,
    }.items():
        assert source.category(answer) == category, answer


def test_synonyms_are_one_to_one():
    """A form under two categories would silently get the later one."""
    table = json.loads((REPOSITORY / "dataset_builders" / "coco_synonyms.json").read_text())
    forms = [form for category, others in table.items() for form in (category, *others)]
    assert len(forms) == len(set(forms))


# An image folder


def test_image_folder(tmp_path):
    root = make_image_folder(
        tmp_path / "own", visual_explanation_file_name="maps/b.png", id="second", group="aligned", split="test"
    )
    (root / "maps").mkdir()
    PILImage.fromarray(GRID).save(root / "maps" / "b.png")
    counts = build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    assert counts == {"train": {"cat": (2, 0, 2), "dog": (1, 0, 1)}, "test": {"cat": (0, 0, 0), "dog": (1, 1, 1)}}
    rows = rows_of(tmp_path / "out", "train", "test")
    assert list(rows) == ["a.jpg", "c.jpg", "d.jpg", "second"]
    assert rows["second"]["group"] == "aligned" and rows["second"]["label"] == 1
    np.testing.assert_array_equal(np.asarray(rows["second"]["visual_explanation"]), GRID)


def test_image_folder_with_folders_as_splits(tmp_path):
    for split in ("train", "val", "test"):
        make_image_folder(tmp_path / "own" / split, number=2)
    counts = build_dataset(ObjectMe, tmp_path / "own", tmp_path / "out")
    assert {split: sum(number for number, *_ in classes.values()) for split, classes in counts.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert list(rows_of(tmp_path / "out", "validation")) == ["val/a.jpg", "val/b.jpg"]


def write_lines(root, lines):
    """A `metadata.jsonl` and its pictures, each of another colour."""
    for number, line in enumerate(lines):
        write_picture(root / line["file_name"], (number * 30, 90, 30))
    (root / "metadata.jsonl").write_text("".join(json.dumps({"label": "cat", **line}) + "\n" for line in lines))
    return root


def test_folders_in_the_paths_are_the_splits(tmp_path):
    """As `imagefolder` of `datasets` has it; only a picture in no such folder gets a drawn split."""
    names = {
        "train": ["train/0.png", "./Train/1.png", "pictures/training/2.png"],
        "validation": ["validation/0.png", "valid/1.png", "VAL/2.png", "dev/3.png"],
        "test": ["test/0.png", "pictures/Test/train/1.png", "testing/2.png"],
    }
    files = [{"file_name": name} for split in names for name in names[split]]
    root = write_lines(tmp_path / "own", [*files, {"file_name": "test.png"}, {"file_name": "other/x.png"}])
    counts = build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    assert {split: classes["cat"][0] for split, classes in counts.items()} == {"train": 5, "validation": 4, "test": 3}
    assert list(rows_of(tmp_path / "out", "test")) == names["test"]
    assert list(rows_of(tmp_path / "out", "validation")) == names["validation"]


def test_split_of_a_line_and_of_its_folder(tmp_path):
    lines = [{"file_name": "train/0.png", "split": "train"}, {"file_name": "valid/1.png", "split": "test"}]
    root = write_lines(tmp_path / "own", lines)
    message = r"line 2 \('valid/1.png'\): expected `split` to be 'validation', as the folder says, got 'test'"
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, root, tmp_path / "out")
    assert set(build_dataset(ObjectMe, root, tmp_path / "out", on_error="skip")) == {"train"}


@pytest.mark.parametrize("name", ["valid", "dev", "Val", "VALIDATION"])
def test_folders_with_metadata_by_any_name_of_a_split(tmp_path, name):
    make_image_folder(tmp_path / "own" / "train", number=2)
    make_image_folder(tmp_path / "own" / name, number=3)
    make_image_folder(tmp_path / "own" / "Test", number=1)
    counts = build_dataset(ObjectMe, tmp_path / "own", tmp_path / "out")
    numbers = {split: sum(number for number, *_ in classes.values()) for split, classes in counts.items()}
    assert numbers == {"train": 2, "validation": 3, "test": 1}
    assert list(rows_of(tmp_path / "out", "validation")) == [f"{name}/{key}.jpg" for key in "abc"]


@pytest.mark.parametrize(
    "name", ["extra/metadata.jsonl", "train/cats/metadata.jsonl", "metadata.csv", "val/metadata.parquet"]
)
@pytest.mark.parametrize("layout", ["image_folder", "coco"])
def test_metadata_that_would_be_left_unread(tmp_path, name, layout):
    root = make_coco(tmp_path / "own") if layout == "coco" else tmp_path / "own"
    if layout == "image_folder":
        make_image_folder(root / "train")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("file_name,label\n")
    message = (
        f"own: expected metadata in metadata.jsonl of this folder .* got {path}, which would be left unread. Write"
    )
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, root, tmp_path / "out", layout=layout, on_error="skip")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("textual_explanation", "textual_explanations"),
        ("textualExplanations", "textual_explanations"),
        ("rationale", "textual_explanations"),
        ("Explanations", "textual_explanations"),
        ("visual_explanation", "visual_explanation_file_name"),
        ("visual_explanation_filename", "visual_explanation_file_name"),
        ("mask", "visual_explanation_file_name"),
        ("Split", "split"),
        ("groups", "group"),
        ("ID", "id"),
    ],
)
def test_misspelt_keys(tmp_path, key, meant):
    root = write_lines(tmp_path / "own", [{"file_name": "a.png"}, {"file_name": "b.png", key: ["x"]}])
    message = rf"line 2: expected keys among .*, got '{key}'. Did you mean `{meant}`\?"
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, root, tmp_path / "out")


def test_other_keys_are_not_refused(tmp_path):
    """A key near one that the line has is another's."""
    line = {"file_name": "a.png", "width": 40, "licence": "x", "label_id": 3, "title": "y", "textual_explanations": []}
    root = write_lines(tmp_path / "own", [{**line, "rationale": "z", "file_name_original": "q", "task": "mark"}])
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"cat": (1, 0, 0)}}


@pytest.mark.parametrize("line", ['"label": "dog", "label": "cat"', '"label": "dog", "x": {"y": 1, "y": 2}'])
def test_keys_that_come_twice(tmp_path, line):
    root = make_image_folder(tmp_path / "own", number=2)
    with open(root / "metadata.jsonl", "a") as file:
        file.write(f'{{"file_name": "c.jpg", {line}}}\n')
    with pytest.raises(ValueError, match="line 3: expected every key once, got the key '(label|y)' twice. Remove one"):
        build_dataset(ObjectMe, root, tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: PILImage.fromarray(GRID).convert("RGB"), GRID / 255),
        (lambda: PILImage.fromarray(GRID.astype(np.uint16) * 250), GRID / 65535.0 * 250),
        (lambda: PILImage.fromarray(GRID.astype(np.int32) * 250), GRID / 65535.0 * 250),
        (lambda: PILImage.fromarray((GRID / 255).astype(np.float32)), GRID / 255),
        (lambda: PILImage.fromarray(GRID > 100), GRID > 100),
        (lambda: PILImage.fromarray(GRID).convert("P"), GRID / 255),
        (lambda: PILImage.merge("LA", [PILImage.new("L", (8, 6), 255), PILImage.fromarray(GRID)]), GRID / 255),
    ],
    ids=["RGB", "16 bits", "32 bits", "floats", "1 bit", "palette", "alpha"],
)
def test_maps_from_pictures_of_any_kind(tmp_path, make, expected):
    root = make_image_folder(tmp_path / "own", visual_explanation_file_name="b.tiff")
    picture = make()
    name = "b.tiff" if picture.mode in ("F", "I") else "b.png"
    picture.save(root / name)
    metadata = root / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("b.tiff", name))
    build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    explanation = rows_of(tmp_path / "out", "train")["b.jpg"]["visual_explanation"]
    np.testing.assert_allclose(values_of(explanation), expected, atol=1 / 65535)


# Explanations that are missing


MISSING = {"absent": (), "null": (None,), "empty": ([],)}


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("layout", ["release", "image_folder", "act_x", "vqa_x"])
def test_rationales_may_be_missing(tmp_path, layout, kind):
    """One item of each layout loses its rationales; nothing else changes."""
    root = tmp_path / "source"

    def change(path, key, field):
        content = json.loads(path.read_text())
        owner = content if field is None else content[key]
        owner.pop(field or key)
        if MISSING[kind]:
            owner[field or key] = MISSING[kind][0]
        write_json(path, content)

    if layout == "release":
        change(make_release(root) / "exp_annotation.json", "b", "exp")
    elif layout == "act_x":
        change(make_act_x(root) / "textual" / "exp_val_split.json", "v1", "exp")
    elif layout == "vqa_x":
        if kind == "absent":
            pytest.skip("the rationales are all that an entry has")
        change(make_vqa_x(root) / "Annotations" / "val_exp_anno.json", "9001", None)
    else:
        lines = [json.loads(line) for line in (make_image_folder(root) / "metadata.jsonl").read_text().splitlines()]
        lines[1].pop("textual_explanations")
        if MISSING[kind]:
            lines[1]["textual_explanations"] = MISSING[kind][0]
        (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    builder = ActionMe if layout == "act_x" else ObjectMe
    counts = build_dataset(builder, root, tmp_path / "out", **WHOLE)
    rows = rows_of(tmp_path / "out", *counts)
    silent = {"release": "b", "image_folder": "b.jpg", "act_x": "v1", "vqa_x": "9001"}[layout]
    assert [key for key, row in rows.items() if not row["textual_explanations"]] == [silent]
    assert rows[silent]["textual_explanations"] == []
    text = (tmp_path / "out" / "README.md").read_text()
    maps = sum(row["visual_explanation"] is not None for row in rows.values())
    told = len(rows) - 1
    assert f"Of {len(rows)} pictures, {maps} have a visual explanation\nand {told} have a rationale." in text
    assert "- rationales" in text


def test_labels_alone_of_one_class(tmp_path):
    root = tmp_path / "own"
    lines = []
    for name in ("a.jpg", "b.jpg"):
        write_picture(root / name)
        lines.append(json.dumps({"file_name": name, "label": "cat"}) + "\n")
    (root / "metadata.jsonl").write_text("".join(lines))
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"cat": (2, 0, 0)}}
    rows = rows_of(tmp_path / "out", "train")
    assert [(row["visual_explanation"], row["textual_explanations"]) for row in rows.values()] == [(None, [])] * 2
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert data.task_categories == ["image-classification"] and data.tags == ["explanation-guided-learning"]


# Pictures in several splits


LATER = "the picture is also in a later split"


def test_a_picture_stays_in_its_last_split(tmp_path):
    root = make_release(tmp_path / "source", number=6, split="train")
    annotation = root / "exp_annotation.json"
    items = json.loads(annotation.read_text())
    items["b_test"] = {**items["b"], "image_path": "./images/b.jpg", "split": "test"}
    items["b_validation"] = {**items["b"], "split": "validation"}
    items["b_drawn"] = {**items["b"], "split": None}
    items["a_twin"] = {**items["a"], "split": "train"}
    items["a_twin_2"] = {**items["a"], "split": "train"}
    annotation.write_text(json.dumps(items))
    build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    assert list(rows_of(tmp_path / "out", "test")) == ["b_test", "b_drawn"]
    assert list(rows_of(tmp_path / "out", "train")) == ["a", "c", "d", "e", "f", "a_twin", "a_twin_2"]
    assert f"- 2 items: {LATER}" in (tmp_path / "out" / "README.md").read_text()


def test_links_to_one_picture_are_one_picture(tmp_path):
    root = tmp_path / "own"
    make_image_folder(root / "train", number=3)
    make_image_folder(root / "val", number=2)
    (root / "val" / "a.jpg").unlink()
    (root / "val" / "a.jpg").symlink_to("../train/a.jpg")
    counts = build_dataset(ObjectMe, root, tmp_path / "out")
    assert counts["train"] == {"cat": (1, 0, 1), "dog": (1, 0, 1)}
    assert list(rows_of(tmp_path / "out", "validation")) == ["val/a.jpg", "val/b.jpg"]
    assert f"- 1 items: {LATER}" in (tmp_path / "out" / "README.md").read_text()


def test_act_x_picture_in_two_splits(tmp_path):
    root = make_act_x(tmp_path / "ACT-X")
    path = root / "textual" / "exp_test_split.json"
    write_json(path, {**json.loads(path.read_text()), "s3": {"iid": "0001", "ans": "rowing", "exp": ["an oar"]}})
    build_dataset(ActionMe, root, tmp_path / "out")
    assert "s3" in rows_of(tmp_path / "out", "test") and "bicycling, mountain" not in label_names(
        tmp_path / "out", "test"
    )


def test_coco_picture_in_two_files(tmp_path):
    root = make_coco(tmp_path / "own")
    (root / "images" / "val2014").rename(root / "images" / "all")
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = f"all/{image['file_name']}"
    write_json(path, content)
    write_json(root / "annotations" / "instances_train.json", content)
    with pytest.raises(ValueError, match="'images/all/000000000007.jpg': expected an id of its own, got .* twice"):
        build_dataset(ObjectMe, root, tmp_path / "out")


# COCO instances


POLYGONS = {"segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}
RUNS = {"segmentation": {"size": [30, 40], "counts": [0, 1000, 200]}}
COMPRESSED = {"segmentation": {"size": [30, 40], "counts": "0Xo0X6"}}  # the same
AREAS = {
    "boxes": ({"bbox": [4, 4, 30, 20]}, {"bbox": [0, 0, 6, 6]}),
    "null": ({"bbox": [4, 4, 30, 20], "area": None}, {"bbox": [0, 0, 6, 6], "area": None}),
    "zero": ({"bbox": [4, 4, 30, 20], "area": 0}, {"bbox": [0, 0, 6, 6], "area": 0}),
    "empty mask": ({"bbox": [4, 4, 30, 20], "segmentation": []}, {"bbox": [0, 0, 6, 6], "segmentation": []}),
    "polygons": (POLYGONS, {"bbox": [0, 0, 6, 6]}),
    "clockwise": ({"segmentation": [[0, 20, 20, 20, 20, 0, 0, 0]]}, {"bbox": [0, 0, 6, 6]}),
    "mask before box": ({"bbox": [0, 0, 10, 10], **RUNS}, {"bbox": [0, 0, 30, 30]}),
    "compressed": (COMPRESSED, {"bbox": [0, 0, 30, 30]}),
    "some given": ({"bbox": [4, 4, 30, 20]}, {"bbox": [0, 0, 6, 6], "area": 36.0}),
    "area before box": ({"bbox": [4, 4, 5, 5], "area": 400}, {"bbox": [0, 0, 19, 19]}),
}


# Each pair would have the other label by sums of what lies off the picture of 40 x 30 or is counted twice.
OFF = {"bbox": [30, 20, 500, 500]}  # 10 x 10 of it on the picture
CORNER = {"segmentation": [[-30, -30, 20, -30, 20, 10, -30, 10]]}  # 20 x 10 of it
COVERED = {
    "box off the picture": ([{"bbox": [0, 0, 11, 10]}], [OFF]),
    "box before the picture": ([{"bbox": [0, 0, 11, 10]}], [{"bbox": [-50, -50, 60, 60]}]),
    "polygon off the picture": ([{"bbox": [0, 0, 21, 10]}], [CORNER]),
    "the same boxes": ([{"bbox": [0, 0, 11, 10]}], [{"bbox": [5, 5, 10, 10]}] * 3),
    "the same polygons": ([{"bbox": [0, 0, 21, 20]}], [POLYGONS] * 2),
    "overlapping boxes": ([{"bbox": [0, 0, 12, 13]}], [{"bbox": [5, 5, 10, 10]}, {"bbox": [10, 5, 10, 10]}]),
    "the same runs": ([{"bbox": [0, 0, 32, 32]}], [{"segmentation": {"size": [30, 40], "counts": [0, 800, 400]}}] * 2),
    "parts of a pixel": ([{"bbox": [0, 0, 10.2, 10]}], [{"bbox": [0, 0, 10.1, 10]}]),
    "polygons without points": ([{"segmentation": [[]], "bbox": [0, 0, 11, 10]}], [{"bbox": [0, 0, 10, 10]}]),
    "runs without counts": (
        [{"segmentation": {"size": [30, 40], "counts": []}, "bbox": [0, 0, 11, 10]}],
        [{"bbox": [0, 0, 10, 10]}],
    ),
    "areas are summed": ([{"bbox": [0, 0, 9, 9], "area": 81}] * 2, [{"bbox": [0, 0, 10, 10], "area": 100}]),
    "area and boxes": ([{"area": 60}, {"bbox": [0, 0, 9, 5]}], [{"bbox": [0, 0, 10, 10]}]),
}


@pytest.mark.parametrize("case", COVERED)
def test_coco_category_that_covers_the_most_of_the_picture(tmp_path, case):
    zebras, cats = COVERED[case]
    root = make_areas(tmp_path / "own", {}, {})
    path = root / "annotations" / "instances_all.json"
    instances = [{"category_id": 9, **zebra} for zebra in zebras] + [{"category_id": 2, **cat} for cat in cats]
    annotations = [{"id": number, "image_id": 5, **instance} for number, instance in enumerate(instances)]
    write_json(path, {**json.loads(path.read_text()), "annotations": annotations})
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"zebra": (1, 0, 0)}}


def test_polygons_cover_the_pixels_whose_centre_they_hold():
    square = polygon_mask([2, 1, 6, 1, 6, 4, 2, 4], 8, 5)
    expected = np.zeros((5, 8), dtype=bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(square, expected)
    np.testing.assert_array_equal(polygon_mask([2, 4, 6, 4, 6, 1, 2, 1], 8, 5), expected)
    triangle = polygon_mask([0, 0, 4, 0, 0, 4], 5, 4)
    np.testing.assert_array_equal(triangle.sum(axis=1), [3, 2, 1, 0])
    bow = polygon_mask([-9, -9, 90, -9, 90, 90, -9, 90], 8, 5)
    assert bow.all() and not polygon_mask([-9, 0, -1, 0, -1, 5], 8, 5).any()


@pytest.mark.parametrize("field", ["width", "height"])
@pytest.mark.parametrize("explain", [True, False])
def test_coco_sizes(tmp_path, field, explain):
    root = make_coco(tmp_path / "own")
    size = {"width": 40.0, "height": 30.0}
    counts = build_dataset(ObjectMe, change_coco(root, size), tmp_path / "out", explain_category=explain)
    assert counts == {"validation": {"dog": (1, explain, 0), "cat": (1, explain, 0)}}
    for value in (40.5, "40", True, [40]):
        change_coco(root, {field: value})
        message = (
            rf"instances_val2014.json: expected instances .*TypeError: a `{field}` of .*, which is no whole number"
        )
        with pytest.raises(ValueError, match=message):
            build_dataset(ObjectMe, root, tmp_path / "out2", explain_category=explain)


@pytest.mark.parametrize("size", [{"width": None}, {"height": 0}, {"width": 10**6, "height": 10**6}])
def test_coco_pictures_without_a_size(tmp_path, size):
    """Their masks cannot be brought to the picture; areas alone do not need it."""
    root = make_areas(tmp_path / "own", {"bbox": [0, 0, 9, 9]}, {"bbox": [0, 0, 5, 5]})
    path = root / "annotations" / "instances_all.json"
    content = json.loads(path.read_text())
    content["images"][0].update(size)
    write_json(path, content)
    with pytest.raises(ValueError, match="got nothing to measure. Add them and the picture's `width` and `height`"):
        build_dataset(ObjectMe, root, tmp_path / "out")
    content["annotations"] = [{**entry, "area": 10 * entry["id"]} for entry in content["annotations"]]
    write_json(path, content)
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"cat": (1, 0, 0)}}


def test_coco_polygons_without_points_are_explained_by_the_box(tmp_path):
    root = change_coco(make_coco(tmp_path / "own"), instance={"segmentation": [[]], "bbox": [2, 3, 10, 10]})
    build_dataset(ObjectMe, root, tmp_path / "out", explain_category=True)
    explanation = rows_of(tmp_path / "out", "validation")["images/val2014/000000000007.jpg"]["visual_explanation"]
    expected = np.zeros((30, 40))
    expected[3:13, 2:12] = expected[20:28, 30:35] = 1
    np.testing.assert_array_equal(values_of(explanation), expected)


def test_coco_folders_in_the_paths_are_the_splits(tmp_path):
    root = make_coco(tmp_path / "own")
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    for image, folder in zip(content["images"], ("train", "Valid", "test"), strict=True):
        image["file_name"] = f"{folder}/{image['id']}.jpg"
        write_picture(root / "images" / image["file_name"], (image["id"] * 20, 0, 0))
    path.unlink()
    write_json(path.with_name("instances_all.json"), content)
    counts = build_dataset(ObjectMe, root, tmp_path / "out")
    assert {split: classes["dog"][0] + classes["cat"][0] for split, classes in counts.items()} == {
        "train": 1,
        "validation": 1,
    }


def test_coco_labels_keep_the_split_of_the_annotation_file(tmp_path):
    root = make_coco(tmp_path / "own")
    lines = [
        {"file_name": f"images/val2014/{key:012d}.jpg", "label": "dog", "split": split}
        for key, split in ((7, None), (8, "test"), (9, None))
    ]
    write_lines(root, lines)
    counts = build_dataset(ObjectMe, root, tmp_path / "out", layout="coco")
    assert counts == {"validation": {"dog": (2, 0, 0)}, "test": {"dog": (1, 0, 0)}}


def make_areas(root, zebra, cat):
    """A picture of a zebra and a cat; the alphabet has the cat first."""
    write_picture(root / "images" / "a.jpg")
    annotations = [
        {"id": 1, "image_id": 5, "category_id": 9, **zebra},
        {"id": 2, "image_id": 5, "category_id": 2, **cat},
    ]
    categories = [{"id": 2, "name": "cat"}, {"id": 9, "name": "zebra"}]
    images = [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / "instances_all.json", content)
    return root


@pytest.mark.parametrize("case", AREAS)
def test_coco_area_is_that_of_mask_or_box(tmp_path, case):
    root = make_areas(tmp_path / "own", *AREAS[case])
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"zebra": (1, 0, 0)}}


def test_coco_compressed_runs_of_the_area():
    assert read_runs(COMPRESSED["segmentation"]["counts"]) == RUNS["segmentation"]["counts"]


@pytest.mark.parametrize(
    ("zebra", "cat"),
    [
        ({}, {}),
        ({"bbox": [1, 2, 3]}, {"bbox": [0, 0, 6, 6]}),
        ({"segmentation": [[1, 2, 3, 4]]}, {"bbox": [0, 0, 6, 6]}),
        ({"segmentation": {"size": [30, 40], "counts": [0, 10**18]}}, {"bbox": [0, 0, 6, 6]}),
        ({"segmentation": {"size": [30, 40], "counts": [0, -1, 1201]}}, {"bbox": [0, 0, 6, 6]}),
        ({"bbox": [1, 2, 0, 0]}, {"bbox": [0, 0, -6, 6]}),
    ],
)
def test_coco_instances_that_cannot_be_measured(tmp_path, zebra, cat):
    root = make_areas(tmp_path / "own", zebra, cat)
    message = "a.jpg': expected an `area`, a mask or a `bbox` for each instance of several categories, got nothing to"
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    lines = [json.dumps({"file_name": "images/a.jpg", "label": "zebra"})]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    counts = build_dataset(ObjectMe, root, tmp_path / "out", layout="coco", **WHOLE)
    assert counts == {"train": {"zebra": (1, 0, 0)}}


def test_coco_label_that_needs_no_area(tmp_path):
    root = make_areas(tmp_path / "own", {}, {"category_id": 9})
    assert build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE) == {"train": {"zebra": (1, 0, 0)}}


@pytest.mark.parametrize("area", ["40", -1, [40], True])
def test_coco_areas_that_are_no_numbers(tmp_path, area):
    root = make_areas(tmp_path / "own", {"area": area}, {"bbox": [0, 0, 6, 6]})
    with pytest.raises(
        ValueError, match="instances in COCO's format.* got an entry that is not .TypeError: an `area`"
    ):
        build_dataset(ObjectMe, root, tmp_path / "out")


def test_coco_annotations_of_unknown_pictures(tmp_path):
    root = make_coco(tmp_path / "own")
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"].insert(1, {"id": 99, "image_id": 1234, "category_id": 17, "bbox": [0, 0, 40, 30]})
    write_json(path, content)
    message = "val2014.json: annotation 99: expected `image_id` to be the id of one of `images`, got 1234. List the"
    with pytest.raises(ValueError, match=message) as caught:
        build_dataset(ObjectMe, root, tmp_path / "out")
    counts = build_dataset(ObjectMe, root, tmp_path / "out", on_error="skip")
    assert counts == {"validation": {"dog": (1, 0, 0), "cat": (1, 0, 0)}}
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "annotation 99", "split": "validation", "reason": str(caught.value)}


def test_coco_instances_explain_the_category(tmp_path):
    counts = build_dataset(ObjectMe, make_coco(tmp_path / "own"), tmp_path / "out", explain_category=True)
    assert counts == {"validation": {"dog": (1, 1, 0), "cat": (1, 1, 0)}}
    rows = rows_of(tmp_path / "out", "validation")
    assert list(rows) == ["images/val2014/000000000007.jpg", "images/val2014/000000000008.jpg"]
    # The cats' square and box, without the dog; the dog's run lengths.
    cats, dog = np.zeros((30, 40)), np.zeros((30, 40))
    cats[3:13, 2:12] = cats[20:28, 30:35] = 1
    dog[:, 10:20] = 1
    for row, expected in zip(rows.values(), (cats, dog), strict=True):
        assert row["visual_explanation"].mode == "L" and row["textual_explanations"] == []
        np.testing.assert_array_equal(values_of(row["visual_explanation"]), expected)
    assert "- 1 items: the picture has no instances" in (tmp_path / "out" / "README.md").read_text()


def test_coco_instances_without_explanations(tmp_path):
    counts = build_dataset(ObjectMe, make_coco(tmp_path / "own"), tmp_path / "out")
    assert counts == {"validation": {"dog": (1, 0, 0), "cat": (1, 0, 0)}}


def test_coco_masks_of_the_category_that_a_label_names(tmp_path):
    root = make_coco(tmp_path / "own")
    lines = [
        {"file_name": f"images/val2014/{key:012d}.jpg", "label": label, "textual_explanations": ["It is."]}
        for key, label in ((7, "dog"), (8, "cat"), (9, "zebra"))
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="those of image_folder and coco. Choose one by `--layout`"):
        build_dataset(ObjectMe, root, tmp_path / "out")
    build_dataset(ObjectMe, root, tmp_path / "out", layout="coco", explain_category=True, **WHOLE)
    rows = list(rows_of(tmp_path / "out", "validation").values())
    assert label_names(tmp_path / "out", "validation") == ["cat", "dog", "zebra"]
    expected = np.zeros((30, 40))
    expected[:10, :5] = 1
    np.testing.assert_array_equal(values_of(rows[0]["visual_explanation"]), expected)
    assert rows[1]["visual_explanation"] is rows[2]["visual_explanation"] is None
    assert rows[0]["textual_explanations"] == ["It is."]


def test_run_lengths_are_read_as_pycocotools_writes_them():
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = np.asfortranarray(rng.random((37, 53)) < share, dtype=np.uint8)
        mask[:, 10:30] = 1
        text = masks.encode(mask)["counts"].decode()
        runs = read_runs(text)
        assert sum(runs) == mask.size
        np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(53, 37).T, mask)


def change_coco(root, picture=None, instance=None):
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["images"][0].update(picture or {})
    content["annotations"][0].update(instance or {})
    write_json(path, content)
    return root


@pytest.mark.parametrize(
    ("picture", "instance", "message"),
    [
        ({"width": 41}, {}, "instances on the picture's 40 x 30 pixels, got a `width` and `height` of 41 x 30"),
        ({"width": 10**9}, {}, "of 1000000000 x 30"),
        ({}, {"segmentation": [[2, 3, 12, 3]]}, r"polygons, run lengths or a box .* got \[\[2, 3, 12, 3\]\]"),
        ({}, {"segmentation": [[2, 3, 12, 3, 1e9, 13]]}, "Export the instances again"),
        ({}, {"segmentation": {"size": [30, 40], "counts": "zzzz"}}, "polygons, run lengths"),
        ({}, {"segmentation": {"size": [30, 40], "counts": [600, 599]}}, "polygons, run lengths"),
        ({}, {"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "polygons, run lengths"),
        ({}, {"segmentation": {"size": [40, 30], "counts": [600, 600]}}, "polygons, run lengths"),
        ({}, {"segmentation": [], "bbox": [1, 2, 3]}, "polygons, run lengths"),
        ({"file_name": "/etc/hostname"}, {}, "Absolute paths and `..` are refused"),
        ({"file_name": "../7.jpg"}, {}, "Absolute paths and `..` are refused"),
        ({"file_name": "none.jpg"}, {}, "no file 'none.jpg'"),
    ],
)
def test_bad_coco_items(tmp_path, picture, instance, message):
    root = change_coco(make_coco(tmp_path / "own"), picture, instance)
    with pytest.raises(ValueError, match=message) as caught:
        build_dataset(ObjectMe, root, tmp_path / "out", explain_category=True)
    assert str(caught.value).startswith(f"{root / 'annotations' / 'instances_val2014.json'}: picture '")


def test_empty_masks(tmp_path):
    root = make_coco(tmp_path / "own")
    content = json.loads((root / "annotations" / "instances_val2014.json").read_text())
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 18, "bbox": [0, 0, 0, 0]}]
    write_json(root / "annotations" / "instances_val2014.json", content)
    with pytest.raises(ValueError, match="expected masks that cover a pixel, got empty ones"):
        build_dataset(ObjectMe, root, tmp_path / "out", explain_category=True)


@pytest.mark.parametrize(
    ("picture", "instance", "message"),
    [
        ({"id": 8}, {}, "instances in COCO's format, each id once, got .*UNIQUE"),
        ({}, {"category_id": 3}, r"got an entry that is not \(KeyError: 3\), {.*'id': 1"),
        ({}, {"category_id": [3]}, r"got an entry that is not \(TypeError: unhashable"),
        ({"width": 2**63}, {}, "integer overflow|OverflowError"),
    ],
)
def test_bad_coco_files(tmp_path, picture, instance, message):
    root = change_coco(make_coco(tmp_path / "own"), picture, instance)
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, root, tmp_path / "out")


def test_coco_shapes_nested_too_deep(tmp_path):
    root = make_coco(tmp_path / "own")
    path = root / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text().replace('"segmentation": []', f'"segmentation": {"[" * 3000}{"]" * 3000}', 1))
    with pytest.raises(ValueError, match=r"got an entry that is not \(RecursionError"):
        build_dataset(ObjectMe, root, tmp_path / "out")


def test_coco_category_ids_are_unique(tmp_path):
    root = make_coco(tmp_path / "own")
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 17, "name": "cow"})
    write_json(path, content)
    with pytest.raises(ValueError, match="each id once, got an entry that is not .KeyError: 'category 17 twice'"):
        build_dataset(ObjectMe, root, tmp_path / "out")


# Turned pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_picture_and_map_alike(tmp_path, orientation):
    """The map's bright cell lies over the picture's bright quarter, whether the map was made of the stored pixels or
    of the picture as seen; only a map that may be both is taken as seen."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:30, :40] = 255
    stored = np.zeros((6, 8))
    stored[1, 1] = 1
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    root = make_image_folder(tmp_path / "own", visual_explanation_file_name="b.npy")
    PILImage.fromarray(pixels).save(root / "b.jpg", exif=exif, quality=95)
    write_map(root / "b.npy", stored)
    build_dataset(ObjectMe, root, tmp_path / "out", **WHOLE)
    row = rows_of(tmp_path / "out", "train")["b.jpg"]
    assert row["image"].size == ((60, 80) if orientation >= 5 else (80, 60))
    explanation = row["visual_explanation"].resize(row["image"].size, PILImage.Resampling.NEAREST)
    bright = np.asarray(row["image"].convert("L")) > 128
    if orientation in (1, 5, 6, 7, 8):
        assert bright[np.asarray(explanation) > 0].all()
    else:
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]) / 255, stored)
    raw = load(tmp_path / "out", "train").cast_column("image", Image(decode=False))[1]["image"]
    assert raw["bytes"] == (root / "b.jpg").read_bytes()


@pytest.mark.parametrize("size", [(40, 30), (30, 40)])
def test_coco_masks_of_turned_pictures(tmp_path, size):
    """Instances on the stored pixels turn with the picture, instances on the picture as seen do not."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    root = make_coco(tmp_path / "own")
    write_picture(root / "images" / "val2014" / "000000000007.jpg", exif=exif)
    instance = {"segmentation": [], "bbox": [0, 0, 10, 5]}
    change_coco(root, {"width": size[0], "height": size[1]}, {**instance, "area": 1000})
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][:1]
    write_json(path, content)
    build_dataset(ObjectMe, root, tmp_path / "out", explain_category=True)
    mask = values_of(rows_of(tmp_path / "out", "validation")["images/val2014/000000000007.jpg"]["visual_explanation"])
    expected = np.zeros((size[1], size[0]))
    expected[:5, :10] = 1
    np.testing.assert_array_equal(mask, np.rot90(expected, -1) if size == (40, 30) else expected)


# Which layout it is


def test_layout_is_told_or_asked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"files of one layout \(release: exp_annotation.json .* got none of them"):
        build_dataset(ObjectMe, tmp_path / "empty", tmp_path / "out")
    root = make_image_folder(make_release(tmp_path / "both"))
    with pytest.raises(ValueError, match="those of release and image_folder. Choose one by `--layout`"):
        build_dataset(ObjectMe, root, tmp_path / "out")
    assert "owl" not in build_dataset(ObjectMe, root, tmp_path / "out", layout="image_folder", **WHOLE)["train"]
    with pytest.raises(ValueError, match="expected `layout` to be one of .*, got 'voc'"):
        build_dataset(ObjectMe, root, tmp_path / "out2", layout="voc")


def test_options_that_a_layout_has_no_use_for(tmp_path):
    root = make_release(tmp_path / "source")
    with pytest.raises(ValueError, match="`explain_category` with the layout coco alone, got release"):
        build_dataset(ObjectMe, root, tmp_path / "out", explain_category=True)
    with pytest.raises(ValueError, match="`activity_level` with the layout act_x alone, got release"):
        build_dataset(ObjectMe, root, tmp_path / "out", activity_level="first")
    with pytest.raises(ValueError, match="the builder action_me for the layout act_x, got object_me"):
        build_dataset(ObjectMe, make_act_x(tmp_path / "act"), tmp_path / "out")
