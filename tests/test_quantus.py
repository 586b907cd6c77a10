"""The scores that Quantus has too are its own. Skipped without it: `pip install quantus`, in no extra."""

import sys

import numpy as np
import pytest
import torch


quantus = pytest.importorskip("quantus", reason="quantus is not installed: pip install quantus")


def unlike_maps(count, size):
    """Maps without two equal pixels, from even to sparse, and masks."""
    rng = np.random.default_rng(0)
    maps = rng.permuted(np.tile(np.arange(size * size), (count, 1)), axis=1) / size**2
    maps **= np.linspace(0.5, 3, count)[:, None]
    return maps.reshape(count, size, size).astype(np.float32), rng.random((count, size, size)) > 0.7


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("energy", "RelevanceMassAccuracy"),
        ("relevance_rank_accuracy", "RelevanceRankAccuracy"),
        ("sparseness", "Sparseness"),
    ],
)
def test_scores_of_maps(load, name, theirs):
    maps, masks = unlike_maps(7, 12)
    metric = getattr(quantus, theirs)(disable_warnings=True)
    inputs = {"x_batch": np.zeros((7, 1, 12, 12)), "y_batch": np.zeros(7, dtype=int), "s_batch": masks[:, None]}
    expected = metric(model=None, a_batch=maps[:, None].astype(float), **inputs)
    found = load("saliency").compute(predictions=maps, references=masks.astype(float), per_item=True)["per_item"]
    assert found[name] == pytest.approx(expected, abs=1e-6) and np.std(expected) > 1e-3


def test_max_sensitivity(load):
    """With the noise that ours draws, a sample at a time and the same for all images."""
    torch.manual_seed(0)
    images, radius = torch.rand(5, 1, 6, 6), 0.3
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    generator = torch.Generator().manual_seed(0)

    def explain(images):
        images = images.clone().requires_grad_()
        return torch.autograd.grad(model(images)[:, 1].sum(), images)[0][:, 0]

    def as_quantus_has_it(model, inputs, targets, **options):
        return explain(torch.as_tensor(inputs, dtype=torch.float32))[:, None].numpy()

    def draw(arr, indices, **options):
        return arr + (radius * (2 * torch.rand(1, 6, 6, generator=generator) - 1)).flatten().numpy()

    metric = quantus.MaxSensitivity(nr_samples=10, perturb_func=draw, disable_warnings=True)
    inputs = {"x_batch": images.numpy(), "y_batch": np.full(5, 1), "a_batch": explain(images)[:, None].numpy()}
    expected = metric(model=model, explain_func=as_quantus_has_it, **inputs)
    found = load("faithfulness").max_sensitivity(explain, images, radius=radius)
    assert found == {"max_sensitivity": pytest.approx(np.mean(expected), rel=1e-5), "n": 5, "n_undefined": 0}
    assert np.min(expected) > 0


def network(channels):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(channels, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(32, 6)).eval()


def test_road(load):
    """Of images of one channel, as Quantus counts pixels and channels together."""
    maps, _ = unlike_maps(40, 14)
    images, model, percentages = torch.randn(40, 1, 14, 14), network(1), [5, 20, 50, 80, 95]
    with torch.no_grad():  # so that no class is all images'
        model[-1].bias -= model(images).mean(dim=0)
    labels = model(images).argmax(dim=1)
    metric = quantus.ROAD(percentages=percentages, noise=0.01, disable_warnings=True)
    np.random.seed(0)
    inputs = {"x_batch": images.numpy(), "y_batch": labels.numpy(), "a_batch": maps[:, None]}
    expected = metric(model=model, device="cpu", **inputs)
    found = load("faithfulness").compute(
        predictions=maps, images=images, references=labels, model=model, road=percentages, steps=1, control=False
    )
    assert [found[f"road_{one}"] for one in percentages] == pytest.approx([expected[one] for one in percentages])
    assert len(set(expected.values())) > 3


def test_noisy_linear_imputation(load):
    impute = sys.modules[sys.modules[type(load("faithfulness")).__module__].road_scores.__module__].impute
    maps, _ = unlike_maps(4, 19)
    images = torch.randn(4, 3, 19, 19)
    for share in (0.1, 0.5, 0.95):
        removed = torch.from_numpy(maps > np.quantile(maps, 1 - share, axis=(1, 2), keepdims=True))[:, None]
        found = impute(images, removed)
        for image, hole, one in zip(images, removed, found, strict=True):
            places = hole.flatten().nonzero()[:, 0].numpy()
            expected = quantus.functions.perturb_func.noisy_linear_imputation(image.numpy(), places, noise=0.0)
            np.testing.assert_allclose(one, expected, atol=1e-4)
