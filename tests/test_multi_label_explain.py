"""What a multi-label model answers: the classes above a threshold, each with probability, map and rationale."""

import json
import math

import pytest
import torch
from fresh_process import WITHOUT_THE_PROJECT
from fresh_process import run as run_fresh
from PIL import Image


MULTI_LABEL = {"problem_type": "multi_label_classification"}
SHORT = {"max_new_tokens": 4}


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(3)
    return [
        Image.fromarray(torch.randint(0, 256, (40, 30, 3), generator=random, dtype=torch.uint8).numpy())
        for _ in range(2)
    ]


@pytest.fixture
def model(make_model, monkeypatch):
    """Of the first picture the probabilities are 0.5, 0.9 and 0.7, of all others 0.1, 0.2 and 0.3."""
    model = make_model("megl-resnet-tiny", **MULTI_LABEL)
    chances = torch.tensor([[0.5, 0.9, 0.7], [0.1, 0.2, 0.3]])
    monkeypatch.setattr(
        model,
        "probabilities",
        lambda logits: torch.where(torch.isinf(logits), 0.0, chances[: len(logits)]),
    )
    forward = model._classify

    def classify(*args):
        logits, *rest = forward(*args)
        return torch.logit(chances[: len(logits)]) + 0 * logits, *rest

    monkeypatch.setattr(model, "_classify", classify)
    return model


def labels(answer):
    return [(one["label"], round(one["score"], 2)) for one in (answer, *answer["alternatives"])]


def test_the_classes_above_the_threshold_are_explained(model, processor, images):
    found = model.explain(images, processor, **SHORT)
    assert labels(found[0]) == [("polar bear", 0.9), ("owl", 0.7), ("cat", 0.5)]
    assert labels(found[1]) == [("owl", 0.3)]  # the most probable in any case
    assert labels(model.explain(images[0], processor, threshold=0.6, **SHORT)[0]) == [
        ("polar bear", 0.9),
        ("owl", 0.7),
    ]
    assert labels(model.explain(images, processor, threshold=0.15, **SHORT)[1]) == [("owl", 0.3), ("polar bear", 0.2)]
    assert labels(model.explain(images[0], processor, threshold=1.0, **SHORT)[0]) == [("polar bear", 0.9)]
    assert labels(model.explain(images[0], processor, top_k=2, **SHORT)[0]) == [("polar bear", 0.9), ("owl", 0.7)]
    assert labels(model.explain(images[0], processor, target="cat", **SHORT)[0]) == [("cat", 0.5)]
    # Each as if it were explained alone.
    for one in found[0]["alternatives"]:
        alone = model.explain(images[0], processor, target=one["label"], **SHORT)[0]
        assert one["rationale"] == alone["rationale"] and one["saliency"].shape == (40, 30)
        torch.testing.assert_close(torch.tensor(one["saliency"]), torch.tensor(alone["saliency"]))


def test_padding_is_written_by_no_one(model, processor, images, monkeypatch):
    generate, written = model.generate_rationales, []
    monkeypatch.setattr(
        model, "generate_rationales", lambda **inputs: written.append(len(inputs["input_ids"])) or generate(**inputs)
    )
    pixel_values = processor(images=images)["pixel_values"]
    found = model.explain_pixels(pixel_values, processor, **SHORT)
    assert found["labels"].tolist() == [[1, 2, 0], [2, -1, -1]] and written == [4]
    assert (found["rationale_ids"][1, 1:] == -100).all()


def test_thresholds_that_make_no_sense_are_refused(model, make_model, processor, images):
    for threshold in (-0.1, 1.1, "half"):
        with pytest.raises(ValueError, match=r"`threshold` must be a probability in \[0, 1\], got"):
            model.explain(images, processor, threshold=threshold)
    for options in ({"foil": "owl", "target": "cat"}, {"top_k": 2}):
        with pytest.raises(ValueError, match="`threshold` goes neither with `foil` nor with `top_k`"):
            model.explain(images, processor, threshold=0.5, **options)
    with pytest.raises(ValueError, match="`threshold` goes with a multi-label model, which this is not: use `top_k`"):
        make_model("megl-resnet-tiny").explain(images, processor, threshold=0.5)


FRESH = f"""{WITHOUT_THE_PROJECT}
import json
from transformers import AutoModel, AutoProcessor, pipeline

folder, picture = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.open(picture)
(answer,) = model.explain(image, processor, threshold=0.0, max_new_tokens=4)
explain = pipeline("explained-image-classification", model=folder, trust_remote_code=True)
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
found = [explain(image, threshold=0.0, max_new_tokens=4), explain([image, image], batch_size=2, max_new_tokens=4)[0]]
short = [
    [[one["label"], round(one["score"], 5), one["rationale"]] for one in (part, *part["alternatives"])]
    for part in (answer, *found)
]
json.dump([*short, {{one["label"]: round(one["score"], 5) for one in classify(image)}}], open("found.json", "w"))
"""


def test_a_saved_model_answers_the_same_in_a_fresh_interpreter(make_model, processor, images, tmp_path, run):
    folder, picture = tmp_path / "model", tmp_path / "picture.png"
    model = make_model("megl-resnet-tiny", **MULTI_LABEL)
    for part in (model, processor):
        part.save_pretrained(folder)
    images[0].save(picture)
    logits = model(processor(images=images[:1])["pixel_values"]).logits[0]
    chances = {
        model.config.id2label[label]: round(1 / (1 + math.exp(-x)), 5) for label, x in enumerate(logits.tolist())
    }
    run_fresh(FRESH, folder, picture, cwd=tmp_path / "elsewhere", hub=tmp_path / "hub")
    answer, piped, default, classified = json.loads((tmp_path / "elsewhere" / "found.json").read_text())
    assert piped == answer and dict(part[:2] for part in answer) == pytest.approx(chances, abs=1e-4)
    assert [part[1] for part in answer] == sorted(chances.values(), reverse=True) and len(answer) == 3
    assert [part[0] for part in default[1:]] == [name for name, score, _ in answer[1:] if score >= 0.5]
    assert classified == pytest.approx(chances, abs=1e-4)

    run("explain", "--model", folder, picture, "--output", tmp_path / "out", "--threshold", 0)
    (line,) = (tmp_path / "out" / "explanations.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert [found["label"], *(one["label"] for one in found["alternatives"])] == [part[0] for part in answer]
    with pytest.raises(SystemExit, match="`threshold` goes neither with `foil` nor with `top_k`"):
        options = ("--output", tmp_path / "two", "--threshold", 0, "--top_k", 2)
        run("explain", "--model", folder, picture, *options)
