"""Checkpoints of a training that a kill or a full disk may have left half-written."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import logging


logger = logging.get_logger(__name__)


def last_whole_checkpoint(output_dir):
    """The newest whole `checkpoint-N` in a folder (`str`), or `None`; what is passed over is named in a warning."""
    if not Path(output_dir).is_dir():
        return None
    for checkpoint in reversed(sort_checkpoints(output_dir, PREFIX_CHECKPOINT_DIR)):
        try:
            check_checkpoint(checkpoint)
        except ValueError as error:
            logger.warning(f"{error} It is passed over.")
        else:
            return str(checkpoint)
    return None


def check_checkpoint(checkpoint):
    """Raise a `ValueError` that names the file where a checkpoint of the Trainer is not whole."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise ValueError(f"`resume_from_checkpoint` must be a checkpoint's folder, got {checkpoint}: no such folder.")
    # The state is what the Trainer writes last.
    for path in (checkpoint / TRAINER_STATE_NAME, *sorted(checkpoint.rglob("*"))):
        fault = _fault(path)
        if fault:
            raise ValueError(f"The checkpoint {checkpoint} is not whole: {path.name} {fault}.")


def _fault(path):
    """What is wrong with a file of a checkpoint, or `None`."""
    if path.is_dir():
        # Of a sharded state, torch writes the table of contents last.
        sharded = any(path.glob("*.distcp")) and not (path / ".metadata").is_file()
        return "lacks its .metadata" if sharded else None
    if not path.is_file():
        return "is missing"
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # compares the file's length with what its header says
                pass
        elif path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            return "is cut off"
    except (ValueError, SafetensorError) as error:
        return f"is cut off ({error})"
    return None


__all__ = ["check_checkpoint", "last_whole_checkpoint"]
