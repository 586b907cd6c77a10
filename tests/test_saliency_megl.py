"""Maps: equal to pytorch-grad-cam's and to what is computed by hand, differentiable, without mixing of samples."""

import gc
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_vision import VISION_MODELS, make_vision_model, random_images, run
from torch.func import functional_call
from transformers import AutoModelForImageClassification

from modeling_megl import MeglConfig
from modeling_megl.saliency_megl import SALIENCY_METHODS, explained_scores, normalize_map
from modeling_megl.tap_megl import find_tap


CAMS = [name for name, method in SALIENCY_METHODS.items() if method.reads == "features"]
OF_ATTENTIONS = [name for name, method in SALIENCY_METHODS.items() if method.reads == "attentions"]
# Each method with each kind of model that it is made for.
PAIRS = [
    (method, model_type)
    for method in SALIENCY_METHODS
    for model_type in ("vit", "resnet", "swin", "convnext")
    if method not in OF_ATTENTIONS or model_type == "vit"
]
each_pair = pytest.mark.parametrize(("method", "model_type"), PAIRS)


def test_configuration_knows_the_methods():
    assert list(SALIENCY_METHODS) == list(get_args(MeglConfig.__annotations__["saliency_method"]))


# ---- Equal to pytorch-grad-cam ----


@pytest.mark.golden
@pytest.mark.parametrize("method", CAMS)
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_maps_equal_pytorch_grad_cam(name, method, shared, monkeypatch):
    golden = load_file(shared / "golden" / f"cam_{name}.safetensors")
    model = AutoModelForImageClassification.from_pretrained(shared / "golden" / f"cam_{name}_model").eval()
    pixel_values, target, raw = golden["pixel_values"], golden["target"], golden[f"{method}.raw"]

    maps, logits = run(model, pixel_values, target, create_graph=True, method=method)
    torch.testing.assert_close(logits, golden["logits"], rtol=1e-4, atol=1e-5)
    assert (raw.amax(dim=(1, 2)) > 0).any()

    # Before the ReLU.
    compute, signed = SALIENCY_METHODS[method].compute, []
    watched = SALIENCY_METHODS[method]._replace(compute=lambda *args: signed.append(compute(*args)) or signed[0])
    monkeypatch.setitem(SALIENCY_METHODS, method, watched)
    run(model, pixel_values, target, method=method)
    torch.testing.assert_close(signed[0], raw, rtol=1e-4, atol=1e-4 * raw.abs().max())

    # The normalised map.
    positive = raw.relu()
    peak = positive.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(maps, positive / peak.clamp_min(1e-12), rtol=1e-4, atol=1e-4)

    # Its final map is stretched to [0, 1], resized, and stretched again, since resizing misses the cells' centres.
    resized = F.interpolate(stretch(maps)[:, None], size=pixel_values.shape[-2:], mode="bilinear")[:, 0]
    torch.testing.assert_close(stretch(resized), golden[f"{method}.scaled_to_input"], rtol=1e-4, atol=1e-4)


def stretch(maps):
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax(dim=(1, 2), keepdim=True))


# ---- By hand ----


def test_normalized_map_by_hand():
    raw = torch.tensor([[[-1.0, 2.0], [4.0, 0.0]], [[-1.0, -2.0], [0.0, -3.0]], [[0.0, 1e-30], [0.0, 0.0]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    assert torch.equal(normalize_map(raw), expected)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("grad_cam", [2 * 1 - 0.5 * 3, 2 * 2 + 0.5 * 1]),  # mean gradients 2 and -1/2
        ("grad_cam_elementwise", [1.0, 6.0 + 0.0]),
        ("hires_cam", [1.0 - 3.0, 6.0]),
        ("layer_cam", [1.0, 6.0]),
        # Sums of the features 3 and 2; weights of channel one 1 / (2 + 3 + eps) * 1 + 9 / (18 + 81 + eps) * 3.
        ("grad_cam_plus_plus", [1 * (1 / 5 + 27 / 99), 2 * (1 / 5 + 27 / 99)]),
        # Weights (1 * 1 + 2 * 3) / 3 and (3 * -1 + -1 * 0) / 2.
        ("xgrad_cam", [7 / 3 * 1 - 3 / 2 * 3, 7 / 3 * 2 + 3 / 2 * 1]),
    ],
)
def test_maps_of_features_by_hand(method, expected):
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of 1 x 2
    gradients = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])
    raw = SALIENCY_METHODS[method].compute(features, gradients)
    torch.testing.assert_close(raw, torch.tensor([[expected]]), rtol=1e-5, atol=1e-5)


def test_input_x_gradient_by_hand():
    pixels, gradients = torch.tensor([[[[2.0]], [[3.0]], [[-1.0]]]]), torch.tensor([[[[0.5]], [[-2.0]], [[4.0]]]])
    assert SALIENCY_METHODS["input_x_gradient"].compute(pixels, gradients).tolist() == [[[1.0 - 6.0 - 4.0]]]


# Two layers of two heads over two tokens.
FIRST = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]])
SECOND = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]])


def test_attention_rollout_by_hand():
    # Means of the heads [[.5, .5], [.5, .5]] and [[0, 1], [1, 0]]; with the residual [[.75, .25], [.25, .75]] and
    # [[.5, .5], [.5, .5]].
    relevance = SALIENCY_METHODS["attention_rollout"].compute([FIRST, SECOND])
    torch.testing.assert_close(relevance, torch.full((1, 2, 2), 0.5))
    torch.testing.assert_close(
        SALIENCY_METHODS["attention_rollout"].compute([FIRST]), torch.tensor([[[0.75, 0.25], [0.25, 0.75]]])
    )


def test_attention_relevance_by_hand():
    gradients = [torch.tensor([[[[2.0, 0.0], [0.0, -4.0]], [[1.0, 4.0], [0.0, 0.0]]]]), torch.ones(1, 2, 2, 2)]
    # First layer: heads [[2, 0], [0, 0]] and [[0, 4], [0, 0]], mean [[1, 2], [0, 0]]: relevance [[2, 2], [0, 1]].
    # Second: mean [[0, 1], [1, 0]], times the relevance [[0, 1], [2, 2]], added to it.
    relevance = SALIENCY_METHODS["attention_relevance"].compute([FIRST, SECOND], gradients)
    torch.testing.assert_close(relevance, torch.tensor([[[2.0, 3.0], [2.0, 3.0]]]))


def test_explained_scores_by_hand():
    logits, target = torch.tensor([[1.0, 2.0, 6.0], [0.0, 5.0, 1.0]]), torch.tensor([2, 0])
    assert explained_scores(logits, target).tolist() == [6.0, 0.0]
    assert explained_scores(logits, target, "contrast").tolist() == [3.0, -2.0]
    for kind in ("logit", "contrast"):
        assert explained_scores(logits, target, kind, foil=torch.tensor([1, 1])).tolist() == [4.0, -5.0]


# ---- The model's own maps, recomputed another way ----


def test_map_against_a_foil_is_the_map_of_the_difference_of_logits():
    model = make_vision_model("resnet")
    pixel_values, target, foil = random_images(2, 3, 32, 32), torch.tensor([0, 1]), torch.tensor([2, 2])
    maps, _ = run(model, pixel_values, target, foil=foil)
    head = model.classifier[1]
    with torch.no_grad():
        head.weight[target], head.bias[target] = head.weight[target] - head.weight[foil], torch.zeros(2)
    torch.testing.assert_close(maps, run(model, pixel_values, target)[0])


def test_input_x_gradient_is_pooled_to_the_grid_of_the_tap():
    model, pixel_values = make_vision_model("vit"), random_images(2, 3, 32, 32)
    pixels = pixel_values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).logits[:, 1].sum(), pixels)
    raw = F.avg_pool2d((pixels * gradient).sum(dim=1), 8)
    maps, _ = run(model, pixel_values, torch.tensor([1, 1]), method="input_x_gradient")
    torch.testing.assert_close(maps, normalize_map(raw).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["vit", "dinov2_with_registers", "siglip_vision_model"])
def test_attention_rollout_of_a_model(model_type):
    """Against a loop over its attentions, one image at a time; read at the class token, or at all tokens."""
    model, pixel_values = make_vision_model(model_type), random_images(2, 3, 32, 32)
    maps, logits = run(model, pixel_values, method="attention_rollout")
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits, model(pixel_values).logits, rtol=1e-4, atol=1e-5)
    prefix = VISION_MODELS[model_type][2]
    getattr(model, "backbone", model).set_attn_implementation("eager")
    for i in range(2):
        attentions = model(pixel_values[i : i + 1], output_attentions=True).attentions
        rollout = torch.eye(16 + prefix)
        for attention in attentions:
            mixed = attention[0].mean(dim=0) + torch.eye(16 + prefix)
            rollout = mixed / mixed.sum(dim=-1, keepdim=True) @ rollout
        row = rollout[0, prefix:] if prefix else rollout.mean(dim=0)
        torch.testing.assert_close(maps[i].flatten(), row / row.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", OF_ATTENTIONS)
@pytest.mark.parametrize("model_type", ["swin", "resnet", "convnext"])
def test_maps_of_attentions_are_refused_where_there_are_none(method, model_type):
    with pytest.raises(ValueError, match="transformer in which all tokens attend to all .* such as 'grad_cam'"):
        run(make_vision_model(model_type), random_images(2, 3, 32, 32), method=method)


# ---- The map as a function ----


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
@pytest.mark.parametrize("method", [name for name, method in SALIENCY_METHODS.items() if method.uses_gradient])
def test_zero_map_stays_zero_with_finite_gradients(method, model_type):
    if method in OF_ATTENTIONS and model_type == "resnet":
        pytest.skip("a ResNet has no attentions")
    model = make_vision_model(model_type)
    head = model.classifier if model_type == "vit" else model.classifier[1]
    with torch.no_grad():
        head.weight[1] = 0
    maps, logits = run(model, random_images(2, 3, 32, 32), torch.tensor([1, 1]), create_graph=True, method=method)
    # Relevance begins with the identity, so the class token's own is left, and none at the patches.
    assert torch.equal(maps, torch.zeros(2, 4, 4))
    (maps.sum() + F.mse_loss(maps, torch.ones_like(maps)) + logits.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


class Explained(torch.nn.Module):
    """Maps as the output of a module, for `functional_call`."""

    def __init__(self, model, method, target):
        super().__init__()
        self.model, self.method, self.target = model, method, target

    def forward(self, pixel_values):
        return run(self.model, pixel_values, self.target, create_graph=True, method=self.method)[0]


@each_pair
def test_gradcheck_with_respect_to_images_and_parameters(method, model_type, monkeypatch):
    # Eager attention takes its softmax in single precision, too coarse for finite differences.
    softmax = F.softmax
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    model = make_vision_model(model_type, seed=2).double()  # at this seed each method has maps of some class
    with torch.no_grad():
        # Biases too: without them, a normalised first layer does not see the scale of a patch, and what input x
        # gradient sums to over the patch is zero but for rounding.
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if model_type in ("resnet", "convnext", "swin"):
        # A linear tail has gradients that do not depend on the features: make it one that does.
        flatten = torch.nn.Flatten(1) if model_type == "resnet" else torch.nn.Identity()
        layers = flatten, torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        model.classifier = torch.nn.Sequential(*layers).double()
    pixel_values = random_images(2, 3, 32, 32, dtype=torch.float64).requires_grad_()
    targets = [torch.full((2,), label) for label in range(3)]
    target = next(t for t in targets if run(model, pixel_values, t, method=method)[0].amax(dim=(1, 2)).all())
    explained = Explained(model, method, target)
    parameters = dict(explained.named_parameters())
    names = [*list(parameters)[::6], list(parameters)[-2]]
    values = [parameters[name].detach().clone().requires_grad_() for name in names]

    def maps_of(pixel_values, *values):
        return functional_call(explained, dict(zip(names, values, strict=True)), (pixel_values,))

    maps = maps_of(pixel_values, *values)
    assert (maps.amax(dim=(1, 2)) == 1).all()
    gradients = torch.autograd.grad(maps.square().sum(), [pixel_values, *values], allow_unused=True)
    assert gradients[0].abs().max() > 1e-9
    if SALIENCY_METHODS[method].uses_gradient:
        assert gradients[-1].abs().max() > 1e-9  # the head's weight
    assert torch.autograd.gradcheck(maps_of, (pixel_values, *values), fast_mode=True)


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_gradcheck_with_respect_to_the_features(model_type):
    # A seed of which neither map is zero.
    model = make_vision_model(model_type, seed=3, image_size=16).double()
    if model_type == "resnet":
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


@each_pair
def test_a_batch_gives_the_maps_of_its_images_one_at_a_time(method, model_type):
    model = make_vision_model(model_type)
    pixel_values, target = random_images(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    maps, _ = run(model, pixel_values, target, method=method)
    assert maps.amax(dim=(1, 2)).any()
    single = [run(model, pixel_values[i : i + 1], target[i : i + 1], method=method)[0] for i in range(4)]
    torch.testing.assert_close(maps, torch.cat(single), rtol=1e-3, atol=1e-4)

    order = torch.tensor([2, 0, 3, 1])
    permuted, _ = run(model, pixel_values[order], target[order], method=method)
    torch.testing.assert_close(permuted, maps[order], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "method"),
    [(model_type, "grad_cam") for model_type in VISION_MODELS] + [("vit", method) for method in SALIENCY_METHODS],
)
def test_inference_equals_grad_mode_and_leaves_no_graph(model_type, method):
    model = make_vision_model(model_type)
    pixel_values = random_images(2, 3, 32, 32)
    expected, expected_logits = run(model, pixel_values, create_graph=True, method=method)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            images = random_images(2, 3, 32, 32)
            maps, logits = run(model, images, method=method)
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
        assert not images.requires_grad
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.get_submodule(find_tap(model))._forward_hooks


@pytest.mark.parametrize("method", ["grad_cam", "attention_relevance"])
def test_memory_stays_flat(method):
    """No graph, hook or tensor outlives its step, in training or at inference."""
    model = make_vision_model("vit")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pixel_values = random_images(2, 3, 32, 32)

    def steps(number):
        for _ in range(number):
            maps, logits = run(model, pixel_values, create_graph=True, method=method)
            (maps.square().mean() + logits.square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                run(model, pixel_values, method=method)

    def live_tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    steps(5)
    before = live_tensors()
    steps(40)
    assert live_tensors() == before
    # The graph's own nodes are no Python objects: what they would hold is counted as memory in use.
    assert resident_growth(lambda: steps(255)) < 8 * 2**20


def resident_growth(run_steps):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    gc.collect()
    before = resident()
    run_steps()
    gc.collect()
    return resident() - before
