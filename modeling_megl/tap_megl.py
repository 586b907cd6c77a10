"""The tap: where a vision model is split, what a map is computed from there, and how it is found."""

import inspect
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from .class_token_megl import class_token_alone, other_rows_lost
from .configuration_megl import one_line


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
        evidence_layers (`list[str]`, *optional*): Names of more modules whose output is kept, without gradients.
        class_token_alone (`bool`, defaults to `False`): Whether, with a map that will be differentiated, the tail is
            computed for the class token alone; safe where [`probe_class_token`] says so.

    Raises:
        `ValueError`: where `vision_model` has no module of such a name.
    """

    def __init__(
        self,
        vision_model,
        name,
        image_shape,
        create_graph,
        reads="features",
        evidence_layers=(),
        class_token_alone=False,
    ):
        modules = dict(vision_model.named_modules())
        if name not in modules:
            raise ValueError(
                f"`saliency_layer={name!r}` is no module of {_class_name(vision_model)}; {_default(vision_model)}."
            )
        if missing := [layer for layer in evidence_layers if layer not in modules]:
            raise ValueError(
                f"{_evidence_layer(missing[0])} is no module of {_class_name(vision_model)}; 'auto' finds some."
            )
        self.vision_model, self.name, self.module = vision_model, name, modules[name]
        self.evidence_modules, self.evidence = {layer: modules[layer] for layer in evidence_layers}, {}
        self.num_prefix_tokens = count_prefix_tokens(vision_model)
        self.image_shape = image_shape
        self.create_graph = create_graph
        self.reads = reads
        self.class_token_alone = class_token_alone
        self.output = self.pixels = self.attentions = None

    def __enter__(self):
        self.tail = ExitStack()
        self.tail.callback(self.module.register_forward_hook(self._hook).remove)
        for layer, module in self.evidence_modules.items():
            self.tail.callback(module.register_forward_hook(partial(self._keep, layer)).remove)
        self.tail.enter_context(_no_checkpointing(self._tail_modules()))
        if self.reads == "attentions":
            self.tail.enter_context(_eager_attention(self.vision_model))
        return self

    def __exit__(self, *exception):
        self.tail.close()

    def __call__(self, pixel_values):
        """The logits `(batch_size, num_labels)` of the vision model; keeps what the map is made of."""
        self.output = None
        if self.reads != "features":
            self._start_tail()
            self.pixels = self._leaf(pixel_values)
            pixel_values = self.pixels.clone()  # as the model may normalise them in place
        if self.reads != "attentions":
            return self.vision_model(pixel_values).logits
        outputs = self.vision_model(pixel_values, output_attentions=True)
        self.attentions = getattr(outputs, "attentions", None)
        return outputs.logits

    def _keep(self, layer, module, args, output):
        where = _evidence_layer(layer)
        # A copy, as what follows may change it in place.
        self.evidence[layer] = self.to_grid(_tensor(output, where), where).detach().clone()

    def _hook(self, module, args, output):
        tensor = _tensor(output, f"`saliency_layer={self.name!r}`")
        # Where the module runs several times, the last one counts. A copy is kept, and another one handed on: what
        # follows, or uses the same memory, may change it in place.
        if self.reads == "features":
            self._start_tail()
            self.output = self._leaf(tensor.clone())
        else:
            self.output = tensor.clone()
        tensor = self.output.clone()
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    def _start_tail(self):
        if self.create_graph:
            # The fused attention kernels have no second derivative.
            self.tail.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.class_token_alone and self.reads == "features":
                self.tail.enter_context(class_token_alone(*self.last_layer()))
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

    def last_layer(self):
        """The layer whose first norm the tap is, and its last norm, if they are two."""
        layer = self.vision_model.get_submodule(self.name.rpartition(".")[0])
        norms = [module for module in layer.children() if _is_norm(module)]
        return (layer, norms[-1]) if self.module in norms[:-1] else None

    def sources(self):
        """The tensors that the method reads, a list."""
        if self.reads == "features":
            return [self.output]
        if self.reads == "pixels":
            return [self.pixels]
        num_tokens = self.output.shape[1] if self.output.ndim == 3 else None
        expected = (self.output.shape[0], num_tokens, num_tokens)
        found = self.attentions or ()
        if not found or any(a.ndim != 4 or (a.shape[0], *a.shape[2:]) != expected for a in found):
            raise ValueError(
                "A map of attentions needs a transformer in which all tokens attend to all in every layer; "
                f"{type(self.vision_model).__name__} is none: choose a `saliency_method` that reads features, such "
                "as 'grad_cam'."
            )
        return list(found)

    def features(self, known=()):
        """
        `(B, C, h, w)`: the features at the tap and, behind them, those of evidence layers, averaged over its cells:
        first what is `known`, a list of such tensors, then those of `evidence_layers`.
        """
        features = self.to_grid(self.output)
        others = [F.adaptive_avg_pool2d(self.evidence[layer], features.shape[2:]) for layer in self.evidence_modules]
        return torch.cat([features, *known, *others], dim=1) if known or others else features

    def to_grid(self, tensor, where=None):
        """
        `(B, C, h, w)` of a feature map `(B, C, h, w)` or `(B, h, w, C)`, or of tokens `(B, prefix + h * w, C)`.

        Raises:
            `ValueError`: where the tokens do not tile the image, or `tensor` is of another shape, in a line that
                begins with `where`: whose output it is, the tap's by default.
        """
        where = where or f"`saliency_layer={self.name!r}`"
        if tensor.ndim == 4:
            return tensor if _is_channels_first(tensor.shape, self.image_shape) else tensor.permute(0, 3, 1, 2)
        if tensor.ndim != 3:
            raise TapError(
                f"{where} gives a tensor of shape {tuple(tensor.shape)}: choose a module that gives a feature map or "
                "tokens."
            )
        num_tokens, prefix = tensor.shape[1], self.num_prefix_tokens
        # In a pyramid the class token joins the last stage alone.
        if not _find_grid(num_tokens - prefix, self.image_shape) and _find_grid(num_tokens, self.image_shape):
            prefix = 0
        height, width = token_grid(num_tokens - prefix, self.image_shape, where)
        return tensor[:, prefix:].transpose(1, 2).unflatten(2, (height, width))


class TapError(ValueError):
    """A module is no place for a tap."""


def _evidence_layer(name):
    return f"`evidence_layers`: {name!r}"


def _tensor(output, where):
    """What a module gives, or the first of several."""
    tensor = output[0] if isinstance(output, tuple) else output
    if not isinstance(tensor, torch.Tensor):
        raise TapError(f"{where} gives a {type(tensor).__name__}: choose a module whose output is a tensor.")
    return tensor


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
    models = [module for module in vision_model.modules() if isinstance(module, PreTrainedModel)]
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        # The outer ones first, which set their parts as well.
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)


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


def token_grid(num_patches, image_shape, where="`saliency_layer`"):
    """Rows and columns of `num_patches` tokens of square patches that tile an image of `image_shape` pixels."""
    grid = _find_grid(num_patches, image_shape)
    if grid is None:
        height, width = image_shape
        raise TapError(
            f"{num_patches} patch tokens do not tile an image of {height} x {width} pixels: {where} must give one "
            "token for each square patch after its class and register tokens."
        )
    return grid


def _find_grid(num_patches, image_shape):
    height, width = image_shape
    for stride in range(1, max(image_shape) + 1):
        if (height // stride) * (width // stride) == num_patches:
            return height // stride, width // stride
    return None


def open_tap(vision_model, name, *args, **kwargs):
    """The [`Tap`] at the module `name`, or at the one that [`find_tap`] finds where `name` is `None`."""
    return Tap(vision_model, name or find_tap(vision_model), *args, **kwargs)


# Rows and columns, in eighths of the picture, of the squares that the probe changes: spread, and unlike each other.
_SQUARES = tuple(enumerate((3, 6, 1, 4, 7, 2, 5, 0)))


def probe_tap(vision_model, name, image_size):
    """
    Try the tap on a random picture, and on eight more that differ from it in one square each.

    Args:
        name (`str` or `None`): The module; `None` finds it.
        image_size (`int` or `tuple[int, int]`): Input size of the model in pixels.

    Returns:
        `int`: the number of channels at the tap.

    Raises:
        `ValueError`: where the model cannot answer pictures of that size, or answers the same ones twice differently;
            where the output of the module is no grid that lies over the picture; and where the gradient there is zero
            everywhere, so that each map would be.
    """
    images = _probe_images(vision_model, image_size)
    with _evaluation(vision_model), open_tap(vision_model, name, images.shape[2:], create_graph=False) as tap:
        twice = [_answer(tap, images[:1]) for _ in range(2)]
        scores, features = _answer(tap, images)
    where = f"`saliency_layer={tap.name!r}`" if name else f"{tap.name!r}, the module that is taken by default,"
    _check_repeatable(vision_model, *twice)
    with torch.enable_grad():
        weighted = (scores * scores.new_tensor(range(1, scores.shape[1] + 1))).sum()
        (gradient,) = torch.autograd.grad(weighted, tap.output, allow_unused=True)
    if gradient is None or not tap.to_grid(gradient).any():
        advice = f"Choose an earlier module; {_default(vision_model)}." if name else "Name one by `saliency_layer`."
        raise TapError(
            f"The class scores have no gradient at any patch of the output of {where}, so every map would be zero. "
            f"{advice}"
        )
    _check_lies_over_the_picture(features.detach(), where)
    return features.shape[1]


def probe_class_token(vision_model, name, image_size, evidence_layers=()):
    """
    Whether the tail may be computed for the class token alone: nothing reads the other rows of the last layer's
    output, which is tried by losing them, and logits and their gradient at the tap are the same without them.

    Args:
        vision_model, name, image_size: As in [`probe_tap`].
        evidence_layers (`list[str]`, *optional*): Names of modules whose output is read besides.
    """
    if count_prefix_tokens(vision_model) != 1:
        return False
    images = _probe_images(vision_model, image_size)
    opened = partial(open_tap, vision_model, name, images.shape[2:], True, evidence_layers=evidence_layers)

    def answers(tap):
        scores = tap(images)
        (gradient,) = torch.autograd.grad(scores[:, 0].sum(), tap.output)
        return [scores, gradient, *tap.evidence.values()]

    # Gradients are on in the tail alone: graphs of the stem, of nine pictures each, would be the peak of a training.
    with _evaluation(vision_model):
        with opened() as tap:
            if tap.last_layer() is None:
                return False
            expected = answers(tap)
        with opened() as tap, other_rows_lost(tap.last_layer()[0]):
            lost = answers(tap)
        try:
            with opened(class_token_alone=True) as tap:
                found = answers(tap)
        except RuntimeError:  # of shapes, where the layer is built otherwise
            return False
    same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, expected, strict=True))
    return same and not any(answer.isnan().any() for answer in lost)


def probe_stem(vision_model, name, image_size, apart=()):
    """
    The parts of a vision model whose work is done when the tap's output is made, so that a map that is trained
    differentiates them once, as any training does.

    Args:
        vision_model, name, image_size: As in [`probe_tap`].
        apart (`list[str]`, *optional*): Names of modules that hooks are on: no part has one of them inside.

    Returns:
        `list[str]`: the outermost modules of which that holds.
    """
    ended, name = [], name or find_tap(vision_model)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ended.append(name))
        for name, module in vision_model.named_modules()
    ]
    try:
        with _evaluation(vision_model):
            vision_model(_probe_images(vision_model, image_size)[:1])
    finally:
        for hook in hooks:
            hook.remove()
    end = len(ended) - ended[::-1].index(name)
    whole = set(ended[:end]) - set(ended[end:])  # and not what runs once more behind the tap
    whole -= {module for module in whole if any(inside.startswith(f"{module}.") for inside in apart)}
    return [module for module in dict.fromkeys(ended) if module in whole and not _is_in(whole, module)]


def _is_in(modules, name):
    """Whether one of the modules has the one of that name inside."""
    return any(name.startswith(f"{module}.") for module in modules)


def probe_evidence_layers(vision_model, name, image_size, layers):
    """
    Try evidence layers as [`probe_tap`] tries the tap, which `name` and `image_size` are of.

    Args:
        layers (`list[str]`): Names of modules, or `["auto"]`: of the layers or stages before the last, the first and
            the middle one, if they lie over the picture.

    Returns:
        `tuple[list[str], list[int]]`: their names and their numbers of channels.

    Raises:
        `ValueError`: where the output of a module that is named is no grid that lies over the picture.
    """
    found = {}
    automatic = layers == ["auto"]
    order = [name for name, _ in vision_model.named_modules()]
    if automatic:
        layers = _evidence_layers(vision_model)
    elif set(layers) <= set(order):
        layers = sorted(layers, key=order.index)  # as they run
    for layer in layers:
        try:
            found[layer] = _probe_evidence_layer(vision_model, name, image_size, layer)
        except TapError:
            if not automatic:
                raise
    return list(found), list(found.values())


def _probe_evidence_layer(vision_model, name, image_size, layer):
    images = _probe_images(vision_model, image_size)
    shape = tuple(images.shape[2:])
    with _evaluation(vision_model), open_tap(vision_model, name, shape, False, evidence_layers=[layer]) as tap:
        _answer(tap, images)
    features, where = tap.evidence.get(layer), _evidence_layer(layer)
    if features is None or len(features) != len(images):
        raise TapError(f"{where} does not give one output for each picture: choose another module.")
    if features.shape[2:].numel() < min(tap.to_grid(tap.output).shape[2:].numel(), 4):
        raise TapError(f"{where} gives one value for the whole picture: choose a module before the pooling.")
    _check_lies_over_the_picture(features, where)
    return features.shape[1]


@contextmanager
def _evaluation(vision_model):
    """Without gradients, in evaluation mode."""
    training = vision_model.training
    vision_model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        vision_model.train(training)


def _probe_images(vision_model, image_size):
    """A random picture and copies of it, each with a square, an eighth of the side, of other values."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    images = [image]
    for row, column in _SQUARES:
        changed = image.clone()
        rows, columns = (
            slice(i * side // 8, max((i + 1) * side // 8, i * side // 8 + 1))
            for i, side in ((row, height), (column, width))
        )
        changed[:, rows, columns] *= -1
        images.append(changed)
    return torch.stack(images).to(next(vision_model.parameters()))


def _answer(tap, images):
    """Class scores and the features at the tap as a grid, of the shapes that they must have."""
    model = _class_name(tap.vision_model)
    try:
        scores = tap(images)
    except TapError:
        raise
    except Exception as error:
        inputs = inspect.signature(getattr(tap.vision_model, "backbone", tap.vision_model).forward).parameters
        others = [name for name in inputs if name.startswith(("input_ids", "pixel_", "spatial_"))]
        height, width = images.shape[2:]
        raise ValueError(
            f"{model} does not give class `logits` for `pixel_values` alone of shape (batch_size, 3, {height}, "
            f"{width}): {one_line(error)}. Its `forward` takes {', '.join(others) or 'no pixels'}."
        ) from error
    num_labels = getattr(tap.vision_model.config, "num_labels", None)
    if scores.ndim != 2 or len(scores) != len(images) or num_labels not in (None, scores.shape[1]):
        raise ValueError(
            f"{model} must give `logits` of shape (batch_size, num_labels), ({len(images)}, {num_labels}) here, got "
            f"{tuple(scores.shape)}."
        )
    if tap.output is None:
        raise TapError(
            f"The module {tap.name!r} of {model} does not run: choose one that the class scores are computed from by "
            "`saliency_layer`."
        )
    if len(tap.output) != len(images):
        raise TapError(
            f"The output of the module {tap.name!r} of {model} has {len(tap.output)} rows for {len(images)} pictures: "
            "choose a module that does not cut them into windows by `saliency_layer`."
        )
    return scores, tap.to_grid(tap.output)


def _check_repeatable(vision_model, first, second):
    # Of class scores and features, whose number may be drawn as well. Sums in another order, as on GPUs, may differ in
    # their last digits.
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(first, second, strict=True)]
    difference = max(
        ((a - b).norm() / b.norm().clamp_min(1e-30)).item() if a.shape == b.shape else 1.0 for a, b in pairs
    )
    if difference > 1e-3:
        raise ValueError(
            f"{_class_name(vision_model)} answers the same picture differently each time, also in evaluation mode "
            f"(by {difference:.1%}): a label and a map would be drawn at random. Models that mask or shuffle their "
            "patches at random, as masked autoencoders do, cannot be explained."
        )


def _check_lies_over_the_picture(features, where):
    """Changes of the picture must move the features at the same place most: further down, further to the right."""
    features = features.float()
    change = (features[1:] - features[:1]).abs().sum(dim=1)  # (8, h, w)
    # An untrained network may be too deep for anything to come through.
    if features.abs().amax() < 1e-10 or change.amax() < 1e-5 * features.abs().sum(dim=1).amax():
        return
    # Without what changes everywhere, as where a network weights its channels by their means.
    change = change - change.amin(dim=(1, 2), keepdim=True)
    change = change / change.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    for axis, name in ((1, "rows"), (2, "columns")):
        cells = torch.arange(change.shape[axis], device=change.device, dtype=torch.float32)
        if len(cells) == 1:
            continue
        centres = change.sum(dim=3 - axis) @ cells
        places = centres.new_tensor([square[axis - 1] for square in _SQUARES])
        if not torch.corrcoef(torch.stack([places, centres]))[0, 1] > 0.5:
            raise TapError(
                f"The output of {where} does not lie over the picture as a grid: squares changed in other {name} of "
                f"the picture do not change it in other {name}. The tokens are in another order, or all see all; "
                "choose another module by `saliency_layer`."
            )


def _class_name(vision_model):
    """Of the class that the user knows, not of the head around it."""
    return type(getattr(vision_model, "backbone", vision_model)).__name__


def _default(vision_model):
    """What a message says about the tap that is taken by default."""
    try:
        return f"{find_tap(vision_model)!r} is what is taken by default"
    except ValueError:
        return "none is taken by default, as the model's structure does not tell"


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
    for layer in (name, _last_block(vision_model, name)):
        for child, module in vision_model.get_submodule(layer).named_children():
            if _is_norm(module):
                return f"{layer}.{child}"
    raise ValueError(
        f"The last layer of {_class_name(vision_model)} has no norm of its own before its attention: name the module "
        "to explain by `saliency_layer`."
    )


def _evidence_layers(vision_model):
    """Names of the first and the middle one of all layers or stages, if they come before the last."""
    try:
        layers = _layers(vision_model)
    except ValueError:
        return []
    return list(dict.fromkeys(layers[place] for place in (0, len(layers) // 2) if place < len(layers) - 1))


def _last_layer(vision_model):
    return _layers(vision_model)[-1]


def _layers(vision_model):
    """Names of the elements of the largest stack; of elements that are stacks themselves, of their last one."""
    for name, module in vision_model.named_modules():
        if getattr(module, "feature_info", None):  # timm's own list of its stages
            return [".".join(filter(None, (name, stage["module"]))) for stage in module.feature_info]
    stack = _largest_stack(vision_model)
    if stack is None:
        raise ValueError(
            f"No stack of layers was found in {_class_name(vision_model)}: name the module to explain by "
            "`saliency_layer`."
        )
    layers = []
    for name, layer in vision_model.get_submodule(stack).named_children():
        name = f"{stack}.{name}"
        while isinstance(layer, nn.ModuleList):
            name, layer = f"{name}.{len(layer) - 1}", layer[-1]
        layers.append(name)
    return layers


def _largest_stack(vision_model):
    stacks = {}
    for name, module in vision_model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and not any(name.startswith(f"{n}.") for n in stacks):
            stacks[name] = module
    return max(stacks, key=lambda name: sum(p.numel() for p in stacks[name].parameters()), default=None)


def _last_block(vision_model, name):
    """Name of the last block of a stage, or `name` where that is a block itself."""
    for child, module in vision_model.get_submodule(name).named_children():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(block) for block in module}) == 1:
            return f"{name}.{child}.{len(module) - 1}"
    return name


def _convolutional_head(vision_model, last_layer):
    """Name of what follows the stack of `last_layer` in its parent before the pooling, if convolutions do."""
    head, _ = _before_pooling(vision_model, last_layer.rpartition(".")[0])
    return head[-1][0] if any(_convolves(module) for _, module in head) else None


def _final_norm(vision_model, last_layer):
    """Name of the norm that tokens pass between the last block and the pooling, if they do."""
    convolves = _convolves(vision_model.get_submodule(last_layer))
    place = _last_block(vision_model, last_layer)
    while place:
        following, pooling = _before_pooling(vision_model, place)
        for name, module in following:
            if isinstance(module, nn.ModuleList) and len(module) and all(map(_is_norm, module)):  # one for each stage
                return f"{name}.{len(module) - 1}"
            # ConvNeXt and its like pool first, by no module of its own.
            if _is_norm(module) and (not convolves or pooling or place.startswith(f"{last_layer}.")):
                return name
        place = place.rpartition(".")[0]
    return None


def _before_pooling(vision_model, name):
    """What follows the module `name` in its parent before the pooling, and whether a module does that."""
    if not name:  # the model itself
        return [], False
    parent, _, name = name.rpartition(".")
    siblings = list(vision_model.get_submodule(parent).named_children())
    position = [sibling for sibling, _ in siblings].index(name)
    following = []
    for sibling, module in siblings[position + 1 :]:
        if _pools(module) or any(isinstance(layer, nn.Linear) for layer in module.modules()):
            return following, _pools(module)
        following.append((".".join(filter(None, (parent, sibling))), module))
    return following, False


def _convolves(module):
    return any(isinstance(layer, nn.Conv2d) for layer in module.modules())


def _is_norm(module):
    """Whether a module is a norm of tokens, by PyTorch or a model's own."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def _pools(module):
    return any("Pool" in type(layer).__name__ for layer in module.modules())


# What models call the tokens that they put in front of the patch tokens.
_PREFIX_TOKENS = {"cls_token", "class_token", "class_embedding", "distillation_token", "register_tokens"}


def count_prefix_tokens(vision_model):
    """Class, distillation and register tokens in front of the patch tokens."""
    for module in vision_model.modules():
        if isinstance(getattr(module, "num_prefix_tokens", None), int):  # timm's own count
            return module.num_prefix_tokens
    stack, passed, count = _largest_stack(vision_model), False, 0
    for name, parameter in vision_model.named_parameters():
        inside = stack is not None and name.startswith(f"{stack}.")
        passed = passed or inside
        # Behind the layers it is the query of a pooling.
        if name.rsplit(".", 1)[-1] in _PREFIX_TOKENS and (inside or not passed):
            count += parameter.shape[-2] if parameter.ndim > 1 else 1
    return count
