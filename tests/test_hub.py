"""A saved model is a complete repository: it works in a process that has never seen this project."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import WITHOUT_THE_PROJECT, run
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoProcessor

from modeling_megl import MeglConfig


REPOSITORY = Path(__file__).resolve().parents[1]
CODE = [
    "class_token_megl.py",
    "configuration_megl.py",
    "language_megl.py",
    "losses_megl.py",
    "modeling_megl.py",
    "pipeline_megl.py",
    "processing_megl.py",
    "saliency_megl.py",
    "tap_megl.py",
]

ALL_DOORS = """
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor, AutoTokenizer, pipeline
)

folder, picture, result, again = sys.argv[1:]
trust = {"trust_remote_code": True}
image = Image.open(picture)
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
pixel_values = processor(images=image)["pixel_values"]
prompts = processor.prompts(["polar bear"])
found = {"id2label": config.id2label, "pixel_values": pixel_values, "modules": [], "classes": []}
for auto_class in (AutoModel, AutoModelForImageClassification):
    model = auto_class.from_pretrained(folder, **trust)
    with torch.no_grad():
        output = model(pixel_values)
    tokens = model.generate_rationales(**prompts, evidence_tokens=output.evidence_tokens, max_new_tokens=8)
    found["classes"].append(type(model).__name__)
    found["modules"] += [type(part).__module__ for part in (model, processor, config)]
    found[auto_class.__name__] = {"logits": output.logits, "saliency": output.saliency, "tokens": tokens}
found["explanation"] = model.explain(image, processor, max_new_tokens=8)[0]
found["prompt_ids"] = AutoTokenizer.from_pretrained(folder, **trust)("This is a polar bear because")["input_ids"]
found["image_processor"] = AutoImageProcessor.from_pretrained(folder, **trust)(image, return_tensors="pt")
found["image_processor"] = found["image_processor"]["pixel_values"]
classify = pipeline("image-classification", model=folder, **trust)
found["pipeline"] = classify(image, top_k=3)
found["pipeline_of_two"] = classify([image, image], top_k=3, batch_size=2)
explain = pipeline("explained-image-classification", model=folder, **trust)
found["explaining_pipeline"] = explain(picture, max_new_tokens=8)
found["explaining_pipeline_of_two"] = explain([image, picture], batch_size=2, max_new_tokens=8)
found["next"] = model.explain([image, image], processor, top_k=2, max_new_tokens=8)
found["next_of_pipeline"] = explain([image, picture], batch_size=2, top_k=2, max_new_tokens=8)
contrast = {"target": "owl", "foil": "cat", "max_new_tokens": 8}
found["contrast"] = model.explain(image, processor, **contrast)[0]
found["contrast_of_pipeline"] = explain(image, **contrast)
found["refused"] = []
wide = Image.new("I;16", (60, 40))
wide.save(result + ".png")
animation = result + ".gif"
image.save(animation, save_all=True, append_images=[image.transpose(0)])
array = torch.zeros(40, 60, 3, dtype=torch.uint8)
for given in (wide, result + ".png", animation, array, array.numpy(), "no_such.png"):
    for door in (lambda x: model.explain(x, processor), classify, explain):
        try:
            door(given)
        except ValueError as error:
            found["refused"].append(str(error))
model.save_pretrained(again)
processor.save_pretrained(again)
torch.save(found, result)
"""

COMPOSE = """
import sys

repository, folder, state = sys.argv[1:]
sys.path.insert(0, repository)
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
from examples.efficientnet_lite.configuration_efficientnet_lite import EfficientNetLiteConfig
from examples.efficientnet_lite.modeling_efficientnet_lite import EfficientNetLiteForImageClassification
from modeling_megl import TEXT_PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.processing_megl import make_image_processor

EfficientNetLiteConfig.register_for_auto_class()
EfficientNetLiteForImageClassification.register_for_auto_class("AutoModelForImageClassification")
vision = EfficientNetLiteForImageClassification(
    EfficientNetLiteConfig(
        kernel_sizes=[3, 5], strides=[2, 2], expand_ratios=[1, 2], out_channels=[8, 16], num_block_repeats=[1, 2],
        stem_channels=8, hidden_dim=24, num_labels=5, image_size=32,
    )
)
vision.save_pretrained(folder + "-vision")
make_image_processor((32, 48), [0.5] * 3, [0.5] * 3).save_pretrained(folder + "-vision")
processor = MeglProcessor.from_vision_pretrained(folder + "-vision", ["cat", "polar bear", "owl"], ["it has eyes"])
model = MeglForImageClassification.from_vision_text_pretrained(
    folder + "-vision", {**TEXT_PRESETS["llama-tiny"], **processor.text_config_kwargs()},
    ["cat", "polar bear", "owl"], trust_remote_code=True,
)
assert model.config.feature_size == 24, model.config.feature_size
model.save_pretrained(folder)
processor.save_pretrained(folder)
# The installed class asks for trust as well, since the vision model's code lies in the checkpoint.
try:
    MeglForImageClassification.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
loaded = MeglForImageClassification.from_pretrained(folder, trust_remote_code=True)
# Nor does the trust of before weigh more than a word against it.
for load in (
    lambda: MeglForImageClassification.from_pretrained(folder, trust_remote_code=False),
    lambda: MeglForImageClassification.from_pretrained(folder, config=loaded.config, trust_remote_code=False),
    lambda: MeglConfig.from_pretrained(folder, trust_remote_code=False),
    lambda: MeglForImageClassification.from_vision_text_pretrained(
        folder + "-vision", loaded.config.text_config, ["a", "b"], trust_remote_code=False
    ),
):
    try:
        load()
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise AssertionError("loaded without trust")
assert type(MeglForImageClassification.from_pretrained(folder).vision_model) is type(loaded.vision_model)
assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
image = torch.rand(1, 3, 32, 48)
with torch.no_grad():
    output = model(image)
torch.save({"image": image, "logits": output.logits, "saliency": output.saliency, "state": model.state_dict()}, state)
"""

OWN_VISION_MODEL = """
from transformers import AutoModelForImageClassification, AutoProcessor

folder, state, again = sys.argv[1:]
try:
    AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
expected = torch.load(state)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
try:
    type(model).from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("loaded without trust")
assert type(model.vision_model).__name__ == "EfficientNetLiteForImageClassification"
assert type(model.vision_model).__module__.startswith("transformers_modules."), type(model.vision_model).__module__
assert model.state_dict().keys() == expected["state"].keys()
for name, value in expected["state"].items():
    assert torch.equal(model.state_dict()[name], value), name
with torch.no_grad():
    output = model(expected["image"])
torch.testing.assert_close(output.logits, expected["logits"])
torch.testing.assert_close(output.saliency, expected["saliency"])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
explanation = model.explain(Image.new("RGB", (30, 20), "red"), processor, max_new_tokens=4)[0]
assert explanation["saliency"].shape == (20, 30)
model.save_pretrained(again)
processor.save_pretrained(again)
"""


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


# What NumPy's arrays in a file are made of again, beside which nothing but tensors and plain values is loaded.
ARRAYS = [np.empty(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.float32))]


@pytest.fixture(scope="module", params=["megl-vit-tiny", "megl-resnet-tiny"])
def doors(request, make_model, processor, tmp_path_factory):
    """A saved model, what it gives here, and what the doors of its repository and of a second save give elsewhere."""
    place = tmp_path_factory.mktemp("hub")
    model = make_model(request.param)
    folder = place / "repository"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    image.save(place / "picture.png")

    pixel_values = processor(images=image)["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values)
    prompts = processor.prompts(["polar bear"])
    tokens = model.generate_rationales(**prompts, evidence_tokens=output.evidence_tokens, max_new_tokens=8)
    expected = {
        "pixel_values": pixel_values,
        "logits": output.logits,
        "saliency": output.saliency,
        "tokens": tokens,
        "explanation": model.explain(image, processor, max_new_tokens=8)[0],
    }
    found = []
    for source, again in (("repository", "again"), ("again", "third")):
        run(
            WITHOUT_THE_PROJECT + ALL_DOORS,
            *(place / name for name in (source, "picture.png", f"{source}.pt", again)),
            cwd=place / "elsewhere",
            hub=place / f"hub_of_{source}",
        )
        with torch.serialization.safe_globals(ARRAYS):
            found.append(torch.load(place / f"{source}.pt"))
    return model, expected, place, found


@pytest.mark.parametrize("save", [0, 1], ids=["saved", "loaded_and_saved_again"])
def test_every_door_gives_what_the_model_gave(save, doors):
    model, expected, _, found = doors
    found = found[save]
    assert found["id2label"] == {0: "cat", 1: "polar bear", 2: "owl"}
    assert found["classes"] == ["MeglForImageClassification"] * 2
    assert all(name.startswith("transformers_modules.") for name in found["modules"]), found["modules"]
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"])
    torch.testing.assert_close(found["image_processor"], expected["pixel_values"])
    assert len(expected["tokens"].unique()) > 1
    for auto_class in ("AutoModel", "AutoModelForImageClassification"):
        torch.testing.assert_close(found[auto_class]["logits"], expected["logits"], rtol=0, atol=1e-6)
        torch.testing.assert_close(found[auto_class]["saliency"], expected["saliency"], rtol=0, atol=1e-5)
        assert torch.equal(found[auto_class]["tokens"], expected["tokens"])
    for name in ("label", "rationale"):
        assert found["explanation"][name] == expected["explanation"][name]
    assert found["explanation"]["saliency"].shape == (40, 60)
    np.testing.assert_allclose(found["explanation"]["saliency"], expected["explanation"]["saliency"], atol=1e-5)


@pytest.mark.parametrize("save", [0, 1], ids=["saved", "loaded_and_saved_again"])
def test_tokenizer_and_pipeline(save, doors, tokenizer):
    model, expected, _, found = doors
    assert found[save]["prompt_ids"] == tokenizer.encode("This is a polar bear because")
    probabilities = expected["logits"][0].softmax(dim=-1)
    for answer in (found[save]["pipeline"], *found[save]["pipeline_of_two"]):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == {
            name: pytest.approx(probabilities[label].item(), abs=1e-5) for label, name in model.config.id2label.items()
        }


@pytest.mark.parametrize("save", [0, 1], ids=["saved", "loaded_and_saved_again"])
def test_explaining_pipeline(save, doors):
    found = doors[-1][save]
    answers = [found["explaining_pipeline"], *found["explaining_pipeline_of_two"], found["contrast_of_pipeline"]]
    for answer, expected in zip(answers, 3 * [found["explanation"]] + [found["contrast"]], strict=True):
        assert answer.keys() == expected.keys() == {"label", "score", "saliency", "coverage", "rationale"}
        assert (answer["label"], answer["rationale"]) == (expected["label"], expected["rationale"])
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)
        np.testing.assert_allclose(answer["saliency"], expected["saliency"], atol=1e-5)
    for answer, expected in zip(found["next_of_pipeline"], found["next"], strict=True):
        assert answer["label"] == expected["label"] == found["explanation"]["label"]
        (other,), (expected,) = answer["alternatives"], expected["alternatives"]
        assert (other["label"], other["rationale"]) == (expected["label"], expected["rationale"])
        np.testing.assert_allclose(other["saliency"], expected["saliency"], atol=1e-5)
    assert found["contrast"]["label"] == "owl"
    assert abs(found["contrast"]["saliency"] - found["explanation"]["saliency"]).max() > 0.01


@pytest.mark.parametrize("save", [0, 1], ids=["saved", "loaded_and_saved_again"])
def test_every_door_refuses_the_same_pictures(save, doors):
    refused = doors[-1][save]["refused"]
    reasons = 2 * ["8 bits a channel, got mode I;16"] + ["a still picture, got 2 frames", "Image`, got Tensor"]
    reasons += ["Image`, got ndarray", "Image`, got str"]
    assert len(refused) == 3 * len(reasons)
    for position, reason in enumerate(reasons):
        by_explain, by_classify, by_explaining = refused[3 * position : 3 * position + 3]
        assert by_classify == by_explaining
        # `explain` opens no files.
        if position in (0, 3, 4):
            assert by_explain == by_explaining and reason in by_explain
        else:
            assert "must be a `PIL.Image.Image`, got str" in by_explain
    assert "mode I;16" in refused[4] and "2 frames" in refused[7] and "no_such.png is no picture" in refused[-1]


def test_repository_holds_its_code_and_safetensors_only(doors):
    _, _, place, _ = doors
    names = names_of(place / "repository")
    assert [name for name in names if name.endswith(".py")] == CODE
    assert [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))] == [
        "model.safetensors"
    ]
    for again in ("again", "third"):
        assert names_of(place / again) == names
        for name in CODE:
            assert (place / again / name).read_text() == (REPOSITORY / "modeling_megl" / name).read_text()


def test_saved_weights_keep_the_names_they_have_in_the_model(doors):
    """The Trainer loads checkpoints by plain names: others would silently leave the vision model as it is."""
    model, _, place, _ = doors
    tied = {"language_model.lm_head.weight"}
    for name in ("repository", "again"):
        saved = load_file(place / name / "model.safetensors")
        assert saved.keys() == model.state_dict().keys() - tied
        for key, value in saved.items():
            assert torch.equal(value, model.state_dict()[key]), key


def test_code_is_refused_without_trust(doors, monkeypatch):
    _, _, place, _ = doors
    folder = place / "repository"
    for auto_class in (AutoConfig, AutoModel, AutoModelForImageClassification, AutoProcessor):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            auto_class.from_pretrained(folder, trust_remote_code=False)
    # Without a word on trust, the question on the terminal gets no answer.
    monkeypatch.setattr("builtins.input", lambda *args: "n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(folder)


def test_code_of_another_repository_is_named_before_it_runs(make_config, tmp_path, modules_cache, monkeypatch, caplog):
    config = make_config("megl-resnet-tiny").to_dict()
    entry = "another/repository--own.Own"
    names = ("AutoConfig", "AutoModelForImageClassification")
    config["vision_config"] |= {"model_type": "own", "auto_map": dict.fromkeys(names, entry)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda question: "n")
    for trust in (False, None):
        with pytest.raises(ValueError, match="references custom code contained in another/repository which must be"):
            MeglConfig.from_pretrained(tmp_path, trust_remote_code=trust)

    def load(reference, *_, **__):
        said.extend(record.getMessage() for record in caplog.records)
        raise OSError(reference)

    said = []
    monkeypatch.setattr("modeling_megl.configuration_megl.get_class_from_dynamic_module", load)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_megl"), "propagate", True)
    with pytest.raises(OSError, match=entry):
        MeglConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert f"The vision model of {tmp_path} runs code of another repository: another/repository." in said


def test_vision_model_with_its_own_code_goes_along(tmp_path):
    folder, state = tmp_path / "own", tmp_path / "state.pt"
    run(COMPOSE, REPOSITORY, folder, state, cwd=tmp_path / "home", hub=tmp_path / "hub")
    own_code = ["configuration_efficientnet_lite.py", "modeling_efficientnet_lite.py"]
    assert [name for name in names_of(folder) if name.endswith(".py")] == sorted([*CODE, *own_code])
    script = WITHOUT_THE_PROJECT + OWN_VISION_MODEL
    again, third = tmp_path / "again", tmp_path / "third"
    run(script, folder, state, again, cwd=tmp_path / "elsewhere", hub=tmp_path / "hub_elsewhere")
    assert names_of(again) == names_of(folder)
    run(script, again, state, third, cwd=tmp_path / "elsewhere", hub=tmp_path / "hub_of_again")
    assert names_of(third) == names_of(folder)
    for name in own_code:
        assert (third / name).read_text() == (REPOSITORY / "examples" / "efficientnet_lite" / name).read_text()
