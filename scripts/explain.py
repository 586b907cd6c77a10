"""Explains pictures: for each a PNG (map over the picture, label, rationale) and a line of JSON.

```
megl explain --model megl-trained picture.png another.jpg --output explanations
megl explain --model megl-trained picture.png --target house --foil tree --output why-house-not-tree
megl explain --model megl-trained picture.png --top_k 2 --output what-else
```

With `--target` the label is that class and the score its probability; `prediction` is the predicted class. With
`--top_k` the most probable other classes are explained too, as `alternatives`; of a multi-label model all of a
probability of `--threshold` or more. A file
that is no picture is reported and costs no other: the rest is explained, and the exit status is 1. Texts in a script
that no installed font has are boxes in the PNG; the JSON has them.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from dataset_builders.files import check_new, new_folder
from megl.arguments import ExplainArguments
from megl.demo.drawing import overlay
from megl.evaluation.predictions import why_untaught
from megl.pages.pictures import font, wrapped
from megl.parser import parse
from megl.terminal import print_anywhere, program, progress
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.configuration_megl import one_line


OF_A_CLASS = ("label", "score", "coverage", "rationale")
RECORDED = (*OF_A_CLASS, "prediction", "target", "foil")


class Pictures:
    """Files that are opened one at a time; why some cannot be read is in `bad`, by place."""

    def __init__(self, paths):
        self.paths, self.bad = paths, {}

    def read(self, places, make):
        """The places whose files can be read, and what `make` makes of the open picture."""
        found = []
        for place in places:
            try:
                with Image.open(self.paths[place]) as image:
                    found.append((place, make(image)))
            except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
                self.bad[place] = f"{shown(self.paths[place])} cannot be read as an image: {one_line(error)}"
        return found


def shown(argument):
    """An argument as text, also where the locale cannot read its bytes."""
    return os.fsencode(argument).decode("utf-8", "replace")


def class_id(name, option, config):
    """The id of a class that is given by its name or its id."""
    if name is None:
        return None
    name = shown(name)
    if name in config.label2id:
        return config.label2id[name]
    if name.isdecimal() and int(name) in config.id2label:
        return int(name)
    raise ValueError(f"`--{option}` must be one of {sorted(config.label2id)} or its id, got {name!r}.")


def prepare(image, processor):
    """The model's input, and the picture at 320 pixels: all that is kept of it."""
    (image,) = processor.load_images([image])
    scale = 320 / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return processor(images=[image])["pixel_values"], image.resize(size, Image.Resampling.LANCZOS)


def headline(explanation):
    """What the explanation is of: the prediction, or a class that was asked for, and its probability."""
    label, score = explanation["label"], f"{explanation['score']:.0%}"
    target, foil = explanation.get("target"), explanation.get("foil")  # an alternative has none
    if target is None and foil is None:
        return f"{label} {score}"
    rest = "" if foil is None else f" rather than {foil}"
    return f"why {label} ({score}){rest}"


def draw(image, explanation):
    """Picture and overlay side by side, with label, probability and rationale beneath; then the alternatives."""
    rows = [_draw_class(image, one) for one in (explanation, *explanation.get("alternatives", ()))]
    canvas, top = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white"), 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def _draw_class(image, explanation):
    size = image.size
    width = max(2 * size[0], 180)
    lines = wrapped(headline(explanation), width, 16) + wrapped(explanation["rationale"], width, 16)
    canvas = Image.new("RGB", (2 * size[0] + 24, size[1] + 24 + 22 * len(lines)), "white")
    canvas.paste(image, (8, 8))
    canvas.paste(overlay(image, explanation["saliency"]), (size[0] + 16, 8))
    ImageDraw.Draw(canvas).text((8, size[1] + 14), "\n".join(lines), fill="black", font=font(16), spacing=4)
    return canvas


@torch.no_grad()
def answers(model, processor, prepared, target, foil, top_k, threshold, writes):
    """The explanations of prepared pictures, with the names of the predicted class, of `target` and `foil`."""
    if not prepared:
        return []
    pixel_values = torch.cat([pixels for pixels, _ in prepared]).to(model.device, model.dtype)
    options = {} if writes else {"max_new_tokens": 1}
    options |= {"top_k": top_k, "threshold": threshold}
    explained = model.explain_pixels(pixel_values, processor, target, foil, **options)
    found = model.read_explanations(explained, [(image.height, image.width) for _, image in prepared], processor)
    predicted = explained["labels"][:, 0]
    if target is not None:
        predicted = model(pixel_values, output_saliency=False).logits.argmax(dim=-1)
    names = model.config.id2label
    asked = {"target": names.get(target), "foil": names.get(foil)}
    if not writes:
        for one in [one for answer in found for one in (answer, *answer.get("alternatives", ()))]:
            one["rationale"] = ""
    return [{**one, "prediction": names[label], **asked} for one, label in zip(found, predicted.tolist(), strict=True)]


def recorded(explanation):
    """What the JSON has of an explanation: all but the maps."""
    record = {key: explanation[key] for key in RECORDED}
    if "alternatives" in explanation:
        record["alternatives"] = [{key: one[key] for key in OF_A_CLASS} for one in explanation["alternatives"]]
    return record


def explain(arguments, pictures, places, model, processor, folder):
    """Explain the pictures at these places, as far as they can be decoded, into the folder."""
    target, foil = (class_id(getattr(arguments, name), name, model.config) for name in ("target", "foil"))
    untaught = why_untaught(arguments.model)
    if untaught:
        print(f"{program()}: rationales are left empty: {untaught}", file=sys.stderr)
    with open(folder / "explanations.jsonl", "w", encoding="utf-8") as lines:
        for start in progress(range(0, len(places), arguments.batch_size), "explain"):
            chosen = places[start : start + arguments.batch_size]
            read = pictures.read(chosen, partial(prepare, processor=processor))
            prepared = [one for _, one in read]
            asked = (target, foil, arguments.top_k, arguments.threshold)
            explanations = answers(model, processor, prepared, *asked, writes=not untaught)
            for (place, (_, image)), explanation in zip(read, explanations, strict=True):
                path = shown(arguments.images[place])
                # Numbered, as pictures of two folders may share a name; not longer than file systems take.
                picture = f"{place:04d}_{Path(path).stem[:50]}.png"
                draw(image, explanation).save(folder / os.fsdecode(picture.encode()))  # UTF-8 in any locale
                line = json.dumps({"image": path, "picture": picture, **recorded(explanation)}, ensure_ascii=False)
                lines.write(line + "\n")
                print_anywhere(line)
    if len(pictures.bad) == len(arguments.images):
        raise ValueError("; ".join(pictures.bad.values()))


def main():
    (arguments,) = parse(__doc__, ExplainArguments)
    pictures = Pictures(arguments.images)
    try:
        check_new(arguments.output)
        places = [place for place, _ in pictures.read(range(len(arguments.images)), lambda image: None)]
        if not places:
            raise ValueError("; ".join(pictures.bad.values()))
        processor = MeglProcessor.from_pretrained(arguments.model)
        model = MeglForImageClassification.from_pretrained(
            arguments.model, trust_remote_code=arguments.trust_remote_code
        ).eval()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        with new_folder(arguments.output) as folder:
            explain(arguments, pictures, places, model, processor, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"{program()}: {one_line(error)}")
    if pictures.bad:
        lines = [reason for _, reason in sorted(pictures.bad.items())]
        lines.append(f"{len(lines)} of {len(arguments.images)} files were left out, the others are done")
        sys.exit("\n".join(f"{program()}: {line}" for line in lines))


if __name__ == "__main__":
    main()
