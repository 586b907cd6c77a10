"""The LLaVA that MEGL is compared with: what it is taught, how its answer is read, and training it end to end."""

import json
import sys

import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dataset_builders import ActionMe, ObjectMe, build_dataset
from modeling_megl import PRESETS, MeglConfig
from modeling_megl.processing_megl import make_image_processor
from studies.llava import evaluate as evaluate_llava
from studies.llava import model as llava
from studies.llava import train as train_llava


LABELS = ["bear", "polar bear", "owl"]
ROWS = [
    {"id": "a", "label": 1, "textual_explanations": ["It is large and white.", "It walks on the ice at the left."]},
    {"id": "b", "label": 2, "textual_explanations": [" Two round eyes look out of many soft brown feathers. "]},
]
TINY = {"image_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "object_me"
    build_dataset(ObjectMe, "sample", folder, sample_sizes={"train": 8, "validation": 2, "test": 4})
    return folder


@pytest.fixture()
def rows():
    colours = ("white", "brown")
    return [{**row, "image": Image.new("RGB", (48, 32), colour)} for row, colour in zip(ROWS, colours, strict=True)]


@pytest.fixture()
def make(monkeypatch):
    """`make()`: a tiny random LLaVA with 16 visual tokens, and its processor."""
    monkeypatch.setitem(llava.VISION_PRESETS, "tiny", {**llava.VISION_PRESETS["clip-tiny"], **TINY})
    texts = [text for row in ROWS for text in row["textual_explanations"]]

    def make(vision="tiny", text="llama-tiny", seed=0):
        torch.manual_seed(seed)
        return llava.make_llava(vision, text, LABELS, texts)

    return make


@pytest.fixture()
def run(monkeypatch):
    """`run(script, *arguments)` runs a script's `main` in this process."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()

    return run


def train(run, dataset, output, *arguments):
    settings = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--report_to", "none", "--disable_tqdm", "True"]
    run(train_llava, "--dataset_name", dataset, "--output_dir", output, "--vision", "tiny", *settings, *arguments)


@pytest.mark.parametrize(
    "text, rationale, label",
    [
        (" It is large. Answer: owl", "It is large.", "owl"),
        ("It is large.Answer:Polar  Bear.", "It is large.", "polar bear"),
        ("Answer: bear, I think", "", "bear"),
        ("The answer: unclear. Answer: owl Answer: bear", "The answer: unclear. Answer: owl", "bear"),
        ("It is an owl", "It is an owl", None),
        ("It is. Answer: owls", "It is.", None),
        ("It is. Answer: an owl", "It is.", None),
        ("It is. Answer:", "It is.", None),
        ("", "", None),
    ],
)
def test_the_label_is_read_off_the_answer(text, rationale, label):
    assert llava.parse_answer(text, LABELS) == (rationale, label)


def test_loss_is_on_the_answer_alone(make, rows):
    model, processor = make()
    batch = llava.LlavaDataCollator(processor, model.config.id2label)(rows)
    tokenizer, image_token_id = processor.tokenizer, model.config.image_token_id
    answers = [
        " It is large and white. Answer: polar bear<eos>",
        " Two round eyes look out of many soft brown feathers. Answer: owl<eos>",
    ]
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths[0] < lengths[1] == batch["labels"].shape[1]
    for row, answer in enumerate(answers):
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        learnt = labels != -100
        assert tokenizer.decode(labels[learnt]) == answer
        assert torch.equal(ids[learnt], labels[learnt])
        # The picture's tokens and the prompt come first, the padding last, and neither is learnt.
        start = int(learnt.int().argmax())
        assert tokenizer.decode(ids[:start]) == 16 * "<image>" + " What is this? Because"
        assert (ids[:16] == image_token_id).all() and (ids[16:] != image_token_id).all()
        assert learnt[start : lengths[row]].all() and not learnt[lengths[row] :].any()
        assert batch["attention_mask"][row].tolist() == [1] * lengths[row] + [0] * (len(ids) - lengths[row])
    # By hand: the mean over the answers' tokens, each predicted from the position before it.
    output = model(**batch)
    logits, labels = output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, labels))


def test_rationales_take_turns(make, rows):
    model, processor = make()
    collator = llava.LlavaDataCollator(processor, model.config.id2label)
    texts = []
    for epoch in (0, 1, 2):
        collator.epoch = epoch
        labels = collator(rows[:1])["labels"][0]
        texts.append(processor.tokenizer.decode(labels[labels != -100]))
    assert texts[0] == texts[2]
    assert {text.split(" Answer:")[0].strip() for text in texts} == set(ROWS[0]["textual_explanations"])


def test_tiny_tower_has_the_shape_of_the_tiny_preset():
    assert llava.VISION_PRESETS["clip-tiny"]["hidden_size"] == PRESETS["megl-vit-tiny"]["vision_config"]["hidden_size"]
    large = llava.make_config(llava.VISION_PRESETS["clip-vit-l14-336"], {"model_type": "llama"}, 5)
    assert (large.image_seq_length, large.image_token_id, large.vision_feature_layer) == (576, 5, -2)


def test_what_is_learnt_is_what_is_written(make, rows, tmp_path):
    """Two pictures learnt by heart are answered as they were taught, before and after saving."""
    model, processor = make()
    set_seed(0)
    settings = {"max_steps": 60, "learning_rate": 1e-2, "report_to": "none", "disable_tqdm": True}
    arguments = TrainingArguments(tmp_path / "run", remove_unused_columns=False, save_strategy="no", **settings)
    collator = llava.LlavaDataCollator(processor, model.config.id2label)
    trainer = Trainer(model, arguments, collator, rows, processing_class=processor)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    images = [row["image"] for row in rows]
    texts = llava.write_answers(model.eval(), processor, images)
    expected = [(row["textual_explanations"][0].strip(), LABELS[row["label"]]) for row in ROWS]
    assert [llava.parse_answer(text, LABELS) for text in texts] == expected
    reloaded, reloaded_processor = evaluate_llava.load_llava(tmp_path / "saved")
    assert llava.write_answers(reloaded, reloaded_processor, images) == texts
    # One alone is answered as in the batch.
    assert llava.write_answers(model, processor, images[1:]) == texts[1:]


def test_from_data_to_metrics(run, make, dataset, tmp_path):
    trained, evaluation = tmp_path / "trained", tmp_path / "evaluation"
    train(run, dataset, trained, "--learning_rate", 0.01, "--save_strategy", "no")
    run(evaluate_llava, "--model", trained, "--dataset", dataset, "--output", evaluation, "--max_new_tokens", 5)

    assert json.loads((trained / "training_settings.json").read_text())["learning_rate"] == 0.01
    assert not list(trained.glob("*.bin"))
    model = LlavaForConditionalGeneration.from_pretrained(trained)
    names = load_dataset(str(dataset), split="test").features["label"].names
    assert list(model.config.id2label.values()) == names
    assert AutoProcessor.from_pretrained(trained).num_additional_image_tokens == 1

    metrics = json.loads((evaluation / "metrics.json").read_text())
    lines = [json.loads(line) for line in (evaluation / "predictions.jsonl").read_text().splitlines()]
    assert metrics["n"]["accuracy"] == len(lines) == 4
    # Five tokens are no room for an answer.
    assert metrics["accuracy"] == 0 and metrics["unanswered"] == 1 and metrics["macro_f1"] == 0
    assert [line["prediction"] for line in lines] == 4 * [None]
    assert metrics["rationale"]["n"] == 4 and "shuffled_place_accuracy" not in metrics["rationale"]
    assert metrics["saliency"] is None and metrics["intervals"]["unanswered"] == [1, 1]


def test_right_answers_are_counted(make, monkeypatch, dataset):
    model, processor = make()
    data = load_dataset(str(dataset), split="test")
    model.config.id2label = dict(enumerate(data.features["label"].names))
    texts = iter([f" {row['textual_explanations'][0]} Answer: {model.config.id2label[row['label']]}" for row in data])
    answers = [next(texts), next(texts), "it is a thing", " so. Answer: " + model.config.id2label[4]]
    monkeypatch.setattr(evaluate_llava, "write_answers", lambda *_: [answers.pop(0) for _ in range(2)])
    predictions = evaluate_llava.predict(model, processor, data, 2, 96)
    arguments = type("Arguments", (), {"model": "m", "dataset": "d", "split": "test", "resamples": 10, "seed": 0})
    metrics = evaluate_llava.compute_metrics(arguments, predictions, data, list(model.config.id2label.values()))
    expected = [True, True, False, data[3]["label"] == 4]
    assert metrics["accuracy"] == sum(expected) / 4 and metrics["unanswered"] == 1 / 4
    assert metrics["rationale"]["colour_accuracy"] == metrics["rationale"]["place_accuracy"] == 2 / 4
    assert predictions[0]["rationale"] == data[0]["textual_explanations"][0]


def test_pretrained_parts_are_taken_as_they_are(make, tokenizer, tmp_path):
    torch.manual_seed(1)
    tower = CLIPVisionModel(CLIPVisionConfig(**TINY, patch_size=8, num_attention_heads=2))
    tower.save_pretrained(tmp_path / "clip")
    make_image_processor((32, 32), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]).save_pretrained(tmp_path / "clip")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), tie_word_embeddings=True)
    language_model = LlamaForCausalLM(config)
    language_model.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")

    model, processor = make(str(tmp_path / "clip"), str(tmp_path / "text"))
    for name, parameter in tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], parameter), name
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[: len(tokenizer)], language_model.get_input_embeddings().weight)
    assert len(embeddings) == model.config.text_config.vocab_size == len(tokenizer) + 1
    assert model.lm_head.weight is embeddings and model.config.vision_feature_layer == -2
    assert model.config.image_token_id == len(tokenizer)
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    # And they work together, saved and loaded.
    model.eval().save_pretrained(tmp_path / "llava")
    inputs = llava.prompt_inputs(processor, [Image.new("L", (20, 30))])
    with torch.no_grad():
        expected = model(**inputs).logits
        again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")(**inputs).logits
    assert torch.equal(again, expected)


def test_another_tower_is_refused(make, tmp_path):
    MeglConfig.from_preset("megl-vit-tiny", ["a", "b"], vocab_size=64).vision_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`vision` must be one of .*CLIP model as LLaVA has it: .* is of type 'vit'"):
        make(str(tmp_path))


@pytest.mark.parametrize("argument", ["resume_from_checkpoint", "load_best_model_at_end"])
def test_what_the_trainer_would_get_wrong_is_refused(run, make, dataset, tmp_path, argument):
    arguments = [f"--{argument}", "True", "--eval_strategy", "steps", "--save_strategy", "steps"]
    with pytest.raises(SystemExit, match="train_llava: .*would leave a LLaVA's weights as they are"):
        train(run, dataset, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_one_clear_error(run, make, dataset, tmp_path, make_model):
    trained = tmp_path / "trained"
    train(run, dataset, trained, "--save_strategy", "no")
    with pytest.raises(SystemExit, match="train_llava: expected `output` to be a new or empty folder, got "):
        train(run, dataset, trained)
    make_model("megl-vit-tiny").save_pretrained(tmp_path / "megl")
    build_dataset(ActionMe, "sample", tmp_path / "action_me", sample_sizes={"train": 5, "validation": 1, "test": 1})
    for model, data, message in (
        (tmp_path / "megl", dataset, "must be a LLaVA .* got a model of type 'megl'"),
        (trained, tmp_path / "action_me", "The data set's classes are not the model's"),
    ):
        with pytest.raises(SystemExit, match=f"evaluate_llava: .*{message}"):
            run(evaluate_llava, "--model", model, "--dataset", data, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_answers_of_class_names_in_any_script():
    names = ["+", "C", "C++", "हिन्दी", "猫"]
    for name in names:
        assert llava.parse_answer(f"it is so Answer: {name}.", names) == ("it is so", name)
    for answer in ("", "C+", "हि", "?"):
        assert llava.parse_answer(f"it is so Answer: {answer}", names) == ("it is so", None)


def test_row_without_a_rationale_is_answered_by_the_label_alone(make):
    row = {**ROWS[0], "image": Image.new("RGB", (8, 8)), "textual_explanations": []}
    model, processor = make()
    batch = llava.LlavaDataCollator(processor, model.config.id2label)([row])
    written = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100], skip_special_tokens=True)
    assert llava.parse_answer(written, list(model.config.id2label.values())) == (
        "",
        model.config.id2label[row["label"]],
    )
