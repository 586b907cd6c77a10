"""Differentiable saliency: what is explained, and the map that each method makes of it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


def normalize_map(raw):
    """
    Keep what speaks for the class and scale each map by its own maximum.

    Args:
        raw (`torch.Tensor` of shape `(batch_size, height, width)`): Signed maps.

    Returns:
        `torch.Tensor` of the same shape in [0, 1]. A map without a positive value stays zero, with zero gradient.
    """
    positive = raw.relu()
    peak = positive.amax(dim=(1, 2), keepdim=True)
    return positive / torch.where(peak > 0, peak, torch.ones_like(peak))


# ---- Maps of features: (B, C, h, w) and the score's gradient there -> signed (B, h, w) ----


def grad_cam(features, gradients):
    """Grad-CAM (Selvaraju et al. 2017, eq. 1 and 2): channels weighted by their mean gradient."""
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * features).sum(dim=1)


def grad_cam_elementwise(features, gradients):
    """Element-wise Grad-CAM, as pytorch-grad-cam has it: what speaks for the class, channel by channel."""
    return (gradients * features).relu().sum(dim=1)


def hires_cam(features, gradients):
    """HiResCAM (Draelos and Carin 2020, eq. 3): each cell weighted by its own gradient."""
    return (gradients * features).sum(dim=1)


def layer_cam(features, gradients):
    """LayerCAM (Jiang et al. 2021, eq. 4 and 5): each cell weighted by its own gradient, if that is positive."""
    return (gradients.relu() * features).sum(dim=1)


def grad_cam_plus_plus(features, gradients):
    """Grad-CAM++ (Chattopadhay et al. 2018, eq. 19), the higher derivatives of exp(score) as powers of the first."""
    squares = gradients.square()
    denominator = 2 * squares + features.sum(dim=(2, 3), keepdim=True) * gradients * squares + 1e-6
    # No weight without a gradient; the inner `where` keeps its derivative finite.
    alphas = torch.where(squares > 0, squares / torch.where(denominator == 0, 1e-6, denominator), 0.0)
    weights = (alphas * gradients.relu()).sum(dim=(2, 3), keepdim=True)
    return (weights * features).sum(dim=1)


def xgrad_cam(features, gradients):
    """XGrad-CAM (Fu et al. 2020, eq. 8): channels weighted by the mean of their gradient over their activation."""
    total = features.sum(dim=(2, 3), keepdim=True) + 1e-7
    weights = (gradients * features).sum(dim=(2, 3), keepdim=True) / torch.where(total == 0, 1e-7, total)
    return (weights * features).sum(dim=1)


# ---- Maps of pixels: (B, 3, H, W) and the score's gradient there -> signed (B, H, W) ----


def input_x_gradient(pixel_values, gradients):
    """Input x gradient (Shrikumar et al. 2016), summed over the colours."""
    return (pixel_values * gradients).sum(dim=1)


# ---- Maps of attentions: a list of (B, heads, N, N), one for each layer -> relevance (B, N, N) of token to token ----


def attention_rollout(attentions, gradients=None):
    """Attention rollout (Abnar and Zuidema 2020, eq. 1 and section 3); the same for every class."""
    relevance = _identity(attentions[0])
    for attention in attentions:
        relevance = (attention.mean(dim=1) @ relevance + relevance) / 2
    return relevance


def attention_relevance(attentions, gradients):
    """Gradient-weighted attention relevance (Chefer et al. 2021, arXiv:2103.15679, eq. 5 and 6)."""
    relevance = _identity(attentions[0])
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (gradient * attention).relu().mean(dim=1) @ relevance
    return relevance


def _identity(attention):
    return torch.eye(attention.shape[-1], device=attention.device, dtype=attention.dtype).expand_as(attention[:, 0])


class SaliencyMethod(NamedTuple):
    """
    How a map is made. All are differentiable, and so fit for training; only those that read features leave the stem of
    the network alone and so cost little.
    """

    compute: Callable
    reads: str = "features"
    uses_gradient: bool = True


# The key is `MeglConfig.saliency_method`.
SALIENCY_METHODS = {
    "grad_cam": SaliencyMethod(grad_cam),
    "grad_cam_elementwise": SaliencyMethod(grad_cam_elementwise),
    "hires_cam": SaliencyMethod(hires_cam),
    "layer_cam": SaliencyMethod(layer_cam),
    "grad_cam_plus_plus": SaliencyMethod(grad_cam_plus_plus),
    "xgrad_cam": SaliencyMethod(xgrad_cam),
    "input_x_gradient": SaliencyMethod(input_x_gradient, reads="pixels"),
    "attention_rollout": SaliencyMethod(attention_rollout, reads="attentions", uses_gradient=False),
    "attention_relevance": SaliencyMethod(attention_relevance, reads="attentions"),
}


def explained_scores(logits, target, kind="logit", foil=None):
    """
    What the maps explain, a score for each sample.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Class scores.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class to explain.
        kind (`str`): `"logit"`, the class score itself, as the literature does; or `"contrast"`, how far it lies above
            the mean of all class scores. Features that speak for every class alike decide nothing, yet they can fill
            the map of a logit; a guided model may hide there what it really looks at. They cancel out of the contrast.
        foil (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Another class: why `target` rather than that?
            The score is then the difference of the two logits, whatever `kind` says.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`.
    """
    scores = logits.gather(1, target[:, None])[:, 0]
    if foil is not None:
        return scores - logits.gather(1, foil[:, None])[:, 0]
    return scores - logits.mean(dim=1) if kind == "contrast" else scores


def compute_saliency(tap, scores, method="grad_cam", retain_graph=None):
    """
    The saliency maps of a batch, all at once.

    Samples do not mix, as the sum of their scores is differentiated and each score depends on its own sample alone
    (as long as what follows the tap has no batch statistics).

    Args:
        tap ([`Tap`]): The tap that is open and that `scores` were computed under; it must read what `method` reads.
        scores (`torch.Tensor` of shape `(batch_size,)`): What to explain ([`explained_scores`]).
        method (`str`): A key of `SALIENCY_METHODS`.
        retain_graph (`bool`, *optional*): As in `torch.autograd.grad`; maps of more scores of the same logits need it.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, the grid of the tap, float32 or float64, in [0, 1].
    """
    compute, reads, uses_gradient = SALIENCY_METHODS[method]
    sources = tap.sources()
    gradients = _differentiate(scores, sources, tap, retain_graph) if uses_gradient else []
    sources, gradients = [_full(tensor) for tensor in sources], [_full(tensor) for tensor in gradients]
    if reads == "attentions":
        relevance = compute(sources, gradients)
        # Read out where the class is: at the class token, or else at all tokens.
        tokens = relevance[:, 0] if tap.num_prefix_tokens else relevance.mean(dim=1)
        return normalize_map(tap.to_grid(tokens[:, :, None])[:, 0])
    if reads == "pixels":
        raw = compute(sources[0], gradients[0])
        return normalize_map(F.adaptive_avg_pool2d(raw[:, None], tap.to_grid(tap.output).shape[2:])[:, 0])
    return normalize_map(compute(tap.to_grid(sources[0]), tap.to_grid(gradients[0])))


def _differentiate(scores, sources, tap, retain_graph):
    options = {"create_graph": tap.create_graph, "retain_graph": retain_graph, "allow_unused": True}
    with torch.inference_mode(False), torch.enable_grad():
        gradients = torch.autograd.grad(scores.sum(), sources, **options)
    if any(gradient is None for gradient in gradients):
        raise ValueError(
            f"The logits do not depend on the {tap.reads} of `saliency_layer={tap.name!r}`: choose a module that the "
            "class scores are computed from."
        )
    return gradients


def _full(tensor):
    """At least single precision: sums over a half-precision map lose too much."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
