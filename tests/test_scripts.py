"""The scripts, one after another as a user would run them, on a small sample."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, ResNetConfig, ResNetForImageClassification

from modeling_megl import PRESETS, MeglConfig, MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import PRETRAINED_TEXTS
from modeling_megl.losses_megl import resize_masks
from modeling_megl.processing_megl import make_image_processor, train_rationale_tokenizer


ROOT = Path(__file__).resolve().parents[1]
SIZES = {"train": 16, "validation": 4, "test": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from dataset_builders import ObjectMe, build_dataset

    folder = tmp_path_factory.mktemp("data") / "object_me"
    build_dataset(ObjectMe, "sample", folder, sample_sizes=SIZES)
    return folder


@pytest.fixture()
def untrained(run, dataset, tmp_path):
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "untrained")
    return tmp_path / "untrained"


def train(run, model, dataset, output, *arguments):
    settings = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--report_to", "none", "--disable_tqdm", "True"]
    run(
        "train_megl",
        *("--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", output),
        *settings,
        *arguments,
    )


def test_from_data_to_explanation(run, dataset, untrained, tmp_path, capsys):
    trained, evaluation, explanations = tmp_path / "trained", tmp_path / "evaluation", tmp_path / "explanations"
    train(run, untrained, dataset, trained, "--logging_steps", 1, "--training_page")
    page = (trained / "training.html").read_text()
    assert "Done: step 2 of\n2." in page and f"megl evaluate --model {trained}" in page
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    run("evaluate_megl", "--model", trained, "--dataset", dataset, "--split", "test", "--output", evaluation)
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before

    metrics = json.loads((evaluation / "metrics.json").read_text())
    lines = [json.loads(line) for line in (evaluation / "predictions.jsonl").read_text().splitlines()]
    assert metrics["n"]["accuracy"] == len(lines) == SIZES["test"]
    assert metrics["accuracy"] == np.mean([line["label"] == line["prediction"] for line in lines])
    for group, value in metrics["accuracy_by_group"].items():
        assert value == np.mean([line["label"] == line["prediction"] for line in lines if line["group"] == group])
    assert metrics["worst_group_accuracy"] == min(metrics["accuracy_by_group"].values())
    assert {"iou", "precision", "recall", "f1", "energy", "pointing_game", "n"} <= set(metrics["saliency"])
    named = {f"{name}_accuracy" for name in ("kind", "colour", "place", "shuffled_place", "no_evidence_place")}
    assert {"bleu_4", "rouge_l", "n", *named} <= set(metrics["rationale"])
    assert metrics["clip_score"] is None
    page = (evaluation / "index.html").read_text()
    assert page.count('class="item"') == SIZES["test"] and "http" not in page.split("</style>")[1]

    card = ModelCard.load(evaluation / "model_card.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert figures["iou"] == pytest.approx(metrics["saliency"]["iou"], abs=1e-4)
    assert "visual_loss_weight | 3.0" in card.content and "{{" not in card.content
    assert (
        "](training_curves.svg)" in card.content
        and "training, step 2:" in (trained / "training_curves.svg").read_text()
    )
    assert "prompt names the predicted class (`This is a {label} because`)" in card.content

    picture = tmp_path / "wide.jpg"
    Image.new("RGB", (90, 40), "green").save(picture)
    capsys.readouterr()
    run("explain", "--model", trained, picture, "--output", explanations)
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record == json.loads((explanations / "explanations.jsonl").read_text())
    assert record["image"] == str(picture) and 0 <= record["score"] <= 1
    assert Image.open(explanations / record["picture"]).width == 2 * 320 + 24


def test_method_and_layer_of_the_map_are_chosen(run, dataset, tmp_path):
    layer = "resnet.encoder.stages.0"
    options = ("--saliency_method", "layer_cam", "--saliency_layer", layer)
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "model", *options)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["saliency_method"], config["saliency_layer"], config["feature_size"]) == ("layer_cam", layer, 48)
    with pytest.raises(SystemExit, match="init_megl: `saliency_layer='resnet.stage'` is no module of ResNetFor"):
        run(
            "init_megl",
            *("--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", tmp_path / "other"),
            *("--saliency_layer", "resnet.stage"),
        )
    assert not (tmp_path / "other").exists()


def test_evidence_of_earlier_layers(run, dataset, tmp_path, capsys):
    options = ("--preset", "megl-resnet-tiny", "--evidence_layers", "auto")
    for name, given in (("default", options[:2]), ("model", options)):
        init(run, dataset, tmp_path / name, *given)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["evidence_layers"], config["evidence_sizes"]) == (["resnet.encoder.stages.0"], [48])
    init(run, dataset, tmp_path / "none", *options[:-1], "none")
    assert json.loads((tmp_path / "none" / "config.json").read_text())["evidence_layers"] == []
    init(run, dataset, tmp_path / "named", *options[:-1], "resnet.encoder.stages.0", "resnet.embedder")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    assert (config["evidence_layers"], config["evidence_sizes"]) == (
        ["resnet.embedder", "resnet.encoder.stages.0"],
        [32, 48],
    )
    # As many tokens as they take, in the order in which they run.
    names = ["vit.layers.2", "vit.layers.0", "vit.layers.1"]
    init(run, dataset, tmp_path / "three", "--preset", "megl-vit-tiny", "--evidence_layers", *names)
    three = MeglForImageClassification.from_pretrained(tmp_path / "three").config
    assert (three.evidence_layers, three.num_evidence_tokens) == (sorted(names), 5)
    with pytest.raises(SystemExit):
        init(run, dataset, tmp_path / "other", *options, "stem")
    assert "`--evidence_layers` takes names, or `auto` or `none` alone" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"init_megl: `evidence_layers`: 'stem' is no module of ResNetFor"):
        init(run, dataset, tmp_path / "other", *options[:-1], "stem")
    with pytest.raises(SystemExit):
        init(run, dataset, tmp_path / "other", "--model", tmp_path / "model", *options[2:])
    assert "`--evidence_layers` goes beside `--model` with `--text` alone" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    train(run, tmp_path / "model", dataset, tmp_path / "trained")
    run("evaluate_megl", "--model", tmp_path / "trained", "--dataset", dataset, "--output", tmp_path / "evaluation")
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert 0 <= metrics["rationale"]["shuffled_place_accuracy"] <= 1


def init(run, dataset, output, *options):
    run("init_megl", "--dataset", dataset, "--output", output, *options)


def test_cut_rationales_are_counted_and_prompts_and_lengths_chosen(run, dataset, tmp_path, capsys):
    preset = ("--preset", "megl-resnet-tiny")
    init(run, dataset, tmp_path / "default", *preset)
    assert "will be cut" not in capsys.readouterr().out
    options = ("--rationale_prompt", "Это {label}, потому что", "--max_rationale_length", "44")
    init(run, dataset, tmp_path / "short", *preset, *options)
    said = capsys.readouterr().out
    processor = MeglProcessor.from_pretrained(tmp_path / "short")
    assert (processor.rationale_prompt, processor.max_rationale_length) == (options[1], 44)
    rows = load_dataset(str(dataset), split="train")
    names = rows.features["label"].names
    lengths = [
        len(processor.tokenizer.encode(f"Это {names[row['label']]}, потому что {text}")) + 1
        for row in rows
        for text in row["textual_explanations"]
    ]
    cut = sum(length > 44 for length in lengths)
    assert 0 < cut < len(lengths)
    assert f"{cut} of {len(lengths)} rationales are longer than 44 tokens" in said
    assert f"none would be at --max_rationale_length {max(lengths)}." in said
    init(run, dataset, tmp_path / "long", *preset, *options[:2], "--max_rationale_length", max(lengths))
    assert "will be cut" not in capsys.readouterr().out
    for wrong, message in (
        (("--rationale_prompt", "Because"), r"`rationale_prompt` must contain '\{label\}', got 'Because'"),
        (("--max_rationale_length", 0), "`max_rationale_length` must be 1 or more, got 0"),
        (("--max_rationale_length", 4), "The prompt of the class .* leaves nothing for its rationales of `max_rat"),
        (("--max_rationale_length", 125), "`max_rationale_length=125` and 4 tokens .* the 128 .*: choose 124 or less"),
    ):
        with pytest.raises(SystemExit, match=f"init_megl: {message}"):
            init(run, dataset, tmp_path / "wrong", *preset, *wrong)
        assert not (tmp_path / "wrong").exists()


@pytest.fixture()
def parts(tmp_path):
    """`parts(model_type, tokenizer, **settings)`: `--vision` and `--text` of tiny models in folders."""

    def make(model_type, tokenizer, **settings):
        sizes = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        torch.manual_seed(0)
        ResNetForImageClassification(ResNetConfig(**sizes, image_size=32)).save_pretrained(tmp_path / "vision")
        make_image_processor((32, 32), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "vision")
        config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **settings})
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
        tokenizer.save_pretrained(tmp_path / "text")
        return ("--vision", tmp_path / "vision", "--text", tmp_path / "text")

    return make


GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}


def test_language_model_without_an_end_of_text_takes_the_tokenizers(run, dataset, parts, tokenizer, tmp_path):
    options = parts("gpt2", tokenizer, **GPT2, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    init(run, dataset, tmp_path / "model", *options, "--max_rationale_length", 124)
    config = MeglForImageClassification.from_pretrained(tmp_path / "model").config
    assert config.text_config.eos_token_id == tokenizer.eos_token_id


def test_language_models_that_do_not_fit_are_refused_before_anything_is_written(
    run, dataset, parts, tokenizer, tmp_path
):
    endless = train_rationale_tokenizer(["it has a roof"], vocab_size=300)
    endless.eos_token = None
    for model_type, tokens, settings, message in (
        ("openai-gpt", tokenizer, GPT2, "OpenAIGPTLMHeadModel cannot generate from embeddings"),
        ("gpt2", endless, GPT2, "The tokenizer .* has no end-of-text token"),
        (
            "gpt2",
            tokenizer,
            {**GPT2, "vocab_size": 100},
            r"it has a token of id \d+, while the model has 100 embeddings",
        ),
        (
            "gpt2",
            tokenizer,
            {**GPT2, "n_positions": 64},
            "are more than the 64 that the language model takes: choose 60",
        ),
    ):
        options = parts(model_type, tokens, **settings)
        with pytest.raises(SystemExit, match=f"init_megl: .*{message}"):
            init(run, dataset, tmp_path / "model", *options)
        assert not (tmp_path / "model").exists()
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "text" / "config.json").write_text(json.dumps(config))
    (tmp_path / "text" / "own.py").write_text("raise SystemError('run')")
    for trust in ((), ("--trust_remote_code",)):
        with pytest.raises(SystemExit, match="text is a model with code of its own, which a MEGL checkpoint does not"):
            init(run, dataset, tmp_path / "model", *options, *trust)
    with pytest.raises(SystemExit, match="vision is no causal language model: its `model_type` is 'resnet'"):
        init(run, dataset, tmp_path / "model", *options[:2], "--text", tmp_path / "vision")


def test_a_trained_model_gets_another_language_model(run, dataset, parts, tokenizer, tmp_path):
    labels = load_dataset(str(dataset), split="train").features["label"].names
    settings = ("--rationale_prompt", "A {label}, as", "--saliency_method", "layer_cam")
    init(run, dataset, tmp_path / "old", "--preset", "megl-resnet-tiny", *settings)
    old, before = (kind.from_pretrained(tmp_path / "old") for kind in (MeglForImageClassification, MeglProcessor))
    picture = load_dataset(str(dataset), split="train")[0]["image"]
    parts("gpt2", tokenizer, **GPT2)
    new, scratch = tmp_path / "new", tmp_path / "scratch"
    init(run, dataset, new, "--model", tmp_path / "old", "--text", tmp_path / "text")
    init(
        run,
        dataset,
        scratch,
        "--model",
        new,
        "--text",
        "llama-tiny",
        "--rationale_prompt",
        "A {label}. ",
        "--evidence_layers",
        "none",
    )
    for folder, kind, base in ((new, "gpt2", str(tmp_path / "text")), (scratch, "llama", None)):
        model, processor = (part.from_pretrained(folder) for part in (MeglForImageClassification, MeglProcessor))
        config = model.config
        assert config.text_config.model_type == kind and config.text_base_model == base
        assert (config.text_base_checksum is None) == (base is None)
        assert list(config.id2label.values()) == labels and config.saliency_method == "layer_cam"
        assert config.evidence_layers == (old.config.evidence_layers if kind == "gpt2" else [])
        assert all(
            torch.equal(old.state_dict()[f"vision_model.{k}"], v) for k, v in model.vision_model.state_dict().items()
        )
        pixels = [part.image_processor(picture, return_tensors="pt")["pixel_values"] for part in (processor, before)]
        assert torch.equal(*pixels)
        assert processor.rationale_prompt == ("A {label}, as" if kind == "gpt2" else "A {label}. ")
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "text").state_dict()
    model = MeglForImageClassification.from_pretrained(new)
    assert all(torch.equal(text[name], value) for name, value in model.language_model.state_dict().items())
    with pytest.raises(SystemExit, match="old is a model with code of its own"):
        init(run, dataset, tmp_path / "other", "--model", new, "--text", tmp_path / "old")


def test_a_short_name_stands_for_a_pretrained_language_model(
    run, dataset, parts, tokenizer, tmp_path, monkeypatch, capsys
):
    assert PRETRAINED_TEXTS == {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    monkeypatch.setitem(PRETRAINED_TEXTS, "smollm2", str(tmp_path / "text"))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }}<end>{% endfor %}"
    parts("gpt2", tokenizer, **{**GPT2, "n_positions": 256})
    options = ("--preset", "megl-resnet-tiny", "--text", "smollm2")
    init(run, dataset, tmp_path / "chat", *options, "--chat_template")
    assert "megl train --lora_rank 16 --text_learning_rate 3e-3" in capsys.readouterr().out
    model, processor = (
        kind.from_pretrained(tmp_path / "chat") for kind in (MeglForImageClassification, MeglProcessor)
    )
    config, preset = model.config, PRESETS["megl-resnet-tiny"]
    assert config.text_base_model == str(tmp_path / "text") and config.text_config.model_type == "gpt2"
    assert config.vision_base_model is None and config.vision_config.hidden_sizes == [48, 96]
    assert {name: getattr(config, name) for name in preset if name.startswith(("evidence", "saliency"))} == {
        name: value for name, value in preset.items() if name.startswith(("evidence", "saliency"))
    }
    assert processor.image_processor.size == {"height": 128, "width": 128}
    assert processor.chat_turns == ["user: ", "<end>assistant: ", "<end>"]
    assert tokenizer.convert_tokens_to_ids("<end>") in config.text_config.eos_token_id
    # What the template adds does not cut rationales.
    added = len(tokenizer.encode("user: ")) + len(tokenizer.encode("<end>assistant: "))
    assert processor.max_rationale_length == 64 + added
    # A trained model keeps its turns.
    init(run, dataset, tmp_path / "again", "--model", tmp_path / "chat")
    assert MeglProcessor.from_pretrained(tmp_path / "again").chat_turns == processor.chat_turns

    init(run, dataset, tmp_path / "plain", *options)
    plain = MeglProcessor.from_pretrained(tmp_path / "plain")
    assert plain.chat_turns is None and plain.max_rationale_length == 64
    capsys.readouterr()
    init(run, dataset, tmp_path / "scratch", *options[:-1], "llama-tiny")
    printed = capsys.readouterr().out
    assert "lora_rank" not in printed and "--warmup_steps 50 --learning_rate 3e-3 ..." in printed
    with pytest.raises(SystemExit, match="`--chat_template` goes with a pretrained `--text`, llama-tiny has none"):
        init(run, dataset, tmp_path / "other", *options[:-1], "llama-tiny", "--chat_template")
    with pytest.raises(SystemExit):
        init(run, dataset, tmp_path / "other", *options[:2], "--chat_template")
    assert "`--chat_template` goes with a pretrained `--text`" in capsys.readouterr().err


def test_trained_model_is_taken_to_new_classes(run, dataset, tmp_path):
    old_labels = load_dataset(str(dataset), split="train").features["label"].names
    processor = MeglProcessor.from_preset(
        "megl-resnet-tiny", ["dog", "owl"], ["it has eyes"], rationale_prompt="A {label}, as", max_rationale_length=120
    )
    # Of as many classes, so that no shape tells the heads apart; one of them stays.
    labels = [*(f"other {i}" for i in range(len(old_labels) - 1)), old_labels[2]]
    torch.manual_seed(5)
    old = MeglForImageClassification(
        MeglConfig.from_preset("megl-resnet-tiny", labels, **processor.text_config_kwargs())
    )
    with torch.no_grad():
        old.vision_model.classifier[1].bias += torch.arange(len(labels)) + 1.0
    old.save_pretrained(tmp_path / "old")
    processor.save_pretrained(tmp_path / "old")
    for seed in (0, 1):
        options = ("--model", tmp_path / "old", "--saliency_score", "logit", "--seed", seed)
        init(run, dataset, tmp_path / f"new{seed}", *options)
    new, other = (MeglForImageClassification.from_pretrained(tmp_path / f"new{seed}") for seed in (0, 1))
    assert list(new.config.id2label.values()) == old_labels and new.config.saliency_score == "logit"
    for name, value in new.state_dict().items():
        before = old.state_dict()[name]
        if ".classifier." not in name:
            assert torch.equal(value, before), name
            continue
        assert torch.equal(value[2], before[-1])
        fresh = [row for row in range(len(old_labels)) if row != 2]
        assert not any(torch.equal(value[row], before[row]) for row in fresh)
        if name.endswith("weight"):
            assert not torch.equal(value[fresh], other.state_dict()[name][fresh]), "drawn by the seed"
    again = MeglProcessor.from_pretrained(tmp_path / "new0")
    assert (again.rationale_prompt, again.max_rationale_length) == ("A {label}, as", 120)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    with pytest.raises(SystemExit, match=r"`--saliency_layer resnet.encoder.stages.0` has 48 channels, .* takes 96"):
        init(run, dataset, tmp_path / "wrong", *options[:2], "--saliency_layer", "resnet.encoder.stages.0")
    train(run, tmp_path / "new0", dataset, tmp_path / "trained")


def test_checkpoint_that_is_no_megl_model_is_one_clear_error(run, dataset, parts, tokenizer, tmp_path):
    parts("gpt2", tokenizer, **GPT2)
    for name in ("vision", "text"):
        model, output = tmp_path / name, tmp_path / "out"
        for call in (
            ("init_megl", "--model", model, "--dataset", dataset, "--output", output),
            ("evaluate_megl", "--model", model, "--dataset", dataset, "--output", output),
            ("explain", "--model", model, ROOT / "docs" / "example.png", "--output", output),
            ("train_megl", "--model_name_or_path", model, "--dataset_name", dataset, "--output_dir", output),
        ):
            with pytest.raises(SystemExit, match=f"{call[0]}: .*{name} is no MEGL model"):
                run(*call)
            assert not output.exists()


def test_subsets_of_the_explanations_are_nested_and_follow_from_the_ids(run, dataset):
    from megl.scripts.train_megl import keep_explanations

    train_split = load_dataset(str(dataset), split="train")
    kinds = {"visual_explanation": "", "textual_explanations": "0 rationales "}

    def kept(rows, kind):
        return {row["id"] for row in rows if row[kind]}

    given = {kind: kept(train_split, kind) for kind in kinds}
    assert 2 < len(given["visual_explanation"]) < len(given["textual_explanations"]) == SIZES["train"]
    order = {
        kind: sorted(given[kind], key=lambda key: hashlib.sha256(f"{salt}{key}".encode()).hexdigest())
        for kind, salt in kinds.items()
    }
    for share in (0, 0.3, 0.5, 0.9, 1.0):
        rows = list(keep_explanations(train_split, mask_share=share, rationale_share=1 - share))
        for kind, part in {"visual_explanation": share, "textual_explanations": 1 - share}.items():
            assert kept(rows, kind) == set(order[kind][: round(part * len(given[kind]))])
        assert [row["id"] for row in rows] == train_split["id"]
        assert [row["label"] for row in rows] == train_split["label"]
    # The order of the items makes no difference, and another seed draws others.
    shuffled = keep_explanations(train_split.shuffle(seed=1), 0.5)
    half = len(given["visual_explanation"]) // 2
    assert kept(shuffled, "visual_explanation") == set(order["visual_explanation"][:half])
    drawn = {
        seed: [
            kept(keep_explanations(train_split, share, share, seed), kind) for share in (0.3, 0.5) for kind in kinds
        ]
        for seed in (0, 1, 2)
    }
    assert drawn[0] != drawn[1] != drawn[2]
    for masks, texts, more_masks, more_texts in drawn.values():
        assert masks <= more_masks and texts < more_texts


def test_adapters_are_saved_with_the_name_of_their_language_model(
    run, dataset, parts, tokenizer, untrained, tmp_path, capsys
):
    init(run, dataset, tmp_path / "model", *parts("gpt2", tokenizer, **GPT2))
    train(run, tmp_path / "model", dataset, tmp_path / "trained", "--lora_rank", 2, "--learning_rate", 0.1)
    assert (tmp_path / "trained" / "adapter" / "training_settings.json").is_file()
    whole, joined = (
        MeglForImageClassification.from_pretrained(tmp_path / "trained" / name).state_dict()
        for name in ("", "adapter")
    )
    assert whole.keys() == joined.keys()
    for name, value in whole.items():
        assert torch.equal(joined[name], value), name
    run("explain", "--model", tmp_path / "trained" / "adapter", "docs/example.png", "--output", tmp_path / "explained")
    capsys.readouterr()
    train(run, untrained, dataset, tmp_path / "scratch", "--lora_rank", 2)
    assert "adapter is not written. Where the language model came from is not known" in capsys.readouterr().out
    assert not (tmp_path / "scratch" / "adapter").exists()


@pytest.mark.parametrize("rank", [0, -4])
def test_adapters_of_no_rank_are_one_clear_error(rank, run, dataset, untrained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train(run, untrained, dataset, tmp_path / "trained", "--lora_rank", rank)
    assert f"train_megl: `lora_rank` must be 1 or more, got {rank} (" in capsys.readouterr().err


def test_training_without_masks_has_no_visual_loss(run, dataset, untrained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train(run, untrained, dataset, tmp_path / "trained", "--mask_share", 30)
    assert "train_megl: `--mask_share` must lie in [0, 1], got 30.0 (" in capsys.readouterr().err
    options = ("--mask_share", 0, "--distribution_loss_weight", 0.1, "--logging_steps", 1)
    train(run, untrained, dataset, tmp_path / "trained", *options)
    assert json.loads((tmp_path / "trained" / "training_settings.json").read_text())["mask_share"] == 0
    logs = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"][0]
    assert "loss_text" in logs and logs.get("loss_visual", 0) == 0 and "loss_distribution" not in logs


def test_ablations_are_chosen_when_the_model_is_made(run, dataset, tmp_path):
    """The upper bound is shown the human masks by the evaluation: its rationales are those under the masks."""
    from megl.evaluation.predictions import partners

    path, output = tmp_path / "model", tmp_path / "evaluation"
    options = ("--rationale_gradient", "none", "--grounding_map", "visual_explanation")
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", path, *options)
    model, processor = MeglForImageClassification.from_pretrained(path), MeglProcessor.from_pretrained(path)
    assert (model.config.rationale_gradient, model.config.grounding_map) == ("none", "visual_explanation")
    with torch.no_grad():  # an untrained model would write the same whatever it sees
        model.grounding.position_projection.weight *= 100
        for parameter in model.language_model.parameters():
            parameter *= 5
    model.save_pretrained(path)
    run("evaluate_megl", "--model", path, "--dataset", dataset, "--output", output, "--resamples", 2)
    items = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]

    rows = load_dataset(str(dataset), split="test")[:]
    inputs = processor(images=rows["image"], visual_explanations=rows["visual_explanation"])
    assert inputs["has_visual_explanation"].all()
    prompts = processor.prompts([item["prediction"] for item in items])

    features = model(inputs["pixel_values"]).features

    def rationales(maps):
        evidence = model.ground(features, maps)
        return processor.batch_decode_rationales(model.generate_rationales(**prompts, evidence_tokens=evidence))

    own = torch.tensor([item["saliency"] for item in items])
    masks = resize_masks(inputs["visual_explanations"], own.shape[1:])
    assert [item["rationale"] for item in items] == rationales(masks) != rationales(own)
    others = partners([image.tobytes() for image in rows["image"]], seed=0)
    assert [item["shuffled_rationale"] for item in items] == rationales(masks[others]) != rationales(masks)


def test_outputs_are_never_overwritten(run, dataset, untrained, tmp_path):
    kept = untrained / "config.json"
    before = kept.read_bytes()
    for call in (
        ("init_megl", "--preset", "megl-resnet-tiny", "--dataset", dataset, "--output", untrained),
        ("evaluate_megl", "--model", untrained, "--dataset", dataset, "--output", untrained),
        ("explain", "--model", untrained, ROOT / "docs" / "example.png", "--output", untrained),
        ("train_megl", "--model_name_or_path", untrained, "--dataset_name", dataset, "--output_dir", untrained),
    ):
        with pytest.raises(SystemExit, match=f"{untrained}.* is not empty"):
            run(*call)
    assert kept.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["untrained"]


def test_another_label_set_is_one_clear_error(run, untrained, tmp_path):
    from dataset_builders import ActionMe, build_dataset

    build_dataset(ActionMe, "sample", tmp_path / "action_me", sample_sizes=SIZES)
    message = "The data set's classes are not the model's"
    with pytest.raises(SystemExit, match=message):
        train(run, untrained, tmp_path / "action_me", tmp_path / "trained")
    with pytest.raises(SystemExit, match=message):
        run("evaluate_megl", "--model", untrained, "--dataset", tmp_path / "action_me", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unreadable_picture_is_one_clear_error(run, untrained, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(SystemExit, match="broken.png cannot be read as an image"):
        run("explain", "--model", untrained, broken, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_bad_file_costs_no_other_picture(run, untrained, tmp_path, capsys):
    good, cut, output = tmp_path / "good.png", tmp_path / "cut.png", tmp_path / "out"
    Image.effect_noise((64, 64), 90).convert("RGB").save(good)
    cut.write_bytes(good.read_bytes()[:2000])  # its head can be read
    (tmp_path / "text.png").write_bytes(b"text")
    names = [tmp_path / "absent.png", good, cut, tmp_path / "text.png", good]
    with pytest.raises(SystemExit) as caught:
        run("explain", "--model", untrained, *names, "--output", output, "--batch_size", 1)
    first, second, third, last = str(caught.value).splitlines()
    assert "absent.png cannot be read as an image: [Errno 2]" in first and "text.png cannot be read" in third
    assert "cut.png cannot be read as an image: " in second and "does not decode (image file is truncated)" in second
    assert last == "explain: 3 of 5 files were left out, the others are done"
    records = [json.loads(line) for line in (output / "explanations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["picture"] for record in records] == ["0001_good.png", "0004_good.png"]
    assert records[0]["rationale"] == records[1]["rationale"]
    assert {path.name for path in output.iterdir()} == {"explanations.jsonl", "0001_good.png", "0004_good.png"}


def test_pictures_are_explained_as_by_the_model_whatever_the_batches(run, untrained, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.effect_noise((90, 60), 90).convert("RGB").save(path)
    model = MeglForImageClassification.from_pretrained(untrained).eval()
    processor = MeglProcessor.from_pretrained(untrained)
    expected = model.explain((Image.open(path) for path in paths), processor, target=1, batch_size=2)
    for batch_size in (1, 2, 8):
        output = tmp_path / str(batch_size)
        run("explain", "--model", untrained, *paths, "--output", output, "--batch_size", batch_size, "--target", 1)
        records = [json.loads(line) for line in (output / "explanations.jsonl").read_text().splitlines()]
        assert [(record["label"], record["rationale"]) for record in records] == [
            (answer["label"], answer["rationale"]) for answer in expected
        ]
        assert [record["score"] for record in records] == pytest.approx([answer["score"] for answer in expected])
    assert expected[0]["label"] == model.config.id2label[1]


def test_no_more_than_one_picture_is_decoded_at_a_time(run, untrained, tmp_path, monkeypatch):
    """And of a batch that the model explains, no more than the batch."""
    from megl.scripts import explain

    opened, alive = [], []

    def open_image(path):
        alive.append(sum(reference() is not None for reference in opened))
        image = Image.open(path)
        opened.append(weakref.ref(image))
        return image

    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(explain, "Image", SimpleNamespace(open=open_image, new=Image.new, Resampling=Image.Resampling))
    run("explain", "--model", untrained, *paths, "--output", tmp_path / "out")
    # First the heads alone. When a file is opened, the picture before it is there still, but nothing of the new one.
    assert len(alive) == 8 and max(alive) == 1

    model = MeglForImageClassification.from_pretrained(untrained).eval()
    processor = MeglProcessor.from_pretrained(untrained)
    taken, batches, load_images = [], [], MeglProcessor.load_images

    @staticmethod
    def watched(images, start=0):
        batches.append(len(taken))
        return load_images(images, start)

    monkeypatch.setattr(MeglProcessor, "load_images", watched)
    model.explain((taken.append(path) or Image.open(path) for path in paths), processor, batch_size=3)
    assert sorted(set(batches)) == [3, 4]


def test_an_untrained_language_model_explains_without_words(run, untrained, tmp_path, capsys):
    picture = ROOT / "docs" / "example.png"
    run("explain", "--model", untrained, picture, "--output", tmp_path / "0")
    assert json.loads((tmp_path / "0" / "explanations.jsonl").read_text(encoding="utf-8"))["rationale"]
    capsys.readouterr()
    (untrained / "training_settings.json").write_text('{"text_loss_weight": 0}')
    run("explain", "--model", untrained, picture, "--output", tmp_path / "1")
    assert json.loads((tmp_path / "1" / "explanations.jsonl").read_text(encoding="utf-8"))["rationale"] == ""
    assert "explain: rationales are left empty: the language model was not trained, as" in capsys.readouterr().err


def test_what_was_asked_for_is_said_with_the_explanation(run, untrained, tmp_path):
    from megl.scripts import explain

    model = MeglForImageClassification.from_pretrained(untrained).eval()
    processor = MeglProcessor.from_pretrained(untrained)
    picture, names = ROOT / "docs" / "example.png", model.config.id2label
    with torch.no_grad():
        probabilities = model(**processor(images=[Image.open(picture)])).logits.softmax(dim=-1)[0]
    best = probabilities.argmax().item()
    target, foil = (best + 1) % len(names), (best + 2) % len(names)
    for number, (options, words) in enumerate(
        [
            ({}, f"{names[best]} {probabilities[best]:.0%}"),
            ({"target": target}, f"why {names[target]} ({probabilities[target]:.0%})"),
            (
                {"target": target, "foil": foil},
                f"why {names[target]} ({probabilities[target]:.0%}) rather than {names[foil]}",
            ),
            ({"foil": foil}, f"why {names[best]} ({probabilities[best]:.0%}) rather than {names[foil]}"),
        ]
    ):
        output = tmp_path / str(number)
        arguments = [word for name, place in options.items() for word in (f"--{name}", names[place])]
        run("explain", "--model", untrained, picture, "--output", output, *arguments)
        record = json.loads((output / "explanations.jsonl").read_text(encoding="utf-8"))
        assert (record["prediction"], record["label"]) == (names[best], names[options.get("target", best)])
        assert [record[name] for name in ("target", "foil")] == [
            names[options[name]] if name in options else None for name in ("target", "foil")
        ]
        assert explain.headline(record) == words
    odd = {**record, "saliency": np.zeros((8, 8)), "rationale": "a\x1cb\x85c\u2029d\re \u5b57", "label": "f\u2029g"}
    assert explain.draw(Image.new("RGB", (320, 200)), odd).size == (664, 200 + 24 + 2 * 22)


def test_the_next_class_is_explained_beneath(run, untrained, tmp_path):
    picture = ROOT / "docs" / "example.png"
    for top_k in (1, 2):
        run("explain", "--model", untrained, picture, "--output", tmp_path / str(top_k), "--top_k", top_k)
    one, two = (json.loads((tmp_path / top_k / "explanations.jsonl").read_text(encoding="utf-8")) for top_k in "12")
    (other,) = two.pop("alternatives")
    assert two == one and other.keys() == {"label", "score", "coverage", "rationale"}
    run("explain", "--model", untrained, picture, "--output", tmp_path / "other", "--target", other["label"])
    asked = json.loads((tmp_path / "other" / "explanations.jsonl").read_text(encoding="utf-8"))
    assert {name: asked[name] for name in other} == pytest.approx(other, abs=1e-5)
    with Image.open(tmp_path / "1" / one["picture"]) as first, Image.open(tmp_path / "2" / two["picture"]) as both:
        assert both.width == first.width and both.height > 1.8 * first.height
        assert both.crop((0, 0, *first.size)).tobytes() == first.tobytes()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target", "7"], "explain: `--target` must be one of .* or its id, got '7'"),
        (["--target", "house", "--foil", "owl"], "explain: `--foil` must be one of"),
        (["--target", "house", "--foil", "house"], "explain: `foil` must be another class than `target`"),
        (["--top_k", "99"], "explain: `top_k` must be a number of classes, 1 to "),
    ],
)
def test_explain_refuses_what_is_no_class(run, untrained, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run("explain", "--model", untrained, ROOT / "docs" / "example.png", "--output", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_picture_too_large_to_decode_is_named(run, untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SystemExit, match="example.png cannot be read as an image: Image size .* exceeds limit"):
        run("explain", "--model", untrained, ROOT / "docs" / "example.png", "--output", tmp_path / "out")


def test_a_table_of_other_columns_goes_all_the_way(run, tmp_path, capsys):
    """Class names as texts, one of them unknown; one rationale a picture; no ids, no groups, no maps."""
    texts = ["it has a tail", "it has ears", "it barks", "it purrs"]
    rows = {
        "img": [Image.effect_noise((40, 40), 60).convert("RGB") for _ in range(4)],
        "kind": ["dog", "cat", "", "cat"],
        "caption": texts,
    }
    kinds = Features({"img": ImageFeature(), "kind": Value("string"), "caption": Value("string")})
    (tmp_path / "table").mkdir()
    for split in ("training", "test"):
        Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "table" / f"{split}.parquet")
    files = tmp_path / "table"
    (files / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: training\n    path: training.parquet\n"
        "  - split: test\n    path: test.parquet\n---\n"
    )
    names = ("--image_column", "img", "--label_column", "kind", "--textual_explanations_column", "caption")
    model, output = tmp_path / "model", tmp_path / "evaluation"
    preset = ("--preset", "megl-resnet-tiny", "--dataset", files)
    with pytest.raises(SystemExit, match="init_megl: `--train_split` must name a split of .*'training', 'test'"):
        run("init_megl", *preset, "--output", model, *names)
    run("init_megl", *preset, "--output", model, *names, "--train_split", "training")
    assert json.loads((model / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    train(run, model, files, tmp_path / "trained", *names, "--train_split", "training")
    run("evaluate_megl", "--model", tmp_path / "trained", "--dataset", files, "--output", output, *names)
    assert "1 of 4 items of split `test`" in capsys.readouterr().err
    items = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [(item["id"], item["label"], item["group"]) for item in items] == [
        ("0", "dog", None),
        ("1", "cat", None),
        ("3", "cat", None),
    ]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["rationale"]["n"] == 3 and metrics["saliency"] is None


def test_a_mistyped_split_names_those_that_are_there(run, dataset, untrained, tmp_path):
    splits = "Its splits are .'train', 'validation', 'test'."
    for option in ("--train_split", "--eval_split"):
        with pytest.raises(SystemExit, match=f"train_megl: `{option}` must name a split of .*, got 'tset'. {splits}"):
            train(run, untrained, dataset, tmp_path / "trained", option, "tset")
    with pytest.raises(SystemExit, match=f"evaluate_megl: `--split` must name a split of .*, got 'tset'. {splits}"):
        run(
            *("evaluate_megl", "--model", untrained, "--dataset", dataset, "--split", "tset"),
            *("--output", tmp_path / "out"),
        )


def test_files_are_utf_8_and_tables_printed_where_the_locale_is_ascii(run, tmp_path):
    """A class, a file and a rationale with letters that ASCII lacks."""
    rows = {
        "image": [Image.effect_noise((40, 40), 60).convert("RGB") for _ in range(4)],
        "label": ["Vögel", "猫"] * 2,
        "textual_explanations": ["die Flügel"] * 4,
        "group": ["früh"] * 4,
    }
    for split in ("train", "test"):
        kinds = Features({name: Value("string") for name in rows} | {"image": ImageFeature()})
        Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "table" / f"{split}.parquet")
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", tmp_path / "table", "--output", tmp_path / "model")
    Image.new("RGB", (32, 32)).save(tmp_path / "schön.png")
    calls = [
        ["evaluate_megl", "--model", "model", "--dataset", "table", "--output", "evaluation", "--update_card"],
        ["explain", "--model", "model", "schön.png", "--target", "猫", "--output", "explanations"],
    ]
    code = f"import os, sys\nfor name, *rest in {ascii(calls)}:\n"
    code += "    sys.argv = [name, *(os.fsdecode(one.encode()) for one in rest)]\n    __import__(name).main()"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy, fr\\xfch" in done.stdout
    record = json.loads((tmp_path / "explanations" / "explanations.jsonl").read_text(encoding="utf-8"))
    assert (record["image"], record["label"], record["picture"]) == ("schön.png", "猫", "0000_schön.png")
    assert (tmp_path / "explanations" / "0000_schön.png").is_file()
    for path in ("evaluation/index.html", "evaluation/model_card.md", "model/README.md"):
        assert "Vögel" in (tmp_path / path).read_text(encoding="utf-8"), path


def test_a_truth_value_of_resuming_may_be_written_as_yaml_has_it(tmp_path):
    from megl.scripts.train_megl import find_checkpoint

    for word in ("true", "True", "false", None):
        arguments = SimpleNamespace(output_dir=str(tmp_path / "new"), resume_from_checkpoint=word)
        assert find_checkpoint(arguments) is None
    arguments.resume_from_checkpoint = "tru"
    with pytest.raises(ValueError, match="tru"):
        find_checkpoint(arguments)
