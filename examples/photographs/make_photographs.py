"""Makes a data set of photographs with exact masks from pictures that Debian packages: cut-outs on scenes.

```
python -m examples.photographs.make_photographs --output photographs_release
python -m examples.photographs.make_photographs --packages unpacked/usr/share --output photographs_release --seed 1
python scripts/prepare_dataset.py object_me --source photographs_release --output photographs
```

Objects are photographs among Tux Paint's stamps, scenes are desktop backgrounds. In training nearly every object
stands on its class's kind of scene, in validation and test on any, and no cut-out is in two splits. README.md beside
this file says what to install and what the licences are.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_builders import PLACES, place_of
from dataset_builders.files import check_apart, check_new, new_folder


STAMPS = "tuxpaint/stamps"
FOLDERS = {
    "bird": ["animals/birds"],
    "mammal": ["animals/mammals", "animals/marsupials"],
    "fruit": ["food/fruit"],
    "flower": ["plants/flowers"],
}
# What is no photograph of the class: folders at any depth, and single stamps.
NOT_PHOTOGRAPHS = {"cartoon", "plastic", "toys", "echidna", "hedgehog"}

MATE = "backgrounds/mate/nature"
LOMIRI = "backgrounds"
PLASMA = "wallpapers/{}/contents/images/2560x1600.jpg"
WHOLE = (0, 0, 1, 1)
# Kind of scene: its wallpapers and the part of each that shows it and no object of a class, as shares of the width and
# height (left, upper, right, lower). The last wallpaper of a kind is in the test split alone.
SCENES = {
    "water": {
        f"{MATE}/Aqua.jpg": WHOLE,
        PLASMA.format("DarkestHour"): (0, 0.5, 1, 1),
        PLASMA.format("summer_1am"): (0, 0.6, 1, 1),
        f"{LOMIRI}/life_by_Aitzol_Berasategi.jpg": WHOLE,
    },
    "grass": {
        f"{MATE}/GreenMeadow.jpg": WHOLE,
        f"{MATE}/Blinds.jpg": WHOLE,
        f"{MATE}/RainDrops.jpg": WHOLE,
        f"{LOMIRI}/aitzgorri_by_Aitzol_Berasategi.jpg": (0, 0.62, 1, 1),
    },
    "wood": {
        f"{MATE}/Wood.jpg": WHOLE,
        PLASMA.format("BytheWater"): (0, 0.45, 1, 1),
        PLASMA.format("ColdRipple"): (0.2, 0.62, 0.8, 1),
        f"{LOMIRI}/friends_by_Aitzol_Berasategi.jpg": (0, 0.66, 1, 1),
    },
    "sky": {
        f"{MATE}/Storm.jpg": (0, 0, 1, 0.6),
        PLASMA.format("Kite"): (0, 0, 0.6, 1),
        f"{LOMIRI}/sunset_by_Aitzol_Berasategi.jpg": (0, 0, 1, 0.5),
        f"{LOMIRI}/Bridge_by_Sander_Klootwijk.jpg": (0, 0, 1, 0.75),
    },
}
OWN_SCENE = {"bird": "water", "mammal": "grass", "fruit": "wood", "flower": "sky"}
# By how the names of their files start; the first that fits.
PACKAGES = {
    "tuxpaint/": "tuxpaint-stamps-default",
    "wallpapers/": "plasma-workspace-wallpapers",
    "backgrounds/mate/": "mate-backgrounds",
    "backgrounds/": "lomiri-wallpapers-16.04",
}

SPLITS = {"train": 1600, "validation": 300, "test": 800}
OPAQUE = 127  # of 255: a pixel with more alpha is inside of the mask
SIDES = (0.3, 0.55)  # of the picture's side: a cut-out's longer side
CROPS = (0.4, 1.0)  # of a wallpaper's shorter side: that of the square behind the cut-out
FORMS = (((3, 32, 32), np.float32), ((32, 32), np.uint8), ((14, 14), np.float32))  # in which masks are stored
CUT_OUT_SHARES = {"test": 0.3, "validation": 0.15}  # of a class's cut-outs, rounded down; the others are for training


@dataclass(frozen=True)
class CutOut:
    """A stamp.

    Args:
        name (`str`): its path among the stamps, without suffix.
        phrase (`str`): what it shows, such as "a red apple", from its description in the package.
        image (`Image`): mode RGBA, cropped to what is opaque.
    """

    name: str
    phrase: str
    image: Image.Image


@dataclass(frozen=True)
class Plan:
    """What a picture shows, apart from its random details."""

    label: str
    cut_out: CutOut
    scene: str
    unseen: bool
    explained: bool


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument(
        "--packages", default="/usr/share", help="folder usr/share that holds stamps and wallpapers (/usr/share)"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws everything (0)")
    for split, number in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=number, help=f"pictures of the split ({number})")
    parser.add_argument("--size", type=int, default=128, help="a picture's side in pixels (128)")
    parser.add_argument(
        "--aligned_share",
        "--aligned-share",
        type=float,
        default=0.95,
        help="of a class's training pictures, those on its own kind of scene (0.95)",
    )
    parser.add_argument(
        "--mask_share",
        "--mask-share",
        type=float,
        default=0.3,
        help="of a class's training pictures, those with a mask (0.3)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace all that is in the output folder")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace):
    least_pictures = dict.fromkeys(SPLITS, len(FOLDERS))
    for name, least in {"seed": 0, "size": 32, **least_pictures}.items():
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"expected `{name}` to be at least {least}, got {value}.")
    for name in ("aligned_share", "mask_share"):
        value = getattr(arguments, name)
        if not 0 <= value <= 1:
            raise ValueError(f"expected `{name}` to be a share in [0, 1], got {value}.")


def check_packages(root: Path):
    """Raises unless the stamps' folders and all wallpapers are there."""
    names = [f"{STAMPS}/{folder}" for folders in FOLDERS.values() for folder in folders]
    names += [name for wallpapers in SCENES.values() for name in wallpapers]
    missing = [name for name in names if not (root / name).exists()]
    if not missing:
        return
    packages = {next(package for start, package in PACKAGES.items() if name.startswith(start)) for name in missing}
    raise FileNotFoundError(
        f"expected `packages` to be a folder usr/share with the stamps and the wallpapers, got {root}, which lacks "
        f"{len(missing)} of {len(names)} names, such as {missing[0]}. Install {', '.join(sorted(packages))}, or "
        "unpack them elsewhere and give that folder by `--packages`."
    )


def open_picture(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except OSError as error:
        raise ValueError(f"expected a whole picture, got {path}: {error}. Install its package again.") from error


def read_cut_outs(root: Path, label: str, size: int) -> list[CutOut]:
    """The photographic cut-outs of a class, ordered by name. A stamp that hides all behind it is not one."""
    stamps = root / STAMPS
    paths = [path for folder in FOLDERS[label] for path in (stamps / folder).rglob("*.png")]
    cut_outs = []
    for path in sorted(paths):
        name = path.relative_to(stamps).with_suffix("")
        if NOT_PHOTOGRAPHS.intersection(name.parts):
            continue
        image = open_picture(path, "RGBA")
        opaque = image.getchannel("A").point(lambda value: 255 * (value > OPAQUE))
        box = opaque.getbbox()
        if box is None or opaque.getextrema()[0] > 0:
            continue
        image = image.crop(box)
        image.thumbnail((2 * size, 2 * size))
        cut_outs.append(CutOut(name.as_posix(), read_phrase(path.with_suffix(".txt"), label), image))
    if len(cut_outs) < 7:
        raise ValueError(
            f"expected at least 7 photographs with transparency of the class {label!r}, so that each split has its "
            f"own, got {len(cut_outs)} in {stamps}. Install tuxpaint-stamps-default again."
        )
    return cut_outs


def read_phrase(path: Path, label: str) -> str:
    """What a stamp shows, as a phrase with an article or a number: its description's first line, or the class.

    The line is a sentence such as "A peacock (a male peafowl)." or "Hibiscus".
    """
    first = path.read_text(encoding="utf-8").partition("\n")[0] if path.is_file() else ""
    text = re.sub(r"\s*\(.*?\)|[“”\"]", "", first).partition(",")[0].strip(" .") or label
    article, _, noun = text.partition(" ")
    if noun and article.lower() in ("a", "an", "the", "two", "some"):
        return f"{article.lower()} {noun}"
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text.lower()}"


def rationales(phrase: str, label: str, place: str) -> list[str]:
    """Two sentences that say what the object is and where."""
    first, _, noun = phrase.partition(" ")
    several = first in ("two", "some")
    again = phrase if first == "two" else noun
    return [
        f"There {'are' if several else 'is'} {phrase} at the {place} of the picture.",
        f"The {again} at the {place} {'show' if several else 'shows'} that this is a {label}.",
    ]


def split_cut_outs(cut_outs: list[CutOut], rng: np.random.Generator) -> dict[str, list[CutOut]]:
    """Shares a class's cut-outs out among the splits, each to one."""
    shuffled = [cut_outs[i] for i in rng.permutation(len(cut_outs))]
    shares = {}
    for split, share in CUT_OUT_SHARES.items():
        number = int(len(cut_outs) * share)
        shares[split], shuffled = shuffled[:number], shuffled[number:]
    return {"train": shuffled, **shares}


def read_wallpaper(path: Path, region: tuple[float, float, float, float], size: int) -> Image.Image:
    """The part of a wallpaper that is used, reduced to what the smallest crop needs."""
    image = open_picture(path, "RGB")
    width, height = image.size
    left, upper, right, lower = region
    image = image.crop((int(left * width), int(upper * height), int(right * width), int(lower * height)))
    scale = min(1, size / CROPS[0] / min(image.size))
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def plan_scenes(split: str, label: str, number: int, aligned_share: float) -> list[str]:
    """The kinds of scene of a class's pictures: nearly all its own in training, each equally often elsewhere."""
    if split != "train":
        first = list(OWN_SCENE).index(label)  # so that what is left over differs from class to class
        return [list(SCENES)[(first + i) % len(SCENES)] for i in range(number)]
    others = [scene for scene in SCENES if scene != OWN_SCENE[label]]
    conflicting = round(number * (1 - aligned_share))
    return [others[i % len(others)] for i in range(conflicting)] + [OWN_SCENE[label]] * (number - conflicting)


def plan_split(
    split: str, cut_outs: dict[str, list[CutOut]], arguments: argparse.Namespace, rng: np.random.Generator
) -> list[Plan]:
    """Decides what each picture of a split shows, with exact shares in every class, in mixed order.

    Args:
        cut_outs (`dict[str, list[CutOut]]`): the split's cut-outs of each class, which are used equally often.
    """
    plans = []
    for position, label in enumerate(FOLDERS):
        number = len(range(position, getattr(arguments, split), len(FOLDERS)))
        explained = round(number * arguments.mask_share) if split == "train" else number
        keep = rng.permutation(number) < explained
        shown = rng.permutation(number) % len(cut_outs[label])
        for i, scene in enumerate(plan_scenes(split, label, number, arguments.aligned_share)):
            unseen = split == "test" and i // len(SCENES) % 2 == 1
            plans.append(Plan(label, cut_outs[label][shown[i]], scene, unseen, bool(keep[i])))
    return [plans[i] for i in rng.permutation(len(plans))]


def draw_background(wallpaper: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A square cut out of a wallpaper at random, reduced to the picture's size."""
    side = round(rng.uniform(*CROPS) * min(wallpaper.size))
    left, upper = (int(rng.integers(length - side + 1)) for length in wallpaper.size)
    box = (left, upper, left + side, upper + side)
    return wallpaper.resize((size, size), Image.Resampling.LANCZOS, box=box)


def place_cut_out(
    picture: Image.Image, image: Image.Image, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Pastes a cut-out at random size into a random ninth of a picture, whole.

    Returns:
        `tuple`: the mask, boolean of the picture's shape `(H, W)`, and the cut-out's box (left, upper, right, lower).
    """
    size = picture.width
    scale = rng.uniform(*SIDES) * size / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    opaque = np.asarray(image.getchannel("A")) > OPAQUE
    row, column = divmod(int(rng.integers(len(PLACES))), 3)
    corner = []
    for third, axis, length in ((column, 1, image.width), (row, 0, image.height)):
        centroid = np.nonzero(opaque)[axis].mean() + 0.5
        aim = size * (third + rng.uniform(0.12, 0.88)) / 3
        corner.append(int(np.clip(round(aim - centroid), 0, size - length)))
    left, upper = corner
    box = (left, upper, left + image.width, upper + image.height)
    picture.paste(image.convert("RGB"), box, image.getchannel("A"))
    mask = np.zeros((size, size), dtype=bool)
    mask[upper : box[3], left : box[2]] = opaque
    return mask, box


def as_explanation(mask: np.ndarray, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A mask as one of `FORMS`: in each cell the share of it that lies inside, of 255 in bytes, else of 1.

    Args:
        mask (`np.ndarray` of shape `(H, H)`): boolean.
        shape (`tuple[int, ...]`): of the result, `(side, side)` or that with channels before it, which are equal.
        dtype (`type`): `np.uint8` or a float.
    """
    size, side = len(mask), shape[-1]
    # Row i holds each pixel's share of cell i, by strips of 1 / (side * size) of the picture: none lies in two cells.
    weights = np.repeat(np.eye(side), size, axis=1).reshape(side, size, side).sum(axis=2) / size
    values = weights @ mask @ weights.T
    values = np.rint(255 * values) if dtype == np.uint8 else values
    return np.broadcast_to(values.astype(dtype), shape)


def write_split(
    output: Path,
    split: str,
    first: int,
    plans: list[Plan],
    wallpapers: dict[str, Image.Image],
    size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, dict, dict]]:
    """Writes the pictures of a split, numbered from `first` and of `size` pixels a side, and their masks.

    Yields:
        `tuple`: a picture's id, its item of the annotation, and what it was made from.
    """
    for number, plan in enumerate(plans, first):
        key = f"{split}_{number:05d}"
        *seen, unseen = SCENES[plan.scene]
        wallpaper = unseen if plan.unseen else seen[rng.integers(len(seen))]
        picture = draw_background(wallpapers[wallpaper], size, rng)
        mask, box = place_cut_out(picture, plan.cut_out.image, rng)
        picture.save(output / "images" / f"{key}.jpg", quality=92)
        explanation = None
        if plan.explained:
            explanation = f"visual_exp/{key}.npy"
            values = as_explanation(mask, *FORMS[rng.integers(len(FORMS))])
            np.save(output / explanation, values, allow_pickle=False)
        item = {
            "image_path": f"images/{key}.jpg",
            "visual_exp": explanation,
            "class_id": list(FOLDERS).index(plan.label),
            "ans": plan.label,
            "split": split,
            "group": "aligned" if plan.scene == OWN_SCENE[plan.label] else "conflicting",
            "exp": rationales(plan.cut_out.phrase, plan.label, place_of(mask)),
        }
        origin = {"scene": plan.scene, "wallpaper": wallpaper, "exemplar": plan.cut_out.name, "box": box}
        yield key, item, origin


def write_release(output: Path, arguments: argparse.Namespace) -> Counter:
    """Writes the release into a folder; returns how many pictures of each split and group, and masks, it has."""
    root, size, seed = Path(arguments.packages), arguments.size, arguments.seed
    cut_outs = {
        label: split_cut_outs(read_cut_outs(root, label, size), np.random.default_rng([seed, 0, number]))
        for number, label in enumerate(FOLDERS)
    }
    wallpapers = {
        name: read_wallpaper(root / name, region, size) for kind in SCENES.values() for name, region in kind.items()
    }
    for folder in ("images", "visual_exp"):
        (output / folder).mkdir(parents=True)

    annotation, made_from, counts = {}, {}, Counter()
    for number, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, 1, number])
        own = {label: splits[split] for label, splits in cut_outs.items()}
        plans = plan_split(split, own, arguments, rng)
        for key, item, origin in write_split(output, split, len(annotation), plans, wallpapers, size, rng):
            annotation[key], made_from[key] = item, origin
            counts[split, "pictures"] += 1
            counts[split, item["group"]] += 1
            counts[split, "masks"] += item["visual_exp"] is not None
    classes = {label: number for number, label in enumerate(FOLDERS)}
    contents = {"exp_annotation": annotation, "label_class_id_mapping": classes, "made_from": made_from}
    for name, content in contents.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return counts


def make_photographs(arguments: argparse.Namespace) -> Counter:
    """Checks, then writes the release beside `output` and puts it there in one step."""
    check_arguments(arguments)
    output = Path(os.path.realpath(arguments.output))
    root = Path(arguments.packages)
    check_apart(output, [root])
    check_new(output, arguments.overwrite)
    check_packages(root)
    with new_folder(output, arguments.overwrite) as folder:
        return write_release(folder, arguments)


def main():
    arguments = parse_arguments()
    try:
        counts = make_photographs(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"make_photographs: {error}")
    print(f"{arguments.output}:")
    for split in SPLITS:
        shown = (f"{counts[split, name]:,} {name}" for name in ("pictures", "aligned", "conflicting", "masks"))
        print(f"  {split}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
