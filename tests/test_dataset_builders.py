"""Tests of the builders: the values that come out of the release and the sample, the splits, the script."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from dataset_sources import (
    GRID,
    REPOSITORY,
    SMALL,
    build_release,
    digests,
    make_image_folder,
    make_release,
    picture_bytes,
)
from datasets import ClassLabel, Image, List, Value, load_dataset
from huggingface_hub.errors import HTTPError
from PIL import Image as PILImage

from dataset_builders import BUILDERS, PLACES, ActionMe, ObjectMe, build_dataset, place_of
from dataset_builders.maps import encode_map
from dataset_builders.release import Release
from dataset_builders.scenes import BACKGROUNDS, Scenes, plan_split
from dataset_builders.sources import Item, ItemIndex, Part


SHARED = Path(os.environ.get("MEGL_SHARED", REPOSITORY.parent / "shared"))
pytestmark = pytest.mark.usefixtures("own_cache")


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
        (np.stack([GRID / 255, GRID / 255], axis=2), "L", GRID),
        (GRID.astype(np.uint16) * 257, "L", GRID),
        (GRID.astype(np.uint16) * 250, "I;16", GRID.astype(int) * 250),
        (GRID.astype(np.float16) / 256, "I;16", np.rint(GRID / 256 * 65535)),
    ],
    ids=[
        *("integers", "wide_integers", "channels", "floats", "booleans", "precise_floats", "different_channels"),
        *("channels_last", "sixteen_bits", "precise_sixteen_bits", "half_floats"),
    ],
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
    assert counts == {"train": {"dog": (2, 0, 4), "cat": (2, 0, 4), "owl": (0, 0, 0)}}


def test_own_split_is_kept_and_the_rest_is_stratified_by_picture(tmp_path):
    root = make_release(tmp_path / "source", number=20, split="validation")
    annotation = root / "exp_annotation.json"
    items = json.loads(annotation.read_text())
    items["twin"] = {**items["b"], "image_path": "./images/b.jpg", "split": None}
    annotation.write_text(json.dumps(items))
    index = Release(root, validation_share=0.1, test_share=0.2).index
    split_of = {item.id: split for split in ("train", "validation", "test") for item in index.read(Part(split))}
    assert split_of.keys() == items.keys()
    assert split_of["b"] == split_of["twin"] == "validation"
    by_class = Counter((items[key]["ans"], split) for key, split in split_of.items() if key not in ("b", "twin"))
    assert by_class[("cat", "test")] == 2 and by_class[("cat", "validation")] == 1 and by_class[("cat", "train")] == 7
    assert by_class[("dog", "test")] == 2 and by_class[("dog", "validation")] == 1 and by_class[("dog", "train")] == 6


def draw(folder: Path, classes: dict[str, str], *arguments) -> dict[str, str]:
    """Picture to split, for items named like their pictures."""
    folder.mkdir()
    index = ItemIndex(folder / "items.sqlite")
    for picture, label in classes.items():
        index.add(Item(picture, "here", picture, label, ["It is."]), size=1)
    index.draw_splits(*arguments)
    return {item.id: split for split in ("train", "validation", "test") for item in index.read(Part(split))}


def test_split_is_seeded_and_ignores_the_order_of_the_items(tmp_path):
    classes = {f"{name}{index}": name for name in ("cat", "dog") for index in range(50)}
    first = draw(tmp_path / "a", classes, 0.1, 0.2, 0)
    assert first == draw(tmp_path / "b", dict(reversed(classes.items())), 0.1, 0.2, 0)
    assert first != draw(tmp_path / "c", classes, 0.1, 0.2, 1)
    counts = Counter((classes[picture], split) for picture, split in first.items())
    assert all(
        counts[name, split] == number
        for name in ("cat", "dog")
        for split, number in (("train", 35), ("validation", 5), ("test", 10))
    )
    plain = draw(tmp_path / "d", classes, 0, 0.2, 0)
    assert Counter(plain.values()) == {"train": 80, "test": 20}
    with pytest.raises(ValueError, match="sum to less than 1"):
        Release(tmp_path, validation_share=0.5, test_share=0.5)


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
    assert build_release(root, tmp_path / "out")["train"]["dog"] == (2, 1, 4)


# The sample


@pytest.mark.parametrize("name", ["object_me", "action_me"])
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
    for row, plan in zip(source.rows("test", []), plans, strict=True):
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


def run_script(*arguments, script="prepare_dataset", **variables) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, str(REPOSITORY / "scripts" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)


def test_script_builds_and_refuses(tmp_path):
    root = make_release(tmp_path / "source", number=10)
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "| cat | 3 (0, 6) | 1 (0, 2) | 1 (0, 2) |" in result.stdout
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("prepare_dataset: expected `output` to be a new or empty folder")
    assert len(result.stderr.splitlines()) == 1
    (root / "images" / "c.jpg").write_bytes(b"")
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out", "--overwrite")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "item 'c': expected `image_path` to be a whole picture" in result.stderr.splitlines()[-1]


def test_script_takes_hyphens_and_asks_for_a_token_first(tmp_path):
    root = make_release(tmp_path / "source", number=10, ans="zebra")
    options = ["--on-error=skip", "--validation-share", 0, "--num-proc", 2]
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    assert "| cat | 4 (0, 8) | 1 (0, 2) |" in result.stdout and "| class | train | test |" in result.stdout
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 1
    push = ["--push_to_hub", "me/own"]
    nobody = {"HF_HOME": str(tmp_path / "nobody"), "HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    result = run_script("object_me", "--source", root, "--output", tmp_path / "new", *push, **nobody)
    assert result.returncode == 1 and not (tmp_path / "new").exists()
    assert result.stderr.startswith("prepare_dataset: expected a token of the Hub, to push to me/own, got none.")


LETTERS = "V\u00f6gel \u732b \U0001f431"


def test_scripts_write_utf_8_in_any_locale(tmp_path):
    """File names, class names and rationales of any letters, in and out, where Python's own encoding is ASCII."""
    root = tmp_path / "gr\u00f6\u00dfe"
    root.mkdir()
    (root / f"{LETTERS}.jpg").write_bytes(picture_bytes())
    np.save(root / "\u00e9.npy", GRID)
    line = {"file_name": f"{LETTERS}.jpg", "label": LETTERS, "textual_explanations": [LETTERS]}
    line["visual_explanation_file_name"] = "\u00e9.npy"
    (root / "metadata.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    output, locale = tmp_path / "\u00fc", {"PYTHONUTF8": "0", "LC_ALL": "C"}
    options = ["--validation_share", 0, "--test_share", 0, "--description", LETTERS, "--language", "de"]
    result = run_script("object_me", "--source", root, "--output", output, *options, **locale)
    assert result.returncode == 0, result.stderr
    (row,) = load_dataset(str(output), split="train").cast_column("image", Image(decode=False))
    assert row["id"] == row["image"]["path"] == f"{LETTERS}.jpg"
    assert row["textual_explanations"] == [LETTERS]
    np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), GRID)
    text = (output / "README.md").read_bytes().decode("utf-8")
    assert "# gr\u00f6\u00dfe\n" in text and f"| {LETTERS} | 1 (1, 1) |" in text
    page = tmp_path / "\u00e4.html"
    arguments = ["--output", page, "--json"]
    result = run_script(output, *arguments, script="inspect_dataset", **locale)
    assert result.returncode == 1 and "expected a path that is text in this locale" in result.stderr
    output = output.rename(tmp_path / "plain")
    result = run_script(output, *arguments, script="inspect_dataset", **locale)
    assert result.returncode == 0, result.stderr
    assert LETTERS in page.read_bytes().decode("utf-8")
    assert json.loads(page.with_suffix(".json").read_bytes().decode("utf-8"))["dataset"] == "plain"


def test_script_tells_what_was_left_out_and_takes_the_cards_text(tmp_path):
    root = make_release(tmp_path / "source", split="train")
    annotation = root / "exp_annotation.json"
    items = json.loads(annotation.read_text())
    annotation.write_text(json.dumps({**items, "twin": {**items["b"], "split": "test"}}))
    card = ["--name", "Cats and dogs", "--language", "en", "de", "--description", "What they do."]
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out", *card)
    assert result.returncode == 0, result.stderr
    assert "- 1 items: the picture is also in a later split" in result.stdout
    text = (tmp_path / "out" / "README.md").read_text()
    assert "pretty_name: Cats and dogs" in text and "# Cats and dogs\n\nWhat they do.\n" in text


def test_script_tells_of_labels_that_look_alike_and_keys_that_are_not_read(tmp_path):
    root = make_image_folder(tmp_path / "source", number=6)
    labels = ["Cat", "cat ", "caf\u00e9", "cafe\u0301", "hot dog", "dog"]
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    lines = [{**line, "label": label, "width": 40, "licence": "x"} for line, label in zip(lines, labels, strict=True)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_script("object_me", "--source", root, "--output", tmp_path / "out", PYTHONUTF8="1")
    assert result.returncode == 0, result.stderr
    alike = "Classes that differ in case, blanks or the form of their letters alone: "
    told = [line for line in result.stdout.splitlines() if line.startswith((alike, "Keys"))]
    assert told == [
        alike + "'Cat' = 'cat '",
        alike + "'cafe\u0301' = 'caf\u00e9'",
        "Keys that are not read: licence, width",
    ]
    result = run_script("object_me", "--source", make_image_folder(tmp_path / "plain"), "--output", tmp_path / "out2")
    assert result.stdout.splitlines()[-1] == "No item was bad."
    assert result.stdout.splitlines()[0].endswith(
        ": pictures (of these, with a visual explanation; number of rationales)"
    )


def test_script_ends_in_one_line_before_the_build(tmp_path, monkeypatch, capsys):
    from megl.scripts import prepare_dataset

    def fail(*arguments, **options):
        raise HTTPError("no route to\nthe host")

    def run(*arguments, source="sample"):
        command = ["prepare_dataset", "object_me", "--source", source, "--output", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        prepare_dataset.main()

    monkeypatch.setattr(prepare_dataset, "HubTarget", fail)
    for arguments, message in (
        (["--push_to_hub", "me/own"], "no route to the host"),
        (["--language", "en", "German"], "expected `language` to be ISO 639 codes, such as 'en', got 'German'."),
        (["--max_shard_size", "0"], "expected `max_shard_size` to be a size above 0, such as '500MB', got '0'."),
        (["--num_proc", 0], "expected `num_proc` to be at least 1, got 0."),
    ):
        with pytest.raises(SystemExit, match=f"^prepare_dataset: {re.escape(message)}$"):
            run(*arguments)
    with pytest.raises(SystemExit, match=r"^prepare_dataset: [^\n\x1b]*no where[^\n\x1b]*: expected a source folder"):
        run(source=tmp_path / "no\nwhere\x1b")
    with pytest.raises(SystemExit):
        run("--public")
    assert "`--public` says who may see what `--push_to_hub` uploads" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_builder_streams_without_building(tmp_path):
    root = make_release(tmp_path / "source")
    builder = ObjectMe(cache_dir=str(tmp_path / "cache"), source=str(root), validation_share=0, test_share=0)
    rows = builder.as_streaming_dataset(split="train")
    assert [(row["id"], row["label"]) for row in rows] == [("a", 1), ("b", 0), ("c", 1), ("d", 0)]


# Real photographs


@pytest.mark.photographs
def test_photographs(tmp_path):
    root = SHARED / "data" / "object_me_release"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root}; set MEGL_SHARED to the folder that holds data/object_me_release")
    counts = build_dataset(ObjectMe, root, tmp_path / "object_me")
    assert {split: sum(pictures for pictures, *_ in classes.values()) for split, classes in counts.items()} == {
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
