"""Output that is either whole or absent: the folders and files that all scripts write."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


def check_new(output):
    """The path of a folder to write, refused with a `FileExistsError` where it exists and holds anything."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder: choose another `--output`, or remove it.")
    return output


@contextmanager
def new_folder(output):
    """A temporary folder beside `output` that takes its place when the block ends, and is removed if it fails."""
    output = check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield staging
        staging.chmod(0o755)
        check_new(output)  # once more: another program may have written it meanwhile
        if output.exists():
            output.rmdir()
        staging.rename(output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_new_file(output, overwrite):
    """The path of a file to write, refused with a `FileExistsError` where it exists and may not be replaced."""
    output = Path(output)
    if output.is_dir():
        raise FileExistsError(f"{output} is a folder: choose another `--output`.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists: choose another `--output`, or set `--overwrite`.")
    return output


def write_file(output, text):
    """Write a text file that is whole or absent, or the old one, at any moment."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
