"""Own pictures: an `imagefolder` of `datasets` with a `metadata.jsonl`.

```
<root>/metadata.jsonl      {"file_name", "label", "visual_explanation_file_name"?, "textual_explanations"?,
                            "id"?, "split"?, "group"?} on each line; or one such file in each of the folders
                            `train`, `validation` and `test`
```

File names start from the folder of their `metadata.jsonl`. As for `datasets`, a folder named after a split, in any of
the usual words for it, is that split.
"""

import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from datasets.data_files import SPLIT_KEYWORDS

from .items import (
    BYTE_ORDER_MARK,
    MAP_WORDS,
    RATIONALE_WORDS,
    bad_item,
    bad_source,
    check_keys,
    check_name,
    check_own_split,
    check_rationales,
    folder_name,
    parse_json_line,
    shown,
)
from .sources import Item, Source


METADATA = "metadata.jsonl"
LONGEST_LINE = 16_000_000  # bytes; a line with all that an item may have has some thousand
OTHER_METADATA = ("metadata.csv", "metadata.parquet")  # which `datasets` reads as well
SPLIT_FOLDERS = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
KEYS = {
    "file_name": (),
    "label": (),
    "visual_explanation_file_name": MAP_WORDS,
    "textual_explanations": RATIONALE_WORDS,
    "id": (),
    "split": (),
    "group": (),
}


class ImageFolder(Source):
    """Own pictures with a `metadata.jsonl`. The classes are the labels that occur, by alphabet."""

    NAME = "image_folder"
    OWN = True
    NEEDS = "metadata.jsonl, in the folder or in its folders train, validation and test"

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return any((folder / METADATA).exists() for folder in (root, *split_folders(root)))

    @cached_property
    def metadata(self) -> list[Path]:
        """The `metadata.jsonl` of the root and of the folders that are splits.

        Raises:
            `ValueError`: if there is metadata elsewhere or in another format, which would be left unread.
        """
        paths = [folder / METADATA for folder in (self.root, *split_folders(self.root))]
        for folder, _, names in os.walk(self.root):
            for name in {METADATA, *OTHER_METADATA}.intersection(names):
                if Path(folder, name) not in paths:
                    expected = f"metadata in {METADATA} of this folder and of its {', '.join(SPLIT_FOLDERS)} alone"
                    got = f"{Path(folder, name)}, which would be left unread"
                    raise bad_source(self.root, expected, got, "Write its lines into one of those, or move it away.")
        return [path for path in paths if path.exists()]

    @property
    def description(self) -> str:
        return f"Own pictures, read from a folder named `{folder_name(self.root)}`."

    @property
    def selection(self) -> str:
        return f"Every line of `{METADATA}`. An item's own split is kept; the others are split {self.split_rule}."

    def raw_items(self) -> Iterator[tuple]:
        for path in self.metadata:
            split = folder_split(path.relative_to(self.root).as_posix())
            with open(path, "rb") as file:
                for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
                    if len(line) == LONGEST_LINE:
                        expected = f"lines of less than {LONGEST_LINE:,} bytes"
                        raise bad_source(f"{path}: line {number}", expected, "a longer one", "Write one item a line.")
                    line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                    if line.strip():
                        yield f"{path.relative_to(self.root).as_posix()}:{number}", split, path, line

    def check(self, key: str, split: str | None, path: Path, line: bytes) -> Item:
        where = f"{path}: line {key.rpartition(':')[2]}"
        raw = parse_json_line(line, where)
        self.unread_keys |= check_keys(raw, KEYS, where)
        folder = path.parent.relative_to(self.root)
        image = inside(folder, check_name(raw.get("file_name"), where, "file_name"))
        where = f"{where} ({shown(raw['file_name'])})"
        own, split = check_own_split(raw.get("split"), where), folder_split(image)
        if own is not None and split is not None and own != split:
            expected = f"`split` to be {split!r}, as the folder says"
            raise bad_item(where, expected, repr(own), "Correct it or leave it out.")
        explanation = raw.get("visual_explanation_file_name")
        if explanation is not None:
            explanation = inside(folder, check_name(explanation, where, "visual_explanation_file_name"))
        return Item(
            id=image if raw.get("id") is None else check_name(raw["id"], where, "id"),
            where=where,
            image=image,
            label=check_name(raw.get("label"), where, "label"),
            rationales=check_rationales(raw.get("textual_explanations"), where, "textual_explanations"),
            visual_explanation=explanation,
            split=own or split,
            group=None if raw.get("group") is None else check_name(raw["group"], where, "group"),
            fields=("file_name", "visual_explanation_file_name"),
        )


def split_folders(root: Path) -> list[Path]:
    """The folders of `root` that are named after a split."""
    return sorted(path for path in root.iterdir() if path.name.lower() in SPLIT_FOLDERS and path.is_dir())


def folder_split(path: str) -> str | None:
    """The split that the first of a path's folders named after one tells, or `None`."""
    folders = (folder.lower() for folder in PurePosixPath(path).parts[:-1])
    return next((SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS), None)


def inside(folder: Path, name: str) -> str:
    """A path that starts from the metadata's folder, as one from the root; an absolute one stays so."""
    return (folder / name).as_posix()
