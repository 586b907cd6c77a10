"""Studies: cells and their names, runs that are skipped, killed or fail, and figures worked out by hand."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import bootstrap  # noqa: E402
import compare  # noqa: E402
import study as studies  # noqa: E402
import study_results  # noqa: E402
from dataset_builders import ObjectMe, build_dataset  # noqa: E402


ANYTHING = re.escape(".*")
OFF = {"visual_loss_weight": 0, "text_loss_weight": 0, "distribution_loss_weight": 0}
STUDY = {
    "seeds": [0, 1],
    "reference": "plain",
    "baselines": ["gradia"],
    "settings": {"max_steps": 5, "learning_rate": 0.001},
    "datasets": {"pictures": {"path": "data", "settings": {"learning_rate": 0.002}}},
    "architectures": {"resnet": {"preset": "megl-resnet-tiny"}},
    "methods": {"plain": OFF, "gradia": {**OFF, "visual_loss_weight": 1}, "megl": {}},
}


@pytest.fixture()
def place(tmp_path, monkeypatch):
    """A folder to work in, with the files of a data set in `data`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pictures.parquet").write_bytes(b"1234")
    return tmp_path


@pytest.fixture()
def run(place, monkeypatch, capsys):
    """`run(study, *options)` runs `compare.py` on `study.yaml`; what it printed is returned."""

    def run(study, *options):
        (place / "study.yaml").write_text(yaml.safe_dump({"small": study}, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["compare.py", "study.yaml", "--output", "out", *map(str, options)])
        capsys.readouterr()
        compare.main()
        return capsys.readouterr().out

    return run


def cells_of(study, only=None):
    return studies.make_cells(study, "study.yaml, small", only or {})


def changed(**parts):
    """The study with other parts; with other methods there are no baselines."""
    return {**STUDY, **({"baselines": [], "reference": None} if "methods" in parts else {}), **parts}


# ---- Study files ----


def test_cells_by_seed_with_the_nearest_setting(place):
    methods = {**STUDY["methods"], "slow": {"learning_rate": 1e-5, "mask_share": [0.1, 1]}}
    pictures = {**STUDY["datasets"]["pictures"], "methods": {"slow": {"max_steps": 7}}}
    cells = cells_of(changed(methods=methods, datasets={"pictures": pictures}))
    names = ["plain", "gradia", "megl", "slow mask_share=0.1", "slow mask_share=1"]
    assert [(cell.seed, cell.method) for cell in cells] == [(seed, name) for seed in (0, 1) for name in names]
    common = {"max_steps": 5, "learning_rate": 0.002, "preset": "megl-resnet-tiny"}
    assert cells[2].settings == common
    assert cells[0].settings == {**common, **OFF}
    assert cells[3].settings == {**common, "learning_rate": 1e-5, "mask_share": 0.1, "max_steps": 7}
    assert cells[4].settings["mask_share"] == 1.0 and cells[4].split == "test"


def test_commands_have_the_options_of_the_scripts(place):
    (cell,) = cells_of(
        changed(
            split="validation",
            seeds=[3],
            methods={"megl": {"mask_share": 0.5, "grounding_map": "uniform", "resamples": 10, "text": None}},
            architectures={"own": {"vision": "model", "trust_remote_code": True}},
        )
    )
    commands = cell.commands(Path("cell"))
    pairs = {step: dict(zip(values[::2], values[1::2], strict=False)) for step, values in commands.items()}
    assert commands["init"][:6] == ["--vision", "model", "--dataset", "data", "--output", "cell/untrained"]
    assert commands["init"][6:] == ["--grounding_map", "uniform", "--seed", "3", "--trust_remote_code"]
    train = {"--model_name_or_path": "cell/untrained", "--dataset_name": "data", "--output_dir": "cell/model"}
    train |= {"--seed": "3", "--mask_share": "0.5", "--learning_rate": "0.002", "--trust_remote_code": "True"}
    assert train.items() <= pairs["train"].items() and pairs["train"]["--eval_strategy"] == "no"
    evaluate = {"--model": "cell/model", "--dataset": "data", "--split": "validation", "--resamples": "10"}
    assert evaluate.items() <= pairs["evaluate"].items() and "--seed" not in pairs["evaluate"]
    assert commands["evaluate"][-1] == "--trust_remote_code"


def test_a_run_is_named_by_all_that_decides_its_outcome(place):
    keys = [cell.key for cell in cells_of(STUDY)]
    assert len(set(keys)) == 6 and all(re.fullmatch(r"pictures-resnet-[01]-[0-9a-f]{12}", key) for key in keys)

    # What it is called, how a number is written, and where the data lie make no difference.
    renamed = changed(methods={"other": {**OFF, "visual_loss_weight": "0e0", "text_loss_weight": 0.0}})
    assert cells_of(renamed)[0].key == keys[0]
    (place / "data").rename(place / "moved")
    moved = changed(datasets={"pictures": {**STUDY["datasets"]["pictures"], "path": str(place / "moved")}})
    assert [cell.key for cell in cells_of(moved)] == keys

    # A setting, the split, the seed or the data do.
    others = [changed(settings={"max_steps": 6}), changed(split="validation"), changed(seeds=[2, 3])]
    studies.fingerprint.cache_clear()
    (place / "data").mkdir()
    (place / "data" / "pictures.parquet").write_bytes(b"12345")
    for other in (*others, STUDY):
        assert not {cell.key for cell in cells_of(other)} & set(keys)


def test_own_values_are_set_on_the_command_line(place):
    (place / "study.yaml").write_text(yaml.safe_dump({"small": STUDY, "full": {}}))
    options = ["datasets.pictures.path=org/elsewhere", "seeds=[7]", "settings.max_steps=9"]
    cell = cells_of(studies.read_study("study.yaml", "small", options))[0]
    assert (cell.path, cell.seed, cell.settings["max_steps"]) == ("org/elsewhere", 7, 9)
    for option, message in {
        "datasets.photos.path=x": "the study has no `datasets.photos.path`: `photos` is not in it",
        "seeds": "`--set` takes NAME=VALUE, such as datasets.photographs.path=photographs, got 'seeds'",
    }.items():
        with pytest.raises(ValueError, match=message):
            studies.read_study("study.yaml", "small", [option])


@pytest.mark.parametrize(
    "parts, message",
    {
        "unknown setting": (
            {"methods": {"megl": {"visual_los_weight": 1}}},
            "study.yaml, small, pictures, resnet, method `megl`: unknown `visual_los_weight`: "
            "did you mean `visual_loss_weight`?",
        ),
        "a setting that is the study's": (
            {"settings": {"seed": 1}},
            "method `plain`: the study itself sets `seed`",
        ),
        "bad value": (
            {"settings": {"visual_loss": "gradcam"}},
            "method `plain`: argument --visual_loss.*: invalid choice: 'gradcam'",
        ),
        "neither preset nor vision": (
            {"architectures": {"none": {}}},
            "method `plain`: one of the arguments --preset --vision is required",
        ),
        "unknown baseline": ({"baselines": ["gradiia"]}, "`baselines`: unknown `gradiia`: did you mean `gradia`?"),
        "unknown reference": ({"reference": "x"}, "`reference`: unknown `x`: expected gradia, megl, plain"),
        "unknown architecture": (
            {"datasets": {"pictures": {"path": "data", "architectures": ["vit"]}}},
            "datasets.pictures.architectures: unknown `vit`: expected resnet",
        ),
        "unknown method of a data set": (
            {"datasets": {"pictures": {"path": "data", "methods": {"megll": {}}}}},
            "datasets.pictures.methods: unknown `megll`: did you mean `megl`?",
        ),
        "no path": (
            {"datasets": {"pictures": {}}},
            "the data set `pictures` has no `path`: give it by `--set datasets.pictures.path=FOLDER`",
        ),
        "missing data": ({"datasets": {"pictures": {"path": "no/such/data"}}}, "no/such/data, is no folder"),
        "unknown key": ({"method": {}}, "study.yaml, small: unknown `method`: did you mean `methods`?"),
        "no seeds": ({"seeds": []}, "study.yaml, small: `seeds` is missing or empty"),
        "a name that is no folder": ({"architectures": {"a/b": {}}}, "'a/b' names folders"),
    }.values(),
)
def test_wrong_studies_are_one_clear_error(run, parts, message):
    with pytest.raises(SystemExit, match=f"^compare: .*{re.escape(message).replace(ANYTHING, '.*')}") as error:
        run(changed(**parts))
    assert "Traceback" not in str(error.value)
