"""Intervals, tests, report and comparison of evaluations."""

import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import ModelCard, parse_eval_result_entries
from metric_modules import CLIP
from pages import Page
from PIL import Image

from dataset_builders import ObjectMe, build_dataset
from dataset_builders.build import features
from megl import terminal
from megl.evaluation import bootstrap, card, predictions, scores
from megl.evaluation.comparison import check_same_data, markdown, read_evaluation
from megl.evaluation.headlines import at, count_of, headlines
from megl.evaluation.metrics import load
from megl.pages import pictures, report
from megl.tables import human_map
from modeling_megl import MeglForImageClassification, MeglProcessor


ROOT = Path(__file__).resolve().parents[1]


def make_item(number, label="a", prediction="a", group=None, **per_item):
    names = {name.replace("__", "."): value for name, value in per_item.items()}
    return {"id": f"i{number}", "label": label, "prediction": prediction, "group": group, "per_item": names}


def random_items(count, seed=0):
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        label, prediction = rng.choice(["a", "b", "c"], size=2, p=[0.6, 0.3, 0.1]).tolist()
        iou = None if rng.random() < 0.2 else float(rng.random())
        item = make_item(number, label, prediction, str(rng.choice(["x", "y"])), saliency__iou=iou)
        lengths, counts = rng.integers(4, 9, size=2), rng.integers(1, 5, size=(4, 2)).cumsum(axis=1)
        items.append({**item, "bleu_statistics": [*lengths.tolist(), *counts.ravel().tolist()]})
    return items


# figures and resamples


def test_figures_by_hand():
    rows = [("a", "a", "x", 1), ("a", "b", "x", 0.5), ("b", "b", "y", None), ("c", "b", None, 0.1)]
    items = [make_item(i, *row[:3], saliency__iou=row[3]) for i, row in enumerate(rows)]
    found = bootstrap.point_figures(items)
    assert found["accuracy",] == 0.5 and found["worst_group_accuracy",] == 0.5
    assert (found["accuracy_by_group", "x"], found["accuracy_by_group", "y"]) == (0.5, 1)
    assert (found["iou_by_class", "a"], found["iou_by_class", "b"]) == (0.75, None)
    assert found["saliency", "iou"] == pytest.approx(1.6 / 3)
    assert found["explained_accuracy", "iou_filtered"] == 1 and found["explained_accuracy", "iou_overall"] == 0.5
    # a: 2 * 1 / (2 + 1), b: 2 * 1 / (1 + 3), c: 0
    assert found["macro_f1",] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_a_resample_is_the_figures_of_the_items_drawn():
    items = random_items(12)
    weights = np.concatenate([*bootstrap.draw_weights(12, 20, seed=1)])
    assert weights.shape == (20, 12) and np.all(weights.sum(axis=1) == 12) and len(np.unique(weights)) > 2
    found = bootstrap.figures(items, weights)
    for number, row in enumerate(weights.astype(int)):
        drawn = [item for item, times in zip(items, row, strict=True) for _ in range(times)]
        for path, value in bootstrap.point_figures(drawn).items():
            assert found[path][number] == pytest.approx(np.nan if value is None else value, nan_ok=True), path
    assert {("rationale", "bleu_4"), ("macro_f1",), ("accuracy_by_group", "x"), ("saliency", "iou")} <= set(found)


def test_resamples_are_seeded_and_need_no_memory_for_all_at_once(monkeypatch):
    items = random_items(9)
    expected = bootstrap.intervals(items, 50, seed=3)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 4 * 9)
    assert [len(block) for block in bootstrap.draw_weights(9, 50, seed=3)] == [4] * 12 + [2]
    assert bootstrap.intervals(items, 50, seed=3) == expected
    assert bootstrap.intervals(items, 50, seed=4) != expected


def test_interval_of_a_constant_has_no_width():
    items = [make_item(i, saliency__iou=0.25, saliency__nss=None) for i in range(7)]
    found = bootstrap.intervals(items, 100, seed=0)
    assert found["saliency", "iou"] == [0.25, 0.25] and found["accuracy",] == [1, 1]
    assert ("saliency", "nss") not in found  # defined nowhere


def test_a_minimum_over_groups_has_no_interval_and_no_test():
    """Of equal groups resamples have a lower one than the items, here in four of five."""
    items = [make_item(i, prediction="ab"[i % 2], group="xyz"[i // 20]) for i in range(60)]
    (resampled,) = bootstrap.resampled_figures([items], 500, seed=0)
    point = bootstrap.point_figures(items)["worst_group_accuracy",]
    assert point == 0.5 and np.mean(resampled["worst_group_accuracy",] < point) > 0.7
    assert ("worst_group_accuracy",) not in bootstrap.intervals(items, 50, seed=0)
    (tests,) = bootstrap.paired_tests([items, items], ["1", "2"], 50, seed=0)
    assert ("worst_group_accuracy",) not in tests and ("accuracy_by_group", "x") in tests


def test_interval_of_known_quantiles():
    """One right and one wrong: resampled accuracy is 0, 1/2, 1 with 1/4, 1/2, 1/4."""
    items = [make_item(0), make_item(1, prediction="b")]
    (found,) = bootstrap.resampled_figures([items], 4000, seed=0)
    shares = [np.mean(found["accuracy",] == value) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert bootstrap.intervals(items, 4000, seed=0)["accuracy",] == [0, 1]


def test_a_resample_with_nothing_right_has_no_explained_accuracy():
    """As the module `explained_accuracy` has it: 0, and not left out of the interval."""
    items = [make_item(0, "a", "a", saliency__iou=0.8), make_item(1, "a", "b", saliency__iou=0.6)]
    assert bootstrap.point_figures(items)["explained_accuracy", "iou_overall"] == 0.4
    assert bootstrap.intervals(items, 400, seed=0)["explained_accuracy", "iou_overall"] == pytest.approx([0, 0.8])


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(200):
        items = [make_item(i, prediction="a" if right else "b") for i, right in enumerate(rng.random(80) < 0.7)]
        low, high = bootstrap.intervals(items, 200, seed=0)["accuracy",]
        covered.append(low <= 0.7 <= high)
    assert 0.90 <= np.mean(covered) <= 0.98


# paired test


def test_paired_test_by_hand():
    first = [make_item(0, prediction="b"), make_item(1)]
    second = [make_item(0), make_item(1)]
    (found,) = bootstrap.paired_tests([first, second], ["first", "second"], 4000, seed=0)
    test = found["accuracy",]
    # The first item is drawn 0, 1, 2 times with 1/4, 1/2, 1/4; the difference is 0, 1/2, 1.
    assert test["difference"] == 0.5 and test["interval"] == [0, 1]
    assert test["p"] == pytest.approx(2 * 0.25, abs=0.05)
    (swapped,) = bootstrap.paired_tests([second, first], ["second", "first"], 4000, seed=0)
    assert swapped["accuracy",] == {"difference": -0.5, "interval": [-1, 0], "p": test["p"]}


def test_paired_test_of_equal_and_of_always_better_runs():
    items = random_items(30)
    better = [{**item, "per_item": {"saliency.iou": (item["per_item"]["saliency.iou"] or 0) + 0.1}} for item in items]
    equal, higher = bootstrap.paired_tests([items, items[::-1], better], ["1", "2", "3"], 99, seed=0)
    assert all(test == {"difference": 0, "interval": [0, 0], "p": 1} for test in map(rounded, equal.values()))
    defined = [item for item in items if item["per_item"]["saliency.iou"] is not None]
    found = bootstrap.paired_tests(
        [defined, [item for item in better if item["id"] in {x["id"] for x in defined}]], ["1", "2"], 99, seed=0
    )[0]["saliency", "iou"]
    assert found["difference"] == pytest.approx(0.1) and found["interval"] == pytest.approx([0.1, 0.1])
    assert found["p"] == 2 / 100  # no resample has the other sign
    assert higher["accuracy",]["p"] == 1


@pytest.mark.parametrize("count", [3, 4, 10, 30])
def test_equal_runs_of_few_scored_items_differ_as_often_as_is_said(count):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        scores = rng.normal(0.5, 0.2, (2, 100)) + rng.normal(0, 0.2, 100)
        scores[:, count:] = np.nan
        runs = [
            [make_item(i, saliency__iou=None if np.isnan(x) else float(x)) for i, x in enumerate(run)]
            for run in scores
        ]
        (tests,) = bootstrap.paired_tests(runs, ["a", "b"], 200, seed=0)
        found.append(tests["saliency", "iou"]["p"] < 0.05)
    assert np.mean(found) <= 0.07 and (count < 30 or np.mean(found) >= 0.03)


def test_few_items_that_all_say_the_same_are_no_proof():
    runs = [[make_item(i, prediction=prediction) for i in range(4)] for prediction in "ba"]
    (tests,) = bootstrap.paired_tests(runs, ["a", "b"], 2000, seed=0)
    assert tests["accuracy",]["difference"] == 1 and tests["accuracy",]["p"] == 2 * 0.5**4
    (tests,) = bootstrap.paired_tests([run[:1] for run in runs], ["a", "b"], 2000, seed=0)
    assert tests["accuracy",]["p"] == 1


def rounded(test):
    return {name: np.round(value, 9).tolist() for name, value in test.items()}


def test_paired_test_sees_what_intervals_of_each_run_do_not():
    rng = np.random.default_rng(0)
    ious = rng.random(60)
    runs = [[make_item(i, saliency__iou=float(iou + 0.02 * run)) for i, iou in enumerate(ious)] for run in range(2)]
    low, high = (bootstrap.intervals(run, 300, seed=0)["saliency", "iou"] for run in runs)
    assert low[1] > high[0]  # the intervals overlap
    assert bootstrap.paired_tests(runs, ["a", "b"], 300, seed=0)[0]["saliency", "iou"]["p"] < 0.05


@pytest.mark.parametrize(
    "other, message",
    [
        ([make_item(0)], "second: expected the items of the first run, got 1 that only one of them has, such as 'i1'"),
        ([make_item(0), make_item(1, label="b")], "second: the item 'i1' has the label 'b', but 'a' in the first run"),
        ([make_item(0), make_item(0)], "second: the item 'i0' occurs more than once"),
    ],
)
def test_paired_test_refuses_other_items(other, message):
    with pytest.raises(ValueError, match=message):
        bootstrap.paired_tests([[make_item(0), make_item(1)], other], ["first", "second"], 10, seed=0)


# calibration, confusion, cases


def test_calibration_by_hand():
    rows = [(0.95, True), (0.91, False), (0.9, True), (0.35, False), (0.0, False)]
    items = [{"score": score, "label": "a", "prediction": "a" if right else "b"} for score, right in rows]
    found = scores.calibration(items)
    counts = {f"{part['low']:.1f}": part["n"] for part in found["bins"] if part["n"]}
    assert counts == {"0.0": 1, "0.3": 1, "0.8": 1, "0.9": 2}  # 0.9 is the upper end of its bin
    assert found["bins"][9] == pytest.approx({"low": 0.9, "high": 1, "n": 2, "confidence": 0.93, "accuracy": 0.5})
    assert found["bins"][5]["accuracy"] is None
    assert found["ece"] == pytest.approx((2 * 0.43 + 0.1 + 0.35 + 0) / 5)
    perfect = [{"score": 1.0, "label": "a", "prediction": "a"}] * 3
    assert scores.calibration(perfect)["ece"] == 0


def test_confusion_and_label_and_map_by_hand():
    rows = [("a", "a", 1), ("a", "b", 1), ("b", "b", 0), ("b", "b", None)]
    items = [make_item(i, *row[:2], saliency__pointing_game=row[2]) for i, row in enumerate(rows)]
    assert scores.confusion(items, ["b", "a"]) == {"classes": ["b", "a"], "counts": [[2, 0], [1, 1]]}
    expected = {"label_right_map_right": 1, "label_right_map_wrong": 1}
    assert scores.label_and_map(items) == {**expected, "label_wrong_map_right": 1, "label_wrong_map_wrong": 0}
    assert scores.label_and_map([make_item(0)]) is None


def test_cases_by_hand():
    rows = [("a", 0.9, 1, 0.9), ("a", 0.1, 0, 0.9), ("b", 0.8, 1, 0.1), ("b", 0.0, 0, 0.0), ("a", 0.05, 0, 1.0)]
    items = [
        make_item(i, "a", prediction, saliency__iou=iou, saliency__pointing_game=peak, rationale__rouge_l=rouge)
        for i, (prediction, iou, peak, rouge) in enumerate(rows)
    ]
    found = {title: indices.tolist() for title, _, indices in report.cases(items)}
    assert found == {"Best": [0, 4], "Worst": [3, 2], "Label right, map wrong": [4, 1], "Label wrong, map right": [2]}
    without_maps = [make_item(i, rationale__rouge_l=i / 4) for i in range(4)]
    assert [title for title, _, _ in report.cases(without_maps)] == ["Best", "Worst"]


# the report of hand-made items

NASTY = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def nasty_report(tmp_path_factory):
    """The report of four items whose names and texts are HTML: two right, one of them with a map that is wrong."""
    rng = np.random.default_rng(0)
    labels = [NASTY, "b & c"]
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 255
    inside, outside = np.eye(2, dtype=np.float32)[0] * [[1], [0]], np.eye(2, dtype=np.float32)[1] * [[0], [1]]
    rows, items = [], []
    for number, (prediction, saliency) in enumerate(
        [(NASTY, inside), (NASTY, outside), ("b & c", inside), ("b & c", outside)]
    ):
        picture = Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8))
        texts = [f"reference {number} {NASTY}"]
        rows.append(
            {
                "id": f"id{number}<i>",
                "image": picture,
                "label": 0,
                "visual_explanation": Image.fromarray(mask),
                "textual_explanations": texts,
                "group": f"g<b>{number % 2}",
            }
        )
        told = {"rationale": f"rationale {number} {NASTY}", "shuffled_rationale": "", "score": 0.6 + number / 10}
        item = {key: rows[-1][key] for key in ("id", "group")}
        told |= {"per_item": {}, "label": NASTY, "prediction": prediction}
        items.append({**item, **told, "saliency": saliency})
    dataset = Dataset.from_list(rows, features=features(labels))
    saliency = scores.saliency_scores(items, range(4), dataset)
    metrics = {"model": f"model {NASTY}", "dataset": "data", "split": "test"}
    metrics |= scores.compute_scores(items, dataset, labels, saliency=saliency)
    metrics = scores.with_intervals(metrics, items, 20, 0)
    first, second = (tmp_path_factory.mktemp("report") / "index.html" for _ in range(2))
    for path in (first, second):
        report.write_report(path, dataset, items, metrics, count=3)
    assert first.read_bytes() == second.read_bytes()
    return first.read_text(encoding="utf-8"), metrics


def section(page, title):
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def cells(page, title):
    """The cells of the tables of a section, a list for each row."""
    rows = section(page, title).split("<tr>")[1:]
    return [[text for text in Page(f"<tr>{row.split('</tr>')[0]}</tr>").texts if text.strip()] for row in rows]


def test_report_shows_the_right_items_escaped(nasty_report):
    page, metrics = nasty_report
    assert "<script" not in page and "id0<i>" not in page and "g<b>" not in page and "b & c" not in page
    assert page.count("&lt;script&gt;") > 10
    shown = {
        title: [number for number in range(4) if f"rationale {number} " in section(page, title)]
        for title in ("Best", "Worst", "Label right, map wrong", "Label wrong, map right", "Examples")
    }
    assert shown == {
        "Best": [0, 1],
        "Worst": [2, 3],
        "Label right, map wrong": [1],
        "Label wrong, map right": [2],
        "Examples": [0, 2, 3],
    }
    assert page.count('class="item"') == 3 and page.count('class="item case"') == 6
    assert page.count('src="data:image/jpeg') == 3 * 9 and "http" not in page.split("</style>")[1]
    row = next(row for row in cells(page, "Figures") if row[0] == "map IoU")
    assert (row[1], row[-1]) == (f"{metrics['saliency']['iou']:.3f}", "4")
    pairs = metrics["label_and_map"]
    assert pairs == dict.fromkeys(pairs, 1)
    shown = Page(page)
    assert shown.all("script") == []
    assert {f"rationale 0 {NASTY}", f"reference 0 {NASTY}"} <= set(shown.texts)
    assert any(text.startswith("id0<i>, IoU 0.94, ROUGE-L ") for text in shown.texts)


def test_report_charts_hold_the_figures(nasty_report):
    page, metrics = nasty_report
    assert f"{metrics['calibration']['ece']:.3f}" in section(page, "Reliability")
    tips = re.findall("<title>(.*?)</title>", section(page, "Classes and groups"))
    assert len(tips) == 6  # one class and two groups, accuracy and IoU
    accuracy = metrics["accuracy_by_group"]["g<b>0"]
    assert any(html.unescape(tip).startswith(f"g<b>0: {accuracy:.3f} (") for tip in tips)
    assert cells(page, "Classes and groups") == [
        ["is \\ taken for", NASTY, "b & c"],
        [NASTY, "2", "2"],
        ["b & c", "0", "0"],
    ]
    shares = re.findall(r"var\(--pale\) (\d+%), var\(--paper\)\)\" title=\"(\d+%)\"", page)
    assert shares == [("50%", "50%")] * 2 + [("0%", "0%")] * 2
    tips = re.findall("<title>(.*?)</title>", section(page, "Label and map"))
    assert len(tips) == 3 + 4  # classes and groups, and images
    assert f"id0<i>: {NASTY} is right, IoU 0.94, probability 0.60" in map(html.unescape, tips)
    labels = [svg["aria-label"] for svg in Page(page).all("svg")]
    assert len(labels) == 4 + 2 + 1 and "Reliability curve" in labels


def test_confusion_of_many_classes_is_a_list_of_the_largest():
    classes = [f"c{number}" for number in range(30)]
    counts = (5 * np.eye(30, dtype=int)).tolist()
    counts[3][7], counts[4][8] = 2, 9
    _, rows = report._mistakes(classes, counts)
    assert rows == [["c4 taken for c8", "9", "14"], ["c3 taken for c7", "2", "7"]]
    assert report._mistakes(classes[:25], counts) is None  # a matrix shows it


# the scripts, on a small sample


SIZES = {"train": 16, "validation": 4, "test": 9}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A small data set, two untrained models of it, and their evaluation with a tiny random CLIP."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def evaluated(work, run, clip_workplace):  # noqa: F811
    if not (work / "evaluations").exists():
        build_dataset(ObjectMe, "sample", work / "object_me", sample_sizes=SIZES)
        for seed in (0, 1):
            common = ("--preset", "megl-resnet-tiny", "--dataset", work / "object_me", "--seed", seed)
            run("init_megl", *common, "--output", work / f"model{seed}")
        run(
            "evaluate_megl",
            *("--model", work / "model0", work / "model1", "--dataset", work / "object_me", "--split", "test"),
            *("--output", work / "evaluations", "--clip", clip_workplace / CLIP, "--resamples", 60),
            *("--batch_size", 4, "--dataset_id", "org/object-me", "--update_card"),
        )
    return work


def read(folder):
    return read_evaluation(folder)


def test_metrics_are_as_documented(evaluated):
    metrics, items = read(evaluated / "evaluations" / "1-model0")
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = text.split("## `metrics.json`")[1].split("##")[0].splitlines()
    documented = [key.strip(" `") for row in rows if row.startswith("| `") for key in row.split("|")[1].split(",")]
    assert sorted(documented) == sorted(metrics)
    lines = text.split("## `predictions.jsonl`")[1].split("##")[0]
    assert all(f"`{key}`" in lines for key in items[0]) and len(items) == SIZES["test"]


def paths(part, start=()):
    for name, value in part.items():
        yield from paths(value, (*start, name)) if isinstance(value, dict) else [((*start, name), value)]


def test_intervals_lie_at_their_figures(evaluated):
    metrics, items = read(evaluated / "evaluations" / "1-model0")
    found = dict(paths(metrics["intervals"]))
    figures = bootstrap.point_figures(items)
    assert len(found) > 25 and metrics["bootstrap"] == {"level": 0.95, "resamples": 60, "seed": 0}
    for path, (low, high) in found.items():
        value = at(metrics, path)
        assert value == pytest.approx(figures[path], abs=1e-6), path  # the figure is that of the saved items
        assert low <= high, path
    wanted = [("accuracy",), ("saliency", "iou"), ("rationale", "bleu_4"), ("rationale", "cider"), ("clip_score",)]
    assert {*wanted, ("grounding", "grounding"), ("explained_accuracy", "iou_overall")} <= set(found)
    counts = np.array(metrics["confusion"]["counts"])
    assert counts.sum() == 9 and counts.trace() / 9 == pytest.approx(metrics["accuracy"])
    assert metrics["n_by_class"] == Counter(item["label"] for item in items)


def test_clip_figures_are_those_of_the_modules(evaluated, clip_workplace):  # noqa: F811
    metrics, items = read(evaluated / "evaluations" / "2-model1")
    dataset = load_dataset(str(evaluated / "object_me"), split="test")
    common = {
        "predictions": [item["rationale"] for item in items],
        "images": list(dataset["image"]),
        "model_name_or_path": str(clip_workplace / CLIP),
    }
    direct = load("clip_score").compute(references=dataset["textual_explanations"], **common)
    assert [metrics[name] for name in ("clip_score", "ref_clip_score")] == pytest.approx(
        [direct[name] for name in ("clip_score", "ref_clip_score")]
    )
    assert metrics["clip_n_truncated"] == direct["n_truncated"]
    direct = load("grounding").compute(maps=[item["saliency"] for item in items], **common)
    assert metrics["grounding"] == pytest.approx(direct, abs=1e-3)  # the saved maps are rounded


def test_several_models_are_compared_as_saved_evaluations_are(evaluated, run, tmp_path, capsys):
    folder = evaluated / "evaluations"
    names = ["1-model0", "2-model1"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "comparison.json", "comparison.md"]
    compared = json.loads((folder / "comparison.json").read_text())
    run(
        *("compare_evaluations", folder / names[0], folder / names[1], "--output", tmp_path / "out"),
        *("--resamples", 60),
    )
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == compared
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text in capsys.readouterr().out and text == (folder / "comparison.md").read_text()

    first, second = (read(folder / name)[0] for name in names)
    test = compared["tests"]["2-model1"]["saliency.iou"]
    assert test["difference"] == pytest.approx(second["saliency"]["iou"] - first["saliency"]["iou"])
    assert compared["runs"]["1-model0"]["accuracy"]["interval"] == first["intervals"]["accuracy"]
    row = next(line for line in text.splitlines() if line.startswith("| map IoU"))
    assert f"{first['saliency']['iou']:.3f} (" in row and f"{second['saliency']['iou']:.3f}" in row


def test_markdown_marks_what_differs():
    def figures(value):
        return {"accuracy": {"value": value, "interval": [value - 0.1, value + 0.1], "n": round(1200 * value)}}

    test = {"difference": 0.25, "interval": [0.1, 0.4], "p": 0.01}
    comparison = {"baseline": "a|b", "bootstrap": {"level": 0.95, "resamples": 10}}
    comparison |= {"runs": {"a|b": figures(0.5), "c": figures(0.75)}, "tests": {"c": {"accuracy": test}}}
    runs = {name: ({"accuracy": 0.5}, []) for name in comparison["runs"]}
    lines = markdown(runs, comparison).splitlines()
    assert lines[:3] == [
        "| | a\\|b | c | images |",
        "|---|---|---|---|",
        "| accuracy | 0.500 (0.400, 0.600) | 0.750\\* (0.650, 0.850) | 600 to 900 |",
    ]
    assert lines[-1] == "| accuracy | +0.250 | +0.100 to +0.400 | 0.01 |"


def test_card_carries_the_results_in_both_forms(evaluated):
    metrics, _ = read(evaluated / "evaluations" / "1-model0")
    written = ModelCard.load(evaluated / "model0" / "README.md")
    old = {result.metric_type: result for result in written.data.eval_results}
    text = (evaluated / "model0" / ".eval_results" / "org--object-me.yaml").read_text(encoding="utf-8")
    new = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))}
    assert set(old) == set(new) >= {"accuracy", "f1", "iou", "bleu", "cider", "clip_score"}
    for name, value in (("accuracy", metrics["accuracy"]), ("clip_score", metrics["clip_score"])):
        assert old[name].metric_value == new[name].value == pytest.approx(value, abs=1e-4)
    assert {result.dataset_type for result in old.values()} == {entry.dataset_id for entry in new.values()}
    assert new["accuracy"].dataset_id == "org/object-me" and old["accuracy"].dataset_split == "test"
    low, high = metrics["intervals"]["accuracy"]
    assert new["accuracy"].notes == f"Accuracy, test split, 95% interval {low:.3f} to {high:.3f}"
    assert f"| Accuracy | {metrics['accuracy']:.3f} | {low:.3f} to {high:.3f} | 9 |" in written.content
    own = ModelCard.load(evaluated / "evaluations" / "1-model0" / "model_card.md")
    assert own.content == written.content
    assert written.data.license is None and written.data.datasets == ["org/object-me"]
    assert {"accuracy", "iou", "cider"} <= set(written.data.metrics)


def opened(work, name="model0"):
    """A model, its processor and the test split."""
    model = MeglForImageClassification.from_pretrained(work / name).eval()
    processor = MeglProcessor.from_pretrained(work / name)
    return model, processor, load_dataset(str(work / "object_me"), split="test")


def test_no_figure_depends_on_the_batches(evaluated, monkeypatch):
    """The control's map is another picture's (a batch of one once took its own); random maps are each its own draw."""
    model, processor, dataset = opened(evaluated)
    with torch.no_grad():  # an untrained model would write the same whatever it sees
        model.grounding.position_projection.weight *= 100
        for parameter in model.language_model.parameters():
            parameter *= 5
    ground, maps = model.ground, []

    def watched(features, saliency):
        maps.extend(saliency)
        return ground(features, saliency)

    monkeypatch.setattr(model, "ground", watched)
    for kind in ("saliency", "random"):
        model.config.grounding_map = kind
        seen = {}
        for batch_size in (1, 4, 9):
            maps.clear()
            items, parts = predictions.predict(model, processor, dataset, batch_size, 10, seed=3)
            assert parts == {}
            # The maps of the items, those of the control, and an empty one for each class that was predicted.
            own, others, empty = torch.stack(maps).split([9, 9, len({item["prediction"] for item in items})])
            pairs = predictions.partners([row["image"].tobytes() for row in dataset], seed=3)
            assert torch.allclose(others, own[pairs], atol=1e-6) and not empty.any()
            if kind == "random":
                cells = [torch.tensor(item["saliency"]).flatten().sort().values for item in items]
                assert torch.allclose(own.flatten(1).sort().values, torch.stack(cells), atol=1e-6)
                assert not torch.allclose(own[0], torch.tensor(items[0]["saliency"]))
            seen[batch_size] = [
                [item[name] for name in ("prediction", "rationale", "shuffled_rationale", "no_evidence_rationale")]
                for item in items
            ]
            assert len({tuple(texts) for texts in seen[batch_size]}) > 3
        assert seen[1] == seen[4] == seen[9]


def test_partners_are_other_pictures():
    alone = predictions.partners(list("abcdefgh"), seed=0)
    assert sorted(alone) == list(range(8)) and alone != predictions.partners(list("abcdefgh"), seed=1)
    place, steps = 0, 0
    while place != 0 or steps == 0:  # one cycle through all
        place, steps = alone[place], steps + 1
    assert steps == 8
    for seed in range(20):
        pictures = list("aaaabbccdefg") if seed % 2 else list("aabb")
        others = predictions.partners(pictures, seed)
        assert sorted(others) == list(range(len(pictures)))
        assert all(pictures[place] != pictures[other] for place, other in enumerate(others))
        # Three of four are the same: two of them cannot but be paired with one another, and none with itself.
        others = predictions.partners(list("aaab"), seed)
        assert sorted(others) == [0, 1, 2, 3] and all(place != other for place, other in enumerate(others))
        assert "aaab"[others[3]] == "a" and 3 in others[:3]
    assert predictions.partners(["a"], 0) == [0]


def test_label_alone_is_scored_as_the_rationales_are(evaluated):
    metrics, items = read(evaluated / "evaluations" / "1-model0")
    model, processor, dataset = opened(evaluated)
    texts = {item["prediction"]: item["no_evidence_rationale"] for item in items}
    assert all(item["no_evidence_rationale"] == texts[item["prediction"]] for item in items)
    names = sorted(texts)
    evidence = model.ground(torch.rand(len(names), sum(model.grounding.channels), 8, 8), torch.zeros(len(names), 8, 8))
    tokens = model.generate_rationales(**processor.prompts(names), evidence_tokens=evidence)
    assert processor.batch_decode_rationales(tokens) == [texts[name] for name in names]
    direct = load("rationale").compute(
        predictions=[item["no_evidence_rationale"] for item in items],
        references=dataset["textual_explanations"],
        phrases={"place": list(scores.PLACES)},
        meteor=False,
    )
    for name in ("bleu_4", "cider", "place_accuracy"):
        assert metrics["rationale"][f"no_evidence_{name}"] == pytest.approx(direct[name])
    assert "no_evidence_place_accuracy" in metrics["intervals"]["rationale"]


def test_what_rationales_tell_is_scored_by_the_modules(evaluated):
    metrics, items = read(evaluated / "evaluations" / "1-model0")
    dataset = load_dataset(str(evaluated / "object_me"), split="test")
    texts = [item["rationale"] for item in items]
    found = load("retrieval").compute(
        predictions=texts, candidates=dataset["textual_explanations"], similarity=load("rationale").similarities
    )
    assert metrics["retrieval"] == pytest.approx(found)
    right = [item["prediction"] == item["label"] for item in items]
    shuffled = [item["shuffled_rationale"] for item in items]
    found = load("self_consistency").compute(predictions=texts, swapped_map=shuffled, correct=right)
    assert metrics["self_consistency"] == pytest.approx(found) and found["background_stability"] is None
    found = metrics["simulatability"]
    assert (found["n_correct"], found["n_wrong"]) == (sum(right), 9 - sum(right))
    assert found["chance"] == max(Counter(item["prediction"] for item in items).values()) / 9
    shown = {path for path, _, _ in headlines(metrics)}
    for path in (("simulatability", "unnamed_accuracy"), ("retrieval", "recall_at_5")):
        assert path in shown and at(metrics["intervals"], path) and count_of(metrics, path) == 9
    assert count_of(metrics, ("simulatability", "accuracy_wrong")) == found["n_wrong"]
    assert count_of(metrics, ("self_consistency", "map_sensitivity")) == 9


def test_two_processes_write_what_one_does(work, evaluated, tmp_path):
    common = ["--model", work / "model0", "--dataset", work / "object_me", "--resamples", 20, "--batch_size", 2]
    common += ["--faithfulness", "mean", "--interventions", "train", "--max_new_tokens", 5]
    script = [ROOT / "scripts" / "evaluate_megl.py", *common, "--output"]
    starts = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, start in starts.items():
        command = [*map(str, [*start, *script, tmp_path / name])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("map IoU") == 1
    for file in ("metrics.json", "predictions.jsonl", "index.html", "model_card.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_masks_are_scored_as_all_at_once(evaluated, monkeypatch):
    """However many are scored together, by the same module."""
    metrics, items = read(evaluated / "evaluations" / "1-model0")
    dataset = load_dataset(str(evaluated / "object_me"), split="test")
    given = [place for place, mask in enumerate(dataset["visual_explanation"]) if mask is not None]
    assert len(given) > 1
    direct = load("saliency").compute(
        predictions=[items[place]["saliency"] for place in given],
        references=[human_map(dataset[place]) for place in given],
    )
    assert metrics["saliency"] == pytest.approx(direct, abs=1e-3)  # the saved maps are rounded
    sizes, compute = [], scores._score_maps
    monkeypatch.setattr(scores, "_score_maps", lambda pairs: sizes.append(len(pairs)) or compute(pairs))
    arrays = [{**item, "saliency": np.array(item["saliency"]), "per_item": {}} for item in items]
    for pixels, expected in ((1, [1] * len(given)), (2 * 128 * 128, [2] * (len(given) // 2) + [1] * (len(given) % 2))):
        sizes.clear()
        monkeypatch.setattr(scores, "PIXELS_AT_ONCE", pixels)
        assert scores.saliency_scores(arrays, range(9), dataset) == pytest.approx(direct)
        assert sizes == expected


# masks of any kind


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


INSIDE = np.zeros((40, 60), np.uint8)
INSIDE[4:16, 6:30] = 255


def of_palette(values):
    image = Image.fromarray((values > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def masked_rows(stored):
    """A data set of one picture with a mask, as it is stored, and its item."""
    row = {"id": "x", "image": encoded(Image.new("RGB", (60, 40))), "label": 0, "visual_explanation": stored}
    dataset = Dataset.from_list([row | {"textual_explanations": [], "group": None}], features=features(["a"]))
    saliency = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    return dataset, {**make_item(0), "saliency": saliency, "score": 0.5, "rationale": ""}


SAME_MASKS = {
    "grey": encoded(Image.fromarray(INSIDE)),
    "1 bit": encoded(Image.fromarray(INSIDE > 0)),
    "palette": encoded(of_palette(INSIDE)),
    "16 bits to 255": encoded(Image.fromarray(INSIDE.astype(np.uint16))),
    "16 bits": encoded(Image.fromarray(INSIDE.astype(np.uint16) * 257)),
    "32 bits": encoded(Image.fromarray(INSIDE.astype(np.int32)), "TIFF"),
    "floats": encoded(Image.fromarray(INSIDE / np.float32(255)), "TIFF"),
    "RGB": encoded(Image.fromarray(INSIDE).convert("RGB")),
    "RGBA": encoded(Image.fromarray(INSIDE).convert("RGBA")),
    "LA": encoded(Image.fromarray(INSIDE).convert("LA")),
}


@pytest.mark.parametrize("kind", SAME_MASKS)
def test_a_mask_is_scored_as_training_reads_it_whatever_it_is_stored_as(kind):
    dataset, item = masked_rows(SAME_MASKS[kind])
    direct = load("saliency").compute(predictions=[item["saliency"]], references=[INSIDE / 255])
    assert direct["n"] == 1 and scores.saliency_scores([item], [0], dataset) == pytest.approx(direct)
    expected = pictures.overlay(Image.new("RGB", (60, 40)), INSIDE / 255)
    shown = pictures.row_pictures(dataset[0], item)
    assert shown[1][1] == "human map" and shown[1][0].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "stored, message",
    [
        (
            encoded(Image.fromarray(INSIDE // 255)),
            "must be an integer visual explanation in 0..255, got one with 0 and 1",
        ),
        (
            encoded(Image.fromarray((INSIDE // 255).astype(np.uint16))),
            "must be an integer .* in 0..255, got one with 0 and 1 only",
        ),
        (
            encoded(Image.fromarray((INSIDE // 255).astype(np.int32)), "TIFF"),
            "must be an integer .* in 0..255, got one with 0 and 1 only",
        ),
        (
            encoded(Image.fromarray(INSIDE.astype(np.float32)), "TIFF"),
            "of mode F must have values in 0..1, got 0 to 255",
        ),
        (
            encoded(Image.fromarray(INSIDE[:, :40])),
            "is 40 x 40, which is not the aspect ratio of its image of 60 x 40",
        ),
        (
            encoded(Image.fromarray(INSIDE), "GIF", save_all=True, append_images=[Image.fromarray(INSIDE[::-1])]),
            "must be a still picture, got 2 frames",
        ),
    ],
)
def test_a_mask_that_training_refuses_is_not_scored(stored, message):
    dataset, item = masked_rows(stored)
    with pytest.raises(ValueError, match=f"^item 'x': its visual explanation {message}"):
        scores.saliency_scores([item], [0], dataset)
    with pytest.raises(ValueError, match=f"^item 'x': its visual explanation {message}"):
        pictures.shown_item(dataset[0], {**item, "score": 0.5})


def test_a_mask_has_the_limit_of_a_picture(monkeypatch):
    dataset, item = masked_rows(encoded(Image.new("1", (90, 60))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(
            ValueError,
            match="^item 'x': its visual explanation must be a mask of at most 3,000 pixels, got 90 x 60: store",
        ),
    ):
        scores.saliency_scores([item], [0], dataset)


def test_large_masks_are_averaged_down_and_others_stay(monkeypatch):
    dataset, item = masked_rows(SAME_MASKS["grey"])
    monkeypatch.setattr(scores, "MOST_PIXELS", 2400)
    full = scores.saliency_scores([item], [0], dataset)
    assert full["iou"] == load("saliency").compute(predictions=[item["saliency"]], references=[INSIDE / 255])["iou"]
    monkeypatch.setattr(scores, "MOST_PIXELS", 2399)
    halved = INSIDE.reshape(20, 2, 30, 2).mean(axis=(1, 3)) / 255
    direct = load("saliency").compute(predictions=[item["saliency"]], references=[halved])
    assert scores.saliency_scores([item], [0], dataset) == pytest.approx(direct) and direct["mae"] != full["mae"]
    ones = scores._at_most(7, np.ones((7, 11), np.float32))
    assert ones.shape == (2, 3) and ones.max() == 1


def test_a_refused_mask_is_one_line(evaluated, run, tmp_path):
    _, _, dataset = opened(evaluated)
    rows = list(dataset.cast_column("visual_explanation", ImageFeature(decode=False)))
    rows[4]["visual_explanation"] = encoded(Image.new("L", (40, 90)))
    (tmp_path / "table").mkdir()
    Dataset.from_list(rows, features=dataset.features).to_parquet(tmp_path / "table" / "test.parquet")
    common = ("--model", evaluated / "model0", "--max_new_tokens", 1, "--output", tmp_path / "out")
    code = refused(run, "evaluate_megl", *common, "--dataset", tmp_path / "table")
    assert code.startswith(
        f"evaluate_megl: item {rows[4]['id']!r}: its visual explanation is 40 x 90, which is not the"
    )
    assert "\n" not in code and not (tmp_path / "out").exists()


# groups, untrained language models, fonts


def test_groups_of_any_name_are_counted():
    items = [make_item(i, group=group) | {"score": 1} for i, group in enumerate(["accuracy", "accuracy", "x", None])]
    found = scores.classification_scores(items)
    assert found["n"] == {"x": 1, "accuracy": 4} and found["n_by_group"] == {"accuracy": 2, "x": 1}
    assert [(name, count_of(found, path)) for path, name, _ in headlines(found)][:3] == [
        ("accuracy", 4),
        ("accuracy, accuracy", 2),
        ("accuracy, x", 1),
    ]


def test_a_split_with_blank_groups_and_names_in_any_script(evaluated, run, tmp_path):
    _, _, dataset = opened(evaluated)
    groups = ["", "accuracy", None, "猫", "accuracy", "", "猫", "accuracy", ""]
    rows = [{**row, "group": group, "id": f"ö{row['id']}"} for row, group in zip(dataset, groups, strict=True)]
    (tmp_path / "table").mkdir()
    Dataset.from_list(rows, features=dataset.features).to_parquet(tmp_path / "table" / "test.parquet")
    common = ("--model", evaluated / "model0", "--resamples", 5, "--max_new_tokens", 1)
    run("evaluate_megl", *common, "--dataset", tmp_path / "table", "--output", tmp_path / "out")
    metrics, items = read(tmp_path / "out")
    assert metrics["n_by_group"] == {"accuracy": 3, "猫": 2} and metrics["n"] == {"accuracy": 9, "猫": 2}
    assert set(metrics["accuracy_by_group"]) == {"accuracy", "猫"} and items[0]["group"] is None
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert f'"id": "ö{dataset[3]["id"]}", "group": "猫"' in lines[3]


def test_the_report_counts_the_maps_that_it_shows():
    rows = [("a", "x", 0.5), ("a", "x", None), ("a", "y", None), ("b", None, 0.25), ("b", "x", None)]
    items = [make_item(i, label, "a", group, saliency__iou=iou) for i, (label, group, iou) in enumerate(rows)]
    items = [item | {"score": 1} for item in items]
    metrics = {**scores.classification_scores(items), "confusion": scores.confusion(items, ["a", "b"])}
    charted = {
        title: re.findall(r"n = (\d+)", chart)
        for title, chart in report._class_charts(items, {**metrics, "intervals": {}})
    }
    assert {title: sorted(map(int, counts)) for title, counts in charted.items()} == {
        "Accuracy by class": [2, 3],
        "IoU of the maps by class": [1, 1],
        "Accuracy by group": [1, 3],
        "IoU of the maps by group": [0, 1],
    }


def test_rationales_of_an_untrained_language_model_are_not_scored(
    evaluated,
    run,
    own_model,
    tmp_path,
    capsys,
    clip_workplace,  # noqa: F811
):
    (own_model / "training_settings.json").write_text('{"text_loss_weight": 0.0}')
    metrics = evaluate_own(run, evaluated, own_model, tmp_path / "out")
    words = "rationales are not scored: the language model was not trained, as `text_loss_weight` is 0 in training_set"
    table = capsys.readouterr().out
    assert table.count(words) == 1 and "rationale BLEU" not in table and "map IoU" in table
    assert (metrics["rationale"]["n"], metrics["rationale"]["rouge_l"], metrics["saliency"]["n"] > 0) == (
        0,
        None,
        True,
    )
    _, items = read(tmp_path / "out")
    assert {item["rationale"] for item in items} == {""} and "shuffled_rationale" not in items[0]
    written = ModelCard.load(tmp_path / "out" / "model_card.md")
    assert not {"bleu", "rouge", "cider", "place_accuracy"} & {one.metric_type for one in written.data.eval_results}
    for text in (written.content, (tmp_path / "out" / "index.html").read_text(encoding="utf-8")):
        assert text.lower().count(words) == 1
    models = ("--model", evaluated / "model0", own_model, "--dataset", evaluated / "object_me", "--max_new_tokens", 2)
    run("evaluate_megl", *models, "--resamples", 5, "--output", tmp_path / "both", "--clip", clip_workplace / CLIP)
    rows = (tmp_path / "both" / "comparison.md").read_text(encoding="utf-8").splitlines()
    row = next(row for row in rows if row.startswith("| rationale ROUGE-L |"))
    assert row.endswith(" | - | 9 |") and not row.startswith("| rationale ROUGE-L | - ")
    assert read(tmp_path / "both" / "2-own")[0]["clip_score"] is None
    (own_model / "training_settings.json").write_text('{"text_loss_weight": 0.5}')
    assert evaluate_own(run, evaluated, own_model, tmp_path / "taught")["rationale"]["n"] == 9


def test_pictures_are_lettered_by_an_installed_font(monkeypatch):
    asked = []

    def installed(name, size):
        asked.append((name, size))
        if name != "Arial.ttf":
            raise OSError("cannot open resource")
        return "the font"

    pictures.font.cache_clear()
    monkeypatch.setattr(pictures.ImageFont, "truetype", installed)
    assert pictures.font(17) == "the font" and asked[0] == ("DejaVuSans.ttf", 17)
    monkeypatch.setattr(pictures, "FONTS", ("absent.ttf",))
    pictures.font.cache_clear()
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "FONTS", ("no such font.ttf",))
    own = pictures.font(17)
    assert own.getname() == pictures.ImageFont.load_default(17).getname()
    pictures.font.cache_clear()


@pytest.mark.parametrize("text", ["it has " * 40, "字" * 90, "WM" * 50])
def test_texts_are_wrapped_to_their_width(text):
    lines = pictures.wrapped(text, 300, 15)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert 200 < max(pictures.font(15).getlength(line) for line in lines) <= 300
    assert pictures.wrapped("", 300, 15) == [] and pictures.wrapped("a\u2029b\x1cc", 300, 15) == ["a b c"]


def write_table(folder, dataset, masks, rationales):
    """The test split with the visual explanations and the rationales of these items alone."""
    rows = [
        {
            **row,
            "visual_explanation": row["visual_explanation"] if place in masks else None,
            "textual_explanations": row["textual_explanations"] if place in rationales else [],
        }
        for place, row in enumerate(dataset)
    ]
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "test-00000-of-00001.parquet"
    Dataset.from_list(rows, features=dataset.features).to_parquet(path)
    return folder


@pytest.mark.parametrize(
    "masks, rationales", [(0, 0), (9, 0), (0, 9), (4, 2)], ids=["labels", "masks", "rationales", "some"]
)
def test_what_there_is_is_scored_and_says_of_how_many(evaluated, run, tmp_path, capsys, masks, rationales):
    _, _, dataset = opened(evaluated)
    given = [place for place, mask in enumerate(dataset["visual_explanation"]) if mask is not None]
    masks, rationales = given[:masks], range(rationales)
    folder, output = write_table(tmp_path / "table", dataset, masks, rationales), tmp_path / "out"
    common = ("--model", evaluated / "model0", "--dataset", folder, "--resamples", 20, "--max_new_tokens", 5)
    run("evaluate_megl", *common, "--output", output)
    metrics, items = read(output)
    assert metrics["n"]["accuracy"] == 9 and metrics["rationale"]["n"] == len(rationales)
    assert metrics["rationale"]["n_without_reference"] == 9 - len(rationales)
    assert (metrics["saliency"] or {"n": 0})["n"] == len(masks)
    for name, counted in (("saliency.iou", masks), ("rationale.rouge_l", rationales)):
        has = [place for place, item in enumerate(items) if item["per_item"].get(name) is not None]
        assert has == list(counted), name
    table = capsys.readouterr().out
    card = (output / "model_card.md").read_text()
    page = (output / "index.html").read_text()
    for name, heading, count in (
        ("map IoU", "Saliency IoU at 0.5", len(masks)),
        ("rationale ROUGE-L", "Rationale ROUGE-L", len(rationales)),
    ):
        rows = [line for line in table.splitlines() if line.startswith(name)]
        rows += [line.rstrip(" |") for line in card.splitlines() if line.startswith(f"| {heading} ")]
        assert [int(row.split()[-1]) for row in rows] == [count] * (2 if count else 0)
        assert (f"<td>{name}</td>" in page or f">{name}<" in page) == bool(count)
    assert metrics["explained_accuracy"]["n"] == 9


# the card in the model's folder

OWN_CARD = """---
license: mit
tags:
- birds
base_model: me/base
model-index:
- name: mine
  results:
  - task:
      type: image-classification
    dataset:
      name: other
      type: org/other
      split: test
    metrics:
    - type: accuracy
      value: 0.5
  - task:
      type: image-classification
    dataset:
      name: object-me
      type: org/object-me
      split: test
    metrics:
    - type: my_own_measure
      value: 0.25
---
# My own words

They stay.
"""


@pytest.fixture
def own_model(evaluated, tmp_path):
    shutil.copytree(
        evaluated / "model0", tmp_path / "own", ignore=shutil.ignore_patterns("README.md", ".eval_results")
    )
    return tmp_path / "own"


def evaluate_own(run, evaluated, model, output, *options):
    common = ("--model", model, "--dataset", evaluated / "object_me", "--resamples", 5, "--max_new_tokens", 2)
    run("evaluate_megl", *common, "--output", output, "--dataset_id", "org/object-me", *options)
    return read(output)[0]


def figures_of(card):
    return {
        (result.dataset_type, result.dataset_split): result.metric_value
        for result in card.data.eval_results
        if result.metric_type == "accuracy"
    }


def test_a_card_keeps_the_users_text_licence_and_other_figures(evaluated, run, own_model, tmp_path):
    (own_model / "README.md").write_text(OWN_CARD, encoding="utf-8")
    (own_model / ".eval_results").mkdir()
    (own_model / ".eval_results" / "org--other.yaml").write_text("- kept\n")
    evaluate_own(run, evaluated, own_model, tmp_path / "0")
    assert (own_model / "README.md").read_text(encoding="utf-8") == OWN_CARD
    test = evaluate_own(run, evaluated, own_model, tmp_path / "1", "--update_card")
    validation = evaluate_own(run, evaluated, own_model, tmp_path / "2", "--update_card", "--split", "validation")
    card = ModelCard.load(own_model / "README.md")
    expected = {
        ("org/other", "test"): 0.5,
        ("org/object-me", "test"): round(test["accuracy"], 4),
        ("org/object-me", "validation"): round(validation["accuracy"], 4),
    }
    assert figures_of(card) == expected
    assert (card.data.license, card.data.base_model, card.data.model_name) == ("mit", "me/base", "mine")
    assert [result.metric_value for result in card.data.eval_results if result.metric_type == "my_own_measure"] == [
        0.25
    ]
    assert card.data.tags[0] == "birds" and "megl" in card.data.tags and card.data.datasets == ["org/object-me"]
    assert "# My own words\n\nThey stay.\n" in card.text
    before = (own_model / "README.md").read_bytes()
    evaluate_own(run, evaluated, own_model, tmp_path / "3", "--update_card")  # the same once more
    after = ModelCard.load(own_model / "README.md")
    assert figures_of(after) == expected and after.text == card.text and after.text.count("| Accuracy |") == 2
    assert len(before) == len((own_model / "README.md").read_bytes())
    assert (own_model / ".eval_results" / "org--other.yaml").read_text() == "- kept\n"
    entries = yaml.safe_load((own_model / ".eval_results" / "org--object-me.yaml").read_text(encoding="utf-8"))
    notes = [entry["notes"] for entry in entries if entry["dataset"]["task_id"] == "accuracy"]
    assert sorted(note.split(", ")[1] for note in notes) == ["test split", "validation split"]


def test_pretrained_parts_of_the_hub_are_the_cards_base_models(evaluated, tmp_path):
    model, processor, _ = opened(evaluated)
    metrics, _ = read(evaluated / "evaluations" / "1-model0")
    assert ModelCard.load(evaluated / "model0" / "README.md").data.base_model is None
    model.config.vision_base_model = "microsoft/resnet-18"
    model.config.text_base_model = str(tmp_path)  # no one else's business
    card.write_card(tmp_path / "card.md", card.card_facts(evaluated / "model0", model, processor), metrics)
    assert ModelCard.load(tmp_path / "card.md").data.base_model == ["microsoft/resnet-18"]
    assert str(tmp_path) not in (tmp_path / "card.md").read_text()


def test_a_card_that_cannot_be_written_loses_nothing(evaluated, run, own_model, tmp_path, monkeypatch):
    (own_model / "README.md").write_text(OWN_CARD, encoding="utf-8")
    write_file = card.write_file

    def read_only(path, content):
        if own_model in path.parents:
            raise PermissionError(f"[Errno 30] Read-only file system: '{path}'")
        write_file(path, content)

    monkeypatch.setattr(card, "write_file", read_only)
    with pytest.raises(
        SystemExit, match=r"evaluate_megl: .*/out is whole, but the card of .*own cannot be updated: .*30"
    ):
        evaluate_own(run, evaluated, own_model, tmp_path / "out", "--update_card")
    assert read(tmp_path / "out")[0]["n"]["accuracy"] == 9 and (tmp_path / "out" / "model_card.md").is_file()
    assert (own_model / "README.md").read_text(encoding="utf-8") == OWN_CARD


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"---\n: [\n---\nwords", "the front matter between its lines `---` is no YAML"),
        (b"---\n- a\n---\n", "expected front matter with a `key: value` a line"),
        (b"---\n{license: mit}\n---\n", "expected front matter with a `key: value` a line"),
        (b"---\nmodel-index: foo\n---\n", "expected `model-index` to be a list of models"),
        (b"---\nmodel-index:\n- name: a\n---\n", "expected `model-index` to be a list of models"),
        ("---\nlicense: mit\n---\ncafé".encode("latin-1"), "README.md is no UTF-8 text"),
    ],
)
def test_a_card_that_cannot_be_updated_is_refused_before_the_work(
    evaluated, run, own_model, tmp_path, content, message
):
    (own_model / "README.md").write_bytes(content)
    with pytest.raises(SystemExit, match=f"^evaluate_megl: .*README.md.*{message}|^evaluate_megl: .*{message}"):
        evaluate_own(run, evaluated, own_model, tmp_path / "out", "--update_card")
    assert (own_model / "README.md").read_bytes() == content and not (tmp_path / "out").exists()


def test_figures_that_are_no_list_are_refused_before_the_work(evaluated, run, own_model, tmp_path):
    (own_model / ".eval_results").mkdir()
    (own_model / ".eval_results" / "org--object-me.yaml").write_text("a: b\n")
    with pytest.raises(SystemExit, match="org--object-me.yaml is no list of figures"):
        evaluate_own(run, evaluated, own_model, tmp_path / "out", "--update_card")
    assert not (tmp_path / "out").exists()


FACTS = {
    "model_name": "own",
    "labels": "a, b",
    "base_model": [],
    **dict.fromkeys(("vision_model", "text_model", "parameters", "saliency_method", "rationale_gradient"), "-"),
    **dict.fromkeys(("rationale_prompt", "training"), "-"),
}
# Words that YAML reads as other than they are written, comments, and results that are nearly ours.
PARTICULAR = """\
---
# of the top
language: no
version: 1.10  # stays
tags:
  - birds  # stays too
# of the index
model-index:
- name: mine
  results:
  - task: {type: image-classification}
    dataset: {name: object-me, type: org/object-me, split: test, config: small}
    metrics:
    - {type: accuracy, value: 0.50, name: Accuracy}
  - task: {type: image-classification}
    dataset: {name: object-me, type: org/object-me, split: test}
    metrics:
    - {type: accuracy, value: 0.20, name: Accuracy by hand}
    - {type: accuracy, value: 0.11, name: Accuracy}
- name: other-model
  results:
  - task: {type: image-classification}
    dataset: {name: object-me, type: org/object-me, split: test}
    metrics:
    - {type: accuracy, value: 1e-2, name: Accuracy}
# of the end
widget: off
---
Words.
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_the_user_wrote_into_the_metadata_stays(tmp_path, newline):
    metrics = {"dataset": "org/object-me", "split": "test", "accuracy": 0.75, "intervals": {}, "n": {"accuracy": 4}}
    path = tmp_path / "README.md"
    path.write_bytes(PARTICULAR.replace("\n", newline).encode())
    card.update_card(tmp_path, FACTS, metrics)
    written = path.read_bytes().decode()
    lines = written.split(newline)
    assert "\n" not in written.replace(newline, "")
    kept = [line for line in PARTICULAR.split("\n") if line and "0.11" not in line]
    places = [lines.index(line) for line in kept if kept.count(line) == 1]
    assert places == sorted(places)  # each line is there as it was, in its order
    models = yaml.safe_load(written.split("---")[1])["model-index"]
    found = [
        [
            (result["dataset"].get("config"), metric["name"], metric["value"])
            for result in model["results"]
            for metric in result["metrics"]
        ]
        for model in models
    ]
    ours = (None, "Accuracy", 0.75)
    assert found[0] == [("small", "Accuracy", 0.5), (None, "Accuracy by hand", 0.2), ours]
    assert [model["name"] for model in models] == ["mine", "other-model"] and found[1] == [(None, "Accuracy", "1e-2")]
    card.update_card(tmp_path, FACTS, metrics)
    assert path.read_bytes().decode() == written
    card.update_card(tmp_path, {**FACTS, "model_name": "other-model"}, metrics)  # the model of that name
    models = yaml.safe_load(path.read_bytes().decode().split("---")[1])["model-index"]
    assert [[metric["value"] for result in model["results"] for metric in result["metrics"]] for model in models] == [
        [0.5, 0.2, 0.75],
        [0.75],
    ]


def test_class_names_are_no_markup_of_a_card(evaluated, tmp_path):
    model, processor, _ = opened(evaluated)
    metrics, _ = read(evaluated / "evaluations" / "1-model0")
    names = ["<!-- end of evaluation -->", "a\n## b", *list(model.config.id2label.values())[2:]]
    model.config.id2label = dict(enumerate(names))
    facts = card.card_facts(tmp_path, model, processor)
    for _ in range(2):
        card.update_card(tmp_path, facts, metrics, "org/object-me")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| classes | &lt;!-- end of evaluation --&gt;, a ## b" in text
    assert text.count(card.EVALUATED) == text.count("<!-- evaluation on ") == text.count("| Accuracy |") == 1


# refusals


def test_comparison_refuses_what_it_cannot_compare(evaluated, run, tmp_path):
    good = evaluated / "evaluations" / "1-model0"
    old = tmp_path / "old"
    old.mkdir()
    (old / "metrics.json").write_text('{"accuracy": 1}')
    (old / "predictions.jsonl").write_text('{"id": "x"}\n')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metrics.json").write_text("{")
    metrics, items = read(good)

    def variant(name, metrics=metrics, items=items):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
        lines = items if isinstance(items, str) else "".join(json.dumps(item) + "\n" for item in items)
        (tmp_path / name / "predictions.jsonl").write_text(lines)
        return tmp_path / name

    without_label = [items[0], {name: value for name, value in items[1].items() if name != "label"}]
    worded = [{**items[0], "per_item": {"saliency.iou": "high"}}]
    elsewhere = {**metrics, "dataset": f"somewhere/else/{Path(metrics['dataset']).name}"}
    assert check_same_data({"a": (metrics, items), "b": (elsewhere, items)}) is None
    for folders, message in (
        ([good, variant("split", {**metrics, "split": "train"})], "split: expected the split of .*, test, got train"),
        (
            [good, variant("data", {**metrics, "dataset": "me/action_me"})],
            "the dataset of .*, object_me, got action_me",
        ),
        ([good, variant("list", [])], "metrics.json: expected an object in braces, got '\\[\\]'"),
        ([good, variant("no-lines", items="")], "no-lines/predictions.jsonl is empty: run evaluate_megl.py again"),
        (
            [good, variant("half", items='{"id": "x"')],
            "half holds a file that is no JSON .predictions.jsonl, line 1: ",
        ),
        (
            [good, variant("number", items="3\n")],
            "number, predictions.jsonl, line 1: expected an object in braces, got '3'",
        ),
        ([good, variant("no-label", items=without_label)], "predictions.jsonl, line 2 has no `label`"),
        ([good, variant("worded", items=worded)], "line 1: expected a number as `saliency.iou`, got 'high'"),
        ([good, old], "old has no scores of each item: it is of an older evaluate_megl.py; run it again"),
        ([good, broken], "broken holds a file that is no JSON .metrics.json: "),
        ([good, tmp_path / "absent"], "No such file or directory: .*absent"),
        ([good, good], "expected different folders"),
    ):
        with pytest.raises(SystemExit, match=message):
            run("compare_evaluations", *folders, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics.json", {"accuracy": [1]}, ": expected a number as `accuracy`, got .1."),
        ("metrics.json", {"accuracy": "x"}, ": expected a number as `accuracy`, got 'x'"),
        ("metrics.json", {"accuracy": True}, ": expected a number as `accuracy`, got True"),
        ("metrics.json", {"macro_f1": float("inf")}, ": expected a number as `macro_f1`, got inf"),
        ("metrics.json", {"saliency": [1]}, ": expected an object in braces as `saliency`, got .1."),
        ("metrics.json", {"rationale": "x"}, ": expected an object in braces as `rationale`, got 'x'"),
        ("metrics.json", {"accuracy_by_group": {"g": [1]}}, ": expected a number as `accuracy_by_group.g`, got .1."),
        ("metrics.json", {"intervals": {"accuracy": 5}}, ": expected two numbers as `intervals.accuracy`, got 5"),
        ("metrics.json", {"intervals": {"accuracy": [1]}}, ": expected two numbers as `intervals.accuracy`, got .1."),
        (
            "metrics.json",
            {"intervals": {"saliency": 5}},
            ": expected an object in braces as `intervals.saliency`, got",
        ),
        ("predictions.jsonl", {"id": ["a"]}, ", line 2: expected a text as `id`, got .'a'."),
        ("predictions.jsonl", {"id": 3}, ", line 2: expected a text as `id`, got 3"),
        ("predictions.jsonl", {"id": None}, ", line 2: expected a text as `id`, got None"),
        ("predictions.jsonl", {"label": 3}, ", line 2: expected a text as `label`, got 3"),
        ("predictions.jsonl", {"prediction": {}}, ", line 2: expected a text or null as `prediction`, got {}"),
        ("predictions.jsonl", {"group": ["a"]}, ", line 2: expected a text or null as `group`, got .'a'."),
        ("predictions.jsonl", {"per_item": []}, ", line 2: expected an object in braces as `per_item`, got "),
        (
            "predictions.jsonl",
            {"per_item": {"clip_score": True}},
            ", line 2: expected a number as `clip_score`, got T",
        ),
        ("predictions.jsonl", {"per_item": {"clip_score": float("inf")}}, ", line 2: expected a number as `clip_sco"),
        ("predictions.jsonl", {"bleu_statistics": [1, 2]}, ", line 2: expected 10 numbers as `bleu_statistics`, got "),
        ("predictions.jsonl", {"bleu_statistics": 3}, ", line 2: expected 10 numbers as `bleu_statistics`, got 3"),
    ],
)
def test_comparison_names_the_file_and_key_of_odd_contents(evaluated, run, tmp_path, file, change, message):
    good = evaluated / "evaluations" / "1-model0"
    metrics, items = read(good)
    if file == "metrics.json":
        metrics = {**metrics, **change}
    else:
        items[1] = {**items[1], **change}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "odd" / "predictions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(
        SystemExit, match=f"^compare_evaluations: .*odd/{file}{message}.*: run evaluate_megl.py again.$"
    ):
        run("compare_evaluations", good, tmp_path / "odd", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refused(run, script, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(script, *arguments)
    return caught.value.code


NOWHERE = "nowhere/at-all is neither a folder nor a Hub id that can be reached: check the name, and the network."


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("evaluate_megl", ("--model", "nowhere/at-all"), NOWHERE),
        ("init_megl", ("--model", "nowhere/at-all"), NOWHERE),
        ("init_megl", ("--vision", "nowhere/at-all"), NOWHERE),
        ("init_megl", ("--vision", "VISION", "--text", "nowhere/at-all"), NOWHERE),
        (
            "init_megl",
            ("--vision", "MODEL"),
            "MODEL is a MEGL model: take it to the new classes by `--model` in place of `--vision`.",
        ),
        (
            "init_megl",
            ("--vision", "CODE"),
            "The repository CODE contains custom code which must be executed to correctly load the model. Read it, "
            "then pass `--trust_remote_code`, in Python `trust_remote_code=True`.",
        ),
    ],
)
def test_a_model_that_is_not_there_or_not_trusted_is_named_in_one_line(
    evaluated, run, tmp_path, monkeypatch, script, options, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"MODEL": str(evaluated / "model0"), "VISION": str(tmp_path / "vision"), "CODE": str(tmp_path / "code")}
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "code").mkdir()
    auto_map = {"AutoConfig": "own.Config", "AutoImageProcessor": "own.Processor"}
    (tmp_path / "code" / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (tmp_path / "code" / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto_map}))
    for name, place in places.items():
        message = message.replace(name, place)
    options = [places.get(option, option) for option in options]
    assert refused(run, script, *options, "--dataset", evaluated / "object_me", "--output", tmp_path / "out") == (
        f"{script}: {message}"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--batch_size", 0), "`--batch_size` must be 1 or more, got 0"),
        (("--batch_size", -1), "`--batch_size` must be 1 or more, got -1"),
        (("--examples", -1), "`--examples` must be 0 or more, got -1"),
        (("--seed", -1), "`--seed` must be 0 or more, got -1"),
        (("--max_new_tokens", 0), "`--max_new_tokens` must be 1 or more, got 0"),
        (("--clip", "no/such/folder"), "`--clip` must be the Hub id or folder of a CLIP model: "),
        (("--clip", "MODEL"), "`--clip` must be a CLIP model, got .*, whose `model_type` is 'megl'"),
        (("--dataset", "nowhere/at/all"), "evaluate_megl: "),
        (("--dataset", "object_mee"), "evaluate_megl: object_mee is neither a folder nor a data set on the Hub that"),
        (("--update_card", "--model", "MODEL", "org/model"), "."),
    ],
)
def test_what_is_known_before_the_work_is_said_before_it(
    evaluated, run, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("megl.scripts.evaluate_megl.predict", None)  # the work
    options = [evaluated / "model0" if option == "MODEL" else option for option in options]
    common = ("--model", evaluated / "model0", "--dataset", evaluated / "object_me", "--output", tmp_path / "out")
    code = refused(run, "evaluate_megl", *common, *options)
    line = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, line) and "\n" not in line
    assert not (tmp_path / "out").exists()


def test_an_unreadable_picture_names_its_item(evaluated, run, tmp_path):
    _, _, dataset = opened(evaluated)
    rows = dataset.cast_column("image", ImageFeature(decode=False)).to_list()
    rows[2]["image"] = {"bytes": rows[2]["image"]["bytes"][:60], "path": None}
    (tmp_path / "table").mkdir()
    Dataset.from_list(rows, features=dataset.features).to_parquet(tmp_path / "table" / "test.parquet")
    code = refused(
        run,
        "evaluate_megl",
        "--model",
        evaluated / "model0",
        "--dataset",
        tmp_path / "table",
        "--output",
        tmp_path / "out",
    )
    assert code.startswith(f"evaluate_megl: item {rows[2]['id']!r}: its picture or map cannot be read: ")
    assert not (tmp_path / "out").exists()


def test_models_are_not_compared_over_items_of_one_id(evaluated, run, tmp_path, monkeypatch):
    monkeypatch.setattr("megl.scripts.evaluate_megl.predict", None)
    models = (evaluated / "model0", evaluated / "model1")
    common = ("--dataset", evaluated / "object_me", "--output", tmp_path / "out", "--id_column", "group")
    code = refused(run, "evaluate_megl", "--model", *models, *common, "--group_column", "id")
    assert re.search("items have the id '.*': name a column of ids that differ by `--id_column`", code)


def test_tables_are_printed_on_any_terminal(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    terminal.print_anywhere("Vögel 0.5")
    sys.stdout.flush()
    assert raw.getvalue() == b"V\\xf6gel 0.5\n"


@pytest.mark.parametrize("script, arguments", [("compare_evaluations", ["x"]), ("evaluate_megl", [])])
def test_bad_command_lines(run, capsys, script, arguments):
    with pytest.raises(SystemExit):
        run(script, *arguments, "--output", "out")
    assert {"compare_evaluations": "two or more folders are needed", "evaluate_megl": "--model"}[script] in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        run(script, *(arguments * 2 or ["--model", "m", "--dataset", "d"]), "--output", "out", "--resamples", 0)
    assert "`--resamples` must be 1 or more, got 0" in capsys.readouterr().err


def test_a_comparison_is_not_drawn_by_a_negative_seed(run, capsys):
    with pytest.raises(SystemExit):
        run("compare_evaluations", "x", "y", "--output", "out", "--seed", -1)
    assert "`--seed` must be 0 or more, got -1" in capsys.readouterr().err
