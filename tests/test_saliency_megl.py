"""Maps: equal to pytorch-grad-cam's, differentiable, without mixing of samples, and found on any vision model."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForImageClassification

from modeling_megl.modeling_megl import MeglPooledClassifier
from modeling_megl.saliency_megl import (
    SALIENCY_METHODS,
    compute_saliency,
    count_prefix_tokens,
    explained_scores,
    find_tap,
    normalize_map,
    open_tap,
    probe_tap,
    token_grid,
)


TRANSFORMER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "initializer_range": 0.3,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4}

# model_type: its settings, the name of its tap, and its class and register tokens.
VISION_MODELS = {
    "vit": (TRANSFORMER, "vit.layers.1.layernorm_before", 1),
    "deit": (
        {**TRANSFORMER, "architectures": ["DeiTForImageClassification"]},
        "deit.layers.1.layernorm_before",
        2,
    ),
    "dinov2": (TRANSFORMER, "dinov2.encoder.layer.1.norm1", 1),
    "dinov2_with_registers": (
        {**TRANSFORMER, "num_register_tokens": 2},
        "dinov2_with_registers.encoder.layer.1.norm1",
        3,
    ),
    "beit": (TRANSFORMER, "beit.layers.1.layernorm_before", 1),
    "swin": (WINDOWS, "swin.encoder.layers.1", 0),
    "resnet": ({**STAGES, "embedding_size": 8, "layer_type": "basic"}, "resnet.encoder.stages.1", 0),
    "convnext": ({**STAGES, "num_stages": 2}, "convnext.encoder.stages.1", 0),
    "clip_vision_model": (TRANSFORMER, "backbone.encoder.layers.1.layer_norm1", 1),
    "siglip_vision_model": (TRANSFORMER, "backbone.encoder.layers.1", 0),
}


def make_vision_model(model_type, seed=0, **settings):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**VISION_MODELS[model_type][0], "image_size": 32, **settings})
    config.num_labels = 3
    if type(config) in AutoModelForImageClassification._model_mapping:
        return AutoModelForImageClassification.from_config(config).eval()
    return MeglPooledClassifier(config).eval()


def random_images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(model, pixel_values, target=None, create_graph=False, name=None):
    """Maps and logits, in the caller's grad mode."""
    with open_tap(model, name, tuple(pixel_values.shape[-2:]), create_graph) as tap:
        logits = model(pixel_values).logits
        target = logits.argmax(dim=-1) if target is None else target
        return compute_saliency(tap, logits, target, create_graph=create_graph), logits


# ---- Equal to pytorch-grad-cam ----


@pytest.mark.golden
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_maps_equal_pytorch_grad_cam(name, shared, monkeypatch):
    golden = load_file(shared / "golden" / f"cam_{name}.safetensors")
    model = AutoModelForImageClassification.from_pretrained(shared / "golden" / f"cam_{name}_model").eval()
    pixel_values, target, raw = golden["pixel_values"], golden["target"], golden["grad_cam.raw"]

    maps, logits = run(model, pixel_values, target, create_graph=True)
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-5)
    assert (raw.amax(dim=(1, 2)) > 0).any() and (raw < 0).any()

    # Before the ReLU.
    method = SALIENCY_METHODS["grad_cam"]
    signed = []
    monkeypatch.setitem(SALIENCY_METHODS, "grad_cam", lambda *args: signed.append(method(*args)) or signed[0])
    run(model, pixel_values, target)
    torch.testing.assert_close(signed[0], raw, rtol=1e-4, atol=1e-4 * raw.abs().max())

    # The normalised map.
    positive = raw.relu()
    peak = positive.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(maps, positive / peak.clamp_min(1e-12), rtol=1e-4, atol=1e-4)

    # Its final map is stretched to [0, 1], resized, and stretched again, since resizing misses the cells' centres.
    resized = F.interpolate(stretch(maps)[:, None], size=pixel_values.shape[-2:], mode="bilinear")[:, 0]
    torch.testing.assert_close(stretch(resized), golden["grad_cam.scaled_to_input"], rtol=1e-4, atol=1e-4)


def stretch(maps):
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax(dim=(1, 2), keepdim=True))


# ---- The map as a function ----


def test_normalized_map_by_hand():
    raw = torch.tensor([[[-1.0, 2.0], [4.0, 0.0]], [[-1.0, -2.0], [0.0, -3.0]], [[0.0, 1e-30], [0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert torch.equal(normalize_map(raw), expected)


def test_grad_cam_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of 1 x 2
    gradients = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])  # means 2 and -1/2
    expected = torch.tensor([[[2 * 1 - 0.5 * 3, 2 * 2 + 0.5 * 1]]])
    assert torch.equal(SALIENCY_METHODS["grad_cam"](features, gradients), expected)


def test_explained_scores_by_hand():
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    assert explained_scores(scores, "logit") is scores
    assert torch.equal(explained_scores(scores, "contrast"), torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_zero_map_stays_zero_with_finite_gradients(model_type):
    model = make_vision_model(model_type)
    head = model.classifier if model_type == "vit" else model.classifier[1]
    with torch.no_grad():
        head.weight[1] = 0
    maps, logits = run(model, random_images(2, 3, 32, 32), torch.tensor([1, 1]), create_graph=True)
    assert torch.equal(maps, torch.zeros(2, 4, 4))
    (maps.sum() + F.mse_loss(maps, torch.ones_like(maps)) + logits.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_gradcheck_with_respect_to_the_features(model_type):
    model = make_vision_model(model_type, image_size=16).double()
    if model_type == "resnet":
        # A linear tail has gradients that do not depend on the features: make it one that does.
        layers = torch.nn.Flatten(1), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        model.classifier = torch.nn.Sequential(*layers).double()
    pixel_values = random_images(2, 3, 16, 16, dtype=torch.float64)
    target = torch.tensor([0, 2])
    module = model.get_submodule(find_tap(model))
    taken = []
    handle = module.register_forward_hook(lambda module, args, output: taken.append(output))
    maps, _ = run(model, pixel_values, target)
    handle.remove()
    assert (maps.amax(dim=(1, 2)) == 1).all() and maps.shape == (2, 2, 2)

    def maps_of(features):
        handle = module.register_forward_hook(lambda module, args, output: features)
        try:
            return run(model, pixel_values, target, create_graph=True)[0]
        finally:
            handle.remove()

    features = taken[0].detach().requires_grad_()
    torch.testing.assert_close(maps_of(features), maps)
    assert torch.autograd.gradcheck(maps_of, (features,))


@pytest.mark.parametrize(
    ("model_type", "target", "parameters"),
    [
        (
            "vit",
            [2, 0],
            [
                "vit.embeddings.cls_token",
                "vit.layers.0.attention.o_proj.bias",
                "vit.layers.1.layernorm_before.weight",
                "vit.layers.1.attention.q_proj.bias",
                "vit.layernorm.weight",
                "classifier.weight",
            ],
        ),
        (
            "resnet",
            [0, 0],
            [
                "resnet.embedder.embedder.normalization.weight",
                "resnet.encoder.stages.1.layers.0.layer.1.normalization.bias",
                "classifier.1.weight",
            ],
        ),
    ],
)
def test_gradcheck_with_respect_to_images_and_parameters(model_type, target, parameters):
    model = make_vision_model(model_type, image_size=16).double()
    names = dict(model.named_parameters())
    values = [names[name].detach().clone().requires_grad_() for name in parameters]
    pixel_values = random_images(2, 3, 16, 16, dtype=torch.float64).requires_grad_()
    target = torch.tensor(target)

    def maps_of(pixel_values, *values):
        with open_tap(model, None, (16, 16), create_graph=True) as tap:
            logits = functional_call(model, dict(zip(parameters, values, strict=True)), (pixel_values,)).logits
            return compute_saliency(tap, logits, target, create_graph=True)

    maps = maps_of(pixel_values, *values)
    assert (maps.detach().amax(dim=(1, 2)) == 1).all()
    for value in torch.autograd.grad(maps.square().sum(), [pixel_values, *values]):
        assert value.abs().max() > 1e-9
    assert torch.autograd.gradcheck(maps_of, (pixel_values, *values), fast_mode=True)


@pytest.mark.parametrize("model_type", ["vit", "resnet", "swin", "convnext"])
def test_a_batch_gives_the_maps_of_its_images_one_at_a_time(model_type):
    model = make_vision_model(model_type)
    pixel_values, target = random_images(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    maps, _ = run(model, pixel_values, target)
    assert maps.amax(dim=(1, 2)).any()
    single = [run(model, pixel_values[i : i + 1], target[i : i + 1])[0] for i in range(4)]
    torch.testing.assert_close(maps, torch.cat(single), rtol=1e-4, atol=1e-5)

    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(run(model, pixel_values[order], target[order])[0], maps[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", list(VISION_MODELS))
def test_inference_equals_grad_mode_and_leaves_no_graph(model_type):
    model = make_vision_model(model_type)
    pixel_values = random_images(2, 3, 32, 32)
    expected, expected_logits = run(model, pixel_values, create_graph=True)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            maps, logits = run(model, pixel_values)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
        assert not pixel_values.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
        module = model.get_submodule(find_tap(model))
        assert not module._forward_hooks


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


# ---- Attention kernels ----


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
        maps, _ = run(model, images, target, create_graph=True)
        (maps * random_images(2, 4, 4, seed=1)).sum().backward()
        results[implementation] = maps, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert fused == [True, True, False]
    assert torch.backends.cuda.flash_sdp_enabled()

    (maps, gradients), (expected, expected_gradients) = results["sdpa"], results["eager"]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert gradients["vit.layers.0.attention.q_proj.weight"].abs().max() > 1e-6
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4, msg=name)


# ---- Where the map is read ----


@pytest.mark.parametrize("model_type", list(VISION_MODELS))
def test_tap_is_found_from_the_structure(model_type):
    _, name, num_prefix_tokens = VISION_MODELS[model_type]
    model = make_vision_model(model_type)
    assert find_tap(model) == name
    assert count_prefix_tokens(model) == num_prefix_tokens
    assert probe_tap(model, None, 32) == 16
    maps, _ = run(model, random_images(2, 3, 32, 32), create_graph=True)
    assert maps.shape == (2, 4, 4)
    assert maps.min() >= 0 and maps.max() <= 1
    maps.sum().backward()


def test_prefix_tokens_are_left_out_of_the_grid():
    model = make_vision_model("dinov2_with_registers")
    tokens = torch.arange(3 + 16).float()[None, :, None].expand(1, 19, 16)
    tap = open_tap(model, None, (32, 32), create_graph=False)
    assert torch.equal(tap.to_grid(tokens)[0, 0], torch.arange(3, 19).float().view(4, 4))
    features = torch.rand(1, 16, 4, 4)
    assert tap.to_grid(features) is features


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
    with pytest.raises(ValueError, match="do not depend on the output of `saliency_layer='unused'`"):
        run(model, random_images(1, 3, 32, 32), name="unused")


def test_tap_with_another_output_than_a_tensor_is_refused():
    with pytest.raises(ValueError, match="`saliency_layer='vit'` gives a BaseModelOutputWithPooling: choose a module"):
        run(make_vision_model("vit"), random_images(1, 3, 32, 32), name="vit")


def test_model_without_a_stack_of_layers_needs_a_name():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match="No stack of layers was found in Sequential: name .* `saliency_layer`"):
        find_tap(model)
