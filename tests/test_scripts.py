"""The scripts, one after another as a user would run them, on a small sample."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from PIL import Image

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.losses_megl import resize_masks


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
    named = {f"{name}_accuracy" for name in ("kind", "colour", "place", "shuffled_place")}
    assert {"bleu_4", "rouge_l", "n", *named} <= set(metrics["rationale"])
    assert metrics["clip_score"] is None
    page = (evaluation / "index.html").read_text()
    assert page.count('class="item"') == SIZES["test"] and "http" not in page.split("</style>")[1]

    card = ModelCard.load(trained / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert figures["iou"] == pytest.approx(metrics["saliency"]["iou"], abs=1e-4)
    assert "visual_loss_weight | 3.0" in card.content and "{{" not in card.content

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


def test_subsets_of_the_explanations_are_nested_and_follow_from_the_ids(run, dataset):
    from train_megl import keep_explanations  # `run` has put the scripts on the path

    train_split = load_dataset(str(dataset), split="train")
    kinds = {"visual_explanation": "", "textual_explanations": "0 rationales "}

    def kept(rows, kind):
        return {row["id"] for row in rows if row[kind]}

    given = {kind: kept(train_split, kind) for kind in kinds}
    assert 2 < len(given["visual_explanation"]) < len(given["textual_explanations"]) == SIZES["train"]
    order = {
        kind: sorted(given[kind], key=lambda key: hashlib.sha256(f"{salt}{key}".encode()).hexdigest())
        for kind, salt in kinds.items()
    }
    for share in (0, 0.3, 0.5, 0.9, 1.0):
        rows = list(keep_explanations(train_split, mask_share=share, rationale_share=1 - share))
        for kind, part in {"visual_explanation": share, "textual_explanations": 1 - share}.items():
            assert kept(rows, kind) == set(order[kind][: round(part * len(given[kind]))])
        assert [row["id"] for row in rows] == train_split["id"]
        assert [row["label"] for row in rows] == train_split["label"]
    # The order of the items makes no difference, and another seed draws others.
    shuffled = keep_explanations(train_split.shuffle(seed=1), 0.5)
    half = len(given["visual_explanation"]) // 2
    assert kept(shuffled, "visual_explanation") == set(order["visual_explanation"][:half])
    drawn = {
        seed: [
            kept(keep_explanations(train_split, share, share, seed), kind) for share in (0.3, 0.5) for kind in kinds
        ]
        for seed in (0, 1, 2)
    }
    assert drawn[0] != drawn[1] != drawn[2]
    for masks, texts, more_masks, more_texts in drawn.values():
        assert masks <= more_masks and texts < more_texts


def test_training_without_masks_has_no_visual_loss(run, dataset, untrained, tmp_path):
    with pytest.raises(SystemExit, match=r"train_megl: `mask_share` must lie in \[0, 1\], got 30.0"):
        train(run, untrained, dataset, tmp_path / "trained", "--mask_share", 30)
    options = ("--mask_share", 0, "--distribution_loss_weight", 0.1, "--logging_steps", 1)
    train(run, untrained, dataset, tmp_path / "trained", *options)
    assert json.loads((tmp_path / "trained" / "training_settings.json").read_text())["mask_share"] == 0
    logs = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"][0]
    assert "loss_text" in logs and logs.get("loss_visual", 0) == 0 and "loss_distribution" not in logs


def test_ablations_are_chosen_when_the_model_is_made(run, dataset, tmp_path):
    """The upper bound is shown the human masks by the evaluation: its rationales are those under the masks."""
    path, output = tmp_path / "model", tmp_path / "evaluation"
    options = ("--rationale_gradient", "none", "--grounding_map", "visual_explanation")
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", path, *options)
    model, processor = MeglForImageClassification.from_pretrained(path), MeglProcessor.from_pretrained(path)
    assert (model.config.rationale_gradient, model.config.grounding_map) == ("none", "visual_explanation")
    with torch.no_grad():  # an untrained model would write the same whatever it sees
        model.grounding.position_projection.weight *= 100
        for parameter in model.language_model.parameters():
            parameter *= 5
    model.save_pretrained(path)
    run("evaluate_megl", "--model", path, "--dataset", dataset, "--output", output, "--resamples", 2)
    items = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]

    rows = load_dataset(str(dataset), split="test")[:]
    inputs = processor(images=rows["image"], visual_explanations=rows["visual_explanation"])
    assert inputs["has_visual_explanation"].all()
    prompts = processor.prompts([item["prediction"] for item in items])

    features = model(inputs["pixel_values"]).features

    def rationales(maps):
        evidence = model.ground(features, maps)
        return processor.batch_decode_rationales(model.generate_rationales(**prompts, evidence_tokens=evidence))

    own = torch.tensor([item["saliency"] for item in items])
    masks = resize_masks(inputs["visual_explanations"], own.shape[1:])
    assert [item["rationale"] for item in items] == rationales(masks) != rationales(own)
    assert [item["shuffled_rationale"] for item in items] == rationales(masks.roll(1, dims=0)) != rationales(masks)


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
    from support.output_folder import new_folder

    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
