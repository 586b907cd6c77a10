"""The last layer for the class token alone: the same numbers for less work, and only where nothing else is read."""

import copy

import pytest
import torch
from tiny_vision import MORE_VISION_MODELS, make_model_of, make_vision_model, random_images
from transformers import AutoConfig

from modeling_megl.configuration_megl import infer_image_size
from modeling_megl.losses_megl import gradia
from modeling_megl.saliency_megl import SALIENCY_METHODS, compute_saliency
from modeling_megl.tap_megl import open_tap, probe_class_token


def make(model_type, **settings):
    if model_type not in MORE_VISION_MODELS:
        return make_vision_model(model_type, **settings)
    torch.manual_seed(0)
    return make_model_of(AutoConfig.for_model(model_type, **MORE_VISION_MODELS[model_type][0]))


@pytest.mark.parametrize(
    ("model_type", "settings", "alone"),
    [
        ("vit", {}, True),
        ("clip_vision_model", {}, True),
        ("beit", {"use_mean_pooling": False}, True),
        ("cvt", {}, True),
        ("pvt", {}, True),
        ("beit", {}, False),  # reads the mean of the patches
        ("dinov2", {}, False),  # reads both
        ("deit", {}, False),  # has a second token
        ("swin", {}, False),
        ("resnet", {}, False),
    ],
)
def test_it_is_found_out_what_is_read(model_type, settings, alone):
    model = make(model_type, **settings)
    assert probe_class_token(model, None, infer_image_size(model.config)) is alone


def test_finding_out_holds_no_graph_of_the_stem():
    """Which would take more memory than the training itself."""
    recorded = []
    model = make_vision_model("vit", num_hidden_layers=3)
    for layer in model.vit.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
    assert probe_class_token(model, None, 32)
    assert recorded == 3 * [False, False, True]


def test_weights_of_zero_do_not_hide_what_is_read():
    model = make_vision_model("dinov2")
    torch.nn.init.zeros_(model.classifier.weight[:, 16:])  # of the patches' mean
    assert not probe_class_token(model, None, 32)


@pytest.mark.parametrize("layer", ["vit.layers.1", "vit.layernorm"])
def test_evidence_of_the_last_layer_is_read_as_well(layer):
    model = make_vision_model("vit")
    assert probe_class_token(model, None, 32, ["vit.layers.0"])
    assert not probe_class_token(model, None, 32, [layer])


def step(model, alone, method):
    """Logits, maps, and the gradients of a step of both losses."""
    images, labels = random_images(2, 3, *infer_image_size(model.config)), torch.tensor([0, 2])
    with open_tap(model, None, images.shape[2:], True, class_token_alone=alone) as tap:
        logits = tap(images)
        maps = compute_saliency(tap, logits.gather(1, labels[:, None])[:, 0], method)
    loss = torch.nn.functional.cross_entropy(logits, labels) + gradia(maps, random_images(*maps.shape).round()).sum()
    loss.backward()
    return [logits.detach(), maps.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("method", [name for name, method in SALIENCY_METHODS.items() if method.reads == "features"])
@pytest.mark.parametrize("model_type", ["vit", "clip_vision_model", "cvt", "pvt"])
def test_a_step_is_the_same(model_type, method):
    model = make(model_type)
    model.eval()
    expected = step(copy.deepcopy(model), False, method)
    found = step(model, True, method)
    assert len(found) == len(expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_other_tokens_are_left_out_and_nothing_stays_behind():
    model = make_vision_model("vit")
    layer, queries, rows = model.vit.layers[-1], [], []
    layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape))
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *args, **kwargs):
        queries.append(query.shape[2])
        return attention(query, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        step(model, True, "grad_cam")
    assert queries == [17, 1] and rows == [(2, 1, 16)]
    assert layer.attention.config is model.config and model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        model(random_images(2, 3, 32, 32))
    assert rows[1:] == [(2, 17, 16)]


def test_the_model_uses_it_where_it_was_found_out_and_a_map_is_differentiated(make_model):
    model = make_model("megl-vit-tiny")
    images, rows = random_images(2, 3, 32, 32), []
    model.vision_model.vit.layers[-1].mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    expected = model(images).saliency
    assert model.probe_class_token()
    rows.clear()
    torch.testing.assert_close(model(images).saliency, expected, rtol=1e-4, atol=1e-6)
    model(images, output_saliency=False)
    with torch.no_grad():
        model(images)
    assert rows == [1, 17, 17]


def test_the_trainer_finds_it_out(make_trainer):
    trainer, rows = make_trainer("megl-vit-tiny", max_steps=2), []
    layer = trainer.model.vision_model.vit.layers[-1]
    layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    trainer.train()
    assert rows == [1, 1]
