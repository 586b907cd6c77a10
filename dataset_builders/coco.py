"""Own pictures with instances in COCO's format, whose masks can serve as visual explanations.

```
<root>/annotations/instances_<name>.json    {"images", "annotations", "categories"}, also directly in <root>
<root>/images/<name>/                       the pictures that "file_name" names, also in <name>/, images/ or <root>
<root>/metadata.jsonl                       labels and rationales, as in `image_folder.py`; where it is missing, a
                                            picture's label is the category that covers the most of it, by
                                            `area` or else that of mask or box
```

A name that begins with train, val or test is the split.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .image_folder import ImageFolder
from .items import Picture, as_text, bad_item, bad_source, check_name, folder_name, on_disk, shown, stream_json
from .maps import UPRIGHT
from .sources import Item


LARGEST_SIDE = 10**6  # pixels; beyond the pictures that Pillow decodes
# What a file raises that has other things where COCO has numbers and names: a number too large, a list in a list.
BAD_ENTRIES = (KeyError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError, sqlite3.Error)
SPLIT_PREFIXES = {"train": "train", "val": "validation", "test": "test"}
TABLES = """
CREATE TABLE categories (name TEXT UNIQUE);
CREATE TABLE pictures (picture TEXT PRIMARY KEY, file TEXT, width, height, split TEXT, source INTEGER);
CREATE TABLE instances (picture TEXT, category TEXT, area REAL, shape TEXT);
"""
# A picture's category and whether it is the only one that its instances tell: their areas, `NULL` where there is
# nothing to measure, must tell it where there are several.
LABELLED = """
SELECT file, split, source, (
    SELECT category FROM instances WHERE picture = pictures.picture
    GROUP BY category ORDER BY sum(area) DESC, category LIMIT 1
), (
    SELECT count(DISTINCT category) < 2 OR count(area) = count(*) AND max(area) > 0
    FROM instances WHERE picture = pictures.picture
) FROM pictures ORDER BY pictures.rowid
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

    def __init__(self, root: str | Path, explain_category: bool = False, **options):
        super().__init__(root, **options)
        self.explain_category = explain_category
        self.has_metadata = ImageFolder.is_layout_of(self.root)

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
                "their `area` or else that of their mask or box. A "
                f"split that the file's name tells is kept; the other pictures are split {self.split_rule}."
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
        split = next((split for prefix, split in SPLIT_PREFIXES.items() if name.startswith(prefix)), None)
        categories, entry = {}, None
        try:
            for entry in stream_json(path, "categories"):
                category = check_name(entry["name"], f"{path}: a category", "name")
                if categories.setdefault(entry["id"], category) != category:
                    raise KeyError(f"category {entry['id']} twice")
            for entry in stream_json(path, "images"):
                file = self.find_picture(name, entry["file_name"])
                values = (f"{number}/{entry['id']}", file, entry.get("width"), entry.get("height"), split, number)
                tables.execute("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?)", values)
            for entry in stream_json(path, "annotations"):
                shape = entry.get("segmentation") or {"box": entry.get("bbox")}
                picture, category = f"{number}/{entry['image_id']}", categories[entry["category_id"]]
                if not tables.execute("SELECT 1 FROM pictures WHERE picture = ?", (picture,)).fetchone():
                    self.refuse_stray(path, split, entry)
                    continue
                values = (picture, category, entry_area(entry, shape), json.dumps(shape))
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
        for file, split, source, category, told in self.instances.execute(LABELLED):
            if category is None:
                self.dropped["the picture has no instances"] += 1
            else:
                yield file, split, paths[source], category, told

    def check(self, key: str, split: str | None, path: Path, raw: bytes | str, told: bool = True) -> Item:
        if self.has_metadata:
            item = super().check(key, split, path, raw)
        else:
            where = f"{path}: picture {key!r}"
            if not told:
                expected = "an `area`, a mask or a `bbox` for each instance of several categories"
                remedy = "Add them, or name the labels in a metadata.jsonl."
                raise bad_item(where, expected, "nothing to measure", remedy)
            item = Item(key, where, image=key, label=raw, rationales=[], split=split, fields=("file_name", ""))
        if self.explain_category and item.visual_explanation is None:
            return replace(item, visual_explanation=self.shapes(item))
        return item

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
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    raise bad_item(
        where,
        f"polygons, run lengths or a box on {width} x {height} pixels",
        shown(shape),
        "Export the instances again.",
    )


def entry_area(entry: dict, shape) -> float | None:
    """The `area` of an annotation, or that of its shape where it has none; exporters also write 0 for none."""
    area = entry.get("area") or shape_area(shape)
    if area is not None and (type(area) not in (int, float) or area < 0):
        raise TypeError(f"an `area` of {shown(area)}")
    return area


def shape_area(shape) -> float | None:
    """The pixels that an instance's polygons, run lengths or box cover, or `None` where they cannot be measured."""
    box = isinstance(shape, dict) and shape.get("box")
    if box and is_numbers(box, LARGEST_SIDE, LARGEST_SIDE) and len(box) == 4:
        return max(box[2], 0) * max(box[3], 0)
    if is_polygons(shape, LARGEST_SIDE, LARGEST_SIDE):
        return sum(map(polygon_area, shape))
    runs = run_lengths(shape)
    return None if runs is None else sum(runs[1::2])


def polygon_area(polygon: list[float]) -> float:
    """The area of `[x1, y1, x2, y2, ...]`, by the shoelace formula."""
    x, y = np.asarray(polygon, dtype=float).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


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
