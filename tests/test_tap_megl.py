"""The tap: found on any vision model, refused where it gives no map, and harmless to all that runs before it."""

import pytest
import torch
import torch.nn.functional as F
from tiny_vision import (
    MORE_VISION_MODELS,
    TRANSFORMER,
    VISION_MODELS,
    make_model_of,
    make_vision_model,
    random_images,
    run,
)
from transformers import AutoConfig
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_megl import MeglForImageClassification
from modeling_megl.configuration_megl import infer_image_size
from modeling_megl.tap_megl import (
    count_prefix_tokens,
    find_tap,
    open_tap,
    probe_evidence_layers,
    probe_stem,
    probe_tap,
    token_grid,
)


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


class Twice(torch.nn.Module):
    """Convolutions, with one activation that runs before the tap and behind it."""

    def __init__(self):
        super().__init__()
        self.head, self.activation = torch.nn.Linear(4, 2), torch.nn.ReLU()
        self.stages = torch.nn.ModuleList(torch.nn.Conv2d(size, 4, 3, padding=1) for size in (3, 4))

    def forward(self, pixel_values):
        features = self.stages[1](self.activation(self.stages[0](pixel_values)))
        return self.head(self.activation(features).mean(dim=(2, 3)))


def test_the_stem_is_what_has_run_for_the_last_time_when_the_tap_ends():
    assert probe_stem(Twice(), "stages.1", 8) == ["stages.0", "stages.1"]
    vit = make_vision_model("vit", num_hidden_layers=3)
    parts = ["vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layers.2.layernorm_before"]
    assert probe_stem(vit, None, 32) == parts
    apart = probe_stem(vit, None, 32, ["vit.layers.0.mlp", "vit.layers.1"])
    assert "vit.layers.1" in apart and "vit.layers.0.mlp" in apart and "vit.layers.0" not in apart


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
    layers, sizes = probe_evidence_layers(model, None, 32, ["auto"])
    assert len(layers) == len(sizes) >= 1 and set(sizes) <= {8, 16}
    assert maps.min() >= 0 and maps.max() <= 1
    maps.sum().backward()


def grid_of(model, name, images):
    """The features at the tap."""
    with torch.no_grad(), open_tap(model, name, tuple(images.shape[2:]), create_graph=False) as tap:
        tap(images)
    return tap.to_grid(tap.output)


@pytest.mark.parametrize("model_type", list(MORE_VISION_MODELS))
def test_tap_of_further_kinds_lies_over_the_picture(model_type):
    settings, name, num_prefix_tokens, grid = MORE_VISION_MODELS[model_type]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **settings)
    model = make_model_of(config)
    shape = infer_image_size(config)
    assert (find_tap(model), count_prefix_tokens(model)) == (name, num_prefix_tokens)
    channels = probe_tap(model, None, shape)
    # What is changed in a corner of the picture changes the map's cells in that corner most.
    images = random_images(1, 3, *shape).repeat(3, 1, 1, 1)
    side = shape[0] // grid
    images[1, :, :side, -side:] *= -1
    images[2, :, -side:, :side] *= -1
    features = grid_of(model, None, images)
    assert features.shape == (3, channels, grid, grid)
    change = (features[1:] - features[:1]).abs().sum(dim=1)
    for found, (row, column) in zip(change, [(0, grid - 1), (grid - 1, 0)], strict=True):
        top, left = divmod(int(found.argmax()), grid)
        assert max(abs(top - row), abs(left - column)) <= int(grid > 2)
    maps, _ = run(model, images)
    assert maps.amax(dim=(1, 2)).max() == 1


# An encoder and a backbone without a classification class, a config of two parts, several class tokens, and a pyramid
# whose class token joins the last stage.
@pytest.mark.parametrize("kind", ["siglip_vision_model", "rt_detr_resnet", "clip", "pixio", "cvt"])
def test_composed_with_vision_models_of_every_kind(kind, make_config, tmp_path):
    torch.manual_seed(0)
    table = VISION_MODELS if kind in VISION_MODELS else MORE_VISION_MODELS
    settings = {"image_size": 32} if kind in VISION_MODELS else {}
    vision = make_model_of(AutoConfig.for_model(kind, **settings, **table[kind][0]))
    getattr(vision, "backbone", vision).save_pretrained(tmp_path / "vision")
    text = make_config("megl-resnet-tiny").text_config
    model = MeglForImageClassification.from_vision_text_pretrained(str(tmp_path / "vision"), text, ["day", "night"])
    model.save_pretrained(tmp_path / "model")
    loaded = MeglForImageClassification.from_pretrained(tmp_path / "model").eval()
    assert loaded.probe_saliency_layer() == loaded.config.feature_size == model.config.feature_size
    images = random_images(2, 3, *infer_image_size(model.config.vision_config))
    with torch.no_grad():
        expected, found = (each(images, target=torch.tensor([0, 1])) for each in (model, loaded))
    assert expected.saliency.amax() == 1
    for name in ("logits", "saliency", "evidence_tokens"):
        torch.testing.assert_close(found[name], expected[name])


REFUSED = {
    "vit_mae": (TRANSFORMER, r"ViTMAEModel answers the same picture differently each time, also in evaluation mode"),
    "vit_mae_unmasked": (
        {**TRANSFORMER, "model_type": "vit_mae", "mask_ratio": 0.0},
        "ViTMAEModel answers the same picture differently each time, .* mask or shuffle their patches",
    ),
    "siglip2_vision_model": (
        {**TRANSFORMER, "num_patches": 16},
        r"Siglip2VisionModel does not give class `logits` for `pixel_values` alone of shape \(batch_size, 3, 32, 32\):"
        r" .* Its `forward` takes pixel_values, pixel_attention_mask, spatial_shapes",
    ),
    "pp_lcnet": (
        {"scale": 0.25},
        "PPLCNetForImageClassification does not give class `logits` .* no attribute 'logits'",
    ),
    "imagegpt": (
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 33},
        "ImageGPTForImageClassification does not give class `logits` .* Its `forward` takes input_ids",
    ),
    "perceiver": (
        {
            "num_latents": 8,
            "d_latents": 16,
            "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "architectures": ["PerceiverForImageClassificationConvProcessing"],
        },
        "8 patch tokens do not tile an image of 32 x 32 pixels",
    ),
    "lw_detr_vit": (
        {**TRANSFORMER, "num_windows": 4},
        "The output of the module 'backbone.encoder.layer.1' of LwDetrViTBackbone has 4 rows for 1 pictures",
    ),
    "yolos": ({**TRANSFORMER, "image_size": [32, 32], "num_detection_tokens": 4}, "20 patch tokens do not tile"),
    "sam_vision_model": (
        {**TRANSFORMER, "output_channels": 8, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8},
        "SamVisionModel does not give .*: its pooled features have 8 channels, where its config says 16",
    ),
    "videomae": (TRANSFORMER, r"VideoMAEModel does not give class `logits` .* \(expected 5, got 4\)"),
    "mgp-str": (
        {**TRANSFORMER, "image_size": [32, 32], "distilled": False},
        "No stack of layers was found in MgpstrForSceneTextRecognition: name the module",
    ),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_models_without_an_answer_or_a_grid_are_refused_for_their_true_reason(kind):
    settings, message = REFUSED[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"model_type": kind, "image_size": 32, **settings})
    with pytest.raises(ValueError, match=message) as caught:
        probe_tap(make_model_of(config), None, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["blip", "chinese_clip", "owlvit_vision_model", "metaclip_2_vision_model"])
def test_models_that_are_no_vision_encoders_are_refused(model_type):
    with pytest.raises(ValueError, match="take an image classifier or a vision encoder") as caught:
        make_model_of(AutoConfig.for_model(model_type))
    assert model_type in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("image_size", [24, (32, 48)])
def test_a_size_that_the_model_does_not_take_is_refused(image_size):
    height, width = (24, 24) if image_size == 24 else image_size
    message = rf"ViTForImageClassification does not give .* \(batch_size, 3, {height}, {width}\): Input image size"
    with pytest.raises(ValueError, match=message):
        probe_tap(make_vision_model("vit"), None, image_size)


def test_stages_that_the_class_token_has_not_joined():
    settings, _, _, _ = MORE_VISION_MODELS["pvt"]
    torch.manual_seed(0)
    model = make_model_of(AutoConfig.for_model("pvt", **settings))
    assert grid_of(model, "pvt.encoder.block.2.0", random_images(1, 3, 64, 64)).shape == (1, 32, 4, 4)
    assert probe_tap(model, "pvt.encoder.block.2.0", 64) == 32


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (AutoConfig.for_model("vit", image_size=384), (384, 384)),
        (AutoConfig.for_model("vit", image_size=[48, 32]), (48, 32)),
        (AutoConfig.for_model("textnet", image_size=(640, 512)), (640, 512)),
        (AutoConfig.for_model("resnet"), (224, 224)),
        (AutoConfig.for_model("clip", vision_config={"image_size": 336}), (336, 336)),
        (AutoConfig.for_model("timm_wrapper", pretrained_cfg={"input_size": (3, 288, 320)}), (288, 320)),
    ],
)
def test_image_size_of_any_config(config, size):
    assert infer_image_size(config) == size


class Permuted(torch.nn.Module):
    """A model whose tokens come in another order, or with one row of the grid in another's place."""

    def __init__(self, model, order):
        super().__init__()
        self.config, self.model, self.order = model.config, model, order
        self.last = torch.nn.Identity()
        model.ijepa.layernorm.register_forward_hook(lambda module, args, output: self.last(output[:, order]))

    def forward(self, pixel_values):
        return self.model(pixel_values)


def test_tokens_in_another_order_are_refused():
    rows = torch.arange(16).view(4, 4)
    model = make_vision_model("ijepa")
    assert probe_tap(Permuted(model, rows.flatten()), "last", 32) == 16
    for order, axis in ((rows.T, "rows"), (rows.flip(1), "columns"), (rows[[2, 0, 3, 1]], "rows")):
        model = Permuted(make_vision_model("ijepa"), order.flatten())
        with pytest.raises(ValueError, match=f"`saliency_layer='last'` does not lie over the picture .* other {axis}"):
            probe_tap(model, "last", 32)


class Drawn(torch.nn.Module):
    """Answers with noise, a little or a lot."""

    def __init__(self, model, noise):
        super().__init__()
        self.config, self.model, self.noise = model.config, model, noise

    def forward(self, pixel_values):
        logits = self.model(pixel_values).logits
        return ImageClassifierOutput(logits=logits + self.noise * logits.abs().mean() * torch.randn_like(logits))


def test_answers_that_are_drawn_are_refused():
    torch.manual_seed(0)
    assert probe_tap(Drawn(make_vision_model("resnet"), 0), "model.resnet.encoder.stages.1", 32) == 16
    with pytest.raises(ValueError, match="Drawn answers the same picture differently each time"):
        probe_tap(Drawn(make_vision_model("resnet"), 0.1), "model.resnet.encoder.stages.1", 32)


def test_a_head_of_other_classes_is_refused():
    model = make_vision_model("resnet")
    model.classifier[1] = torch.nn.Linear(16, 5)
    message = r"must give `logits` of shape \(batch_size, num_labels\), \(1, 3\) here, got \(1, 5\)"
    with pytest.raises(ValueError, match=message):
        probe_tap(model, None, 32)


def test_a_probe_leaves_the_model_and_the_random_numbers_as_they_were():
    model = make_vision_model("resnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    probe_tap(model, None, 32)
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="`saliency_layer='nothing'` is no module of ResNetForImageClassification"):
        probe_tap(model, "nothing", 32)
    assert model.training


# ---- What happens to the tap's output behind it ----


class InPlace(torch.nn.Module):
    """A tap whose output is changed in place, shares memory with others, or comes several times."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.kind = None, kind
        self.stem, self.conv = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, pixel_values):
        hidden = self.conv(self.stem(pixel_values))
        if self.kind == "several calls":
            hidden = self.conv(hidden.tanh())
        if self.kind == "in place":
            hidden.add_(0.1)
            behind = F.relu(hidden, inplace=True)
        else:
            behind = (hidden + 0.1).relu()
        return ImageClassifierOutput(logits=self.fc(behind.tanh().mean(dim=(2, 3))))


class View(InPlace):
    """The tap gives a view of a tensor that is changed in place."""

    class Part(torch.nn.Module):
        def forward(self, hidden):
            return hidden[:, :4]

    def __init__(self, in_place):
        super().__init__("view")
        self.in_place, self.part = in_place, self.Part()

    def forward(self, pixel_values):
        hidden = self.stem(pixel_values)
        both = torch.cat([hidden, hidden], dim=1)
        half = self.part(both)
        half = half.relu_() if self.in_place else half.relu()
        return ImageClassifierOutput(logits=self.fc(half.tanh().mean(dim=(2, 3))))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("model", "expected", "name"),
    [
        (InPlace("in place"), InPlace("by hand"), "conv"),
        (View(in_place=True), View(in_place=False), "part"),
    ],
    ids=["activation", "view"],
)
def test_what_follows_the_tap_may_work_in_place(model, expected, name, create_graph):
    images, target = random_images(2, 3, 8, 8) - 0.5, torch.tensor([0, 2])
    results = []
    for each in (model, expected):
        each.zero_grad()
        with torch.set_grad_enabled(create_graph), open_tap(each, name, (8, 8), create_graph) as tap:
            logits = tap(images)
        assert tap.output.min() < 0, "the features are those before the activation"
        maps, _ = run(each, images, target, create_graph=create_graph, name=name, method="hires_cam")
        if create_graph:
            (maps * random_images(2, 8, 8)).sum().backward()
        gradients = {n: p.grad for n, p in each.named_parameters() if create_graph and p.grad is not None}
        results.append((logits, tap.output, maps, gradients))
    (logits, features, maps, gradients), (*others, expected_gradients) = results
    for found, wanted in zip((logits, features, maps), others, strict=True):
        torch.testing.assert_close(found, wanted)
    assert maps.max() == 1
    if create_graph:
        assert_same((maps.detach(), gradients), (others[2].detach(), expected_gradients))


class Normalising(torch.nn.Module):
    """Normalises its pixels, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.config, self.model, self.in_place = None, make_vision_model("resnet"), in_place

    def forward(self, pixel_values):
        pixel_values = pixel_values.sub_(0.5) if self.in_place else pixel_values - 0.5
        return self.model(pixel_values)


@pytest.mark.parametrize("create_graph", [False, True])
def test_pixels_may_be_normalised_in_place(create_graph):
    options = {"name": "model.resnet.encoder.stages.1", "method": "input_x_gradient", "create_graph": create_graph}
    images = random_images(2, 3, 32, 32)
    maps, logits = run(Normalising(in_place=True), images.clone(), **options)
    expected, expected_logits = run(Normalising(in_place=False), images, **options)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(logits, expected_logits)
    assert maps.max() == 1


def test_evidence_layers_are_found_from_the_structure():
    def found(model_type, **settings):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **settings)
        return probe_evidence_layers(make_model_of(config), None, infer_image_size(config), ["auto"])

    vit = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    assert found("vit", num_hidden_layers=6, **vit) == (["vit.layers.0", "vit.layers.3"], [16, 16])
    assert found("vit", num_hidden_layers=1, **vit) == ([], [])
    stages = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1] * 4, "layer_type": "basic"}
    names = ["resnet.encoder.stages.0", "resnet.encoder.stages.2"]
    assert found("resnet", **stages) == (names, [8, 16])
    # Each stage of a PVT is a stack of its own.
    settings, *_ = MORE_VISION_MODELS["pvt"]
    names = ["pvt.encoder.block.0.0", "pvt.encoder.block.2.0"]
    assert found("pvt", **settings) == (names, [16, 32])


def test_evidence_layers_lie_over_the_picture_or_are_refused():
    resnet = make_vision_model("resnet")
    with pytest.raises(ValueError, match=r"`evidence_layers`: 'stem' is no module of ResNetFor.*; 'auto' finds some"):
        probe_evidence_layers(resnet, None, 32, ["stem"])
    with pytest.raises(ValueError, match=r"`evidence_layers`: 'classifier' gives a tensor of shape \(9, 3\)"):
        probe_evidence_layers(resnet, None, 32, ["classifier"])
    with pytest.raises(ValueError, match="`evidence_layers`: 'resnet.pooler' gives one value for the whole picture"):
        probe_evidence_layers(resnet, None, 32, ["resnet.pooler"])
    # Where the structure does not tell, there are none.
    assert probe_evidence_layers(InPlace("in place"), "conv", 8, ["auto"]) == ([], [])
    settings, *_ = MORE_VISION_MODELS["hiera"]
    config = AutoConfig.for_model("hiera", **settings)
    with pytest.raises(ValueError, match="`evidence_layers`: 'hiera.encoder.stages.0' does not lie over the picture"):
        probe_evidence_layers(make_model_of(config), None, infer_image_size(config), ["hiera.encoder.stages.0"])
    assert probe_evidence_layers(make_model_of(config), None, infer_image_size(config), ["auto"]) == ([], [])


def test_evidence_layers_are_averaged_over_the_cells_of_the_map_and_have_no_gradient():
    model, images = make_vision_model("resnet"), random_images(2, 3, 32, 32)
    expected = model.resnet.encoder.stages[0](model.resnet.embedder(images))
    with open_tap(model, None, (32, 32), True, evidence_layers=["resnet.encoder.stages.0"]) as tap:
        logits = tap(images)
    torch.testing.assert_close(logits, model(images).logits)
    features = tap.features()
    assert torch.equal(features[:, :16], tap.output)
    cells = expected.unflatten(2, (4, -1)).unflatten(4, (4, -1)).mean(dim=(3, 5))
    torch.testing.assert_close(features[:, 16:], cells)
    gradients = torch.autograd.grad(features[:, 16:].sum(), list(model.parameters()), allow_unused=True)
    assert not any(gradient is not None and gradient.any() for gradient in gradients)


def test_features_are_what_the_module_gave_also_where_that_is_in_place():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Flatten())
    model.config, images = None, random_images(1, 3, 8, 8) - 0.5

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.config = model, None

        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=self.body(pixel_values))

    for create_graph in (False, True):
        with open_tap(Logits(), "body.1", (8, 8), create_graph) as tap:
            logits = tap(images)
        torch.testing.assert_close(tap.output, model[0](images).relu())
        (gradient,) = torch.autograd.grad(logits[0, 5], tap.output)
        assert gradient.flatten().nonzero().tolist() == [[5]]


@pytest.mark.parametrize("create_graph", [False, True])
def test_of_a_module_that_runs_several_times_the_last_output_counts(create_graph):
    images, model = random_images(2, 3, 8, 8) - 0.5, InPlace("several calls")
    with open_tap(model, "conv", (8, 8), create_graph) as tap:
        logits = tap(images)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), tap.output)
    hidden = model.conv(model.conv(model.stem(images)).tanh()).detach().requires_grad_()
    expected = model.fc((hidden + 0.1).relu().tanh().mean(dim=(2, 3)))
    torch.testing.assert_close(tap.output, hidden)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected[:, 0].sum(), hidden)[0])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("model_type", "before"),
    [
        ("swin", "swin.encoder.layers.1"),
        ("ijepa", "ijepa.layers.1"),
        ("focalnet", "focalnet.encoder.stages.1"),
    ],
)
def test_behind_the_last_norm_a_score_is_the_sum_of_its_map_and_before_it_has_none(model_type, before):
    model = make_vision_model(model_type)
    torch.nn.init.normal_(model.classifier.bias)

    def summed(name):
        with open_tap(model, name, (32, 32), create_graph=False) as tap:
            logits = tap(random_images(2, 3, 32, 32))
            (gradients,) = torch.autograd.grad(logits[:, 1].sum(), tap.output)
        return (tap.output * gradients).flatten(1).sum(dim=1), logits[:, 1] - model.classifier.bias[1]

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
