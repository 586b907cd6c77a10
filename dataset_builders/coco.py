"""Own pictures with instances in COCO's format, whose masks can serve as visual explanations.

```
<root>/annotations/instances_<name>.json    {"images", "annotations", "categories"}, also directly in <root>
<root>/images/<name>/                       the pictures that "file_name" names, also in <name>/, images/ or <root>
<root>/metadata.jsonl                       labels and rationales, as in `image_folder.py`; where it is missing, a
                                            picture's label is the category that covers the most of it
```

A name that begins with train, val or test is the split.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .image_folder import ImageFolder
from .items import Picture, bad_item, bad_source, check_name, shown, stream_json
from .maps import UPRIGHT
from .sources import Item


SPLIT_PREFIXES = {"train": "train", "val": "validation", "test": "test"}
TABLES = """
CREATE TABLE categories (name TEXT UNIQUE);
CREATE TABLE pictures (picture TEXT PRIMARY KEY, file TEXT, width, height, split TEXT, source TEXT);
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
        return f"Own pictures with instances in COCO's format, from a folder named `{self.root.resolve().name}`."

    @property
    def selection(self) -> str:
        rule = super().selection
        if not self.has_metadata:
            rule = (
                "Every picture with instances. Its label is the category whose instances cover the most of it. A "
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
        name = path.stem.removeprefix("instances_")
        split = next((split for prefix, split in SPLIT_PREFIXES.items() if name.startswith(prefix)), None)
        categories = {}
        try:
            for entry in stream_json(path, "categories"):
                categories[entry["id"]] = check_name(entry["name"], f"{path}: a category", "name")
            for entry in stream_json(path, "images"):
                file = self.find_picture(name, entry["file_name"])
                values = (f"{number}/{entry['id']}", file, entry.get("width"), entry.get("height"), split, str(path))
                tables.execute("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?)", values)
            for entry in stream_json(path, "annotations"):
                shape = entry.get("segmentation") or {"box": entry.get("bbox")}
                category = categories[entry["category_id"]]
                values = (f"{number}/{entry['image_id']}", category, entry.get("area", 0), json.dumps(shape))
                tables.execute("INSERT INTO instances VALUES (?, ?, ?, ?)", values)
        except (KeyError, TypeError, AttributeError, sqlite3.Error) as error:
            raise bad_source(
                path,
                "instances in COCO's format, each id once",
                f"an entry that is not ({type(error).__name__}: {error})",
                "Compare it with COCO's instances_val2014.json.",
            ) from error
        tables.executemany("INSERT OR IGNORE INTO categories VALUES (?)", [(name,) for name in categories.values()])

    def find_picture(self, name: str, file: str) -> str:
        """A picture's path from `image_root`, where the common places have it."""
        places = (f"images/{name}/{file}", f"{name}/{file}", f"images/{file}")
        return next((place for place in places if (self.image_root / place).is_file()), file)

    def raw_items(self) -> Iterator[tuple]:
        if self.has_metadata:
            yield from super().raw_items()
            return
        query = (
            "SELECT file, split, source, (SELECT category FROM instances WHERE picture = pictures.picture "
            "GROUP BY category ORDER BY sum(area) DESC, category LIMIT 1) FROM pictures ORDER BY pictures.rowid"
        )
        for file, split, source, category in self.instances.execute(query):
            if category is None:
                self.dropped["the picture has no instances"] += 1
            else:
                yield file, split, Path(source), category

    def check(self, key: str, split: str | None, path: Path, raw: bytes | str) -> Item:
        if self.has_metadata:
            item = super().check(key, split, path, raw)
        else:
            where = f"{path}: picture {key!r}"
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
    if isinstance(shape, list) and all(
        is_numbers(polygon, width, height) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in shape
    ):
        masks = import_masks()
        return masks.decode(masks.merge(masks.frPyObjects(shape, height, width))).astype(bool)
    if isinstance(shape, dict) and shape.get("size") == [height, width]:
        runs = shape.get("counts")
        runs = read_runs(runs) if isinstance(runs, str) else runs
        if isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs):
            if sum(runs) == width * height:
                return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    raise bad_item(
        where,
        f"polygons, run lengths or a box on {width} x {height} pixels",
        shown(shape),
        "Export the instances again.",
    )


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
