"""Checkpoints of a training that a kill or a full disk may have left half-written."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    logging,
)


logger = logging.get_logger(__name__)

# Files of a checkpoint that torch writes, to go on from it.
TRAINING_STATE = (".pt", ".pth", ".bin")


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
    for path in (checkpoint / TRAINER_STATE_NAME, *sorted(checkpoint.rglob("*")), *_shards(checkpoint)):
        fault = _fault(path)
        if fault:
            raise ValueError(f"The checkpoint {checkpoint} is not whole: {path.name} {fault}.")
    if not any(next(checkpoint.glob(pattern), None) for pattern in _WEIGHTS):
        raise ValueError(f"The checkpoint {checkpoint} is not whole: it has no weights, such as {SAFE_WEIGHTS_NAME}.")


# What holds the weights: whole, sharded by size, adapters, sharded by FSDP, and by DeepSpeed.
_WEIGHTS = (
    *(SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME),
    *("pytorch_model_fsdp*", "global_step*"),
)


def _shards(checkpoint):
    """The files that the index of sharded weights names."""
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file() or _fault(index):
        return []
    return [checkpoint / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]


def _fault(path):
    """What is wrong with a file of a checkpoint, or `None`."""
    if path.is_dir():
        # Of a sharded state, torch writes the table of contents last.
        sharded = any(path.glob("*.distcp")) and not (path / ".metadata").is_file()
        return "lacks its .metadata" if sharded else None
    if not path.is_file():
        return "is missing"
    if path.suffix == ".distcp" or path.name == ".metadata":
        return None if path.stat().st_size else "is empty"
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name == TRAINER_STATE_NAME and "global_step" not in content:
                return "has no `global_step`"
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # compares the file's length with what its header says
                pass
        elif path.suffix in TRAINING_STATE and not zipfile.is_zipfile(path):
            return "is cut off"
    except (ValueError, SafetensorError) as error:
        return f"is cut off ({error})"
    return None


__all__ = ["check_checkpoint", "last_whole_checkpoint"]
