"""Tests of the builders: values that come out, bad sources, and what is left on the disk."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Image, List, Value, load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard
from PIL import Image as PILImage

from dataset_builders import BUILDERS, PLACES, ActionMe, ObjectMe, build_dataset, place_of
from dataset_builders.build import clean_leftovers
from dataset_builders.items import encode_map, stratified_splits
from dataset_builders.release import Release
from dataset_builders.scenes import BACKGROUNDS, Scenes, plan_split


REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MEGL_SHARED", REPOSITORY.parent / "shared"))
SMALL = {"train": 20, "validation": 5, "test": 10}
GRID = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """`load_dataset` caches in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def picture_bytes(colour=(200, 30, 30), size=(40, 30), **options) -> bytes:
    stream = io.BytesIO()
    PILImage.new("RGB", size, colour).save(stream, format="JPEG", **options)
    return stream.getvalue()


def make_release(root: Path, number: int = 4, **changes) -> Path:
    """Writes a release of `number` items named a, b, ..., classes cat (5) and dog (2); `changes` go into item b."""
    (root / "images").mkdir(parents=True)
    (root / "visual_exp").mkdir()
    names = {0: "cat", 1: "dog"}
    ids = {"cat": 5, "dog": 2, "owl": 9}
    items = {}
    for index in range(number):
        key = chr(ord("a") + index)
        (root / "images" / f"{key}.jpg").write_bytes(picture_bytes((index * 20, 90, 30)))
        items[key] = {
            "image_path": f"images/{key}.jpg",
            "visual_exp": None,
            "class_id": ids[names[index % 2]],
            "ans": names[index % 2],
            "exp": [f"It is {key}.", f"One sees {key}."],
        }
    if number > 1:
        items["b"].update(changes)
    (root / "exp_annotation.json").write_text(json.dumps(items))
    (root / "label_class_id_mapping.json").write_text(json.dumps(ids))
    return root


def build_release(root: Path, output: Path, **options):
    return build_dataset(ObjectMe, root, output, **{"validation_share": 0, "test_share": 0, **options})


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("source", "cache"))


# The authors' release


@pytest.mark.parametrize(
    ("stored", "mode", "expected"),
    [
        (GRID, "L", GRID),
        (GRID.astype(np.int64), "L", GRID),
        (np.repeat(GRID[None] / 255, 3, axis=0), "L", GRID),
        ((GRID / 255).astype(np.float32), "L", GRID),
        (GRID > 100, "L", (GRID > 100) * 255),
        (np.linspace(0, 1, 48).reshape(6, 8), "I;16", np.rint(np.linspace(0, 65535, 48)).reshape(6, 8)),
        (np.stack([GRID / 255, GRID / 255, 0 * GRID]), "I;16", np.rint(GRID / 3 * 2 * 257)),
    ],
    ids=["integers", "wide_integers", "channels", "floats", "booleans", "precise_floats", "different_channels"],
)
def test_visual_explanations_keep_their_values(tmp_path, stored, mode, expected):
    root = make_release(tmp_path / "source", visual_exp="visual_exp/b.npy")
    np.save(root / "visual_exp" / "b.npy", stored)
    build_release(root, tmp_path / "out")
    rows = load_dataset(str(tmp_path / "out"), split="train")
    explanation = rows[1]["visual_explanation"]
    assert explanation.mode == mode
    np.testing.assert_array_equal(np.asarray(explanation), expected)
    assert rows[0]["visual_explanation"] is None


def test_release_columns_and_original_bytes(tmp_path, monkeypatch):
    root = make_release(tmp_path / "source", group="aligned")
    counts = build_release(root, tmp_path / "object_me", license="cc-by-4.0")
    monkeypatch.chdir(tmp_path)
    rows = load_dataset("object_me", split="train")
    assert rows.features == {
        "id": Value("string"),
        "image": Image(),
        "label": ClassLabel(names=["dog", "cat", "owl"]),
        "visual_explanation": Image(),
        "textual_explanations": List(Value("string")),
        "group": Value("string"),
    }
    assert list(rows["id"]) == ["a", "b", "c", "d"]
    assert list(rows["label"]) == [1, 0, 1, 0]
    assert list(rows["group"]) == [None, "aligned", None, None]
    assert rows[2]["textual_explanations"] == ["It is c.", "One sees c."]
    raw = rows.cast_column("image", Image(decode=False))[3]["image"]
    assert raw == {"bytes": (root / "images" / "d.jpg").read_bytes(), "path": "d.jpg"}
    assert counts == {"train": {"dog": (2, 0), "cat": (2, 0), "owl": (0, 0)}}


def test_card_is_read_back(tmp_path):
    build_dataset(ActionMe, "sample", tmp_path / "action_me", sample_sizes=SMALL)
    card = DatasetCard.load(tmp_path / "action_me" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "| running | 4 (1) | 1 (1) | 2 (2) |" in card.text
    assert "2411.13053" in card.text
    info = load_dataset_builder(str(tmp_path / "action_me")).info
    assert {name: split.num_examples for name, split in info.splits.items()} == SMALL
    assert info.features["label"].names == ["running", "waving", "sitting", "lifting", "kicking"]
    shards = sorted((tmp_path / "action_me" / "data").iterdir())
    assert [shard.name for shard in shards] == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]
    assert info.download_size == sum(shard.stat().st_size for shard in shards)


def test_several_shards_hold_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(ObjectMe, "DEFAULT_WRITER_BATCH_SIZE", 5)
    build_dataset(ObjectMe, "sample", tmp_path / "out", sample_sizes={"train": 20}, max_shard_size="100KB")
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert len(names) > 1 and names[0] == f"train-00000-of-{len(names):05d}.parquet"
    ids = load_dataset(str(tmp_path / "out"), split="train")["id"]
    assert list(ids) == [f"train_{index:05d}" for index in range(20)]


def test_own_split_is_kept_and_the_rest_is_stratified_by_picture(tmp_path):
    root = make_release(tmp_path / "source", number=20, split="validation")
    annotation = root / "exp_annotation.json"
    items = json.loads(annotation.read_text())
    items["twin"] = {**items["b"], "image_path": "./images/b.jpg", "split": None}
    annotation.write_text(json.dumps(items))
    split_of = Release(root, validation_share=0.1, test_share=0.2).split_of
    assert split_of["b"] == split_of["twin"] == "validation"
    by_class = Counter((items[key]["ans"], split) for key, split in split_of.items() if key not in ("b", "twin"))
    assert by_class[("cat", "test")] == 2 and by_class[("cat", "validation")] == 1 and by_class[("cat", "train")] == 7
    assert by_class[("dog", "test")] == 2 and by_class[("dog", "validation")] == 1 and by_class[("dog", "train")] == 6


def test_split_is_seeded_and_ignores_the_order_of_the_items():
    classes = {f"{name}{index}": name for name in ("cat", "dog") for index in range(50)}
    first = stratified_splits(classes, 0.1, 0.2, seed=0)
    assert first == stratified_splits(dict(reversed(classes.items())), 0.1, 0.2, seed=0)
    assert first != stratified_splits(classes, 0.1, 0.2, seed=1)
    counts = Counter((classes[picture], split) for picture, split in first.items())
    assert all(
        counts[name, split] == number
        for name in ("cat", "dog")
        for split, number in (("train", 35), ("validation", 5), ("test", 10))
    )
    assert set(stratified_splits(classes, 0, 0.2, seed=0).values()) == {"train", "test"}
    with pytest.raises(ValueError, match="sum to less than 1"):
        stratified_splits(classes, 0.5, 0.5, seed=0)


def test_turned_picture_is_compared_as_seen(tmp_path):
    root = make_release(tmp_path / "source", visual_exp="visual_exp/b.npy")
    exif = PILImage.Exif()
    exif[0x0112] = 6
    (root / "images" / "b.jpg").write_bytes(picture_bytes(exif=exif))
    np.save(root / "visual_exp" / "b.npy", GRID.T)
    build_release(root, tmp_path / "out")
    row = load_dataset(str(tmp_path / "out"), split="train")[1]
    assert row["image"].size == (30, 40) and row["visual_explanation"].size == (6, 8)


def test_map_of_few_cells_may_be_rounded(tmp_path):
    root = make_release(tmp_path / "source", visual_exp="visual_exp/b.npy")
    np.save(root / "visual_exp" / "b.npy", np.full((5, 7), 0.5))  # 40 x 30 pixels: 7 x 5.25 cells
    assert build_release(root, tmp_path / "out")["train"]["dog"] == (2, 1)


# Bad sources

MAP = {"visual_exp": "visual_exp/b.npy"}


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
        np.savez(file, map=GRID)


def nan_map(root):
    values = GRID / 255
    values[2, 3] = np.nan
    np.save(root / "visual_exp" / "b.npy", values)


BAD_ITEMS = {
    "image_cut": ({}, truncate("images/b.jpg", 300), "`image_path` to be a whole picture, got b.jpg"),
    "image_empty": ({}, write("images/b.jpg", b""), "which does not decode"),
    "image_is_text": ({}, write("images/b.jpg", b"not a picture"), "which does not decode"),
    "image_missing": ({"image_path": "images/x.jpg"}, None, "no file 'images/x.jpg'"),
    "image_absolute": ({"image_path": "/etc/hostname"}, None, "`image_path` .* got '/etc/hostname'. Absolute"),
    "image_above": ({"image_path": "images/../../b.jpg"}, None, "Absolute paths and `..` are refused"),
    "image_link": ({}, link_out("images/b.jpg"), "a symbolic link out of it"),
    "image_no_text": ({"image_path": 3}, None, "inside the source folder, got 3"),
    "image_zero_byte_name": ({"image_path": "a\0b"}, None, "Correct the path"),
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
    "map_shape": (MAP, save("visual_exp/b.npy", np.ones((2, 6, 8))), r"of shape \(2, 6, 8\)"),
    "map_text": (MAP, save("visual_exp/b.npy", np.full((6, 8), "x")), "of type <U1"),
    "map_pickled": (MAP, pickled_map, "Pickled content is never loaded"),
    "map_bare_pickle": (MAP, write("visual_exp/b.npy", pickle.dumps(GRID)), "Pickled content is never loaded"),
    "map_cut": (MAP, truncated_map, "a whole .npy file of plain numbers, got b.npy"),
    "map_empty": (MAP, write("visual_exp/b.npy", b""), "a whole .npy file of plain numbers, got b.npy"),
    "map_archive": (MAP, archive_map, "an archive of arrays"),
    "class_unknown": ({"class_id": 7}, None, r"label_class_id_mapping.json, got 7. Its ids are \[2, 5, 9\]"),
    "class_text": ({"class_id": "2"}, None, "got '2'"),
    "class_disagrees": ({"ans": "cat"}, None, "`ans` to be 'dog', the class of `class_id` 2, got 'cat'"),
    "class_no_name": ({"ans": None}, None, "got None. Correct one"),
    "rationales_none": ({"exp": []}, None, r"one or more rationales, got \[\]"),
    "rationales_text": ({"exp": "It is b."}, None, "one or more rationales, got 'It is b.'"),
    "rationale_blank": ({"exp": ["It is b.", " \n"]}, None, "every rationale to be text"),
    "rationale_number": ({"exp": [4]}, None, "every rationale to be text, got 4"),
    "split_unknown": ({"split": "val"}, None, r"\['train', 'validation', 'test'\], got 'val'"),
    "group_number": ({"group": 1}, None, "`group` to be a name or null, got 1"),
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
        ("exp_annotation.json", "[]", "expected a JSON object, got a list"),
        ("exp_annotation.json", "{}", "expected at least one item"),
        ("exp_annotation.json", "{", "a JSON object in UTF-8"),
        ("exp_annotation.json", '{"a": {}, "a": {}}', "the key 'a' occurs twice"),
        ("exp_annotation.json", '{"a": 3}', "item 'a': expected a JSON object, got 3"),
        ("label_class_id_mapping.json", "[]", "expected a JSON object, got a list"),
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
    assert Release(root).items.keys() == {"a", "b", "c", "d"}
    (root / "exp_annotation.json").write_bytes(text.replace("It is a", "C'est très a").encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        build_release(root, tmp_path / "out")


def test_no_such_source(tmp_path):
    with pytest.raises(ValueError, match="expected a source folder or the word `sample`"):
        build_release(tmp_path / "nowhere", tmp_path / "out")
    assert leftovers(tmp_path) == []


# The folder that is written


def test_full_folder_is_refused_and_replaced_on_demand(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="new or empty folder.*set `overwrite`"):
        build_dataset(ObjectMe, "sample", output, sample_sizes=SMALL)
    assert (output / "mine.txt").read_text() == "keep"
    with pytest.raises(ValueError, match="expected a source folder"):
        build_release(tmp_path / "nowhere", output, overwrite=True)
    assert (output / "mine.txt").read_text() == "keep"
    build_dataset(ObjectMe, "sample", output, sample_sizes=SMALL, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "data"]
    assert leftovers(tmp_path) == ["out"]


def test_empty_folder_is_used_and_a_file_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    build_release(make_release(tmp_path / "source"), tmp_path / "out")
    assert leftovers(tmp_path) == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="got the file"):
        build_release(tmp_path / "source", tmp_path / "file", overwrite=True)


def test_source_and_working_folder_are_never_replaced(tmp_path, monkeypatch):
    root = make_release(tmp_path / "source")
    with pytest.raises(ValueError, match="which holds the source"):
        build_release(root, root, overwrite=True)
    monkeypatch.chdir(root / "images")
    with pytest.raises(ValueError, match="folder you are in"):
        build_dataset(ObjectMe, "sample", tmp_path / "source", overwrite=True)
    assert (root / "exp_annotation.json").is_file()


def test_what_a_killed_build_left_does_no_harm(tmp_path):
    """`datasets` keeps `<folder>.incomplete` after a kill and would take its junk shards into the next build."""
    stale = tmp_path / ".out.building-dead" / "parquet.incomplete"
    stale.mkdir(parents=True)
    (stale / "object_me-train-00000-00001-of-NNNNN.parquet").touch()
    foreign = tmp_path / "out.incomplete"
    foreign.mkdir()
    (foreign / "object_me-train-00000-00001-of-NNNNN.parquet").touch()
    build_release(make_release(tmp_path / "source"), tmp_path / "out")
    assert leftovers(tmp_path) == ["out", "out.incomplete"]
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 4


def test_old_folder_is_put_back_after_a_kill_between_the_renames(tmp_path):
    old = tmp_path / ".out.old-dead"
    old.mkdir()
    (old / "README.md").write_text("old")
    clean_leftovers(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "old"
    assert leftovers(tmp_path) == ["out"]


def test_failed_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    output = tmp_path / "out"
    build_release(make_release(tmp_path / "source"), output)
    before = digests(output)
    rename = Path.rename

    def fail(path, target):
        if path.name == "dataset":
            raise OSError("disk trouble")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk trouble"):
        build_release(tmp_path / "source", output, overwrite=True)
    assert digests(output) == before
    assert leftovers(tmp_path) == ["out"]


def test_rebuilt_data_set_is_not_read_from_a_stale_cache(tmp_path):
    """The two builds have equal counts and sizes; `load_dataset` keys its cache on the card, not on the shards."""
    root = make_release(tmp_path / "source", exp=["It is b."])
    build_release(root, tmp_path / "out")
    assert load_dataset(str(tmp_path / "out"), split="train")[1]["textual_explanations"] == ["It is b."]
    annotation = root / "exp_annotation.json"
    annotation.write_text(annotation.read_text().replace("It is b.", "It is B."))
    build_release(root, tmp_path / "out", overwrite=True)
    assert load_dataset(str(tmp_path / "out"), split="train")[1]["textual_explanations"] == ["It is B."]


# The sample


@pytest.mark.parametrize("name", BUILDERS)
def test_same_seed_gives_the_same_bytes_in_another_process(tmp_path, name):
    build_dataset(BUILDERS[name], "sample", tmp_path / "first" / name, sample_sizes=SMALL)
    code = (
        "import sys; from dataset_builders import BUILDERS, build_dataset; "
        f"build_dataset(BUILDERS[{name!r}], 'sample', sys.argv[1], sample_sizes={SMALL})"
    )
    second = tmp_path / "second" / name
    subprocess.run([sys.executable, "-c", code, str(second)], check=True, cwd=REPOSITORY, capture_output=True)
    assert digests(second) == digests(tmp_path / "first" / name)
    build_dataset(BUILDERS[name], "sample", tmp_path / "third" / name, seed=1, sample_sizes=SMALL)
    assert digests(tmp_path / "third" / name) != digests(second)


@pytest.mark.parametrize("builder_class", [ObjectMe, ActionMe])
def test_sample_shares_are_exact_in_every_class(builder_class):
    assert len(builder_class.SUBJECTS) == 5
    assert sorted(subject.background for subject in builder_class.SUBJECTS) == sorted(BACKGROUNDS)
    train = plan_split(builder_class.SUBJECTS, 1200, "train", np.random.default_rng(0))
    test = plan_split(builder_class.SUBJECTS, 400, "test", np.random.default_rng(0))
    for subject in builder_class.SUBJECTS:
        own = [plan for plan in train if plan.subject is subject]
        assert len(own) == 240
        assert sum(plan.background == subject.background for plan in own) == 228
        assert sum(plan.explained for plan in own) == 72
        free = [plan for plan in test if plan.subject is subject]
        assert set(Counter(plan.background for plan in free).values()) == {16}
        assert all(plan.explained for plan in free)


@pytest.mark.parametrize("builder_class", [ObjectMe, ActionMe])
def test_rationales_group_and_mask_tell_the_same(builder_class):
    subjects = {subject.label: subject for subject in builder_class.SUBJECTS}
    source = Scenes(builder_class.SUBJECTS, seed=3, sizes={"test": 50})
    plans = plan_split(builder_class.SUBJECTS, 50, "test", np.random.default_rng([3, 2]))
    places = set()
    for row, plan in zip(source.rows("test"), plans, strict=True):
        mask = PILImage.open(io.BytesIO(row["visual_explanation"]["bytes"]))
        picture = PILImage.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.size == mask.size == (128, 128) and (picture.mode, mask.mode) == ("RGB", "L")
        values = np.asarray(mask) / 255
        assert values.max() == 1 and 0.04 < values.mean() < 0.21
        place = place_of(values)
        first, second = row["textual_explanations"]
        assert first.endswith(f" at the {place} of the picture.")
        assert f" at the {place} shows " in second and row["label"] in second
        aligned = plan.background == subjects[row["label"]].background
        assert row["group"] == ("aligned" if aligned else "conflicting")
        places.add(place)
    assert places == set(PLACES)


def test_place_of_is_the_third_that_holds_the_centroid():
    for index, place in enumerate(PLACES):
        mask = np.zeros((9, 12))
        row, column = divmod(index, 3)
        mask[3 * row : 3 * row + 3, 4 * column : 4 * column + 4] = 7
        assert place_of(mask) == place


@pytest.mark.parametrize("sizes", [{"train": 0}, {"val": 3}, {"train": 2.0}])
def test_sample_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="`sample_sizes`"):
        Scenes(ObjectMe.SUBJECTS, 0, sizes)


def test_encode_map_takes_eight_bits_only_where_they_are_exact():
    eight, sixteen = (
        PILImage.open(io.BytesIO(encode_map(np.array(values)))) for values in ([[0, 0.2, 1]], [[0, 0.3, 1]])
    )
    assert eight.mode == "L" and np.asarray(eight).tolist() == [[0, 51, 255]]
    assert sixteen.mode == "I;16" and np.asarray(sixteen).tolist() == [[0, 19660, 65535]]


# The script


def run_script(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(REPOSITORY / "scripts" / "prepare_dataset.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_script_builds_and_refuses(tmp_path):
    root = make_release(tmp_path / "source", number=10)
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "| cat | 3 (0) | 1 (0) | 1 (0) |" in result.stdout
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("prepare_dataset: expected `output` to be a new or empty folder")
    assert len(result.stderr.splitlines()) == 1
    (root / "images" / "c.jpg").write_bytes(b"")
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out", "--overwrite")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "item 'c': expected `image_path` to be a whole picture" in result.stderr.splitlines()[-1]


# Real photographs


@pytest.mark.photographs
def test_photographs(tmp_path):
    root = SHARED / "data" / "object_me_release"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root}; set MEGL_SHARED to the folder that holds data/object_me_release")
    counts = build_dataset(ObjectMe, root, tmp_path / "object_me")
    assert {split: sum(pictures for pictures, _ in classes.values()) for split, classes in counts.items()} == {
        "train": 1600,
        "validation": 300,
        "test": 800,
    }
    items = json.loads((root / "exp_annotation.json").read_text())
    dataset = load_dataset(str(tmp_path / "object_me"))
    forms = set()
    for split in ("train", "test"):
        rows = dataset[split].cast_column("image", Image(decode=False))
        for row in rows.select(range(60)):
            item = items[row["id"]]
            assert row["image"]["bytes"] == (root / item["image_path"]).read_bytes()
            assert rows.features["label"].int2str(row["label"]) == item["ans"]
            assert row["textual_explanations"] == item["exp"] and row["group"] == item["group"]
            if item["visual_exp"] is None:
                assert row["visual_explanation"] is None
                continue
            stored = np.load(root / item["visual_exp"], allow_pickle=False)
            forms.add((stored.ndim, stored.dtype.kind))
            values = stored / 255 if stored.dtype.kind == "u" else stored
            values = values.mean(axis=0) if values.ndim == 3 else values
            explanation = row["visual_explanation"]
            top = 255 if explanation.mode == "L" else 65535
            np.testing.assert_allclose(np.asarray(explanation) / top, values, atol=0.5 / 65535)
    assert forms == {(3, "f"), (2, "u"), (2, "f")}
