"""Temperature scaling: what is fitted, where it is kept, and which probabilities it changes."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from explained_rows import make_dataset
from PIL import Image
from transformers import pipeline

from megl.evaluation.calibration import calibrate, class_scores, fit_temperature
from modeling_megl import MeglConfig, MeglForImageClassification, MeglProcessor


def test_the_temperature_of_two_classes_by_hand():
    """All images have one margin z, a share p of them is right: z / T = log(p / (1 - p))."""
    logits = np.tile([2.0, 0.0], (4, 1))
    labels = np.array([0, 0, 0, 1])
    assert fit_temperature(logits, labels) == pytest.approx(2 / np.log(3), rel=1e-4)
    assert fit_temperature(logits + [[5.0], [0], [-3], [9]], labels) == pytest.approx(2 / np.log(3), rel=1e-4)
    assert fit_temperature(4 * logits, labels) == pytest.approx(8 / np.log(3), rel=1e-4)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 0], "the model names all 3 images of the split right"),
        ([1, 1, 1], "the right classes score no higher than the others"),
        ([0, 1, 1], "the right classes score no higher than the others"),
    ],
)
def test_a_split_that_no_temperature_fits_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(np.tile([2.0, 0.0], (3, 1)), np.array(labels))


def test_the_scores_do_not_depend_on_the_batches(make_model, processor):
    model, dataset = make_model("megl-resnet-tiny").eval(), make_dataset(7)
    expected = class_scores(model, processor, dataset, 7)
    with torch.no_grad():
        logits = model(**processor(images=[row["image"] for row in dataset])).logits
    np.testing.assert_allclose(expected, logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(class_scores(model, processor, dataset, 2), expected, atol=1e-5)


def test_the_error_becomes_smaller_where_it_was_large(make_model, processor):
    """A head of ten times the size is ten times too sure."""
    model, dataset = make_model("megl-resnet-tiny").eval(), make_dataset(30)
    with torch.no_grad():
        model.vision_model.classifier[-1].weight *= 10
    scores = class_scores(model, processor, dataset, 8)
    # Right as often as the scores at a temperature of 10 say.
    wanted = np.exp(scores / 10) / np.exp(scores / 10).sum(axis=1, keepdims=True)
    draws = np.random.default_rng(0).random((len(scores), 1))
    labels = (wanted.cumsum(axis=1) < draws).sum(axis=1).tolist()
    dataset = dataset.remove_columns("label").add_column("label", labels)
    found = calibrate(model, processor, dataset, 8)
    assert found["temperature"] == model.config.score_temperature > 2
    assert found["after"] < found["before"]


# ---- megl evaluate --calibrate ----


@pytest.fixture()
def place(make_model, processor, tmp_path):
    """A model, and two splits of data."""
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for split, count in (("validation", 40), ("test", 10)):
        rows = make_dataset(count)
        labels = np.random.default_rng(count).integers(3, size=count).tolist()
        features = rows.features
        rows = Dataset.from_dict({**{name: rows[name] for name in rows.column_names}, "label": labels}, features)
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path


def test_the_temperature_is_kept_and_used_by_every_door(run, own_cache, place, capsys):
    model, data = place / "model", place / "data"
    before = json.loads((model / "config.json").read_text(encoding="utf-8"))
    common = ("--model", model, "--dataset", data, "--resamples", 50)
    run("evaluate_megl", *common, "--output", place / "plain")
    run("evaluate_megl", *common, "--output", place / "calibrated", "--calibrate")
    after = json.loads((model / "config.json").read_text(encoding="utf-8"))
    temperature = after.pop("score_temperature")
    assert before.pop("score_temperature") == 1 != temperature and after == before
    said = f"temperature {temperature:.3f} by 40 images of validation, where the expected calibration error was"
    assert said in capsys.readouterr().out
    page = (place / "calibrated" / "index.html").read_text(encoding="utf-8")
    assert f"at a temperature of {temperature:.3f}" in " ".join(page.split())

    plain, calibrated = (
        [json.loads(line) for line in (place / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("plain", "calibrated")
    )
    loaded, processor = MeglForImageClassification.from_pretrained(model), MeglProcessor.from_pretrained(model)
    picture = Image.effect_noise((40, 40), 80).convert("RGB")
    with torch.no_grad():
        logits = loaded.eval()(**processor(images=[picture])).logits
    expected = (logits / temperature).softmax(dim=-1).max().item()
    (answer,) = loaded.explain(picture, processor, max_new_tokens=2)
    (found,) = pipeline("image-classification", model=str(model), trust_remote_code=True)(picture, top_k=1)
    assert answer["score"] == pytest.approx(expected, abs=1e-5) == found["score"]
    for one, two in zip(plain, calibrated, strict=True):
        assert (one["prediction"], one["saliency"], one["rationale"]) == (
            *(two["prediction"], two["saliency"], two["rationale"]),
        )
    assert [item["score"] for item in plain] != [item["score"] for item in calibrated]
    temperatures = [
        json.loads((place / name / "metrics.json").read_text(encoding="utf-8"))["calibration"]["temperature"]
        for name in ("plain", "calibrated")
    ]
    assert temperatures == [1.0, temperature]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--calibrate", "test"], "2"),
        (["--calibrate", "trian"], "`--calibrate` must name a split of .*, got 'trian'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_the_work(run, own_cache, place, options, message):
    words = ("--model", place / "model", "--dataset", place / "data", "--output", place / "out")
    with pytest.raises(SystemExit, match=message):
        run("evaluate_megl", *words, *options)
    assert not (place / "out").exists()


def test_a_training_sets_the_temperature_back(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.model.config.score_temperature = 2.5
    trainer.train()
    assert trainer.model.config.score_temperature == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_number_above_0(value):
    with pytest.raises(ValueError, match=f"`score_temperature` must be a number above 0, got {value}"):
        MeglConfig(score_temperature=value)
