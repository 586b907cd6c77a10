"""The tap: found on any vision model, refused where it gives no map, and harmless to all that runs before it."""

import pytest
import torch
import torch.nn.functional as F
from tiny_vision import VISION_MODELS, make_vision_model, random_images, run

from modeling_megl.tap_megl import count_prefix_tokens, find_tap, open_tap, probe_tap, token_grid


def test_grad_mode_of_the_caller_is_restored():
    model = make_vision_model("vit")
    with torch.no_grad():
        run(model, random_images(1, 3, 32, 32))
        assert not torch.is_grad_enabled()
        with pytest.raises(RuntimeError, match="out of range|index"):
            run(model, random_images(1, 3, 32, 32), torch.tensor([7]))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        run(model, random_images(1, 3, 32, 32))
        assert torch.is_inference_mode_enabled()


def maps_and_gradients(model, images, target, **options):
    """The maps, and the gradient of a function of them in each parameter that has one."""
    maps, _ = run(model, images, target, create_graph=True, **options)
    (maps * random_images(*maps.shape, seed=1)).sum().backward()
    return maps.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(results, expected):
    (maps, gradients), (expected_maps, expected_gradients) = results, expected
    torch.testing.assert_close(maps, expected_maps, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4, msg=name)


def test_stem_keeps_fused_attention_while_the_tail_differentiates_twice(monkeypatch):
    images = random_images(2, 3, 32, 32)
    target = torch.tensor([0, 2])
    fused = []
    attention = F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        fused.append(torch.backends.cuda.flash_sdp_enabled())
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    results = {}
    for implementation in ("sdpa", "eager"):
        model = make_vision_model("vit", num_hidden_layers=3)
        model.set_attn_implementation(implementation)
        results[implementation] = maps_and_gradients(model, images, target)
    assert fused == [True, True, False]
    assert torch.backends.cuda.flash_sdp_enabled()
    assert_same(results["sdpa"], results["eager"])


# ---- What else runs the stem ----


@pytest.mark.parametrize("method", ["grad_cam", "attention_relevance"])
@pytest.mark.parametrize("name", [None, "vit.layers.0"])
def test_gradient_checkpointing_of_the_stem_changes_nothing(name, method):
    images, target = random_images(2, 3, 32, 32), torch.tensor([0, 2])
    plain, checkpointed = (make_vision_model("vit", num_hidden_layers=3).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable()
    before = [getattr(module, "gradient_checkpointing", None) for module in checkpointed.modules()]
    runs = []
    checkpointed.vit.layers[0].mlp.register_forward_pre_hook(lambda *args: runs.append(args))
    results = maps_and_gradients(checkpointed, images, target, name=name, method=method)
    assert_same(results, maps_and_gradients(plain, images, target, name=name, method=method))
    # The first layer is stem, and so recomputed, unless the tap lies in it or the method reads the whole network.
    assert len(runs) == (2 if name is None and method == "grad_cam" else 1)
    assert [getattr(module, "gradient_checkpointing", None) for module in checkpointed.modules()] == before


def test_compiled_layers_of_the_stem_change_nothing():
    images, target = random_images(2, 3, 32, 32), torch.tensor([0, 2])
    plain, compiled = (make_vision_model("vit", num_hidden_layers=3) for _ in range(2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for layer in compiled.vit.layers[:2]:
        layer.compile(backend=backend)
    assert_same(maps_and_gradients(compiled, images, target), maps_and_gradients(plain, images, target))
    assert graphs
    with torch.no_grad():
        torch.testing.assert_close(run(compiled, images)[0], run(plain, images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_mixed_precision(model_type):
    images, target = random_images(8, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    model = make_vision_model(model_type)
    expected, _ = run(model, images, target, create_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, logits = run(model, images, target, create_graph=True)
    assert logits.dtype == torch.bfloat16 and maps.dtype == torch.float32
    # A map with a tiny peak is mostly rounding: compare on average.
    assert (maps - expected).abs().mean() < 0.05
    maps.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


# ---- Where the map is read ----


@pytest.mark.parametrize("model_type", list(VISION_MODELS))
def test_tap_is_found_from_the_structure(model_type):
    _, name, num_prefix_tokens = VISION_MODELS[model_type]
    model = make_vision_model(model_type)
    assert find_tap(model) == name
    assert count_prefix_tokens(model) == num_prefix_tokens
    maps, _ = run(model, random_images(2, 3, 32, 32), create_graph=True)
    assert maps.shape == (2, 4, 4)
    assert probe_tap(model, None, 32) == (1280 if name.endswith(("conv_1x1", "top_activation")) else 16)
    assert maps.min() >= 0 and maps.max() <= 1
    maps.sum().backward()


@pytest.mark.parametrize(("model_type", "before"), [("swin", "swin.encoder.layers.1"), ("ijepa", "ijepa.layers.1")])
def test_behind_the_last_norm_a_score_is_the_sum_of_its_map_and_before_it_has_none(model_type, before):
    model = make_vision_model(model_type)
    torch.nn.init.normal_(model.classifier.bias)

    def summed(name):
        with open_tap(model, name, (32, 32), create_graph=False) as tap:
            logits = tap(random_images(2, 3, 32, 32))
            (gradients,) = torch.autograd.grad(logits[:, 1].sum(), tap.output)
        return (tap.output * gradients).sum(dim=(1, 2)), logits[:, 1] - model.classifier.bias[1]

    found, expected = summed(None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().min() > 0.01
    found, _ = summed(before)
    assert found.abs().max() < 1e-3 * expected.abs().max()


class LikeTimm(torch.nn.Module):
    """What timm's models have: a list of their stages, a count of prefix tokens, and no ModuleList."""

    def __init__(self, num_prefix_tokens):
        super().__init__()
        self.config = None
        self.feature_info = [{"module": "blocks.0"}, {"module": "blocks.1"}]
        self.blocks = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.LayerNorm(4)) for _ in range(2)))
        self.conv_head, self.global_pool = torch.nn.Conv2d(4, 8, 1), torch.nn.AdaptiveAvgPool2d(1)
        self.classifier = torch.nn.Linear(8, 2)
        self.num_prefix_tokens = num_prefix_tokens


def test_timm_models_tell_their_stages_and_prefix_tokens():
    assert count_prefix_tokens(LikeTimm(5)) == 5
    assert find_tap(LikeTimm(5)) == "blocks.1.0"
    assert find_tap(LikeTimm(0)) == "conv_head"
    model = LikeTimm(0)
    model.feature_info = [{"module": "blocks"}]
    assert find_tap(model) == "blocks"


def test_prefix_tokens_are_left_out_of_the_grid():
    model = make_vision_model("dinov2_with_registers")
    tokens = torch.arange(3 + 16).float()[None, :, None].expand(1, 19, 16)
    tap = open_tap(model, None, (32, 32), create_graph=False)
    assert torch.equal(tap.to_grid(tokens)[0, 0], torch.arange(3, 19).float().view(4, 4))
    features = torch.rand(1, 16, 4, 4)
    assert tap.to_grid(features) is features


def test_grids_with_the_channels_last():
    tap = open_tap(make_vision_model("resnet"), None, (32, 48), create_graph=False)
    features = torch.arange(2 * 16 * 4 * 6).float().view(2, 16, 4, 6)
    assert tap.to_grid(features) is features
    assert torch.equal(tap.to_grid(features.permute(0, 2, 3, 1).contiguous()), features)


def test_tap_on_a_module_that_is_not_there_is_refused():
    message = (
        "`saliency_layer='vit.layer.1'` is no module of ViTForImageClassification; 'vit.layers.1.layernorm_before'"
    )
    with pytest.raises(ValueError, match=message):
        open_tap(make_vision_model("vit"), "vit.layer.1", (32, 32), create_graph=False)


def test_non_square_images_have_non_square_maps():
    for model_type, grid in (("resnet", (4, 6)), ("swin", (4, 6))):
        maps, _ = run(make_vision_model(model_type), random_images(2, 3, 32, 48))
        assert maps.shape == (2, *grid), model_type
    model = make_vision_model("vit", image_size=(32, 48))
    maps, _ = run(model, random_images(2, 3, 32, 48))
    assert maps.shape == (2, 4, 6)
    assert probe_tap(model, None, (32, 48)) == 16


@pytest.mark.parametrize(
    ("num_patches", "image_shape", "grid"),
    [
        (16, (32, 32), (4, 4)),
        (6, (32, 48), (2, 3)),
        (6, (48, 32), (3, 2)),
        (196, (224, 224), (14, 14)),
        (4, (33, 47), (2, 2)),  # what does not fill a patch is dropped
        (1, (8, 8), (1, 1)),
        (12, (16, 192), (1, 12)),
    ],
)
def test_token_grid(num_patches, image_shape, grid):
    assert token_grid(num_patches, image_shape) == grid


def test_tokens_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match="17 patch tokens do not tile an image of 32 x 32 pixels: `saliency_layer`"):
        token_grid(17, (32, 32))


@pytest.mark.parametrize("name", ["vit.layers.1", "vit.layernorm", "vit.layers.1.mlp"])
def test_tap_without_a_gradient_is_refused(name):
    message = (
        rf"no gradient at any patch of the output of `saliency_layer='{name}'`, so every map would be zero. "
        r"Choose an earlier module; 'vit.layers.1.layernorm_before' is what is taken by default."
    )
    with pytest.raises(ValueError, match=message):
        probe_tap(make_vision_model("vit"), name, 32)


class Distracted(torch.nn.Module):
    """Runs a convolution whose output it does not use."""

    def __init__(self, model):
        super().__init__()
        self.config, self.model, self.unused = model.config, model, torch.nn.Conv2d(3, 4, 1)

    def forward(self, pixel_values):
        self.unused(pixel_values)
        return self.model(pixel_values)


def test_tap_that_the_scores_do_not_depend_on_is_refused():
    model = Distracted(make_vision_model("resnet"))
    with pytest.raises(ValueError, match="no gradient at any patch of the output of `saliency_layer='unused'`"):
        probe_tap(model, "unused", 32)
    with pytest.raises(ValueError, match="do not depend on the features of `saliency_layer='unused'`"):
        run(model, random_images(1, 3, 32, 32), name="unused")


def test_tap_with_another_output_than_a_tensor_is_refused():
    with pytest.raises(ValueError, match="`saliency_layer='vit'` gives a BaseModelOutputWithPooling: choose a module"):
        run(make_vision_model("vit"), random_images(1, 3, 32, 32), name="vit")


def test_model_without_a_stack_of_layers_needs_a_name():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="No stack of layers was found in Sequential: name .* `saliency_layer`"):
        find_tap(model)
