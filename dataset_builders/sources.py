"""What all sources of explained pictures share: an index of their items, the split, parts to be read, bad items."""

import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from .items import (
    SPLITS,
    BadItem,
    Picture,
    bad_item,
    bad_source,
    check_shares,
    on_disk,
    read_picture,
    real_folder,
    resolve_inside,
)
from .maps import encode_map, read_map


@dataclass(frozen=True)
class Part:
    """Neighbouring items of one split: those from `first` to `last`, by their positions in the index, or all."""

    split: str
    first: int = 0
    last: int = sys.maxsize


@dataclass(frozen=True)
class Item:
    """One item whose annotation is checked and whose files are not yet read.

    Attributes:
        id, label, group (`str`), rationales (`list[str]`): as they will be in the data set.
        where (`str`): what an error names: the annotation file and the item.
        image (`str`): path from the source's `image_root`.
        visual_explanation (`str` or `dict`, *optional*): path from the source's `map_root`, or what the source reads.
        split (`str`, *optional*): the item's own split; one is drawn for the others.
        fields (`tuple[str, str]`): the names of `image` and `visual_explanation` in the annotation, for errors.
    """

    id: str
    where: str
    image: str
    label: str
    rationales: list[str]
    visual_explanation: str | dict | None = None
    split: str | None = None
    group: str | None = None
    fields: tuple[str, str] = ("image", "visual_explanation")


class ItemIndex:
    """The items of a source in an SQLite file, so that any number of them takes little memory."""

    def __init__(self, path: Path):
        self.open(path)
        # A scratch file: after a crash it is thrown away.
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute(
            "CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT UNIQUE, picture TEXT, size INTEGER, "
            "label TEXT, split TEXT, item TEXT)"
        )

    def open(self, path: Path):
        self.path = path
        self.connection = sqlite3.connect(path)

    def __getstate__(self):
        return self.path

    def __setstate__(self, path: Path):
        self.open(path)

    def add(self, item: Item, size: int, picture: str | None = None):
        """Adds an item with a picture of `size` bytes, or raises `ValueError` if its id is taken.

        Args:
            picture (`str`, *optional*): the same for all items of one picture; by default the path that they give.
        """
        picture = picture or PurePosixPath(item.image).as_posix()
        values = (item.id, picture, size, item.label, item.split, json.dumps(vars(item)))
        added = self.connection.execute(
            "INSERT OR IGNORE INTO items (id, picture, size, label, split, item) VALUES (?, ?, ?, ?, ?, ?)", values
        )
        if not added.rowcount:
            raise bad_item(item.where, "an id of its own", f"{item.id!r}, which occurs twice", "Rename or remove one.")

    def keep_last_split(self) -> int:
        """Removes the items whose picture is also in a later of train, validation and test; returns their number.

        A picture that is trained on would otherwise be tested as well.
        """
        self.connection.create_function("place", 1, SPLITS.index, deterministic=True)
        self.connection.execute("CREATE INDEX IF NOT EXISTS pictures ON items (picture, split)")
        removed = self.connection.execute(
            "DELETE FROM items AS own WHERE split NOT NULL AND EXISTS (SELECT 1 FROM items "
            "WHERE picture = own.picture AND split NOT NULL AND place(split) > place(own.split))"
        )
        return removed.rowcount

    def draw_splits(self, validation_share: float, test_share: float, seed: int):
        """Gives a split to each item that has none: that of its picture's other items, or a drawn one.

        The shares are the same in every class. The order within a class is that of a hash of seed and picture, so it
        depends on neither the order of the items nor the version of a random number generator.
        """

        def draw(picture):
            return hashlib.sha256(f"{seed}:{picture}".encode()).digest()

        self.connection.create_function("draw", 1, draw, deterministic=True)
        self.connection.execute("CREATE INDEX IF NOT EXISTS pictures ON items (picture, split)")
        self.connection.execute(
            "UPDATE items AS own SET split = (SELECT split FROM items WHERE picture = own.picture AND split NOT NULL "
            "ORDER BY position LIMIT 1) WHERE split IS NULL"
        )
        # With `min`, SQLite takes the other columns of a group from the row that has the minimum.
        self.connection.execute(
            """
            WITH pictures AS (SELECT picture, label, min(position) FROM items WHERE split IS NULL GROUP BY picture),
            drawn AS (
                SELECT picture, row_number() OVER (PARTITION BY label ORDER BY draw(picture)) AS place,
                    CAST(count(*) OVER (PARTITION BY label) * :test + 0.5 AS INTEGER) AS test,
                    CAST(count(*) OVER (PARTITION BY label) * :validation + 0.5 AS INTEGER) AS validation
                FROM pictures
            )
            UPDATE items SET split = CASE WHEN place <= test THEN 'test' WHEN place <= test + validation
                THEN 'validation' ELSE 'train' END
            FROM drawn WHERE drawn.picture = items.picture AND items.split IS NULL
            """,
            {"test": test_share, "validation": validation_share},
        )
        self.connection.execute("CREATE INDEX splits ON items (split)")
        self.connection.commit()

    def distinct(self, column: str) -> set[str]:
        """The values that occur in one of the columns."""
        return {value for (value,) in self.connection.execute(f"SELECT DISTINCT {column} FROM items")}

    def parts(self, split: str, limit: int) -> Iterator[Part]:
        """Yields the parts of one split, each with pictures of at most `limit` bytes, or one picture."""
        query = "SELECT position, size FROM items WHERE split = ? ORDER BY position"
        part, total = None, 0
        for position, size in self.connection.execute(query, (split,)):
            if part is not None and total + size <= limit:
                part, total = replace(part, last=position), total + size
                continue
            if part is not None:
                yield part
            part, total = Part(split, position, position), size
        if part is not None:
            yield part

    def read(self, part: Part) -> Iterator[Item]:
        """Yields the items of one part in the order in which they came."""
        query = "SELECT item FROM items WHERE split = ? AND position BETWEEN ? AND ? ORDER BY position"
        for (item,) in self.connection.execute(query, (part.split, part.first, part.last)):
            yield Item(**json.loads(item))


class Source(ABC):
    """A folder in one layout, as rows of a data set. A subclass knows the layout.

    Args:
        root (`str` or `Path`): the source's folder.
        validation_share, test_share (`float`, *optional*, default to `SHARES`): shares of each class, for items
            without a split of their own.
        seed (`int`): draws that split.
        on_error (`str`): `"stop"` raises at the first bad item; `"skip"` leaves it out and notes it.
        images (`str`, *optional*): the folder that the pictures' paths start from, where the layout has another one.
        scratch (`str`, *optional*): an empty folder for the index; by default a temporary one.

    Attributes:
        label_names (`list[str]`): the classes.
        skipped (`Counter`): number of bad items by split; `None` stands for those that were bad before the split.
        dropped (`Counter`): number of items by the reason for which the selection leaves them out.
        unread_keys (`set[str]`): keys of the annotation that no column is made of.

    Raises:
        `ValueError`: naming the file (and item) that is not as it should be, here or when the rows are read.
    """

    NAME = None  # of the layout, for `--layout`
    NEEDS = None  # the files that tell the layout
    BUILDER = None  # the only data set that it is for, if any
    OWN = False  # whether its pictures are the user's own, and the data set another than the builder's
    IMAGES = ()  # folders of `root` that may hold the pictures; else `root` itself does
    OPTIONS = ()  # options that it takes and not every source does
    SHARES = (0.1, 0.2)  # of validation and test, where they are drawn
    license = None
    citation = None

    def __init__(
        self,
        root: str | Path,
        validation_share: float | None = None,
        test_share: float | None = None,
        seed: int = 0,
        on_error: str = "stop",
        images: str | None = None,
        scratch: str | None = None,
    ):
        validation_share = self.SHARES[0] if validation_share is None else validation_share
        test_share = self.SHARES[1] if test_share is None else test_share
        check_shares(validation_share, test_share)
        if test_share and not self.SHARES[1]:
            raise ValueError(f"expected no `test_share`, as the test split is published, got {test_share}.")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"expected `on_error` to be 'stop' or 'skip', got {on_error!r}.")
        real_folder.cache_clear()  # the folders may have changed since the last source
        self.root = self.map_root = Path(root)
        folders = [self.root / name for name in self.IMAGES]
        self.image_root = Path(images) if images else next((path for path in folders if path.is_dir()), self.root)
        if not self.image_root.is_dir():
            raise bad_source(self.image_root, "a folder of pictures", "no such folder", "Check `--images`.")
        self.validation_share = validation_share
        self.test_share = test_share
        self.seed = seed
        self.on_error = on_error
        self.temporary = None if scratch else tempfile.TemporaryDirectory(prefix="megl-")
        self.scratch = Path(scratch or self.temporary.name)
        self.skipped = Counter()
        self.dropped = Counter()
        self.unread_keys = set()

    def __getstate__(self):
        # For the processes that read: a copy would remove the folder.
        return {**self.__dict__, "temporary": None}

    @classmethod
    @abstractmethod
    def is_layout_of(cls, root: Path) -> bool:
        """Whether a folder has this layout."""

    @abstractmethod
    def raw_items(self) -> Iterator[tuple]:
        """Yields an id, a split or `None`, and what else `check` needs, for each item of the annotation."""

    @abstractmethod
    def check(self, key: str, split: str | None, *raw) -> Item:
        """The item, or `ValueError` if its annotation is not as the layout says."""

    @property
    def label_names(self) -> list[str]:
        return sorted(self.index.distinct("label"))

    @property
    def splits(self) -> list[str]:
        """The splits that have items, in the usual order."""
        present = self.index.distinct("split")
        return [split for split in SPLITS if split in present]

    @property
    def split_rule(self) -> str:
        """How the items without a split of their own got one, for the card."""
        return (
            f"by picture, stratified by class: test {self.test_share:.0%}, validation {self.validation_share:.0%}, "
            f"seed {self.seed}"
        )

    @property
    def validation_rule(self) -> str:
        """Whether a validation split is drawn from a published training split, for the card."""
        if not self.validation_share:
            return "Here `--validation_share` can draw one from the training split; none is."
        share = f"{self.validation_share:.0%} of each class of the training split"
        return f"Here {share}, drawn with seed {self.seed}, are the validation split."

    @property
    def skip_log(self) -> Path:
        """The file of bad items, one JSON object a line: `id`, `split` where known, `reason`."""
        return self.scratch / "skipped.jsonl"

    @cached_property
    def index(self) -> ItemIndex:
        """Every good item of the annotation with its split."""
        index = ItemIndex(self.scratch / "items.sqlite")
        for key, split, *raw in self.raw_items():
            try:
                item = self.check(key, split, *raw)
                index.add(item, *self.check_files(item))
            except BadItem as error:
                self.note([self.refusal(key, split, error)])
        if not index.distinct("label"):
            left = sum(self.skipped.values()), sum(self.dropped.values())
            got = "none" if left == (0, 0) else f"{left[0]} bad items and {left[1]} that the selection leaves out"
            raise bad_source(self.root, "at least one item", got, "Check the source folder.")
        removed = index.keep_last_split()
        if removed:
            self.dropped["the picture is also in a later split"] += removed
        index.draw_splits(self.validation_share, self.test_share, self.seed)
        return index

    def check_files(self, item: Item) -> tuple[int, str]:
        """The bytes of an item's picture, and its path from `image_root`, symbolic links followed.

        Raises:
            `ValueError`: if the item's files are missing or outside of the source.
        """
        picture = resolve_inside(self.image_root, item.image, item.fields[0], item.where)
        if isinstance(item.visual_explanation, str):
            resolve_inside(self.map_root, item.visual_explanation, item.fields[1], item.where)
        name = picture.relative_to(real_folder(str(self.image_root))).as_posix()
        return os.path.getsize(picture), os.fsencode(name).decode("utf-8", "backslashreplace")

    def refusal(self, key: str, split: str | None, error: BadItem) -> dict:
        """What `skip_log` has of a bad item, or its error, raised."""
        if self.on_error == "stop":
            raise error
        return {"id": key, "split": split, "reason": str(error)}

    def note(self, refused: list[dict]):
        """Counts bad items and adds them to `skip_log`."""
        self.skipped.update(refusal["split"] for refusal in refused)
        with open(self.skip_log, "a", encoding="utf-8", errors="backslashreplace") as file:  # halves of characters
            file.writelines(json.dumps(refusal, ensure_ascii=False) + "\n" for refusal in refused)

    def parts(self, split: str, limit: int) -> Iterator[Part]:
        """Yields the parts of one split, in order, each with pictures of at most `limit` bytes, or one picture."""
        return self.index.parts(split, limit)

    def rows(self, part: Part, refused: list[dict]) -> Iterator[dict]:
        """Yields the rows of a part in the source's order; what `skip_log` should have of it is added to `refused`."""
        for item in self.index.read(part):
            try:
                row = self.row(item)
            except BadItem as error:
                refused.append(self.refusal(item.id, part.split, error))
            else:
                yield row

    def row(self, item: Item) -> dict:
        """Reads an item's files, which `check_files` has seen, and returns its row."""
        path = self.image_root / on_disk(item.image)
        picture = read_picture(path, item.where, item.fields[0])
        explanation = None
        if item.visual_explanation is not None:
            name, values = self.read_visual_explanation(item, picture)
            explanation = None if values is None else {"bytes": encode_map(values), "path": name}
        return {
            "id": item.id,
            "image": {"bytes": picture.content, "path": PurePosixPath(item.image).name},
            "label": item.label,
            "visual_explanation": explanation,
            "textual_explanations": item.rationales,
            "group": item.group,
        }

    def read_visual_explanation(self, item: Item, picture: Picture):
        """The name of an item's visual explanation and its `(H, W)` values in [0, 1], or `None` if it may be empty."""
        path = self.map_root / on_disk(item.visual_explanation)
        name = PurePosixPath(item.visual_explanation).stem
        return f"{name}.png", read_map(path, item.where, item.fields[1], picture)


def find(root: Path, name: str, *folders: str) -> Path | None:
    """The first of `root/<folder>/<name>` that is there."""
    return next((path for folder in folders if (path := root / folder / name).exists()), None)
