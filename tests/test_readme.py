"""What the README and the pages of docs/ print is run as it stands, in its order, in a folder of its own."""

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
# `python`, `megl` and `torchrun` as the commands find them first on their path. The work is cut short by the programs'
# own options, appended to those that the page gives, and the sample is drawn smaller.
PROGRAM = f"""#!{sys.executable}
import os, sys
SHORT = {{
    "train": "--max_steps 2 --per_device_train_batch_size 2 --disable_tqdm True",
    "evaluate": "--resamples 5 --max_new_tokens 3",
    "audit": "--resamples 5",
}}
FEWER = {{"draw": "--pictures 8", "annotate_by_truth": "--pictures 4"}}
SMALL = '''
import sys
from dataset_builders import scenes
from megl.scripts.prepare_dataset import main
scenes.SAMPLE_SIZES.update(train=10, validation=5, test=5)
sys.argv[0] = "megl prepare"
main()
'''
name, *given = sys.argv
program = ["-m", "megl"] if name.endswith("megl") else ["-m", "torch.distributed.run"] if name.endswith("run") else []
words = [os.path.basename(word).partition("_")[0] for word in given]
if words[:1] == ["prepare"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, "-c", SMALL, *given[1:]])
short = [option for word in words[:5] for option in SHORT.get(word, "").split()]
if "--pictures" in given:
    short += FEWER[given[1].rpartition(".")[2]].split()
os.execv({sys.executable!r}, [{sys.executable!r}, *program, *(given or ["-"]), *short])
"""
# The environment is there, and is not installed anew.
MAKE = """#!/bin/sh
exec {make} -o .venv/installed BIN={folder} "$@"
"""
NOTHING = "#!/bin/sh\n"
# Not a part of the shortened work: the suite itself, and the environment.
LEFT_OUT = {"make test", ". .venv/bin/activate", "python3 -m venv .venv && . .venv/bin/activate"}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def steps(page):
    """`(language, text)` of what can be run: blocks, and commands within a sentence, if they name no placeholder."""
    found = re.findall(r"```(bash|python)\n(.*?)```|`(megl [^`]+ --output [^`]+)`", read(page), re.DOTALL)
    steps = [(language or "bash", block or " ".join(inline.split())) for language, block, inline in found]
    return [(language, text) for language, text in steps if not re.search(r"\b(FOLDER|NAME)\b|\.\.\.|…", text)]


def commands(page):
    """The command lines of a page's blocks, continued ones joined, without comments; Python goes to `python -`."""
    python = ""
    for language, text in steps(page):
        if language == "python":
            python += text  # a later block goes on where an earlier one ended
            yield "python -", python
            continue
        lines = (line.split(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
        yield from ((" ".join(line.split()), None) for line in lines if line and line not in LEFT_OUT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the project's own, and the wrappers first on the path."""
    folder = tmp_path_factory.mktemp("readme")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "runs") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    wrappers = dict.fromkeys(["python", "megl", "torchrun"], PROGRAM) | {"pip": NOTHING}
    wrappers["make"] = MAKE.format(make=shutil.which("make"), folder=folder / "bin")
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

    def run(page):
        for command, given in commands(page):
            options = {"cwd": folder, "env": environment, "input": given, "timeout": 600}
            done = subprocess.run(command, shell=True, capture_output=True, text=True, **options)
            assert done.returncode == 0, f"{page}: {command}\n{done.stdout}\n{done.stderr}"

    return run


@pytest.fixture(scope="module")
def after_readme(folder, run):
    """The folder, once the README's steps were run: the other pages go on with what they made."""
    run("README.md")
    return folder


def test_the_steps_are_found():
    listed = [command for command, _ in commands("README.md")]
    for start in ("make quickstart", "pip install", "megl explain", "python -"):
        assert any(command.startswith(start) for command in listed), start
    listed += [
        command for page in ("data", "models", "own_data", "trainer") for command, _ in commands(f"docs/{page}.md")
    ]
    for name in ("prepare", "inspect", "init", "train", "evaluate", "export", "explain"):
        assert any(command.startswith(f"megl {name} ") for command in listed), name
    for start in ("torchrun ", "python -m examples.own_data.", "python -m examples.efficientnet_lite.convert"):
        assert any(command.startswith(start) for command in listed), start
    assert sum(command == "python -" for command in listed) == 7


def test_a_newcomer_is_told_of_the_environment_and_what_to_pass():
    start = read("README.md").split("## Three doors")[0]
    assert start.index("make test") < start.index("\n. .venv/bin/activate ")
    training = read("docs/trainer.md")
    options = {*vars(MeglTrainingArguments(output_dir="-")), "fp16", "fsdp", "explanation_sheet", "training_page"}
    for line in ("--text_loss_weight 0", "--visual_loss_weight 0", "--visual_loss_weight 0 --text_loss_weight 0"):
        assert f"| `{line}` |" in training
    named = re.findall(r"`--(\w+)", training.split("## What to choose")[1].split("## Incomplete")[0])
    command = {"eval_split", "mask_share", "rationale_share", "share_seed", "config"}  # of the command
    assert {"activation_checkpointing", "fp16"} <= set(named) <= options | command


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_abbreviations_are_spelled_out_at_first_use(page):
    text = " ".join(read(page).split())
    for short, spelled in (
        ("VEDC", "Visual Explanation Distribution Consistency"),
        ("SDTG", "Saliency-Driven Textual Grounding"),
    ):
        assert 0 <= text.index(spelled) - text.index(short) < 20, short


def test_the_readme_runs(after_readme):
    for path in (
        "runs/quickstart/evaluation/index.html",
        "evaluation-tiny/metrics.json",
        "explained/0000_example.png",
    ):
        assert (after_readme / path).is_file(), path


def test_the_page_on_models_runs(after_readme, run):
    pytest.importorskip("efficientnet_lite_pytorch")
    run("docs/models.md")
    pets = MeglForImageClassification.from_pretrained(after_readme / "megl-pets")
    pets.match_processor(MeglProcessor.from_pretrained(after_readme / "megl-pets"))  # a folder to train on
    assert pets.config.id2label == {0: "cat", 1: "dog"}
    assert (after_readme / "explanations" / "explanations.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_the_page_on_audits_runs(after_readme, run):
    run("docs/audit.md")
    for name in ("audit", "audit-trained", "audit-both"):
        assert (after_readme / name / "index.html").is_file(), name


def test_the_page_on_training_runs(after_readme, run):
    run("docs/trainer.md")
    for name in ("megl-python", "megl-loop", "megl-two"):
        assert MeglForImageClassification.from_pretrained(after_readme / name).config.num_labels == 5, name


def test_the_page_on_own_data_runs(folder, run):
    run("docs/own_data.md")
    for path in ("garden-2-audit/index.html", "garden-evaluation/index.html", "garden-explained/explanations.jsonl"):
        assert (folder / path).exists(), path
    assert (folder / "garden" / "annotations.jsonl").read_text(encoding="utf-8").count("\n") == 8


def test_the_page_on_other_data_runs(folder, run):
    run("docs/data.md")
    for path in ("own_me.html", "labels-trained/config.json", "squares-evaluated/metrics.json"):
        assert (folder / path).exists(), path
    counts = "| fish | 3 (3, 6) | 1 (1, 2) | 1 (1, 2) |\n"
    assert counts in read("docs/data.md") and counts in read(folder / "own_me" / "README.md")
