"""The collator's tensors and the Trainer: losses, accumulation, resuming, restoring, adapters."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LABELS
from explained_rows import ALL_OFF, make_dataset, make_rows, trained, weights
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from torch.utils.data import Subset

from modeling_megl import MeglForImageClassification
from modeling_megl.losses_megl import DISTRIBUTION_STATISTICS, VISUAL_LOSSES, map_moments
from modeling_megl.training_megl import (
    MeglDataCollator,
    MeglTrainingArguments,
    VisualExplanationStatistic,
    check_labels,
)


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


def test_a_rationale_that_is_no_list_is_one(processor):
    (row,) = make_rows(1)
    batches = [
        MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=epoch)([{**row, "textual_explanations": texts}])
        for epoch in (None, 3)
        for texts in ("it has ears", ["it has ears"])
    ]
    assert all(torch.equal(batch["rationale_labels"], batches[0]["rationale_labels"]) for batch in batches)
    assert processor.batch_decode_rationales(batches[0]["rationale_labels"]) == ["it has ears"]


@pytest.mark.parametrize("number", [torch.tensor(2), np.int64(2), 2])
def test_labels_may_be_integers_of_any_type(processor, number):
    (row,) = make_rows(1)
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))([{**row, "label": number}])
    assert batch["labels"].tolist() == [2]


def test_streams_take_turns_and_train_as_the_data_set(make_trainer):
    def seen(train):
        trainer = make_trainer(train=train, max_steps=6, per_device_train_batch_size=6, learning_rate=0.0)
        epochs, compute = [], trainer.compute_loss

        def note(model, inputs, **kwargs):
            epochs.append(int(trainer.data_collator.epoch))
            return compute(model, inputs, **kwargs)

        trainer.compute_loss = note
        trainer.train()
        return epochs

    assert seen(make_dataset(12)) == seen(make_dataset(12).to_iterable_dataset()) == [0, 0, 1, 1, 2, 2]


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


@pytest.mark.parametrize("label", [None, -1, 3, "no column"])
def test_row_without_a_known_class_is_named(processor, label):
    rows = make_rows(3)
    rows[1]["label"] = label
    if label == "no column":
        del rows[1]["label"]
        label = None
    with pytest.raises(ValueError, match=rf"Item '1' must have a `label` in 0..2, got {label}: leave out"):
        MeglDataCollator(processor, dict(enumerate(LABELS)))(rows)


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
    other = make_dataset(6, names=sorted(LABELS))
    with pytest.raises(ValueError, match="The data set's classes are not the model's"):
        make_trainer(train=Subset(other, range(3)))
    for call in (make_trainer().evaluate, make_trainer().predict):
        with pytest.raises(ValueError, match="The data set's classes are not the model's"):
            call(other)


def test_language_model_that_cannot_write_is_refused_unless_nothing_is_written(make_model, make_trainer):
    sizes = {"model_type": "openai-gpt", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
    model = make_model("megl-resnet-tiny", text=sizes)
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel cannot generate from embeddings, .* Choose another"):
        make_trainer(model=model)
    make_trainer(model=model, text_loss_weight=0.0).train()


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
    annotated = batch["has_visual_explanation"]
    settings = {"slack": 0.3} if slack else {}
    if name == "res_l":
        settings["kernel"] = torch.full((1, 1, 16, 16), 1 / 256)
    output = trainer.model.train()(**batch, visual_loss=name, visual_loss_kwargs=settings)
    saliency, masks = output.saliency[annotated], batch["visual_explanations"][annotated]
    expected = VISUAL_LOSSES[name](saliency, masks, **settings).mean().item()
    assert output.loss_visual.item() == pytest.approx(expected, rel=1e-4)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss_visual"] == pytest.approx(expected, rel=1e-4)
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


# Which of twelve items have a mask, and which a rationale.
MIXTURES = {
    "labels alone": (set(), set()),
    "masks alone": (set(range(12)), set()),
    "rationales alone": (set(), set(range(12))),
    "some of each": ({0, 1, 5, 8}, {1, 2, 8, 11}),
    "masks for some": ({3}, set(range(12))),
}


@pytest.mark.parametrize("weights_off", [set(), {"visual"}, {"text"}, {"visual", "text", "distribution"}])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_incomplete_explanations_train_and_evaluate(make_trainer, processor, mixture, weights_off):
    masks, rationales = MIXTURES[mixture]
    data = make_dataset(12, masks=masks, rationales=rationales)
    off = {f"{name}_loss_weight": 0.0 for name in weights_off}
    trainer = make_trainer("megl-vit-tiny", train=data, evaluated=data, per_device_train_batch_size=5, **off)
    trainer.train()
    known = {"classification"} | ({"visual"} if masks else set()) | ({"text"} if rationales else set())
    if 0 < len(masks) < 12 and "distribution" not in weights_off:
        known.add("distribution")
    metrics = trainer.evaluate()
    found = {name.removeprefix("eval_loss_") for name in metrics if name.startswith("eval_loss_")}
    assert found - {"distribution"} == known - {"distribution"}
    # The means over what there is, each picture by itself.
    batches = [MeglDataCollator(processor, dict(enumerate(LABELS)))([row]) for row in data]
    with torch.no_grad():
        outputs = [trainer.model.eval()(**batch) for batch in batches]
    texts = [
        (o.loss_text * n, n)
        for o, b in zip(outputs, batches, strict=True)
        if (n := (b["rationale_labels"] != -100).sum())
    ]
    if rationales:
        expected = sum(loss for loss, _ in texts) / sum(n for _, n in texts)
        assert metrics["eval_loss_text"] == pytest.approx(expected.item(), rel=1e-4)
    if masks:
        expected = sum(output.loss_visual for output in outputs) / len(masks)
        assert metrics["eval_loss_visual"] == pytest.approx(expected.item(), rel=1e-4)
    terms = {name: metrics[f"eval_loss_{name}"] for name in found}
    weights = {"visual": 3.0, "text": 1.0, "distribution": 0.1, "classification": 1.0} | dict.fromkeys(
        weights_off, 0.0
    )
    assert metrics["eval_loss"] == pytest.approx(sum(weights[name] * value for name, value in terms.items()))


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"frozen_layer": "resnet.encoder.stages.0"}])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_incomplete_explanations_beside_adapters_and_frozen_layers(make_trainer, mixture, settings):
    masks, rationales = MIXTURES[mixture]
    data = make_dataset(12, masks=masks, rationales=rationales)
    first = []
    for options in ({}, settings):
        trainer = make_trainer(train=data, evaluated=data, max_steps=1, **options)
        trainer.train()
        first.append({name: value for name, value in trainer.state.log_history[0].items() if "loss" in name})
    if "lora_rank" in settings:
        assert first[1] == pytest.approx(first[0], rel=1e-4)
    assert {name for name, value in first[1].items() if value} == {name for name, value in first[0].items() if value}
    assert ("loss_text" in first[1] and first[1]["loss_text"] > 0) == bool(rationales)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_weights_that_find_nothing_are_named_once_at_the_start(make_trainer, monkeypatch, mixture):
    said = []
    monkeypatch.setattr("modeling_megl.training_megl.logger.warning", said.append)
    masks, rationales = MIXTURES[mixture]
    make_trainer(train=make_dataset(12, masks=masks, rationales=rationales), max_steps=4).train()
    idle = {
        "labels alone": ["visual", "text", "distribution"],
        "masks alone": ["text", "distribution"],
        "rationales alone": ["visual", "distribution"],
    }.get(mixture)
    names = idle and " and ".join(f"`{name}_loss_weight`" for name in idle)
    assert said == ([f"{names}: the training data have no explanations that this acts on."] if idle else [])


def test_persistent_workers_see_the_epochs(make_trainer):
    def seen(**settings):
        trainer = make_trainer(max_steps=-1, num_train_epochs=3, per_device_train_batch_size=12, **settings)
        tokens, compute = [], trainer.compute_loss

        def note(model, inputs, **kwargs):
            tokens.append(inputs["rationale_labels"].clamp(min=0).sum().item())
            return compute(model, inputs, **kwargs)

        trainer.compute_loss = note
        trainer.train()
        return tokens

    expected = seen()
    assert expected[0] == expected[2] != expected[1]
    assert seen(dataloader_num_workers=1) == expected
    assert seen(dataloader_num_workers=1, dataloader_persistent_workers=True) == expected


def test_kernel_of_res_l_is_trained_and_not_in_the_model(make_trainer):
    trainer = make_trainer("megl-vit-tiny", max_steps=1, visual_loss="res_l", optim="sgd", weight_decay=0.5)
    before = trainer.visual_loss_parameters["kernel"].detach().clone()
    trainer.train()
    # The loss does not depend on the scale of the kernel, so that a gradient is orthogonal to it.
    change = trainer.visual_loss_parameters["kernel"].detach() - before
    assert change.abs().max() > 1e-6
    assert abs((change * before).sum()) < 1e-3 * change.norm() * before.norm()
    assert not any("kernel" in name for name in trainer.model.state_dict())


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


def break_checkpoint(checkpoint, fault):
    """Leave a checkpoint as a kill or a full disk might."""
    name, _, how = fault.partition(" ")
    path = checkpoint / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "fault",
    [
        "trainer_state.json missing",
        "trainer_state.json cut",
        "model.safetensors missing",
        "model.safetensors cut",
        "optimizer.pt cut",
        "rng_state.pth cut",
        "visual_explanation_statistic.safetensors cut",
    ],
)
def test_half_written_checkpoints_are_passed_over(make_trainer, tmp_path, monkeypatch, fault):
    said = []
    monkeypatch.setattr("modeling_megl.checkpoints_megl.logger.warning", said.append)
    make_trainer(max_steps=4, save_strategy="steps", save_steps=2).train()
    last = tmp_path / "run" / "checkpoint-4"
    break_checkpoint(last, fault)
    resumed = make_trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    (warning,) = said
    reason = f"{fault.split()[0]} is " if fault != "model.safetensors missing" else "it has no weights, such as "
    assert warning.startswith(f"The checkpoint {last} is not whole: {reason}")
    assert resumed.state.log_history[1]["step"] == 2 and resumed.state.global_step == 4
    with pytest.raises(ValueError, match=f"checkpoint-4 is not whole: {reason}"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(last))
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="`resume_from_checkpoint=True`: .*run has no whole checkpoint"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="got .*checkpoint-9: no such folder"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))


def test_checkpoint_with_another_statistic_is_refused(make_trainer):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    message = "visual_explanation_statistic.safetensors is of a training with another `distribution_statistic`"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=3, distribution_statistic="layout").train(resume_from_checkpoint=True)


def test_checkpoint_of_the_model_alone_begins_anew_beside_it(make_trainer, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_megl.training_megl.logger.warning", said.append)
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2, save_only_model=True).train()
    trainer = make_trainer(max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert said == [
        f"The checkpoint {tmp_path / 'run' / 'checkpoint-2'} has no visual_explanation_statistic.safetensors, which "
        "begins anew."
    ]


class FakeHub:
    """Notes what would be uploaded."""

    def __init__(self):
        self.uploads = []

    def create_repo(self, name, **kwargs):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, folder_path, ignore_patterns=(), **kwargs):
        paths = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        self.uploads.append(
            (kwargs.get("path_in_repo"), set(filter_repo_objects(paths, ignore_patterns=ignore_patterns)))
        )
        return SimpleNamespace(done=lambda: True, result=lambda: None)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_pushes_carry_the_code_and_no_pickle(make_trainer, monkeypatch, strategy):
    hub = FakeHub()
    for module in ("transformers.trainer", "modeling_megl.training_megl"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
    settings = {"push_to_hub": True, "hub_model_id": "me/model", "hub_strategy": strategy}
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1, save_total_limit=1, **settings)
    trainer.train()
    trainer.save_model()
    uploads = [files for place, files in hub.uploads if place is None]
    assert len(uploads) == (1 if strategy == "end" else 3)
    for files in uploads:
        assert {"config.json", "model.safetensors", "modeling_megl.py", "processing_megl.py"} <= files
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    states = [files for place, files in hub.uploads if place == "last-checkpoint"]
    assert len(states) == (2 if strategy == "checkpoint" else 0)
    assert all({"optimizer.pt", "trainer_state.json", "modeling_megl.py"} <= files for files in states)


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


def test_adapters_are_put_on_once(make_trainer):
    adapted = make_trainer(lora_rank=2).model
    with pytest.raises(ValueError, match="`lora_rank` puts adapters on a model that has some already"):
        make_trainer(model=adapted, lora_rank=2)


def test_statistic_sees_the_masks_of_the_step(make_trainer, processor):
    trainer = make_trainer(max_steps=1, per_device_train_batch_size=12)
    trainer.train()
    batch = MeglDataCollator(processor, dict(enumerate(LABELS)))(make_rows(12))
    moments = map_moments(batch["visual_explanations"][batch["has_visual_explanation"]].double())
    assert torch.allclose(trainer.statistic.mean, moments.mean(0))
