"""`megl export`: graphs that answer as the model does, by programs that have neither torch nor Transformers."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import LITE, make_vision_model
from transformers import ViTImageProcessorPil

from examples.efficientnet_lite.configuration_efficientnet_lite import EfficientNetLiteConfig
from examples.efficientnet_lite.modeling_efficientnet_lite import EfficientNetLiteForImageClassification
from megl.exporting import (
    OPENERS,
    check_equal,
    convolution_gradient,
    make_program,
    pixels_of,
    preprocessing,
    write_onnx,
    write_program,
)
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.processing_megl import make_image_processor


onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "onnx" / "onnx_example.py"
# Runs a program in which whatever imports torch or Transformers fails.
ALONE = "import runpy, sys; sys.modules.update(torch=None, transformers=None); sys.argv = sys.argv[1:]; "
ALONE += "runpy.run_path(sys.argv[0], run_name='__main__')"


def alone(folder, *words):
    command = [sys.executable, "-I", "-c", ALONE, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def trained(make_model, processor, tmp_path_factory):
    """The folder of a tiny ResNet with a temperature and evidence of an earlier stage."""
    folder = tmp_path_factory.mktemp("models") / "trained"
    evidence = {"evidence_layers": ["resnet.encoder.stages.0"], "evidence_sizes": [8]}
    make_model("megl-resnet-tiny", score_temperature=2.0, **evidence).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture()
def of_kind(make_model):
    """`of_kind(name, **settings)`: a tiny MEGL model of a vision model, without gradients of its weights."""

    def of_kind(name, **settings):
        model = make_model("megl-resnet-tiny")
        if name == "efficientnet_lite":
            model.config.saliency_layer = "features"  # which its config names
            torch.manual_seed(0)
            lite = EfficientNetLiteConfig(**LITE, hidden_dim=16, num_labels=3)
            model.vision_model = EfficientNetLiteForImageClassification(lite).eval()
        else:
            model.vision_model = make_vision_model(name, **settings)
        return model.requires_grad_(False)

    return of_kind


def answers(model, pixel_values, target):
    with torch.no_grad():
        output = model(pixel_values, target=target)
    return [output[name].numpy() for name in ("logits", "saliency", "evidence_tokens")]


def agree(model, explain):
    """Whether a written file answers as the model does, three pictures and one, for classes named and predicted."""
    pixel_values, target = torch.randn(3, 3, 32, 32), torch.tensor([-1, 0, 2])
    for count in (3, 1):
        inputs = pixel_values[:count], target[:count]
        expected, found = answers(model, *inputs), explain(*(tensor.numpy() for tensor in inputs))
        assert expected[1].std() > 0.05
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"), [("vit", {"num_hidden_layers": 1}), ("swin", {}), ("efficientnet_lite", {})]
)
def test_a_graph_answers_as_the_model_in_both_formats(of_kind, tmp_path, name, settings):
    model = of_kind(name, **settings)
    program = make_program(model, (32, 32))
    for kind, write in (("onnx", write_onnx), ("torch", write_program)):
        write(program, tmp_path / kind)
        agree(model, OPENERS[kind](tmp_path / kind))


@pytest.mark.parametrize(
    ("preset", "method", "vision"),
    [
        ("megl-resnet-tiny", "input_x_gradient", None),
        ("megl-vit-tiny", "attention_rollout", {"num_hidden_layers": 1}),
        ("megl-vit-tiny", "attention_relevance", {"num_hidden_layers": 1}),
    ],
)
def test_methods_that_read_all_layers_are_traced_with_their_gradient(make_model, preset, method, vision):
    model = make_model(preset, saliency_method=method, vision=vision).requires_grad_(False)
    program = make_program(model, (32, 32)).module()
    agree(model, lambda *inputs: [output.numpy() for output in program(*map(torch.from_numpy, inputs))])


# ---- What is written ----


def test_the_files_run_without_torch_and_transformers(run, trained, picture, tmp_path, capsys):
    run("export", trained, "--output", tmp_path / "graph")
    told = capsys.readouterr().out
    assert re.findall(r"MB  (.+)", told) == ["README.md", "model.onnx", "preprocess.json"]
    settings = json.loads((tmp_path / "graph" / "preprocess.json").read_text())
    assert (settings["temperature"], settings["map_height"], settings["map_width"]) == (2.0, 4, 4)
    picture.save(tmp_path / "graph" / "picture.png")

    model, processor = (kind.from_pretrained(trained) for kind in (MeglForImageClassification, MeglProcessor))
    found = model.eval().explain_pixels(processor(images=[picture])["pixel_values"], processor, max_new_tokens=1)
    label, score = model.config.id2label[found["labels"].item()], found["scores"].item()
    saliency = found["saliency"][0, 0].detach().numpy()
    program = re.search(r"```python\n(.*?)```", (tmp_path / "graph" / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "graph" / "run.py").write_text(program)
    name, cells = alone(tmp_path / "graph", "run.py").split(" [[", 1)
    assert name == label
    np.testing.assert_allclose(np.fromstring(re.sub(r"[\[\]]", " ", cells), sep=" "), saliency.flatten(), atol=0.006)

    words = ["graph", "graph/picture.png", "--output", "overlay.png"]
    said = alone(tmp_path, EXAMPLE, *words).split()
    assert " ".join(said[:-1]) == label and abs(float(said[-1]) - score) < 1e-3
    with Image.open(tmp_path / "overlay.png") as drawn:
        change = np.abs(np.asarray(drawn, dtype=float) - np.asarray(picture)).mean(axis=2)
    peak = np.unravel_index(saliency.argmax(), saliency.shape)
    cells = [part.mean() for row in np.array_split(change, 4) for part in np.array_split(row, 4, axis=1)]
    assert np.argmax(cells) == np.ravel_multi_index(peak, saliency.shape)

    capsys.readouterr()
    with pytest.raises(SystemExit, match="is not empty"):
        run("export", trained, "--output", tmp_path / "graph")
    asked = alone(tmp_path, EXAMPLE, *words[:-1], "owl.png", "--target", "owl").split()
    assert asked[0] == "owl"


def test_a_program_of_torch_is_opened_without_unpickling(run, trained, tmp_path, monkeypatch):
    run("export", trained, "--format", "torch", "--output", tmp_path / "program")
    names = sorted(path.name for path in (tmp_path / "program").iterdir())
    assert names == ["README.md", "model.pt2", "preprocess.json"]
    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(owner, name, None)
    inputs = np.zeros((2, 3, 32, 32), dtype=np.float32), np.array([-1, 0])
    logits, _, _ = OPENERS["torch"](tmp_path / "program" / "model.pt2")(*inputs)
    assert logits.shape == (2, 3)


def test_preprocessing_is_measured(processor, picture):
    settings = preprocessing(processor)
    assert settings == {
        "height": 32,
        "width": 32,
        "resample": "bilinear",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
    }
    expected = processor(images=[picture])["pixel_values"][0].numpy()
    np.testing.assert_allclose(pixels_of(picture, settings), expected, atol=1e-4)
    # Rows and columns, another filter, and no normalisation: 0 to 255.
    plain = make_image_processor((16, 24), [0, 0, 0], [1, 1, 1], resample=Image.Resampling.BICUBIC)
    plain.do_rescale = plain.do_normalize = False
    settings = preprocessing(MeglProcessor(plain, processor.tokenizer))
    assert (settings["height"], settings["width"], settings["resample"]) == (16, 24, "bicubic")
    np.testing.assert_allclose(settings["std"], 1 / 255, atol=1e-6)


def test_an_image_processor_that_does_more_is_refused(processor):
    class Mirrored(ViTImageProcessorPil):
        def __call__(self, images, **kwargs):
            return super().__call__([image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images], **kwargs)

    mirrored = Mirrored(**{**processor.image_processor.to_dict(), "image_processor_type": None})
    with pytest.raises(ValueError, match="Mirrored, does more than resize"):
        preprocessing(MeglProcessor(mirrored, processor.tokenizer))


# ---- What is refused, and the parts ----


def test_a_file_that_answers_otherwise_is_refused(make_model):
    model = make_model("megl-resnet-tiny").requires_grad_(False)

    def explain(pixel_values, target):
        logits, saliency, evidence = answers(model, *map(torch.from_numpy, (pixel_values, target)))
        return logits, saliency + np.float32(0.01), evidence

    with pytest.raises(ValueError, match=r"^`saliency` of the written file differs from the model's by 1\.0e-02"):
        check_equal(explain, model, (32, 32))


def test_a_model_that_draws_its_maps_is_refused(make_model):
    with pytest.raises(ValueError, match="`grounding_map='random'` draws anew"):
        make_program(make_model("megl-resnet-tiny", grounding_map="random"), (32, 32))


def test_a_model_that_branches_on_its_pixels_is_refused(make_model, monkeypatch):
    model = make_model("megl-resnet-tiny").requires_grad_(False)
    forward = model.vision_model.forward
    monkeypatch.setattr(
        model.vision_model, "forward", lambda pixels: forward(pixels if pixels.sum() > 0 else pixels.flip(0))
    )
    with pytest.raises(ValueError, match="^ResNetForImageClassification cannot be traced for batches of any size: "):
        make_program(model, (32, 32))


def test_an_operation_that_onnx_has_not_is_named(tmp_path):
    class Bessel(torch.nn.Module):
        def forward(self, pixel_values, target):
            return torch.special.bessel_j0(pixel_values), pixel_values + 1, target + 1

    program = torch.export.export(Bessel(), (torch.zeros(2, 3), torch.zeros(2)))
    with pytest.raises(ValueError, match=r"^The model has .* that ONNX has not \(.*bessel_j0.*--format torch"):
        write_onnx(program, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_by_the_command(monkeypatch, trained, tmp_path):
    from megl.cli import main

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(sys, "argv", ["megl", "export", str(trained), "--output", str(tmp_path / "graph")])
    with pytest.raises(SystemExit, match=r"`onnxruntime` is not installed: pip install 'megl\[export\]'"):
        main()
    assert not (tmp_path / "graph").exists()


@pytest.mark.parametrize("settings", [([2], [1], [1], 1), ([2, 3], [0, 1], [2, 1], 4), ([1], [0], [1], 2)])
def test_the_gradient_of_a_convolution(settings):
    stride, padding, dilation, groups = settings
    pixels = torch.randn(2, 4, 11, 12, requires_grad=True)
    weight = torch.randn(8, 4 // groups, 3, 3)
    output = torch.nn.functional.conv2d(pixels, weight, None, stride, padding, dilation, groups)
    gradient = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, pixels, gradient)
    rest = (False, [0, 0], groups, [True, False, False])
    found, _, _ = convolution_gradient(gradient, pixels, weight, None, stride, padding, dilation, *rest)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
