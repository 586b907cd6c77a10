"""The scripts, one after another as a user would run them, on a small sample."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
SIZES = {"train": 16, "validation": 4, "test": 8}


@pytest.fixture()
def run(monkeypatch):
    """`run(script, *arguments)` runs a script's `main` in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        __import__(script).main()

    return run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from dataset_builders import ObjectMe, build_dataset

    folder = tmp_path_factory.mktemp("data") / "object_me"
    build_dataset(ObjectMe, "sample", folder, sample_sizes=SIZES)
    return folder


@pytest.fixture()
def untrained(run, dataset, tmp_path):
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "untrained")
    return tmp_path / "untrained"


def train(run, model, dataset, output, *arguments):
    settings = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--report_to", "none", "--disable_tqdm", "True"]
    run(
        "train_megl",
        *("--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", output),
        *settings,
        *arguments,
    )


def test_from_data_to_explanation(run, dataset, untrained, tmp_path, capsys):
    trained, evaluation, explanations = tmp_path / "trained", tmp_path / "evaluation", tmp_path / "explanations"
    train(run, untrained, dataset, trained)
    run("evaluate_megl", "--model", trained, "--dataset", dataset, "--split", "test", "--output", evaluation)

    metrics = json.loads((evaluation / "metrics.json").read_text())
    lines = [json.loads(line) for line in (evaluation / "predictions.jsonl").read_text().splitlines()]
    assert metrics["n"]["accuracy"] == len(lines) == SIZES["test"]
    assert metrics["accuracy"] == np.mean([line["label"] == line["prediction"] for line in lines])
    for group, value in metrics["accuracy_by_group"].items():
        assert value == np.mean([line["label"] == line["prediction"] for line in lines if line["group"] == group])
    assert metrics["worst_group_accuracy"] == min(metrics["accuracy_by_group"].values())
    assert {"iou", "precision", "recall", "f1", "energy", "pointing_game", "n"} <= set(metrics["saliency"])
    assert {"bleu_4", "rouge_l", "kind_accuracy", "place_accuracy", "shuffled_place_accuracy", "n"} <= set(
        metrics["rationale"]
    )
    assert metrics["clip_score"] is None
    page = (evaluation / "index.html").read_text()
    assert page.count('class="item"') == SIZES["test"] and "http" not in page.split("</style>")[1]

    card = ModelCard.load(trained / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert figures["iou"] == pytest.approx(metrics["saliency"]["iou"], abs=1e-4)
    assert "visual_loss_weight | 1.0" in card.content and "{{" not in card.content

    picture = tmp_path / "wide.jpg"
    Image.new("RGB", (90, 40), "green").save(picture)
    capsys.readouterr()
    run("explain", "--model", trained, picture, "--output", explanations)
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record == json.loads((explanations / "explanations.jsonl").read_text())
    assert record["image"] == str(picture) and 0 <= record["score"] <= 1
    assert Image.open(explanations / record["picture"]).width == 2 * 320 + 24


def test_method_and_layer_of_the_map_are_chosen(run, dataset, tmp_path):
    layer = "resnet.encoder.stages.0"
    options = ("--saliency_method", "layer_cam", "--saliency_layer", layer)
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "model", *options)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["saliency_method"], config["saliency_layer"], config["feature_size"]) == ("layer_cam", layer, 48)
    with pytest.raises(SystemExit, match="init_megl: `saliency_layer='resnet.stage'` is no module of ResNetFor"):
        run(
            "init_megl",
            *("--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "other"),
            *("--saliency_layer", "resnet.stage"),
        )
    assert not (tmp_path / "other").exists()


def test_outputs_are_never_overwritten(run, dataset, untrained, tmp_path):
    kept = untrained / "config.json"
    before = kept.read_bytes()
    for call in (
        ("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", untrained),
        ("evaluate_megl", "--model", untrained, "--dataset", dataset, "--output", untrained),
        ("explain", "--model", untrained, ROOT / "docs" / "example.png", "--output", untrained),
        ("train_megl", "--model_name_or_path", untrained, "--dataset_name", dataset, "--output_dir", untrained),
    ):
        with pytest.raises(SystemExit, match="exists and is not"):
            run(*call)
    assert kept.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["untrained"]


def test_another_label_set_is_one_clear_error(run, untrained, tmp_path):
    from dataset_builders import ActionMe, build_dataset

    build_dataset(ActionMe, "sample", tmp_path / "action_me", sample_sizes=SIZES)
    message = "The data set's classes are not the model's"
    with pytest.raises(SystemExit, match=message):
        train(run, untrained, tmp_path / "action_me", tmp_path / "trained")
    with pytest.raises(SystemExit, match=message):
        run("evaluate_megl", "--model", untrained, "--dataset", tmp_path / "action_me", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_picture_is_one_clear_error(run, untrained, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(SystemExit, match="broken.png cannot be read as an image"):
        run("explain", "--model", untrained, broken, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failing_block_leaves_nothing_behind(run, tmp_path):
    from output_folder import new_folder

    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
