"""Does the label survive without the most salient pixels, filled in from their neighbours? ROAD (Rong et al. 2022)."""

import numpy as np
import torch
import torch.nn.functional as F


NOISE = 0.01  # standard deviation of the noise on what is filled in, as the authors' and Quantus' programs have it
TOLERANCE = 1e-5  # of the residual's norm over that of the known neighbours
MOST_ROUNDS = 100  # ten to twenty are usual, whatever the size


def road_names(percentages):
    """The scores of ROAD at these percentages of the pixels: each, and their mean."""
    return ["road", *(f"road_{percentage}" for percentage in percentages)] if len(percentages) else []


def check_percentages(percentages):
    if not all(isinstance(one, int) and 0 < one < 100 for one in percentages):
        raise ValueError(f"`road` must be whole percentages of the pixels from 1 to 99, got {list(percentages)}.")


def road_scores(classifier, pixels, ranks, target, percentages, constant, seed):
    """
    Whether the target is still the predicted class once the most salient pixels are filled in.

    Args:
        classifier (`callable`): Images to probabilities `(B, K)`.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): The images.
        ranks (`torch.Tensor` of shape `(B, H * W)`): The place of each pixel in the order.
        target (`torch.Tensor` of shape `(B,)`): Class ids.
        percentages (`list` of `int`): Of the pixels, rounded down.
        constant (`np.ndarray` of shape `(B,)`): The items whose map puts no pixel before another; they stay whole.
        seed (`int`): Draws the noise, the same for all images of a size.

    Returns:
        `dict`: the names of [`road_names`] to values in [0, 1] of shape `(B,)`.
    """
    noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed)).to(pixels.device)
    whole = torch.from_numpy(constant).to(pixels.device)
    found = {}
    for percentage in percentages:
        removed = (ranks < ranks.shape[1] * percentage // 100) & ~whole[:, None]
        removed = removed.view(-1, 1, *pixels.shape[2:])
        filled = torch.where(removed, impute(pixels, removed) + NOISE * noise, pixels)
        found[f"road_{percentage}"] = (classifier(filled).argmax(dim=1) == target).double().cpu().numpy()
    return {"road": np.mean(list(found.values()), axis=0), **found}


def impute(pixels, removed):
    """
    Noisy linear imputation (Rong et al. 2022) without the noise: each removed pixel is the mean of its
    neighbours, known and removed ones, those at its sides weighing 1/6 and those at its corners 1/12.

    That is a sparse linear system, solved by conjugate gradients with a multigrid cycle for preconditioner (Tatebe
    1993): a direct solution takes one to three times as long on a processor's core, and has to leave a GPU.

    Args:
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): The images.
        removed (`torch.Tensor` of shape `(B, 1, H, W)`): Which pixels to fill in; not all of an image.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`.
    """
    levels = make_levels(removed.to(pixels.dtype))
    hole = levels[0][0]
    residual = hole * neighbours(pixels * (1 - hole))
    goal = TOLERANCE**2 * dot(residual, residual)
    found, direction, former = torch.zeros_like(pixels), torch.zeros_like(pixels), None
    for _ in range(MOST_ROUNDS):
        if (dot(residual, residual) <= goal).all():
            break
        corrected = cycle(residual, levels)
        size = dot(residual, corrected)
        direction = corrected if former is None else corrected + quotient(size, former) * direction
        image = missing(direction, *levels[0])
        step = quotient(size, dot(direction, image))
        found, residual, former = found + step * direction, residual - step * image, size
    return pixels * (1 - hole) + found


def neighbours(values):
    """The weighted sum of each pixel's neighbours; beyond the edges are zeros."""
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * values) / 12


def missing(values, hole, weights):
    """What pixels in the hole lack to be the mean of their neighbours, times minus the neighbours' weights."""
    return hole * (weights * values - neighbours(values))


def make_levels(hole):
    """Holes `(B, 1, h, w)` of halving size, a cell being in one if all its pixels are; and the neighbours' weights."""
    levels = [(hole, neighbours(torch.ones_like(hole)))]
    while min(hole.shape[2:]) > 4:
        hole = 1 - F.max_pool2d(1 - hole, 2, ceil_mode=True)
        levels.append((hole, neighbours(torch.ones_like(hole))))
    return levels


def cycle(residual, levels):
    """One multigrid V-cycle: an approximate solution for the residual, by Jacobi's method on each level."""
    (hole, weights), *coarser = levels
    found = 0.8 * residual / weights
    if coarser:
        rest = F.avg_pool2d(residual - missing(found, hole, weights), 2, ceil_mode=True, divisor_override=1)
        found = found + hole * F.interpolate(cycle(coarser[0][0] * rest, coarser), size=found.shape[2:])
    return found + 0.8 * (residual - missing(found, hole, weights)) / weights


def dot(first, second):
    return (first * second).sum(dim=(2, 3), keepdim=True)


def quotient(numerator, denominator):
    """0 where the denominator is: of an image that is done."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))
