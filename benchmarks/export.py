"""What exported graphs cost: label and map of one picture and of a batch, in turns with the model itself, as Markdown.

```
python -m benchmarks.export --output docs/benchmarks_export.md
python -m benchmarks.export --models resnet18 efficientnet-lite0 --trust_remote_code --output export.md
```

Weights, but those of a folder, and pictures are random, which costs the same as real ones. Each row runs in a process
of its own. On the CPU, with as many threads for ONNX Runtime as torch has.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.model import VISION_CONFIGS
from dataset_builders.files import check_new_file, write_file
from megl.exporting import FILES, OPENERS, PREDICTED, WRITERS, make_program
from megl.machine import Page, compare, machine, table
from modeling_megl import TEXT_PRESETS, MeglConfig, MeglForImageClassification


SIZE = 224
NUM_LABELS = 100
SWIN_TINY = {"model_type": "swin"}  # what Transformers' default configuration is
CONFIGS = {**{name: VISION_CONFIGS[name] for name in ("resnet18", "vit-s16", "vit-b16")}, "swin-tiny": SWIN_TINY}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"of random weights ({', '.join(CONFIGS)}), or folders of vision models that take {SIZE} pixels"
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), help=names)
    parser.add_argument("--trust_remote_code", action="store_true", help="let vision models run code of their own")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds, after one warm-up")
    parser.add_argument("--output", required=True, help="Markdown file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    parser.set_defaults(device="cpu", dtype="float32", compile=False)
    return parser.parse_args()


def make_model(name, trust_remote_code):
    """A MEGL model of random weights, or of a vision model in a folder, with the smallest language model there is."""
    text = {**TEXT_PRESETS["llama-tiny"], "vocab_size": 64}
    labels = [str(label) for label in range(NUM_LABELS)]
    torch.manual_seed(0)
    if name in CONFIGS:
        vision = {**CONFIGS[name], "image_size": SIZE}
        model = MeglForImageClassification(
            MeglConfig(vision_config=vision, text_config=text, id2label=dict(enumerate(labels)))
        )
    else:
        build = MeglForImageClassification.from_vision_text_pretrained
        model = build(name, text, labels, trust_remote_code=trust_remote_code)
    return model.eval().requires_grad_(False)


class Bench:
    """A model and what `megl export` would write of it, on a batch of pictures."""

    device = torch.device("cpu")

    def __init__(self, name, arguments):
        self.model = make_model(name, arguments.trust_remote_code)
        self.sizes, self.exported, program = {}, {}, make_program(self.model, (SIZE, SIZE))
        with tempfile.TemporaryDirectory() as folder:
            for kind in FILES:
                path = Path(folder) / FILES[kind]
                WRITERS[kind](program, path)
                self.sizes[kind], self.exported[kind] = path.stat().st_size, OPENERS[kind](path)

    def take(self, batch_size):
        """Go on with batches of that size."""
        self.inputs = torch.randn(batch_size, 3, SIZE, SIZE), torch.full((batch_size,), PREDICTED)
        self.arrays = [tensor.numpy() for tensor in self.inputs]

    @torch.no_grad()
    def label(self):
        """What the bare classifier costs."""
        self.model.vision_model(self.inputs[0])

    @torch.no_grad()
    def label_and_map(self):
        """Label, map and evidence tokens, by the model."""
        self.model(self.inputs[0], target=self.inputs[1])

    def onnx(self):
        """The same by ONNX Runtime."""
        self.exported["onnx"](*self.arrays)

    def program(self):
        """The same by a program of torch.export."""
        self.exported["torch"](*self.arrays)


STEPS = ("onnx", "label_and_map", "label", "program")


def measure(bench, arguments, name):
    """Times of the steps in turns for each size of batch, and bytes: of both files, and of the model's weights."""
    made, times = bench(name, arguments), {}
    for count in (1, arguments.batch_size):
        made.take(count)
        times[count] = compare(lambda *_: made, arguments, name, *STEPS)
    return times, [*made.sizes.values(), sum(weight.nbytes for weight in made.model.vision_model.parameters())]


def row(name, times):
    """Cells: ONNX Runtime over the model, the least and the greatest ratio, and the median times in milliseconds."""
    ratios = [onnx / model for onnx, model, *_ in times]
    medians = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return [name, f"**{statistics.median(ratios):.2f}**", spread, *(f"{value:,.0f}" for value in medians)]


def write_page(arguments):
    page = Page(Bench, arguments)
    found = {Path(name).name: page.run(measure, name) for name in arguments.models}
    counts = (1, arguments.batch_size)
    rows = {count: [row(name, times[count]) for name, (times, _) in found.items()] for count in counts}
    sizes = [[name, *(f"{size / 1e6:,.2f}" for size in all_sizes)] for name, (_, all_sizes) in found.items()]
    header = ["model", "ratio", "spread", "ONNX Runtime, ms", "torch, ms", "its label alone, ms", "torch.export, ms"]
    sections = [
        "# Exported graphs",
        f"`{' '.join(['python -m benchmarks.export', *sys.argv[1:]])}`, {machine(arguments)}. {SIZE} pixels. Label, "
        "map and evidence by what `megl export` writes, and by the model itself. Ratios are ONNX Runtime's time over "
        f"torch's, medians over {arguments.repeats} rounds in which all were timed in turns; the spread is the least "
        "and the greatest. Times are medians of this machine and mean nothing on another.",
        *(part for count in counts for part in (f"## Batches of {count}", table(header, rows[count]))),
        "## Size",
        table(["model", "model.onnx, MB", "model.pt2, MB", "weights of the vision model, MB"], sizes),
    ]
    return "\n\n".join(sections) + "\n"


def main():
    arguments = parse_arguments()
    try:
        output = check_new_file(arguments.output, arguments.overwrite)
    except FileExistsError as error:
        sys.exit(f"benchmark: {error}")
    text = write_page(arguments)
    write_file(output, text)
    print(text)


if __name__ == "__main__":
    main()
