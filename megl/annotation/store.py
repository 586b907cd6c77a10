"""The annotations of a folder of pictures, the log of who made them, and the files that hold both.

```
<folder>/…                       the pictures, which stay as they are
<folder>/metadata.jsonl          the state, which `megl prepare` reads; replaced as a whole by each save
<folder>/annotations.jsonl       the log, a line for each save: {"file_name", "version", "who", "when", "before",
                                 "after", "skipped"}, where two are lines of metadata.jsonl without "file_name"
<folder>/masks/<file_name>-<version>.png   the mask of that save; those of earlier saves stay, as the log names them
```

A save writes its mask, then its line of the log, which makes it count, then the metadata. Whatever of these a killed
program left undone is done, or passed over, when the folder is opened again.
"""

import io
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from dataset_builders.files import only_writer, whole_file, write_file
from dataset_builders.image_folder import METADATA, OTHER_METADATA, SPLIT_FOLDERS
from dataset_builders.items import (
    as_text,
    bad_item,
    bad_source,
    check_name,
    check_rationales,
    on_disk,
    parse_json_line,
    printable,
    read_picture,
    resolve_inside,
    shown,
)
from dataset_builders.maps import encode_png, read_map


LOG, MASKS = "annotations.jsonl", "masks"
MASK, RATIONALES = "visual_explanation_file_name", "textual_explanations"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
LONGEST_NAME = 100  # characters of who annotates
MOST_RATIONALES = 50  # of a picture
KEEP = "keep"  # in the place of a mask: leave it as it is


class StaleError(ValueError):
    """A save of what someone else saved meanwhile."""


@dataclass
class Item:
    """A picture.

    Attributes:
        file_name (`str`): its path from the folder.
        row (`dict`): its line of the metadata, without `file_name`.
        version (`int`): how often it was saved.
        who, when (`str`): of the last save.
        skipped (`bool`): whether the last save put it off.
    """

    file_name: str
    row: dict
    version: int = 0
    who: str = ""
    when: str = ""
    skipped: bool = False

    @property
    def done(self) -> bool:
        """Whether a person saved it, and did not put it off."""
        return self.version > 0 and not self.skipped


class Annotations:
    """The pictures of a folder and what people say of them. To be used as a context: one program at a time writes.

    Args:
        folder (`str` or `Path`): pictures, in sub-folders named after their classes or not, with or without a
            `metadata.jsonl`.
        labels (`list[str]`): classes besides those that the sub-folders and the metadata name.
        otherwise (`list[str]`): the classes where there are no others.

    Raises:
        `ValueError`: if there are no pictures or no classes, or the metadata or the log are not as they should be.
        `FileExistsError`: if another program has the folder open.
    """

    def __init__(self, folder, labels=(), otherwise=()):
        self.folder = Path(os.path.realpath(folder))
        if not self.folder.is_dir():
            raise ValueError(f"expected a folder of pictures, got {folder}. Correct the path.")
        self.saving = threading.Lock()
        rows = read_metadata(self.folder)
        masks = {row.get(MASK) for row in rows.values()}
        names = sorted({*rows, *(name for name in list_pictures(self.folder) if name not in masks)})
        if not names:
            raise bad_source(self.folder, "pictures", "none", f"Put some there ({', '.join(sorted(SUFFIXES))}).")
        self.items = [Item(name, rows.get(name) or folder_label(name)) for name in names]
        found = {item.row["label"] for item in self.items if "label" in item.row}
        found.update(check_name(label, "the classes", "labels") for label in labels)
        self.labels = sorted(found or otherwise)
        if not self.labels:
            remedy = "Name the classes by `--labels`, or move the pictures into sub-folders that are named after them."
            raise bad_source(self.folder, "classes", "pictures without any", remedy)
        self.known = rows

    def __enter__(self):
        self._alone = only_writer(self.folder / LOG, wait=False)
        self._alone.__enter__()
        try:
            self._replay()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *reason):
        return self._alone.__exit__(*reason)

    def _replay(self):
        """Bring the items to the log's end; where a line of the metadata is in no state of the log, someone edited it
        by hand: that is kept, and entered."""
        saves = {}
        for entry in read_log(self.folder / LOG):
            saves.setdefault(entry["file_name"], []).append(entry)
        for item in self.items:
            entries = saves.get(item.file_name)
            if not entries:
                continue
            last, edited = entries[-1], self.known.get(item.file_name)
            item.version, item.who, item.when = len(entries), last["who"], last["when"]
            item.row, item.skipped = last["after"], last["skipped"]
            states = [entries[0]["before"], *(entry["after"] for entry in entries)]
            if edited is not None and edited not in states:
                self._append(item, edited, f"edited in {METADATA}", item.skipped)
        if saves:
            self._write_metadata()

    # Pictures and masks

    def __len__(self):
        return len(self.items)

    def where(self, number: int) -> str:
        return f"{self.folder.name}: {shown(self.items[number].file_name)}"

    def picture(self, number: int):
        """The `Picture`, checked; a `ValueError` where it is none."""
        where = self.where(number)
        path = resolve_inside(self.folder, self.items[number].file_name, "file_name", where)
        return read_picture(path, where, "file_name")

    def image(self, number: int) -> Image.Image:
        """The picture as seen, in RGB."""
        with Image.open(io.BytesIO(self.picture(number).content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    def mask(self, number: int, picture=None) -> np.ndarray | None:
        """`(height, width)` of the picture, bool, true where its visual explanation is one half or more; or `None`."""
        name = self.items[number].row.get(MASK)
        if name is None:
            return None
        picture = picture or self.picture(number)
        where = self.where(number)
        values = read_map(resolve_inside(self.folder, name, MASK, where), where, MASK, picture)
        if values.shape != picture.size[::-1]:
            values = np.asarray(Image.fromarray(values.astype(np.float32)).resize(picture.size))
        return values >= 0.5

    # Saving

    def skip(self, number: int, version: int, who: str):
        """Put a picture off; what is known of it stays."""
        item = self.items[number]
        with self.saving:
            self._check_version(item, version)
            self._append(item, item.row, check_who(who), True)

    def save(self, number: int, version: int, who: str, label: str, rationales: list[str], mask=KEEP):
        """Take down what someone says of a picture.

        Args:
            number (`int`): the picture's place among `items`.
            version (`int`): the item's `version` that they saw.
            who (`str`): their name.
            label (`str`): one of `labels`.
            rationales (`list[str]`): none or some.
            mask (`np.ndarray` of shape `(height, width)`, bool): of the picture's size, true inside; `None` or one
                without anything inside removes it. By default it stays as it is.

        Raises:
            `StaleError`: if someone else saved the picture since; nothing is written.
            `ValueError`: if anything else is not as it should be; nothing is written.
        """
        item, where = self.items[number], self.where(number)
        who = check_who(who)
        if label not in self.labels:
            raise bad_item(where, f"`label` to be one of {self.labels}", shown(label), "Choose one.")
        rationales = check_rationales(rationales, where, "rationales")
        if len(rationales) > MOST_RATIONALES:
            raise bad_item(where, f"at most {MOST_RATIONALES} rationales", f"{len(rationales)}", "Leave some out.")
        size = self.picture(number).size
        if isinstance(mask, np.ndarray) and mask.shape != size[::-1]:
            got = f"{mask.shape[1]} x {mask.shape[0]}"
            raise bad_item(where, f"a mask of the picture's {size[0]} x {size[1]} pixels", got, "Draw it anew.")
        with self.saving:
            self._check_version(item, version)
            row = {**item.row, "label": label, RATIONALES: rationales}
            if not rationales:
                del row[RATIONALES]
            if mask is not KEEP:
                row.pop(MASK, None)
                if mask is not None and mask.any():
                    row[MASK] = self._write_mask(item, mask)
            self._append(item, row, who, False)
            self._write_metadata()

    @staticmethod
    def _check_version(item, version):
        if version != item.version:
            raise StaleError(f"{item.who or 'someone'} saved this picture meanwhile")

    def _write_mask(self, item, mask):
        name = f"{MASKS}/{item.file_name}-{item.version + 1}.png"
        path = self.folder / on_disk(name)
        if not Path(os.path.realpath(path)).is_relative_to(self.folder):
            raise bad_source(path, "a path inside the folder", "a symbolic link out of it", "Remove it.")
        with whole_file(path) as partial:
            partial.write_bytes(encode_png(Image.fromarray(mask.astype(np.uint8) * 255)))
        return name

    def _append(self, item, row, who, skipped):
        """Enter a save, which from then on counts."""
        version, when = item.version + 1, datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"file_name": item.file_name, "version": version, "who": who, "when": when, "before": item.row}
        line = json.dumps({**entry, "after": row, "skipped": skipped}, ensure_ascii=False) + "\n"
        path = self.folder / LOG
        end = path.stat().st_size if path.exists() else 0
        with open(path, "ab", buffering=0) as file:
            try:
                written = file.write(line.encode())
                if written != len(line.encode()):
                    raise OSError(f"{path}: the disk is full")
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, end)
                raise
        item.row, item.version, item.who, item.when, item.skipped = row, version, who, when, skipped

    def _write_metadata(self):
        rows = ({"file_name": item.file_name, **item.row} for item in self.items if "label" in item.row)
        write_file(self.folder / METADATA, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_who(who) -> str:
    """A name that fits into the log."""
    who = printable(check_name(who, "the annotator", "who"))
    if len(who) > LONGEST_NAME:
        raise ValueError(f"the annotator: expected `who` of at most {LONGEST_NAME} characters, got {len(who):,}.")
    return who


def list_pictures(folder: Path) -> list[str]:
    """The paths, from `folder`, of the files in it that are called pictures, without hidden ones and those in `masks`.

    Raises:
        `ValueError`: if there is metadata that the folder's `metadata.jsonl` would contradict.
    """
    names = []
    for root, folders, files in os.walk(folder):
        top = Path(root) == folder
        folders[:] = [name for name in folders if not name.startswith(".") and not (top and name == MASKS)]
        others = {METADATA, *OTHER_METADATA}.intersection(files) - ({METADATA} if top else set())
        if others:
            expected, got = f"{METADATA} of this folder alone", str(Path(root, min(others)))
            raise bad_source(folder, expected, got, "Write its lines into that, or move it away.")
        found = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
        names += [as_text(Path(root, name).relative_to(folder).as_posix()) for name in found]
    return names


def folder_label(name: str) -> dict:
    """The label that the last folder of a path says, unless that is a split's."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part.lower() not in SPLIT_FOLDERS]
    return {"label": folders[-1]} if folders else {}


def read_metadata(folder: Path) -> dict[str, dict]:
    """File names to what else their lines say, checked; none where there is no file."""
    path, rows = folder / METADATA, {}
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        row = parse_json_line(line, where)
        name = check_name(row.pop("file_name", None), where, "file_name")
        if name in rows:
            raise bad_item(where, "every picture once", f"{shown(name)} twice", "Remove one of the lines.")
        resolve_inside(folder, name, "file_name", where)
        check_name(row.get("label"), where, "label")
        check_rationales(row.get(RATIONALES), where, RATIONALES)
        if row.get(MASK) is not None:
            resolve_inside(folder, row[MASK], MASK, where)
        rows[name] = row
    return rows


def read_log(path: Path) -> list[dict]:
    """The entries of a log; what a killed program left of a last line is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    keys = {"file_name", "version", "who", "when", "before", "after", "skipped"}
    entries = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        entry = parse_json_line(line, f"{path}: line {number}")
        if not keys <= entry.keys():
            missing = sorted(keys - entry.keys())
            raise bad_item(f"{path}: line {number}", f"the keys {missing}", shown(entry), "Put the file back.")
        entries.append(entry)
    return entries


def to_runs(mask: np.ndarray) -> list[int]:
    """The lengths of runs of equal pixels, line by line, the first of pixels outside, of a bool `(height, width)`."""
    pixels = mask.ravel()
    ends = np.flatnonzero(np.diff(pixels)) + 1
    lengths = np.diff(np.concatenate([[0], ends, [pixels.size]])).tolist()
    return [0, *lengths] if pixels[0] else lengths


def from_runs(runs, size: tuple[int, int]) -> np.ndarray:
    """The `(height, width)` mask of such lengths; a `ValueError` where they are not those of `size`, width and
    height."""
    width, height = size
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"expected `mask` as a list of lengths of runs, got {shown(runs)}.")
    if sum(runs) != width * height:
        raise ValueError(f"expected a `mask` of {width} x {height} pixels, got one of {sum(runs):,} pixels in all.")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
