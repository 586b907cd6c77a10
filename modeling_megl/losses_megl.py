"""
The losses of explanation-guided training: pure functions of tensors, one value for each image.

Maps are `(batch_size, map_height, map_width)` in [0, 1], as the model gives them: the positive evidence divided by its
own maximum. Masks are `(batch_size, mask_height, mask_width)` of any size: 1 is inside the visual explanation, 0 is
outside, NaN is unlabelled (nobody said) and counts in no loss. Where a cell of the map covers pixels of several kinds,
each kind counts by its share of the cell. `annotated`, `(batch_size,)`, says which images have a visual explanation;
the others, and those without a labelled pixel, have loss and gradient 0, whatever stands in their masks.

Every loss returns `(batch_size,)`, so that a caller can leave images out and divide by the number of images of the
whole batch, however it is spread over accumulation steps and processes. Some of the published code takes its means and
its threshold over a whole batch instead: `maps[None]` and `masks[None]`, a single item of many maps, do the same here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


# ---- Visual losses ----


def gradia(maps, masks, annotated=None):
    """GRADIA (Gao et al. 2022, "Aligning Eyes between Humans and Deep Neural Network"): mean of |map - mask|."""
    inside, outside = _sides(maps, masks, annotated)
    labelled = inside + outside
    target = inside / torch.where(labelled > 0, labelled, 1.0)
    return _ratio(labelled * (maps - target).abs(), labelled)


def haics(maps, masks, annotated=None):
    """
    HAICS (Shen et al. 2021, "Human-AI Interactive and Continuous Sensemaking"): binary cross-entropy between map and
    scribbles, mean over what is labelled.

    Takes a map's values for probabilities. As in `torch.nn.BCELoss` no cell costs more than 100, which is what a map's
    greatest value, 1, costs outside; it has no gradient there, as scaling a map by its maximum leaves that cell at 1.
    """
    inside, outside = _sides(maps, masks, annotated)
    return _ratio(inside * _minus_log(maps) + outside * _minus_log(1 - maps), inside + outside)


def ppce(maps, masks, annotated=None):
    """
    PPCE, per-pixel cross-entropy (Rao et al. 2023, "Studying How to Efficiently and Effectively Guide Models with
    Explanations"): mean of -log map inside; nothing is asked outside, so 0 for an empty mask.

    Takes a map's values for probabilities. A cell at 0 costs 100 and has no gradient.
    """
    inside, _ = _sides(maps, masks, annotated)
    return _ratio(inside * _minus_log(maps), inside)


def rrr(maps, masks, annotated=None):
    """
    RRR (Ross et al. 2017, "Right for the Right Reasons"; on maps instead of input gradients, as in Rao et al. 2023):
    *sum* of the squared map outside, so that its weight should fall as the number of cells rises.

    The published forms square negative evidence too, of which a map in [0, 1] has none.
    """
    _, outside = _sides(maps, masks, annotated)
    return (outside * maps.square()).flatten(1).sum(dim=1)


def energy(maps, masks, annotated=None):
    """
    Energy (Rao et al. 2023): 1 minus the share of the map's sum that lies inside; the scale of the map does not
    matter. A zero map has no share inside, and an empty mask none to be had: each costs 1.
    """
    inside, outside = _sides(maps, masks, annotated)
    labelled = inside + outside
    total = (labelled * maps).flatten(1).sum(dim=1)
    hit = (inside * maps).flatten(1).sum(dim=1)
    return torch.where(labelled.flatten(1).any(dim=1), 1 - hit / torch.where(total < 1e-7, 1.0, total), 0.0)


def res_g(maps, masks, annotated=None, slack=0.0, threshold=None):
    """
    RES-G (Gao et al. 2022, "RES: A Robust Framework for Guiding Visual Explanation"), with imputation by a Gaussian:
    a robust term, max(0, mean of |tanh(5 (map - threshold)) - label| - slack) with labels 1 inside and -1 outside, and
    the mean distance of the map to the mask blurred by a 3 x 3 Gaussian and scaled to a maximum of 1.

    Args:
        maps, masks, annotated: See the head of this file.
        slack (`float`, *optional*, defaults to 0.0): The robust term's tolerance of inaccurate masks, in [0, 2].
        threshold (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Where a map is cut. `None`: the best for each image, [`res_threshold`].
    """
    inside, outside = _sides(maps, masks, annotated)
    return _res(maps, inside, outside, _blur(inside), slack, threshold)


def res_l(maps, masks, annotated=None, kernel=None, slack=0.0, threshold=None):
    """
    RES-L (Gao et al. 2022): as [`res_g`], with imputation by a learnable convolution. Maps and kernel are trained by
    the same loss.

    Args:
        kernel (`torch.Tensor` of shape `(1, 1, 2 * s, 2 * s)`):
            Convolved with the mask at `s` times the map's resolution, `s` even, with a stride of `s`: each cell sees
            itself and half a cell around. The result is scaled to [0, 1], so the kernel's own scale does not matter.
            [`res_kernel`] makes the first one; `MeglTrainer` keeps, trains and saves it.
        Others: As in [`res_g`].
    """
    if kernel is None:
        raise ValueError(
            "`res_l` needs `kernel`, its learnt convolution: train with `MeglTrainer`, or pass one, to a model in "
            "`visual_loss_kwargs`. `losses_megl.res_kernel()` makes the first one."
        )
    inside, outside = _sides(maps, masks, annotated)
    return _res(maps, inside, outside, _convolve(maps, masks, annotated, kernel), slack, threshold)


def res_kernel(device=None):
    """The kernel that [`res_l`] starts from, the mean of what it covers: `(1, 1, 16, 16)`."""
    return torch.full((1, 1, 16, 16), 1 / 256, device=device)


def res_threshold(maps, masks, annotated=None):
    """
    The threshold of RES: the one that leaves the greatest share of the cells inside at or above it plus the greatest
    share of the cells outside below it. Tried are each value inside and, 1e-4 higher, each value outside. The search
    sorts each image's values once.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, without gradient; 0 where nothing is labelled.
    """
    return _res_threshold(maps, *_sides(maps, masks, annotated))


@torch.no_grad()
def _res_threshold(maps, inside, outside):
    values, inside, outside = maps.flatten(1), inside.flatten(1), outside.flatten(1)
    ranked, order = values.sort(dim=1)
    candidates = torch.cat([values + 1e-4, values], dim=1)
    below = torch.searchsorted(ranked, candidates)  # how many values each candidate leaves below it

    def share_below(weights):
        sums = F.pad(weights.double().gather(1, order).cumsum(dim=1), (1, 0))
        return sums.gather(1, below) / torch.where(sums[:, -1:] > 0, sums[:, -1:], 1.0)

    # An absent kind adds the same to every candidate.
    score = share_below(outside) - share_below(inside)
    allowed = torch.cat([outside, inside], dim=1) > 0
    best = score.masked_fill(~allowed, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.where(allowed.any(dim=1), candidates.gather(1, best)[:, 0], 0.0)


def _res(maps, inside, outside, imputed, slack, threshold):
    if threshold is None:
        threshold = _res_threshold(maps, inside, outside)
    surrogate = torch.tanh(5 * (maps - threshold.reshape(-1, *[1] * (maps.ndim - 1))))
    robust = _ratio(inside * (1 - surrogate) + outside * (1 + surrogate), inside + outside)
    # Also where nobody said anything: filling that in is what the imputation is for.
    distance = (maps - imputed).abs().flatten(1).mean(dim=1)
    return F.relu(robust - slack) + torch.where((inside + outside).flatten(1).any(dim=1), distance, 0.0)


def _blur(inside):
    for dim in (-1, -2):
        # The edge is mirrored at the centre of its cells, as image libraries do.
        padded = F.pad(inside, (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1), mode="reflect")
        left, centre, right = (padded.narrow(dim, start, inside.shape[dim]) for start in range(3))
        inside = (left + 2 * centre + right) / 4
    return inside / (inside.amax(dim=(-2, -1), keepdim=True) + 1e-6)


def _convolve(maps, masks, annotated, kernel):
    stride = kernel.shape[-1] // 2
    size = [stride * side for side in maps.shape[-2:]]
    fine, _ = _sides(maps, masks, annotated, size)
    imputed = F.conv2d(fine.flatten(0, -3)[:, None], kernel.to(maps.dtype), stride=stride, padding=stride // 2)
    imputed = imputed.reshape(maps.shape)
    imputed = imputed - imputed.amin(dim=(-2, -1), keepdim=True)
    spread = imputed.amax(dim=(-2, -1), keepdim=True)
    return imputed / torch.where(spread > 1e-6, spread, 1.0)


# The key is `MeglTrainingArguments.visual_loss`.
VISUAL_LOSSES = {
    "gradia": gradia,
    "haics": haics,
    "res_g": res_g,
    "res_l": res_l,
    "rrr": rrr,
    "energy": energy,
    "ppce": ppce,
}


def visual_losses(name, maps, masks, annotated=None, **settings):
    """
    The visual loss of that name: what the model and `MeglTrainer` both train by.

    Args:
        name (`str`): A key of `VISUAL_LOSSES`.
        maps, masks, annotated: See the head of this file; or several of each image, `(batch_size, n, height, width)`
            and `(batch_size, n)`, each of which counts for itself.
        settings: What this loss takes besides, such as `slack` and `kernel` of RES.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, or `(batch_size, n)`.
    """
    if name not in VISUAL_LOSSES:
        raise ValueError(f"`visual_loss` must be one of {sorted(VISUAL_LOSSES)}, got {name!r}.")
    if maps.ndim == 4:
        parts = (part if part is None else part.flatten(0, 1) for part in (maps, masks, annotated))
        return visual_losses(name, *parts, **settings).unflatten(0, maps.shape[:2])
    return VISUAL_LOSSES[name](maps, masks, annotated, **settings)


def _sides(maps, masks, annotated, size=None):
    """
    Shares of each cell that are labelled as inside and as outside, both `(batch_size, map_height, map_width)`, and 0
    where nothing is labelled and in images without a visual explanation.
    """
    size = maps.shape[-2:] if size is None else size
    labelled = ~masks.isnan()
    if annotated is not None:
        labelled = labelled & annotated.reshape(*annotated.shape, *[1] * (masks.ndim - annotated.ndim))
    inside = resize_masks(torch.where(labelled, masks, 0.0).to(maps.dtype), size)
    return inside, resize_masks(labelled.to(maps.dtype), size) - inside


def _ratio(parts, wholes):
    """Sum over sum, for each image; 0 where there is nothing to divide by."""
    parts, wholes = parts.flatten(1).sum(dim=1), wholes.flatten(1).sum(dim=1)
    return parts / torch.where(wholes > 0, wholes, 1.0)


def _minus_log(values):
    """At most 100, and without gradient at 0, where it would be infinite."""
    positive = values > 0
    return torch.where(positive, -torch.where(positive, values, 1.0).log(), 100.0).clamp_max(100.0)


def resize_masks(masks, size):
    """
    Masks at the resolution of the maps, each cell the mean of what it covers; a cell with an unlabelled pixel is
    unlabelled.

    Args:
        masks (`torch.Tensor` of shape `(batch_size, mask_height, mask_width)`): Visual explanations.
        size (`tuple[int, int]`): Height and width of the maps.
    """
    resized = F.adaptive_avg_pool2d(masks.flatten(0, -3)[:, None], size)
    return resized.reshape(*masks.shape[:-2], *size)


# ---- VEDC ----


def map_moments(maps):
    """
    Size and spread of maps or masks, whatever their resolution.

    Returns:
        `torch.Tensor` of shape `(batch_size, 2)`: the area (mean value, in [0, 1]) and the standard deviation of the
        mass about its centre, in units of the image's side (in [0, 0.71]). A zero map has area 0 and spread 0.
    """
    height, width = maps.shape[1:]
    rows = (torch.arange(height, device=maps.device, dtype=maps.dtype) + 0.5) / height
    columns = (torch.arange(width, device=maps.device, dtype=maps.dtype) + 0.5) / width
    mass = maps.sum(dim=(1, 2), keepdim=True)
    share = maps / torch.where(mass > 0, mass, torch.ones_like(mass))
    along_rows, along_columns = share.sum(dim=2), share.sum(dim=1)
    variance = _variance(along_rows, rows) + _variance(along_columns, columns)
    # The root's gradient is infinite at 0, where all mass lies in one cell.
    spread = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt() * (variance > 0)
    return torch.stack([maps.mean(dim=(1, 2)), spread], dim=1)


def _variance(share, positions):
    mean = (share * positions).sum(dim=1, keepdim=True)
    return (share * (positions - mean) ** 2).sum(dim=1)


def map_quantiles(maps):
    """
    How a map's values are distributed, whatever their places and their resolution.

    Returns:
        `torch.Tensor` of shape `(batch_size, 8)`: the values below which 1/16, 3/16, … 15/16 of the map lie.
    """
    ranked = maps.flatten(1).sort(dim=1).values
    levels = (torch.arange(8, device=maps.device) + 0.5) / 8
    return ranked[:, (levels * ranked.shape[1]).long()]


def map_layout(maps):
    """
    Where a map lies and how large it is, whatever its resolution.

    Returns:
        `torch.Tensor` of shape `(batch_size, 17)`: the shares of the map's sum in each cell of a 4 x 4 grid, and the
        area (mean value), each in [0, 1]. A zero map has zero shares.
    """
    grid = resize_masks(maps, (4, 4)).flatten(1)
    mass = grid.sum(dim=1, keepdim=True)
    shares = grid / torch.where(mass > 0, mass, 1.0)
    return torch.cat([shares, maps.mean(dim=(1, 2))[:, None]], dim=1)


class DistributionStatistic(NamedTuple):
    """
    A pattern of the visual explanations that VEDC pulls maps to.

    Args:
        describe (`Callable`): Maps or masks `(batch_size, height, width)` to what is compared, `(batch_size, n)`.
        smallest_std (`float`): Explanations that are all alike would otherwise make the loss infinite.
        delta (`float`, *optional*, defaults to infinity): See [`distribution_consistency`].
    """

    describe: Callable
    smallest_std: float
    delta: float = math.inf


# The key is `MeglTrainingArguments.distribution_statistic`.
DISTRIBUTION_STATISTICS = {
    "moments": DistributionStatistic(map_moments, smallest_std=0.02),
    # Maps far from any explanation, as at the start of a training, do not outweigh the other losses.
    "robust_moments": DistributionStatistic(map_moments, smallest_std=0.02, delta=1.0),
    # No quantile of values in [0, 1] has a standard deviation above 1/2. So all are divided by 1, and the loss is half
    # the squared 2-Wasserstein distance between a map's values and those of the mean explanation.
    "quantiles": DistributionStatistic(map_quantiles, smallest_std=1.0),
    "layout": DistributionStatistic(map_layout, smallest_std=0.02),
}


def distribution_consistency(maps, mean, std, describe=map_moments, delta=math.inf):
    """
    Visual Explanation Distribution Consistency (VEDC): how far maps lie from the data set's visual explanations.

    The paper states the aim, aligning maps of images without a visual explanation with the pattern of the data set's
    explanations, not a formula. Here the pattern is the distribution of a statistic over the annotated images, taken
    as normal, and the loss is its negative log-likelihood up to a constant. With [`map_moments`], a map of a usual
    size and spread costs little, one that covers the whole picture or a single cell costs much, and no map is told
    where to look. Each map is compared on its own, not the mean of a batch, so that the loss of a batch is the same
    however it is spread over accumulation steps and processes.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)`): Maps of images without a visual explanation.
        mean, std (`torch.Tensor` of shape `(n,)`): Of the statistic over the visual explanations.
        describe (`Callable`, *optional*, defaults to [`map_moments`]): The statistic, see [`DistributionStatistic`].
        delta (`float`, *optional*, defaults to infinity):
            How many standard deviations from the mean the loss goes on linearly, with the slope that it has there:
            the likelihood of a normal distribution with exponential tails (Huber 1964).
    """
    scores = (describe(maps) - mean) / std
    return F.huber_loss(scores, torch.zeros_like(scores), reduction="none", delta=delta).mean(dim=1)


# ---- Classification loss of several labels ----


def multi_label_loss(logits, labels):
    """
    Binary cross-entropy of each class for itself, mean over the classes, as Transformers has it for
    `problem_type="multi_label_classification"`.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Class scores.
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): 1 for the classes that an image shows, else 0.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)


def positive_classes(labels):
    """
    The classes that each image shows.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): 1 for the classes that an image shows, else 0.

    Returns:
        `torch.LongTensor` of shape `(batch_size, n)`: their ids, ascending, -1 behind the last; `n` is the greatest
        number of them, 1 or more.
    """
    positive = labels > 0.5
    count = max(int(positive.sum(dim=1).max()), 1)
    places = positive.int().sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.where(positive.gather(1, places), places, -1)


# ---- Text loss ----


def rationale_loss(logits, labels):
    """
    Cross-entropy of rationale tokens.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): `logits[:, t]` predicts `labels[:, t]`.
        labels (`torch.Tensor` of shape `(batch_size, length)`): Token ids, -100 outside the rationale.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`: the sum over each image's rationale tokens.
    """
    return F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none").sum(dim=1)
