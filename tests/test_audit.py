"""`megl audit`: conditions, the verdict at its borders, any classifier as it is, the page, and what mends it."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from conftest import LABELS
from datasets import Dataset
from looking_models import LookingConfig, LookingForImageClassification
from pages import Page
from PIL import Image
from tiny_vision import make_vision_model, random_images
from transformers import AutoModelForImageClassification, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from dataset_builders.build import features
from megl.evaluation.audit import BACKGROUND, OBJECT, UNKNOWN, audit, mending, telling, verdict
from megl.evaluation.classifier import Classifier, load_classifier, match_classes
from megl.evaluation.conditions import FIGURES, met, read_condition
from modeling_megl.processing_megl import make_image_processor


FAMILIES = ("vit", "resnet", "swin", "convnext", "efficientnet", "dinov2")
GREY = [0.5, 0.5, 0.5]


# ---- Conditions ----


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("background_gap>0.1", ("background_gap", ">", 0.1)),
        (" accuracy <= .5 ", ("accuracy", "<=", 0.5)),
        ("iou>=1", ("iou", ">=", 1.0)),
        ("background_gap<-0.25", ("background_gap", "<", -0.25)),
    ],
)
def test_a_condition_is_a_name_a_comparison_and_a_number(text, condition):
    assert read_condition(text) == condition


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy>", "accuracy=1", "accuracy>>1", "0.1<iou", "iou>nan", "iou>1e3"]
)
def test_another_condition_is_refused(text):
    with pytest.raises(
        ValueError, match=f"`--fail_if` must be NAME, one of < > <= >=, and a NUMBER, .*, got {text!r}"
    ):
        read_condition(text)


def test_an_unknown_figure_is_refused_before_any_work_with_the_names(run, capsys):
    with pytest.raises(SystemExit) as caught:
        run("audit", "nowhere", "nowhere", "--output", "out", "--fail_if", "accuracy<1", "gap>0.1")
    names = "accuracy, worst_group_accuracy, macro_f1, iou, energy, pointing_game, same_accuracy, same_agreement, "
    assert caught.value.code == 2 and list(FIGURES)[-1] == "background_gap"
    assert f"`--fail_if` must name one of {names}" in capsys.readouterr().err


def test_conditions_are_met_at_their_borders_and_where_nobody_can_tell():
    found = {"iou": {"value": 0.5}, "energy": {"value": None}}
    conditions = ["iou<0.5", "iou<=0.5", "iou>0.5", "iou>=0.5", "iou>0.4", "energy>0.9"]
    lines = [f"{text}: it is 0.500" for text in ("iou<=0.5", "iou>=0.5", "iou>0.4")]
    assert met(conditions, found) == [*lines, "energy>0.9: there is no energy"]


# ---- The verdict ----


def judged(gap, kept=(0.9, 1.0), alone=(0.2, 0.4), n=100):
    names = ("background_gap", "other_agreement", "background_alone_agreement")
    intervals = zip(names, (gap, kept, alone), strict=True)
    return verdict({name: {"value": sum(ends) / 2, "interval": list(ends), "n": n} for name, ends in intervals})


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (OBJECT, {"gap": (-0.1, 0.1)}),
        (UNKNOWN, {"gap": (-0.1, 0.11)}),
        (UNKNOWN, {"gap": (-0.11, 0.1)}),
        (UNKNOWN, {"gap": (0.1, 0.2)}),
        (BACKGROUND, {"gap": (0.11, 0.2)}),
        (BACKGROUND, {"gap": (-0.3, -0.11)}),
        (UNKNOWN, {"gap": (-0.3, -0.1)}),
        # The label follows the background where backgrounds do not go with classes.
        (BACKGROUND, {"gap": (0, 0), "kept": (0.3, 0.49), "alone": (0.51, 0.9)}),
        (UNKNOWN, {"gap": (0, 0), "kept": (0.3, 0.5), "alone": (0.51, 0.9)}),
        (UNKNOWN, {"gap": (0, 0), "kept": (0.3, 0.49), "alone": (0.5, 0.9)}),
        # Labels must stay with the object, and fewer of them without it.
        (OBJECT, {"gap": (0, 0), "kept": (2 / 3, 1)}),
        (UNKNOWN, {"gap": (0, 0), "kept": (0.66, 1)}),
        (OBJECT, {"gap": (0, 0), "kept": (0.9, 1), "alone": (0.5, 0.89)}),
        (UNKNOWN, {"gap": (0, 0), "kept": (0.9, 1), "alone": (0.5, 0.9)}),
        (UNKNOWN, {"gap": (0, 0), "kept": (1, 1), "alone": (1, 1)}),  # the same of every picture
        # Too few pictures.
        (OBJECT, {"gap": (0, 0), "n": 30}),
        (UNKNOWN, {"gap": (0, 0), "n": 29}),
        (UNKNOWN, {"gap": (0.8, 1), "n": 29}),
    ],
)
def test_the_rule_at_its_borders(expected, given):
    assert judged(**given)[0] == expected


def test_one_class_of_backgrounds_is_what_is_missing_and_not_masks():
    names = ("background_gap", "other_agreement", "background_alone_agreement")
    nothing, alone = {"value": None, "interval": None, "n": 0}, {"value": 0.5, "interval": [0.4, 0.6], "n": 40}
    decided, sentence = verdict(dict(zip(names, (nothing, nothing, alone), strict=True)))
    assert decided == UNKNOWN and "of 40 pictures with a mask, 0 have backgrounds of their own class and" in sentence
    assert "must have pictures with masks of two classes or more; `--backgrounds` names it" in sentence


def test_the_sentence_has_the_figures_or_the_reasons():
    assert judged((0.2, 0.4), (0.5, 0.7), (0.6, 0.8))[1] == (
        "The labels come from the background, wholly or in part: of 100 pictures, the background gap is 0.30 (0.20 to "
        "0.40), and of the labels 0.60 (0.50 to 0.70) stay on another class's background, 0.70 (0.60 to 0.80) without "
        "the object."
    )
    assert "as the gap may be larger than 0.1: of 100" in judged((0.0, 0.2))[1]
    both = "as fewer than two thirds of the labels may stay on another class's background, and as many labels may stay"
    assert both in judged((0, 0), (0.6, 0.8), (0.5, 0.7))[1]
    for n, words in ((0, "no picture has a mask"), (1, "one picture has a mask"), (29, "29 pictures have a mask")):
        nothing = {"value": None, "interval": None, "n": n}
        found = verdict(dict.fromkeys(("background_gap", "other_agreement", "background_alone_agreement"), nothing))
        assert found[0] == UNKNOWN and words in found[1] and "masks for 50 pictures" in found[1]


def test_the_pictures_that_tell_the_most():
    def item(score, prediction="a", label="a", **made):
        return {"label": label, "prediction": prediction, "score": score, "interventions": made}

    items = [
        item(0.9, other="a", object_alone="a", background_alone="b"),  # by its object
        item(0.5, other="b", object_alone="b", background_alone="a"),
        item(0.9, other="a", object_alone="a", background_alone="a"),
        item(0.8, other="b", object_alone="a", background_alone="b"),
        item(0.7, other="b", object_alone="b", background_alone="b"),
        item(0.6, "b", "b", other="a", object_alone="b", background_alone="b"),  # another class
        item(0.9, prediction="b", other="b", background_alone="a"),  # not named right
        {**item(0.9), "interventions": None},  # without an object
        item(0.9, object_alone="a", background_alone="b"),  # without another class's background
    ]
    (first, by_background, shown), (second, misled, others) = telling(items, 2)
    assert (first, by_background, shown) == ("Right on the background alone", 3, [1, 5])
    assert (second, misled, others) == ("Wrong as soon as the background is another class's", 4, [4, 3])
    assert [places for *_, places in telling(items, 9)] == [[1, 5, 2], [4, 3]]


# ---- Any classifier as it is ----


def save(model, folder, class_names=None, side=32):
    if class_names:
        model.config.id2label = dict(enumerate(class_names))
        model.config.label2id = {name: number for number, name in enumerate(class_names)}
    model.save_pretrained(folder)
    make_image_processor((side, side), GREY, GREY).save_pretrained(folder)
    return folder


def looking(where, folder, class_names=LABELS):
    return save(LookingForImageClassification(LookingConfig(num_labels=3)).look_at(where), folder, class_names)


def draw(count, shortcut, seed, masks=True, class_names=LABELS):
    """Pictures whose object in the middle has the class's colour, and the background too, or any."""
    rng = np.random.default_rng(seed)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    rows = []
    for number in range(count):
        label = number % 3
        picture = np.broadcast_to(colours[label if shortcut else rng.integers(3)], (32, 32, 3)).copy()
        picture[8:24, 8:24] = colours[label]
        picture = (picture + rng.normal(0, 10, picture.shape)).clip(0, 255).astype(np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 8:24] = 255
        images = {"image": picture, "visual_explanation": mask if masks else None}
        images = {name: None if values is None else Image.fromarray(values) for name, values in images.items()}
        texts = {"id": f"<i>{number}", "group": "<u>even" if number % 2 else None, "textual_explanations": []}
        rows.append({**texts, "label": label, **images})
    return Dataset.from_list(rows, features=features(class_names))


def write(folder, **options):
    """Background goes with the class in `train`, and not in `test`."""
    draw(36, True, 1, **options).to_parquet(folder / "train.parquet")
    draw(60, False, 2, **options).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


def audited(run, model, data, output, *options):
    """`audit.json`, and the exit status."""
    status = 0
    try:
        run("audit", model, data, "--output", output, "--resamples", 50, *options)
    except SystemExit as error:
        status = error.code
    return json.loads((output / "audit.json").read_text(encoding="utf-8")), status


@pytest.mark.parametrize("family", FAMILIES)
def test_its_class_scores_are_the_classifier_s_own(family, tmp_path):
    settings = {"initializer_range": 0.6} if family == "efficientnet" else {}  # whose scores would all be 0
    save(make_vision_model(family, **settings), tmp_path, LABELS)
    classifier, processor = load_classifier(str(tmp_path))
    own = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixel_values = random_images(4, 3, 32, 32)
    with torch.no_grad():
        expected, found = own(pixel_values).logits, classifier(pixel_values)
        assert torch.equal(classifier(pixel_values, output_saliency=False).logits, expected)
    torch.testing.assert_close(found.logits, expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 1e-3 and not found.logits.requires_grad
    assert found.saliency.min() >= 0 and found.saliency.amax(dim=(1, 2)).max() == 1
    metrics, items, interventions = audit(classifier, processor, draw(9, True, 0), resamples=5)
    assert metrics["interventions"]["background_gap_n"] == metrics["saliency"]["n"] == len(interventions.places) == 9
    picture = processor(images=[draw(9, True, 0)[4]["image"]])["pixel_values"]
    with torch.no_grad():
        scores = own(picture).logits[0].softmax(dim=-1)
    assert items[4]["prediction"] == LABELS[scores.argmax()] and items[4]["score"] == pytest.approx(
        scores.max().item()
    )


def test_a_megl_model_is_audited_with_its_own_map_and_temperature(make_model, processor, tmp_path):
    model = make_model("megl-vit-tiny", saliency_method="layer_cam", score_temperature=2.0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classifier, _ = load_classifier(str(tmp_path))
    pixel_values = random_images(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = model(pixel_values), classifier(pixel_values)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.saliency, expected.saliency)
    torch.testing.assert_close(classifier.probabilities(found.logits), (expected.logits / 2).softmax(dim=-1))
    other, _ = load_classifier(str(tmp_path), saliency_method="input_x_gradient")
    assert other.saliency_method == "input_x_gradient"


NAMELESS = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("own", "given", "found"),
    [
        (LABELS, LABELS[::-1], LABELS),
        (LABELS, LABELS[1:], LABELS),
        (None, LABELS, LABELS),
        (["LABEL_0", "LABEL_1", "LABEL_2"], LABELS, LABELS),
        (LABELS, ["0", "1", "2"], ["0", "1", "2"]),
        (None, ["10", "8", "9"], ["8", "9", "10"]),
        (LABELS, ["cat", "owl", "dog"], None),
        (None, LABELS[:2], None),
        (LABELS, ["0", "1"], None),
    ],
)
def test_classes_are_matched_by_name_or_else_by_their_order(own, given, found):
    model = make_vision_model("resnet")
    if own:
        model.config.id2label = dict(enumerate(own))
    classifier = Classifier(model)
    if found:
        said = match_classes(classifier, "m", given, "d")
        assert classifier.class_names == found
        pairs = ", ".join(f"{mine} is {theirs}" for mine, theirs in zip(own or NAMELESS, found, strict=True))
        by_name = set(given) <= set(own or [])
        assert said == (None if by_name else f"The classes of m and d are matched by their order: 3 ({pairs}).")
        return
    data, model = (", ".join(names) for names in (given, own or NAMELESS))
    message = rf"of d are not those of m: the data set has {len(given)} \({data}\), the model 3 \({model}\)"
    with pytest.raises(ValueError, match=message):
        match_classes(classifier, "m", given, "d")


def test_labels_are_compared_by_name_whatever_their_order(tmp_path):
    save(LookingForImageClassification(LookingConfig(num_labels=3)).look_at("middle"), tmp_path, LABELS)
    classifier, processor = load_classifier(str(tmp_path), trust_remote_code=True)
    for class_names, right in ((LABELS, 1.0), (LABELS[::-1], 1 / 3)):  # the first and last colours swap names
        metrics, items, _ = audit(classifier, processor, draw(9, True, 0, class_names=class_names), resamples=5)
        assert metrics["accuracy"] == metrics["interventions"]["accuracy"] == pytest.approx(right)
        assert items[0]["label"] == class_names[0] and items[0]["prediction"] == LABELS[0]


def broken(kind, folder):
    """A folder that is no image classifier to audit, and what is said of it."""
    if kind == "no head":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        save(ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)), folder)
        return "is no trained image classifier: it has no weights for classifier.bias, classifier.weight"
    if kind == "text":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        save(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), folder)
        return "must be an image classifier that AutoModelForImageClassification knows, got a model of type 'llama'"
    if kind == "size":
        save(make_vision_model("vit"), folder, LABELS, side=48)
        return r"does not give class `logits` for `pixel_values` alone of shape \(batch_size, 3, 48, 48\)"
    if kind == "method":
        save(make_vision_model("resnet"), folder, LABELS)
        return "A map of attentions needs a transformer"
    if kind == "code":
        looking("rim", folder)
        return "pass `--trust_remote_code`"
    save(make_vision_model("resnet"), folder, ["cat", "dog", "bee"])
    return (
        r"The classes of .* are not those of .*: the data set has 3 \(cat, polar bear, owl\), the model 3 \(cat, dog"
    )


@pytest.mark.parametrize("kind", ["no head", "text", "size", "method", "code", "classes"])
def test_what_cannot_be_audited_as_it_is_is_one_line(kind, run, own_cache, data, tmp_path):
    message = broken(kind, tmp_path / "model")
    options = ["--saliency_method", "attention_rollout"] if kind == "method" else []
    with pytest.raises(SystemExit, match=message) as caught:
        run("audit", tmp_path / "model", data, "--output", tmp_path / "out", *options)
    assert "\n" not in caught.value.code and not (tmp_path / "out").exists()


# ---- The command ----


def test_who_looks_at_the_rim_is_found_out_and_who_looks_at_the_object_acquitted(
    run, own_cache, modules_cache, data, tmp_path, capsys
):
    rim, middle = looking("rim", tmp_path / "rim"), looking("middle", tmp_path / "middle")
    conditions = ("--fail_if", "background_gap>0.1", "other_accuracy>=0.5", "pointing_game<0.1")
    options = ("--trust_remote_code", "--beside", middle, *conditions, "--examples", 2)
    found, status = audited(run, rim, data, tmp_path / "out", *options)
    first, second = found["models"]
    rim_alone, middle_alone = (one["figures"]["object_alone_agreement"]["value"] for one in found["models"])
    assert status == 3 and [line.split(":")[0] for line in found["failed"]] == [conditions[1], conditions[3]]
    assert (first["verdict"], second["verdict"]) == (BACKGROUND, OBJECT)
    assert (found["split"], found["backgrounds"]) == ("test", "train")
    gap = {"value": 1.0, "interval": [1.0, 1.0], "n": 60}
    assert first["figures"]["background_gap"] == gap and second["figures"]["background_gap"]["value"] == 0
    assert rim_alone < 0.5 < middle_alone and second["figures"]["accuracy"] == gap
    assert found["tests"]["background_gap"]["difference"] == -1 and found["tests"]["background_gap"]["p"] < 0.05
    assert first["n_by_group"] == {"<u>even": 30}

    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    text = "".join(page.texts)
    assert f"{rim}:\nbackground." in text and f"{middle}:\nobject." in text and "Failed: background_gap>0.1" in text
    assert re.search(r"<i>\d+, it is: cat", text) and not page.all("i") and not page.all("u")
    # As it is and six versions, the human map, and a map of each model: of two pictures of each kind.
    assert len(page.all("img")) == 2 * 2 * 10 and len(page.all("pre")) == 1
    assert all(image["src"].startswith("data:image/jpeg") for image in page.all("img"))
    said = capsys.readouterr().out
    assert said.count("background gap  ") == 2 and "failed: background_gap>0.1: it is 1.000" in said
    assert "What would mend it" in text
    audited(run, middle, data, tmp_path / "fine", "--trust_remote_code", "--examples", 0)
    assert "What would mend it" not in (tmp_path / "fine" / "index.html").read_text(encoding="utf-8")


def test_without_masks_there_is_the_accuracy_and_what_masks_would_tell(run, own_cache, modules_cache, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", masks=False)
    options = ("--trust_remote_code", "--fail_if", "background_gap>0.1")
    found, status = audited(run, looking("middle", tmp_path / "model"), tmp_path / "data", tmp_path / "out", *options)
    (model,) = found["models"]
    assert model["figures"]["accuracy"]["value"] == 1 and model["verdict"] == UNKNOWN
    assert {name for name, one in model["figures"].items() if one["value"] is not None} == {
        *("accuracy", "worst_group_accuracy", "macro_f1"),
    }
    assert "masks for 50 pictures" in model["sentence"] and found["backgrounds"] is None and found["mending"] == []
    assert status == 3 and found["failed"] == ["background_gap>0.1: there is no background_gap"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "masks for 50 pictures" in page and "<img" not in page


def test_names_of_classes_without_names_are_the_data_set_s(run, own_cache, modules_cache, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", class_names=["<b>", "b", "c"])
    model = looking("middle", tmp_path / "model", class_names=None)
    options = ("--trust_remote_code", "--examples", 3)
    found, status = audited(run, model, tmp_path / "data", tmp_path / "out", *options)
    assert status == 0 and found["failed"] == [] and found["models"][0]["figures"]["accuracy"]["value"] == 1
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))  # in which all that opens closes
    assert re.search(r"<i>\d+, it is: <b>", "".join(page.texts))


def test_splits_are_taken_as_they_are_there(run, own_cache, modules_cache, data, tmp_path):
    model = looking("rim", tmp_path / "model")
    common = ("--trust_remote_code", "--examples", 0)
    # Backgrounds of a balanced split, which have no gap: the label follows the background all the same.
    options = ("--split", "test", "--backgrounds", "test")
    found, _ = audited(run, model, data, tmp_path / "balanced", *common, *options)
    assert found["backgrounds"] == "test" and found["models"][0]["figures"]["background_gap"]["interval"][0] < 0.1
    assert found["models"][0]["verdict"] == BACKGROUND
    found, _ = audited(run, model, data, tmp_path / "few", *common, "--split", "train[:20]")
    assert (found["backgrounds"], found["models"][0]["verdict"]) == ("train", UNKNOWN)
    (tmp_path / "one").mkdir()
    draw(33, True, 1).to_parquet(tmp_path / "one" / "train.parquet")
    found, _ = audited(run, model, tmp_path / "one", tmp_path / "own", *common)
    assert (found["split"], found["backgrounds"], found["mending"]) == ("train", "train", [])
    with pytest.raises(SystemExit, match="has none of the splits test, validation, train: name one by `--split`"):
        (tmp_path / "odd").mkdir()
        Dataset.from_list(list(draw(3, True, 1))).to_parquet(tmp_path / "odd" / "x.parquet")
        (tmp_path / "odd" / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: own\n    path: x.parquet\n---\n"
        )
        run("audit", model, tmp_path / "odd", "--output", tmp_path / "none", *common)


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(SystemExit, match="new or empty folder"):
        run("audit", "nowhere", "nowhere", "--output", tmp_path / "out")


# ---- What mends it ----


def test_the_commands_that_mend_it_run(run, own_cache, modules_cache, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save(make_vision_model("resnet"), tmp_path / "my model", LABELS)
    options = ("--split", "test[:9]", "--examples", 0, "--backgrounds", "test", "--seed", 3)
    found, _ = audited(run, model, data, tmp_path / "out", *options, "--saliency_method", "hires_cam")
    init, train, again = (shlex.split(line) for line in found["mending"])
    for words, command in ((init, "init"), (train, "train"), (again, "audit")):
        assert words[:2] == ["megl", command]
    named = dict(zip(again[4::2], again[5::2], strict=True))
    assert named["--split"] == "test[:9]" and named["--backgrounds"] == "test" and named["--seed"] == "3"
    assert named["--saliency_method"] == "hires_cam" and "--seed" not in init + train
    run("init_megl", *init[2:])
    run("train_megl", *train[2:], "--max_steps", 1, "--disable_tqdm", "True", "--report_to", "none")
    run("audit", *again[2:], "--resamples", 5, "--examples", 0)
    mended = json.loads((tmp_path / "my model-mended-audit" / "audit.json").read_text(encoding="utf-8"))
    assert [one["model"] for one in mended["models"]] == [str(model), "my model-mended"]


def test_what_mends_it_depends_on_what_there_is(make_model, processor, data, tmp_path):
    make_model("megl-vit-tiny").save_pretrained(tmp_path / "megl")
    train = draw(9, True, 0)
    init, trained, _ = mending(str(tmp_path / "megl"), "d", "test", train, ["--label_column", "kind"])
    assert init == f"megl init --model {tmp_path / 'megl'} --dataset d --output megl-megl --label_column kind"
    assert "--recombine 1 --text_loss_weight 0 " in trained
    told = train.map(lambda row: {"textual_explanations": ["It is."]})
    assert "--text_loss_weight" not in mending(str(tmp_path / "megl"), "d", "test", told)[1]
    one_class = [None if row["label"] == 2 else row["visual_explanation"] for row in train]
    some = Dataset.from_dict({**train.to_dict(), "visual_explanation": one_class}, features=train.features)
    assert mending("m", "d", "test", some) == mending("m", "d", "test", None) == []
    assert mending("m", "d", "test", draw(1, True, 0, class_names=["cat"])) == []
