"""Settings that are not as they should be: every command ends in one line that names the file and what is wrong."""

import json

import pytest
from explained_rows import make_dataset
from PIL import Image

from megl.evaluation.classifier import load_classifier
from modeling_megl import MeglForImageClassification, MeglProcessor, add_lora, save_adapter


@pytest.fixture()
def saved(make_model, processor, tmp_path):
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "megl")
    processor.save_pretrained(tmp_path / "megl")
    return tmp_path / "megl"


def change(path, *keys, to):
    """Set what lies under the keys of a JSON file."""
    settings = json.loads(path.read_text())
    inner = settings
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(settings))


NOT_A_MODEL = "its `text_config` makes no model: "
BROKEN = [
    (("evidence_size",), -1, "`evidence_size` must be a number of channels, 1 or more, got -1"),
    (("evidence_size",), "x", "Validation error for field 'evidence_size': TypeError: .* expected int, got str"),
    (("evidence_sizes",), [3], r"`evidence_sizes` must have the number .* got \[3\] for \[\]"),
    (("feature_size",), 0.5, "Validation error for field 'feature_size'"),
    (("feature_size",), -7, "`feature_size` must be a number of channels, 1 or more, got -7"),
    (("text_adapter",), "x", "Validation error for field 'text_adapter': TypeError: .* expected bool, got str"),
    (("id2label",), [], r"`id2label` must map ids to names, and `label2id` names to ids, got \[\]"),
    (("vision_config",), "x", "`vision_config` must be settings with a `model_type`, got 'x'"),
    (("vision_config", "model_type"), [], r"`vision_config` must have the name of a `model_type`, got \[\]"),
    (("vision_config", "embedding_size"), -1, "its `vision_config` makes no model: RuntimeError: .*negative dim"),
    (("text_config",), 5, "Validation error for field 'text_config'"),
    (("text_config", "model_type"), "x", "Unrecognized model type for subconfig: x.{,300} …"),
    (("text_config", "hidden_act"), "x", f"{NOT_A_MODEL}KeyError: 'x'"),
    (("text_config", "head_dim"), -2, f"{NOT_A_MODEL}RuntimeError: .*negative dimension"),
]


@pytest.mark.parametrize(("keys", "value", "message"), BROKEN)
def test_the_file_and_the_key_are_named(saved, keys, value, message):
    change(saved / "config.json", *keys, to=value)
    with pytest.raises(ValueError, match=f"^The config.json of {saved}: {message}") as caught:
        MeglForImageClassification.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '"x"', "null", "{", ""])
def test_what_holds_no_settings(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises((ValueError, OSError), match="config"):
        MeglForImageClassification.from_pretrained(saved)


def test_channels_of_evidence_layers_are_above_0(make_config):
    with pytest.raises(ValueError, match=r"`evidence_sizes\[1\]` must be a number of channels, 1 or more, got -4"):
        make_config("megl-resnet-tiny", evidence_layers=["a", "b"], evidence_sizes=[1, -4], num_evidence_tokens=4)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("text_adapter",), "x", "The config.json of {}: Validation error for field 'text_adapter'"),
        (("vision_config", "hidden_sizes"), [8, 24], "The weights of {} do not have the shapes that its config.json"),
    ],
)
def test_each_command_ends_in_a_line(run, saved, tmp_path, keys, value, message):
    change(saved / "config.json", *keys, to=value)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    (tmp_path / "data").mkdir()
    make_dataset(6).to_parquet(tmp_path / "data" / "train.parquet")
    for name, *words in (
        ("train_megl", "--model_name_or_path", saved, "--dataset_name", tmp_path / "data", "--output_dir"),
        ("evaluate_megl", "--model", saved, "--dataset", tmp_path / "data", "--split", "train", "--output"),
        ("audit", saved, tmp_path / "data", "--output"),
        ("explain", "--model", saved, picture, "--output"),
        ("export", saved, "--format", "torch", "--output"),
        ("init_megl", "--model", saved, "--dataset", tmp_path / "data", "--output"),
    ):
        with pytest.raises(SystemExit, match=f"^{name}: {message.format(saved)}[^\n]*$"):
            run(name, *words, tmp_path / "out")


@pytest.fixture()
def parts(make_model, processor, tmp_path):
    """Folders of a vision model and of a language model."""
    model = make_model("megl-resnet-tiny")
    for name, part, tool in (
        ("vision", model.vision_model, processor.image_processor),
        ("text", model.language_model, processor.tokenizer),
    ):
        part.save_pretrained(tmp_path / name)
        tool.save_pretrained(tmp_path / name)
    return str(tmp_path / "vision"), str(tmp_path / "text")


def composed(vision, text):
    return MeglForImageClassification.from_vision_text_pretrained(vision, text, ["a", "b"])


def test_parts_of_other_models(parts, tmp_path):
    change(tmp_path / "text" / "config.json", "hidden_size", to="x")
    with pytest.raises(ValueError, match="^The config.json of .*text: .*'hidden_size'"):
        MeglProcessor.from_vision_text_pretrained(*parts)
    with pytest.raises(ValueError, match="^.*text cannot be loaded as its config.json says: .*'hidden_size'"):
        composed(*parts)
    change(tmp_path / "vision" / "config.json", "depths", to=None)
    for load, names in ((load_classifier, parts[:1]), (composed, parts)):
        with pytest.raises(ValueError, match="^.*vision cannot be loaded as its config.json says: TypeError: "):
            load(*names)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("peft_type", "NEW", "KeyError: 'NEW'"), ("r", "x", "TypeError: ")],
)
def test_adapters_of_an_unknown_kind(parts, processor, tmp_path, key, value, message):
    save_adapter(add_lora(composed(*parts), 2), processor, tmp_path / "adapter")
    change(tmp_path / "adapter" / "language_model" / "adapter_config.json", key, to=value)
    with pytest.raises(ValueError, match=f"adapter and its language_model/adapter_config.json: {message}"):
        MeglForImageClassification.from_pretrained(tmp_path / "adapter")
