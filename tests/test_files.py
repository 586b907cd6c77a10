"""Tests of what all programs write by: whole or absent, one writer at a time, and what a killed one left."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dataset_builders import files
from dataset_builders.files import check_new_file, new_folder, write_file


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture()
def held(tmp_path):
    """`held()` writes `out/theirs` in a thread of its own, until `held.release` is set."""
    begun, release = threading.Event(), threading.Event()

    def write():
        with new_folder(tmp_path / "out") as folder:
            (folder / "theirs").touch()
            begun.set()
            release.wait(60)

    def start():
        thread.start()
        assert begun.wait(60)

    thread = threading.Thread(target=write)
    start.release = release
    yield start
    release.set()
    thread.join()


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_new_folder_is_there_at_the_end(tmp_path, there):
    output = tmp_path / "of" / "out"
    if there:
        output.mkdir(parents=True)
    with new_folder(output) as folder:
        (folder / "ours").touch()
        assert there == output.exists() and not (output / "ours").exists()
    assert names(tmp_path) == ["of", "of/out", "of/out/ours"]


def test_folder_behind_a_link_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far")
    with new_folder(tmp_path / "out") as folder:
        (folder / "ours").touch()
    assert names(tmp_path) == ["far", "far/ours", "out"] and (tmp_path / "out").is_symlink()


def test_failing_block_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("half-way")
    assert names(tmp_path) == []


def test_full_folder_is_kept_or_replaced_as_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(FileExistsError, match="`output` to be a new or empty folder, got .*out, .* set `overwrite`"):
        with new_folder(tmp_path / "out"):
            raise AssertionError("it began")
    assert names(tmp_path) == ["out", "out/theirs"]
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "ours").touch()
        assert (tmp_path / "out" / "theirs").exists()
    assert names(tmp_path) == ["out", "out/ours"]


def test_what_another_program_wrote_meanwhile_is_kept(tmp_path):
    """One that does not ask for the lock."""
    with pytest.raises(FileExistsError, match="`output` to be a new or empty folder, got .*out, which is not empty"):
        with new_folder(tmp_path / "out") as folder:
            (folder / "ours").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
    assert names(tmp_path) == ["out", "out/theirs"]


def test_second_writer_is_refused(tmp_path, held, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    held()
    with pytest.raises(FileExistsError, match="the only program that writes .*out, got another one at work. Wait"):
        with new_folder(tmp_path / "out"):
            raise AssertionError("it began")
    assert names(tmp_path) == [".out.megl-building", ".out.megl-building/theirs", ".out.megl-lock"]


def test_second_writer_waits_if_asked(tmp_path, held, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    held()
    timer = threading.Timer(0.5, held.release.set)
    timer.start()
    with pytest.raises(FileExistsError, match="which is not empty"), new_folder(tmp_path / "out", wait=True):
        raise AssertionError("it began")
    timer.join()
    assert names(tmp_path) == ["out", "out/theirs"]


KILLED = """
import os, signal, sys, time
from dataset_builders.files import new_folder

with new_folder(sys.argv[1]) as folder:
    (folder / "half").touch()
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_writer_gives_way_with_its_children(tmp_path):
    """Which hold its lock as long as they live."""
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")])
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.megl-building", ".out.megl-building/half", ".out.megl-lock"]
    with new_folder(tmp_path / "out") as folder:
        (folder / "ours").touch()
    assert names(tmp_path) == ["out", "out/ours"]


def test_old_folder_is_put_back_after_a_kill_between_the_renames(tmp_path):
    (tmp_path / ".out.megl-old").mkdir()
    (tmp_path / ".out.megl-old" / "README.md").write_text("old")
    with pytest.raises(FileExistsError, match="which is not empty"), new_folder(tmp_path / "out"):
        raise AssertionError("it began")
    assert names(tmp_path) == ["out", "out/README.md"]


def test_swap_of_two_folders(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files.exchange(tmp_path / "first", tmp_path / "second"):
        pytest.skip("this system cannot swap folders")
    assert (tmp_path / "first" / "second").exists() and (tmp_path / "second" / "first").exists()
    assert not files.exchange(tmp_path / "first", tmp_path / "nowhere")


def test_file_is_whole_whoever_writes_it(tmp_path, monkeypatch):
    texts = [letter * 1_000 for letter in "abcdefgh"]
    replace = files.os.replace

    def replace_slowly(partial, output):
        time.sleep(0.01)
        replace(partial, output)
        assert output.read_text(encoding="utf-8") in texts

    monkeypatch.setattr(files.os, "replace", replace_slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_file(tmp_path / "of" / "page", text), texts))
    assert names(tmp_path) == ["of", "of/page"]


def test_failed_file_leaves_the_old_one(tmp_path):
    write_file(tmp_path / "page", "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "page", "new \ud800")
    assert names(tmp_path) == ["page"] and (tmp_path / "page").read_text() == "old"
    with pytest.raises(FileExistsError, match="page exists: choose another `--output`, or set `--overwrite`"):
        check_new_file(tmp_path / "page", overwrite=False)
    with pytest.raises(FileExistsError, match=" is a folder: choose another"):
        check_new_file(tmp_path, overwrite=True)


def test_neighbours_of_other_names_stay(tmp_path):
    """What is removed without asking has a name that nobody else gives."""
    for name in (".out.old", ".out.building", ".out.partial", ".out.lock"):
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out") as work:
        (work / "new").touch()
    write_file(tmp_path / "out" / "page", "text")
    assert names(tmp_path) == [".out.building", ".out.lock", ".out.old", ".out.partial", "out", "out/new", "out/page"]


def test_a_link_in_the_place_of_what_is_written_leads_nowhere(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / ".page.megl-partial").symlink_to(victim)
    write_file(tmp_path / "page", "text")
    assert victim.read_text() == "kept" and (tmp_path / "page").read_text() == "text"
    assert not (tmp_path / "page").is_symlink()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can make files")
def test_where_no_file_can_be_made_nobody_waits():
    with pytest.raises(OSError):
        write_file(Path("/proc/page.html"), "text")
