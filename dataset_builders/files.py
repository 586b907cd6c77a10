"""Output that is whole or absent, or the old one, at any moment: the folders and files that all programs write."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


RENAME_EXCHANGE = 2
AT_FDCWD = -100
# Seconds: the processes that a killed program had started end a moment after it, and hold its lock until then.
PATIENCE = 2


def check_new(output, overwrite: bool = False) -> Path:
    """The path of a folder to write; a `FileExistsError` where it is a file, or holds anything that is to stay."""
    output = Path(output)
    if not os.path.lexists(output):
        return output
    if not output.is_dir():
        raise FileExistsError(f"expected `output` to be a folder, got the file {output}. Give another name.")
    if any(output.iterdir()) and not overwrite:
        raise FileExistsError(
            f"expected `output` to be a new or empty folder, got {output}, which is not empty. Give another folder, "
            "remove this one, or set `overwrite` (`--overwrite`), where there is such an option, to replace all that "
            "is in it."
        )
    return output


def check_apart(output: Path, sources: list[Path]):
    """Raises unless `output` lies outside of the sources, and holds neither one of them nor the working folder."""
    sources = [Path(os.path.realpath(folder)) for folder in sources]
    for folder in [Path.cwd(), *sources]:
        if folder.is_relative_to(output):
            raise ValueError(
                f"expected `output` to be a folder of its own, got {output}, which holds the source or the folder you "
                "are in. Give another folder."
            )
    for folder in sources:
        if output.is_relative_to(folder):
            raise ValueError(
                f"expected `output` to be a folder of its own, got {output}, which is in the source {folder}. Give a "
                "folder outside."
            )


@contextmanager
def new_folder(output, overwrite: bool = False, wait: bool = False) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its place when the block ends, and is removed if it fails.

    What a killed program left is put right first.

    Args:
        output (`str` or `Path`): the folder to write, new or empty unless `overwrite`.
        overwrite (`bool`): whether to replace it where it holds anything, in one step where the system can.
        wait (`bool`): whether to wait for another program that writes it.

    Raises:
        `FileExistsError`: if `output` may not be replaced, or another program writes it.
    """
    output = Path(os.path.realpath(check_new(output, overwrite)))
    output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(output, wait):
        mend(output)
        check_new(output, overwrite)
        folder = beside(output, "building")
        folder.mkdir()
        try:
            yield folder
            replace_folder(folder, output, overwrite)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_new_file(output, overwrite: bool) -> Path:
    """The path of a file to write; a `FileExistsError` where it exists and may not be replaced."""
    output = Path(output)
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder: choose another `--output`.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists: choose another `--output`, or set `--overwrite`.")
    return output


def write_file(output: Path, text: str):
    """Writes a text file that is whole or absent, or the old one, at any moment."""
    with whole_file(output) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """A hidden file beside `output` that takes its place when the block ends, and is removed if it fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(output, wait=True):
        partial = beside(output, "partial")
        partial.unlink(missing_ok=True)  # what a killed program left, or a link that leads elsewhere
        try:
            yield partial
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)


def beside(output: Path, purpose: str) -> Path:
    """A hidden neighbour of `output`, by a name that is nobody else's: it is removed without asking."""
    return output.with_name(f".{output.name}.megl-{purpose}")


@contextmanager
def only_writer(output: Path, wait: bool) -> Iterator[None]:
    """Holds the lock on `output`, by a hidden file beside it. Such locks end with their process, however it ends."""
    path = beside(output, "lock")
    path.touch()  # where no file can be written, filelock would try for ever
    lock = FileLock(path, timeout=-1 if wait else PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"expected to be the only program that writes {output}, got another one at work. Wait for it to end, or "
            "give another name."
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes a new one
        lock.release()


def mend(output: Path):
    """Removes what a killed program left beside `output`, and puts the old folder back if it was being replaced."""
    old = beside(output, "old")
    if old.exists() and not output.exists():
        old.rename(output)
    for left in (old, beside(output, "building")):
        if left.exists():
            shutil.rmtree(left)


def replace_folder(finished: Path, output: Path, overwrite: bool):
    """Puts `finished` in the place of `output`, in one step where the system can swap two folders.

    Where it cannot, an old `output` is put aside first, and put back if the second step fails or, after a kill between
    the two, by the next program that writes it.
    """
    if not overwrite or not output.exists():
        finished.rename(check_new(output))  # once more: a program without the lock may have written it meanwhile
        return
    if exchange(finished, output):
        return
    old = beside(output, "old")
    output.rename(old)
    try:
        finished.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; `False` where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
