"""Checkpoints without their language model: adapters, the vision part, and the name of the model that they go with."""

import json

import pytest
import torch
from fresh_process import WITHOUT_THE_PROJECT, run
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, LlamaConfig, LlamaForCausalLM

from modeling_megl import MeglConfig, MeglForImageClassification, MeglProcessor, add_lora, save_adapter


LABELS = ["cat", "polar bear", "owl"]

JOINED = """
from transformers import AutoModelForImageClassification, AutoProcessor

folder, base, expected = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, text_base_model=base).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
expected = torch.load(expected, weights_only=True)
output = model(expected["image"])
for name in ("logits", "saliency", "evidence_tokens"):
    torch.testing.assert_close(getattr(output, name), expected[name])
prompts = processor.prompts(["cat"])
ids = model.generate_rationales(**prompts, pixel_values=expected["image"], max_new_tokens=6)
assert torch.equal(ids, expected["ids"])
"""


@pytest.fixture()
def parts(make_model, processor, tmp_path):
    """Folders of a vision model and of a language model with its tokenizer."""
    make_model("megl-resnet-tiny").vision_model.save_pretrained(tmp_path / "vision")
    processor.image_processor.save_pretrained(tmp_path / "vision")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**sizes, **processor.text_config_kwargs())).save_pretrained(tmp_path / "text")
    processor.tokenizer.save_pretrained(tmp_path / "text")
    return str(tmp_path / "vision"), str(tmp_path / "text")


def adapted(parts, text=None):
    """A model with adapters that do something, and its processor."""
    torch.manual_seed(2)
    model = MeglForImageClassification.from_vision_text_pretrained(parts[0], text or parts[1], LABELS)
    model = add_lora(model, rank=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model, MeglProcessor.from_vision_text_pretrained(*parts)


def image():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_adapters_and_language_model_are_joined_to_what_merging_gives(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    merged = model.merge_and_unload()
    joined = MeglForImageClassification.from_pretrained(tmp_path / "adapter")
    assert merged.state_dict().keys() == joined.state_dict().keys()
    for name, value in merged.state_dict().items():
        assert torch.equal(joined.state_dict()[name], value), name
    # Joined, it is a model as any other.
    assert not joined.config.text_adapter and not merged.config.text_adapter
    joined.save_pretrained(tmp_path / "whole")
    again = MeglForImageClassification.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(again(image()).logits, merged(image()).logits)
    half = MeglForImageClassification.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_the_checkpoint_is_small_and_says_what_it_needs(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"vision_model", "grounding"}
    adapters = load_file(tmp_path / "adapter" / "language_model" / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapters)
    config = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert (config["text_adapter"], config["text_base_model"]) == (True, parts[1])
    # Where a folder lies is no one's business; a Hub id is.
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert parts[1] not in card and "base_model" not in card.split("---")[1]
    model.get_base_model().config.text_base_model = "me/small"
    save_adapter(model, processor, tmp_path / "known")
    card = ModelCard.load(tmp_path / "known" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/small", "adapter")
    # To PEFT they are adapters of the language model itself.
    language_model = AutoModelForCausalLM.from_pretrained(parts[1])
    language_model = PeftModel.from_pretrained(language_model, tmp_path / "adapter", subfolder="language_model")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(language_model(ids).logits, model.get_base_model().language_model(ids).logits)


def test_it_works_without_the_project_beside_another_copy_of_the_language_model(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    (tmp_path / "text").rename(tmp_path / "moved")
    output = model.get_base_model()(image())
    expected = {name: output[name].detach() for name in ("logits", "saliency", "evidence_tokens")}
    prompts = processor.prompts(["cat"])
    ids = model.get_base_model().generate_rationales(**prompts, pixel_values=image(), max_new_tokens=6)
    torch.save({**expected, "image": image(), "ids": ids}, tmp_path / "expected.pt")
    arguments = (tmp_path / "adapter", tmp_path / "moved", tmp_path / "expected.pt")
    run(WITHOUT_THE_PROJECT + JOINED, *arguments, cwd=tmp_path / "elsewhere", hub=tmp_path / "hub")
    with pytest.raises(OSError, match="text is neither a folder nor a Hub id"):
        MeglForImageClassification.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageClassification.from_pretrained(tmp_path / "adapter", trust_remote_code=False)


@pytest.mark.parametrize("loaded", [MeglForImageClassification, AutoModelForImageClassification, MeglConfig])
def test_a_whole_model_takes_no_other_language_model(make_model, tmp_path, loaded):
    make_model("megl-resnet-tiny").save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="`text_base_model` names .* this one holds a whole model, got 'me/other'"):
        loaded.from_pretrained(tmp_path / "whole", text_base_model="me/other", trust_remote_code=True)


def test_another_language_model_is_refused(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    text = LlamaForCausalLM.from_pretrained(parts[1])
    text.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    text.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match="not .*other as it was when the model was made: the adapters of .* do not fit"
    ):
        MeglForImageClassification.from_pretrained(tmp_path / "adapter", text_base_model=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.safetensors", "grounding.norm.weight"),
        ("language_model/adapter_model.safetensors", "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
    ],
)
def test_missing_weights_are_refused(parts, tmp_path, file, name):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter" / file)
    del state[name]
    save_file(state, tmp_path / "adapter" / file)
    with pytest.raises(ValueError, match=f"is not whole: it has no weights for {name}"):
        MeglForImageClassification.from_pretrained(tmp_path / "adapter")


def test_the_callers_configuration_stays(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    config = MeglConfig.from_pretrained(tmp_path / "adapter")
    first, second = (
        MeglForImageClassification.from_pretrained(tmp_path / "adapter", config=config).state_dict() for _ in range(2)
    )
    assert config.text_adapter and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_pickle_in_place_of_the_adapters_is_not_read(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    file = tmp_path / "adapter" / "language_model" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        MeglForImageClassification.from_pretrained(tmp_path / "adapter")


def test_a_language_model_that_cannot_be_fetched_is_not_left_out(parts, tmp_path):
    scratch, processor = adapted(parts, text=LlamaConfig.from_pretrained(parts[1]))
    with pytest.raises(ValueError, match="trained from scratch or by an older version: the adapters alone are of"):
        save_adapter(scratch, processor, tmp_path / "adapter")
    model, _ = adapted(parts)
    again = add_lora(model.merge_and_unload(), rank=2)
    with pytest.raises(ValueError, match="is not .*text as it was when the model was made: the adapters alone are of"):
        save_adapter(again, processor, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_evidence_is_written_from_by_the_joined_model(parts, tmp_path):
    model, processor = adapted(parts)
    save_adapter(model, processor, tmp_path / "adapter")
    joined = MeglForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    picture = Image.new("RGB", (40, 30), "red")
    (expected,), (found,) = (
        each.explain(picture, processor, max_new_tokens=4) for each in (model.merge_and_unload(), joined)
    )
    assert found["rationale"] == expected["rationale"] and found["label"] == expected["label"]
