"""The benchmark compares like with like, and its page holds what was measured."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import export
from benchmarks import model as benchmark
from megl import machine


ARGUMENTS = SimpleNamespace(
    device="cpu", image_size=64, batch_size=3, repeats=2, dtype="float32", compile=False, models=["resnet18"]
)


def gradients_of(bench, step):
    """The gradient that a step would apply, in evaluation mode, where images do not mix."""
    found = {}
    bench.model.train(False)
    bench.model.train = lambda mode=True: bench.model
    bench._update = lambda loss: (
        loss.backward(),
        found.update({n: p.grad for n, p in bench.model.named_parameters()}),
    )
    getattr(bench, step)()
    del bench.model.train
    bench.model.zero_grad()
    return found


def test_one_image_at_a_time_computes_what_the_batched_step_does():
    bench = benchmark.Bench("resnet18", ARGUMENTS)
    batched, single = (gradients_of(bench, step) for step in ("guided_step", "one_at_a_time_step"))
    plain = gradients_of(bench, "plain_step")
    name = "vision_model.resnet.encoder.stages.3.layers.1.layer.1.convolution.weight"
    assert not torch.allclose(batched[name], plain[name], rtol=0.01)
    for name, gradient in batched.items():
        if name.startswith("vision_model."):
            torch.testing.assert_close(single[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_published_loop_has_the_batched_maps_with_constant_weights():
    bench = benchmark.Bench("resnet18", ARGUMENTS)
    found = gradients_of(bench, "literature_step")
    # The score's own parameters learn from the labels alone.
    plain = gradients_of(bench, "plain_step")
    torch.testing.assert_close(
        found["vision_model.classifier.1.weight"], plain["vision_model.classifier.1.weight"], rtol=1e-3, atol=1e-6
    )

    def guided_by_constant_weights():
        classifier = bench.model.vision_model
        layer, features = classifier.get_submodule(benchmark.RESNET_TAP), []
        handle = layer.register_forward_hook(lambda module, args, output: features.append(output))
        logits = classifier(bench.images).logits
        handle.remove()
        score = logits.gather(1, bench.labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, features[0], retain_graph=True)
        saliency = benchmark.normalize_map((gradient.mean(dim=(2, 3), keepdim=True) * features[0]).sum(dim=1))
        guidance = bench._guidance(saliency, bench.masks, bench.annotated)
        bench._update(torch.nn.functional.cross_entropy(logits, bench.labels) + guidance)

    bench.guided_by_constant_weights = guided_by_constant_weights
    for name, gradient in gradients_of(bench, "guided_by_constant_weights").items():
        if name.startswith("vision_model."):
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", ["plain_step", "guided_step", "one_at_a_time_step", "literature_step"])
def test_each_step_trains(step, dtype):
    bench = benchmark.Bench("resnet18", SimpleNamespace(**{**vars(ARGUMENTS), "dtype": dtype}))
    weight = bench.model.vision_model.classifier[1].weight
    before = weight.detach().clone()
    getattr(bench, step)()
    assert not torch.equal(weight, before)


def test_ratios_are_of_pairs(monkeypatch):
    page = machine.Page(benchmark.Bench, ARGUMENTS)
    monkeypatch.setattr(page, "run", lambda *args, **options: [(2.0, 1.0), (3.0, 2.0), (9.0, 3.0)])
    assert page.ratio("resnet18", "guided_step", "plain_step") == ["**2.00**", "1.50 to 3.00", "3,000", "2,000"]
    assert machine.table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_pairs_are_timed_in_turns(monkeypatch):
    order = []
    monkeypatch.setattr(machine, "seconds", lambda bench, step: order.append(step) or float(len(order)))
    pairs = machine.compare(benchmark.Bench, ARGUMENTS, "resnet18", "guided_step", "plain_step")
    assert order == ["plain_step", "guided_step"] + 2 * ["guided_step", "plain_step"]
    assert pairs == [(3.0, 4.0), (5.0, 6.0)]


def test_an_exported_graph_is_timed_beside_its_model(monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tiny = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    monkeypatch.setattr(export, "CONFIGS", {"tiny": tiny})
    monkeypatch.setattr(export, "SIZE", 32)
    arguments = SimpleNamespace(
        **{**vars(ARGUMENTS), "models": ["tiny"], "batch_size": 2, "trust_remote_code": False, "repeats": 1}
    )

    def run(page, function, *args, **options):
        return function(page.bench, arguments, *args, **options)

    monkeypatch.setattr(machine.Page, "run", run)
    page = export.write_page(arguments)
    rows = [line for line in page.splitlines() if line.startswith("| tiny |")]
    assert len(rows) == 3 and all("**" in row for row in rows[:2])
    onnx, program, weights = (float(cell) for cell in rows[2].split("|")[2:5])
    assert 0 < weights < onnx < 1 and weights < program < 1
