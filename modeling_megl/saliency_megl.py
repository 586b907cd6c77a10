"""Differentiable saliency: where the features are read off the vision model, and the map that is made of them."""

from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


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


def grad_cam(features, gradients):
    """
    Grad-CAM before its ReLU (Selvaraju et al. 2017, eq. 1 and 2).

    Args:
        features (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Features at the tap.
        gradients (`torch.Tensor` of the same shape): Gradient of the explained score with respect to `features`.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`: the signed map.
    """
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * features).sum(dim=1)


# Each method maps (features, gradients) to signed maps; the key is `MeglConfig.saliency_method`.
SALIENCY_METHODS = {"grad_cam": grad_cam}


def explained_scores(scores, kind):
    """
    What the map explains: `"logit"`, the class score itself, as the literature does; or `"contrast"`, how far it lies
    above the mean of all class scores. Features that speak for every class alike decide nothing, yet they can fill the
    map of a logit; a guided model may hide there what it really looks at. They cancel out of the contrast.
    """
    return scores - scores.mean(dim=1, keepdim=True) if kind == "contrast" else scores


def compute_saliency(tap, scores, target, method="grad_cam", create_graph=False):
    """
    The saliency maps of a batch, all at once.

    Samples do not mix, as the sum of their scores is differentiated and each score depends on its own sample alone
    (as long as what follows the tap has no batch statistics).

    Args:
        tap ([`Tap`]): The tap that was open while `scores` were computed.
        scores (`torch.Tensor` of shape `(batch_size, num_labels)`): Logits.
        target (`torch.Tensor` of shape `(batch_size,)`): The class to explain, for each sample.
        create_graph (`bool`): Whether the maps shall be differentiable themselves (a second derivative).

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, float32 or float64, in [0, 1].
    """
    with torch.inference_mode(False), torch.enable_grad():
        explained = scores.gather(1, target[:, None]).sum()
        (gradient,) = torch.autograd.grad(explained, tap.output, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"The logits do not depend on the output of `saliency_layer={tap.name!r}`: choose a module that the "
            "class scores are computed from."
        )
    features, gradient = tap.to_grid(tap.output), tap.to_grid(gradient)
    if features.dtype in (torch.float16, torch.bfloat16):
        features, gradient = features.float(), gradient.float()
    return normalize_map(SALIENCY_METHODS[method](features, gradient))


class Tap:
    """
    Splits a vision model, for one forward pass, at the module whose output the map is computed on.

    What comes before (the stem, most of the work) runs as it would without the tap. What comes after (the tail) runs
    with gradients on, whatever the caller's grad mode, so that the score can be differentiated with respect to the
    features; and, where the map itself is differentiated, with attention kernels that have a second derivative.

    Args:
        vision_model (`nn.Module`): The vision model.
        name (`str`): Name of the module in `vision_model`.
        num_prefix_tokens (`int`): Class and register tokens before the patch tokens, for token models.
        image_shape (`tuple[int, int]`): Height and width of the input in pixels; gives the grid of the patch tokens.
        create_graph (`bool`): Whether the map will be differentiated.
    """

    def __init__(self, vision_model, name, num_prefix_tokens, image_shape, create_graph):
        self.name = name
        self.module = vision_model.get_submodule(name)
        self.num_prefix_tokens = num_prefix_tokens
        self.image_shape = image_shape
        self.create_graph = create_graph
        self.output = None

    def __enter__(self):
        self.tail = ExitStack()
        self.handle = self.module.register_forward_hook(self._hook)
        return self

    def __exit__(self, *exception):
        self.handle.remove()
        self.tail.close()

    def _hook(self, module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"`saliency_layer={self.name!r}` gives a {type(tensor).__name__}: choose a module whose output is a "
                "tensor."
            )
        if self.create_graph:
            # The fused attention kernels have no second derivative.
            self.tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        else:
            self.tail.enter_context(torch.inference_mode(False))
            self.tail.enter_context(torch.enable_grad())
            tensor = tensor.detach().clone()
        if not tensor.requires_grad:
            tensor.requires_grad_()
        self.output = tensor
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    def to_grid(self, tensor):
        """`(B, C, h, w)` of a feature map `(B, C, h, w)` or of tokens `(B, prefix + h * w, C)`."""
        if tensor.ndim == 4:
            return tensor
        height, width = token_grid(tensor.shape[1] - self.num_prefix_tokens, self.image_shape)
        patches = tensor[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, (height, width))


def token_grid(num_patches, image_shape):
    """Rows and columns of `num_patches` tokens of square patches that tile an image of `image_shape` pixels."""
    height, width = image_shape
    for stride in range(1, max(image_shape) + 1):
        if (height // stride) * (width // stride) == num_patches:
            return height // stride, width // stride
    raise ValueError(
        f"{num_patches} patch tokens do not tile an image of {height} x {width} pixels: `saliency_layer` must give "
        "one token for each square patch after its class and register tokens."
    )


def open_tap(vision_model, name, image_shape, create_graph):
    """The [`Tap`] at the module `name`, or at the one that [`find_tap`] finds where `name` is `None`."""
    name = name or find_tap(vision_model)
    return Tap(vision_model, name, count_prefix_tokens(vision_model), image_shape, create_graph)


def probe_tap(vision_model, name, image_size):
    """
    Try the tap on one random image.

    Args:
        name (`str` or `None`): The module; `None` finds it.
        image_size (`int` or `tuple[int, int]`): Input size of the model in pixels.

    Returns:
        `int`: the number of channels at the tap.

    Raises:
        `ValueError`: where the gradient there is zero everywhere, so that each map would be.
    """
    shape = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    noise = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), open_tap(vision_model.eval(), name, shape, create_graph=False) as tap:
        scores = vision_model(noise).logits
    with torch.enable_grad():
        weighted = (scores * noise.new_tensor(range(1, scores.shape[1] + 1))).sum()
        (gradient,) = torch.autograd.grad(weighted, tap.output, allow_unused=True)
    if gradient is None or not tap.to_grid(gradient).any():
        raise ValueError(
            f"The class scores have no gradient at any patch of the output of `saliency_layer={tap.name!r}`, so every "
            f"map would be zero. Choose an earlier module; {find_tap(vision_model)!r} is what is taken by default."
        )
    return tap.to_grid(tap.output).shape[1]


def find_tap(vision_model):
    """
    The deepest module whose output still has a grid and a gradient, found from the model's structure.

    Vision models stack their layers or stages in an `nn.ModuleList`. Where the class is read out at a class token, the
    gradient at the last layer's patch outputs is zero, so the tap is what enters its attention: the output of its
    first norm. Elsewhere it is the last layer's or stage's output.

    Returns:
        `str`: the module's name in `vision_model`.
    """
    stacks = [(n, m) for n, m in vision_model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not stacks:
        raise ValueError(
            f"No stack of layers was found in {type(vision_model).__name__}: name the module to explain by "
            "`saliency_layer`."
        )
    name, stack = stacks[0]
    name = f"{name}.{len(stack) - 1}"
    if count_prefix_tokens(vision_model) == 0:
        return name
    for child, module in stack[-1].named_children():
        if isinstance(module, nn.LayerNorm):
            return f"{name}.{child}"
    raise ValueError(
        f"The last layer of {type(vision_model).__name__} has no norm of its own before its attention: name the "
        "module to explain by `saliency_layer`."
    )


def count_prefix_tokens(vision_model):
    """Class, distillation and register tokens in front of the patch tokens."""
    names = {name.rsplit(".", 1)[-1] for name, _ in vision_model.named_parameters()}
    has_class_token = bool(names & {"cls_token", "class_token", "class_embedding"})
    registers = getattr(vision_model.config, "num_register_tokens", 0) or 0
    return has_class_token + ("distillation_token" in names) + registers
