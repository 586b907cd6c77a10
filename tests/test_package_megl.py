"""What `import modeling_megl` brings, and what it leaves until it is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_megl


REPOSITORY = Path(__file__).resolve().parents[1]

# In an interpreter of its own, where nothing has been imported yet.
LAZILY = """
import json
import sys

from transformers import ImageClassificationPipeline, PreTrainedModel, ProcessorMixin

def imported():
    return [name for name in ("accelerate", "datasets", "ijson", "peft") if name in sys.modules]

result = {"by transformers": imported()}
import modeling_megl
dir(modeling_megl)
result["with the model"] = imported()
result["early"] = "modeling_megl.training_megl" in sys.modules
for package in ("datasets", "peft"):
    sys.modules[package] = None  # which makes an import fail
    try:
        modeling_megl.MeglTrainer
    except ImportError as error:
        result[package] = str(error)
    del sys.modules[package]
from modeling_megl import MeglTrainer
result["late"] = MeglTrainer is sys.modules["modeling_megl.training_megl"].MeglTrainer is modeling_megl.MeglTrainer
print(json.dumps(result))
"""


def test_what_trains_is_imported_when_it_is_asked_for():
    command = [sys.executable, "-c", LAZILY]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    # Transformers takes accelerate where it finds it.
    assert result["with the model"] == result["by transformers"]
    assert not result["early"] and result["late"]
    for package in ("datasets", "peft"):
        assert result[package] == (
            f"`MeglTrainer` needs the package {package}, which is not installed: pip install 'megl[train]'"
        )


STARRED = """
import sys

sys.modules["datasets"] = None
from modeling_megl import *

import inspect
import modeling_megl

inspect.getmembers(modeling_megl)
assert "MeglTrainer" not in globals() and MeglConfig is modeling_megl.MeglConfig
"""


def test_all_is_imported_that_can_be_without_the_extra():
    done = subprocess.run([sys.executable, "-c", STARRED], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_that_is_public_is_listed_and_there():
    assert {"MeglConfig", "MeglTrainer", "MeglTrainingArguments", "MeglDataCollator"} <= set(modeling_megl.__all__)
    assert set(modeling_megl.__all__) <= set(dir(modeling_megl))
    assert not [name for name in modeling_megl.__all__ if not hasattr(modeling_megl, name)]
    with pytest.raises(AttributeError, match="module 'modeling_megl' has no attribute 'MeglTrainr'"):
        modeling_megl.MeglTrainr  # noqa: B018
