"""Compiled parts: which they are, that they are whole graphs, and that they train as they did."""

import copy

import pytest
import torch
from conftest import LABELS
from explained_rows import make_rows, weights

from modeling_megl.collator_megl import MeglDataCollator
from modeling_megl.compile_megl import compile_parts


PARTS = {
    "megl-vit-tiny": ["vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layers.2.layernorm_before"],
    "megl-resnet-tiny": ["resnet.embedder", "resnet.encoder.stages.0", "resnet.encoder.stages.1"],
}
LAYERS = ["language_model.model.layers.0", "language_model.model.layers.1"]
# Layers of one structure share a graph.
NUM_GRAPHS = {"megl-vit-tiny": 3, "megl-resnet-tiny": 3}


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()


@pytest.fixture
def graphs():
    """The graphs that `backend` has been given so far."""
    return []


@pytest.fixture
def backend(graphs):
    def compile(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return compile


@pytest.fixture
def batch(processor):
    return MeglDataCollator(processor, dict(enumerate(LABELS)))(make_rows(4, masks="all"))


def step(model, batch):
    """Loss and gradients of one guided step."""
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": output.loss.detach(), "saliency": output.saliency.detach(), **gradients}


def assert_same(found, expected, **bounds):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **bounds, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("preset", PARTS)
def test_stem_and_language_model_are_whole_graphs_and_train_as_before(preset, make_model, batch, graphs, backend):
    model = make_model(preset).train()
    expected = step(model, batch)
    names = compile_parts(model, backend=backend, fullgraph=True)
    assert names == [*(f"vision_model.{name}" for name in PARTS[preset]), *LAYERS]
    assert_same(step(model, batch), expected, rtol=0, atol=0)
    assert len(graphs) == NUM_GRAPHS[preset] + 1


def test_compiled_gradients_are_those_of_before(make_model, batch):
    """Beside what the Trainer does to the tail, and with layers that are computed again in the backward pass."""
    model = make_model("megl-vit-tiny").train()
    model.probe_class_token()
    expected = step(model, batch)
    compile_parts(model, backend="aot_eager")
    assert_same(step(model, batch), expected, rtol=1e-4, atol=1e-5)
    model.gradient_checkpointing_enable()
    assert_same(step(model, batch), expected, rtol=1e-4, atol=1e-5)


def test_what_hooks_are_on_is_inside_of_no_part(make_model, batch, graphs, backend):
    """A hook inside of compiled code would not be called: evidence would be that of the first step."""
    layers = {"evidence_layers": ["resnet.encoder.stages.0.layers.0"], "evidence_sizes": [8]}
    model = make_model("megl-resnet-tiny", **layers).train()
    with torch.no_grad():
        expected = model(**batch).features
    names = compile_parts(model, ["resnet.embedder.pooler"], backend=backend)
    assert "vision_model.resnet.encoder.stages.0.layers.0" in names
    assert "vision_model.resnet.encoder.stages.0" not in names and "vision_model.resnet.embedder" not in names
    for _ in range(2):
        torch.testing.assert_close(model(**batch).features, expected)


def test_maps_that_differentiate_the_whole_vision_model_leave_it_as_it_is(make_model, batch, backend):
    model = make_model("megl-vit-tiny", saliency_method="input_x_gradient").train()
    assert compile_parts(model, backend=backend) == LAYERS
    step(model, batch)


def test_evaluation_runs_as_it_was(make_model, processor, batch, graphs, backend):
    model = make_model("megl-vit-tiny")
    compile_parts(model, backend=backend)
    model(**batch)
    model.generate_rationales(**processor.prompts(["cat"] * 4), pixel_values=batch["pixel_values"])
    assert not graphs


def test_a_copy_runs_its_own_weights(make_model, batch):
    model = make_model("megl-vit-tiny").train()
    compile_parts(model, backend="eager")
    other = copy.deepcopy(model)
    expected = step(model, batch)
    for parameter in other.vision_model.vit.layers[0].parameters():
        torch.nn.init.zeros_(parameter)
    assert step(other, batch)["loss"] != expected["loss"]
    assert_same(step(model, batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"lora_rank": 2}, {"frozen_layer": "resnet.encoder.stages.0"}])
def test_the_trainer_compiles_beside_adapters_and_frozen_layers(make_trainer, settings):
    found = []
    for backend in ({}, {"torch_compile_backend": "eager"}):
        torch.manual_seed(0)  # of adapters
        trainer = make_trainer(output=f"run-{len(found)}", **settings, **backend)
        compiled = [name for name, module in trainer.model.named_modules() if "forward" in vars(module)]
        assert bool(compiled) == bool(backend)
        trainer.train()
        found.append(weights(trainer.model))
    assert_same(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_compiling_the_model_as_a_whole_is_refused(make_trainer, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match="Accelerate's `dynamo_backend` .* leave it out, and pass `torch_compile`"):
        make_trainer()
    make_trainer(torch_compile=True)
