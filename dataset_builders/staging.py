"""An output folder that is always whole: written beside its place, then put there in one step."""

import ctypes
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


RENAME_EXCHANGE = 2
AT_FDCWD = -100
LOCK = "lock"


def check_output(output: Path, sources: list[Path], overwrite: bool):
    """Raises unless `output` may be written: it is new, or empty, or may be replaced, and beside the sources."""
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
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise FileExistsError(f"expected `output` to be a folder, got the file {output}. Give another name.")
    if any(output.iterdir()) and not overwrite:
        raise FileExistsError(
            f"expected `output` to be a new or empty folder, got {output}, which is not empty. Give another folder, "
            "or set `overwrite` (`--overwrite`) to replace all that is in it."
        )


@contextmanager
def stage_beside(output: Path) -> Iterator[Path]:
    """A locked temporary folder beside `output`, removed at the end. What killed builds left is put right first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(output)
    stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    try:
        with open(stage / LOCK, "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def clean_leftovers(output: Path):
    """Removes what a killed build left beside `output`, and puts the old folder back if it was being replaced.

    Raises:
        `FileExistsError`: if another build of `output` is under way.
    """
    stages = sorted(output.parent.glob(f".{output.name}.building-*"))
    for stage in stages:
        if is_locked(stage / LOCK):
            raise FileExistsError(f"expected to be the only build of {output}, got another one at work in {stage}.")
    for old in sorted(output.parent.glob(f".{output.name}.old-*")):
        if output.exists():
            shutil.rmtree(old)
        else:
            old.rename(output)
    for stage in stages:
        shutil.rmtree(stage, ignore_errors=True)


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock on a file. Such locks end with the process, however it ends."""
    try:
        with open(path, "r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def replace_folder(finished: Path, output: Path):
    """Puts `finished` in the place of `output`, in one step where the system can swap two folders.

    Where it cannot, an old `output` is put aside first, and put back if the second step fails or, after a kill
    between the two, by the next build.
    """
    if not output.exists():
        finished.rename(output)
        return
    if exchange(finished, output):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
    output.rename(old)  # a folder may be renamed onto an empty one
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
