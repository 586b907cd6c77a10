"""Explains pictures: for each a PNG (map over the picture, label, rationale) and a line of JSON.

```
python scripts/explain.py --model megl-trained picture.png another.jpg --output explanations
python scripts/explain.py --model megl-trained picture.png --target house --foil tree --output why-house-not-tree
```
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from modeling_megl import MeglForImageClassification, MeglProcessor
from support.output_folder import new_folder
from support.pictures import overlay


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or folder of a MEGL model")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--target", help="class to explain; by default the predicted one")
    parser.add_argument("--foil", help="class that it is contrasted with: why --target rather than that?")
    parser.add_argument("--trust_remote_code", action="store_true", help="let the vision model run its own code")
    return parser.parse_args()


def open_image(path):
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def draw(image, explanation):
    """Picture and overlay side by side, with label, probability and rationale beneath."""
    scale = 320 / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    font = ImageFont.load_default(size=16)
    lines = [f"{explanation['label']}  {explanation['score']:.0%}"]
    lines += textwrap.wrap(explanation["rationale"], width=max(2 * size[0] // 9, 20))
    canvas = Image.new("RGB", (2 * size[0] + 24, size[1] + 24 + 22 * len(lines)), "white")
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), (8, 8))
    canvas.paste(overlay(image, explanation["saliency"]).resize(size, Image.Resampling.LANCZOS), (size[0] + 16, 8))
    ImageDraw.Draw(canvas).text((8, size[1] + 14), "\n".join(lines), fill="black", font=font, spacing=4)
    return canvas


def main():
    arguments = parse_arguments()
    try:
        images = [open_image(path) for path in arguments.images]
        processor = MeglProcessor.from_pretrained(arguments.model)
        model = MeglForImageClassification.from_pretrained(
            arguments.model, trust_remote_code=arguments.trust_remote_code
        ).eval()
        with new_folder(arguments.output) as folder, open(folder / "explanations.jsonl", "w") as lines:
            for number, (path, image) in enumerate(zip(tqdm(arguments.images), images, strict=True)):
                explanation = model.explain(image, processor, arguments.target, arguments.foil)[0]
                # Numbered, as pictures of two folders may share a name.
                picture = f"{number:04d}_{Path(path).stem}.png"
                draw(image, explanation).save(folder / picture)
                record = {key: explanation[key] for key in ("label", "score", "rationale")}
                line = json.dumps({"image": path, "picture": picture, **record}, ensure_ascii=False)
                lines.write(line + "\n")
                print(line)
    except (ValueError, OSError) as error:
        sys.exit(f"explain: {error}")


if __name__ == "__main__":
    main()
