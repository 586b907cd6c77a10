"""The comparison with the LLaVA counts exactly, asks the same of both, and its page holds what was measured."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megl import machine
from studies.llava import efficiency


ARGUMENTS = SimpleNamespace(device="cpu", dtype="float32", repeats=2)
TEXT = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "tie_word_embeddings": True,
}
TOWER = {
    "model_type": "clip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.fixture()
def tiny(monkeypatch):
    """A size of which everything can be worked out by hand; MEGL's tail is differentiated."""
    vision_config = {**TOWER, "model_type": "vit"}
    monkeypatch.setitem(efficiency.PRESETS, "tiny", {"vision_config": vision_config, "evidence_size": 12})
    monkeypatch.setitem(efficiency.VISION_PRESETS, "tiny", TOWER)
    monkeypatch.setitem(efficiency.SIZES, "tiny", ("tiny", "tiny", TEXT))


def transformer_flops(tokens, seen, size, intermediate, mlp_layers):
    """One layer: the four projections, scores and weighted sum over what is seen, and the MLP."""
    return 2 * tokens * (4 * size * size + 2 * seen * size + mlp_layers * size * intermediate)


def test_known_layers_are_counted_exactly():
    layer = nn.Linear(4, 8)
    assert efficiency.count_flops(lambda: layer(torch.zeros(3, 4))) == 2 * 3 * 4 * 8
    convolution = nn.Conv2d(3, 5, kernel_size=2, stride=2)
    assert efficiency.count_flops(lambda: convolution(torch.zeros(1, 3, 8, 8))) == 2 * (3 * 2 * 2) * 5 * 4 * 4

    def gradient():
        features = torch.zeros(3, 4, requires_grad=True)
        torch.autograd.grad(layer(features).sum(), features)

    # A gradient with respect to the input costs the layer once more.
    assert efficiency.count_flops(gradient) == 2 * (2 * 3 * 4 * 8)


def test_operations_of_the_llava_by_hand(tiny):
    counted = efficiency.count("tiny")
    patches, size = 16, 24
    tower = 2 * patches * (3 * 8 * 8) * size + 3 * transformer_flops(patches + 1, patches + 1, size, 40, 2)
    projector = 2 * patches * (size * 16 + 16 * 16)
    prompt = patches + efficiency.PROMPT_TOKENS
    head = 2 * 16 * 40

    def llama(new_tokens):
        steps = [(prompt, prompt), *((1, prompt + i) for i in range(1, new_tokens))]
        layers = sum(2 * transformer_flops(tokens, seen, 16, 24, 3) for tokens, seen in steps)
        return layers + new_tokens * head

    assert counted["flops"]["llava_label"] == tower + projector + llama(3)
    assert counted["flops"]["llava_answer"] == tower + projector + llama(23)
    assert counted["visual_tokens"] == {"megl": 4, "llava": patches}


def test_counted_without_values_is_what_real_models_do(tiny, monkeypatch):
    monkeypatch.setattr(efficiency.Contest, "attention", "eager")
    contest = efficiency.Contest("tiny", ARGUMENTS)
    real = {step: efficiency.count_flops(getattr(contest, step)) for step in efficiency.STEPS}
    assert efficiency.count("tiny")["flops"] == real
    assert real["megl_answer"] > real["megl_label"] > 0


def test_parameters_are_those_of_the_models(tiny):
    contest = efficiency.Contest("tiny", ARGUMENTS)
    counted = efficiency.count("tiny")["parameters"]
    assert counted["llava"] == sum(parameter.numel() for parameter in contest.llava.parameters())
    assert counted["megl"] == sum(parameter.numel() for parameter in contest.megl.parameters())
    # The same language model.
    megl, llava = contest.megl.language_model, contest.llava.model.language_model
    assert sum(p.numel() for p in megl.parameters()) == sum(p.numel() for p in llava.parameters())


def test_paper_sizes():
    counted = efficiency.count("llama-small")
    assert counted["visual_tokens"] == {"megl": 4, "llava": 576}
    # ViT-B/16 at 224 pixels: 17.6 GMAC in the literature.
    assert counted["flops"]["megl_label"] == pytest.approx(2 * 17.6e9, rel=0.01)
    assert 0.05 < counted["flops"]["megl_label"] / counted["flops"]["llava_answer"] < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_write_as_many_tokens_as_they_are_told(tiny, dtype):
    contest = efficiency.Contest("tiny", SimpleNamespace(device="cpu", dtype=dtype), batch_size=2)
    for model in (contest.megl, contest.llava):
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
        assert not model.training
    evidence = torch.zeros(2, 4, 16, dtype=contest.dtype)
    assert contest._write_rationale(evidence).shape == (2, 20)
    tokens = contest._write_answer(23)
    assert tokens.shape == (2, 16 + 8 + 23)
    assert (tokens[:, :16] == 39).all()  # the picture, then the prompt and what is written


def test_models_are_made_when_asked_for(tiny):
    contest = efficiency.Contest("tiny", ARGUMENTS)
    contest.nothing()
    contest.megl_label()
    assert "megl" in vars(contest) and "llava" not in vars(contest)


def test_answers_are_timed_in_turns(monkeypatch, tiny):
    order = []
    monkeypatch.setattr(machine, "seconds", lambda bench, step: order.append(step) or float(len(order)))
    steps = efficiency.TIMED_STEPS
    rounds = machine.compare(efficiency.Contest, ARGUMENTS, "tiny", *steps)
    assert order == [*reversed(steps), *steps, *steps]
    assert rounds == [(4.0, 5.0, 6.0), (7.0, 8.0, 9.0)]


FIGURES = {
    "machine": "a machine",
    "rationale_tokens": 20,
    "label_tokens": 3,
    "prompt_tokens": 8,
    "counted": {
        "sample": {
            "parameters": {"megl": 1_500_000, "llava": 3_000_000},
            "visual_tokens": {"megl": 4, "llava": 144},
            "flops": {"megl_label": 1e9, "megl_answer": 2e9, "llava_label": 5e9, "llava_answer": 8e9},
        }
    },
    "seconds": {
        "sample, batch 1": {
            "megl_label": [0.1, 0.2, 0.1],
            "megl_answer": [0.3, 0.3, 0.3],
            "llava_answer": [1.0, 1.0, 0.8],
        }
    },
    "memory": {"libraries": 100 * 2**20, "sample, batch 1": {"megl_answer": 300 * 2**20, "llava_answer": 400 * 2**20}},
}


def test_page_holds_the_figures():
    lines = efficiency.render(FIGURES, "a command").splitlines()
    for line in (
        "`a command`, a machine.",
        "| sample | 4 | 144 | **0.500** | 1.5 | 3.0 |",
        "| sample, label | **0.125** | 1.0 | 8.0 |",
        "| sample, label, map and rationale | **0.250** | 2.0 | 8.0 |",
        "| sample, label, the LLaVA without its rationale | **0.200** | 1.0 | 5.0 |",
        # Ratios of each round: 0.1, 0.2, 0.125; 0.3, 0.3, 0.375.
        "| sample, batch 1 | **0.125** | 0.100 to 0.200 | no | 100 | 1,000 |",
        "| sample, batch 1 | **0.300** | 0.300 to 0.375 | yes | 300 | 1,000 |",
        "| libraries alone |  | 100 | 100 |",
        "| sample, batch 1 | **0.750** | 300 | 400 |",
    ):
        assert line in lines, line


@pytest.fixture()
def main(monkeypatch):
    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["efficiency.py", *map(str, arguments)])
        efficiency.main()

    return main


def test_bad_inputs_are_one_clear_error(main, tmp_path):
    kept = tmp_path / "kept.md"
    kept.with_suffix(".json").write_text("{}")
    with pytest.raises(SystemExit, match=r"kept.json exists: choose another `--output`, or `--overwrite` it"):
        main("--output", kept)
    with pytest.raises(SystemExit, match=r"`--output` must be a Markdown file \(.md\), got .*page.html"):
        main("--output", tmp_path / "page.html")
    assert not (tmp_path / "page.md").exists() and kept.with_suffix(".json").read_text() == "{}"


def test_memory_is_that_of_a_process_of_its_own():
    """What this process holds is not counted, and the models' class is found in the other."""
    block = torch.ones(2**29, dtype=torch.uint8)
    arguments = SimpleNamespace(**vars(ARGUMENTS))
    taken = machine.Page(efficiency.Contest, arguments).run(machine.peak_memory, "sample", "nothing")
    assert 2**26 < taken < machine.peak_memory(efficiency.Contest, arguments, "sample", "nothing")
    assert block.all()


def test_from_measurement_to_page(main, tmp_path, monkeypatch):
    """The smallest size, measured in this process."""
    monkeypatch.setattr(efficiency, "count", lambda name: FIGURES["counted"]["sample"])
    run = lambda page, function, *args, **options: function(page.bench, page.arguments, *args, **options)  # noqa: E731
    monkeypatch.setattr(machine.Page, "run", run)
    page = tmp_path / "page.md"
    main("--sizes", "sample", "--batch_sizes", 2, "--repeats", 3, "--device", "cpu", "--output", page)
    figures = json.loads(page.with_suffix(".json").read_text())
    (times,) = figures["seconds"].values()
    assert set(times) == set(efficiency.TIMED_STEPS)
    assert all(len(values) == 3 and min(values) > 0 for values in times.values())
    assert set(figures["memory"]) == {"libraries", "sample, batch 2"}
    assert page.read_text() == efficiency.render(figures, page.read_text().split("`")[1])
