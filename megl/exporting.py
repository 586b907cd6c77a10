"""A MEGL model as one graph of label, map and evidence, for programs that have neither this code nor Transformers."""

import json
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from megl.terminal import progress
from modeling_megl.configuration_megl import one_line


INPUTS, OUTPUTS = ("pixel_values", "target"), ("logits", "saliency", "evidence_tokens")
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
PREDICTED = -1
TOLERANCE = 1e-4
# Bytes: a protobuf file holds 2 GB. The weights of a larger model lie beside it.
LARGEST_FILE = 1.9e9
README = """# {model}: label and map as one graph

`{file}` takes `pixel_values` (B, 3, {height}, {width}), float32, and `target` (B,), int64: the class that each map
explains, -1 for the predicted one. It gives

- `logits` (B, {num_labels}): class scores; probabilities are the softmax of `logits / temperature`;
- `saliency` (B, {map_height}, {map_width}): the map by `{saliency_method}`, in [0, 1], over the whole picture;
- `evidence_tokens` (B, {num_tokens}, {text_size}): what the model's language model reads in front of its prompt; that
  model is not part of the graph.

B is any number from 1 on. `preprocess.json` has the names of the classes (`labels`), the `temperature`, and how a
picture becomes `pixel_values`: upright and RGB, resized as a whole to `width` x `height` by `resample`, divided by
255, less `mean`, divided by `std`.

```python
{program}
```
"""
OPEN_AND_RUN = {
    "onnx": """import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

settings = json.load(open("preprocess.json", encoding="utf-8"))
picture = ImageOps.exif_transpose(Image.open("picture.png")).convert("RGB")
size = settings["width"], settings["height"]
pixels = np.asarray(picture.resize(size, Image.Resampling[settings["resample"].upper()])) / 255
pixels = ((pixels - settings["mean"]) / settings["std"]).astype(np.float32).transpose(2, 0, 1)[None]
session = onnxruntime.InferenceSession("model.onnx")
logits, saliency, _ = session.run(None, {"pixel_values": pixels, "target": np.array([-1])})
print(settings["labels"][logits[0].argmax()], saliency[0].round(2))""",
    "torch": """import torch

# A .pt2 file of someone else's may run code as it is loaded.
explain = torch.export.load("model.pt2").module()
logits, saliency, evidence_tokens = explain(pixel_values, torch.full((len(pixel_values),), -1))""",
}


class _Explained(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, target):
        output = self.model(pixel_values, target=target)
        return tuple(output[name] for name in OUTPUTS)


class _Inputs(nn.Module):
    def forward(self, *inputs):
        return inputs


class _PlainPooling(TorchFunctionMode):
    """Pools contiguous tensors: of others torch changes the strides in place, whose gradient ONNX has no words for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d):
            args = (args[0].contiguous(), *args[1:])
        if function is F.avg_pool2d and min(np.broadcast_to(args[1], 2) - args[0].shape[2:]) >= 0:
            return args[0].mean(dim=(2, 3), keepdim=True)
        return function(*args, **(kwargs or {}))


def convolution_gradient(gradient, pixels, weight, bias_sizes, stride, padding, dilation, transposed, *others):
    """
    `aten.convolution_backward` with respect to the input as the transposed convolution that it is, which ONNX has.

    Returns:
        `tuple`: the gradient of `pixels`, and `None` for weight and bias, which no map needs.
    """
    _, groups, needed = others
    if transposed or needed[1] or needed[2]:
        return NotImplemented
    sizes = zip(pixels.shape[2:], gradient.shape[2:], weight.shape[2:], strict=True)
    settings = zip(*(each * 2 if len(each) == 1 else each for each in (stride, padding, dilation)), strict=True)
    # Rows and columns that the convolution's steps did not reach.
    rest = [
        size - (out - 1) * step + 2 * pad - space * (kernel - 1) - 1
        for (size, out, kernel), (step, pad, space) in zip(sizes, settings, strict=True)
    ]
    transpose = torch.ops.aten.convolution.default
    return transpose(gradient, weight, None, stride, padding, dilation, True, rest, groups), None, None


def make_program(model, size):
    """
    The model as a program of `torch.export`, with the gradient that the map is made of among its operations.

    Args:
        model ([`MeglForImageClassification`]): In evaluation mode, float32, on the CPU, without gradients of its
            weights (`requires_grad_(False)`).
        size (`tuple[int, int]`): Height and width of the pictures in pixels.

    Returns:
        `torch.export.ExportedProgram`: of `pixel_values` `(B, 3, H, W)`, float32, and `target` `(B,)`, int64, the
        class that each map explains, -1 for the predicted one, to a `tuple` of `logits` `(B, num_labels)`, `saliency`
        `(B, map_height, map_width)` and `evidence_tokens` `(B, num_tokens, text_hidden_size)`, for any B from 1 on.

    Raises:
        `ValueError`: where the model depends on its input by more than operations on tensors.
    """
    if model.config.grounding_map == "random":
        raise ValueError("A model of `grounding_map='random'` draws anew in each pass: it cannot be exported.")
    if model.config.is_multi_label:
        raise ValueError("A multi-label model cannot be exported: what is written takes probabilities for a softmax.")
    inputs = torch.zeros(2, 3, *size), torch.full((2,), PREDICTED)
    batch = torch.export.Dim("batch", min=1)
    dynamic = {0: batch}, {0: batch}
    decompositions = {torch.ops.aten.convolution_backward.default: convolution_gradient}
    tracer = make_fx(_Explained(model), decompositions, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    # Inputs of which nothing but the batch is open: `make_fx` by itself leaves every side open, and takes minutes.
    open_inputs = torch.export.export(_Inputs(), inputs, dynamic_shapes=(dynamic,)).graph.find_nodes(op="placeholder")
    try:
        # The fused attention kernels have no counterpart in ONNX.
        with torch.no_grad(), _PlainPooling(), sdpa_kernel(SDPBackend.MATH):
            graph = tracer(*(node.meta["val"] for node in open_inputs))
        return torch.export.export(graph, inputs, dynamic_shapes=dynamic)
    except RuntimeError as error:
        kind = type(model.vision_model).__name__
        raise ValueError(f"{kind} cannot be traced for batches of any size: {one_line(error)}") from error


def preprocessing(processor):
    """
    How a picture becomes `pixel_values`, in numbers that any program can follow, measured on the image processor.

    Args:
        processor ([`MeglProcessor`]): The checkpoint's processor.

    Returns:
        `dict`: `height`, `width`, `resample` (a name of `PIL.Image.Resampling`), and `mean` and `std` of each colour,
        in units of 0 to 1.

    Raises:
        `ValueError`: where the image processor does more than resize and shift and scale each colour.
    """
    size = processor.image_processor.size
    ends = [Image.new("RGB", (1, 1), colour) for colour in ("black", "white")]
    black, white = processor(images=ends)["pixel_values"][:, :, 0, 0].double().numpy()
    std = 1 / (white - black)
    settings = {
        "height": size["height"],
        "width": size["width"],
        "resample": Image.Resampling(getattr(processor.image_processor, "resample", 2)).name.lower(),
        "mean": (-black * std).round(6).tolist(),
        "std": std.round(6).tolist(),
    }
    # Noise, at a size of its own: each filter makes another picture of it.
    shape = (2 * size["height"] + 1, 3 * size["width"] // 2, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    expected = processor(images=[picture])["pixel_values"][0].numpy()
    levels = np.abs(pixels_of(picture, settings) - expected) * std[:, None, None] * 255
    if not levels.max() < 2.5:
        raise ValueError(
            f"The image processor, {type(processor.image_processor).__name__}, does more than resize a picture and "
            f"normalise its colours (by up to {levels.max():.0f} of 255 levels): its work cannot be written down."
        )
    return settings


def pixels_of(picture, settings):
    """`(3, H, W)`, float32, of an RGB picture by what [`preprocessing`] found."""
    resample = Image.Resampling[settings["resample"].upper()]
    pixels = np.asarray(picture.resize((settings["width"], settings["height"]), resample)) / 255
    return ((pixels - settings["mean"]) / settings["std"]).astype(np.float32).transpose(2, 0, 1)


def write_program(program, path):
    """Write a program of [`make_program`] as `torch.export` does, without its sample input, which it would pickle."""
    program.example_inputs = None
    torch.export.save(program, path)


def write_onnx(program, path):
    """
    Write a program of [`make_program`] as ONNX.

    Raises:
        `ValueError`: where it has an operation that ONNX has no counterpart of.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # at torch's own code
            found = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        while error.__cause__ is not None:
            error = error.__cause__
        raise ValueError(
            f"The model has an operation that ONNX has not ({one_line(error)}): choose another `saliency_method` or "
            "`saliency_layer`, or `--format torch`."
        ) from error
    weights = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    found.save(path, external_data=weights > LARGEST_FILE)


def open_onnx(path):
    """
    A function of `pixel_values` and `target` to the outputs, arrays all, that runs an ONNX file on the CPU, with as
    many threads as torch has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(INPUTS, inputs, strict=True)))


def open_program(path):
    """The same of a file of `torch.export`. Loading one of someone else's may run code of theirs."""
    program = torch.export.load(path).module()
    return lambda *inputs: [output.numpy() for output in program(*map(torch.from_numpy, inputs))]


WRITERS, OPENERS = {"onnx": write_onnx, "torch": write_program}, {"onnx": open_onnx, "torch": open_program}


@torch.no_grad()
def check_equal(explain, model, size):
    """
    Compare what a written file makes of random pictures, three and then one, with what the model makes of them.

    Raises:
        `ValueError`: where an output differs by more than 1e-4, or 1e-4 of its greatest value.
    """
    pixel_values = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([PREDICTED, 0, model.config.num_labels - 1])
    for count in (3, 1):
        inputs = pixel_values[:count], target[:count]
        found = explain(*(tensor.numpy() for tensor in inputs))
        for name, ours, theirs in zip(OUTPUTS, _Explained(model)(*inputs), found, strict=True):
            difference = np.abs(ours.numpy() - theirs).max()
            if not difference <= TOLERANCE * max(ours.abs().max().item(), 1):
                raise ValueError(
                    f"`{name}` of the written file differs from the model's by {difference:.1e}, expected at most "
                    f"{TOLERANCE:.0e}: choose another `saliency_method`, `saliency_layer` or `--format`."
                )


def export_model(model, processor, folder, kind, name):
    """
    Write a model as a graph, how to make its input, and a note on how to use both; what was written is checked.

    Args:
        model ([`MeglForImageClassification`]): In evaluation mode, float32, on the CPU, without gradients of its
            weights (`requires_grad_(False)`).
        processor ([`MeglProcessor`]): Its processor.
        folder (`Path`): An empty folder.
        kind (`str`): A key of `FILES`: `"onnx"` or `"torch"`.
        name (`str`): The model's, for the note.

    Raises:
        `ValueError`: where the model or its image processor cannot be written, or the file's answers are not its own.
    """
    settings = preprocessing(processor)
    size = settings["height"], settings["width"]
    bar = progress(total=3, description="export", unit=" steps")
    program = make_program(model, size)
    bar.update()
    _, saliency, evidence = (output.meta["val"].shape for output in program.graph.output_node().args[0])
    settings |= {
        "labels": [model.config.id2label[label] for label in range(model.config.num_labels)],
        "temperature": model.config.score_temperature,
        "map_height": saliency[1],
        "map_width": saliency[2],
        "saliency_method": model.config.saliency_method,
    }
    path = folder / FILES[kind]
    WRITERS[kind](program, path)
    bar.update()
    check_equal(OPENERS[kind](path), model, size)
    bar.update()
    bar.close()
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "preprocess.json").write_text(text + "\n", encoding="utf-8")
    sizes = {"num_labels": model.config.num_labels, "num_tokens": evidence[1], "text_size": evidence[2]}
    note = README.format(model=name, file=path.name, program=OPEN_AND_RUN[kind], **settings, **sizes)
    (folder / "README.md").write_text(note, encoding="utf-8")
