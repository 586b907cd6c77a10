"""Studies: cells and their names, runs that are skipped, killed or fail, and figures worked out by hand."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pages import Page
from scipy import stats

from dataset_builders import ObjectMe, build_dataset
from dataset_builders.files import new_folder
from megl.evaluation import bootstrap
from megl.evaluation.headlines import headlines
from studies import cells as cell_files
from studies import compare, worse_masks
from studies import results as study_results
from studies import study as studies
from studies.random_effects import estimate, holm


ROOT = Path(__file__).resolve().parents[1]


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
    studies.fingerprint.cache_clear()
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
    assert commands["init"][6:10] == ["--evidence_layers", "none", "--grounding_map", "uniform"]
    assert commands["init"][10:] == ["--seed", "3", "--trust_remote_code", "True"]
    train = {"--model_name_or_path": "cell/untrained", "--dataset_name": "data", "--output_dir": "cell/model"}
    train |= {"--seed": "3", "--mask_share": "0.5", "--learning_rate": "0.002", "--trust_remote_code": "True"}
    assert train.items() <= pairs["train"].items() and pairs["train"]["--eval_strategy"] == "no"
    evaluate = {"--model": "cell/model", "--dataset": "data", "--split": "validation", "--resamples": "10"}
    assert evaluate.items() <= pairs["evaluate"].items() and "--seed" not in pairs["evaluate"]
    assert commands["evaluate"][-2:] == ["--trust_remote_code", "True"]


def test_cells_that_begin_with_a_trained_model(place):
    trained = place / "trained"
    trained.mkdir()
    (trained / "model.safetensors").write_bytes(b"1")
    study = changed(
        seeds=[0],
        methods={"writer": {"text": "llama-tiny", "freeze_vision": True, "visual_loss_weight": 0}},
        architectures={"own": {"trained": str(trained)}},
    )
    (cell,) = cells_of(study)
    key, commands = cell.key, cell.commands(Path("cell"))
    assert commands["init"][:4] == ["--model", str(trained), "--text", "llama-tiny"]
    assert commands["train"][:2] == ["--model_name_or_path", "cell/untrained"]
    assert commands["evaluate"][:2] == ["--model", "cell/model"]
    # Known by its files' bytes, wherever they are.
    moved = trained.rename(place / "moved")
    study["architectures"]["own"]["trained"] = str(moved)
    studies.fingerprint.cache_clear()
    assert cells_of(study)[0].key == key
    (moved / "model.safetensors").write_bytes(b"2")
    studies.fingerprint.cache_clear()
    assert cells_of(study)[0].key != key


def test_a_run_is_named_by_all_that_decides_its_outcome(place):
    keys = [cell.key for cell in cells_of(STUDY)]
    assert len(set(keys)) == 6 and all(re.fullmatch(r"pictures-resnet-[01]-[0-9a-f]{12}", key) for key in keys)

    # What it is called, how a number is written, and where the data lie make no difference.
    renamed = changed(methods={"other": {**OFF, "visual_loss_weight": "0e0", "text_loss_weight": 0.0}})
    assert cells_of(renamed)[0].key == keys[0]
    (place / "data").rename(place / "moved")
    moved = changed(datasets={"pictures": {**STUDY["datasets"]["pictures"], "path": str(place / "moved")}})
    (place / "moved" / "README.md").write_text("the card")
    studies.fingerprint.cache_clear()
    assert [cell.key for cell in cells_of(moved)] == keys

    # A setting, the split, the seed or the data do, these if it is by one byte.
    others = [changed(settings={"max_steps": 6}), changed(split="validation"), changed(seeds=[2, 3])]
    studies.fingerprint.cache_clear()
    (place / "data").mkdir()
    (place / "data" / "pictures.parquet").write_bytes(b"1235")
    for other in (*others, STUDY):
        assert not {cell.key for cell in cells_of(other)} & set(keys)


def test_a_run_is_named_by_what_is_in_files(place):
    """Of a model by its files' bytes; of a data set that the builders made by the checksum on its card."""
    model = place / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"abcd")
    first = studies.fingerprint(str(model))
    assert first == hashlib.sha256(f"model.safetensors {hashlib.sha256(b'abcd').hexdigest()}\n".encode()).hexdigest()

    def changes(file, content):
        (model / file).parent.mkdir(exist_ok=True)
        (model / file).write_bytes(content)
        studies.fingerprint.cache_clear()
        return studies.fingerprint(str(model)) != first

    assert not changes("README.md", b"a card") and not changes(".cache/etag", b"1") and not changes(".gitignore", b"x")
    assert changes("model.safetensors", b"abce") and not changes("model.safetensors", b"abcd")
    assert changes("sub/config.json", b"{}")

    sizes = {"train": 4, "validation": 2, "test": 2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_dataset(ObjectMe, "sample", place / name, sample_sizes=sizes, seed=seed)
    found = [studies.fingerprint(str(place / name)) for name in "abc"]
    assert found[0] == found[1] != found[2]
    assert f"shards sha256 {found[0]}" in (place / "a" / "README.md").read_text()


def test_a_llava_is_named_by_its_vision_model(place):
    """What an architecture is called is nothing to it, so that several share its runs."""
    llava = {"model_type": "llava", "vision": "org/clip", "learning_rate": 0.5}
    architectures = {"resnet": {"preset": "megl-resnet-tiny"}, "vit": {"preset": "megl-vit-tiny"}}
    study = changed(methods={"llava": llava, "megl": {}}, architectures=architectures, seeds=[0])
    keys = {(cell.architecture, cell.method): cell.key for cell in cells_of(study)}
    assert keys["resnet", "llava"] == keys["vit", "llava"] and keys["vit", "llava"].startswith("pictures-clip-0-")
    assert keys["resnet", "megl"] != keys["vit", "megl"]


def test_a_share_is_drawn_anew_for_each_seed(place):
    """`share_seed: seed`; of seed 0 it is the draw of a study that says nothing, and the same cell."""
    methods = {"one draw": {"mask_share": 0.5}, "draws": {"mask_share": 0.5, "share_seed": "seed"}}
    methods["draw 7"] = {"mask_share": 0.5, "share_seed": 7}
    methods["llava"] = {"model_type": "llava", "vision": "clip-tiny", "share_seed": "seed"}
    cells = {(cell.method, cell.seed): cell for cell in cells_of(changed(methods=methods, seeds=[0, 1, 2]))}
    found = {name: cell.settings.get("share_seed") for name, cell in cells.items()}
    assert [found["draws", seed] for seed in (0, 1, 2)] == [None, 1, 2]
    assert {found[name, seed] for name in ("one draw", "llava") for seed in (0, 1, 2)} == {None}
    assert {found["draw 7", seed] for seed in (0, 1, 2)} == {7}
    assert cells["draws", 0].key == cells["one draw", 0].key and cells["draws", 1].key != cells["one draw", 1].key
    train = cells["draws", 2].commands(Path("x"))["train"]
    assert train[train.index("--share_seed") + 1] == "2"
    assert "--share_seed" not in cells["draws", 0].commands(Path("x"))["train"]
    with pytest.raises(ValueError, match="method `megl`: argument --share_seed.*: invalid int value: 'seeds'"):
        cells_of(changed(methods={"megl": {"share_seed": "seeds"}}))


def test_own_values_are_set_on_the_command_line(place):
    (place / "study.yaml").write_text(yaml.safe_dump({"small": STUDY, "full": {}}))
    options = ["datasets.pictures.path=org/elsewhere", "seeds=[7]", "settings.max_steps=9"]
    cell = cells_of(studies.read_study("study.yaml", "small", options))[0]
    assert (cell.path, cell.seed, cell.settings["max_steps"]) == ("org/elsewhere", 7, 9)
    for option, message in {
        "datasets.photos.path=x": "the study has no `datasets.photos.path`: `photos` is not in it",
        "seeds": "`--set` takes NAME=VALUE, such as datasets.photographs.path=photographs, got 'seeds'",
        "seeds=[0": "`--set seeds=.0`: '.0' is no YAML",
        "seeds.first=0": "`--set seeds.first=0`: the study has no `seeds.first`: `seeds` is not in it",
    }.items():
        with pytest.raises(ValueError, match=message):
            studies.read_study("study.yaml", "small", [option])


@pytest.mark.parametrize("section", ["small", "full"])
@pytest.mark.parametrize(
    "name",
    [
        *("paper", "ablation", "masks", "rationales", "baselines", "vedc", "balance", "tap", "efficiency"),
        *("interventions", "interventions_few", "evidence", "language"),
    ],
)
def test_shipped_studies_name_what_there_is_and_share_their_runs(place, name, section):
    keys = {}
    for file in {name, "paper"}:
        study = studies.read_study(ROOT / "studies" / f"{file}.yaml", section)
        for data in study["datasets"].values():
            data["path"] = "data"
        cells = studies.make_cells(study, file, {"seed": ["0"]})
        keys[file] = {(cell.dataset, cell.architecture, cell.method): cell.key for cell in cells}
        places = {"efficiency": (2, 4), "tap": (1, 2), "language": (2, 4)}.get(file, (7, 4))[section == "full"]
        counts = {
            "paper": 12,
            "ablation": 11,
            "masks": 39,
            "rationales": 10,
            "efficiency": 4,
            "baselines": 20,
            "vedc": 27,
            "balance": 16,
            "tap": 7,
            "interventions": 7,
            "interventions_few": 9,
            "evidence": 4,
            "language": 2 if section == "full" else 3,
        }
        assert len(cells) == places * counts[file]
        # Of seed 0 `draws` are those of the study without; architectures share the LLaVAs, one or two a data set.
        shared = {"masks": 4 * places, "efficiency": 4 if section == "full" else 1}.get(file, 0)
        assert len(set(keys[file].values())) == len(cells) - shared
    plain = {key for (_, _, method), key in keys["paper"].items() if method == "plain"}
    if name in ("ablation", "masks"):
        assert plain <= set(keys[name].values())
        megl = {key for (_, _, method), key in keys["paper"].items() if method == "megl"}
        assert megl <= set(keys[name].values())
    if name == "ablation":
        without = {key for (_, _, method), key in keys["paper"].items() if method == "megl without vedc"}
        assert without == {key for (_, _, method), key in keys[name].items() if method == "no vedc"}
    if name == "efficiency":
        assert {key for (*_, method), key in keys[name].items() if method == "megl"} <= set(keys["paper"].values())
    if name in ("baselines", "vedc", "balance", "tap"):  # on another split
        assert not set(keys[name].values()) & set(keys["paper"].values())


def test_the_study_of_worse_masks_names_what_there_is(place):
    folders = {kind: place / kind for kind in worse_masks.KINDS}
    for folder in folders.values():
        folder.mkdir()
    # The data sets are one entry of the file, repeated by YAML's `*worse`: each gets a path of its own.
    options = [f"datasets.{kind}.path={folder}" for kind, folder in folders.items()]
    study = studies.read_study(ROOT / "studies" / "interventions_worse.yaml", "small", options)
    cells = studies.make_cells(study, "worse", {"seed": ["0"]})
    assert len(cells) == 5 * 2 * 3
    assert {cell.dataset: cell.path for cell in cells} == {kind: str(folder) for kind, folder in folders.items()}


def test_options_of_several_words_are_given_as_such():
    assert studies.to_arguments(["seed", "names"], {"names": ["a", "b"], "seed": 1, "other": 2}) == [
        *("--seed", "1", "--names", "a", "b")
    ]


def test_a_section_takes_from_its_base_what_it_lacks(place):
    (place / "base.yaml").write_text(yaml.safe_dump({"small": STUDY}))
    (place / "study.yaml").write_text("base: base.yaml\nsmall:\n  methods: {megl: {}}\n  seeds: [4]\n")
    study = studies.read_study("study.yaml", "small")
    assert study == {**STUDY, "methods": {"megl": {}}, "seeds": [4]}
    for text, message in {
        "base: nowhere.yaml\nsmall: {}": "nowhere.yaml",
        "small: [": "study.yaml is no YAML: ",
        "- small": "study.yaml is no study: expected sections, such as `small:`",
        "small: yes": "study.yaml is no study: expected sections",
        "tiny: {}\nfull: {}": "study.yaml has no section `small`, but tiny, full: choose one by `--section`",
    }.items():
        (place / "study.yaml").write_text(text)
        with pytest.raises((ValueError, OSError), match=message):
            studies.read_study("study.yaml", "small")


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
            "method `plain`: one of `--preset`, `--vision` and `--model` is needed, got none",
        ),
        "unknown model": (
            {"settings": {"model_type": "lava"}},
            "method `plain`, `model_type`: unknown `lava`: did you mean `llava`?",
        ),
        "unknown baseline": ({"baselines": ["gradiia"]}, "`baselines`: unknown `gradiia`: did you mean `gradia`?"),
        "unknown reference": ({"reference": "x"}, "`reference`: unknown `x`: expected gradia, megl, plain"),
        "a claim of an unknown metric": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "iuo", "gain": 0}]},
            "`claims`: unknown `iuo`: did you mean `iou`?",
        ),
        "a claim over nothing": (
            {"claims": [{"method": "megl", "over": "best", "metric": "iou", "gain": 0}]},
            "`claims`: unknown `best`: expected best baseline, gradia, megl, plain",
        ),
        "a claim without a number": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "iou", "ratio": "twice"}]},
            "`claims`: expected `method`, `over`, `metric`, and a number as `gain` or `ratio`, got {'method'",
        ),
        "a claim with both": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "iou", "ratio": 2, "gain": 0.1}]},
            "and a number as `gain` or `ratio`",
        ),
        "a claim to be worse": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "iou", "no_worse_than": -0.1}]},
            "and instead of them a margin, 0 or more, may stand as `no_worse_than`",
        ),
        "a ratio of nothing": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "iou", "ratio": 0}]},
            "a ratio is above 0",
        ),
        "a claim that is a word": (
            {"claims": ["megl"]},
            "`claims`: expected `{method: …, over: …, metric: …, gain: …}`",
        ),
        "a claim of a minimum over groups": (
            {"claims": [{"method": "megl", "over": "plain", "metric": "worst_group_accuracy", "gain": 0}]},
            "`claims`: `worst_group_accuracy` has no test over images and seeds: claim another metric",
        ),
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
        "a seed that is a word": (
            {"seeds": [0, "one"]},
            "expected different whole numbers, 0 or more, as `seeds`, got [0",
        ),
        "a seed twice": ({"seeds": [1, 1]}, "expected different whole numbers, 0 or more, as `seeds`, got [1, 1]"),
        "one seed, no list": ({"seeds": 3}, "study.yaml, small: expected a list as `seeds`, got 3"),
        "a list of methods": (
            {"methods": ["plain"]},
            "study.yaml, small: expected names with values under them as `methods`, got ['plain']",
        ),
        "a method that is a word": ({"methods": {"megl": "on"}}, "values under them as `methods.megl`, got 'on'"),
        "a data set that is a path": ({"datasets": {"a": "data"}}, "values under them as `datasets.a`, got 'data'"),
        "one architecture of a data set, no list": (
            {"datasets": {"a": {"path": "data", "architectures": "resnet"}}},
            "expected a list as `datasets.a.architectures`, got 'resnet'",
        ),
        "no architecture's settings": (
            {"architectures": {"bare": None}},
            "one of `--preset`, `--vision` and `--model` is needed",
        ),
        "a name that is no folder": ({"architectures": {"a/b": {}}}, "'a/b' names folders"),
    }.values(),
)
def test_wrong_studies_are_one_clear_error(run, parts, message):
    with pytest.raises(SystemExit, match=f"^compare: .*{re.escape(message).replace(ANYTHING, '.*')}") as error:
        run(changed(**parts))
    assert "Traceback" not in str(error.value)


# ---- Figures and tests ----


def write_cell(folder, cell, rights, ious=None, writes=True):
    """A cell that is done, whose images are `rights` (0 or 1) and have maps of `ious`; its first image is aligned."""
    items = []
    for number, right in enumerate(rights):
        scores = {"rationale.rouge_l": 0.5 * right, "explained_accuracy.cider_overall": 0.1}
        scores["interventions.background_gap"] = right - 1 if number else None
        if ious is not None:
            scores["saliency.iou"] = ious[number]
        items.append(
            {
                "id": f"i{number}",
                "label": "a",
                "prediction": "a" if right else "b",
                "group": "conflicting" if number else "aligned",
                "per_item": scores,
            }
        )
    metrics = {}
    for path, value in bootstrap.point_figures(items).items():
        part = metrics
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
    output = folder / cell.key
    output.mkdir(parents=True)
    (output / "metrics.json").write_text(json.dumps(metrics))
    # In an order of its own: tests pair items by their ids.
    with gzip.open(output / "predictions.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(item) + "\n" for item in reversed(items))
    record = {
        "key": cell.key,
        "seconds": {"init": 1.0, "train": 1798.0, "evaluate": 1.0},
        "training_settings": {"text_loss_weight": float(writes)},
        "commit": "0123abc",
        "versions": {"python": "3.11", "torch": "2.13"},
        "machine": {"system": f"abacus OS {cell.seed}", "processor": "an abacus", "cores": 2},
    }
    (output / "cell.json").write_text(json.dumps(record))


def write_study(place, study, rights, ious=None):
    """All cells of a study; method to, for each seed, the `rights` of its images."""
    ious = ious or {}
    for cell in cells_of(study):
        place_of = study["seeds"].index(cell.seed)
        own = ious[cell.method][place_of] if cell.method in ious else None
        write_cell(place / "out" / "cells", cell, rights[cell.method][place_of], own, cell.method != "plain")


def groups_of(place, cells):
    return study_results.read_groups(STUDY, [(cell, place / "out" / "cells" / cell.key) for cell in cells])


def figures_row(text, method):
    """The row of a method in the first table of a page."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {method} |"))
    heads = next(line for line in text.splitlines() if "| seeds |" in line)
    return dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (heads, row)), strict=True))


def test_table_and_results_by_hand(place, run):
    rights = {
        "plain": [[1, 0, 0, 0], [1, 1, 0, 0]],
        "gradia": [[1, 1, 0, 0], [1, 1, 0, 0]],
        "megl": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }
    ious = {"plain": [[0.1] * 4, [0.3] * 4], "megl": [[0.5, 0.6, 0.7, 0.8], [0.6] * 4]}
    write_study(place, STUDY, rights, ious)
    text = run(STUDY, "--report")

    found = json.loads((place / "out" / "study" / "results.json").read_text())
    assert found.keys() == {"study"} and found["study"].keys() == {"pictures"}
    methods = found["study"]["pictures"]["resnet"]
    assert list(methods) == ["plain", "gradia", "megl"]
    assert methods["plain"]["accuracy"] == [0.25, 0.5] and methods["megl"]["accuracy"] == [1.0, 0.75]
    assert methods["megl"]["accuracy_aligned"] == [1, 1]
    assert methods["megl"]["accuracy_conflicting"] == pytest.approx([1, 2 / 3])
    assert methods["gradia"]["worst_group_accuracy"] == pytest.approx([1 / 3, 1 / 3])
    assert methods["megl"]["iou"] == pytest.approx([0.65, 0.6]) and "iou" not in methods["gradia"]
    assert methods["megl"]["rouge_l"] == [0.5, 0.375]
    assert not {"rouge_l", "cider_overall"} & set(methods["plain"])  # nothing trained its language model
    assert methods["megl"]["cider_overall"] == pytest.approx([0.1, 0.1])

    # The standard deviation of 0.25 and 0.5 is 0.25 / sqrt(2).
    assert figures_row(text, "plain")["accuracy"] == "0.375 ± 0.177"
    row = figures_row(text, "gradia")
    assert (row["seeds"], row["accuracy"], row["IoU"], row["ROUGE-L"]) == ("2", "0.500 ± 0.000", "–", "0.250 ± 0.000")
    assert figures_row(text, "megl")["conflicting"].startswith("0.833 ± 0.236")
    assert (place / "out" / "study" / "results.md").read_text() in text
    assert "6 of 6 cells, evaluated on the test split, in 3.00 hours of machine time. Commit 0123abc;" in text
    assert text.count("an abacus, 2 cores") == 1  # of two releases of its system
    page = (place / "out" / "study" / "index.html").read_text()
    shown = Page(page)
    assert "0.375 ± 0.177" in shown.texts and "http" not in page
    assert [svg["aria-label"] for svg in shown.all("svg")] == [
        f"{name}: pictures, resnet" for name in ("accuracy", "conflicting", "IoU", "ROUGE-L", "Accuracy against IoU")
    ]
    assert "megl: IoU 0.625, accuracy 0.875" in shown.texts
    assert any(text.startswith("megl: 0.625 (") for text in shown.texts)  # the bar of its IoU
    run(STUDY, "--report")
    assert (place / "out" / "study" / "index.html").read_text() == page


def test_methods_are_tested_against_plain_and_the_best_baseline(place, run):
    study = changed(baselines=["gradia", "haics"], methods={**STUDY["methods"], "haics": OFF | {"learning_rate": 1}})
    few, many = [1] * 10 + [0] * 30, [1] * 20 + [0] * 20
    rights = {"plain": [few, few], "gradia": [many, many], "haics": [few, few], "megl": [[1] * 40, [1] * 40]}
    write_study(place, {**study, "reference": "plain"}, rights)
    text = run({**study, "reference": "plain"}, "--report")
    assert figures_row(text, "megl")["accuracy"] == "1.000 ± 0.000\\*†"
    assert figures_row(text, "gradia")["accuracy"] == "0.500 ± 0.000\\*"
    assert figures_row(text, "haics")["accuracy"] == "0.250 ± 0.000"
    against_plain, against_best = text.split("Difference from ")[1:]
    assert against_plain.startswith("plain:") and against_best.startswith("the best baseline")
    # Both seeds are alike: the interval is that of 40 images, of which 30 are won.
    low, high = stats.ttest_1samp([1] * 30 + [0] * 10, 0).confidence_interval(0.95)
    (row,) = (line for line in against_plain.splitlines() if line.startswith("| megl"))
    assert row.startswith(f"| megl | +0.750 ({low:+.3f}, {high:+.3f}), p < 0.001 |")
    (row,) = (line for line in against_plain.splitlines() if line.startswith("| haics"))
    assert row.startswith("| haics | +0.000 (+0.000, +0.000), p = 1 |")
    assert "| (which) | gradia | gradia |" in against_best and "| gradia |" not in against_best.split("(which)")[0]
    (row,) = (line for line in against_best.splitlines() if line.startswith("| megl"))
    assert row.startswith("| megl | +0.500 (")


def test_claims_hold_or_do_not(place, run):
    """Every image of a run has the same IoU, so that a test is the t test of the seeds' differences."""
    rights = {"plain": [[0] * 4] * 3, "gradia": [[1, 1, 0, 0]] * 3, "megl": [[1] * 4] * 3}
    ious = {"plain": [0.3, 0.3, 0.3], "gradia": [0.62, 0.62, 0.62], "megl": [0.59, 0.6, 0.61]}
    bars = [
        ("plain", "iou", {"gain": 0.25}),
        ("plain", "iou", {"gain": 0.29}),
        ("plain", "iou", {"gain": 0.5}),
        ("plain", "iou", {"ratio": 1.7}),
        ("plain", "iou", {"ratio": 1.95}),
        ("best baseline", "iou", {"gain": 0}),
        ("best baseline", "iou", {"no_worse_than": 0.1}),
        ("plain", "pointing_game", {"ratio": 1.5}),  # which nobody has
        ("plain", "accuracy", {"gain": 0.5}),
        ("plain", "accuracy", {"ratio": 2}),  # plain has none: no ratio
    ]
    claims = [{"method": "megl", "over": over, "metric": metric, **bar} for over, metric, bar in bars]
    study = changed(claims=claims, seeds=[0, 1, 2])
    write_study(place, study, rights, {method: [[iou] * 4 for iou in values] for method, values in ious.items()})
    table = run(study, "--report").split("Claims:")[1].split("Difference")[0]

    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)
    logs = np.exp(np.log(2) + np.array([-1, 1]) * half / 0.6)
    raw = [stats.ttest_1samp([0.29, 0.3, 0.31], bar).pvalue for bar in (0.25, 0.29, 0.5)]
    raw += [2 * stats.t.sf(abs(np.log(2 / bar)) / (0.01 / np.sqrt(3) / 0.6), 2) for bar in (1.7, 1.95)]
    raw += [stats.ttest_1samp([-0.03, -0.02, -0.01], bar).pvalue for bar in (0, -0.1)] + [1, 1]
    p = ["< 0.001" if value < 0.001 else f"{value:.2g}" for value in holm(raw)]
    gain, ratio = f"+0.300 | {0.3 - half:+.3f} to {0.3 + half:+.3f}", f"× 2.00 | × {logs[0]:.2f} to × {logs[1]:.2f}"
    lead = f"-0.020 | {-0.02 - half:+.3f} to {-0.02 + half:+.3f}"
    assert [line for line in table.splitlines() if line.startswith("| megl")] == [
        f"| megl over plain: IoU | at least +0.250 | {gain} | {p[0]} | undecided |",
        f"| megl over plain: IoU | at least +0.290 | {gain} | {p[1]} | undecided |",
        f"| megl over plain: IoU | at least +0.500 | {gain} | {p[2]} | fails |",
        f"| megl over plain: IoU | at least × 1.70 | {ratio} | {p[3]} | holds |",
        f"| megl over plain: IoU | at least × 1.95 | {ratio} | {p[4]} | undecided |",
        f"| megl over best baseline, gradia: IoU | at least +0.000 | {lead} | {p[5]} | undecided |",
        f"| megl over best baseline, gradia: IoU | no worse than -0.100 | {lead} | {p[6]} | holds |",
        "| megl over plain: accuracy | at least +0.500 | – | – | – | undecided |",  # nothing varies at all
        "| megl over plain: accuracy | at least × 2.00 | – | – | – | undecided |",
    ]
    # By itself the first would have held.
    assert raw[0] < 0.05 < holm(raw)[0]
    assert "<h3>Claims</h3>" in (place / "out" / "study" / "index.html").read_text()
    run(study, "--report", "--only", "method=plain,gradia")
    assert "Claims" not in (place / "out" / "study" / "results.md").read_text()


def test_the_test_is_over_images_and_seeds(place):
    """Seed 0 wins one of two images, seed 1 none: as in `test_estimate_by_hand`."""
    rights = {"plain": [[1, 0], [1, 0]], "gradia": [[1, 0], [1, 0]], "megl": [[1, 1], [1, 0]]}
    write_study(place, STUDY, rights)
    (group,) = groups_of(place, cells_of(STUDY))
    test = group.difference("megl", "plain", "accuracy")
    assert (test.mean, test.error, test.seeds) == (0.25, pytest.approx(0.25), 2)
    assert group.difference("megl", "plain", "worst_group_accuracy") is None
    assert group.difference("megl", "plain", "iou") is None
    # The ratio's logarithm: the images' influences over the means, 3/4 and 1/2.
    values = np.array([[1 / 0.75 - 1 / 0.5, 1 / 0.75], [1 / 0.75 - 1 / 0.5, 0]])
    expected = estimate(values.mean(axis=1), (values - values.mean(axis=1)[:, None]) / 2)
    ratio = group.difference("megl", "plain", "accuracy", ratio=True)
    assert ratio.mean == pytest.approx(np.log(1.5)) and ratio.error == pytest.approx(expected.error)
    one = group.interval("megl", "accuracy")
    assert one == estimate(np.array([1, 0.5]), np.array([[0, 0], [0.25, -0.25]])).interval()


def test_one_seed_says_nothing_about_others(place, run):
    claims = [{"method": "megl", "over": "plain", "metric": "accuracy", "gain": 0}]
    study = changed(seeds=[0], claims=claims, baselines=[])
    wins = [1] * 20 + [0] * 20
    rights = {"plain": [[0] * 40], "gradia": [[0] * 40], "megl": [wins]}
    write_study(place, study, rights)
    text = run(study, "--report")
    low, high = stats.ttest_1samp(wins, 0).confidence_interval(0.95)
    assert f"| megl | +0.500 ({low:+.3f}, {high:+.3f}), p < 0.001 ¹ |" in text
    assert f"| +0.500 | {low:+.3f} to {high:+.3f} | < 0.001 | holds ¹ |" in text
    assert "¹ of the one seed that both have: says nothing about other seeds." in text
    assert "¹" not in run(changed(seeds=[0], methods={"megl": {}}), "--report").split("| seeds |")[0]


def test_a_run_without_scores_of_rationales_leaves_dashes(place, run):
    """Its items have none, or no references: `null`, and statistics of BLEU that are zero."""
    write_study(place, STUDY, {name: [[1, 0, 1], [1, 1, 0]] for name in STUDY["methods"]})
    for cell in cells_of(STUDY):
        folder = place / "out" / "cells" / cell.key
        with gzip.open(folder / "predictions.jsonl.gz", "rt") as lines:
            items = [json.loads(line) for line in lines]
        for item in items:
            silent = cell.method == "megl" or item["id"] == "i0"
            item["per_item"]["rationale.rouge_l"] = None if silent else 0.5
            item["bleu_statistics"] = [0] * 10 if silent else [5, 6, 4, 5, 3, 4, 2, 3, 1, 2]
        with gzip.open(folder / "predictions.jsonl.gz", "wt") as lines:
            lines.writelines(json.dumps(item) + "\n" for item in items)
        metrics = json.loads((folder / "metrics.json").read_text())
        score = None if cell.method == "megl" else 0.5
        metrics["rationale"] = {"rouge_l": score, "bleu_4": score}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        record = json.loads((folder / "cell.json").read_text())
        (folder / "cell.json").write_text(json.dumps({**record, "training_settings": {"text_loss_weight": 1}}))
    text = run(STUDY, "--report")
    row = figures_row(text, "megl")
    assert (row["ROUGE-L"], row["BLEU-4"]) == ("–", "–") and row["accuracy"] == "0.667 ± 0.000"
    assert figures_row(text, "gradia")["BLEU-4"] == "0.500 ± 0.000"
    difference = text.split("Difference from plain")[1].split("Difference from the best")[0]
    assert re.search(r"\| gradia \|.*\| \+0.000 \(\+0.000, \+0.000\), p = 1 \|", difference)
    assert re.search(r"\| megl \| .*\| – \| – \|$", difference, re.MULTILINE)


def test_tests_pair_the_seeds_that_both_have(place):
    rights = {"plain": [[1, 0], [0, 0]], "gradia": [[1, 0], [1, 0]], "megl": [[1, 1], [0, 0]]}
    write_study(place, STUDY, rights)
    cells = [cell for cell in cells_of(STUDY) if (cell.method, cell.seed) != ("plain", 1)]
    (group,) = groups_of(place, cells)
    assert group.values["plain"]["accuracy"] == [0.5] and group.values["megl"]["accuracy"] == [1, 0]
    test = group.difference("megl", "plain", "accuracy")
    assert (test.mean, test.seeds) == (0.5, 1)
    assert "| plain | 1 | 0.500 |" in study_results.markdown(STUDY, "study", [group])


def test_share_of_masks_is_a_curve_for_each_method(place, run):
    methods = {"megl": {"mask_share": [1, 0.1]}, "plain": OFF}
    study = changed(methods=methods, reference="plain", seeds=[0])
    write_study(place, study, {"megl mask_share=1": [[1, 1]], "megl mask_share=0.1": [[1, 0]], "plain": [[1, 0]]})
    run(study, "--report")
    page = (place / "out" / "study" / "index.html").read_text()
    assert "accuracy against the share of masks" in page
    chart = ElementTree.fromstring(re.search('<svg [^>]*"accuracy against the share of masks:.*?</svg>', page)[0])
    places = {
        title.text: (float(mark.get("x")), float(mark.get("y")))
        for mark in chart.iter("use")
        for title in mark.findall("title")
    }
    # The method in the order of its shares, and plain, which uses no mask, level; from 0.5 to 1 up the side.
    assert list(places) == [
        *("megl, 10% of the masks: 0.500", "megl, 100% of the masks: 1.000"),
        *("plain, 0% of the masks: 0.500", "plain, 100% of the masks: 0.500"),
    ]
    (low_x, low), (full_x, full), (none_x, level), (right, level_too) = places.values()
    assert (full_x, level, level_too) == (right, low, low) and full < low
    assert low_x - none_x == pytest.approx((right - none_x) / 10, abs=0.1)
    assert ">megl 0.1</text>" in page and "megl mask_share=0.1" in page  # in the charts, and in the table


def test_names_in_a_study_are_no_markup(place, run):
    name, evil = "<b>$x$", "<script>alert(1)</script>"
    study = changed(methods={"plain": OFF, name: {}}, baselines=[], description=evil, seeds=[0])
    write_study(place, study, {"plain": [[1, 0]], name: [[1, 1]]})
    run(study, "--report")
    page = (place / "out" / "study" / "index.html").read_text()
    assert "<script" not in page and "<b>" not in page
    assert evil in Page(page).texts and Page(page).texts.count(name) > 3  # in tables and charts


def test_published_cells_are_done_elsewhere(place, run, fake_scripts):
    first = {"method": "plain,gradia", "seed": "0"}
    text = run(STUDY, "--publish", "docs", "--only", *(f"{k}={v}" for k, v in first.items()))
    assert "2 cells, 0 of them done" in text
    assert [file.name for file in (place / "docs" / "cells").iterdir()] == ["study.parquet"]
    assert len(cell_files.published_cells(place / "docs" / "cells")) == 2

    shutil.rmtree(place / "out")  # another machine
    text = run(STUDY, "--report", "--publish", "docs")
    assert "2 of 6 cells" in text
    assert "6 cells, 2 of them done" in run(STUDY, "--publish", "docs")
    assert (
        len(cell_files.published_cells(place / "docs" / "cells")) == 6 == len((place / "trained").read_text().split())
    )


def scored(place, study):
    """All cells of a study, with scores of every kind; folder to its images."""
    write_study(place, study, {name: [[1, 0], [1, 1]] for name in study["methods"]}, {"megl": [[1 / 3, 0.5]] * 2})
    found = {}
    for file in sorted((place / "out" / "cells").glob("*/predictions.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            items = [json.loads(line) for line in lines]
        items[0]["per_item"] |= {"rationale.rouge_l": None, "rationale.cider": 1.23456, "saliency.kl": 7.0}
        items[0]["bleu_statistics"], items[1]["bleu_statistics"] = None, [5, 6, 4, 5, 3, 4, 2, 3, 1, 2]
        items[1] |= {"rationale": "a house", "per_item": {**items[1]["per_item"], "rationale.cider": 0}}
        with gzip.open(file, "wt") as lines:
            lines.writelines(json.dumps(item) + "\n" for item in items)
        found[file.parent] = {item["id"]: item for item in items}
    return found


def test_published_cells_read_back_as_they_were(place):
    """But for what no table reads: the text, other scores, and those of rationales that nothing trained."""
    written = scored(place, STUDY)
    keys = [folder.name for folder in written]
    cell_files.publish_cells(keys, place / "out" / "cells", place / "cells", "study")
    cell_files.fetch_cells(keys, place / "cells", place / "back")
    assert sorted(folder.name for folder in (place / "back").iterdir()) == sorted(keys)
    for folder, items in written.items():
        back = place / "back" / folder.name
        record = json.loads((folder / "cell.json").read_text())
        writes = record["training_settings"]["text_loss_weight"] > 0
        assert json.loads((back / "cell.json").read_text()).items() >= record.items()
        metrics = json.loads((folder / "metrics.json").read_text())
        kept = json.loads((back / "metrics.json").read_text())
        assert list(headlines(kept)) == list(headlines(metrics)) and kept["accuracy"] == metrics["accuracy"]
        with gzip.open(back / "predictions.jsonl.gz", "rt") as lines:
            found = [json.loads(line) for line in lines]
        assert [item["id"] for item in found] == sorted(items)
        for item in found:
            old = items[item["id"]]
            assert {name: item[name] for name in cell_files.ITEM} == {name: old[name] for name in cell_files.ITEM}
            assert item.get("bleu_statistics") == (old["bleu_statistics"] if writes else None)
            names = cell_files.MAPS + cell_files.INTERVENTIONS + (cell_files.RATIONALES if writes else ())
            scores = {name: score for name, score in old["per_item"].items() if name in names}
            rounded = {name: score if score is None else float(f"{score:.5g}") for name, score in scores.items()}
            assert item["per_item"] == rounded and "rationale" not in item

    # Again nothing is new, and the file stays as it is; another cell is added to those that are there.
    file = place / "cells" / "study.parquet"
    before = file.stat().st_mtime_ns
    cell_files.publish_cells(keys, place / "out" / "cells", place / "cells", "other")
    assert file.stat().st_mtime_ns == before and list((place / "cells").iterdir()) == [file]


def test_published_cells_are_a_data_set(place, tmp_path):
    written = scored(place, STUDY)
    keys = [folder.name for folder in written]
    for name, some in (("first", keys[:2]), ("second", keys[:4])):
        cell_files.publish_cells(some, place / "out" / "cells", place / "cells", name)
    (place / "cells" / "README.md").write_text((ROOT / "docs" / "cells" / "README.md").read_text())
    rows = datasets.load_dataset(str(place / "cells"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["key"]) == sorted(keys[:4]) and rows["id"][0] == ["i0", "i1"]
    files = cell_files.published_cells(place / "cells")
    assert [files[key].stem for key in keys[:4]] == ["first", "first", "second", "second"]
    (place / "cells" / "second.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"second.parquet is no file of cells \(.*: restore it from git"):
        cell_files.published_cells(place / "cells")


def test_several_publish_at_once_and_nothing_is_lost(place):
    keys = [folder.name for folder in scored(place, STUDY)]
    with ThreadPoolExecutor(len(keys)) as pool:
        list(
            pool.map(
                lambda key: cell_files.publish_cells([key], place / "out" / "cells", place / "cells", "one"), keys
            )
        )
    assert sorted(cell_files.published_cells(place / "cells")) == sorted(keys)
    assert [path.name for path in (place / "cells").iterdir()] == ["one.parquet"]


def test_published_cells_that_are_not_whole_are_refused(place):
    keys = [folder.name for folder in scored(place, STUDY)]
    cell_files.publish_cells(keys, place / "out" / "cells", place / "cells", "study")
    file = place / "cells" / "study.parquet"
    whole = pq.read_table(file)
    rows = whole.to_pylist()

    def refused(table, message):
        pq.write_table(table, file)
        with pytest.raises(ValueError, match=message):
            cell_files.fetch_cells([*keys, "../out"], place / "cells", place / "back")
        assert not list(place.glob("back/*")) and not (place / "outside").exists()

    def changed(**values):
        return pa.Table.from_pylist([rows[0] | values], cell_files.SCHEMA)

    for key in ("../outside", str(place / "outside"), "..", "", None):
        refused(changed(key=key), f"study.parquet has a cell of the name {re.escape(repr(key))}, which is none")
    refused(pa.concat_tables([changed(), changed()]), "has the cell .*, which is in .*study.parquet too")
    for name in ("settings", "id", "saliency.iou"):
        refused(whole.drop_columns([name]), rf"study.parquet is no file of cells \(it has no column {name}\)")
    refused(changed(metrics=None), f"the published cell {rows[0]['key']} has no metrics: restore its file from git")
    refused(changed(label=["a"]), "has 2 images and 1 of label: restore its file from git")
    pq.write_table(whole.drop_columns(list(cell_files.INTERVENTIONS)), file)  # as files were before there were any
    cell_files.fetch_cells(keys, place / "cells", place / "back")
    assert sorted(path.name for path in (place / "back").iterdir()) == sorted(keys)


def test_shipped_cells_have_the_scores_of_their_figures(tmp_path):
    published = cell_files.published_cells(ROOT / "docs" / "cells")
    assert len(published) == 484
    keys = [*sorted(published)[::40], next(key for key in published if "clip-tiny" in key)]
    cell_files.fetch_cells(keys, ROOT / "docs" / "cells", tmp_path)
    for folder in tmp_path.iterdir():
        run = study_results.Run(folder, "method", 0, {})
        kept = bootstrap.point_figures(run.items)
        assert kept["accuracy",] == run.figures["accuracy"] and run.record["key"] == folder.name
        for name, path in run.paths.items():
            if path in kept and path[0] != "explained_accuracy":
                assert kept[path] == pytest.approx(run.figures[name], abs=1e-5), (folder.name, name)


ITEM = {"id": "a", "label": "a", "prediction": "a", "group": None, "per_item": {}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", {"accuracy": None}, ": expected a number as `accuracy`, got None"),
        ("metrics.json", {"accuracy": []}, ": expected a number as `accuracy`, got "),
        ("metrics.json", {"accuracy": 0.5, "saliency": [1]}, ": expected an object in braces as `saliency`, got "),
        ("metrics.json", [], " is no object in braces"),
        ("metrics.json", b"\xff", " is no JSON "),
        ("cell.json", {}, " has no `key`"),
        ("cell.json", {"key": "a", "training_settings": 3}, " has no `training_settings`"),
        ("predictions.jsonl.gz", {"id": "a"}, ", line 1 has no `label`"),
        ("predictions.jsonl.gz", [], ", line 1 is no object in braces"),
        ("predictions.jsonl.gz", {**ITEM, "id": 3}, ", line 1: expected a text as `id`, got 3"),
        ("predictions.jsonl.gz", {**ITEM, "bleu_statistics": [1]}, ", line 1: expected 10 numbers as `bleu_stat"),
        ("predictions.jsonl.gz", b"", " is empty"),
    ],
)
def test_a_broken_cell_is_named(place, run, name, content, message):
    write_study(place, STUDY, {name: [[1, 0], [1, 1]] for name in STUDY["methods"]})
    broken = sorted((place / "out" / "cells").glob(f"*/{name}"))[-1]
    written = content if isinstance(content, bytes) else json.dumps(content).encode()
    broken.write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    with pytest.raises(SystemExit) as caught:
        run(STUDY, "--report")
    line = str(caught.value)
    assert f"{broken.parent.name}/{name}{message}" in line and line.startswith("compare: ")
    assert line.endswith(": remove its folder and run the study again.") and "\n" not in line


def test_kept_scores_have_five_digits(tmp_path):
    item = {"id": "a", "saliency": [[0.5]], "per_item": {"iou": 1 / 3, "hits": 123456, "none": None}, "rationale": "x"}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(item) + "\n")
    compare._keep_predictions(tmp_path / "predictions.jsonl", tmp_path / "kept.gz")
    kept = json.loads(gzip.decompress((tmp_path / "kept.gz").read_bytes()))
    scores = {"iou": 0.33333, "hits": 123456, "none": None}
    assert kept == {"id": "a", "per_item": scores, "rationale": "x"}


def test_a_report_needs_cells_and_whole_files(place, run):
    with pytest.raises(SystemExit, match="none of the study's 6 cells: run it without `--report`"):
        run(STUDY, "--report")
    write_study(place, STUDY, {name: [[1, 0], [1, 1]] for name in STUDY["methods"]})
    broken = next((place / "out" / "cells").glob("*/predictions.jsonl.gz"))
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(
        SystemExit, match=r"predictions.jsonl.gz cannot be read .*: remove its folder and run the stud"
    ):
        run(STUDY, "--report")


# ---- Runs ----


# Stands for each of the three scripts: fast, and its figures follow from its arguments. `hold` makes it wait.
FAKE = """
import json, os, random, sys, time
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
step = Path(__file__).stem.removeprefix("fake_")
output = Path(arguments.get("--output") or arguments["--output_dir"])
output.mkdir()
if step == "init":
    output.joinpath("made").write_text(" ".join(sys.argv[1:]))
elif step == "train":
    with open("trained", "a") as log:
        log.write(output.parent.name + " ")
    Path("pids").open("a").write(f"{os.getpid()} ")
    while Path("hold").exists() and len(Path("trained").read_text().split()) > 2:
        time.sleep(0.02)
    if float(arguments["--learning_rate"]) >= 1:
        sys.exit("train_megl: no luck")
    weights = {name: float(arguments.get(f"--{name}", 1)) for name in ("text_loss_weight", "visual_loss_weight")}
    output.joinpath("training_settings.json").write_text(json.dumps(weights))
    output.joinpath("seed").write_text(f"{arguments['--seed']} {weights} {os.environ['OMP_NUM_THREADS']}")
else:
    model = Path(arguments["--model"])
    draw = random.Random(model.joinpath("seed").read_text())
    items = [{"id": str(i), "label": "a", "prediction": draw.choice("ab"), "group": None, "saliency": [[0.5]],
              "per_item": {}} for i in range(30)]
    accuracy = sum(item["prediction"] == "a" for item in items) / 30
    output.joinpath("metrics.json").write_text(json.dumps({"accuracy": accuracy}))
    output.joinpath("predictions.jsonl").write_text("".join(json.dumps(item) + "\\n" for item in items))
"""


@pytest.fixture()
def fake_scripts(place, monkeypatch):
    for steps in studies.STEPS.values():
        for step, (_, kinds) in steps.items():
            (place / f"fake_{step}.py").write_text(FAKE)
            monkeypatch.setitem(steps, step, (f"fake_{step}", kinds))


def test_cells_run_once_and_are_recorded(place, run, fake_scripts):
    text = run(STUDY)
    assert text.startswith("6 cells, 0 of them done\n[1/6] pictures, resnet, plain, seed 0: accuracy 0.")
    cells = sorted((place / "out" / "cells").iterdir())
    assert [cell.name for cell in cells] == sorted(cell.key for cell in cells_of(STUDY))
    for cell in cells:
        assert sorted(file.name for file in cell.iterdir()) == [
            *("cell.json", "log.txt", "metrics.json", "predictions.jsonl.gz")
        ]
        with gzip.open(cell / "predictions.jsonl.gz", "rt") as lines:
            items = [json.loads(line) for line in lines]
        accuracy = np.mean([item["prediction"] == "a" for item in items])
        assert json.loads((cell / "metrics.json").read_text())["accuracy"] == accuracy
        assert len(items) == 30 and "saliency" not in items[0]
    first = cells_of(STUDY)[0]
    record = json.loads((place / "out" / "cells" / first.key / "cell.json").read_text())
    assert record["settings"] == first.settings and record["training_settings"]["visual_loss_weight"] == 0
    assert (record["key"], record["seed"], record["split"], record["path"]) == (first.key, 0, "test", "data")
    assert record["seconds"].keys() == {"init", "train", "evaluate"} and record["versions"].keys() >= {"torch"}
    assert record["threads"] == record["machine"]["cores"] and record["jobs"] == 1 and "commit" in record

    # Again: nothing is run, and the page is the same. A changed setting is another cell, beside the old one.
    again = run(STUDY)
    assert again.startswith("6 cells, 6 of them done\n# Study") and again.endswith(text[text.index("# Study") :])
    methods = {**STUDY["methods"], "megl": {"visual_loss_weight": 3}, "same as plain": OFF}
    more = run(changed(methods=methods))
    assert more.startswith("6 cells, 4 of them done\n[1/2] pictures, resnet, megl, seed 0")
    assert figures_row(more, "same as plain")["accuracy"] == figures_row(more, "plain")["accuracy"]
    assert len(list((place / "out" / "cells").iterdir())) == 8


def test_only_some_cells_at_a_time_and_models_kept(place, run, fake_scripts):
    options = ("--jobs", 2, "--keep_models")
    text = run(STUDY, "--only", "method=plain,megl", "seed=1", *options)
    assert text.startswith("2 cells, 0 of them done") and "| gradia |" not in text
    cells = list((place / "out" / "cells").iterdir())
    assert len(cells) == 2
    for cell in cells:
        names = {path.name for path in cell.iterdir() if path.is_dir()}
        threads = (cell / "model" / "seed").read_text().split()[-1]
        assert names == {"model", "evaluation"} and int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)
    for only, message in {
        "method=megll": "`--only method=…`: unknown `megll`: did you mean `megl`?",
        "methods=megl": "`--only`: unknown `methods`: did you mean `method`?",
        "seed=2": "`--only seed=…`: unknown `2`: expected 0, 1",
    }.items():
        with pytest.raises(SystemExit, match=re.escape(message)):
            run(STUDY, "--only", only)


def test_a_llava_is_a_method_like_others(place, run, fake_scripts):
    """Its scripts have other steps and fewer options: what they lack is no part of its cell."""
    llava = {"model_type": "llava", "vision": "clip-tiny", "learning_rate": 0.5}
    study = changed(methods={"megl": {"visual_loss_weight": 3}, "llava": llava}, reference="llava", seeds=[0])
    megl, cell = cells_of(study)
    assert cell.settings == {"max_steps": 5, **llava} and "model_type" not in megl.settings
    train, evaluate = (dict(zip(line[::2], line[1::2], strict=True)) for line in cell.commands(Path("x")).values())
    placed = {"--dataset_name": "data", "--output_dir": "x/model", "--seed": "0"}
    own = {"--vision": "clip-tiny", "--learning_rate": "0.5", "--max_steps": "5"}
    quiet = {"--eval_strategy": "no", "--save_strategy": "no", "--report_to": "none", "--disable_tqdm": "True"}
    assert train == {**placed, **own, **quiet, "--logging_steps": "50"}
    assert evaluate == {"--model": "x/model", "--dataset": "data", "--split": "test", "--output": "x/evaluation"}

    text = run(study)
    record = json.loads((place / "out" / "cells" / cell.key / "cell.json").read_text())
    assert list(record["seconds"]) == ["train", "evaluate"] and "Difference from llava:" in text


def test_a_cell_that_fails_is_told_and_tried_anew(place, run, fake_scripts):
    study = changed(methods={"bad": {"learning_rate": 1}, "megl": {}}, seeds=[0])
    message = (
        r"1 cells failed; run it again to try them anew.\npictures, resnet, bad, seed 0: fake_train failed, see .*"
    )
    for _ in range(2):
        with pytest.raises(SystemExit, match=message + ": train_megl: no luck") as error:
            run(study)
    log = Path(re.search(r"see (\S+\.log)", str(error.value))[1])
    assert "no luck" in log.read_text()
    assert list(json.loads((place / "out" / "study" / "results.json").read_text())["study"]["pictures"]["resnet"]) == [
        "megl"
    ]
    # What was trained, twice the one that fails; and nothing half-done is left.
    assert len((place / "trained").read_text().split()) == 3
    assert {path.name for path in (place / "out" / "cells").iterdir() if path.is_dir()} == {cells_of(study)[1].key}


DRIVER = """
import sys
from studies import compare
from studies import study
for step, (_, parser) in study.STEPS["megl"].items():
    study.STEPS["megl"][step] = (f"fake_{step}", parser)
sys.argv = ["compare.py", "study.yaml", "--output", "out"]
compare.main()
"""


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_cell_that_another_process_runs_is_waited_for(place, fake_scripts):
    cell, begun = cells_of(STUDY)[0], threading.Event()

    def run_it():
        with new_folder(place / "cells" / cell.key) as folder:
            (folder / "cell.json").touch()
            begun.set()
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_it)
        assert begun.wait(60)
        assert compare.run_cell(cell, place / "cells", 1, False) == "done meanwhile"
        other.result()
    assert [path.name for path in (place / "cells").iterdir()] == [cell.key]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed study leaves its last script running")
def test_a_killed_study_goes_on_and_ends_with_the_same_table(place, run, fake_scripts):
    straight = run(STUDY)
    expected = (place / "out" / "study" / "results.json").read_bytes()
    (place / "out").rename(place / "straight")
    (place / "trained").unlink()

    (place / "driver.py").write_text(DRIVER)
    (place / "hold").touch()  # the third training does not end
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "driver.py"], stdout=subprocess.DEVNULL, env=environment)
    trained = place / "trained"
    wait_for(lambda: trained.exists() and len(trained.read_text().split()) == 3)
    wait_for(lambda: len((place / "pids").read_text().split()) == 9)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not running((place / "pids").read_text().split()[-1]))
    folder = place / "out" / "cells"
    done = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}
    assert list(done) and sorted(done) == sorted(cell.key for cell in cells_of(STUDY)[:2])
    assert len([path for path in folder.glob(".*") if path.is_dir()]) == 1  # what the kill has left

    (place / "hold").unlink()
    text = run(STUDY)
    assert text.startswith("6 cells, 2 of them done\n[1/4]")
    assert (place / "out" / "study" / "results.json").read_bytes() == expected

    def tables(page):
        return [line for line in page.splitlines() if line.startswith("|")]

    assert len(tables(text)) > 5 and tables(text) == tables(straight)
    assert all((folder / name).stat().st_mtime_ns == time_of for name, time_of in done.items())
    assert sorted(path.name for path in folder.iterdir()) == sorted(cell.key for cell in cells_of(STUDY))


def test_the_real_scripts(place, run):
    build_dataset(ObjectMe, "sample", place / "sample", sample_sizes={"train": 60, "validation": 4, "test": 6})
    settings = {"max_steps": 1, "per_device_train_batch_size": 2, "resamples": 20, "mask_share": 0.9}
    settings |= {"interventions": "train", "recombine": 0.5}
    study = changed(
        seeds=[0],
        settings=settings,
        datasets={"sample": {"path": "sample"}},
        split="validation",
        methods={"megl": {"grounding_map": "random"}},
    )
    run(study)
    (cell,) = cells_of(study)
    folder = place / "out" / "cells" / cell.key
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"] == "validation" and metrics["n"]["accuracy"] == 4
    found = json.loads((place / "out" / "study" / "results.json").read_text())
    values = found["study"]["sample"]["resnet"]["megl"]
    assert values["accuracy"] == [metrics["accuracy"]] and values["iou"] == [metrics["saliency"]["iou"]]
    names = {"accuracy_conflicting", "worst_group_accuracy", "pointing_game", "bleu_4", "rouge_l", "cider"}
    names |= {f"{name}_accuracy" for name in ("kind", "colour", "place", "shuffled_place")}
    names |= {"simulatability_accuracy", "recall_at_1", "map_sensitivity", "background_stability"}
    names |= {"background_gap", "other_accuracy", "object_alone_accuracy", "background_alone_agreement"}
    assert names <= set(values)
    assert values["background_gap"] == [metrics["interventions"]["background_gap"]]
    record = json.loads((folder / "cell.json").read_text())
    assert record["training_settings"]["mask_share"] == 0.9 and min(record["seconds"].values()) > 0
