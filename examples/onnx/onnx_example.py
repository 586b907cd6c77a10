"""Label, probability and map of a picture by what `megl export` wrote, with numpy, Pillow and onnxruntime alone.

```
python onnx_example.py megl-onnx picture.png --output overlay.png
python onnx_example.py megl-onnx picture.png --target house --output house.png
```
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


PREDICTED = -1


def read_picture(path):
    """An upright RGB picture."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def make_pixels(picture, settings):
    """`pixel_values` `(1, 3, height, width)`, float32: the whole picture, resized and normalised."""
    resample = Image.Resampling[settings["resample"].upper()]
    pixels = np.asarray(picture.resize((settings["width"], settings["height"]), resample)) / 255
    pixels = (pixels - settings["mean"]) / settings["std"]
    return pixels.astype(np.float32).transpose(2, 0, 1)[None]


def probabilities(logits, temperature):
    """The softmax of class scores `(num_labels,)`."""
    powers = np.exp((logits - logits.max()) / temperature)
    return powers / powers.sum()


def overlay(picture, saliency):
    """A map `(map_height, map_width)` in [0, 1] over its picture: clear where it is 0, red where it is 1."""
    opacity = Image.fromarray((saliency * 160).round().astype(np.uint8)).resize(
        picture.size, Image.Resampling.BILINEAR
    )
    return Image.composite(Image.new("RGB", picture.size, "red"), picture, opacity)


def explain(folder, picture, target=None):
    """
    Args:
        folder (`Path`): What `megl export` wrote.
        picture (`PIL.Image.Image`): An upright RGB picture.
        target (`str`, *optional*): Class to explain; by default the predicted one.

    Returns:
        `tuple[str, float, np.ndarray]`: the class, its probability, and its map.
    """
    settings = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    labels = settings["labels"]
    if target is not None and target not in labels:
        raise SystemExit(f"`--target` must be one of {labels}, got {target!r}.")
    wanted = PREDICTED if target is None else labels.index(target)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    inputs = {"pixel_values": make_pixels(picture, settings), "target": np.array([wanted])}
    logits, saliency = session.run(["logits", "saliency"], inputs)
    label = logits[0].argmax() if target is None else wanted
    return labels[label], probabilities(logits[0], settings["temperature"])[label], saliency[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what megl export wrote")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--target", help="class to explain; by default the predicted one")
    parser.add_argument("--output", type=Path, required=True, help="the picture with its map, a new file")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists: choose another `--output`")
    picture = read_picture(arguments.picture)
    label, probability, saliency = explain(arguments.folder, picture, arguments.target)
    overlay(picture, saliency).save(arguments.output)
    print(f"{label} {probability:.3f}")


if __name__ == "__main__":
    main()
