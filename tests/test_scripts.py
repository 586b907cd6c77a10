"""The scripts, one after another as a user would run them, on a small sample."""

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

from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.losses_megl import resize_masks


ROOT = Path(__file__).resolve().parents[1]
SIZES = {"train": 16, "validation": 4, "test": 8}


@pytest.fixture()
def run(monkeypatch):
    """`run(script, *arguments)` runs a script's `main` in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        __import__(script).main()

    return run


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
    train(run, untrained, dataset, trained)
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


def test_subsets_of_the_masks_are_nested_and_follow_from_the_ids(run, dataset):
    from train_megl import keep_masks  # `run` has put the scripts on the path

    train_split = load_dataset(str(dataset), split="train")
    given = {row["id"] for row in train_split if row["visual_explanation"] is not None}
    assert 2 < len(given) < SIZES["train"]  # some have none anyway
    order = sorted(given, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    for share in (0, 0.3, 0.5, 0.9, 1.0):
        rows = list(keep_masks(train_split, share))
        kept = {row["id"] for row in rows if row["visual_explanation"] is not None}
        assert kept == set(order[: round(share * len(given))])
        assert [row["id"] for row in rows] == train_split["id"]
        assert [row["label"] for row in rows] == train_split["label"]
    # The order of the items makes no difference.
    shuffled = keep_masks(train_split.shuffle(seed=1), 0.5)
    assert {row["id"] for row in shuffled if row["visual_explanation"] is not None} == set(order[: len(order) // 2])


def test_training_without_masks_has_no_visual_loss(run, dataset, untrained, tmp_path):
    with pytest.raises(SystemExit, match=r"train_megl: `mask_share` must lie in \[0, 1\], got 30.0"):
        train(run, untrained, dataset, tmp_path / "trained", "--mask_share", 30)
    options = ("--mask_share", 0, "--distribution_loss_weight", 0.1, "--logging_steps", 1)
    train(run, untrained, dataset, tmp_path / "trained", *options)
    assert json.loads((tmp_path / "trained" / "training_settings.json").read_text())["mask_share"] == 0
    logs = json.loads((tmp_path / "trained" / "trainer_state.json").read_text())["log_history"][0]
    assert "loss_text" in logs and logs.get("loss_visual", 0) == 0 and "loss_distribution" not in logs


def test_ablations_are_chosen_when_the_model_is_made(run, dataset, tmp_path):
    """The upper bound is shown the human masks by the evaluation: its rationales are those under the masks."""
    from support.predictions import partners

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
        with pytest.raises(SystemExit, match="exists and is not"):
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
    assert "cut.png cannot be read as an image: image file is truncated" in second
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
    import explain  # `run` has put the scripts on the path

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
    def watched(images):
        batches.append(len(taken))
        return load_images(images)

    monkeypatch.setattr(MeglProcessor, "load_images", watched)
    model.explain((taken.append(path) or Image.open(path) for path in paths), processor, batch_size=3)
    assert sorted(set(batches)) == [3, 4]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target", "7"], "explain: `--target` must be one of .* or its id, got '7'"),
        (["--target", "house", "--foil", "owl"], "explain: `--foil` must be one of"),
        (["--target", "house", "--foil", "house"], "explain: `foil` must be another class than `target`"),
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


def test_failing_block_leaves_nothing_behind(run, tmp_path):
    from support.output_folder import new_folder

    with pytest.raises(RuntimeError, match="half-way"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
