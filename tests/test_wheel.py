"""What `pip install megl` gives: the wheel in an environment of its own, without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_megl", "dataset_builders", "megl", "scripts", "metrics")
# What the data set sample has, drawn smaller, as a command by itself cannot ask for it.
SIZES = {"train": 8, "validation": 2, "test": 4}
SMALL = f"""
import sys
from dataset_builders import scenes
from megl.cli import main
scenes.SAMPLE_SIZES.update({SIZES})
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of copies of the sources: `pip` leaves a folder `build` beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("megl-*.whl")
    return wheel


@pytest.fixture(scope="module")
def bin(wheel, tmp_path_factory):
    """The programs of an environment with the wheel. Others' packages are those of this one, which has the checkout
    by a `.pth` file: such files work in an environment's own folder only."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    own.joinpath("others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--ignore-installed"]
    subprocess.run([*install, "--no-deps", "--no-index", "--quiet", wheel], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def run(bin, tmp_path_factory):
    """`run(program, *words)`: the output of a program of that environment, in a folder of its own."""
    folder = tmp_path_factory.mktemp("work")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(program, *words, status=0):
        command = [bin / program, *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.folder = folder
    return run


def test_the_wheel_has_what_programs_read(wheel):
    names = set(ZipFile(wheel).namelist())
    metrics = [folder.name for folder in (ROOT / "metrics").iterdir() if (folder / "README.md").is_file()]
    assert {"grounding", "rationale", "saliency"} <= set(metrics)
    for name in metrics:
        for file in ("README.md", "requirements.txt", f"{name}.py"):
            assert f"megl/metrics/{name}/{file}" in names
    assert {"megl/evaluation/model_card.md", "dataset_builders/coco_synonyms.json", "megl/cli.py"} <= names
    assert {"megl/scripts/train_megl.py", "modeling_megl/modeling_megl.py"} <= names
    assert not [name for name in names if name.startswith(("scripts/", "metrics/", "tests/", "studies/"))]
    for folder in ("modeling_megl", "dataset_builders", "megl"):  # a package that setup.cfg does not list
        for file in (ROOT / folder).rglob("*.py"):
            assert str(file.relative_to(ROOT)) in names


def test_the_programs_are_the_installed_ones(run, bin):
    code = "import megl.scripts, dataset_builders, modeling_megl; from megl.evaluation.metrics import metric_path\n"
    code += "print(megl.__file__, megl.scripts.__file__, dataset_builders.__file__, modeling_megl.__file__)\n"
    code += "print(metric_path('saliency'))"
    paths = run("python", "-c", code).split()
    assert len(paths) == 5 and all(Path(path).is_relative_to(bin.parent) for path in paths)
    assert run("python", "-m", "megl", "--help") == run("megl", "--help")


def test_from_nothing_to_a_comparison(run):
    """The steps of the quickstart and what follows, shortened."""
    folder = run.folder
    prepare = ("prepare", "object_me", "--source", "sample", "--output", "object_me")
    assert "| house |" in run("python", "-c", SMALL, *prepare)
    assert "page: object_me.html" in run("megl", "inspect", "object_me", "--output", "object_me.html", "--json")
    summary = json.loads((folder / "object_me.json").read_text(encoding="utf-8"))
    assert {split: found["pictures"] for split, found in summary["splits"].items()} == SIZES
    run("megl", "init", "--preset", "megl-resnet-tiny", "--dataset", "object_me", "--output", "untrained")
    training = "max-steps: 2\nper_device_train_batch_size: 4\nreport_to: none\ndisable_tqdm: true\n"
    (folder / "train.yaml").write_text(training + "model_name_or_path: untrained\ndataset_name: object_me\n")
    run("megl", "train", "--config", "train.yaml", "--output_dir", "model", "--visual_loss_weight", 2)
    settings = json.loads((folder / "model" / "training_settings.json").read_text())
    assert (settings["max_steps"], settings["visual_loss_weight"], settings["mask_share"]) == (2, 2.0, 1.0)
    both = ("--model", "untrained", "model", "--resamples", 5, "--max-new-tokens", 3)
    run("megl", "evaluate", *both, "--dataset", "object_me", "--output", "evaluations")
    names = ("1-untrained", "2-model")
    for name in names:
        metrics = json.loads((folder / "evaluations" / name / "metrics.json").read_text())
        assert metrics["n"]["accuracy"] == SIZES["test"] and 0 <= metrics["saliency"]["iou"] <= 1
        assert (folder / "evaluations" / name / "model_card.md").is_file()
    evaluations = [f"evaluations/{name}" for name in names]
    said = run("megl", "compare-evaluations", *evaluations, "--resamples", 5, "--output", "comparison")
    assert (folder / "comparison" / "comparison.json").is_file() and all(name in said for name in names)
    picture = "evaluations/2-model/examples.png"
    run("megl", "explain", "--model", "model", picture, "--output", "explanations")
    (line,) = (folder / "explanations" / "explanations.jsonl").read_text().splitlines()
    classes = json.loads((folder / "model" / "config.json").read_text())["id2label"].values()
    assert json.loads(line)["label"] in classes
