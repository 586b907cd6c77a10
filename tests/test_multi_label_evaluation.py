"""The evaluation of multi-label models: figures by hand, and the command."""

import json

import numpy as np
import pytest
import torch
from conftest import LABELS
from two_shapes import make_dataset, make_rows

from megl.evaluation.multi_label import average_precision, label_figures, label_items, label_scores, label_table
from megl.tables import open_table
from modeling_megl import MeglForImageClassification


pytestmark = pytest.mark.usefixtures("own_cache")
ONCE = np.ones((1, 4))


@pytest.mark.parametrize(
    "scores, shown, weights, expected",
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], ONCE, [5 / 6]),  # the example of scikit-learn's manual: 1 and 2/3
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], ONCE, [1 / 4]),  # of one score: found together
        ([0.9, 0.5, 0.5, 0.1], [0, 1, 0, 1], ONCE, [(1 / 3 + 2 / 4) / 2]),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0], ONCE, [1.0]),
        ([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0], ONCE, [np.nan]),
        # Images that are drawn several times, or not at all.
        ([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 0], np.array([[2, 1, 2, 9], [0, 1, 0, 1.0]]), [(1 / 3 + 2 * 3 / 5) / 3, 1.0]),
    ],
)
def test_average_precision_by_hand(scores, shown, weights, expected):
    found = average_precision(np.array(scores), np.array(shown, dtype=bool), weights)
    np.testing.assert_allclose(found, expected)


def item(labels, cat, owl, maps=None):
    return {"id": "0", "group": None, "labels": labels, "scores": {"cat": cat, "owl": owl}, "maps": maps or {}}


def scored(iou, energy):
    return {"iou": iou, "energy": energy, "pointing_game": 1.0}


ITEMS = [
    item(["cat", "owl"], 0.9, 0.4, {"cat": scored(0.5, 0.25)}),
    item(["cat"], 0.3, 0.6, {"cat": scored(0.1, 0.75)}),
    item([], 0.5, 0.1),
    item(["owl"], 0.2, 0.8, {"owl": scored(0.9, 1.0)}),
]


def test_figures_by_hand():
    found = label_scores(ITEMS)
    # Cats by score: right, wrong, right. Owls: right, wrong, right.
    assert found["average_precision_by_label"] == {name: pytest.approx((1 + 2 / 3) / 2) for name in ("cat", "owl")}
    assert found["mean_average_precision"] == pytest.approx(5 / 6)
    # Of two cats one is found, and one that is none; of owls likewise.
    assert found["f1_by_label"] == {"cat": 0.5, "owl": 0.5}
    assert found["f1_micro"] == 4 / 8 and found["f1_macro"] == 0.5
    assert found["iou_by_label"] == {"cat": pytest.approx(0.3), "owl": 0.9}
    assert found["energy_by_label"] == {"cat": 0.5, "owl": 1.0}
    assert found["saliency"] == {"iou": 0.5, "energy": pytest.approx(2 / 3), "pointing_game": 1.0, "n": 3}
    assert found["n"] == 4 and found["n_by_label"] == {"cat": 2, "owl": 2}
    assert found["n_masks_by_label"] == {"cat": 2, "owl": 1}
    lines = label_table(found).splitlines()
    assert lines[1].split() == ["cat", "2", "0.833", "0.500", "2", "0.300", "0.500"]


def test_macro_and_micro_differ_and_a_label_that_nothing_shows_has_no_figures():
    found = label_scores([item(["cat"], 0.9, 0.9), item(["cat"], 0.9, 0.1), item(["cat"], 0.1, 0.1)])
    assert found["f1_by_label"] == {"cat": 0.8, "owl": None} and found["f1_macro"] == 0.8
    assert found["f1_micro"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["average_precision_by_label"] == {"cat": 1.0, "owl": None}
    assert found["saliency"]["iou"] is None and label_table(found).splitlines()[2].split()[2:] == list("--0--")


def test_resamples_are_figures_of_the_images_drawn():
    weights = np.array([[2.0, 0, 0, 1], [0, 1, 1, 1]])
    found = label_figures(ITEMS, weights)
    drawn = [[ITEMS[0], ITEMS[0], ITEMS[3]], ITEMS[1:]]
    for row, items in enumerate(drawn):
        for path, value in label_figures(items, np.ones((1, 3))).items():
            np.testing.assert_allclose(found[path][row], value[0], err_msg=str(path))


# ---- Models and the command ----


@pytest.fixture
def folder(make_model, processor, tmp_path):
    make_model("megl-resnet-tiny", problem_type="multi_label_classification").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def shapes(folder):
    (folder / "shapes" / "data").mkdir(parents=True)
    make_dataset(5, masks="first", empty=[4]).to_parquet(folder / "shapes" / "data" / "test-00000-of-00001.parquet")
    return folder / "shapes"


def test_each_map_is_of_the_label_whose_mask_it_is_compared_with(folder, shapes, processor, load):
    model = MeglForImageClassification.from_pretrained(folder / "model").eval()
    items = label_items(model, processor, open_table(shapes, "test", multi_label=True), batch_size=2)
    assert [one["id"] for one in items] == list("01234")
    assert items[3]["labels"] == ["cat", "polar bear"] and items[4]["labels"] == []
    assert [list(one["maps"]) for one in items] == [["cat"], ["polar bear"], [], ["cat"], []]
    rows = make_rows(5, masks="first", empty=[4])
    output = model(processor(images=[rows[1]["image"]])["pixel_values"], target=torch.tensor([1]))
    assert list(items[1]["scores"].values()) == pytest.approx(output.logits[0].sigmoid().tolist())
    mask = np.asarray(rows[1]["visual_explanation"][0]) / 255
    expected = load("saliency").compute(predictions=[output.saliency[0].detach().numpy()], references=[mask])
    for name, value in items[1]["maps"]["polar bear"].items():
        assert value == pytest.approx(expected[name])


def test_evaluate_writes_figures_with_intervals_and_the_card(folder, shapes, run, capsys):
    options = ("--resamples", 50, "--batch_size", 2, "--update_card")
    run("evaluate_megl", "--model", folder / "model", "--dataset", shapes, "--output", folder / "found", *options)
    found = json.loads((folder / "found" / "metrics.json").read_text(encoding="utf-8"))
    lines = (folder / "found" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    assert {name: found[name] for name in label_scores(items)} == label_scores(items)
    assert found["n"] == 5 and found["saliency"]["n"] == 3
    low, high = found["intervals"]["mean_average_precision"]
    assert 0 <= low <= found["mean_average_precision"] <= high <= 1
    assert set(found["intervals"]["iou_by_label"]) == {"cat", "polar bear"}
    printed = capsys.readouterr().out
    assert "mean average precision" in printed and "polar bear" in printed
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"| Mean average precision | {found['mean_average_precision']:.3f} |" in card


@pytest.mark.parametrize(
    "options, message",
    [
        (("--interventions",), "cannot be evaluated with `--interventions`: leave it out"),
        (("--faithfulness", "--clip", "x"), "cannot be evaluated with `--clip` and `--faithfulness`"),
    ],
)
def test_what_is_of_one_label_a_picture_is_refused(folder, shapes, run, options, message):
    with pytest.raises(SystemExit, match=message):
        arguments = ("--dataset", shapes, "--output", folder / "found", *options)
        run("evaluate_megl", "--model", folder / "model", *arguments)


def test_a_data_set_of_the_other_kind_is_refused(folder, shapes, make_model, processor, run):
    make_model("megl-resnet-tiny").save_pretrained(folder / "single")
    processor.save_pretrained(folder / "single")
    with pytest.raises(SystemExit, match="`label` has a list of classes an item, where .* says one class"):
        run("evaluate_megl", "--model", folder / "single", "--dataset", shapes, "--output", folder / "found")
    assert LABELS == list(MeglForImageClassification.from_pretrained(folder / "single").config.id2label.values())
