"""The collator's tensors and the Trainer: losses, accumulation, resuming, restoring, adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from safetensors.torch import load_file

from modeling_megl import MeglForImageClassification
from modeling_megl.losses_megl import DISTRIBUTION_STATISTICS, VISUAL_LOSSES, map_moments
from modeling_megl.training_megl import (
    MeglDataCollator,
    MeglTrainer,
    MeglTrainingArguments,
    VisualExplanationStatistic,
    check_labels,
)


ALL_OFF = {"visual_loss_weight": 0.0, "text_loss_weight": 0.0, "distribution_loss_weight": 0.0}


def make_rows(count, masks="every third", rationales=None):
    """Rows with a mask where `masks` says, and two rationales each, or those of the set `rationales` alone."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[4 + index % 8 : 20, 8:24] = 255
        if isinstance(masks, set):
            has_mask = index in masks
        else:
            has_mask = {"every third": index % 3 == 0, "none": False, "all": True}[masks]
        rows.append(
            {
                "id": str(index),
                "image": PILImage.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)),
                "label": index % 3,
                "visual_explanation": PILImage.fromarray(mask) if has_mask else None,
                "textual_explanations": [f"first text of {LABELS[index % 3]}", "a second text, longer than the first"],
                "group": None,
            }
        )
        if rationales is not None and index not in rationales:
            rows[-1]["textual_explanations"] = None
    return rows


def make_dataset(count, names=LABELS, **kwargs):
    features = Features(
        {
            "id": Value("string"),
            "image": Image(),
            "label": ClassLabel(names=list(names)),
            "visual_explanation": Image(),
            "textual_explanations": List(Value("string")),
            "group": Value("string"),
        }
    )
    rows = make_rows(count, **kwargs)
    return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]}, features=features)


@pytest.fixture()
def make_trainer(make_model, processor, tmp_path):
    def make(preset="megl-resnet-tiny", model=None, train=None, output="run", **kwargs):
        settings = {
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "use_cpu": True,
            "distribution_loss_weight": 0.1,
        }
        model = model if model is not None else make_model(preset)
        return MeglTrainer(
            model=model,
            args=MeglTrainingArguments(output_dir=str(tmp_path / output), **{**settings, **kwargs}),
            processing_class=processor,
            train_dataset=make_dataset(12) if train is None else train,
            eval_dataset=make_dataset(7, masks="all"),
        )

    return make


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(trainer):
    """All that training changes, by name."""
    statistic = {f"statistic.{name}": value.clone() for name, value in trainer.statistic.state_dict().items()}
    return {**weights(trainer.model), **weights(trainer.visual_loss_parameters), **statistic}


# ---- Collator ----


def test_collator_makes_every_tensor(processor):
    rows = make_rows(4)
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))(rows)
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    assert batch["has_visual_explanation"].tolist() == [True, False, False, True]
    expected = torch.zeros(4, 32, 32)
    expected[0, 4:20, 8:24] = expected[3, 7:20, 8:24] = 1
    assert torch.equal(batch["visual_explanations"], expected)
    for row, ids, mask, labels in zip(
        rows, batch["input_ids"], batch["attention_mask"], batch["rationale_labels"], strict=True
    ):
        name, text = LABELS[row["label"]], row["textual_explanations"][0]
        assert processor.tokenizer.decode(ids[mask.bool()]) == f"This is a {name} because {text}<eos>"
        assert processor.tokenizer.decode(labels[labels != -100]) == f" {text}<eos>"
        assert torch.equal(ids[labels != -100], labels[labels != -100])


def test_rationales_take_turns_by_epoch_and_start_by_seed(processor):
    rows = make_rows(30)
    drawn = {
        (seed, epoch): [MeglDataCollator(processor, {}, seed, epoch).draw(row) for row in rows]
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    }
    assert drawn[0, 0] == drawn[0, 2] != drawn[0, 1]
    assert all(a != b for a, b in zip(drawn[0, 0], drawn[0, 1], strict=True))
    assert drawn[0, 0] != drawn[1, 0]
    assert [MeglDataCollator(processor, {}).draw(row) for row in rows] == [
        row["textual_explanations"][0] for row in rows
    ]


@pytest.mark.parametrize("missing", [[], None, "no column"])
def test_row_without_a_rationale_has_a_prompt_alone(processor, missing):
    rows = make_rows(3)
    rows[1]["textual_explanations"] = missing
    if missing == "no column":
        del rows[1]["textual_explanations"]
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=0)(rows)
    assert (batch["rationale_labels"][1] == -100).all() and (batch["rationale_labels"][[0, 2]] != -100).any(
        dim=1
    ).all()
    prompt = batch["input_ids"][1][batch["attention_mask"][1].bool()]
    assert processor.tokenizer.decode(prompt) == f"This is a {LABELS[1]} because"


# ---- Arguments and guards ----


def test_bad_arguments_are_refused(tmp_path):
    for name in ("visual_loss_weight", "text_loss_weight", "distribution_loss_weight", "res_slack"):
        for value in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"`{name}` must be a number that is not negative, got {value}"):
                MeglTrainingArguments(output_dir=str(tmp_path), **{name: value})
    with pytest.raises(ValueError, match=r"`visual_loss` must be one of \['energy', 'gradia', .*\], got 'l3'"):
        MeglTrainingArguments(output_dir=str(tmp_path), visual_loss="l3")
    with pytest.raises(ValueError, match=r"`distribution_statistic` must be one of \['layout', .*\], got 'size'"):
        MeglTrainingArguments(output_dir=str(tmp_path), distribution_statistic="size")


def test_other_classes_in_the_data_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"`label` has \['cat', 'owl', 'polar bear'\]"):
        make_trainer(train=make_dataset(6, names=sorted(LABELS)))
    check_labels(dict(enumerate(LABELS)), make_dataset(3))


def test_layer_without_maps_is_refused(make_model, make_trainer):
    model = make_model("megl-vit-tiny", saliency_layer="vit.layernorm")
    with pytest.raises(ValueError, match="no gradient at any patch of the output of `saliency_layer='vit.layernorm'`"):
        make_trainer(model=model)


# ---- Losses ----


def test_statistic_is_the_bias_corrected_moving_average():
    statistic = VisualExplanationStatistic()
    moments = torch.tensor([[0.2, 0.1], [0.4, 0.3]], dtype=torch.float64)
    statistic.update(torch.stack([moments.sum(0), moments.square().sum(0)]), 2)
    assert torch.allclose(statistic.mean, torch.tensor([0.3, 0.2], dtype=torch.float64))
    assert torch.allclose(statistic.std, torch.tensor([0.1, 0.1], dtype=torch.float64))
    statistic.update(torch.tensor([[0.5, 0.5], [0.25, 0.25]]).double(), 1)
    mean = (0.05 * 0.95 * 0.3 + 0.05 * 0.5) / (0.05 * 0.95 + 0.05)
    assert statistic.mean[0].item() == pytest.approx(mean)


@pytest.mark.parametrize("name", sorted(DISTRIBUTION_STATISTICS))
def test_statistic_of_masks(name):
    masks = (torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    describe, smallest_std, delta = DISTRIBUTION_STATISTICS[name]
    described = describe(masks)
    masks[masks == 0] = float("nan")  # unlabelled is not inside
    statistic = VisualExplanationStatistic(name)
    statistic.update(statistic.sums(masks), len(masks))
    torch.testing.assert_close(statistic.mean, described.mean(dim=0))
    torch.testing.assert_close(statistic.std, described.std(dim=0, correction=0).clamp_min(smallest_std))
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    scores = ((describe(maps) - statistic.mean) / statistic.std).abs()
    expected = torch.where(scores < delta, 0.5 * scores.square(), scores - 0.5).mean(dim=1)
    torch.testing.assert_close(statistic.distance(maps), expected.float())


@pytest.mark.parametrize("name", sorted(VISUAL_LOSSES))
def test_visual_loss_is_the_one_of_that_name(make_trainer, processor, name):
    slack = {"res_slack": 0.3} if name.startswith("res") else {}
    trainer = make_trainer("megl-vit-tiny", max_steps=1, per_device_train_batch_size=12, visual_loss=name, **slack)
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))(make_rows(12))
    saliency = trainer.model.train()(batch["pixel_values"], labels=batch["labels"]).saliency
    annotated = batch["has_visual_explanation"]
    settings = {"slack": 0.3} if slack else {}
    if name == "res_l":
        settings["kernel"] = torch.full((1, 1, 16, 16), 1 / 256)
    losses = VISUAL_LOSSES[name](saliency[annotated], batch["visual_explanations"][annotated], **settings)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss_visual"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert 0 < logs["grad_norm"] < float("inf")


@pytest.mark.parametrize("grounding_map", ["saliency", "visual_explanation"])
def test_training_logs_each_loss_and_their_weighted_sum(make_trainer, make_model, grounding_map):
    model = make_model("megl-resnet-tiny", grounding_map=grounding_map)
    trainer = make_trainer(model=model, max_steps=1, text_loss_weight=0.3, distribution_loss_weight=0.25)
    trainer.train()
    logs = trainer.state.log_history[0]
    names = {"loss_classification", "loss_visual", "loss_text", "loss_distribution"}
    assert names <= set(logs)
    total = logs["loss_classification"] + 3.0 * logs["loss_visual"] + 0.3 * logs["loss_text"]
    assert logs["loss"] == pytest.approx(total + 0.25 * logs["loss_distribution"], rel=1e-5)


def test_human_masks_reach_the_evidence_in_training(make_trainer, make_model):
    """The same weights and batch: only the text's loss changes, as masks stand where maps were."""
    losses = {}
    for grounding_map in ("saliency", "visual_explanation"):
        model = make_model("megl-resnet-tiny", grounding_map=grounding_map)
        trainer = make_trainer(model=model, train=make_dataset(4, masks="all"), max_steps=1, output=grounding_map)
        trainer.train()
        losses[grounding_map] = trainer.state.log_history[0]
    one, other = losses.values()
    assert one["loss_text"] != pytest.approx(other["loss_text"], rel=1e-4)
    for name in ("loss_classification", "loss_visual"):
        assert one[name] == pytest.approx(other[name], rel=1e-5)


def test_logged_losses_are_means_over_the_steps(make_trainer):
    every_step = make_trainer(max_steps=3)
    every_step.train()
    at_once = make_trainer(max_steps=3, logging_steps=3, output="other")
    at_once.train()
    for name in ("loss", "loss_classification", "loss_visual", "loss_text", "loss_distribution"):
        single = [logs[name] for logs in every_step.state.log_history if name in logs]
        (joined,) = [logs[name] for logs in at_once.state.log_history if name in logs]
        assert len(single) == 3 and joined == pytest.approx(np.mean(single), rel=1e-5), name


def test_plain_training_is_plain_fine_tuning(make_trainer):
    """Weights at 0: exactly cross-entropy, no map, and only the vision model changes."""
    trainer = make_trainer(max_steps=1, **ALL_OFF)
    before = weights(trainer.model)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(logs["loss_classification"])
    assert not {"loss_visual", "loss_text", "loss_distribution"} & set(logs)
    for name, value in weights(trainer.model).items():
        assert torch.equal(value, before[name]) != name.startswith("vision_model."), name


@pytest.mark.parametrize("preset", ["megl-resnet-tiny", "megl-vit-tiny"])
def test_every_parameter_is_trained(make_trainer, preset):
    trainer = make_trainer(preset, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    unchanged = [name for name, value in weights(trainer.model).items() if torch.equal(value, before[name])]
    assert unchanged == []


@pytest.mark.parametrize("masks", ["none", "all"])
def test_batches_without_and_with_all_masks(make_trainer, masks):
    trainer = make_trainer(train=make_dataset(8, masks=masks), max_steps=2)
    trainer.train()
    logs = trainer.state.log_history[1]
    assert np.isfinite(logs["loss"]) and np.isfinite(logs["grad_norm"])
    assert (logs["loss_visual"] > 0) == (masks == "all")
    # Without any mask the data set has no pattern to be consistent with; with masks alone, no map to pull to it.
    assert logs.get("loss_distribution", 0) == 0


@pytest.mark.parametrize("visual, statistic", [("gradia", "moments"), ("res_g", "layout"), ("res_l", "quantiles")])
def test_accumulation_has_the_gradient_of_the_large_batch(make_trainer, visual, statistic):
    """ViT, as BatchNorm makes a batch more than the sum of its parts."""
    runs = {}
    for name, size, steps in (("whole", 12, 1), ("parts", 3, 4)):
        trainer = make_trainer(
            "megl-vit-tiny",
            output=name,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_grad_norm=1e9,
            optim="sgd",
            visual_loss=visual,
            distribution_statistic=statistic,
        )
        trainer.train()
        runs[name] = trainer.state.log_history[0], trained(trainer)
    for key in ("loss", "grad_norm", "loss_classification", "loss_visual", "loss_text", "loss_distribution"):
        assert runs["parts"][0][key] == pytest.approx(runs["whole"][0][key], rel=1e-4), key
    for key, value in runs["whole"][1].items():
        torch.testing.assert_close(runs["parts"][1][key], value, rtol=1e-4, atol=1e-6)


def test_kernel_of_res_l_is_trained_and_not_in_the_model(make_trainer):
    trainer = make_trainer("megl-vit-tiny", max_steps=1, visual_loss="res_l", optim="sgd", weight_decay=0.5)
    before = trainer.visual_loss_parameters["kernel"].detach().clone()
    trainer.train()
    # The loss does not depend on the scale of the kernel, so that a gradient is orthogonal to it.
    change = trainer.visual_loss_parameters["kernel"].detach() - before
    assert change.abs().max() > 1e-6
    assert abs((change * before).sum()) < 1e-3 * change.norm() * before.norm()
    assert not any("kernel" in name for name in trainer.model.state_dict())


# ---- Two processes ----


def test_two_processes_train_as_one_on_the_joined_batch(make_model, processor, tmp_path):
    """Masks on the first process alone, then on none, then on the second alone; every kind of state there is."""
    from two_processes import CASES, train

    make_model("megl-vit-tiny").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for case in CASES:
        train(case, tmp_path, batch_size=8, name="one")
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        expected = load_file(tmp_path / f"{case}-one.safetensors")
        assert expected["log.loss_visual"].tolist()[1] == 0 and expected["log.loss_distribution"].all()
        for rank in (0, 1):
            found = load_file(tmp_path / f"{case}-two-{rank}.safetensors")
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), (case, rank, name)


# ---- Evaluation ----


def test_evaluation_gives_labels_maps_and_rationales(make_trainer, processor):
    seen = {}

    def compute_metrics(prediction):
        seen["predictions"], seen["labels"] = prediction.predictions, prediction.label_ids
        return {"seen": 1.0}

    trainer = make_trainer(predict_with_generate=True, generation_max_new_tokens=6, per_device_eval_batch_size=3)
    trainer.compute_metrics = compute_metrics
    metrics = trainer.evaluate()
    assert metrics["eval_seen"] == 1.0
    logits, saliency, rationales = seen["predictions"]
    labels, masks, has_mask, rationale_labels = seen["labels"]
    assert logits.shape == (7, 3) and saliency.shape == (7, 4, 4) and rationales.shape[0] == 7
    assert 0 <= saliency.min() and saliency.max() <= 1
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and masks.shape == (7, 32, 32) and has_mask.all()
    texts = processor.batch_decode_rationales(rationale_labels)
    assert texts == [row["textual_explanations"][0] for row in make_rows(7)]
    assert all(isinstance(text, str) for text in processor.batch_decode_rationales(rationales))


def test_evaluation_losses_are_means_over_items_whatever_the_batches(make_trainer):
    results = [make_trainer(per_device_eval_batch_size=size).evaluate() for size in (2, 7)]
    for name in ("eval_loss_classification", "eval_loss_visual", "eval_loss_text"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-4), name


# ---- Checkpoints ----


@pytest.mark.parametrize(
    "preset, losses",
    [
        ("megl-resnet-tiny", {"visual_loss": "res_l", "distribution_statistic": "layout", "text_learning_rate": 1e-3}),
        ("megl-vit-tiny", {}),
    ],
)
def test_resumed_training_gives_the_very_same_weights(make_trainer, preset, losses):
    straight = make_trainer(preset, output="straight", max_steps=5, **losses)
    straight.train()
    broken = make_trainer(preset, output="broken", max_steps=5, save_strategy="steps", save_steps=2, **losses)
    broken.train()
    resumed = make_trainer(preset, output="broken", max_steps=5, save_strategy="steps", save_steps=2, **losses)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-2")
    found = trained(resumed)
    for name, value in trained(straight).items():
        assert torch.equal(value, found[name]), name


def test_best_model_is_restored_at_the_end(make_trainer, tmp_path):
    """A ViT, whose encoder would silently stay as it is if checkpoints held other names (see `save_pretrained`)."""
    trainer = make_trainer(
        "megl-vit-tiny",
        max_steps=3,
        learning_rate=0.5,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    trainer.train()
    losses = {logs["step"]: logs["eval_loss"] for logs in trainer.state.log_history if "eval_loss" in logs}
    best = min(losses, key=losses.get)
    saved = load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors")
    restored = trainer.model.state_dict()
    for name, value in saved.items():
        assert torch.equal(restored[name], value), name
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_checkpoint_is_a_whole_repository(make_trainer, tmp_path):
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    for name in ("modeling_megl.py", "configuration_megl.py", "processing_megl.py", "saliency_megl.py"):
        assert (checkpoint / name).is_file(), name
    assert not [path for path in checkpoint.iterdir() if path.suffix == ".bin"]
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"]["AutoModel"].startswith("modeling_megl.")


# ---- LoRA ----


def test_lora_trains_adapters_only_in_the_language_model_and_reloads(make_trainer, make_model, tmp_path):
    from peft import PeftModel

    trainer = make_trainer(model=make_model("megl-resnet-tiny"), lora_rank=2, max_steps=2)
    before = weights(trainer.model)
    assert any("lora_" in name for name in before)
    trainer.train()
    for name, value in weights(trainer.model).items():
        trained = "lora_" in name or "modules_to_save" in name
        assert torch.equal(value, before[name]) != trained, name
    trainer.save_model(tmp_path / "adapter")
    pixel_values = torch.rand(2, 3, 32, 32)
    expected = trainer.model.eval()(pixel_values)
    reloaded = PeftModel.from_pretrained(make_model("megl-resnet-tiny"), tmp_path / "adapter").eval()(pixel_values)
    assert torch.allclose(reloaded.logits, expected.logits, atol=1e-6)
    assert torch.allclose(reloaded.saliency, expected.saliency, atol=1e-5)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = MeglForImageClassification.from_pretrained(tmp_path / "merged").eval()(pixel_values)
    assert torch.allclose(again.logits, expected.logits, atol=1e-6)
    assert torch.allclose(again.evidence_tokens, expected.evidence_tokens, atol=1e-5)


def test_statistic_sees_the_masks_of_the_step(make_trainer, processor):
    trainer = make_trainer(max_steps=1, per_device_train_batch_size=12)
    trainer.train()
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))(make_rows(12))
    moments = map_moments(batch["visual_explanations"][batch["has_visual_explanation"]].double())
    assert torch.allclose(trainer.statistic.mean, moments.mean(0))
