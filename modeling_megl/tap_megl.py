"""The tap: where a vision model is split, what a map is computed from there, and how it is found."""

from contextlib import ExitStack, contextmanager
from itertools import takewhile

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedConfig


class Tap:
    """
    Splits a vision model, for one forward pass, at the module whose output the map lies on.

    What comes before (the stem, most of the work) runs as it would without the tap. What comes after (the tail) runs
    with gradients on, whatever the caller's grad mode, so that the score can be differentiated; and, where the map
    itself is differentiated, with attention kernels that have a second derivative. A method that reads pixels or
    attentions differentiates the whole model: then all of it is tail.

    ```python
    with open_tap(vision_model, None, (224, 224), create_graph=False) as tap:
        logits = tap(pixel_values)
        saliency = compute_saliency(tap, logits.amax(dim=1))
    ```

    Args:
        vision_model (`nn.Module`): The vision model.
        name (`str`): Name of the module in `vision_model`.
        image_shape (`tuple[int, int]`): Height and width of the input in pixels; gives the grid of patch tokens.
        create_graph (`bool`): Whether the map will be differentiated.
        reads (`str`, defaults to `"features"`): What the method makes its map of: `"features"` at the tap, the
            `"pixels"`, or the `"attentions"` of all layers.

    Raises:
        `ValueError`: where `vision_model` has no module of that name.
    """

    def __init__(self, vision_model, name, image_shape, create_graph, reads="features"):
        modules = dict(vision_model.named_modules())
        if name not in modules:
            raise ValueError(
                f"`saliency_layer={name!r}` is no module of {type(vision_model).__name__}; "
                f"{find_tap(vision_model)!r} is what is taken by default."
            )
        self.vision_model, self.name, self.module = vision_model, name, modules[name]
        self.num_prefix_tokens = count_prefix_tokens(vision_model)
        self.image_shape = image_shape
        self.create_graph = create_graph
        self.reads = reads
        self.output = self.pixels = self.attentions = None

    def __enter__(self):
        self.tail = ExitStack()
        self.tail.callback(self.module.register_forward_hook(self._hook).remove)
        self.tail.enter_context(_no_checkpointing(self._tail_modules()))
        if self.reads == "attentions":
            self.tail.enter_context(_eager_attention(self.vision_model))
        return self

    def __exit__(self, *exception):
        self.tail.close()

    def __call__(self, pixel_values):
        """The logits `(batch_size, num_labels)` of the vision model; keeps what the map is made of."""
        if self.reads != "features":
            self._start_tail()
            pixel_values = self.pixels = self._leaf(pixel_values)
        if self.reads != "attentions":
            return self.vision_model(pixel_values).logits
        outputs = self.vision_model(pixel_values, output_attentions=True)
        self.attentions = getattr(outputs, "attentions", None)
        return outputs.logits

    def _hook(self, module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"`saliency_layer={self.name!r}` gives a {type(tensor).__name__}: choose a module whose output is a "
                "tensor."
            )
        if self.reads == "features":
            self._start_tail()
            tensor = self._leaf(tensor)
        self.output = tensor
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    def _start_tail(self):
        if self.create_graph:
            # The fused attention kernels have no second derivative.
            self.tail.enter_context(sdpa_kernel(SDPBackend.MATH))
        else:
            self.tail.enter_context(torch.inference_mode(False))
            self.tail.enter_context(torch.enable_grad())

    def _leaf(self, tensor):
        """What the scores are differentiated by; at inference cut off from what came before."""
        if not self.create_graph or not tensor.requires_grad:
            # A copy: the caller's tensor is not to be marked, and one made in inference mode cannot be.
            tensor = tensor.detach().clone().requires_grad_()
        return tensor

    def _tail_modules(self):
        """The modules that are differentiated twice: those that contain the tap or come after it, or all."""
        started = self.reads != "features"
        for name, module in self.vision_model.named_modules():
            started = started or name == self.name
            if started or self.name.startswith(f"{name}."):
                yield module

    def sources(self):
        """The tensors that the method reads, a list."""
        if self.reads == "features":
            return [self.output]
        if self.reads == "pixels":
            return [self.pixels]
        num_tokens = self.output.shape[1] if self.output.ndim == 3 else None
        expected = (len(self.output), num_tokens, num_tokens)
        found = self.attentions or ()
        if not found or any(a.ndim != 4 or (a.shape[0], *a.shape[2:]) != expected for a in found):
            raise ValueError(
                "A map of attentions needs a transformer in which all tokens attend to all in every layer; "
                f"{type(self.vision_model).__name__} is none: choose a `saliency_method` that reads features, such "
                "as 'grad_cam'."
            )
        return list(found)

    def to_grid(self, tensor):
        """`(B, C, h, w)` of a feature map `(B, C, h, w)` or `(B, h, w, C)`, or of tokens `(B, prefix + h * w, C)`."""
        if tensor.ndim == 4:
            return tensor if _is_channels_first(tensor.shape, self.image_shape) else tensor.permute(0, 3, 1, 2)
        height, width = token_grid(tensor.shape[1] - self.num_prefix_tokens, self.image_shape)
        patches = tensor[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, (height, width))


@contextmanager
def _no_checkpointing(modules):
    """
    Keeps the given modules from being recomputed in the backward pass: the hook would run again then, and outside of
    the contexts that the tail needs.
    """
    switched = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    for module in switched:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True


@contextmanager
def _eager_attention(vision_model):
    """Attention that gives its weights; the fused kernels never hold them."""
    configs = [getattr(module, "config", None) for module in vision_model.modules()]
    configs = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values()
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextmanager
def keep_gathered(model):
    """
    For a gradient that is taken inside the forward pass of a model that FSDP 2 shards: at its end FSDP would shard the
    parameters again, as after a backward pass, though the rest of the forward pass and the backward pass need them.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]

    def is_backward_pass(value):
        for module in sharded:
            module.set_reshard_after_backward(value, recurse=False)
            module.set_is_last_backward(value)

    is_backward_pass(False)
    try:
        yield
    finally:
        is_backward_pass(True)


def _is_channels_first(shape, image_shape):
    """Whether the last two dimensions of `shape` are the grid, and not the middle two: cells are square."""

    def distortion(height, width):
        return abs(image_shape[0] / height - image_shape[1] / width)

    return distortion(*shape[2:]) <= distortion(*shape[1:3])


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


def open_tap(vision_model, name, image_shape, create_graph, reads="features"):
    """The [`Tap`] at the module `name`, or at the one that [`find_tap`] finds where `name` is `None`."""
    return Tap(vision_model, name or find_tap(vision_model), image_shape, create_graph, reads)


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
    parameter = next(vision_model.parameters())
    noise = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(0)).to(parameter.device, parameter.dtype)
    training = vision_model.training
    with torch.no_grad(), open_tap(vision_model.eval(), name, shape, create_graph=False) as tap:
        scores = tap(noise)
    vision_model.train(training)
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

    Vision models stack their layers or stages. Where the class is read out at a class token, the gradient at the last
    layer's patch outputs is zero, so the tap is what enters its attention: the output of its first norm. Where all
    tokens are pooled, it is what the norm before the pooling makes of them: a norm takes no notice of its input's
    scale, so in front of it the gradient is orthogonal to the features, and a map of their products has nothing to do
    with the score; behind it, the score is the sum of the map. Elsewhere it is the last layer's or stage's output, or
    what convolutions beside the stack make of it.

    Returns:
        `str`: the module's name in `vision_model`.

    Raises:
        `ValueError`: where the structure does not tell.
    """
    name = _last_layer(vision_model)
    if count_prefix_tokens(vision_model) == 0:
        return _convolutional_head(vision_model, name) or _final_norm(vision_model, name) or name
    for child, module in vision_model.get_submodule(name).named_children():
        if isinstance(module, nn.LayerNorm):
            return f"{name}.{child}"
    raise ValueError(
        f"The last layer of {type(vision_model).__name__} has no norm of its own before its attention: name the "
        "module to explain by `saliency_layer`."
    )


def _last_layer(vision_model):
    """Name of the last element of the largest stack."""
    for name, module in vision_model.named_modules():
        if getattr(module, "feature_info", None):  # timm's own list of its stages
            return ".".join(filter(None, (name, list(module.feature_info)[-1]["module"])))
    stacks = {}
    for name, module in vision_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(name.startswith(f"{n}.") for n in stacks):
            stacks[name] = module
    if not stacks:
        raise ValueError(
            f"No stack of layers was found in {type(vision_model).__name__}: name the module to explain by "
            "`saliency_layer`."
        )
    name = max(stacks, key=lambda name: sum(parameter.numel() for parameter in stacks[name].parameters()))
    layer = stacks[name]
    while isinstance(layer, nn.ModuleList):
        name, layer = f"{name}.{len(layer) - 1}", layer[-1]
    return name


def _convolutional_head(vision_model, last_layer):
    """Name of what follows the stack of `last_layer` in its parent before the pooling, if convolutions do."""
    head = _before_pooling(vision_model, last_layer.rpartition(".")[0])
    return head[-1][0] if any(_convolves(module) for _, module in head) else None


def _final_norm(vision_model, last_layer):
    """Name of the norm that tokens pass between `last_layer` and the pooling, if they do."""
    if _convolves(vision_model.get_submodule(last_layer)):  # ConvNeXt and its like pool first
        return None
    while last_layer:
        for name, module in _before_pooling(vision_model, last_layer):
            if isinstance(module, nn.LayerNorm):
                return name
        last_layer = last_layer.rpartition(".")[0]
    return None


def _before_pooling(vision_model, name):
    """Names and modules of what follows the module `name` in its parent before the pooling."""
    if not name:  # the model itself
        return []
    parent, _, name = name.rpartition(".")
    siblings = list(vision_model.get_submodule(parent).named_children())
    position = [sibling for sibling, _ in siblings].index(name)
    following = takewhile(lambda sibling: not _pools_or_classifies(sibling[1]), siblings[position + 1 :])
    return [(".".join(filter(None, (parent, sibling))), module) for sibling, module in following]


def _convolves(module):
    return any(isinstance(layer, nn.Conv2d) for layer in module.modules())


def _pools_or_classifies(module):
    return any(isinstance(layer, nn.Linear) or "Pool" in type(layer).__name__ for layer in module.modules())


def count_prefix_tokens(vision_model):
    """Class, distillation and register tokens in front of the patch tokens."""
    for module in vision_model.modules():
        if isinstance(getattr(module, "num_prefix_tokens", None), int):  # timm's own count
            return module.num_prefix_tokens
    names = {name.rsplit(".", 1)[-1] for name, _ in vision_model.named_parameters()}
    has_class_token = bool(names & {"cls_token", "class_token", "class_embedding"})
    registers = getattr(vision_model.config, "num_register_tokens", 0) or 0
    return has_class_token + ("distillation_token" in names) + registers
