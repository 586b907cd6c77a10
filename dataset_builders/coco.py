"""Own pictures with instances in COCO's format, whose masks can serve as visual explanations.

```
<root>/annotations/instances_<name>.json    {"images", "annotations", "categories"}, also directly in <root>
<root>/images/<name>/                       the pictures that "file_name" names, also in <name>/, images/ or <root>
<root>/metadata.jsonl                       labels and rationales, as in `image_folder.py`; where it is missing, a
                                            picture's label is the category that covers the most of it, by
                                            `area` or else the pixels of masks or boxes
```

A name that begins with train, val, dev or test is the split; else a folder of that name in `file_name` is, as in
`image_folder.py`.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .image_folder import ImageFolder, folder_split
from .items import SPLITS, Picture, as_text, bad_item, bad_source, check_name, folder_name, on_disk, shown, stream_json
from .maps import UPRIGHT
from .sources import Item


LARGEST_SIDE = 10**6  # pixels; beyond the pictures that Pillow decodes
# What a file raises that has other things where COCO has numbers and names: a number too large, a list in a list.
BAD_ENTRIES = (KeyError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError, sqlite3.Error)
SPLIT_PREFIXES = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}
TABLES = """
CREATE TABLE categories (name TEXT UNIQUE);
CREATE TABLE pictures (picture TEXT PRIMARY KEY, file TEXT, width, height, split TEXT, source INTEGER);
CREATE TABLE instances (picture TEXT, category TEXT, area REAL, shape TEXT);
"""
INDEXES = "CREATE INDEX files ON pictures (file); CREATE INDEX owners ON instances (picture, category);"


class CocoInstances(ImageFolder):
    """Pictures with instances in COCO's format.

    Args:
        explain_category (`bool`, defaults to `False`): whether the union of the masks of the label's instances, or of
            their boxes where they have no mask, becomes the visual explanation of a picture that has no other.
            Polygons need pycocotools.
    """

    NAME = "coco"
    NEEDS = "annotations/instances_*.json"
    OPTIONS = ("explain_category",)

    def __init__(self, root: str | Path, explain_category: bool = False, **options):
        super().__init__(root, **options)
        self.explain_category = explain_category
        self.has_metadata = bool(self.metadata)

    def __getstate__(self):
        return {**super().__getstate__(), "instances": None}

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return bool(instance_files(root))

    @cached_property
    def label_names(self) -> list[str]:
        present = self.index.distinct("label")
        if self.has_metadata:
            return sorted(present)
        names = self.instances.execute("SELECT name FROM categories ORDER BY rowid")
        return [name for (name,) in names if name in present]

    @property
    def description(self) -> str:
        return f"Own pictures with instances in COCO's format, from a folder named `{folder_name(self.root)}`."

    @property
    def selection(self) -> str:
        rule = super().selection
        if not self.has_metadata:
            rule = (
                "Every picture with instances. Its label is the category whose instances cover the most of it, by "
                "their `area` or else the pixels of their masks or boxes. A split that the file's name or a folder "
                f"tells is kept; the other pictures are split {self.split_rule}."
            )
        masks = " The visual explanation is the union of the masks of the label's instances."
        return rule + masks if self.explain_category else rule

    @cached_property
    def instances(self) -> sqlite3.Connection:
        """Every picture and instance of the annotation files, in tables, since COCO's own take gigabytes of memory."""
        tables = sqlite3.connect(self.scratch / "instances.sqlite")
        tables.executescript("PRAGMA synchronous = OFF;" + TABLES)
        for number, path in enumerate(instance_files(self.root)):
            self.read_instances(tables, number, path)
        tables.executescript(INDEXES)
        return tables

    def read_instances(self, tables: sqlite3.Connection, number: int, path: Path):
        """Enters one annotation file in the tables; its pictures get its number, as files may share ids."""
        name = as_text(path.stem).removeprefix("instances_")
        split = next((split for prefix, split in SPLIT_PREFIXES.items() if name.lower().startswith(prefix)), None)
        categories, entry = {}, None
        try:
            for entry in stream_json(path, "categories"):
                category = check_name(entry["name"], f"{path}: a category", "name")
                if categories.setdefault(entry["id"], category) != category:
                    raise KeyError(f"category {entry['id']} twice")
            for entry in stream_json(path, "images"):
                file = self.find_picture(name, entry["file_name"])
                size = (whole_number(entry, "width"), whole_number(entry, "height"))
                values = (f"{number}/{entry['id']}", file, *size, split or folder_split(file), number)
                tables.execute("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?)", values)
            for entry in stream_json(path, "annotations"):
                picture, category = f"{number}/{entry['image_id']}", categories[entry["category_id"]]
                if not tables.execute("SELECT 1 FROM pictures WHERE picture = ?", (picture,)).fetchone():
                    self.refuse_stray(path, split, entry)
                    continue
                values = (picture, category, given_area(entry), json.dumps(entry_shape(entry)))
                tables.execute("INSERT INTO instances VALUES (?, ?, ?, ?)", values)
        except BAD_ENTRIES as error:
            raise bad_source(
                path,
                "instances in COCO's format, each id once",
                f"an entry that is not ({type(error).__name__}: {error}), {shown(entry)}",
                "Compare it with COCO's instances_val2014.json.",
            ) from error
        tables.executemany("INSERT OR IGNORE INTO categories VALUES (?)", [(name,) for name in categories.values()])

    def refuse_stray(self, path: Path, split: str | None, entry: dict):
        """Notes an annotation of a picture that its file does not have."""
        where = f"{path}: annotation {shown(entry.get('id'))}"
        expected, got = "`image_id` to be the id of one of `images`", shown(entry["image_id"])
        error = bad_item(where, expected, got, "List the picture, or remove the annotation.")
        self.note([self.refusal(f"annotation {shown(entry.get('id'))}", split, error)])

    def find_picture(self, name: str, file: str) -> str:
        """A picture's path from `image_root`, where the common places have it."""
        places = (f"images/{name}/{file}", f"{name}/{file}", f"images/{file}")
        return next((place for place in places if os.path.isfile(self.image_root / on_disk(place))), file)

    def raw_items(self) -> Iterator[tuple]:
        if self.has_metadata:
            yield from super().raw_items()
            return
        paths = instance_files(self.root)
        query = "SELECT picture, file, split, source, width, height FROM pictures ORDER BY rowid"
        for picture, file, split, source, *size in self.instances.execute(query):
            category, told = self.category(picture, size)
            if category is None:
                self.dropped["the picture has no instances"] += 1
            else:
                yield file, split, paths[source], category, told

    def category(self, picture: str, size: list[int | None]) -> tuple[str | None, bool]:
        """The category that covers the most of a picture, `None` without instances, and whether its areas tell it."""
        query = "SELECT category, area, shape FROM instances WHERE picture = ? ORDER BY category"
        instances = {}
        for category, *instance in self.instances.execute(query, (picture,)):
            instances.setdefault(category, []).append(instance)
        if len(instances) < 2:
            return next(iter(instances), None), True
        areas = {category: covered(own, *size) for category, own in instances.items()}
        if None in areas.values() or not max(areas.values()):
            return min(areas), False
        return max(areas, key=areas.get), True

    def check(self, key: str, split: str | None, path: Path, raw: bytes | str, told: bool = True) -> Item:
        if self.has_metadata:
            item = super().check(key, split, path, raw)
            item = replace(item, split=item.split or self.file_split(item.image))
        else:
            where = f"{path}: picture {key!r}"
            if not told:
                expected = "an `area`, a mask or a `bbox` for each instance of several categories"
                remedy = "Add them and the picture's `width` and `height`, or name the labels in a metadata.jsonl."
                raise bad_item(where, expected, "nothing to measure", remedy)
            item = Item(key, where, image=key, label=raw, rationales=[], split=split, fields=("file_name", ""))
        if self.explain_category and item.visual_explanation is None:
            return replace(item, visual_explanation=self.shapes(item))
        return item

    def file_split(self, file: str) -> str | None:
        """The split that an annotation file's name tells of a picture, or `None`; of several, the last."""
        rows = self.instances.execute("SELECT DISTINCT split FROM pictures WHERE file = ?", (file,))
        return max((split for (split,) in rows if split), key=SPLITS.index, default=None)

    def shapes(self, item: Item) -> dict | None:
        """The shapes of the instances of an item's label and the picture's size, or `None` where there are none."""
        query = (
            "SELECT shape, width, height FROM instances JOIN pictures USING (picture) WHERE file = ? AND category = ? "
            "ORDER BY instances.rowid"
        )
        rows = self.instances.execute(query, (item.image, item.label)).fetchall()
        return {"shapes": [json.loads(shape) for shape, *_ in rows], "size": rows[0][1:]} if rows else None

    def read_visual_explanation(self, item: Item, picture: Picture):
        if isinstance(item.visual_explanation, str):
            return super().read_visual_explanation(item, picture)
        width, height = item.visual_explanation["size"]
        turned = picture.orientation in UPRIGHT and (height, width) == picture.size != (width, height)
        if (width, height) != picture.size and not turned:
            raise bad_item(
                item.where,
                f"instances on the picture's {picture.size[0]} x {picture.size[1]} pixels",
                f"a `width` and `height` of {shown(width)} x {shown(height)}",
                "Annotate the picture as it is.",
            )
        mask = np.zeros((height, width), dtype=bool)
        for shape in item.visual_explanation["shapes"]:
            mask |= shape_mask(shape, width, height, item.where)
        if not mask.any():
            raise bad_item(item.where, "masks that cover a pixel", "empty ones", "Remove these instances.")
        mask = UPRIGHT[picture.orientation](mask) if turned else mask
        return f"{Path(item.image).stem}.png", mask.astype(np.float64)


def instance_files(root: Path) -> list[Path]:
    return sorted(path for folder in (root / "annotations", root) for path in folder.glob("instances_*.json"))


def shape_mask(shape, width: int, height: int, where: str) -> np.ndarray:
    """One instance's mask, `(height, width)` booleans, from polygons, run lengths or a box, or `ValueError`."""
    box = isinstance(shape, dict) and shape.get("box")
    if box and is_numbers(box, width, height) and len(box) == 4:
        left, top = round(box[0]), round(box[1])
        mask = np.zeros((height, width), dtype=bool)
        mask[max(top, 0) : max(round(box[1] + box[3]), 0), max(left, 0) : max(round(box[0] + box[2]), 0)] = True
        return mask
    if is_polygons(shape, width, height):
        masks = import_masks()
        return masks.decode(masks.merge(masks.frPyObjects(shape, height, width))).astype(bool)
    runs = run_lengths(shape)
    if runs is not None and shape["size"] == [height, width]:
        return runs_mask(runs, width, height)
    raise bad_item(
        where,
        f"polygons, run lengths or a box on {width} x {height} pixels",
        shown(shape),
        "Export the instances again.",
    )


def whole_number(entry: dict, field: str) -> int | None:
    """A picture's `width` or `height`, which exporters also write as 40.0."""
    value = entry.get(field)
    if type(value) is float and value.is_integer():
        return int(value)
    if value is not None and type(value) is not int:
        raise TypeError(f"a `{field}` of {shown(value)}, which is no whole number")
    return value


def given_area(entry: dict) -> float | None:
    """The `area` of an annotation, or `None` where it has none; exporters also write 0 for none."""
    area = entry.get("area") or None
    if area is not None and (type(area) not in (int, float) or area < 0):
        raise TypeError(f"an `area` of {shown(area)}")
    return area


def entry_shape(entry: dict):
    """The mask of an annotation, or its box where the mask is empty."""
    shape = entry.get("segmentation")
    if isinstance(shape, list):
        shape = [polygon for polygon in shape if polygon]
    if isinstance(shape, dict) and not shape.get("counts"):
        shape = None
    return shape or {"box": entry.get("bbox")}


def covered(instances: list[tuple], width: int | None, height: int | None) -> float | None:
    """What the instances of one category cover of a picture, in pixels, or `None` where they cannot be measured.

    Args:
        instances (`list[tuple]`): the `area` and the shape, in JSON, of each. The areas are summed, as COCO's are; of
            the instances without one, each pixel counts once.
    """
    total = sum(area for area, _ in instances if area is not None)
    shapes = [json.loads(shape) for area, shape in instances if area is None]
    if not shapes:
        return total
    if not width or not height or min(width, height) < 1 or width * height > Image.MAX_IMAGE_PIXELS:
        return None
    union = np.zeros((height, width), dtype=np.float32)
    for shape in shapes:
        cover = shape_cover(shape, width, height)
        if cover is None:
            return None
        np.maximum(union, cover, out=union)
    return total + float(union.sum(dtype=np.float64))


def shape_cover(shape, width: int, height: int) -> np.ndarray | None:
    """The share of each pixel that an instance covers, `(height, width)`, or `None` where it cannot be measured."""
    box = isinstance(shape, dict) and shape.get("box")
    if box and is_numbers(box, LARGEST_SIDE, LARGEST_SIDE) and len(box) == 4:
        left, top, across, down = box
        return np.outer(stretch(top, down, height), stretch(left, across, width))
    if is_polygons(shape, LARGEST_SIDE, LARGEST_SIDE):
        return np.logical_or.reduce([polygon_mask(polygon, width, height) for polygon in shape])
    runs = run_lengths(shape)
    if runs is None or shape["size"] != [height, width]:
        return None
    return runs_mask(runs, width, height)


def stretch(start: float, length: float, size: int) -> np.ndarray:
    """Of each of `size` pixels in a row, the share that lies in a stretch."""
    pixels = np.arange(size)
    return (np.minimum(pixels + 1, start + length) - np.maximum(pixels, start)).clip(0, 1)


def polygon_mask(polygon: list[float], width: int, height: int) -> np.ndarray:
    """The pixels whose centre lies in `[x1, y1, x2, y2, ...]`: an odd number of its edges is to the left of it."""
    x, y = np.asarray(polygon, dtype=float).reshape(-1, 2).T
    edges = np.zeros((height, width + 1), dtype=bool)
    for x1, y1, x2, y2 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        first, last = (int(np.ceil(end - 0.5)) for end in sorted((y1, y2)))
        rows = np.arange(max(first, 0), min(last, height))
        if len(rows):
            columns = np.ceil(x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1) - 0.5).clip(0, width).astype(int)
            edges[rows, columns] ^= True
    return np.logical_xor.accumulate(edges, axis=1)[:, :width]


def runs_mask(runs: list[int], width: int, height: int) -> np.ndarray:
    """The mask of COCO's run lengths, which go down the columns."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def is_polygons(shape, width: int, height: int) -> bool:
    return isinstance(shape, list) and all(
        is_numbers(polygon, width, height) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape
    )


def run_lengths(shape) -> list[int] | None:
    """The run lengths of a mask, compressed or not, or `None` if they are not those of its size."""
    if not isinstance(shape, dict) or not isinstance(shape.get("size"), list) or len(shape["size"]) != 2:
        return None
    size, runs = shape["size"], shape.get("counts")
    runs = read_runs(runs) if isinstance(runs, str) else runs
    if not isinstance(runs, list) or not all(type(number) is int and number >= 0 for number in (*size, *runs)):
        return None
    return runs if sum(runs) == size[0] * size[1] else None


def is_numbers(values, width: int, height: int) -> bool:
    """Whether a list holds coordinates that lie on a picture, or off it by no more than its size."""
    reach = 2 * max(width, height)
    return isinstance(values, list) and all(type(value) in (int, float) and abs(value) <= reach for value in values)


def read_runs(text: str) -> list[int]:
    """Expands COCO's compressed run lengths.

    A character holds five bits, the lowest first, and whether the number goes on; from the fourth on, a number is the
    difference to the run two before. pycocotools writes outside its memory if they are damaged, so it is not used.
    """
    runs, value, shift = [], 0, 0
    for character in text.encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < 40:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def import_masks():
    """`pycocotools.mask`, which turns polygons into pixels as COCO's own tools do."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ValueError(
            "expected pycocotools, for the polygons of `explain_category`, got none. `pip install pycocotools`."
        ) from error
    return mask
