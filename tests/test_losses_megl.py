"""Losses: numbers computed by hand, and the published code's."""

import json
import math

import pytest
import torch

from modeling_megl.losses_megl import (
    VISUAL_LOSSES,
    distribution_consistency,
    gradia,
    map_moments,
    rationale_loss,
    resize_masks,
)


def test_gradia_by_hand():
    maps = torch.tensor([[[0.0, 0.5], [1.0, 0.25]], [[1.0, 1.0], [0.0, 0.0]]])
    masks = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(gradia(maps, masks), torch.tensor([0.75 / 4, 0.0]))
    assert VISUAL_LOSSES["gradia"] is gradia


@pytest.mark.golden
def test_gradia_equals_the_published_code(shared):
    golden = json.loads((shared / "golden" / "guidance.json").read_text())
    maps = torch.tensor(golden["maps"])
    labels = torch.tensor(golden["res"]["signed_labels"])
    losses = gradia(maps, (labels > 0).float())
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), torch.tensor(golden["res"]["gradia"]), rtol=1e-4, atol=0)


def test_resized_mask_is_the_mean_of_what_a_cell_covers():
    mask = torch.zeros(1, 4, 6)
    mask[0, :2, :3] = 1
    mask[0, 3, 5] = 0.5
    expected = torch.tensor([[[1.0, 0.0], [0.0, 0.5 / 6]]])
    torch.testing.assert_close(resize_masks(mask, (2, 2)), expected)
    assert torch.equal(resize_masks(mask, (4, 6)), mask)


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
