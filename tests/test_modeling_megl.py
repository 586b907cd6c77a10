"""The model: outputs and losses, where gradients go, rationales with and without cache, and whole explanations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import GenerationConfig, PreTrainedModel, ViTConfig

from modeling_megl import PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.losses_megl import VISUAL_LOSSES, res_kernel
from modeling_megl.saliency_megl import compute_saliency, explained_scores
from modeling_megl.tap_megl import open_tap


VIT, RESNET = "megl-vit-tiny", "megl-resnet-tiny"
BOTH = pytest.mark.parametrize("preset", [VIT, RESNET])


@pytest.fixture(scope="module")
def make_batch(processor):
    """`make_batch(dtype)`: two images with masks and rationales, of classes 0 and 1."""

    def make(dtype=torch.float32):
        generator = np.random.default_rng(0)
        images = [Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(2)]
        masks = [Image.fromarray(generator.integers(0, 256, (20, 20), dtype=np.uint8)) for _ in range(2)]
        batch = processor(
            images=images,
            visual_explanations=masks,
            label_names=["cat", "polar bear"],
            rationales=["it has pointed ears", "a large white animal"],
        )
        batch["labels"] = torch.tensor([0, 1])
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}

    return make


def random_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- Configuration ----


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_name_classes_and_sizes(preset):
    config = MeglConfig.from_preset(preset, labels=["cat", "dog"], vocab_size=64)
    assert config.id2label == config.vision_config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == config.vision_config.label2id == {"cat": 0, "dog": 1}
    assert config.text_config.vocab_size == 64
    assert config.feature_size == {"megl-vit-b16": 768, "megl-resnet18": 512}.get(preset, 96)
    assert len(config.evidence_layers) == len(config.evidence_sizes) >= 1
    again = MeglConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_wrong_configurations_are_refused(make_config):
    with pytest.raises(ValueError, match=r"`name` must be one of \['megl-resnet-tiny', .*\], got 'megl'"):
        MeglConfig.from_preset("megl", labels=["cat"])
    with pytest.raises(Exception, match="rationale_gradient"):
        make_config(VIT, rationale_gradient="both")
    with pytest.raises(Exception, match="grounding_map"):
        make_config(VIT, grounding_map="noise")
    with pytest.raises(ValueError, match="The width of the features of a 'mobilenet_v2' model.* pass `feature_size`"):
        MeglConfig(vision_config={"model_type": "mobilenet_v2"}, text_config={"model_type": "llama"})


def test_classes_are_told_in_any_of_transformers_ways(make_config):
    config = make_config(VIT)
    parts = {"vision_config": config.vision_config, "text_config": config.text_config}
    names = {0: "a", 1: "b"}
    for given in (
        {"id2label": names},
        {"id2label": {"0": "a", "1": "b"}},
        {"label2id": {"a": 0, "b": 1}},
        {"id2label": names, "label2id": {"a": "0", "b": "1"}, "num_labels": 2},
    ):
        config = MeglConfig(**parts, **given)
        for each in (config, config.vision_config):
            assert (each.id2label, each.label2id, each.num_labels) == (names, {"a": 0, "b": 1}, 2)
    for given, message in (
        ({"id2label": names, "label2id": {"a": 1, "b": 0}}, "`id2label` and `label2id` contradict each other"),
        ({"id2label": names, "num_labels": 3}, "`num_labels=3` contradicts `id2label`, which has 2 classes"),
        (
            {"id2label": {0: "a", 2: "b"}},
            r"`id2label` must name the ids 0, 1, …, one class each, got the ids \[0, 2\]",
        ),
        (
            {"id2label": {"a": 0, "b": 1}},
            r"`id2label` must map ids to names, and `label2id` .* got \{'a': 0, 'b': 1\}",
        ),
        (
            {"label2id": {0: "a", 1: "b"}},
            "`id2label` must map ids to names, and `label2id` names to ids, got None and",
        ),
        ({"id2label": {0: "a", 1: "a"}}, r"`id2label` must name each class once, got \['a', 'a'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            MeglConfig(**parts, **given)
        with pytest.raises(ValueError, match=message):
            MeglConfig.from_dict(config.to_dict(), **given)


def test_classes_of_a_checkpoint_that_was_renamed_by_halves(make_config):
    stored = make_config(RESNET).to_dict() | {"label2id": {"a": 0, "b": 1, "c": 2}}
    assert MeglConfig.from_dict(stored).label2id == {"cat": 0, "polar bear": 1, "owl": 2}


def test_classes_that_are_changed_later_are_the_heads_too(make_config):
    config = make_config(RESNET)
    config.id2label = {"0": "day", "1": "night"}
    assert config.id2label == config.vision_config.id2label == {0: "day", 1: "night"}
    assert config.label2id == config.vision_config.label2id == {"day": 0, "night": 1}
    assert MeglForImageClassification(config)(random_images(1, 3, 32, 32)).logits.shape == (1, 2)
    config.num_labels = 5
    assert config.vision_config.num_labels == 5 and config.id2label[4] == "LABEL_4"


# ---- Outputs and losses ----


@BOTH
def test_outputs(preset, make_model):
    model = make_model(preset)
    pixel_values = random_images(2, 3, 32, 32)
    output = model(pixel_values)
    assert set(output.keys()) == {"logits", "saliency", "evidence_tokens", "features"}
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.logits, model.vision_model(pixel_values).logits, rtol=1e-5, atol=1e-6)
    assert output.saliency.shape == (2, 4, 4)
    assert output.saliency.min() >= 0 and output.saliency.max() <= 1
    assert output.evidence_tokens.shape == (2, 3, 32)
    logits, saliency, evidence_tokens, features = model(pixel_values, return_dict=False)
    assert torch.equal(logits, output.logits) and torch.equal(saliency, output.saliency)
    assert torch.equal(evidence_tokens, output.evidence_tokens)
    assert features.shape == (2, model.config.feature_size, 4, 4)
    torch.testing.assert_close(model.ground(features, saliency), evidence_tokens)


@BOTH
def test_map_explains_the_label_in_training_and_the_predicted_class_otherwise(preset, make_model):
    model = make_model(preset)
    pixel_values = random_images(4, 3, 32, 32)
    predicted = model(pixel_values).logits.argmax(dim=-1)
    by_class = torch.stack([model(pixel_values, target=torch.full((4,), c)).saliency for c in range(3)], dim=1)
    labels = (predicted + 1) % 3
    rows = torch.arange(4)
    assert not torch.equal(by_class[rows, labels], by_class[rows, predicted])
    mixed = torch.where(rows % 2 == 0, -1, labels)  # -1: the predicted one
    expected = by_class[rows, torch.where(rows % 2 == 0, predicted, labels)]
    torch.testing.assert_close(model(pixel_values, target=mixed).saliency, expected)
    torch.testing.assert_close(model(pixel_values, labels=labels).saliency, by_class[rows, predicted])
    if preset == VIT:  # without batch statistics, the mode changes nothing else
        model.train()
        torch.testing.assert_close(model(pixel_values, labels=labels).saliency, by_class[rows, labels])
        torch.testing.assert_close(model(pixel_values).saliency, by_class[rows, predicted])


def test_contrast_leaves_out_what_speaks_for_every_class_alike(make_model):
    pixel_values, target = random_images(3, 3, 32, 32), torch.tensor([0, 1, 2])
    maps = {}
    for saliency_score in ("logit", "contrast"):
        model = make_model(RESNET, saliency_score=saliency_score)
        head = model.vision_model.classifier[1]
        before = model(pixel_values, target=target)
        with torch.no_grad():
            head.weight += 0.5 * torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
        after = model(pixel_values, target=target)
        torch.testing.assert_close(after.logits.softmax(dim=-1), before.logits.softmax(dim=-1))
        maps[saliency_score] = before.saliency, after.saliency
    assert before.saliency.any()
    torch.testing.assert_close(*maps["contrast"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*maps["logit"], atol=0.1)
    with pytest.raises(Exception, match="saliency_score"):
        make_model(RESNET, saliency_score="margin")


@BOTH
def test_losses_are_recomputed_exactly(preset, make_model, make_batch):
    model, batch = make_model(preset), make_batch()
    output = model(**batch)
    torch.testing.assert_close(output.loss_classification, F.cross_entropy(output.logits, batch["labels"]))

    masks = F.avg_pool2d(batch["visual_explanations"], 8)
    torch.testing.assert_close(output.loss_visual, (output.saliency - masks).abs().mean())

    # The language model alone, on evidence and text, each position predicting the next token.
    embeddings = model.language_model.get_input_embeddings()(batch["input_ids"])
    scores = model.language_model(
        inputs_embeds=torch.cat([output.evidence_tokens, embeddings], dim=1),
        attention_mask=F.pad(batch["attention_mask"], (3, 0), value=1),
    ).logits
    torch.testing.assert_close(output.rationale_logits, scores[:, 2:-1])
    expected = F.cross_entropy(scores[:, 2:-1].flatten(0, 1), batch["rationale_labels"].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss_text, expected)

    torch.testing.assert_close(output.loss, output.loss_classification + output.loss_visual + output.loss_text)
    weighted = model(**batch, loss_weights={"visual": 0.25, "text": 3.0}).loss
    expected = output.loss_classification + 0.25 * output.loss_visual + 3 * output.loss_text
    torch.testing.assert_close(weighted, expected)


def test_one_loss_off_leaves_the_others_as_they_are(make_model, make_batch):
    model, batch = make_model(VIT), make_batch()
    full = model(**batch)
    without_masks = model(**{k: v for k, v in batch.items() if "visual" not in k})
    assert without_masks.loss_visual is None
    torch.testing.assert_close(without_masks.loss_text, full.loss_text)
    without_text = model(**{k: v for k, v in batch.items() if k in ("pixel_values", "labels", "visual_explanations")})
    assert without_text.loss_text is None and without_text.rationale_logits is None
    torch.testing.assert_close(without_text.loss_visual, full.loss_visual)
    without_labels = model(**{k: v for k, v in batch.items() if k != "labels"})
    assert without_labels.loss is None and without_labels.loss_classification is None
    torch.testing.assert_close(without_labels.loss_text, full.loss_text)


@BOTH
def test_losses_divide_by_the_whole_batch(preset, make_model, make_batch):
    model, batch = make_model(preset), make_batch()
    batch["has_visual_explanation"] = torch.tensor([True, False])
    # Padding and masks are the same in the parts, so only the division differs.
    whole = model(**batch)
    counts = {
        "images": 2,
        "visual_explanations": 1,
        "rationale_tokens": (batch["rationale_labels"] != -100).sum().item(),
    }
    parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=counts) for i in range(2)]
    for name in ("loss", "loss_classification", "loss_visual", "loss_text"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name], rtol=1e-4, atol=1e-5)


@BOTH
def test_masks_that_are_missing(preset, make_model, make_batch):
    model, batch = make_model(preset), make_batch()
    full = model(**{**batch, "has_visual_explanation": None})
    torch.testing.assert_close(full.loss_visual, model(**batch).loss_visual)
    masks = F.avg_pool2d(batch["visual_explanations"], 8)
    per_image = (full.saliency - masks).abs().mean(dim=(1, 2))

    for filler in (7.0, float("nan")):
        batch["visual_explanations"][1] = filler
        batch["has_visual_explanation"] = torch.tensor([True, False])
        any_missing = model(**batch)
        torch.testing.assert_close(any_missing.loss_visual, per_image[0])
        torch.testing.assert_close(any_missing.loss_text, full.loss_text)
        batch["has_visual_explanation"] = torch.tensor([False, False])
        all_missing = model(**batch)
        assert all_missing.loss_visual == 0
        torch.testing.assert_close(all_missing.loss, full.loss_classification + full.loss_text)
        for output in (any_missing, all_missing):
            model.zero_grad()
            output.loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (filler, name)


@pytest.mark.parametrize("name", [name for name in VISUAL_LOSSES if name != "res_l"])
def test_nan_where_there_is_no_mask_does_no_harm_to_any_loss(name, make_model, make_batch):
    model, batch = make_model(VIT), make_batch()
    batch["has_visual_explanation"] = torch.tensor([True, False])
    gradients = []
    for filler in (0.0, float("nan")):
        batch["visual_explanations"][1] = filler
        gradients.append(vision_gradients(model, model(**batch, visual_loss=name).loss_visual))
    for tensor, gradient in gradients[0].items():
        assert gradient is None or torch.equal(gradient, gradients[1][tensor]), tensor


def test_unknown_visual_loss_is_refused(make_model, make_batch):
    with pytest.raises(ValueError, match=r"`visual_loss` must be one of \['energy', .*\], got 'l1'"):
        make_model(VIT)(**make_batch(), visual_loss="l1")
    with pytest.raises(ValueError, match="`res_l` needs `kernel`, .* in `visual_loss_kwargs`"):
        make_model(VIT)(**make_batch(), visual_loss="res_l")


def test_settings_of_a_visual_loss(make_model, make_batch):
    """The kernel of RES-L is learnt by the model's own loss; without a name the visual loss is the caller's."""
    model, batch = make_model(VIT), make_batch()
    kernel = res_kernel().requires_grad_()
    settings = {"kernel": kernel, "slack": 0.1}
    output = model(**batch, visual_loss="res_l", visual_loss_kwargs=settings)
    expected = VISUAL_LOSSES["res_l"](output.saliency, batch["visual_explanations"], **settings).mean()
    torch.testing.assert_close(output.loss_visual, expected)
    assert output.loss_visual != model(**batch, visual_loss="res_g", visual_loss_kwargs={"slack": 0.1}).loss_visual
    output.loss.backward()
    assert kernel.grad.abs().max() > 0
    without = model(**batch, visual_loss=None)
    assert without.loss_visual is None
    torch.testing.assert_close(without.loss, output.loss_classification + output.loss_text)


def test_plain_classifier_has_the_same_logits_and_no_map(make_model, make_batch):
    for preset in (VIT, RESNET):
        model, batch = make_model(preset), make_batch()
        plain = model(**batch, output_saliency=False)
        full = model(**batch)
        torch.testing.assert_close(plain.logits, full.logits, rtol=1e-5, atol=1e-6)
        assert set(plain.keys()) == {"loss", "logits", "loss_classification"}
        torch.testing.assert_close(plain.loss, full.loss_classification)


@BOTH
def test_inference_leaves_no_graph(preset, make_model, make_batch):
    model, batch = make_model(preset), make_batch()
    expected = model(**batch)
    assert expected.loss_visual.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = model(**batch)
        assert output.keys() == expected.keys()
        for name, value in output.items():
            assert not value.requires_grad and value.grad_fn is None, name
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        assert not batch["pixel_values"].requires_grad


@BOTH
def test_zero_map_gives_finite_evidence_and_gradients(preset, make_model, make_batch):
    model, batch = make_model(preset), make_batch()
    with torch.no_grad():
        head = model.vision_model.classifier if preset == VIT else model.vision_model.classifier[1]
        head.weight.zero_()
    output = model(**batch)
    assert torch.equal(output.saliency, torch.zeros(2, 4, 4))
    # Without evidence both means are zero; the biases are left.
    biases = torch.cat([model.grounding.expansion.bias, model.grounding.position_projection.bias])
    torch.testing.assert_close(output.evidence_tokens, biases.view(1, 3, 32).expand(2, 3, 32))
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


# ---- Grounding ----


def test_evidence_is_the_weighted_mean_of_features_and_places(make_model):
    model = make_model(VIT)
    grounding = model.grounding
    features, saliency = torch.randn(1, 32, 2, 3), torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    got = grounding(features, saliency)

    def evidence(row, column):
        frequencies = [torch.pi / 2 * 2**k for k in range(4)]
        angles = torch.tensor([place * f for place in ((row + 0.5) / 2, (column + 0.5) / 3) for f in frequencies])
        position = torch.cat([angles.sin(), angles.cos()])
        patch = grounding.norm(features[0, :, row, column])
        what = grounding.expansion(grounding.feature_projection(patch)).view(2, 32)
        return torch.cat([what, grounding.position_projection(position)[None]])

    torch.testing.assert_close(got, (0.5 * evidence(0, 0) + 1.0 * evidence(1, 2))[None] / 1.5)
    # Only where the map looks matters, not how strong it is as a whole.
    torch.testing.assert_close(grounding(features, 0.1 * saliency), got)
    features[0, :, 0, 1:] = 100.0
    torch.testing.assert_close(grounding(features, saliency), got)


def test_evidence_of_earlier_layers_has_a_token_for_each(make_model):
    fields = {"evidence_layers": ["vit.layers.0"], "evidence_sizes": [32]}
    model, plain = make_model(VIT, **fields), make_model(VIT)
    grounding = model.grounding
    features, saliency = torch.randn(1, 64, 2, 3), torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    first, second, third = grounding(features, saliency)[0]
    what, earlier = features[0, :32], grounding.earlier_norms[0](features[0, 32:].flatten(1).T)  # (6, 32)
    torch.testing.assert_close(second, grounding.earlier_projections[0]((0.5 * earlier[0] + earlier[5]) / 1.5))
    mean = (0.5 * grounding.norm(what[:, 0, 0]) + grounding.norm(what[:, 1, 2])) / 1.5
    torch.testing.assert_close(first, grounding.expansion(grounding.feature_projection(mean)))
    torch.testing.assert_close(
        grounding(features, torch.zeros_like(saliency))[0, 1], grounding.earlier_projections[0].bias
    )
    # The classifier and its map are what they are without, and `ground` takes what the model gives.
    plain.vision_model.load_state_dict(model.vision_model.state_dict())
    images = random_images(2, 3, 32, 32)
    found, expected = model(images), plain(images)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.saliency, expected.saliency)
    assert found.features.shape == (2, 64, 4, 4)
    torch.testing.assert_close(model.ground(found.features, found.saliency), found.evidence_tokens)


def test_rationales_reach_earlier_layers_through_the_map_alone(make_model, make_batch):
    fields = {"evidence_layers": ["resnet.encoder.stages.0"], "evidence_sizes": [8]}
    for kind, reached in (("map", True), ("none", False)):
        model = make_model("megl-resnet-tiny", rationale_gradient=kind, **fields)
        text_loss(model, make_batch()).backward()
        gradients = [p.grad for p in model.vision_model.parameters() if p.grad is not None and p.grad.any()]
        assert bool(gradients) == reached
        assert model.grounding.earlier_projections[0].weight.grad.any()


# ---- Where the rationale's gradient goes ----


def text_loss(model, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "rationale_labels")}
    return model(batch["pixel_values"], target=batch["labels"], **inputs).loss_text


def features_and_map(model, batch):
    with open_tap(model.vision_model, None, (32, 32), create_graph=True) as tap:
        saliency = compute_saliency(tap, explained_scores(tap(batch["pixel_values"]), batch["labels"]))
    return tap.to_grid(tap.output), saliency


def text_loss_of(model, batch, features, saliency):
    logits = model._score_rationales(model.grounding(features, saliency), batch["input_ids"], batch["attention_mask"])
    # In double precision, for finite differences.
    return F.cross_entropy(logits.flatten(0, 1), batch["rationale_labels"].flatten(), ignore_index=-100)


def vision_gradients(model, loss):
    named = dict(model.vision_model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, gradients, strict=True))


def does_not_feed_the_map(name):
    # A score's gradient does not depend on what is added to the score, and attention does not on the keys' bias.
    return name in ("classifier.bias", "classifier.1.bias", "vit.layernorm.bias") or name.endswith("k_proj.bias")


# Llama computes its norms in single precision whatever its dtype, which is too coarse for finite differences.
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3}


@pytest.fixture(params=[VIT, RESNET])
def double_model(request, make_model, make_batch):
    model, batch = make_model(request.param, text=GPT2).double(), make_batch(torch.float64)
    with torch.no_grad():
        batch["labels"] = model(batch["pixel_values"]).logits.argmax(dim=-1)
        saliency = model(batch["pixel_values"], target=batch["labels"]).saliency
    assert (saliency.amax(dim=(1, 2)) == 1).all(), "choose a seed with maps that are not zero"
    return model, batch


def test_rationale_reaches_every_tensor_that_feeds_the_map_and_only_through_it(double_model):
    model, batch = double_model
    assert model.config.rationale_gradient == "map"
    gradients = vision_gradients(model, text_loss(model, batch))
    for name, gradient in gradients.items():
        if does_not_feed_the_map(name):
            assert gradient is None or gradient.abs().max() < 1e-12, name
        else:
            assert gradient is not None and gradient.abs().max() > 1e-9, name

    # Finite differences of the loss as a function of the map alone: the features stay what they are.
    features = features_and_map(model, batch)[0].detach()
    step = 1e-6
    for name, parameter in model.vision_model.named_parameters():
        if does_not_feed_the_map(name):
            continue
        entry = gradients[name].abs().flatten().argmax()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[entry] += sign * step
            saliency = features_and_map(model, batch)[1].detach()
            values.append(text_loss_of(model, batch, features, saliency).item())
            with torch.no_grad():
                parameter.view(-1)[entry] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        assert gradients[name].flatten()[entry].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8), name


def test_rationale_reaches_no_vision_tensor_under_none(double_model):
    model, batch = double_model
    model.config.rationale_gradient = "none"
    gradients = vision_gradients(model, text_loss(model, batch))
    assert all(gradient is None for gradient in gradients.values())
    model.zero_grad()
    text_loss(model, batch).backward()
    for part in (model.grounding, model.language_model):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_rationale_also_reaches_the_features_under_map_and_features(double_model):
    model, batch = double_model
    through_map = vision_gradients(model, text_loss(model, batch))
    model.config.rationale_gradient = "map_and_features"
    through_both = vision_gradients(model, text_loss(model, batch))
    features, saliency = features_and_map(model, batch)
    expected = vision_gradients(model, text_loss_of(model, batch, features, saliency))
    through_features = vision_gradients(model, text_loss_of(model, batch, features, saliency.detach()))
    differing = 0
    for name, gradient in through_both.items():
        if gradient is None:
            continue
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)
        parts = [part[name] for part in (through_map, through_features) if part[name] is not None]
        torch.testing.assert_close(gradient, sum(parts), rtol=1e-4, atol=1e-7, msg=name)
        differing += not torch.allclose(gradient, through_map[name], rtol=1e-3)
    # The tail, after the features, is reached through the map alone.
    assert differing >= len(through_both) / 2


def test_rationale_loss_is_the_same_wherever_its_gradient_goes(double_model):
    model, batch = double_model
    losses = []
    for model.config.rationale_gradient in ("map", "map_and_features", "none"):
        losses.append(text_loss(model, batch))
    assert losses[0] == losses[1] == losses[2]


# ---- Which map weights the evidence ----


@BOTH
def test_evidence_under_a_uniform_map_is_the_plain_mean_and_keeps_the_text_from_the_map(
    preset, make_model, make_batch
):
    model, batch = make_model(preset), make_batch()
    usual = model(batch["pixel_values"])
    model.config.grounding_map = "uniform"
    output = model(batch["pixel_values"])
    assert torch.equal(output.saliency, usual.saliency)
    assert not torch.allclose(output.evidence_tokens, usual.evidence_tokens)
    torch.testing.assert_close(output.evidence_tokens, model.ground(output.features, torch.ones(2, 4, 4)))
    assert all(gradient is None for gradient in vision_gradients(model, text_loss(model, batch)).values())
    model.config.rationale_gradient = "map_and_features"
    assert any(gradient is not None for gradient in vision_gradients(model, text_loss(model, batch)).values())


def test_random_map_has_the_cells_of_the_own_map_in_other_places(make_model):
    model = make_model(RESNET, grounding_map="random")
    saliency = torch.rand(3, 4, 5, requires_grad=True)
    torch.manual_seed(0)
    maps, others = model.grounding_maps(saliency), model.grounding_maps(saliency)
    assert maps.shape == (3, 4, 5) and not maps.requires_grad
    assert torch.equal(maps.flatten(1).sort().values, saliency.detach().flatten(1).sort().values)
    assert not torch.equal(maps, others) and not torch.equal(maps, saliency)
    # Each picture is shuffled by itself, and the same seed shuffles alike.
    assert not torch.equal(*(model.grounding_maps(saliency[:1].expand(2, 4, 5))))
    torch.manual_seed(0)
    assert torch.equal(model.grounding_maps(saliency), maps)
    pixel_values = random_images(2, 3, 32, 32)
    torch.manual_seed(1)
    output = model(pixel_values)
    torch.manual_seed(1)
    expected = model.ground(output.features, model.grounding_maps(output.saliency))
    torch.testing.assert_close(output.evidence_tokens, expected)


def test_human_mask_weights_the_evidence_where_there_is_one(make_model, make_batch):
    model, batch = make_model(VIT, grounding_map="visual_explanation"), make_batch()
    masks, given = batch["visual_explanations"].clone(), torch.tensor([True, False])
    masks[0, :16, :16] = torch.nan  # nobody said: not part of the explanation
    output = model(batch["pixel_values"], visual_explanations=masks, has_visual_explanation=given)
    cells = F.avg_pool2d(masks.nan_to_num(), 8)
    assert cells[0, 0, 0] == 0 and cells[0, 3, 3] > 0
    expected = torch.stack([cells[0], output.saliency[1].detach()])
    torch.testing.assert_close(output.evidence_tokens, model.ground(output.features, expected))
    # The text trains the map of the picture without a mask, and of no other.
    saliency = torch.rand(2, 4, 4, requires_grad=True)
    maps = model.grounding_maps(saliency, masks, given)
    maps.sum().backward()
    assert saliency.grad.flatten(1).sum(dim=1).tolist() == [0, 16]
    torch.testing.assert_close(model.grounding_maps(saliency, masks), cells)
    assert model.grounding_maps(saliency) is saliency  # at inference, as nobody has drawn anything


# ---- Writing rationales ----


def decode_without_cache(model, prompt, evidence_tokens, length):
    ids = prompt
    for _ in range(length):
        embeddings = torch.cat([evidence_tokens, model.get_input_embeddings()(ids)], dim=1)
        token = model.language_model(inputs_embeds=embeddings, use_cache=False).logits[:, -1].argmax(dim=-1)
        ids = torch.cat([ids, token[:, None]], dim=1)
        if token.item() == model.config.text_config.eos_token_id:
            break
    return ids[:, prompt.shape[1] :]


@torch.no_grad()
def test_rationales_equal_greedy_decoding_without_a_cache_and_one_at_a_time(make_model, processor):
    model = make_model(VIT)
    pixel_values = random_images(3, 3, 32, 32)
    prompts = processor.prompts(["cat", "polar bear", "owl"])
    assert len(set(prompts["attention_mask"].sum(dim=1).tolist())) > 1, "prompts of several lengths"
    evidence_tokens = model(pixel_values).evidence_tokens
    together = model.generate_rationales(**prompts, evidence_tokens=evidence_tokens, max_new_tokens=12)
    assert torch.equal(model.generate_rationales(**prompts, pixel_values=pixel_values, max_new_tokens=12), together)
    uncached = model.generate_rationales(
        **prompts, evidence_tokens=evidence_tokens, max_new_tokens=12, use_cache=False
    )
    assert torch.equal(uncached, together)
    assert together.shape[1] <= 12 and len(together.unique()) > 4
    for i in range(3):
        prompt = prompts["input_ids"][i : i + 1, prompts["attention_mask"][i].bool()]
        expected = decode_without_cache(model, prompt, evidence_tokens[i : i + 1], 12)
        got = together[i, : expected.shape[1]]
        assert torch.equal(got, expected[0])
        assert (together[i, expected.shape[1] :] == processor.tokenizer.pad_token_id).all()
        alone = model.generate_rationales(prompt, evidence_tokens=evidence_tokens[i : i + 1], max_new_tokens=12)
        assert torch.equal(alone, expected)


@torch.no_grad()
def test_rationale_ends_with_the_end_of_text(make_model, processor):
    model = make_model(VIT)
    prompts = processor.prompts(["cat"])
    first = model.generate_rationales(**prompts, pixel_values=random_images(1, 3, 32, 32), max_new_tokens=6)
    model.config.text_config.eos_token_id = first[0, 2].item()
    model.config.text_config.pad_token_id = None
    ended = model.generate_rationales(**prompts, pixel_values=random_images(1, 3, 32, 32), max_new_tokens=6)
    stop = first[0].tolist().index(first[0, 2].item())
    assert torch.equal(ended[0], first[0, : stop + 1])


@torch.no_grad()
def test_rationale_follows_the_evidence_and_only_it(make_model, processor):
    model = make_model(RESNET)
    prompts = processor.prompts(["cat", "cat"])
    pixel_values = random_images(2, 3, 32, 32)
    output = model(pixel_values)
    rationales = model.generate_rationales(**prompts, evidence_tokens=5 * torch.randn(2, 3, 32), max_new_tokens=8)
    assert not torch.equal(rationales[0], rationales[1])
    swapped = model.ground(output.features, output.saliency.flip(0))
    assert not torch.allclose(swapped, output.evidence_tokens)
    torch.testing.assert_close(model.ground(output.features, output.saliency), output.evidence_tokens)


def test_rationales_need_either_images_or_evidence(make_model, processor):
    model = make_model(RESNET)
    prompts = processor.prompts(["cat"])
    message = "Pass either `pixel_values` or the `evidence_tokens`"
    with pytest.raises(ValueError, match=message):
        model.generate_rationales(**prompts)
    with pytest.raises(ValueError, match=message):
        model.generate_rationales(
            **prompts, pixel_values=random_images(1, 3, 32, 32), evidence_tokens=torch.zeros(1, 3, 32)
        )


@torch.no_grad()
def test_options_of_generate_are_kept_or_refused(make_model, processor):
    model = make_model(VIT)
    prompts = processor.prompts(["cat", "polar bear"])
    evidence_tokens = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def generate(**options):
        return model.generate_rationales(**prompts, evidence_tokens=evidence_tokens, **options)

    greedy = generate(max_new_tokens=6)
    assert generate(num_return_sequences=1, num_beams=3, max_new_tokens=6).shape[0] == 2
    assert torch.equal(generate(generation_config=GenerationConfig(max_new_tokens=6)), greedy)
    torch.manual_seed(0)
    sampled = generate(generation_config=GenerationConfig(do_sample=True, max_new_tokens=6, temperature=3.0))
    torch.manual_seed(0)
    assert torch.equal(generate(do_sample=True, max_new_tokens=6, temperature=3.0), sampled)
    assert not torch.equal(sampled, greedy)
    for name in ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions"):
        with pytest.raises(ValueError, match=f"`{name}` is no option here: a rationale is a row of tokens"):
            generate(**{name: True})
        assert torch.equal(generate(**{name: False}, max_new_tokens=6), greedy)
    with pytest.raises(ValueError, match="`num_return_sequences` must be 1, got 2: an explanation has one rationale"):
        generate(num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="`num_return_sequences` must be 1, got 2"):
        generate(generation_config=GenerationConfig(num_return_sequences=2, do_sample=True))
    with pytest.raises(ValueError, match="`max_length` would count the evidence and the prompt: pass `max_new_tok"):
        generate(max_length=20)


@torch.no_grad()
def test_rationales_end_where_the_language_model_has_no_more_positions(make_model, processor):
    model = make_model(VIT, text={**GPT2, "n_positions": 64, "eos_token_id": None})
    model.config.text_config.eos_token_id = None
    prompts = processor.prompts(["cat"])
    length = 3 + prompts["input_ids"].shape[1]
    evidence_tokens = torch.zeros(1, 3, 32)
    tokens = model.generate_rationales(**prompts, evidence_tokens=evidence_tokens, max_new_tokens=200)
    assert tokens.shape == (1, 64 - length)
    long = processor.prompts(["x" * 500])
    with pytest.raises(ValueError, match=r"Evidence and prompt have 5\d\d tokens, .*: the language model takes 64"):
        model.generate_rationales(**long, evidence_tokens=evidence_tokens)


# ---- Whole explanations ----


@BOTH
def test_explain(preset, make_model, processor):
    model = make_model(preset)
    generator = np.random.default_rng(1)
    shapes = [(40, 60), (33, 21), (32, 32)]
    images = [Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    images[2] = images[2].convert("L")
    explanations = model.explain(images, processor, batch_size=2, max_new_tokens=6)
    assert [set(e) for e in explanations] == [{"label", "score", "saliency", "coverage", "rationale"}] * 3

    with torch.no_grad():
        output = model(processor(images=images)["pixel_values"])
    probabilities = output.logits.softmax(dim=-1)
    names = [model.config.id2label[label] for label in output.logits.argmax(dim=-1).tolist()]
    prompts = processor.prompts(names)
    tokens = model.generate_rationales(**prompts, evidence_tokens=output.evidence_tokens, max_new_tokens=6)
    for i, explanation in enumerate(explanations):
        assert explanation["label"] == names[i]
        assert explanation["score"] == pytest.approx(probabilities[i].max().item(), abs=1e-5)
        saliency = explanation["saliency"]
        assert isinstance(saliency, np.ndarray) and saliency.dtype == np.float32
        assert saliency.shape == shapes[i]
        assert saliency.min() >= 0 and saliency.max() <= 1
        expected = F.interpolate(output.saliency[i][None, None], size=shapes[i], mode="bilinear")[0, 0]
        np.testing.assert_allclose(saliency, expected.numpy(), atol=1e-4)
        assert explanation["coverage"] == pytest.approx((expected > 0.5).float().mean().item(), abs=2e-3)
        assert explanation["rationale"] == processor.batch_decode_rationales(tokens[i : i + 1])[0]

    (alone,) = model.explain(images[0], processor, max_new_tokens=6)
    assert alone["label"] == explanations[0]["label"] and alone["rationale"] == explanations[0]["rationale"]


def test_explain_a_class_of_choice_and_why_not_another(make_model, processor):
    model = make_model(VIT)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pixel_values, target, foil = processor(images=[image])["pixel_values"], torch.tensor([1]), torch.tensor([2])
    with torch.no_grad():
        probabilities = model(pixel_values).logits.softmax(dim=-1)
        own, against = model(pixel_values, target=target), model(pixel_values, target=target, foil=foil)
    assert not torch.allclose(own.saliency, against.saliency, atol=0.01)
    for options, output in (({}, own), ({"foil": "owl"}, against), ({"foil": 2}, against)):
        (explanation,) = model.explain(image, processor, target="polar bear", max_new_tokens=6, **options)
        assert explanation["label"] == "polar bear"
        assert explanation["score"] == pytest.approx(probabilities[0, 1].item(), abs=1e-5)
        expected = F.interpolate(output.saliency[:, None], size=(32, 32), mode="bilinear")[0, 0]
        np.testing.assert_allclose(explanation["saliency"], expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match=r"`target` must be one of \['cat', 'owl', .* or its id, got 'dog'"):
        model.explain(image, processor, target="dog")
    with pytest.raises(ValueError, match="`foil` must be one of .* got 3"):
        model.explain(image, processor, foil=3)
    with pytest.raises(ValueError, match="`foil` must be another class than `target`, got 'owl' as both"):
        model.explain(image, processor, target=2, foil="owl")


def test_explain_the_next_classes(make_model, processor):
    model = make_model(VIT)
    generator = np.random.default_rng(1)
    images = [Image.fromarray(generator.integers(0, 256, (32, 40, 3), dtype=np.uint8)) for _ in range(3)]
    for target in (None, "owl"):
        answers = model.explain(images, processor, target=target, top_k=3, batch_size=2, max_new_tokens=6)
        for image, answer in zip(images, answers, strict=True):
            (alone,) = model.explain(image, processor, target=target, max_new_tokens=6)
            alternatives = answer.pop("alternatives")
            found, expected = [answer, *alternatives], [alone]
            for other in alternatives:
                expected += model.explain(image, processor, target=other["label"], max_new_tokens=6)
            for one, two in zip(found, expected, strict=True):
                assert one.keys() == two.keys()
                assert (one["label"], one["rationale"]) == (two["label"], two["rationale"])
                assert one["score"] == pytest.approx(two["score"], abs=1e-5)
                np.testing.assert_allclose(one["saliency"], two["saliency"], atol=1e-4)
            assert {one["label"] for one in found} == set(model.config.label2id)
            assert alternatives[0]["score"] >= alternatives[1]["score"]
            assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)
    for top_k in (0, 4, True, 2.0):
        with pytest.raises(ValueError, match=f"`top_k` must be a number of classes, 1 to 3, got {top_k}"):
            model.explain(images, processor, top_k=top_k)
    with pytest.raises(ValueError, match="`foil` goes with one class: leave out `top_k`, or `foil`"):
        model.explain(images, processor, foil="owl", top_k=2)


def test_foil_that_is_predicted_is_refused(make_model, processor):
    model = make_model(VIT)
    generator = np.random.default_rng(1)
    images = [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(8)]
    labels = [explanation["label"] for explanation in model.explain(images, processor, max_new_tokens=1)]
    assert len(set(labels)) > 1
    foil = labels[-1] if labels[-1] not in labels[:-1] else next(name for name in labels if name != labels[0])
    first = labels.index(foil)
    message = rf"`foil` must be another class .*, got '{foil}', which the model predicts for `images\[{first}\]`"
    for batch_size in (8, 2):
        with pytest.raises(ValueError, match=message):
            model.explain(images, processor, foil=foil, batch_size=batch_size, max_new_tokens=1)
    assert len(model.explain(images[:first], processor, foil=foil, max_new_tokens=1)) == first


@pytest.mark.parametrize("target", [[0, 1], True, 1.0, 7, "dog"])
def test_what_is_no_class_is_refused(make_model, processor, target):
    model, image = make_model("megl-resnet-tiny"), Image.new("RGB", (32, 32))
    for argument in ("target", "foil"):
        with pytest.raises(ValueError, match=f"`{argument}` must be one of .* or its id, got "):
            model.explain(image, processor, **{argument: target})
    for batch_size in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"`batch_size` must be 1 or more, got {batch_size}"):
            model.explain(image, processor, batch_size=batch_size)


def test_options_of_where_the_files_are_reach_config_and_weights(make_model, tmp_path, monkeypatch):
    model = make_model("megl-resnet-tiny")
    model.save_pretrained(tmp_path / "repository" / "part")
    loaded = MeglForImageClassification.from_pretrained(tmp_path / "repository", subfolder="part")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    seen = {}
    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", classmethod(lambda cls, *args, **kwargs: seen.update(kwargs))
    )
    options = {"revision": "v1", "token": "secret", "cache_dir": str(tmp_path), "local_files_only": True}
    MeglForImageClassification.from_pretrained(tmp_path / "repository" / "part", **options)
    assert options.items() <= seen.items()


def test_the_vocabulary_can_be_resized(make_model, processor, tmp_path):
    model = make_model("megl-resnet-tiny")
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 7)
    assert model.config.text_config.vocab_size == model.get_output_embeddings().out_features == size + 7
    model.save_pretrained(tmp_path)
    assert MeglForImageClassification.from_pretrained(tmp_path).get_input_embeddings().num_embeddings == size + 7


def test_explain_needs_evaluation_mode(make_model, processor):
    model = make_model(VIT).train()
    with pytest.raises(ValueError, match=r"`explain` needs the model in evaluation mode: call `model.eval\(\)` first"):
        model.explain(Image.new("RGB", (32, 32)), processor)
    with pytest.raises(ValueError, match=r"`images\[0\]` must be a `PIL.Image.Image`, got str"):
        model.eval().explain("picture.png", processor)


# ---- Saving ----


@BOTH
def test_saved_model_is_loaded_as_it_was(preset, make_model, tmp_path):
    model = make_model(preset, rationale_gradient="none")
    model.save_pretrained(tmp_path)
    loaded = MeglForImageClassification.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config.rationale_gradient == "none" and loaded.config.id2label == model.config.id2label
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    pixel_values = random_images(2, 3, 32, 32)
    for name, value in model(pixel_values).items():
        assert torch.equal(loaded(pixel_values)[name], value), name
    # The heads of small Llamas are tied to their embeddings, and stay so.
    assert loaded.language_model.lm_head.weight is loaded.get_input_embeddings().weight


@BOTH
def test_other_classes_give_a_new_head_on_the_same_body(preset, make_model, processor, tmp_path):
    donor = make_model(preset)
    donor.save_pretrained(tmp_path / "old")
    names = {0: "day", 1: "night"}
    for number, classes in enumerate(
        (
            {"id2label": names, "label2id": {"day": 0, "night": 1}},
            {"id2label": {"0": "day", "1": "night"}},
            {"label2id": {"day": 0, "night": 1}},
            {"id2label": names, "num_labels": 2},
        )
    ):
        model = MeglForImageClassification.from_pretrained(
            tmp_path / "old", **classes, ignore_mismatched_sizes=True
        ).eval()
        assert model.config.id2label == model.vision_model.config.id2label == names
        assert model(random_images(2, 3, 32, 32)).logits.shape == (2, 2)
        model.save_pretrained(tmp_path / str(number))
        again = MeglForImageClassification.from_pretrained(tmp_path / str(number))
        assert again.config.label2id == {"day": 0, "night": 1}
        old = donor.state_dict()
        for name, value in again.state_dict().items():
            assert torch.equal(value, model.state_dict()[name])
            if ".classifier." not in name:
                assert torch.equal(value, old[name]), name
    assert model.explain(Image.new("RGB", (32, 32)), processor, max_new_tokens=1)[0]["label"] in names.values()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MeglForImageClassification.from_pretrained(tmp_path / "old", id2label=names)
    with pytest.raises(ValueError, match="`num_labels=4` contradicts `id2label`, which has 2 classes"):
        MeglForImageClassification.from_pretrained(tmp_path / "old", id2label=names, num_labels=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_automatic_dtype_is_the_checkpoints(dtype, make_model, tmp_path):
    make_model(VIT).to(dtype).save_pretrained(tmp_path)
    for name in ("dtype", "torch_dtype"):
        model = MeglForImageClassification.from_pretrained(tmp_path, **{name: "auto"})
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model.config.dtype == dtype
        assert MeglConfig.from_pretrained(tmp_path, **{name: "auto"}).dtype == dtype
    assert MeglForImageClassification.from_pretrained(tmp_path, dtype="float16").dtype == torch.float16


def test_checkpoints_of_other_models_are_refused(make_model, processor, tmp_path):
    make_model(VIT).language_model.save_pretrained(tmp_path / "llama")
    ViTConfig(image_size=32).save_pretrained(tmp_path / "vit")
    for model_type in ("llama", "vit"):
        folder = tmp_path / model_type
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
        for door in (MeglForImageClassification, MeglConfig):
            with pytest.raises(
                ValueError, match=f"{model_type} is no MEGL model: its `model_type` is '{model_type}', "
            ):
                door.from_pretrained(folder)
        with pytest.raises(ValueError, match=f"{model_type} is no MEGL model: it has no `processor_config.json` with"):
            MeglProcessor.from_pretrained(folder)


def test_evidence_needs_a_token_for_each_of_its_parts(make_model):
    with pytest.raises(ValueError, match="`num_evidence_tokens` must be 2 or more, .*, got 1"):
        make_model(VIT, num_evidence_tokens=1)
    with pytest.raises(ValueError, match="`num_evidence_tokens` must be 4 or more, .*, got 3"):
        make_model(VIT, evidence_layers=["vit.layers.0", "vit.layers.1"], evidence_sizes=[32, 32])
    with pytest.raises(ValueError, match=r"`evidence_sizes` must have .*, got \[\] for \['vit.layers.0'\]"):
        make_model(VIT, evidence_layers=["vit.layers.0"])


def test_new_weights_follow_the_initializer_range(make_model):
    model = make_model(VIT, initializer_range=0.05)
    assert model.grounding.expansion.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert not model.grounding.expansion.bias.any()
    assert torch.equal(model.grounding.norm.weight, torch.ones(32))


@BOTH
def test_composed_of_pretrained_parts(preset, make_model, tmp_path):
    donor = make_model(preset)
    donor.vision_model.save_pretrained(tmp_path / "vision")
    donor.language_model.save_pretrained(tmp_path / "text")
    model = MeglForImageClassification.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), ["cat", "polar bear", "owl"], num_evidence_tokens=2
    )
    assert model.config.feature_size == donor.config.feature_size
    for part in ("vision_model", "language_model"):
        for name, value in getattr(donor, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], value), name
    assert model(random_images(1, 3, 32, 32)).evidence_tokens.shape == (1, 2, 32)
    assert model.config.evidence_layers == []

    # With earlier layers in the evidence.
    model = MeglForImageClassification.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), ["a", "b"], evidence_layers=["auto"]
    )
    assert model.config.evidence_layers[0].endswith(".0")
    assert model.config.evidence_sizes == [norm.normalized_shape[0] for norm in model.grounding.earlier_norms]
    model.save_pretrained(tmp_path / "saved")
    pixel_values = random_images(1, 3, 32, 32)
    again = MeglForImageClassification.from_pretrained(tmp_path / "saved")(pixel_values)
    torch.testing.assert_close(again.evidence_tokens, model(pixel_values).evidence_tokens)
    # As many as there are tokens for.
    few = MeglForImageClassification.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), ["a", "b"], evidence_layers=["auto"], num_evidence_tokens=2
    )
    assert few.config.evidence_layers == [] == few.config.evidence_sizes

    # Other classes: a new head on the same backbone.
    other = MeglForImageClassification.from_vision_text_pretrained(
        str(tmp_path / "vision"), donor.config.text_config, ["day", "night"]
    )
    assert other(random_images(1, 3, 32, 32)).logits.shape == (1, 2)
    assert other.config.id2label == {0: "day", 1: "night"}
    for name, value in donor.vision_model.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(other.vision_model.state_dict()[name], value), name


def test_parts_keep_their_attention_when_composing(make_model, tmp_path):
    donor = make_model(VIT)
    donor.vision_model.save_pretrained(tmp_path)
    text = {**donor.config.text_config.to_dict(), "attn_implementation": "eager"}
    model = MeglForImageClassification.from_vision_text_pretrained(str(tmp_path), text, ["a", "b"])
    for part, attention in (("vision_model", "sdpa"), ("language_model", "eager")):
        assert {
            module.config._attn_implementation
            for module in getattr(model, part).modules()
            if isinstance(module, PreTrainedModel)
        } == {attention}
    assert model.config.text_config is model.language_model.config


def test_tap_without_a_gradient_is_refused_when_composing(make_model, tmp_path):
    donor = make_model(VIT)
    donor.vision_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`saliency_layer='vit.layers.2'`, so every map would be zero"):
        MeglForImageClassification.from_vision_text_pretrained(
            str(tmp_path), donor.config.text_config, ["a", "b"], saliency_layer="vit.layers.2"
        )


def test_language_models_are_tried_when_composing(make_model, tmp_path):
    make_model(RESNET).vision_model.save_pretrained(tmp_path / "vision")

    def compose(text):
        return MeglForImageClassification.from_vision_text_pretrained(str(tmp_path / "vision"), text, ["a", "b"])

    gpt = {"model_type": "openai-gpt", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 32}
    with pytest.raises(
        ValueError, match="OpenAIGPTLMHeadModel cannot generate from embeddings, which the evidence is"
    ):
        compose(gpt)
    with pytest.raises(ValueError, match="A 'vit' model is no causal language model: its `model_type` is 'vit'"):
        compose({"model_type": "vit"})
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit is no causal language model: its `model_type` is 'vit'"):
        compose(str(tmp_path / "vit"))
    # OPT-350m's embeddings are narrower than its layers.
    opt = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    model = compose({**opt, "num_attention_heads": 2, "vocab_size": 32})
    assert model(random_images(1, 3, 32, 32)).evidence_tokens.shape == (1, 4, 16)


def test_a_language_models_own_ways_of_generating_are_left_behind(make_model, processor, tmp_path):
    donor = make_model(RESNET)
    donor.vision_model.save_pretrained(tmp_path / "vision")
    donor.language_model.generation_config = GenerationConfig(repetition_penalty=5.0, num_beams=3)
    donor.language_model.save_pretrained(tmp_path / "text")
    model = MeglForImageClassification.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), ["a", "b"], num_evidence_tokens=3
    )
    assert model.language_model.generation_config.repetition_penalty in (None, 1.0)
    inputs = {**processor.prompts(["a"]), "evidence_tokens": torch.randn(1, 3, 32)}
    assert torch.equal(
        model.generate_rationales(**inputs), donor.generate_rationales(**inputs, num_beams=1, repetition_penalty=1.0)
    )
    model.save_pretrained(tmp_path / "model")
    again = MeglForImageClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(again.generate_rationales(**inputs), model.generate_rationales(**inputs))


def test_processor_is_matched_with_the_language_model(make_model, processor):
    model = make_model(RESNET, text={**GPT2, "n_positions": 48})
    model.match_processor(processor)
    end = processor.tokenizer.eos_token_id
    for known, expected in ((None, end), (end, end), (5, [end, 5]), ([5, end], [5, end])):
        model.config.text_config.eos_token_id = known
        model.match_processor(processor)
        assert model.config.text_config.eos_token_id == expected

    def with_settings(**settings):
        return MeglProcessor(processor.image_processor, processor.tokenizer, **settings)

    model.match_processor(with_settings(max_rationale_length=45))
    with pytest.raises(
        ValueError, match="`max_rationale_length=46` and 3 tokens of evidence are more than the 48 .* 45"
    ):
        model.match_processor(with_settings(max_rationale_length=46))
    with pytest.raises(
        ValueError, match="The prompt of the class 'polar bear' has .* leaves nothing for its rationales"
    ):
        model.match_processor(with_settings(max_rationale_length=5))
    model.language_model.resize_token_embeddings(200)
    last = len(processor.tokenizer) - 1
    with pytest.raises(ValueError, match=f"a token of id {last}, while the model has 200 embeddings"):
        model.match_processor(processor)


# ---- Gradient checkpointing ----


@BOTH
@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_checkpointing_computes_stem_and_language_model_again_with_the_same_gradients(
    preset, use_reentrant, make_model, make_batch
):
    batch, gradients = make_batch(), []
    kwargs = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    for enabled in (False, True):
        model, runs = make_model(preset).train(), []
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        norms = [model.language_model.model.layers[0].input_layernorm]
        if preset == VIT:  # a ResNet has no layers that could be computed again
            norms.append(model.vision_model.vit.layers[0].layernorm_before)
        for norm in norms:
            norm.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert len(runs) == len(norms) * (1 + enabled)
    for name, expected in gradients[0].items():
        if expected is None:
            assert gradients[1][name] is None
        else:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)
    model.gradient_checkpointing_disable()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


# ---- Half precision ----


@BOTH
@pytest.mark.parametrize("dtype, bound", [(None, 0.0), (torch.float16, 0.02), (torch.bfloat16, 0.2)])
def test_scaled_losses_have_scaled_gradients_in_half_precision_too(preset, dtype, bound, make_model, make_batch):
    """Through the second derivative: the map's own gradient, inside the forward pass, is not scaled."""
    batch, gradients = make_batch(), []
    for scale, autocast in ((1.0, False), (2.0**10, dtype is not None)):
        model = make_model(preset).train()
        model.probe_class_token()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            output = model(**batch)
        assert output.saliency.dtype == torch.float32
        # The map alone, so that all that reaches the vision model comes by the second derivative.
        scaler.scale(output.loss_visual + output.loss_text).backward()
        scaler.unscale_(optimizer)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    expected, found = gradients
    assert (found - expected).norm() <= bound * expected.norm()
    before = model.grounding.expansion.weight.detach().clone()
    scaler.step(optimizer)  # which it leaves out where a gradient is not finite
    assert not torch.equal(model.grounding.expansion.weight, before)
