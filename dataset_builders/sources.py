"""What all sources of explained pictures share: an index of their items, the split, reading in parallel, bad items."""

import hashlib
import json
import multiprocessing
import os
import sqlite3
import tempfile
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from .items import (
    SPLITS,
    BadItem,
    Picture,
    bad_item,
    bad_source,
    check_shares,
    read_picture,
    real_folder,
    resolve_inside,
)
from .maps import encode_map, read_map


# What one process reads before the next one's turn: enough to be worth handing over, little enough to be held.
CHUNK_ITEMS = 64
CHUNK_BYTES = 2_000_000
CHUNKS_AHEAD = 4


@dataclass(frozen=True)
class Item:
    """One item whose annotation is checked and whose files are not yet read.

    Attributes:
        id, label, group (`str`), rationales (`list[str]`): as they will be in the data set.
        where (`str`): what an error names: the annotation file and the item.
        image (`str`): path from the source's `image_root`.
        visual_explanation (`str` or `dict`, *optional*): path from the source's `root`, or what the source reads.
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
        self.path = path
        self.connection = sqlite3.connect(path)
        # A scratch file: after a crash it is thrown away.
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute(
            "CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT UNIQUE, picture TEXT, label TEXT, split TEXT, "
            "item TEXT)"
        )

    def add(self, item: Item):
        """Adds an item, or raises `ValueError` if its id is taken."""
        picture = PurePosixPath(item.image).as_posix()
        values = (item.id, picture, item.label, item.split, json.dumps(vars(item)))
        added = self.connection.execute(
            "INSERT OR IGNORE INTO items (id, picture, label, split, item) VALUES (?, ?, ?, ?, ?)", values
        )
        if not added.rowcount:
            raise bad_item(item.where, "an id of its own", f"{item.id!r}, which occurs twice", "Rename or remove one.")

    def draw_splits(self, validation_share: float, test_share: float, seed: int):
        """Gives a split to each item that has none: that of its picture's other items, or a drawn one.

        The shares are the same in every class. The order within a class is that of a hash of seed and picture, so it
        depends on neither the order of the items nor the version of a random number generator.
        """

        def draw(picture):
            return hashlib.sha256(f"{seed}:{picture}".encode()).digest()

        self.connection.create_function("draw", 1, draw, deterministic=True)
        self.connection.execute("CREATE INDEX pictures ON items (picture, split)")
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

    def read(self, split: str) -> Iterator[Item]:
        """Yields the items of one split in the order in which they came."""
        query = "SELECT item FROM items WHERE split = ? ORDER BY position"
        for (item,) in self.connection.execute(query, (split,)):
            yield Item(**json.loads(item))


class Source(ABC):
    """A folder in one layout, as rows of a data set. A subclass knows the layout.

    Args:
        root (`str` or `Path`): the source's folder.
        validation_share, test_share (`float`): shares of each class, for items without a split of their own.
        seed (`int`): draws that split.
        on_error (`str`): `"stop"` raises at the first bad item; `"skip"` leaves it out and notes it.
        num_proc (`int`): processes that read the pictures; the rows and their order do not depend on it.
        images (`str`, *optional*): the folder that the pictures' paths start from, where the layout has another one.
        scratch (`str`, *optional*): an empty folder for the index; by default a temporary one.

    Attributes:
        label_names (`list[str]`): the classes.
        skipped (`Counter`): number of bad items by split; `None` stands for those that were bad before the split.
        dropped (`Counter`): number of items by the reason for which the selection leaves them out.

    Raises:
        `ValueError`: naming the file (and item) that is not as it should be, here or when the rows are read.
    """

    NAME = None  # of the layout, for `--layout`
    NEEDS = None  # the files that tell the layout
    BUILDER = None  # the only data set that it is for, if any
    IMAGES = ()  # folders of `root` that may hold the pictures; else `root` itself does
    license = None
    citation = None

    def __init__(
        self,
        root: str | Path,
        validation_share: float = 0.1,
        test_share: float = 0.2,
        seed: int = 0,
        on_error: str = "stop",
        num_proc: int = 1,
        images: str | None = None,
        scratch: str | None = None,
    ):
        check_shares(validation_share, test_share)
        if on_error not in ("stop", "skip"):
            raise ValueError(f"expected `on_error` to be 'stop' or 'skip', got {on_error!r}.")
        if num_proc < 1:
            raise ValueError(f"expected `num_proc` to be at least 1, got {num_proc}.")
        real_folder.cache_clear()  # the folders may have changed since the last source
        self.root = Path(root)
        folders = [self.root / name for name in self.IMAGES]
        self.image_root = Path(images) if images else next((path for path in folders if path.is_dir()), self.root)
        if not self.image_root.is_dir():
            raise bad_source(self.image_root, "a folder of pictures", "no such folder", "Check `--images`.")
        self.validation_share = validation_share
        self.test_share = test_share
        self.seed = seed
        self.on_error = on_error
        self.num_proc = num_proc
        self.temporary = None if scratch else tempfile.TemporaryDirectory(prefix="megl-")
        self.scratch = Path(scratch or self.temporary.name)
        self.skipped = Counter()
        self.dropped = Counter()

    def __getstate__(self):
        # For the processes that read: they need neither the index nor the folder, which a copy would remove.
        return {**self.__dict__, "index": None, "temporary": None}

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
    def skip_log(self) -> Path:
        """The file of bad items, one JSON object a line: `id`, `split` where known, `reason`."""
        return self.scratch / "skipped.jsonl"

    @cached_property
    def index(self) -> ItemIndex:
        """Every good item of the annotation with its split."""
        index = ItemIndex(self.scratch / "items.sqlite")
        for key, split, *raw in self.raw_items():
            try:
                index.add(self.check(key, split, *raw))
            except BadItem as error:
                self.refuse(key, split, error)
        if not index.distinct("label"):
            left = sum(self.skipped.values()), sum(self.dropped.values())
            got = "none" if left == (0, 0) else f"{left[0]} bad items and {left[1]} that the selection leaves out"
            raise bad_source(self.root, "at least one item", got, "Check the source folder.")
        index.draw_splits(self.validation_share, self.test_share, self.seed)
        return index

    def refuse(self, key: str, split: str | None, error: BadItem):
        """Raises the error of a bad item, or notes it."""
        if self.on_error == "stop":
            raise error
        self.skipped[split] += 1
        with open(self.skip_log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"id": key, "split": split, "reason": str(error)}) + "\n")

    def rows(self, split: str) -> Iterator[dict]:
        """Yields the rows of one split in the source's order."""
        with closing(in_order(self.read_rows, self.chunks(split), self.num_proc)) as results:
            for key, row, reason in (result for chunk in results for result in chunk):
                if row is not None:
                    yield row
                else:
                    self.refuse(key, split, BadItem(reason))

    def chunks(self, split: str) -> Iterator[list[Item]]:
        """The items of one split in lists, bounded in number and in bytes of their pictures."""
        chunk, size = [], 0
        for item in self.index.read(split):
            chunk.append(item)
            path = self.image_root / item.image
            size += path.stat().st_size if path.exists() else 0
            if len(chunk) == CHUNK_ITEMS or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def read_rows(self, items: Iterable[Item]) -> list[tuple[str, dict | None, str | None]]:
        """Reads items' files: (id, row, None), or (id, None, reason) for a bad item."""
        results = []
        for item in items:
            try:
                results.append((item.id, self.row(item), None))
            except BadItem as error:
                results.append((item.id, None, str(error)))
        return results

    def row(self, item: Item) -> dict:
        """Reads an item's files and returns its row."""
        path = resolve_inside(self.image_root, item.image, item.fields[0], item.where)
        picture = read_picture(path, item.where, item.fields[0])
        explanation = None
        if item.visual_explanation is not None:
            name, values = self.read_visual_explanation(item, picture)
            explanation = {"bytes": encode_map(values), "path": name}
        return {
            "id": item.id,
            "image": {"bytes": picture.content, "path": path.name},
            "label": item.label,
            "visual_explanation": explanation,
            "textual_explanations": item.rationales,
            "group": item.group,
        }

    def read_visual_explanation(self, item: Item, picture: Picture):
        """The name of an item's visual explanation and its `(H, W)` values in [0, 1]."""
        path = resolve_inside(self.root, item.visual_explanation, item.fields[1], item.where)
        return f"{path.stem}.png", read_map(path, item.where, item.fields[1], picture)


def find(root: Path, name: str, *folders: str) -> Path | None:
    """The first of `root/<folder>/<name>` that is there."""
    return next((path for folder in folders if (path := root / folder / name).exists()), None)


def in_order(function: Callable, chunks: Iterable, num_proc: int) -> Iterator:
    """`map(function, chunks)` by `num_proc` processes, which are a few chunks ahead of what is taken."""
    if num_proc == 1:
        yield from map(function, chunks)
        return
    with ProcessPoolExecutor(num_proc, initializer=die_with_parent) as pool:
        waiting = deque()
        for chunk in chunks:
            waiting.append(pool.submit(function, chunk))
            if len(waiting) > CHUNKS_AHEAD * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def die_with_parent():
    """Ends this process when its parent ends, even by SIGKILL; it would wait for work forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
