"""Tests of the folder that a build writes: whole or absent, the same whatever the processes, read by its users."""

import json
import multiprocessing
import os
import pkgutil
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataset_sources import (
    REPOSITORY,
    SMALL,
    build_release,
    digests,
    leftovers,
    make_coco,
    make_image_folder,
    make_release,
    make_vqa_x,
)
from datasets import load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image as PILImage

import dataset_builders.hub
from dataset_builders import ActionMe, HubTarget, ObjectMe, build, build_dataset, files, shards


PINNED = ("26.0.1", "13.0.0")  # constraints.txt

pytestmark = pytest.mark.usefixtures("own_cache")


def test_full_folder_is_refused_and_replaced_on_demand(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="new or empty folder.*set `overwrite` .`--overwrite`."):
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


def test_output_in_the_source_is_refused(tmp_path):
    """Its pictures would be replaced by the data set."""
    root = make_release(tmp_path / "source")
    for output in (root / "images", root / "new"):
        with pytest.raises(ValueError, match="to be a folder of its own, got .*, which is in the source .*source"):
            build_release(root, output, overwrite=True)
    (root / "images").rename(tmp_path / "images")
    with pytest.raises(ValueError, match="which is in the source .*images. Give a folder outside"):
        build_release(root, tmp_path / "images" / "out", images=str(tmp_path / "images"))
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_links_that_lead_nowhere(tmp_path):
    root = make_release(tmp_path / "source")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileExistsError, match="`output` to be a folder, got the file .*loop"):
        build_release(root, tmp_path / "loop")
    with pytest.raises(ValueError, match="loop: expected a source folder"):
        build_release(tmp_path / "loop", tmp_path / "out")


@pytest.mark.parametrize(("step", "num_proc"), [("write", 1), ("write", 2), ("index", 1)])
def test_full_disk_is_told_and_leaves_nothing(tmp_path, step, num_proc):
    """By a limit of a file's size, which a child process gets: that of the shards, or of the index of the items."""
    rng = np.random.default_rng(0)
    root = make_image_folder(tmp_path / "source", number=26)
    for path in root.glob("*.jpg"):
        PILImage.fromarray(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(path)
    limit = {"write": 100_000, "index": 5_000}[step]
    code = (
        "import resource, sys; from dataset_builders import ObjectMe, build_dataset\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n"
        f"    build_dataset(ObjectMe, sys.argv[1], sys.argv[2], num_proc={num_proc})\n"
        "except OSError as error:\n"
        "    print(error)"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "ignored" not in done.stderr, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{tmp_path / 'out'}: ")
    assert ("File too large" in line) if step == "write" else ("Is the disk or the memory full?" in line)
    assert leftovers(tmp_path) == []


def test_what_a_killed_build_left_does_no_harm(tmp_path):
    """Nor does what another program keeps under a name like it."""
    stale = tmp_path / ".out.megl-building" / "data"
    foreign = tmp_path / "out.incomplete"
    for folder in (stale, foreign):
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00002.parquet").touch()
    build_release(make_release(tmp_path / "source"), tmp_path / "out")
    assert leftovers(tmp_path) == ["out", "out.incomplete"]
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 4


def test_failed_move_puts_the_old_folder_back(tmp_path, monkeypatch):
    output = tmp_path / "out"
    build_release(make_release(tmp_path / "source"), output)
    before = digests(output)
    rename = Path.rename

    def fail(path, target):
        if path.name == ".out.megl-building":
            raise OSError("disk trouble")
        return rename(path, target)

    monkeypatch.setattr("dataset_builders.files.exchange", lambda first, second: False)
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


# Killed at any moment


# What is killed at which call, before or after it; whether the new folder is already in its place then.
KILLS = {
    "indexing": ("dataset_builders.sources.ItemIndex", "add", 3, "before", False),
    "reading": ("dataset_builders.sources.Source", "row", 3, "before", False),
    "written": ("dataset_builders.build", "write_part", 1, "after", False),
    "all written": ("dataset_builders.build.ExplainedImages", "write", 1, "after", False),
    "describing": ("dataset_builders.build", "card", 1, "after", False),
    "replacing": ("dataset_builders.files", "replace_folder", 1, "before", False),
    "replaced": ("dataset_builders.files", "replace_folder", 1, "after", True),
    "cleaning": ("shutil", "rmtree", 2, "before", True),
}


def killed_build(owner, name, call, when, exchange, root, output):
    """Builds, in a process of its own that kills itself."""
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, name), []

    def kill(*arguments, **options):
        calls.append(1)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, kill)
    if not exchange:
        files.exchange = lambda first, second: False
    build_release(root, output, overwrite=True)


def run_killed(target, *arguments):
    # From a server that has the imports: a fork of this process would have its threads' locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataset_builders"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("step", KILLS)
def test_killed_build_leaves_the_old_folder_or_none(tmp_path, step, overwrite):
    if step == "cleaning" and not overwrite:
        pytest.skip("nothing else is removed before")
    *kill, done = KILLS[step]
    output = tmp_path / "out"
    root = make_release(tmp_path / "source")
    old = {}
    if overwrite:
        build_release(make_release(tmp_path / "before" / "source", number=2), output)
        shutil.rmtree(tmp_path / "before")
        old = digests(output)
    process = run_killed(killed_build, *kill, True, root, output)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ".out.megl-lock" in leftovers(tmp_path), "it was killed before it began or after it ended"
    assert output.exists() == (overwrite or done)
    after_kill = digests(output)
    assert done or after_kill == old
    build_release(root, output, overwrite=True)
    assert leftovers(tmp_path) == ["out"]
    assert not done or after_kill == digests(output)
    assert list(load_dataset(str(output), split="train")["id"]) == ["a", "b", "c", "d"]


def test_old_folder_survives_a_kill_between_two_renames(tmp_path):
    """Where the system cannot swap folders, there is a moment without one, and the next build puts it back."""
    output = tmp_path / "out"
    root = make_release(tmp_path / "source")
    build_release(root, output)
    old = digests(output)
    process = run_killed(killed_build, "pathlib.Path", "rename", 3, "before", False, root, output)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not output.exists()
    (root / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="which does not decode"):
        build_release(root, output, overwrite=True)
    assert digests(output) == old
    assert leftovers(tmp_path) == ["out"]


def build_in_parallel(root, output):
    build_release(root, output, overwrite=True, num_proc=2)


def test_build_killed_from_outside_at_random(tmp_path):
    """With processes that read: they end with the build, and what is there is the old folder or the new one."""
    output = tmp_path / "out"
    root = make_image_folder(tmp_path / "source", number=26)
    build_release(root, output)
    new = digests(output)
    (root / "metadata.jsonl").write_text("".join((root / "metadata.jsonl").read_text().splitlines(True)[:7]))
    build_release(root, output, overwrite=True)
    old = digests(output)
    make_image_folder(root, number=26)
    pauses = random.Random(0)
    outcomes = Counter()
    for _ in range(8):
        process = run_killed(build_in_parallel, root, output)
        time.sleep(pauses.uniform(0, 0.8))
        process.kill()
        process.join()
        found = digests(output)
        outcomes["new" if found == new else "old"] += 1
        assert found in (old, new)
    build_in_parallel(root, output)
    assert digests(output) == new
    assert leftovers(tmp_path) == ["out"]


def wait_in_build(root, output, started):
    function = build.write_part

    def wait(*arguments):
        started.set()
        time.sleep(60)
        return function(*arguments)

    build.write_part = wait
    build_release(root, output)


def test_two_builds_of_one_folder_do_not_meet(tmp_path):
    root = make_release(tmp_path / "source")
    started = multiprocessing.get_context("forkserver").Event()
    process = run_killed(wait_in_build, root, tmp_path / "out", started)
    assert started.wait(60)
    with pytest.raises(FileExistsError, match="the only program that writes .*out, got another one at work"):
        build_release(root, tmp_path / "out")
    process.kill()
    process.join()
    build_release(root, tmp_path / "out")
    assert leftovers(tmp_path) == ["out"]


# Size and order


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    root = make_image_folder(tmp_path / "source", number=26)
    (root / "e.jpg").write_bytes(b"")
    (root / "z.jpg").write_bytes(b"text")
    options = {"validation_share": 0.1, "test_share": 0.2, "on_error": "skip", "max_shard_size": "3KB"}
    build_release(root, tmp_path / "one", **options)
    assert len(list((tmp_path / "one" / "data").glob("train-*"))) > 4
    build_release(root, tmp_path / "two" / "one", num_proc=2, **options)
    assert digests(tmp_path / "one") == digests(tmp_path / "two" / "one")
    assert len((tmp_path / "one" / "skipped.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="line 5 .*e.jpg, which does not decode"):
        build_release(root, tmp_path / "three", num_proc=2)
    with pytest.raises(ValueError, match="`num_proc` to be at least 1, got 0"):
        build_release(root, tmp_path / "three", num_proc=0)
    build_release(root, tmp_path / "many" / "one", num_proc=10**6, **options)  # no more than there are parts
    assert digests(tmp_path / "one") == digests(tmp_path / "many" / "one")


@pytest.mark.parametrize("size", ["0", 0, "-5MB", "abc", "1.5GB", "", "MB", None])
def test_shard_sizes_are_checked_first(tmp_path, size):
    with pytest.raises(ValueError, match="`max_shard_size` to be a size above 0, such as '500MB', got "):
        build_release(tmp_path / "nowhere", tmp_path / "out", max_shard_size=size)


def test_shares_that_are_no_numbers(tmp_path):
    root = make_release(tmp_path / "source")
    for share in (float("nan"), float("inf"), -0.1, 1):
        with pytest.raises(
            ValueError, match="`validation_share` and `test_share` to be at least 0 and to sum to less"
        ):
            build_release(root, tmp_path / "out", validation_share=share)


def test_options_that_the_sample_has_no_use_for(tmp_path):
    for options in ({"layout": "coco"}, {"images": str(tmp_path / "images")}, {"explain_category": True}):
        with pytest.raises(ValueError, match="`.*` with a source folder alone, got the sample. Leave it out"):
            build_dataset(ObjectMe, "sample", tmp_path / "out", sample_sizes=SMALL, **options)


def test_shards_and_batches_are_bounded_in_bytes(tmp_path, monkeypatch):
    """Pictures of 60 kB, batches of 200 kB, shards of 500 kB: four rows a batch, two batches a shard."""
    monkeypatch.setattr(shards, "BATCH_BYTES", 200_000)
    root = make_image_folder(tmp_path / "source", number=20)
    for path in root.glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-2] + bytes(60_000 - path.stat().st_size) + b"\xff\xd9")
    build_release(root, tmp_path / "out", max_shard_size="500KB")
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [file.name for file in files] == [f"train-{index:05d}-of-00003.parquet" for index in range(3)]
    assert all(file.stat().st_size < 500_000 for file in files)
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert [meta.row_group(i).num_rows for meta in groups for i in range(meta.num_row_groups)] == [4] * 5
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert list(rows["id"]) == [f"{chr(ord('a') + index)}.jpg" for index in range(20)]


def test_shards_are_those_of_datasets(tmp_path):
    """To the byte, so that what is named by their checksum, as a study's runs are, keeps its name."""
    root = make_image_folder(tmp_path / "source", number=26)
    build_release(root, tmp_path / "out", max_shard_size="6KB")
    for shard in sorted((tmp_path / "out" / "data").iterdir()):
        load_dataset("parquet", data_files=str(shard), split="train").to_parquet(tmp_path / "again", batch_size=100)
        assert shard.read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.skipif((version("pyarrow"), version("pillow")) != PINNED, reason="they write other bytes")
def test_sample_is_named_as_ever(tmp_path):
    build_dataset(ObjectMe, "sample", tmp_path / "out", sample_sizes=SMALL)
    checksum = "834e06da1b2369528ff834cb52c63628e8e2deaab7498d6effe68cbaeed7f349"
    assert load_dataset_builder(str(tmp_path / "out")).config.description == f"Object-ME, shards sha256 {checksum}"


def test_pictures_are_never_those_of_the_working_folder(tmp_path, monkeypatch):
    """`datasets` takes a picture's path for a file of the folder that one is in, and leaves out its bytes."""
    root = make_image_folder(tmp_path / "source", number=3)
    build_release(root, tmp_path / "out")
    for name in ("a.jpg", "b.jpg", "a.png"):
        (tmp_path / "work" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "work" / name).write_bytes(b"another picture")
    monkeypatch.chdir(tmp_path / "work")
    build_release(root, tmp_path / "again" / "out")
    assert digests(tmp_path / "again" / "out") == digests(tmp_path / "out")
    builder = ObjectMe(cache_dir=str(tmp_path / "cache"), source=str(root), validation_share=0, test_share=0)
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    assert stored(tmp_path / "parquet") == stored(tmp_path / "out" / "data")


def stored(folder):
    """The rows of a folder of Parquet files, of pictures the bytes alone."""
    rows = pq.read_table(sorted(folder.glob("*.parquet"))).to_pylist()
    return [row | {name: row[name] and row[name]["bytes"] for name in ("image", "visual_explanation")} for row in rows]


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_builder_runs_as_any_of_datasets(tmp_path, file_format):
    """By `download_and_prepare`, whose shards are those of `datasets`."""
    options = {"source": "sample", "sample_sizes": SMALL}
    builder = ObjectMe(cache_dir=str(tmp_path / "cache"), **options)
    builder.download_and_prepare(str(tmp_path / "prepared"), file_format=file_format)
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == SMALL
    build_dataset(ObjectMe, **options, output=tmp_path / "out")
    for split in SMALL:
        built = load_dataset(str(tmp_path / "out"), split=split)
        files = [str(path) for path in sorted((tmp_path / "prepared").glob(f"*{split}*.{file_format}"))]
        prepared = load_dataset(file_format, data_files=files, split="train")
        assert prepared.features == built.features
        assert list(prepared) == list(built)


def test_streaming_resumes(tmp_path):
    root = make_image_folder(tmp_path / "source", number=26)
    build_release(root, tmp_path / "out", max_shard_size="6KB")
    assert len(list((tmp_path / "out" / "data").iterdir())) >= 1
    stream = load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    rows = iter(stream)
    first = [next(rows)["id"] for _ in range(11)]
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert first + [row["id"] for row in rest] == [f"{chr(ord('a') + index)}.jpg" for index in range(26)]
    assert rest[0]["image"].size == (40, 30)


# The card


def test_card_is_read_back(tmp_path):
    build_dataset(ActionMe, "sample", tmp_path / "action_me", sample_sizes=SMALL)
    card = DatasetCard.load(tmp_path / "action_me" / "README.md")
    assert card.data.license == "apache-2.0"
    assert "| running | 4 (1, 8) | 1 (1, 2) | 2 (2, 4) |" in card.text
    assert "2411.13053" in card.text
    assert "in brackets the pictures with a visual explanation and the number of rationales, of which" in card.text
    assert "| `group` | the group that the source puts the item in, else `None` |" in card.text
    info = load_dataset_builder(str(tmp_path / "action_me")).info
    assert {name: split.num_examples for name, split in info.splits.items()} == SMALL
    assert info.features["label"].names == ["running", "waving", "sitting", "lifting", "kicking"]
    files = sorted((tmp_path / "action_me" / "data").iterdir())
    assert [file.name for file in files] == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]
    assert info.download_size == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("make", [make_release, make_vqa_x, make_image_folder])
def test_card_of_every_source_tells_features_and_counts(tmp_path, make):
    counts = build_dataset(ObjectMe, make(tmp_path / "source"), tmp_path / "out")
    info = load_dataset_builder(str(tmp_path / "out")).info
    totals = {split: sum(pictures for pictures, *_ in classes.values()) for split, classes in counts.items()}
    assert {name: split.num_examples for name, split in info.splits.items()} == totals
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert data.size_categories == ["n<1K"] and data.license == "unknown"
    assert data.pretty_name == ("source" if make is make_image_folder else "Object-ME")
    assert data.language == (None if make is make_image_folder else ["en"])
    for split, number in totals.items():
        rows = load_dataset(str(tmp_path / "out"), split=split)
        assert rows.features == info.features and len(rows) == number
        for label, name in enumerate(info.features["label"].names):
            own = [row for row in rows if row["label"] == label]
            maps = sum(row["visual_explanation"] is not None for row in own)
            assert counts[split][name] == (len(own), maps, sum(len(row["textual_explanations"]) for row in own))


@pytest.mark.parametrize("make", [make_image_folder, make_coco])
def test_own_data_is_not_called_object_me(tmp_path, make):
    build_dataset(ObjectMe, make(tmp_path / "Birds: ours"), tmp_path / "birds")
    text = (tmp_path / "birds" / "README.md").read_text()
    data = DatasetCard.load(tmp_path / "birds" / "README.md").data
    assert data.pretty_name == "Birds: ours" and data.language is None and data.license == "unknown"
    assert "Object-ME" not in text and "kind of object" not in text and "language:" not in text
    assert "\n# Birds: ours\n" in text and 'load_dataset("birds")' in text
    load_dataset(str(tmp_path / "birds"))


# PyYAML reads `no` and `on` as booleans, and takes `: `, ` #` and a quote for its own.
HOSTILE = "no: 'V\u00f6gel' # [x] {y} & *z | \"\u732b\" \U0001f468\u200d\U0001f469\u200d\U0001f466"


def test_what_the_user_says_is_in_the_card(tmp_path):
    root = make_image_folder(tmp_path / "own")
    description = "Birds.\n\n---\npretty_name: other\n---\n"
    options = {"name": HOSTILE, "language": ["no", "pt-BR"], "description": description, "license": "cc-by-4.0"}
    build_dataset(ObjectMe, root, tmp_path / "out", **options)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert (card.data.pretty_name, card.data.language, card.data.license) == (HOSTILE, ["no", "pt-BR"], "cc-by-4.0")
    assert card.text.strip().startswith(f"# {HOSTILE}\n\n{description}")
    assert load_dataset_builder(str(tmp_path / "out")).config.description.startswith(f"{HOSTILE}, shards sha256 ")
    build_dataset(ActionMe, "sample", tmp_path / "sample", sample_sizes=SMALL, name="Mine", language="de")
    data = DatasetCard.load(tmp_path / "sample" / "README.md").data
    assert (data.pretty_name, data.language, data.license) == ("Mine", ["de"], "apache-2.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a\nb"}, r"`name` to be one line of text, got 'a\\nb'"),
        ({"name": "a\u2028b"}, "`name` to be one line of text"),
        ({"name": " "}, "`name` to be one line of text, got ' '"),
        ({"name": "a\x1b[2J"}, "`name` to be one line of text"),
        ({"name": "\ud800"}, "`name` to be one line of text"),
        ({"name": 3}, "`name` to be one line of text, got 3"),
        ({"license": "mit\nname: x"}, "`license` to be one line of text"),
        ({"description": "\x00"}, "`description` to be text"),
        ({"description": ""}, "`description` to be text, got ''"),
        ({"language": "English"}, "`language` to be ISO 639 codes, such as 'en', got 'English'"),
        ({"language": ["en", "e\n"]}, "`language` to be ISO 639 codes"),
        ({"language": [None]}, "`language` to be ISO 639 codes, .* got None"),
    ],
)
def test_what_the_user_says_is_checked_first(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build_dataset(ObjectMe, tmp_path / "nowhere", tmp_path / "out", **options)


def test_class_names_do_not_break_the_card(tmp_path):
    root = make_image_folder(tmp_path / "own", label="a|b\n| c: 'd' # \x1b")
    counts = build_dataset(ObjectMe, root, tmp_path / "out", validation_share=0, test_share=0)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| a\\|b | c: 'd' # \N{REPLACEMENT CHARACTER} | 1 (0, 1) |" in text.replace("\\| c", "| c")
    assert load_dataset(str(tmp_path / "out"), split="train").features["label"].names == sorted(counts["train"])


# The Hub


class Hub:
    """Notes what a client of the Hub is asked to do."""

    def __init__(self, private=None):
        self.private = private
        self.asked = []

    def __call__(self):
        return self

    def repo_info(self, repository, repo_type):
        if self.private is None:
            raise RepositoryNotFoundError("no such repository", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(private=self.private)

    def create_repo(self, repository, **options):
        self.asked.append(("create", repository, options))
        return f"https://huggingface.co/datasets/{repository}"

    def upload_folder(self, **options):
        self.asked.append(("upload", options["repo_id"], options))


@pytest.fixture()
def hub(monkeypatch):
    def set_up(token="secret", **options):
        hub = Hub(**options)
        monkeypatch.setattr(dataset_builders.hub, "HfApi", hub)
        monkeypatch.setattr(dataset_builders.hub, "get_token", lambda: token)
        return hub

    return set_up


def test_push_is_private_and_removes_earlier_shards(tmp_path, hub):
    asked = hub().asked
    assert HubTarget("me/own").push(tmp_path) == "https://huggingface.co/datasets/me/own"
    (created, name, creation), (uploaded, repository, upload) = asked
    assert (created, name, uploaded, repository) == ("create", "me/own", "upload", "me/own")
    assert creation == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert upload["folder_path"] == str(tmp_path) and upload["repo_type"] == "dataset"
    assert upload["delete_patterns"] == ["data/*", "skipped.jsonl"]


def test_push_needs_a_token_and_never_publishes_unasked(hub):
    hub(token=None)
    with pytest.raises(ValueError, match="expected a token of the Hub, to push to me/own, got none"):
        HubTarget("me/own")
    hub(private=True)
    HubTarget("me/own")
    asked = hub(private=False).asked
    with pytest.raises(ValueError, match="me/own to be new or private, got a public dataset"):
        HubTarget("me/own")
    HubTarget("me/own", private=False).push("folder")
    assert asked[0][2]["private"] is False
