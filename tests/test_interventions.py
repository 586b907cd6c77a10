"""Is the label the object's or the background's: the metric, the pictures, what is reported, and whether it tells."""

import re
import sys

import evaluate
import numpy as np
import pytest
import torch
from conftest import LABELS, ROOT
from explained_rows import make_dataset, make_rows
from PIL import Image
from shortcut_models import draw_pictures, save_trained

from megl.arguments import EvaluateArguments
from megl.evaluation.bootstrap import counted_items, figures, paired_tests
from megl.evaluation.comparison import read_evaluation
from megl.evaluation.headlines import at, metrics_table
from megl.evaluation.interventions import KINDS, Interventions, intervention_scores, label_interventions
from megl.pages.pictures import as_pictures
from megl.parser import parse
from megl.tables import evenly_spaced
from modeling_megl.processing_megl import make_image_processor


# ---- The metric ----

BY_HAND = {
    "predictions": [0, 1, 2, 0],
    "references": [0, 1, 1, 1],
    "same": [0, 1, 1, None],
    "other": [2, 1, 2, 0],
    "object_alone": [0, 1, 2, 1],
    "noisy_foreground": [0, 2, 1, None],
    "noisy_background": [0, 1, 1, 1],
}


@pytest.fixture
def metric(load):
    return load("interventions")


def test_by_hand(metric):
    found = metric.compute(**BY_HAND, num_classes=3, per_item=True)
    assert found["accuracy"] == 2 / 4 and found["same_accuracy"] == 3 / 3 and found["other_accuracy"] == 1 / 4
    assert (found["same_agreement"], found["other_agreement"]) == (2 / 3, 3 / 4)
    assert (found["object_alone_accuracy"], found["object_alone_agreement"]) == (3 / 4, 3 / 4)
    # Of the three items that have both: right on one more, right on both, right on one more.
    assert found["background_gap"] == 2 / 3 and found["per_item"]["background_gap"] == [1, 0, 1, None]
    assert (found["chance"], found["commonest"]) == (1 / 3, 3 / 4)
    counts = {name: value for name, value in found.items() if name == "n" or name.endswith("_n")}
    expected = {"n": 4, "same_n": 3, "other_n": 4, "object_alone_n": 4, "background_alone_n": 0, "background_gap_n": 3}
    expected |= {"noisy_foreground_n": 3, "noisy_background_n": 4, "relative_foreground_sensitivity_n": 3}
    assert counts == expected
    assert found["background_alone_accuracy"] is None and found["background_alone_agreement"] is None
    assert found["per_item"]["same_accuracy"] == [1, 1, 1, None]
    assert (found["noisy_foreground_accuracy"], found["noisy_background_accuracy"]) == (2 / 3, 4 / 4)
    # Of the three items that have both: 2/3 and 1, whose mean is 5/6.
    assert found["relative_foreground_sensitivity"] == pytest.approx((1 - 2 / 3) / (2 * 1 / 6))


@pytest.mark.parametrize(
    "foreground, background, expected",
    [(0.2, 0.4, 1 / 3), (0.4, 0.2, -1 / 3), (0.7, 0.9, 1 / 2), (0, 1, 1), (0, 0.5, 1), (0, 0, 0), (1, 1, 0)],
)
def test_relative_foreground_sensitivity_by_hand(metric, foreground, background, expected):
    formula = sys.modules[type(metric).__module__].relative_foreground_sensitivity
    assert formula(foreground, background) == pytest.approx(expected)


def test_relative_foreground_sensitivity_of_resamples():
    """Four pictures, one of them without an object: 2/3 and 1; 1 and 1; 0 and 1; and nothing."""
    rows = [(1, 1), (0, 1), (1, 1), (None, None)]
    names = [f"interventions.noisy_{side}_accuracy" for side in ("foreground", "background")]
    common = {"label": "a", "prediction": "a", "group": None}
    items = [
        {"id": str(number), "per_item": dict(zip(names, row, strict=True)), **common}
        for number, row in enumerate(rows)
    ]
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 3, 0, 1], [0, 0, 0, 4]], dtype=float)
    path = ("interventions", "relative_foreground_sensitivity")
    assert figures(items, weights)[path] == pytest.approx([1, 0, 1, np.nan], nan_ok=True)
    assert counted_items(items)[path] == 3 and path not in figures([{**items[0], "per_item": {}}], np.ones((1, 1)))


def test_items_may_be_added_one_by_one(metric):
    whole = metric.compute(**BY_HAND)
    assert whole["chance"] == 1 / 2  # of the classes that the references have
    for prediction, reference, *given in zip(*BY_HAND.values(), strict=True):
        metric.add(prediction=prediction, reference=reference, **dict(zip(list(BY_HAND)[2:], given, strict=True)))
    assert metric.compute() == whole


def test_no_items(metric):
    metric.add_batch(predictions=[], references=[])
    found = metric.compute()
    assert (found["n"], found["accuracy"], found["background_gap"], found["chance"]) == (0, None, None, None)
    assert found["relative_foreground_sensitivity"] is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"references": [0, 1, 1, -1]}, r"`references\[3\]` must be a class id, 0 or more, got -1"),
        ({"predictions": [0, None, 1, 1]}, r"`predictions\[1\]` must be a class id, 0 or more, got None"),
        ({"other": [0, 1, 3, 1], "num_classes": 3}, r"`other\[2\]` must be a class id, from 0 to 2, as `num_classes`"),
        ({"predictions": [0, 0.9, 1, 1]}, r"`predictions\[1\]` must be a class id, an integer, got 0.9"),
        ({"other": np.array([0, 1.0, 1, 1])}, r"`other\[0\]` must be a class id, an integer, got 0.0"),
        ({"num_classes": 0}, "`num_classes` must be a whole number, 1 or more, got 0"),
        ({"same": [0, 1]}, "Mismatch in the number"),
    ],
)
def test_bad_inputs(monkeypatch, tmp_path, changes, message):
    monkeypatch.chdir(ROOT)
    # A cache of its own: `evaluate` waits for the locks of instances whose `compute` failed.
    metric = evaluate.load("metrics/interventions", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=message):
        metric.compute(**BY_HAND | changes)


def test_an_item_s_class_id_is_an_integer(metric):
    with pytest.raises(ValueError, match="`same` must be a class id, an integer, got 1.5"):
        metric.add(prediction=1, reference=1, same=1.5)


# ---- The pictures ----


def of(dataset, processor, **options):
    return Interventions(processor, dataset, **options)


def test_backgrounds_are_those_of_other_pictures_of_the_class_and_of_other_classes(processor):
    dataset = make_dataset(12, masks="all")
    made = of(dataset, processor, seed=3)
    drawn = {place: made.draw(place) for place in range(12)}
    for place, (same, other) in drawn.items():
        assert same != place and same % 3 == place % 3 and other % 3 != place % 3
    assert drawn == {place: of(dataset, processor, seed=3, batch_size=5).draw(place) for place in range(12)}
    assert drawn != {place: of(dataset, processor, seed=4).draw(place) for place in range(12)}
    # Of three pictures of three classes none has another of its class; a split beside has.
    assert [of(make_dataset(3, masks="all"), processor).draw(place)[0] for place in range(3)] == [None] * 3
    drawn = of(make_dataset(3, masks="all"), processor, donors=dataset).draw(1)
    assert drawn[0] in (4, 7, 10)  # 1 has the item's own id


def test_no_picture_gets_its_own_background_where_ids_are_row_numbers(processor):
    donors = make_dataset(12, masks="all")
    rows = donors.select(range(6, 12)).remove_columns("id").add_column("id", list("012345"))
    for seed in range(10):
        made = of(rows, processor, donors=donors, seed=seed)
        for place in range(6):
            assert place + 6 not in made.draw(place)


def test_each_kind_of_picture_by_its_pixels(processor):
    dataset = make_dataset(6, masks="all")
    made = of(dataset, processor)
    found = {kind: (places, pictures) for kind, places, pictures in made.make([0, 4])}
    assert list(found) == list(KINDS) and all(places == [0, 4] for places, _ in found.values())
    own, masks = made.read([0, 4])
    everything, every_mask = made.read(list(range(6)))
    means = [picture[:, mask <= 0.5].mean(dim=1) for picture, mask in zip(everything, every_mask, strict=True)]
    colour = torch.stack(means).mean(dim=0)
    shape = slice(9, 18), slice(10, 22)  # well inside both masks
    outside = slice(24, 32), slice(0, 4)
    for kind in ("same", "other", "object_alone"):
        torch.testing.assert_close(found[kind][1][..., *shape], own[..., *shape])
    for index, kind in enumerate(("same", "other")):
        donors, _ = made.read([made.draw(place)[index] for place in (0, 4)])
        torch.testing.assert_close(found[kind][1][..., *outside], donors[..., *outside])
    plain = found["object_alone"][1][..., *outside]
    torch.testing.assert_close(plain, colour[:, None, None].expand_as(plain))
    alone = found["background_alone"][1]
    torch.testing.assert_close(alone[..., *outside], own[..., *outside])
    assert not torch.isclose(alone[..., *shape], own[..., *shape], atol=0.01).any(dim=1).all()


def test_noise_lies_on_one_side_of_the_mask_in_the_colours_of_the_picture(processor):
    dataset = make_dataset(6, masks="all")
    found = {kind: pictures for kind, _, pictures in of(dataset, processor).make([0, 4])}
    own, masks = of(dataset, processor).read([0, 4])
    inside = (masks > 0.5)[:, None].expand_as(own)
    deviations, means = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("std", "mean"))
    changes = {}
    for kind, where in (("noisy_foreground", inside), ("noisy_background", ~inside)):
        assert torch.equal(found[kind][~where], own[~where])
        colours = found[kind] * deviations[:, None, None] + means[:, None, None]
        assert colours.min() >= -1e-6 and colours.max() <= 1 + 1e-6
        changes[kind] = (found[kind] - own) * deviations[:, None, None]
    # Of the same noise, whose standard deviation is 0.25 where nothing is cut off.
    noise = sum(changes.values())
    free = ((colours := own * deviations[:, None, None] + means[:, None, None]) > 0.3) & (colours < 0.7)
    assert free.sum() > 500 and 0.2 < noise[free].std() < 0.26 and abs(noise[free].mean()) < 0.05
    # An item's noise is its own, whatever the batch, and another with another seed.
    alone = {kind: pictures for kind, _, pictures in of(dataset, processor).make([4])}
    assert torch.equal(alone["noisy_foreground"][0], found["noisy_foreground"][1])
    other = {kind: pictures for kind, _, pictures in of(dataset, processor, seed=1).make([4])}
    assert not torch.equal(other["noisy_foreground"], alone["noisy_foreground"])
    assert not torch.equal(noise[0], noise[1])


class ByColour(torch.nn.Module):
    """Calls a picture by its brightest channel, as a whole."""

    def __init__(self, config):
        super().__init__()
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32

    def forward(self, pixel_values, output_saliency):
        assert not output_saliency
        return type("Output", (), {"logits": pixel_values.mean(dim=(2, 3))})


def test_items_without_an_object_are_left_out_and_counted(processor, make_config):
    rows = make_rows(8, masks={0, 1, 2, 3, 4})
    rows[1]["visual_explanation"] = Image.new("L", (32, 32), 255)  # no background
    rows[2]["visual_explanation"] = Image.new("L", (32, 32), 0)  # no object
    dataset = make_dataset(8)
    dataset = type(dataset).from_list(rows, features=dataset.features)
    model = ByColour(make_config("megl-resnet-tiny"))
    seen = {}
    for size in (1, 3, 8):
        made = of(dataset, processor, batch_size=size)
        items = [{"label": LABELS[row["label"]], "prediction": LABELS[0], "per_item": {}} for row in rows]
        for start in range(0, 8, size):
            places = list(range(start, min(start + size, 8)))
            label_interventions([items[place] for place in places], places, None, model, made)
        seen[size] = [item["interventions"] for item in items]
        scores = intervention_scores(items, LABELS)
    assert seen[1] == seen[3] == seen[8]
    assert [found is None for found in seen[8]] == [False, True, True, False, False, True, True, True]
    # 0 and 3 are of one class, 4 has no other picture of its own.
    assert [list(seen[8][place]) for place in (0, 3, 4)] == [list(KINDS), list(KINDS), list(KINDS[1:])]
    assert (scores["n"], scores["n_without_object"], scores["same_n"], scores["background_gap_n"]) == (3, 5, 2, 2)
    assert scores["chance"] == 1 / 3
    assert items[4]["per_item"]["interventions.same_accuracy"] is None and items[5]["per_item"] == {}


def test_what_is_written_on_another_background_is_what_the_model_says_of_that_picture(processor, make_model):
    """Of its own label and map there; an item without an object has no such text."""
    rows = make_rows(4, masks={0, 1, 3})
    dataset = type(make_dataset(4)).from_list(rows, features=make_dataset(4).features)
    model, made = make_model("megl-resnet-tiny"), of(dataset, processor)
    with torch.no_grad():  # an untrained model would write the same whatever it sees
        for parameter in model.language_model.parameters():
            parameter *= 5
    items, silent = ([{} for _ in rows] for _ in range(2))
    label_interventions(items, range(4), None, model, made, max_new_tokens=5)
    label_interventions(silent, range(4), None, model, made)
    assert [item["interventions"] for item in items] == [item["interventions"] for item in silent]
    assert not any("other_background_rationale" in item for item in silent)
    expected = [None] * 4
    _, places, pictures = next(one for one in made.make([0, 1, 3]) if one[0] == "other")
    for place, picture in zip(places, pictures, strict=True):
        output = model(picture[None])
        prompt = processor.prompts([items[place]["interventions"]["other"]])
        evidence = model.ground(output.features, output.saliency)
        tokens = model.generate_rationales(**prompt, evidence_tokens=evidence, max_new_tokens=5)
        (expected[place],) = processor.batch_decode_rationales(tokens)
    texts = [item["other_background_rationale"] for item in items]
    assert texts == expected and texts[2] is None and len(set(texts)) > 2


def test_without_an_object_there_is_nothing_to_do(processor):
    with pytest.raises(ValueError, match="an object and leave a background, and the split of the items has none"):
        of(make_dataset(4, masks="none"), processor)
    with pytest.raises(ValueError, match="the split that gives the backgrounds has none"):
        of(make_dataset(4, masks="all"), processor, donors=make_dataset(4, masks="none"))


def test_a_split_that_is_not_there_is_named_by_its_option(run, own_cache, trained, tmp_path):
    words = ("--model", trained / "object", "--dataset", trained / "data", "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match="`--interventions` must name a split of .*, got 'trian'"):
        run("evaluate_megl", *words, "--interventions", "trian")


def test_what_a_model_sees_is_shown_in_its_colours():
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8))
    plain = make_image_processor((32, 32), [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])

    def turned(images, **options):
        return {"pixel_values": plain(images, **options)["pixel_values"].flip(1)}

    for image_processor in (plain, turned):
        pixel_values = image_processor([picture], return_tensors="pt")["pixel_values"]
        (shown,) = as_pictures(pixel_values, image_processor)
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(picture)).max() <= 1


# ---- megl evaluate --interventions ----


def test_the_option_names_a_split_or_none(monkeypatch):
    common = ["megl evaluate", "--model", "a", "--dataset", "d", "--output", "o"]
    for words, value in (([], None), (["--interventions"], ""), (["--interventions", "train"], "train")):
        monkeypatch.setattr("sys.argv", [*common, *words])
        (arguments,) = parse("Does it.", EvaluateArguments)
        assert arguments.interventions == value


@pytest.fixture(scope="module")
def trained(make_model, processor, tmp_path_factory):
    """Three ViTs and their data: by the object, by the background, and by that with a map that masks have guided."""
    folder = tmp_path_factory.mktemp("trained")
    save_trained(make_model, processor, folder / "object", shortcut=False)
    save_trained(make_model, processor, folder / "background", shortcut=True)
    save_trained(make_model, processor, folder / "guided", shortcut=True, visual_loss_weight=3.0)
    for split, count, shortcut in (("train", 60, True), ("validation", 60, True), ("test", 60, False)):
        draw_pictures(count, shortcut, 2000 + len(split)).to_parquet(folder / "data" / f"{split}.parquet")
    return folder


def evaluated(run, trained, name, *options):
    """The evaluations of the three, made once under a name."""
    models, folder = [trained / model for model in ("object", "background", "guided")], trained / name
    if not folder.exists():
        common = ("--model", *models, "--dataset", trained / "data", "--resamples", 400, "--output", folder)
        run("evaluate_megl", *common, *options)
    return [read_evaluation(one) for one in sorted(folder.glob("[123]-*"))]


def test_figures_labels_table_and_report(run, own_cache, trained, load):
    _, (metrics, items), _ = evaluated(run, trained, "seeing", "--interventions", "train")
    given = {kind: [LABELS.index(item["interventions"][kind]) for item in items] for kind in KINDS}
    for name, key in (("predictions", "prediction"), ("references", "label")):
        given[name] = [LABELS.index(item[key]) for item in items]
    expected = load("interventions").compute(**given) | {"n_without_object": 0, "backgrounds": "train"}
    assert metrics["interventions"] == expected
    low, high = at(metrics["intervals"], ("interventions", "relative_foreground_sensitivity"))
    assert low <= metrics["interventions"]["relative_foreground_sensitivity"] <= high
    for name in ("background_gap", "other_accuracy", "background_alone_agreement"):
        low, high = at(metrics["intervals"], ("interventions", name))
        value = metrics["interventions"][name]
        assert low <= value <= high
        assert np.mean([item["per_item"][f"interventions.{name}"] for item in items]) == pytest.approx(value)
    assert re.search(r"^background gap +1\.000 .* 60$", metrics_table(metrics), re.MULTILINE)
    folder = trained / "seeing" / "2-background"
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert "| Background gap | 1.000 |" in card
    assert "interventions.background_gap" in (trained / "seeing" / "comparison.json").read_text(encoding="utf-8")
    page = (folder / "index.html").read_text(encoding="utf-8")
    section = page.split("<h2>Object or background</h2>")[1].split("<h2>")[0]
    assert section.count('src="data:image/jpeg') == 6 * 7 and section.count('role="img"') == 2
    shown = [items[place] for place in evenly_spaced(6, 60)]
    wrong = [
        label != item["label"] for item in shown for label in (item["prediction"], *item["interventions"].values())
    ]
    assert section.count("✗") == sum(wrong) > 6


# ---- Which figure tells a model that goes by the background from one that goes by the object? ----

LOWER = {
    "faithfulness.deletion",
    "faithfulness.sufficiency",
    "interventions.background_gap",
    "interventions.background_alone_accuracy",
    "interventions.background_alone_agreement",
}  # are better


def verdicts(runs):
    """Figure to what it says of each model after the first: `worse`, as it is, `better`, or nothing, `-`."""
    found = {}
    for tests in paired_tests(runs, ["1", "2", "3"], 400, 0):
        for path, test in tests.items():
            name = ".".join(path)
            worse = (test["difference"] > 0) == (name in LOWER)
            found.setdefault(name, []).append("-" if test["p"] >= 0.05 else "worse" if worse else "better")
    return found


def test_what_tells_a_shortcut(run, own_cache, trained):
    """Where backgrounds go with classes; docs/evaluation.md has the table, of three seeds."""
    options = ("--split", "validation", "--interventions", "--faithfulness", "mean")
    runs = evaluated(run, trained, "told", *options)
    found = verdicts([items for _, items in runs])
    kinds = ("other", "object_alone", "background_alone")
    told = [f"{kind}_{what}" for kind in kinds for what in ("accuracy", "agreement")] + ["background_gap"]
    assert {name: found[f"interventions.{name}"] for name in told} == dict.fromkeys(told, ["worse", "worse"])
    gaps = [metrics["interventions"]["background_gap"] for metrics, _ in runs]
    assert gaps[0] < 0.1 and min(gaps[1:]) > 0.9
    # Accuracy, and backgrounds of the class, do not tell.
    assert "worse" not in found["accuracy"] + found["interventions.same_accuracy"]
    # Nor does noise, which hides the stripes of the object from one and leaves the background's colour to the others.
    assert "worse" not in found["interventions.relative_foreground_sensitivity"]
    # The background's colour outlasts any deletion: nothing changes, of which two figures make the best there is.
    for name, verdict in (("deletion", "worse"), ("comprehensiveness", "worse"), ("insertion", "better")):
        assert found[f"faithfulness.{name}"] == [verdict, verdict]
    assert found["faithfulness.sufficiency"] == ["better", "better"]
    # A map that masks have guided lies on the object, whatever decides.
    assert [found[f"saliency.{name}"][1] for name in ("iou", "pointing_game", "energy")] == ["better"] * 3


def test_a_balanced_split_hides_a_shortcut_from_its_own_backgrounds(run, own_cache, trained):
    own = evaluated(run, trained, "blind", "--interventions")
    other = evaluated(run, trained, "seeing", "--interventions", "train")
    blind, seeing = ([metrics["interventions"] for metrics, _ in runs] for runs in (own, other))
    assert max(abs(found["background_gap"]) for found in blind) < 0.3
    assert [found["background_gap"] > 0.8 for found in seeing] == [False, True, True]
    for found in (blind, seeing):  # the picture's own
        assert max(abs(one["background_alone_accuracy"] - one["chance"]) for one in found) < 0.2
        assert [one["background_alone_agreement"] > 0.8 for one in found] == [False, True, True]
        assert [one["object_alone_agreement"] > 0.8 for one in found] == [True, False, False]
