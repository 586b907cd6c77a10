"""
The losses of explanation-guided training: pure functions of tensors, one value for each image.

Maps and masks are `(batch_size, height, width)` in [0, 1]; in a mask, 1 is inside the visual explanation. Every loss
returns `(batch_size,)`, so that a caller can leave images out and divide by the number of images of the whole batch,
however it is spread over accumulation steps and processes.
"""

import torch
import torch.nn.functional as F


def gradia(maps, masks):
    """GRADIA (Gao et al. 2022, "Aligning Eyes between Humans and Deep Neural Network"): mean of |map - mask|."""
    return (maps - masks).abs().mean(dim=(1, 2))


# The key is `MeglTrainingArguments.visual_loss`.
VISUAL_LOSSES = {"gradia": gradia}


def resize_masks(masks, size):
    """
    Masks at the resolution of the maps, each cell the mean of what it covers.

    Args:
        masks (`torch.Tensor` of shape `(batch_size, mask_height, mask_width)`): Visual explanations.
        size (`tuple[int, int]`): Height and width of the maps.
    """
    return F.adaptive_avg_pool2d(masks[:, None], size)[:, 0]


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


def distribution_consistency(maps, mean, std):
    """
    Visual Explanation Distribution Consistency (VEDC): how far maps lie from the data set's visual explanations.

    The paper states the aim, aligning maps of images without a visual explanation with the pattern of the data set's
    explanations, not a formula. Here the pattern is the distribution of [`map_moments`] over the annotated images,
    taken as normal, and the loss is its negative log-likelihood up to a constant: a map of a usual size and spread
    costs little, one that covers the whole picture or a single cell costs much, and no map is told where to look.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)`): Maps of images without a visual explanation.
        mean, std (`torch.Tensor` of shape `(2,)`): Of the moments of the visual explanations.
    """
    return 0.5 * ((map_moments(maps) - mean) / std).square().mean(dim=1)


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
