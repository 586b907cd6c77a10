"""What the README prints is run as it stands, in its order, in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_arguments_megl import MeglTrainingArguments


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# The Python that the commands find first on their path. The work is cut short by the scripts' own options, appended to
# those that the README gives, and the sample is drawn smaller.
PYTHON = f"""#!{sys.executable}
import os, sys
SHORT = {{
    "train_megl.py": "--max_steps 2 --per_device_train_batch_size 2 --disable_tqdm True",
    "evaluate_megl.py": "--resamples 5 --max_new_tokens 3",
}}
SMALL = '''
import os, runpy, sys
from dataset_builders import scenes
scenes.SAMPLE_SIZES.update(train=10, validation=5, test=5)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
'''
script, *rest = sys.argv[1:] or ["-"]
name = os.path.basename(script)
if name == "prepare_dataset.py":
    os.execv({sys.executable!r}, [{sys.executable!r}, "-c", SMALL, script, *rest])
os.execv({sys.executable!r}, [{sys.executable!r}, script, *rest, *SHORT.get(name, "").split()])
"""
# The environment is there, and is not installed anew.
MAKE = """#!/bin/sh
exec {make} -o .venv/installed BIN={folder} "$@"
"""
PIP = "#!/bin/sh\n"
# Not a part of the shortened work: the suite itself.
LEFT_OUT = {"make test"}


def steps():
    """`(language, text)` of what can be run: blocks, and commands within a sentence, if they name no placeholder."""
    found = re.findall(r"```(bash|python)\n(.*?)```|`(python (?:scripts/|-m )[^`]+)`", README, re.DOTALL)
    steps = [(language, block) if language else ("bash", inline) for language, block, inline in found]
    return [(language, text) for language, text in steps if not re.search(r"\b(FOLDER|NAME)\b|\.\.\.", text)]


def commands(block):
    """The lines of a block of commands, continued ones joined, without comments."""
    lines = (line.split(" #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#") and line not in LEFT_OUT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the project's own, and the wrappers first on the path."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    wrappers = {"python": PYTHON, "pip": PIP, "make": MAKE.format(make=shutil.which("make"), folder=folder / "bin")}
    for name, text in wrappers.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def run(command, **options):
        done = subprocess.run(
            command, cwd=folder, env=environment, shell=True, capture_output=True, text=True, timeout=600, **options
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    return run


def test_the_steps_are_found():
    blocks = [text for language, text in steps() if language == "bash"]
    listed = [command for block in blocks for command in commands(block)]
    for name in ("make quickstart", "scripts/train_megl.py", "examples.efficientnet_lite.convert"):
        assert any(name in command for command in listed), name
    for name in ("prepare_dataset", "inspect_dataset", "init_megl", "train_megl", "evaluate_megl", "explain"):
        assert any(f"python scripts/{name}.py" in command for command in listed), name
    assert sum(language == "python" for language, _ in steps()) == 4


def test_a_newcomer_is_told_of_the_environment_and_what_to_pass():
    start = README.split("## Three doors")[0]
    assert start.index("make test") < start.index("`source .venv/bin/activate`")
    training = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    options = {name for name in vars(MeglTrainingArguments(output_dir="-"))} | {"fp16", "fsdp"}
    for line in ("--text_loss_weight 0", "--visual_loss_weight 0", "--visual_loss_weight 0 --text_loss_weight 0"):
        assert f"| `{line}` |" in training
    named = re.findall(r"`--(\w+)", training.split("## Incomplete")[0].rpartition("What to learn")[2])
    assert {"activation_checkpointing", "fp16"} <= set(named) <= options


def test_all_that_is_printed_runs_in_its_order(folder, run):
    pytest.importorskip("efficientnet_lite_pytorch")
    python = ""
    for language, text in steps():
        if language == "bash":
            for command in commands(text):
                run(command)
        else:
            python += text  # a later block goes on where an earlier one ended
            run("python -", input=python)
    for path in ("runs/quickstart/evaluation/index.html", "object_me.html", "evaluation-tiny/metrics.json"):
        assert (folder / path).is_file(), path
    pets = MeglForImageClassification.from_pretrained(folder / "megl-pets")
    pets.match_processor(MeglProcessor.from_pretrained(folder / "megl-pets"))  # a folder to train on
    assert pets.config.id2label == {0: "cat", 1: "dog"}
    assert (folder / "explanations" / "explanations.jsonl").read_text(encoding="utf-8").count("\n") == 1
