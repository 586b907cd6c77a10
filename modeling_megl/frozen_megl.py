"""Training behind a vision model that is frozen, up to a layer or whole, and computed once for each training image."""

import difflib
from contextlib import contextmanager
from itertools import takewhile

import torch

from .collator_megl import class_ids
from .configuration_megl import one_line


class FrozenLayers:
    """
    The layers of a vision model up to one module, frozen, and a way to leave them out: with the module's output given,
    the pictures do not matter, so that a single blank one takes their place; of an eighth of the size where the rest
    does not ask for the size, as convolutions do not and transformers do.

    ```python
    frozen = FrozenLayers(model, "stages.6", image_shape=(224, 224))
    computed = frozen.compute(pixel_values)
    with frozen.given(computed.pop("frozen_features")) as blank:
        outputs = model(blank, **computed)  # as model(pixel_values), without the work of the frozen layers
    ```

    Args:
        model ([`MeglForImageClassification`]): The model; its parameters that only what is frozen depends on stop
            requiring gradients.
        name (`str`): Name of the module in the vision model, such as its last stage.
        image_shape (`tuple[int, int]`): Height and width of the model's input in pixels.

    Raises:
        `ValueError`: where the vision model has no such module, or where more than its output decides the model's
            answer, as where the map lies before the module or is made of pixels or attentions.
    """

    def __init__(self, model, name, image_shape):
        self.model, self.vision_model = model, model._active_vision_model
        self.name, self.image_shape = name, image_shape
        self._given = self._output = self._blank_shape = None
        self._channels = 0
        modules = dict(self.vision_model.named_modules())
        if name not in modules:
            near = [module for module in modules if module.endswith(f".{name}")]
            near = near[:3] or difflib.get_close_matches(name, modules, n=3, cutoff=0)
            raise ValueError(
                f"`frozen_layer={name!r}` is no module of {type(self.vision_model).__name__}; did you mean "
                f"{' or '.join(map(repr, near))}?"
            )
        modules[name].register_forward_hook(self._hook)
        self.vision_model.register_forward_pre_hook(self._keep_frozen)
        self._modules = []
        self._freeze(model)

    def _hook(self, module, args, output):
        self._output = output
        return output if self._given is None else self._given

    def _keep_frozen(self, module, args):
        """In evaluation mode whatever the rest is in: batch statistics would change with the pictures."""
        for frozen in self._modules:
            frozen.eval()

    @contextmanager
    def given(self, features):
        """Runs the vision model on these outputs of the frozen layers; gives the picture to call the model with."""
        self._given = features
        try:
            yield features.new_zeros(1, 3, *self._blank_shape)
        finally:
            self._given = None

    @torch.no_grad()
    def compute(self, pixel_values):
        """
        What takes the place of `pixel_values` `(batch_size, 3, height, width)`, a dictionary: the output of the frozen
        layers as `frozen_features` and, where the model reads evidence from some of them, its `evidence_features`.
        """
        if not self._channels:
            self.vision_model(pixel_values)
            return {"frozen_features": self._output.detach()}
        features = self.model(pixel_values).features
        return {"frozen_features": self._output.detach(), "evidence_features": self._evidence(features)}

    def _evidence(self, features):
        """Of the features that a model gives, those of evidence layers that the frozen layers hold, or `None`."""
        first = self.model.config.feature_size
        return features[:, first : first + self._channels] if self._channels else None

    @torch.no_grad()
    def _count_channels(self, noise):
        """Of the evidence layers that run before the frozen layers end: the first ones."""
        config, modules = self.model.config, dict(self.vision_model.named_modules())
        ended = []
        hooks = [
            modules[name].register_forward_hook(lambda *_, name=name: ended.append(name))
            for name in (*config.evidence_layers, self.name)
        ]
        self.vision_model(noise)
        for hook in hooks:
            hook.remove()
        before = list(takewhile(lambda name: name != self.name, ended))
        layers = zip(config.evidence_layers, config.evidence_sizes, strict=True)
        return sum(size for name, size in takewhile(lambda layer: layer[0] in before, layers))

    def _freeze(self, model):
        """Freeze what does not lie behind the module, having tried that the rest needs nothing else."""
        training, parameters = model.training, list(self.vision_model.parameters())
        trained = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        gradients = torch.autograd.grad(self._try(model.eval()).sum(), parameters, allow_unused=True)
        model.train(training)
        frozen = set()
        for parameter, gradient, wanted in zip(parameters, gradients, trained, strict=True):
            parameter.requires_grad_(wanted and gradient is not None)
            if gradient is None:
                frozen.add(parameter)
        for module in self.vision_model.modules():
            held = set(module.parameters())
            if held and held <= frozen:
                self._modules.append(module)

    def _try(self, model):
        """The logits with the module's output given, which must be those of the picture itself, as must the map."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(2, 3, *self.image_shape, generator=generator).to(next(model.parameters()))
        target = torch.zeros(2, dtype=torch.long, device=noise.device)
        height, width = self.image_shape
        self._channels = self._count_channels(noise)
        expected, features = model(noise, target=target), self._output
        evidence = self._evidence(expected.features)
        for shape in ((height // 8, width // 8), self.image_shape):
            self._blank_shape = shape
            try:
                if not isinstance(features, torch.Tensor):
                    raise TypeError(f"its output is a {type(features).__name__}")
                with self.given(features.detach()) as blank:
                    found = model(blank, target=target, evidence_features=evidence)
                for name in ("logits", "saliency", "evidence_tokens"):
                    torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-4)
                return found.logits
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = error
        raise ValueError(
            f"`frozen_layer={self.name!r}` cannot be frozen: what follows does not depend on its output alone "
            f"({one_line(reason)}). Choose a stage or layer before the one that the map is computed on."
        ) from reason

    def encode(self, dataset, processor, batch_size, device):
        """
        [`encode_rows`] with the frozen layers' output in place of each picture, beside it the mask at the size of the
        model's input.
        """
        self.vision_model.eval()
        return encode_rows(dataset, processor, batch_size, device, lambda pixels, batch: self.compute(pixels))


def encode_evidence(model, dataset, processor, batch_size, device):
    """
    [`encode_rows`] with what the rationale of each picture is written from, its `features` and the `saliency` of its
    label, in place of the picture: what a vision model that does not change would make of it in each epoch.
    """

    @torch.no_grad()
    def compute(pixel_values, batch):
        labels = torch.tensor(class_ids(batch, model.config.id2label), device=pixel_values.device)
        outputs = model(pixel_values, target=labels)
        return {"features": outputs.features, "saliency": outputs.saliency}

    with_masks = model.config.grounding_map == "visual_explanation"
    training = model.training
    model.eval()
    try:
        return encode_rows(dataset, processor, batch_size, device, compute, with_masks)
    finally:
        model.train(training)


def encode_rows(dataset, processor, batch_size, device, compute, with_masks=True):
    """
    The rows of a data set as the collator takes them, a list, with tensors in place of each picture, kept in memory.

    Args:
        dataset (`datasets.Dataset`): Rows with `image` and, where there is one, `visual_explanation`.
        processor ([`MeglProcessor`]): Makes the tensors.
        batch_size (`int`): Pictures at a time.
        device (`torch.device`): Where the model is.
        compute (`Callable`): Of `pixel_values` `(batch_size, 3, height, width)` and a batch of rows, the dictionary of
            tensors that takes the pictures' place.
        with_masks (`bool`, *optional*, defaults to `True`): Whether to keep the visual explanations.
    """
    rows = []
    for start in range(0, len(dataset), batch_size):
        batch = [dict(dataset[index]) for index in range(start, min(start + batch_size, len(dataset)))]
        masks = [row.pop("visual_explanation", None) for row in batch]
        images = [row.pop("image") for row in batch]
        encoded = processor(images=images, visual_explanations=masks if with_masks else None)
        computed = compute(encoded.pop("pixel_values").to(device), batch)
        encoded |= {name: values.cpu() for name, values in computed.items()}
        for index, row in enumerate(batch):
            rows.append({**row, "encoded": {name: values[index].clone() for name, values in encoded.items()}})
    return rows
