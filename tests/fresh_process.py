"""Scripts in a process that has never seen this project."""

import os
import subprocess
import sys


# Where the project is installed, it is blocked: a saved repository must not lean on it.
WITHOUT_THE_PROJECT = """
import sys

for name in ("modeling_megl", "dataset_builders"):
    sys.modules[name] = None
    try:
        __import__(name)
    except ImportError:
        pass
    else:
        raise AssertionError(f"{name} can be imported")
import torch
from PIL import Image

torch.set_num_threads(1)
"""


def run(script, *arguments, cwd, hub):
    """Run a script in a fresh interpreter that looks for modules neither in its folder nor in the environment."""
    environment = {**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    environment.pop("HF_MODULES_CACHE", None)
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
