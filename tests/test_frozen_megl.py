"""Training behind frozen layers: the same answers, a vision model that stays as it is, and what cannot be frozen."""

import re

import pytest
import torch
from explained_rows import make_dataset, make_rows
from tiny_vision import random_images

from modeling_megl.frozen_megl import FrozenLayers
from modeling_megl.training_megl import MeglDataCollator, MeglTrainer, MeglTrainingArguments


STAGE = "resnet.encoder.stages.0"  # the map lies on stage 1


@pytest.fixture()
def train(processor, tmp_path):
    def make(model, lora_rank=None, options=None, **kwargs):
        settings = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "report_to": "none"}
        settings |= {"disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
        settings |= {"frozen_layer": STAGE, "lora_rank": lora_rank} if options is None else options
        args = MeglTrainingArguments(output_dir=str(tmp_path / "run"), **settings)
        return MeglTrainer(
            model=model, args=args, **{"processing_class": processor, "train_dataset": make_dataset(12), **kwargs}
        )

    return make


@pytest.mark.parametrize(
    ("preset", "layer", "side", "evidence"),
    [
        ("megl-resnet-tiny", STAGE, 4, {}),
        ("megl-vit-tiny", "vit.layers.0", 32, {}),
        # All before, one before, and none.
        ("megl-resnet-tiny", STAGE, 4, {"resnet.embedder": 8, STAGE: 8}),
        ("megl-resnet-tiny", STAGE, 4, {"resnet.embedder": 8, "resnet.encoder.stages.1": 16}),
        ("megl-resnet-tiny", "resnet.embedder", 4, {STAGE: 8}),
    ],
)
def test_answers_are_those_of_the_whole_model(make_model, preset, layer, side, evidence):
    fields = {"evidence_layers": list(evidence), "evidence_sizes": list(evidence.values()), "num_evidence_tokens": 4}
    model = make_model(preset, **fields)
    pixel_values = random_images(3, 3, 32, 32, seed=1)
    expected = model(pixel_values)
    frozen = FrozenLayers(model, layer, (32, 32))
    computed = frozen.compute(pixel_values)
    assert ("evidence_features" in computed) == any(name in ("resnet.embedder", layer) for name in evidence)
    with frozen.given(computed.pop("frozen_features")) as blank:
        found = model(blank, **computed)
    assert blank.shape == (1, 3, side, side) and not blank.any()
    for name in ("logits", "saliency", "evidence_tokens"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    # Once nothing is given, pictures count again.
    torch.testing.assert_close(model(pixel_values).logits, expected.logits)


@pytest.mark.parametrize("evidence", [{}, {"evidence_layers": ["resnet.embedder"], "evidence_sizes": [8]}])
def test_the_loss_of_encoded_pictures_is_that_of_the_pictures(make_model, processor, train, evidence):
    trainer = train(make_model("megl-resnet-tiny", **evidence))
    raw = MeglDataCollator(processor, trainer.model.config.id2label, trainer.args.seed, epoch=0)(make_rows(12))
    encoded = trainer.data_collator([trainer.train_dataset[index] for index in range(12)])
    assert "pixel_values" not in encoded and encoded["frozen_features"].shape[0] == 12
    assert raw["has_visual_explanation"].tolist() == encoded["has_visual_explanation"].tolist()
    torch.testing.assert_close(encoded["visual_explanations"], raw["visual_explanations"])
    trainer.model.eval()
    losses = [trainer.compute_loss(trainer.model, dict(batch)).item() for batch in (raw, encoded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_frozen_stays_and_the_rest_is_trained(make_model, train):
    model = make_model("megl-resnet-tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model).train()
    frozen = ("vision_model.resnet.embedder.", "vision_model.resnet.encoder.stages.0.")
    for name, tensor in model.state_dict().items():
        if name.startswith(frozen):  # batch statistics as well
            assert torch.equal(tensor, before[name]), name
        elif tensor.is_floating_point():
            assert not torch.equal(tensor, before[name]), name
    assert any(name.startswith(frozen[1]) and "running_mean" in name for name in before)


def test_adapters_are_trained_beside_frozen_layers(make_model, train):
    trainer = train(make_model("megl-resnet-tiny"), lora_rank=2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        copied = "modules_to_save" in name and "embedder" not in name and "stages.0" not in name
        assert torch.equal(parameter, before[name]) != ("lora_" in name or copied), name


def test_what_was_frozen_before_stays_frozen(make_model):
    model = make_model("megl-resnet-tiny")
    stages = model.vision_model.resnet.encoder.stages
    for parameter in (*stages[0].parameters(), *stages[1].parameters()):
        parameter.requires_grad_(False)
    FrozenLayers(model, STAGE, (32, 32))
    trained = {name for name, parameter in model.vision_model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}
    model.train()(random_images(2, 3, 32, 32))
    # Batch statistics are frozen up to the layer, and not behind it.
    assert not any(module.training for module in stages[0].modules())
    assert all(module.training for module in stages[1].modules())


@pytest.mark.parametrize(
    ("preset", "name", "fields", "message"),
    [
        ("megl-resnet-tiny", "stages.9", {}, "`frozen_layer='stages.9'` is no module of ResNetForImageClassification"),
        ("megl-resnet-tiny", "stages.0", {}, "did you mean 'resnet.encoder.stages.0'?"),
        ("megl-vit-tiny", "vit.layers.2", {}, "cannot be frozen: what follows does not depend on its output alone"),
        ("megl-vit-tiny", "vit.layers.0", {"saliency_method": "attention_rollout"}, "cannot be frozen"),
        (
            "megl-resnet-tiny",
            STAGE,
            {
                "evidence_layers": ["resnet.encoder.stages.1", "resnet.embedder"],
                "evidence_sizes": [16, 8],
                "num_evidence_tokens": 4,
            },
            "cannot be frozen",
        ),
        (
            "megl-resnet-tiny",
            "resnet.encoder.stages.1",
            {"saliency_layer": STAGE, "feature_size": 8},
            "cannot be frozen",
        ),
        ("megl-resnet-tiny", "resnet.encoder", {}, "its output is a BaseModelOutputWithNoAttention"),
    ],
)
def test_what_cannot_be_frozen_is_refused(make_model, preset, name, fields, message):
    with pytest.raises(ValueError, match=message):
        FrozenLayers(make_model(preset, **fields), name, (32, 32))


def test_another_collator_is_refused(make_model, train):
    with pytest.raises(ValueError, match="`frozen_layer` needs the `MeglDataCollator`"):
        train(make_model("megl-resnet-tiny"), data_collator=lambda rows: rows)


def test_layers_can_be_frozen_without_training_data(make_model, train):
    trainer = train(make_model("megl-resnet-tiny"), train_dataset=None)
    assert trainer.evaluate(make_dataset(4))["eval_loss"] > 0


# ---- A vision model that stays as it is ----

WHOLE = {"freeze_vision": True, "visual_loss_weight": 0}


@pytest.mark.parametrize(
    ("preset", "evidence"),
    [
        ("megl-resnet-tiny", {"evidence_layers": ["resnet.embedder"], "evidence_sizes": [8]}),
        ("megl-vit-tiny", {}),
        ("megl-resnet-tiny", {"grounding_map": "visual_explanation"}),
    ],
)
def test_evidence_that_is_kept_gives_the_step_of_the_pictures(make_model, processor, train, preset, evidence):
    trainer = train(make_model(preset, **evidence), options=WHOLE)
    rows = [trainer.train_dataset[index] for index in range(12)]
    raw = MeglDataCollator(processor, trainer.model.config.id2label, trainer.args.seed, epoch=0)(make_rows(12))
    encoded = trainer.data_collator(rows)
    assert "pixel_values" not in encoded and encoded["features"].shape[0] == 12
    assert ("visual_explanations" in encoded) == ("grounding_map" in evidence)
    model = trainer.model.train()
    model.vision_model.eval()
    whole = model(**{"visual_loss": None, "target": raw["labels"], **raw})
    steps = {}
    for name, loss in (("pictures", whole.loss_text), ("evidence", trainer.compute_loss(model, encoded))):
        model.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        steps[name] = loss.item(), gradients
    assert steps["evidence"][0] == pytest.approx(steps["pictures"][0], rel=1e-5)
    assert all(name.startswith(("grounding.", "language_model.")) for name in steps["evidence"][1])
    torch.testing.assert_close(steps["evidence"][1], steps["pictures"][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_frozen_vision_model_answers_as_before_and_is_not_run_again(make_model, train, lora_rank):
    model = make_model("megl-resnet-tiny", score_temperature=2.0)
    pixel_values = random_images(3, 3, 32, 32, seed=1)
    before = model(pixel_values)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {**WHOLE, "lora_rank": lora_rank, "max_steps": -1, "num_train_epochs": 2, "text_learning_rate": 0.1}
    trainer = train(model, options=options)
    runs = []
    model.vision_model.register_forward_pre_hook(lambda *_: runs.append(1))
    trainer.train()
    assert trainer.state.global_step == 6 and not runs
    if lora_rank is not None:
        model = trainer.model.merge_and_unload()
    after = model.eval()(pixel_values)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.saliency, before.saliency)
    assert not torch.equal(after.evidence_tokens, before.evidence_tokens)
    assert model.config.score_temperature == 2.0
    found = model.state_dict()
    for part in ("vision_model.", "grounding.", "language_model."):
        names = [name for name in state if name.startswith(part)]
        assert all(torch.equal(found[name], state[name]) for name in names) == (part == "vision_model."), part


def test_logs_and_evaluations_of_a_frozen_vision_model(make_model, train):
    trainer = train(make_model("megl-resnet-tiny"), options=WHOLE)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss_text"], rel=1e-5) and "loss_classification" not in first
    metrics = trainer.evaluate(make_dataset(4))
    assert metrics["eval_loss_classification"] > 0
    weighted = metrics["eval_loss_classification"] + metrics["eval_loss_text"]
    assert metrics["eval_loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visual_loss_weight": 3.0}, "`freeze_vision` trains on rationales alone: set `visual_loss_weight=0`."),
        ({"distribution_loss_weight": 0.1, "recombine": 1}, "set `distribution_loss_weight=0` and `recombine=0`."),
        ({"frozen_layer": STAGE}, "set `frozen_layer=None`."),
        ({"class_weights": "balanced"}, "set `class_weights=None`."),
        ({"text_loss_weight": 0}, "`freeze_vision` trains on rationales alone: `text_loss_weight` must be above 0."),
    ],
)
def test_what_would_train_a_frozen_vision_model_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MeglTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{**WHOLE, **options})


def test_data_that_cannot_be_computed_once_are_refused(make_model, train):
    with pytest.raises(ValueError, match="`freeze_vision` needs the `MeglDataCollator`"):
        train(make_model("megl-resnet-tiny"), options=WHOLE, data_collator=lambda rows: rows)
    stream = make_dataset(4).to_iterable_dataset()
    with pytest.raises(ValueError, match="`freeze_vision` computes all images before the training"):
        train(make_model("megl-resnet-tiny"), options=WHOLE, train_dataset=stream)
    rows = [{**row, "label": 9} for row in make_rows(2)]
    with pytest.raises(
        ValueError, match=r"Item .* must have a `label` in 0\.\.\d, got 9: leave out what has no known"
    ):
        train(make_model("megl-resnet-tiny"), options=WHOLE, train_dataset=rows)
    with pytest.raises(ValueError, match="`freeze_vision` trains on the rationale loss alone: leave out `compute_l"):
        train(make_model("megl-resnet-tiny"), options=WHOLE, compute_loss_func=lambda *_, **__: 0)
    with pytest.raises(ValueError, match="`freeze_vision` computes its images once, for one `model`"):
        train(None, options=WHOLE, model_init=lambda: make_model("megl-resnet-tiny"))


def test_evidence_needs_the_features_and_the_map(make_model):
    model = make_model("megl-resnet-tiny")
    output = model(random_images(2, 3, 32, 32))
    for given in ({}, {"features": output.features}, {"saliency": output.saliency}):
        with pytest.raises(ValueError, match="either `pixel_values`, or the `features` and `saliency` of a forward"):
            model(**given)
    found = model(features=output.features, saliency=output.saliency)
    assert torch.equal(found.evidence_tokens, output.evidence_tokens) and found.logits is None
