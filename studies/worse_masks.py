"""Makes a data set with worse masks, as people in a hurry draw them: how far do results rest on exact ones?

```
python -m studies.worse_masks object_me --kind coarse --output object_me-coarse
```

| kind | the training split's masks are |
|---|---|
| coarse | averaged down to 7 x 7 |
| dilated | grown by a sixteenth of the picture on each side |
| shifted | moved to the right and down by a tenth of the picture |
| boxes | the boxes around them |
| swapped | for one picture in ten those of another picture |

All else is as it was: the pictures' bytes, and the masks that are evaluated on.
"""

import argparse
import sys
from functools import partial

import numpy as np
from datasets import Image, load_dataset
from PIL import Image as PILImage
from PIL import ImageChops, ImageFilter

from dataset_builders.files import new_folder
from modeling_megl.processing_megl import read_mask


SWAPPED = 0.1


def coarse(mask):
    small = mask.resize((7, 7), PILImage.Resampling.BOX)
    return small if small.getextrema()[1] > 1 else small.point(lambda value: 2 * value)  # 0 and 1 are no grey levels


def dilated(mask):
    return mask.filter(ImageFilter.MaxFilter(2 * max(1, max(mask.size) // 16) + 1))


def shifted(mask):
    across, down = (round(side / 10) for side in mask.size)
    moved = ImageChops.offset(mask, across, down)
    # What leaves on one side does not come back on the other.
    moved.paste(0, (0, 0, across, mask.height))
    moved.paste(0, (0, 0, mask.width, down))
    return moved


def boxes(mask):
    box = mask.point(lambda value: 255 * (2 * value > mask.getextrema()[1])).getbbox()
    made = PILImage.new("L", mask.size)
    if box is not None:
        made.paste(255, box)
    return made


KINDS = {"coarse": coarse, "dilated": dilated, "shifted": shifted, "boxes": boxes, "swapped": None}


def worsen(dataset, kind, seed=0):
    """A split with worse masks: a `datasets.Dataset` with the columns of the builders, `kind` one of `KINDS`."""
    given = [place for place, mask in enumerate(dataset["visual_explanation"]) if mask is not None]
    others = {}
    if kind == "swapped":
        draw = np.random.default_rng(seed)
        shapes = {}
        for place in draw.permutation(given).tolist():
            shapes.setdefault(dataset[place]["visual_explanation"].size, []).append(place)
        for places in shapes.values():  # a mask fits pictures of its shape alone
            chosen = places[: max(2, round(SWAPPED * len(places)))]
            others |= dict(zip(chosen, chosen[1:] + chosen[:1], strict=True))
    return dataset.map(partial(_worse, dataset=dataset, others=others, change=KINDS[kind]), with_indices=True)


def _worse(row, place, dataset, others, change):
    mask = dataset[others.get(place, place)]["visual_explanation"]
    if mask is not None and change is not None:
        values = read_mask(mask, mask.size, f"the mask of picture {place}")
        mask = change(PILImage.fromarray((values * 255).round().astype(np.uint8)))
    return {"visual_explanation": mask}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of a data set, as `megl prepare` writes it")
    parser.add_argument("--kind", choices=KINDS, required=True, help="what becomes of the masks")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="folder to write; it must be new or empty")
    arguments = parser.parse_args()
    try:
        splits = load_dataset(arguments.dataset)
        with new_folder(arguments.output) as folder:
            for name, split in splits.items():
                split = split.cast_column("image", Image(decode=False))
                split = worsen(split, arguments.kind) if name == "train" else split
                path = folder / "data" / f"{name}-00000-of-00001.parquet"
                path.parent.mkdir(exist_ok=True)
                split.cast_column("image", Image()).to_parquet(path)
    except (ValueError, OSError) as error:
        sys.exit(f"worse_masks: {error}")


if __name__ == "__main__":
    main()
