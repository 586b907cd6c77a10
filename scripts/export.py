"""Writes a trained model as one graph of label and map, for ONNX Runtime or torch, without Transformers.

```
megl export megl-trained --output megl-onnx
megl export megl-trained --format torch --output megl-program
```

Writes `model.onnx` or, with `--format torch`, a program of `torch.export`, `model.pt2`; `preprocess.json`, which has
all that such a program needs besides: size, colours, classes, temperature; and a README.md with the lines that run it.
The graph takes any number of pictures, and gives class scores, the map of the predicted class or of any other, and the
evidence tokens that the language model reads. That model is not part of it: no rationale is written. What the file
answers is compared with what the model does before the folder is there.
"""

import logging
import sys
from importlib import import_module
from pathlib import Path

import torch

from dataset_builders.files import check_new, new_folder
from megl.arguments import ExportArguments
from megl.exporting import export_model
from megl.parser import parse
from megl.terminal import print_anywhere, program
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import one_line


def main():
    (arguments,) = parse(__doc__, ExportArguments)
    for package in ("onnxscript", "onnxruntime") if arguments.format == "onnx" else ():
        import_module(package)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which else lists what torchvision would add
    try:
        check_new(arguments.output)
        processor = MeglProcessor.from_pretrained(arguments.model)
        model = MeglForImageClassification.from_pretrained(
            arguments.model, trust_remote_code=arguments.trust_remote_code, dtype=torch.float32
        )
        model.eval().requires_grad_(False)
        with new_folder(arguments.output) as folder:
            export_model(model, processor, folder, arguments.format, Path(arguments.model).name)
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")
    for name, size in sizes.items():
        print_anywhere(f"{size / 1e6:10.3f} MB  {name}")


if __name__ == "__main__":
    main()
