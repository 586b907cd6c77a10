"""Losses: numbers computed by hand, and the published code's."""

import json
import math

import pytest
import torch

from modeling_megl.losses_megl import (
    DISTRIBUTION_STATISTICS,
    VISUAL_LOSSES,
    distribution_consistency,
    energy,
    gradia,
    haics,
    map_layout,
    map_moments,
    map_quantiles,
    ppce,
    rationale_loss,
    res_g,
    res_kernel,
    res_l,
    res_threshold,
    resize_masks,
    rrr,
)


NAN = float("nan")
EVERY_LOSS = pytest.mark.parametrize("name", sorted(VISUAL_LOSSES))


def settings_of(name, dtype=torch.float64):
    """What a loss needs besides maps and masks; kernels are random, as RES-L begins with a symmetric one."""
    kernel = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return {"kernel": kernel} if name == "res_l" else {}


def random_batch(size=4, side=5, dtype=torch.float64):
    """Maps, and masks of three times their resolution with pixels of all three kinds."""
    generator = torch.Generator().manual_seed(0)
    maps = 0.05 + 0.9 * torch.rand(size, side, side, generator=generator, dtype=dtype)
    masks = torch.randint(0, 3, (size, 3 * side, 3 * side), generator=generator).to(dtype)
    return maps, masks.masked_fill(masks == 2, NAN)


# ---- Visual losses, by hand ----


def test_visual_losses_by_hand():
    maps = torch.tensor([[[0.8, 0.5], [0.2, 0.1]]], dtype=torch.float64)
    masks = torch.tensor([[[1.0, 0.0], [0.0, NAN]]], dtype=torch.float64)
    # All values outside can be cut off from the one inside: just above the greatest of them.
    threshold = 0.5001
    pulls = [1 - math.tanh(5 * (0.8 - threshold)), *(1 + math.tanh(5 * (v - threshold)) for v in (0.5, 0.2))]
    # Mirrored, the blur spreads one cell evenly over four.
    distance = sum(abs(value - 0.25 / 0.250001) for value in (0.8, 0.5, 0.2, 0.1)) / 4
    expected = {
        gradia: (0.2 + 0.5 + 0.2) / 3,
        haics: -(math.log(0.8) + math.log(0.5) + math.log(0.8)) / 3,
        ppce: -math.log(0.8),
        rrr: 0.25 + 0.04,
        energy: 1 - 0.8 / 1.5,
        res_g: sum(pulls) / 3 + distance,
    }
    assert res_threshold(maps, masks).item() == pytest.approx(threshold)
    for loss, value in expected.items():
        assert loss(maps, masks).tolist() == [pytest.approx(value)], loss.__name__
    assert res_g(maps, masks, slack=0.2).item() == pytest.approx(sum(pulls) / 3 - 0.2 + distance)
    assert res_g(maps, masks, slack=2.0).item() == pytest.approx(distance)
    cut = torch.tensor([0.8], dtype=torch.float64)
    surrogates = [1.0, *(1 + math.tanh(5 * (v - 0.8)) for v in (0.5, 0.2))]
    assert res_g(maps, masks, threshold=cut).item() == pytest.approx(sum(surrogates) / 3 + distance)


def test_res_g_blurs_the_mask():
    masks = torch.zeros(1, 5, 5, dtype=torch.float64)
    masks[0, 2, 2] = 1
    blurred = torch.zeros(1, 5, 5, dtype=torch.float64)
    row = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    blurred[0, 1:4, 1:4] = torch.outer(row, row)
    # A slack of 2 leaves the distance alone.
    assert res_g(blurred, masks, slack=2.0).item() == pytest.approx(0, abs=1e-5)
    assert res_g(torch.zeros_like(masks), masks, slack=2.0).item() == pytest.approx(4 / 25, abs=1e-5)


def test_res_l_convolves_the_mask_at_its_own_resolution():
    masks = torch.zeros(1, 6, 6, dtype=torch.float64)
    masks[0, :, :2] = 1
    # Each cell sees itself and half a cell around, the edge cells a quarter of nothing.
    rows = torch.tensor([0.75, 1.0, 0.75], dtype=torch.float64)
    imputed = torch.outer(rows, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))[None]
    kernel = res_kernel()
    assert res_l(imputed, masks, kernel=kernel, slack=2.0).item() == pytest.approx(0, abs=1e-6)
    zero = torch.zeros(1, 3, 3, dtype=torch.float64)
    assert res_l(zero, masks, kernel=kernel, slack=2.0).item() == pytest.approx(imputed.mean().item())
    # Neither the kernel's scale nor a mask without any contrast matters.
    assert res_l(zero, masks, kernel=7 * kernel, slack=2.0).item() == pytest.approx(imputed.mean().item())
    assert res_l(zero, torch.zeros_like(masks), kernel=kernel, slack=2.0).item() == 0
    # One that sees its upper left corner only shifts the mask to the lower right.
    shifting = torch.zeros(1, 1, 4, 4)
    shifting[0, 0, 0, 0] = 1
    shifted = torch.zeros(1, 3, 3, dtype=torch.float64)
    shifted[0, 1:, 1] = 1
    assert res_l(shifted, masks, kernel=shifting, slack=2.0).item() == 0


def test_res_l_without_its_kernel_says_where_it_comes_from():
    with pytest.raises(ValueError, match="`res_l` needs `kernel`.* train with `MeglTrainer`"):
        res_l(torch.rand(1, 2, 2), torch.ones(1, 2, 2))


def test_a_cell_counts_each_kind_of_its_pixels_by_their_share():
    maps = torch.tensor([[[0.6, 0.3]]], dtype=torch.float64)
    # The left cell is a quarter inside, a quarter outside and half unlabelled, the right one all outside.
    masks = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [NAN, NAN, 0.0, 0.0]]], dtype=torch.float64)
    expected = {
        gradia: (0.5 * abs(0.6 - 0.5) + 0.3) / 1.5,
        haics: -(0.25 * math.log(0.6) + 0.25 * math.log(0.4) + math.log(0.7)) / 1.5,
        ppce: -math.log(0.6),
        rrr: 0.25 * 0.36 + 0.09,
        energy: 1 - 0.25 * 0.6 / (0.5 * 0.6 + 0.3),
    }
    for loss, value in expected.items():
        assert loss(maps, masks).tolist() == [pytest.approx(value)], loss.__name__


def search_threshold(values, labels):
    """The search of RES, cell by cell."""
    inside = [v for v, label in zip(values, labels, strict=True) if label == 1]
    outside = [v for v, label in zip(values, labels, strict=True) if label == 0]
    best, found = 0.0, 0.0
    for candidate in [v + 1e-4 for v in outside] + inside:
        score = sum(v < candidate for v in outside) / max(len(outside), 1)
        score += sum(v >= candidate for v in inside) / max(len(inside), 1)
        if score > best + 1e-9:
            best, found = score, candidate
    return found


def test_threshold_is_the_one_of_the_search_cell_by_cell():
    generator = torch.Generator().manual_seed(0)
    # Coarse values, so that there are ties; from rows without an inside or an outside to rows with many of both.
    maps = torch.randint(0, 12, (60, 4, 6), generator=generator, dtype=torch.float64) / 11
    shares = torch.rand(60, 1, 1, generator=generator)
    masks = (torch.rand(60, 4, 6, generator=generator) < shares).double()
    masks[torch.rand(60, 4, 6, generator=generator) < 0.3] = NAN
    masks[:3] = NAN
    masks[3:6] = 1.0
    masks[6:9] = 0.0
    rows = zip(maps.flatten(1).tolist(), masks.flatten(1).tolist(), strict=True)
    expected = [search_threshold(*row) for row in rows]
    torch.testing.assert_close(res_threshold(maps, masks), torch.tensor(expected, dtype=torch.float64))


# ---- Visual losses, what holds for each ----


@EVERY_LOSS
def test_gradients_are_right(name):
    maps, masks = random_batch()
    settings = settings_of(name)
    if name.startswith("res"):
        # The threshold found jumps with the map, and has no gradient.
        settings |= {"threshold": torch.full((4,), 0.4, dtype=torch.float64), "slack": 0.1}
    tensors = (maps.requires_grad_(), *(settings.pop("kernel").requires_grad_() for _ in range(name == "res_l")))

    def losses(maps, *kernel):
        return VISUAL_LOSSES[name](maps, masks, None, *kernel, **settings)

    assert torch.autograd.gradcheck(losses, tensors)


@EVERY_LOSS
def test_each_image_has_its_own_loss(name):
    maps, masks = random_batch()
    annotated = torch.tensor([True, False, True, True])
    losses = VISUAL_LOSSES[name](maps, masks, annotated, **settings_of(name))
    assert losses.shape == (4,) and losses.dtype == maps.dtype
    for index in range(4):
        single = VISUAL_LOSSES[name](maps[index, None], masks[index, None], **settings_of(name))[0]
        torch.testing.assert_close(losses[index], single if annotated[index] else torch.zeros_like(single))
    order = [2, 0, 3, 1]
    permuted = VISUAL_LOSSES[name](maps[order], masks[order], annotated[order], **settings_of(name))
    torch.testing.assert_close(permuted, losses[order])


@EVERY_LOSS
@pytest.mark.parametrize("filler", [0.0, 7.0, NAN])
def test_nothing_said_costs_nothing_and_teaches_nothing(name, filler):
    maps, masks = random_batch()
    masks[:2] = filler
    masks[2] = NAN  # annotated, but no pixel of it is labelled
    annotated = torch.tensor([False, False, True, False])
    kernel = {key: value.requires_grad_() for key, value in settings_of(name).items()}
    losses = VISUAL_LOSSES[name](maps.requires_grad_(), masks, annotated, **kernel)
    assert torch.equal(losses, torch.zeros(4, dtype=torch.float64))
    gradients = torch.autograd.grad(losses.sum(), [maps, *kernel.values()])
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@EVERY_LOSS
def test_unlabelled_pixels_are_pulled_nowhere(name):
    """But in RES to what is imputed, whose purpose is to fill them in."""
    maps, masks = random_batch()
    masks = resize_masks(masks.nan_to_num(), (5, 5)).round()
    masks[:, 2, 2] = NAN
    (gradient,) = torch.autograd.grad(
        VISUAL_LOSSES[name](maps.requires_grad_(), masks, **settings_of(name)).sum(), maps
    )
    pulled = gradient[masks.isnan()]
    if name.startswith("res"):
        torch.testing.assert_close(pulled.abs(), torch.full_like(pulled, 1 / 25))
    else:
        assert torch.equal(pulled, torch.zeros_like(pulled))


@EVERY_LOSS
def test_zero_maps_full_maps_and_empty_masks_have_exact_losses_and_finite_gradients(name):
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    maps = torch.stack([torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 0.5), mask])
    masks = torch.stack([mask, mask, torch.zeros(2, 3), mask])
    expected = {
        "gradia": [1 / 3, 2 / 3, 0.5, 0.0],
        "haics": [100 / 3, 200 / 3, math.log(2), 0.0],
        "ppce": [100.0, 0.0, 0.0, 0.0],
        "rrr": [0.0, 4.0, 1.5, 0.0],
        "energy": [1.0, 2 / 3, 1.0, 0.0],
    }
    losses = VISUAL_LOSSES[name](maps.requires_grad_(), masks, **settings_of(name, torch.float32))
    if name in expected:
        torch.testing.assert_close(losses, torch.tensor(expected[name]))
    (gradient,) = torch.autograd.grad(losses.sum(), maps)
    assert torch.isfinite(losses).all() and gradient.isfinite().all() and gradient.abs().max() <= 2


def test_maps_in_one_item_share_their_mean():
    maps, masks = random_batch()
    annotated = torch.tensor([True, False, True, True])
    whole = haics(maps[None], masks[None], annotated[None])
    assert whole.shape == (1,)
    torch.testing.assert_close(whole, haics(maps[annotated][None], masks[annotated][None]))
    stacked = haics(torch.cat([*maps[annotated]])[None], torch.cat([*masks[annotated]])[None])
    torch.testing.assert_close(whole, stacked)


# ---- Visual losses, the published code's numbers ----


@pytest.fixture()
def golden(shared):
    """Maps, binary masks, masks of signed labels (1, -1, and 0: unlabelled), and the published code's numbers."""
    numbers = json.loads((shared / "golden" / "guidance.json").read_text())
    labels = torch.tensor(numbers["res"]["signed_labels"])
    signed = (labels > 0).float().masked_fill(labels == 0, NAN)
    return torch.tensor(numbers["maps"]), torch.tensor(numbers["mask"]), signed, numbers


@pytest.mark.golden
@pytest.mark.parametrize("published, name", [("Energy", "energy"), ("L1", "gradia"), ("RRR", "rrr"), ("PPCE", "ppce")])
def test_losses_equal_those_of_model_guidance(golden, published, name):
    maps, masks, _, numbers = golden
    expected = torch.tensor(numbers["model_guidance_losses_per_map"][published])
    torch.testing.assert_close(VISUAL_LOSSES[name](maps, masks), expected, rtol=1e-4, atol=0)


@pytest.mark.golden
def test_res_g_and_its_threshold_equal_the_published_code(golden):
    maps, _, signed, numbers = golden
    expected = {name: torch.tensor([numbers["res"][name]]) for name in ("a", "res_g", "robust_term", "res_g_distance")}
    # One threshold and one slack for all maps, as there.
    maps, signed, slack = maps[None], signed[None], numbers["res"]["eta"]
    distance = res_g(maps, signed, slack=2.0)
    losses = res_g(maps, signed, slack=slack)
    torch.testing.assert_close(res_threshold(maps, signed), expected["a"], rtol=1e-4, atol=0)
    torch.testing.assert_close(distance, expected["res_g_distance"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses - distance, expected["robust_term"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses, expected["res_g"], rtol=1e-4, atol=0)


@pytest.mark.golden
def test_gradia_and_haics_equal_the_published_code(golden):
    maps, _, signed, numbers = golden
    # It takes what is unlabelled as outside in both; and in HAICS it multiplies the mean over all cells, not each
    # cell, by what is labelled. Ours is the mean over the labelled cells.
    masks = signed.nan_to_num()
    labelled = (~signed.isnan()).float().mean()
    expected = torch.tensor([numbers["res"]["gradia"], numbers["res"]["haics"]])
    losses = torch.stack([gradia(maps, masks).mean(), haics(maps, masks).mean() * labelled])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)


# ---- Masks ----


def test_resized_mask_is_the_mean_of_what_a_cell_covers():
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, :3] = 1
    mask[0, 3, 5] = 0.5
    expected = torch.tensor([[[1.0, 0.0], [0.0, 0.5 / 6]]])
    torch.testing.assert_close(resize_masks(mask, (2, 2)), expected)
    assert torch.equal(resize_masks(mask, (4, 6)), mask)
    mask[0, 0, 5] = NAN
    assert resize_masks(mask, (2, 2)).isnan().tolist() == [[[False, True], [False, False]]]


# ---- VEDC ----


def test_moments_by_hand():
    maps = torch.zeros(4, 2, 4, dtype=torch.float64)
    maps[0] = 1  # uniform
    maps[1, 0, 3] = 0.5  # one cell
    maps[2, 0, 0], maps[2, 0, 3] = 0.25, 0.75  # two cells of one row; and the last one is zero
    moments = map_moments(maps)
    # Centres of the columns are at 1/8, 3/8, 5/8, 7/8, those of the rows at 1/4 and 3/4.
    uniform = math.sqrt((2 * (3 / 8) ** 2 + 2 * (1 / 8) ** 2) / 4 + (1 / 4) ** 2)
    two_cells = math.sqrt(0.25 * 0.75) * (6 / 8)
    expected = torch.tensor([[1.0, uniform], [1 / 16, 0.0], [1 / 8, two_cells], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(moments, expected)


def test_moments_do_not_depend_on_the_resolution():
    coarse = torch.zeros(1, 4, 4)
    coarse[0, 1:3, 0:2] = 1
    fine = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)
    # A cell's own extent is what differs: at most a cell's variance, 1/12 of its squared side, in each direction.
    area, spread = map_moments(fine)[0]
    assert area == 0.25
    assert spread.item() == pytest.approx(math.sqrt(2 * 0.5**2 / 12), abs=1e-3)
    assert map_moments(coarse)[0, 0] == 0.25
    assert map_moments(coarse)[0, 1].item() == pytest.approx(math.sqrt(2) / 8)


def test_moments_of_edge_cases_have_finite_gradients():
    maps = torch.zeros(3, 3, 3, dtype=torch.float64)
    maps[1, 1, 1] = 1
    maps[2] = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    maps.requires_grad_()
    (gradient,) = torch.autograd.grad(map_moments(maps).sum(), maps)
    assert torch.isfinite(gradient).all()
    # The area's gradient is there whatever the map.
    torch.testing.assert_close(gradient[0], torch.full((3, 3), 1 / 9, dtype=torch.float64))
    maps = maps[2:].detach().requires_grad_()
    assert torch.autograd.gradcheck(map_moments, (maps,))


def test_distribution_consistency_by_hand():
    maps = torch.zeros(2, 2, 4, dtype=torch.float64)
    maps[0] = 1
    spread = math.sqrt((2 * (3 / 8) ** 2 + 2 * (1 / 8) ** 2) / 4 + (1 / 4) ** 2)
    mean = torch.tensor([0.25, 0.2], dtype=torch.float64)
    std = torch.tensor([0.5, 0.1], dtype=torch.float64)
    expected = [
        0.5 * ((0.75 / 0.5) ** 2 + ((spread - 0.2) / 0.1) ** 2) / 2,
        0.5 * ((0.25 / 0.5) ** 2 + (0.2 / 0.1) ** 2) / 2,
    ]
    losses = distribution_consistency(maps, mean, std)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    assert distribution_consistency(maps, *map_moments(maps[:1]), std)[0] == 0
    # At `delta` standard deviations the loss goes on with the slope that it has there.
    robust = [(0.5 * (0.25 / 0.5) ** 2 + 1.5 * (0.2 / 0.1) - 0.5 * 1.5**2) / 2]
    assert distribution_consistency(maps, mean, std, delta=1.5)[1:].tolist() == pytest.approx(robust)
    assert distribution_consistency(maps, mean, std, delta=2.5)[1] == losses[1]


def test_quantiles_by_hand():
    maps = torch.arange(16, dtype=torch.float64).flip(0).reshape(1, 4, 4) / 15
    assert map_quantiles(maps)[0].tolist() == pytest.approx([(2 * index + 1) / 15 for index in range(8)])
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 2:6] = 1
    assert map_quantiles(mask).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]]
    # Two quantiles of eight differ by 1.
    losses = distribution_consistency(torch.zeros_like(mask), map_quantiles(mask)[0], torch.ones(8), map_quantiles)
    assert losses.tolist() == [0.5 * 2 / 8]


def test_layout_by_hand():
    maps = torch.zeros(2, 8, 8)
    maps[0, :2, :4] = 0.5  # the two upper left cells
    maps[0, 7, 7] = 1.0
    expected = torch.zeros(2, 17)
    expected[0, :2], expected[0, 15], expected[0, 16] = 2 / 5, 1 / 5, 5 / 64
    torch.testing.assert_close(map_layout(maps), expected)


@pytest.mark.parametrize("name", sorted(DISTRIBUTION_STATISTICS))
def test_statistics_are_differentiable_and_independent_of_the_resolution(name):
    describe, smallest_std, delta = DISTRIBUTION_STATISTICS[name]
    maps = torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(describe, (maps.clone().requires_grad_(),))
    fine = maps.repeat_interleave(6, 1).repeat_interleave(6, 2)
    # A cell's own extent has a share in the spread.
    torch.testing.assert_close(describe(fine), describe(maps), rtol=0, atol=0.03 if describe is map_moments else 1e-9)
    mean, std = describe(maps).mean(dim=0), describe(maps).std(dim=0).clamp_min(smallest_std)
    scores = ((describe(maps) - mean) / std).abs()
    expected = torch.where(scores < delta, 0.5 * scores.square(), scores - 0.5).mean(dim=1)
    torch.testing.assert_close(distribution_consistency(maps, mean, std, describe, delta), expected)
    zero = torch.zeros(1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(distribution_consistency(zero, mean, std, describe, delta).sum(), zero)
    assert gradient.isfinite().all()


# ---- Text loss ----


def test_rationale_loss_by_hand():
    logits = torch.tensor([[[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]], [[5.0, 0.0, 0.0], [0.0, 0.0, math.log(6.0)]]])
    labels = torch.tensor([[1, 0], [-100, 2]])
    expected = torch.tensor([math.log(3) + math.log(4 / 2), math.log(8 / 6)])
    torch.testing.assert_close(rationale_loss(logits, labels), expected)


def test_rationale_loss_outside_the_rationale_is_zero_and_has_no_gradient():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([[-100, -100, -100], [-100, 4, -100]])
    losses = rationale_loss(logits, labels)
    assert losses[0] == 0
    losses.sum().backward()
    assert torch.equal(logits.grad.abs().sum(dim=2) > 0, labels != -100)


def test_rationale_loss_of_half_precision_is_summed_in_single():
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[0, 3, 6, -100]])
    assert rationale_loss(logits, labels).dtype == torch.float32
    torch.testing.assert_close(rationale_loss(logits, labels), rationale_loss(logits.float(), labels))
