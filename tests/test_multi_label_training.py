"""From lists of labels to a trained multi-label model: processor, collator, tables, Trainer, commands."""

import numpy as np
import pytest
import torch
from conftest import LABELS
from datasets import Dataset, Features, List, Value
from PIL import Image
from two_shapes import make_dataset, make_rows

from dataset_builders.build import features, multi_label_features
from megl.tables import labelled_texts, open_table, problem_type
from modeling_megl import MeglForImageClassification
from modeling_megl.losses_megl import multi_label_loss
from modeling_megl.training_megl import MeglDataCollator, MeglTrainer, MeglTrainingArguments


MULTI_LABEL = {"problem_type": "multi_label_classification"}
pytestmark = pytest.mark.usefixtures("own_cache")


def mask(value, size=(32, 32)):
    return Image.new("L", size, value)


@pytest.fixture
def collate(processor):
    return MeglDataCollator(processor, dict(enumerate(LABELS)), multi_label=True)


@pytest.fixture
def model(make_model):
    return make_model("megl-resnet-tiny", **MULTI_LABEL)


def test_masks_of_each_class_are_resized_with_the_picture(processor):
    images = [Image.new("RGB", (64, 64)), Image.new("RGB", (16, 16))]
    half = Image.fromarray(np.repeat([[0, 255]], 64, axis=0).repeat(32, axis=1).astype(np.uint8))
    batch = processor(images=images, visual_explanations=[[None, half], None])
    assert batch["has_visual_explanation"].tolist() == [[False, True], [False, False]]
    assert batch["visual_explanations"].shape == (2, 2, 32, 32)
    assert batch["visual_explanations"][0, 1, 0].tolist() == pytest.approx([0.0] * 16 + [1.0] * 16, abs=0.2)
    assert not batch["visual_explanations"][[0, 1, 1], [0, 0, 1]].any()
    assert processor(images=images, visual_explanations=[[], []])["visual_explanations"].shape == (2, 1, 32, 32)
    with pytest.raises(ValueError, match=r"`visual_explanations\[1\]\[0\]` is 8 x 4, which is not the aspect ratio"):
        processor(images=images, visual_explanations=[[half], [mask(255, (8, 4))]])
    with pytest.raises(ValueError, match="must be lists of masks for all images, or for none"):
        processor(images=images, visual_explanations=[[half], mask(255)])


def test_the_class_of_the_drawn_rationale_comes_first(collate, processor):
    row = {
        "image": Image.new("RGB", (32, 32)),
        "label": [2, 0],
        "visual_explanation": [None, mask(255)],
        "textual_explanations": [["one of owl", "two of owl"], ["one of cat"]],
    }
    assert collate([{**row, "textual_explanations": ["of owl", "of cat"]}])["target"].tolist() == [[2, 0]]
    other = {"image": row["image"], "label": [], "visual_explanation": None, "textual_explanations": None}
    batch = collate([row, other])
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert batch["target"].tolist() == [[2, 0], [-1, -1]]
    assert batch["has_visual_explanation"].tolist() == [[False, True], [False, False]]
    assert batch["visual_explanations"][0].mean(dim=(1, 2)).tolist() == [0, 1]
    assert (batch["rationale_labels"][1] == -100).all()

    found = []
    for collate.epoch in range(6):
        batch = collate([row])
        ids = batch["rationale_labels"][0]
        (text,) = processor.batch_decode_rationales(ids[None])
        prompt = processor.tokenizer.decode(batch["input_ids"][0][ids == -100])
        first = batch["target"][0, 0].item()
        assert LABELS[first] in prompt and LABELS[first] in text
        # The mask of the cat goes with it.
        assert batch["has_visual_explanation"].tolist() == [[first == 0, first == 2]]
        found.append(text)
    assert sorted(found[:3]) == ["one of cat", "one of owl", "two of owl"] and found[3:] == found[:3]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": 1}, "must have a `label` that is a list of different classes in 0..2, got 1"),
        ({"label": [1, 1]}, r"must have a `label` that is a list of different classes in 0..2, got \[1, 1\]"),
        ({"label": [1, 3]}, r"in 0..2, got \[1, 3\]: a multi-label model takes nothing else"),
        (
            {"visual_explanation": [None]},
            "a list in `visual_explanation` with an entry for each of its 2 labels, got 1",
        ),
        (
            {"visual_explanation": mask(255)},
            "for each of its 2 labels, got a Image: put `None` where a label has none",
        ),
        (
            {"textual_explanations": [["a"]] * 3},
            "`textual_explanations` with an entry for each of its 2 labels, got 3",
        ),
    ],
)
def test_lists_that_do_not_belong_together_are_refused_with_the_item(collate, change, message):
    with pytest.raises(ValueError, match=f"Item '0' .*{message}"):
        collate([{**make_rows(1)[0], **change}])


# ---- Tables ----


@pytest.fixture
def write(tmp_path):
    """`write(dataset, split="train")` writes a split of a data set; its folder."""

    def write(dataset, split="train"):
        (tmp_path / "shapes" / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(tmp_path / "shapes" / "data" / f"{split}-00000-of-00001.parquet")
        return tmp_path / "shapes"

    return write


def test_a_table_with_several_labels_stays_as_it_is(write):
    dataset = make_dataset(6, masks="first", empty=[4])
    table = open_table(write(dataset), "train", multi_label=True)
    assert table.features == multi_label_features(LABELS)
    assert problem_type(table) == "multi_label_classification"
    columns = ["id", "label", "textual_explanations", "group"]
    assert table.select_columns(columns)[:] == dataset.select_columns(columns)[:]
    assert [one is not None for one in table[0]["visual_explanation"]] == [True, False]
    assert table[2]["visual_explanation"] is None
    assert labelled_texts(table)[1:3] == [("cat", "or another"), ("polar bear", "one of polar bear")]
    with pytest.raises(ValueError, match="column 'label' has several labels an item, which only"):
        open_table(write(dataset), "train")


def test_labels_alone_make_a_table_and_items_without_are_left_out(write, capsys):
    dataset = make_dataset(4).select_columns(["image", "label"])
    rows = [*dataset, {**dataset[0], "label": None}]
    dataset = Dataset.from_list(rows, features=dataset.features)
    table = open_table(write(dataset), "train", multi_label=True)
    assert len(table) == 4 and "1 of 5 items" in capsys.readouterr().err
    assert table.features == multi_label_features(LABELS)
    assert table[0]["visual_explanation"] is table[0]["textual_explanations"] is None
    assert labelled_texts(table) == []


def test_blank_texts_are_left_out(write):
    rows = make_rows(2)
    rows[0]["textual_explanations"] = [["a text", " ", None], None]
    dataset = Dataset.from_list(rows, features=multi_label_features(LABELS))
    table = open_table(write(dataset), "train", multi_label=True)
    assert table["textual_explanations"][0] == [["a text"], []]
    assert table["textual_explanations"][1] == rows[1]["textual_explanations"]


TEXTS = List(List(Value("string")))


@pytest.mark.parametrize(
    "name, values, feature, message",
    [
        ("label", [[0], [0, 2, 0]], None, "row 1 has a label twice in 'label'"),
        ("label", [[0], [2, None]], None, "row 1 has null among its labels in 'label'"),
        ("label", [[0], [1]], List(Value("int64")), "must hold lists of a `ClassLabel` .*, got int64"),
        ("textual_explanations", [[], [["a"]]], TEXTS, "row 1 has 1 entries in 'textual_explanations' for 2 labels"),
        ("textual_explanations", [["a"], []], List(Value("string")), "must hold a list of texts for each label"),
        ("visual_explanation", [None, mask(9)], None, "must hold lists of pictures .*, one for each label"),
    ],
)
def test_what_is_no_multi_label_table_is_refused(write, name, values, feature, message):
    rows = [{**row, name: value} for row, value in zip(make_rows(2), values, strict=True)]
    kinds = {**multi_label_features(LABELS), "visual_explanation": features(LABELS)["visual_explanation"]}
    if name != "visual_explanation":
        rows, kinds = [{**row, "visual_explanation": None} for row in rows], multi_label_features(LABELS)
    kinds = Features({**kinds, name: feature or kinds[name]})
    with pytest.raises(ValueError, match=message):
        open_table(write(Dataset.from_list(rows, features=kinds)), "train", multi_label=True)


# ---- Trainer ----


def test_a_step_has_the_losses_of_the_model(make_trainer, model, collate):
    rows = make_rows(4, masks="first", empty=[3])
    trainer = make_trainer(model=model, train=rows, evaluated=rows, distribution_loss_weight=0, max_steps=1)
    batch = collate(rows)
    model.train()
    torch.manual_seed(0)
    expected = model(**batch, loss_weights={"visual": 3.0})
    assert batch["has_visual_explanation"].sum() == 2
    torch.testing.assert_close(expected.loss_classification, multi_label_loss(expected.logits, batch["labels"]).mean())
    for name in ("classification", "visual", "text"):
        found = trainer._losses(expected, batch, ["classification", "visual", "text"])[name].sum()
        found = found / trainer._counts(batch)[name].sum()
        torch.testing.assert_close(found.float(), getattr(expected, f"loss_{name}"))
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected.loss)


def test_training_learns_labels_and_maps(make_trainer, model):
    rows = make_dataset(24, masks="first")
    options = {"max_steps": 60, "per_device_train_batch_size": 8, "text_loss_weight": 0.0}
    trainer = make_trainer(model=model, train=rows, evaluated=rows, distribution_loss_weight=0, **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_classification"] < 0.5 * before["eval_loss_classification"]
    assert after["eval_loss_visual"] < 0.7 * before["eval_loss_visual"]
    output = trainer.predict(rows)
    assert output.predictions.shape == output.label_ids.shape == (24, 3)
    assert ((output.predictions > 0) == (output.label_ids > 0.5)).mean() > 0.9


def test_accumulated_batches_are_one_large_batch(make_trainer, make_model):
    found = []
    for size, steps in ((6, 1), (2, 3)):
        model = make_model("megl-vit-tiny", **MULTI_LABEL)  # without batch statistics
        trainer = make_trainer(
            model=model,
            train=make_rows(6, masks="first", empty=[1]),
            evaluated=make_rows(1),
            max_steps=1,
            distribution_loss_weight=0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="sgd",
            max_grad_norm=1e9,
            data_seed=0,
        )
        trainer.train()
        found.append([entry for entry in trainer.state.log_history if "loss_visual" in entry][0])
    for name in ("loss", "grad_norm", "loss_classification", "loss_visual", "loss_text"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"recombine": 0.5}, "`recombine`"),
        ({"distribution_loss_weight": 0.1, "label_smoothing_factor": 0.1}, "`distribution_loss_weight` and `label_sm"),
        ({"class_weights": "balanced"}, "`class_weights`"),
        ({"frozen_layer": "resnet.embedder"}, "`frozen_layer`"),
    ],
)
def test_what_is_for_one_label_a_picture_is_refused(make_trainer, model, options, message):
    options = {"distribution_loss_weight": 0, **options}
    with pytest.raises(ValueError, match=f"A multi-label model cannot be trained with {message}.*: leave it out"):
        make_trainer(model=model, train=make_dataset(4), **options)


def test_one_class_and_lists_of_classes_are_not_mixed_up(make_trainer, model, processor, tmp_path):
    with pytest.raises(ValueError, match="`label` has a list of classes an item, .* says one class"):
        make_trainer(train=make_dataset(4))
    with pytest.raises(ValueError, match="`label` has one class an item, .* says a list of classes"):
        make_trainer(model=model, distribution_loss_weight=0)
    args = MeglTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    collator = MeglDataCollator(processor, model.config.id2label)
    with pytest.raises(ValueError, match="`data_collator` must have `multi_label=True`, .* got False"):
        MeglTrainer(model=model, args=args, data_collator=collator, train_dataset=make_rows(2))


# ---- Commands ----

SHORT = (
    *("--num_train_epochs", 1, "--per_device_train_batch_size", 2, "--report_to", "none", "--use_cpu", "True"),
    *("--disable_tqdm", "True", "--eval_strategy", "epoch", "--logging_steps", 1),
)


@pytest.fixture
def shapes(write):
    write(make_dataset(4, masks="first"), "train")
    write(make_dataset(3, empty=[2]), "validation")
    return write(make_dataset(3), "test")


def test_init_and_train_make_a_multi_label_model_of_lists_of_labels(shapes, run, tmp_path):
    made, trained = tmp_path / "made", tmp_path / "trained"
    run("init_megl", "--preset", "megl-resnet-tiny", "--dataset", shapes, "--output", made)
    data = ("--dataset_name", shapes, "--output_dir", trained)
    run("train_megl", "--model_name_or_path", made, *data, "--mask_share", 0.5, *SHORT)
    model = MeglForImageClassification.from_pretrained(trained)
    assert model.config.is_multi_label and list(model.config.id2label.values()) == LABELS
    state = (trained / "trainer_state.json").read_text(encoding="utf-8")
    assert all(name in state for name in ("eval_f1_micro", "loss_visual", "loss_text", "eval_loss_visual"))
    with pytest.raises(SystemExit, match="`--explanation_sheet` shows one class a picture"):
        data = ("--dataset_name", shapes, "--output_dir", tmp_path / "sheet")
        run("train_megl", "--model_name_or_path", made, *data, "--explanation_sheet", 2, *SHORT)


def test_a_preset_is_trained_on_lists_of_labels(shapes, run, tmp_path):
    data = ("--dataset_name", shapes, "--output_dir", tmp_path / "trained")
    run("train_megl", "--model_name_or_path", "megl-resnet-tiny", *data, *SHORT)
    assert MeglForImageClassification.from_pretrained(tmp_path / "trained").config.is_multi_label
