"""What a data set holds and what is wrong with it: counted in one pass, a few hundred bytes a row."""

import bisect
import io
import os
import re
import warnings
from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import regex
from datasets import ClassLabel, Features, Image, load_dataset_builder
from datasets.table import table_cast
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from dataset_builders.build import features
from dataset_builders.items import folded, groups_of_equals, number_of_frames, printable, similar_names
from dataset_builders.maps import is_faint
from megl.pages.inspection import example
from megl.terminal import progress


GRID = 32  # cells along each side of a mean map
SHOWN = 5  # items that a warning names
UNLABELLED = -1  # the label of a picture without one, as the Hub has it
# A word with its marks, also "c++" and "c#"; each character of the scripts that have no spaces; each emoji; signs.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
TOKEN = regex.compile(
    rf"(?=[{UNSPACED}])\X"
    rf"|[\p{{L}}\p{{N}}--{UNSPACED}][\p{{L}}\p{{M}}\p{{N}}\p{{Join_Control}}--{UNSPACED}]*"
    r"(?:[+#]{2,}|[+#](?![\p{L}\p{N}]))?"
    r"|(?=\p{So})\X"
    r"|[\p{Sm}\p{Sc}\p{Sk}]+",
    regex.V1,
)
WARNINGS = {
    "unlabelled_pictures": "Pictures without a label (-1), which the figures of the classes leave out",
    "similar_class_names": "Class names that differ in case, blanks or the form of their letters alone",
    "unreadable_pictures": "Pictures that cannot be decoded, or are not still and of 8 bits a channel",
    "unreadable_maps": "Maps that cannot be decoded, or are not grey",
    "empty_maps": "Empty maps: 0 everywhere; a missing map should be null",
    "faint_maps": "Maps that are almost black, below 16 of 255, as masks of 0 and 1 are: scale them up",
    "full_maps": "Full maps: nowhere below half of their maximum, so they point nowhere",
    "same_file_across_splits": "Groups of pictures with the same bytes in different splits",
    "same_file_within_split": "Groups of pictures with the same bytes in one split",
    "same_pixels_across_splits": "Groups of pictures with the same pixels, in different files and splits",
    "same_pixels_within_split": "Groups of pictures with the same pixels, in different files of one split",
    "classes_without_pictures": "Classes without pictures in a split",
    "classes_without_maps": "Classes that have pictures but no map in a split",
    "classes_without_rationales": "Classes that have pictures but no rationale in a split",
    "leaking_rationales": "Pictures with a rationale that names another class",
    "empty_rationales": "Pictures with a blank rationale; a missing one should be left out",
}


def open_dataset(folder):
    """
    The Parquet files of each split of a data set, and its columns as `Features`, those that are not ours left out.

    Raises:
        `ValueError`: if `folder` is no data set of Parquet files, or lacks one of the columns.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"expected a folder that prepare_dataset.py wrote, got {folder}, which is no folder.")
    if not is_utf8(folder):
        raise ValueError(f"{folder}: expected a path that is text in this locale. Set PYTHONUTF8=1, or rename it.")
    try:
        builder = load_dataset_builder(str(folder))
    except Exception as error:  # of the card's YAML, of scripts, of files of several kinds: each its own
        raise ValueError(
            f"{folder}: expected a data set of Parquet files, got one that does not open ({error})."
        ) from error
    files = {str(split): list(paths) for split, paths in builder.config.data_files.items()}
    other = [path for paths in files.values() for path in paths if not path.endswith(".parquet")]
    if other:
        raise ValueError(
            f"{folder}: expected Parquet files, got {other[0]}. Build the data set with prepare_dataset.py."
        )
    found = builder.info.features or Features.from_arrow_schema(pq.read_schema(next(iter(files.values()))[0]))
    label = found.get("label")
    columns = features(label.names if isinstance(label, ClassLabel) and label.names else ["?"])
    for column, feature in columns.items():
        if found.get(column) != feature:
            expected, remedy = feature, "Build the data set with prepare_dataset.py."
            if column == "label":
                expected, remedy = "a ClassLabel with class names", "Cast it by `class_encode_column`."
            raise ValueError(
                f"{folder}: expected a column `{column}` of type {expected}, got {found.get(column)}. {remedy}"
            )
    return files, columns


def is_utf8(path):
    """Whether `datasets` can open a path: one of bytes that the locale does not know it cannot."""
    try:
        return bool(str(path).encode())
    except UnicodeError:
        return False


def read_rows(path, columns):
    """Lists of a Parquet file's rows, a row group at a time: scanners that read ahead fill the memory."""
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number, columns=list(columns))
            yield table_cast(group, columns.arrow_schema).to_pylist()


@dataclass
class Finding:
    """
    What one row tells by itself.

    Args:
        problems (`list[tuple[str, str]]`): kinds of warnings, each with a remark for the item's name.
        checksums (`tuple[bytes, bytes]` or `None`): of the stored bytes and of the pixels, where the picture decodes.
        area (`float`): mean of the map, in [0, 1]; for a binary map the share of the picture that it covers.
        grid (`np.ndarray` of shape `(GRID, GRID)` or `None`): the map, resized, where there is one that decodes.
        lengths (`list[int]`): words of each rationale that is not blank.
        naming_own (`int`): rationales that name the row's own class.
    """

    problems: list = field(default_factory=list)
    checksums: tuple | None = None
    area: float = 0.0
    grid: np.ndarray | None = None
    lengths: list = field(default_factory=list)
    naming_own: int = 0


def examine(row, names, finder):
    """The `Finding` of one row; `names` are the class names, `finder` what `class_finder` makes of them."""
    finding = Finding()
    try:
        picture = decode(row["image"])
        finding.checksums = checksum(row["image"]["bytes"]), checksum(pixels(picture))
    except ValueError as error:
        finding.problems.append(("unreadable_pictures", str(error)))
    try:
        examine_map(decode_map(row["visual_explanation"]), finding)
    except ValueError as error:
        finding.problems.append(("unreadable_maps", str(error)))
    own = None if row["label"] == UNLABELLED else names[row["label"]]
    examine_rationales(row["textual_explanations"] or [], own, finder, finding)
    return finding


def examine_map(values, finding):
    if values is None:
        return
    finding.area = float(values.mean())
    resized = PILImage.fromarray(values).resize((GRID, GRID), PILImage.Resampling.BILINEAR)
    finding.grid = np.asarray(resized)
    if values.max() == 0:
        finding.problems.append(("empty_maps", ""))
    elif is_faint(values):
        finding.problems.append(("faint_maps", ""))
    elif values.min() >= values.max() / 2:
        finding.problems.append(("full_maps", ""))


def examine_rationales(rationales, own, finder, finding):
    texts = [words(rationale) for rationale in rationales if rationale and rationale.strip()]
    finding.lengths = [len(text.split()) for text in texts]
    if len(texts) < len(rationales):
        finding.problems.append(("empty_rationales", ""))
    if own is None:
        return
    named = [set(finder.findall(text)) for text in texts]
    finding.naming_own = sum(words(own) in found for found in named)
    others = sorted(set().union(*named) - {words(own)})
    if others:
        finding.problems.append(("leaking_rationales", f"{own}, names {', '.join(others)}"))


def decode(value, deep=False):
    """
    A stored picture as `load_dataset` gives it, EXIF orientation applied.

    Args:
        deep (`bool`): whether it may have more than 8 bits a channel, as a map may.

    Raises:
        `ValueError`: says why there is none, as does the header of a picture too large to be decoded.
    """
    if value is None or not value["bytes"]:
        raise ValueError("no bytes are stored")
    try:
        with PILImage.open(io.BytesIO(value["bytes"])) as image:
            if image.width * image.height > PILImage.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, above {PILImage.MAX_IMAGE_PIXELS:,}")
            if number_of_frames(image) > 1:
                raise ValueError(f"{number_of_frames(image)} frames")
            if not deep and image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}, not 8 bits a channel")
        return Image().decode_example(value)
    except UnidentifiedImageError as error:
        raise ValueError("not a format of pictures that is known") from error
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise ValueError(str(error)) from error


def decode_map(value):
    """
    A visual explanation as `(height, width)` float32 in [0, 1], or `None`; `ValueError` where it is not grey.

    Not by `read_mask`, which refuses masks of 0 and 1 and reads 16 bits of at most 255 as 8: here both are warned of.
    """
    if value is None:
        return None
    image = decode(value, deep=True)
    if image.mode not in ("L", "I", "I;16"):
        raise ValueError(f"mode {image.mode}, not 8- or 16-bit grey")
    return np.asarray(image, dtype=np.float32) / (255 if image.mode == "L" else 65535)


def pixels(image):
    """Bytes that are equal for pictures that look the same, whatever their files' format and mode."""
    return str(image.size).encode() + image.convert("RGBA").tobytes()


def checksum(content):
    return blake2b(content, digest_size=16).digest()


def words(text):
    """Words and signs of any script in lower case, a space between each."""
    return " ".join(TOKEN.findall(folded(text)))


def class_finder(names):
    """A pattern that finds class names, also with -s or -es, in a text of `words`; the longest name wins."""
    longest_first = sorted({words(name) for name in names} - {""}, key=len, reverse=True)
    return re.compile(rf"(?<![^ ])({'|'.join(map(re.escape, longest_first)) or '(?!)'})(?:e?s)?(?![^ ])")


@dataclass
class Warned:
    """A warning: how many items it is about, and the first few of them."""

    count: int = 0
    items: list = field(default_factory=list)

    def add(self, item):
        self.count += 1
        if self.count <= SHOWN:
            self.items.append(item)


class Inspection:
    """
    What a pass over a data set collects: a few hundred bytes a row, however large the pictures are.

    Attributes:
        pictures, maps, told (`np.ndarray` of shape `(splits, classes + 1)`): counts of pictures, of those whose map is
            not null, and of those that have a rationale. The last of the classes, here and below, are the unlabelled.
        map_sums (`np.ndarray` of shape `(classes + 1, GRID, GRID)`): sums of the maps that decode.
        areas (`list[array]`): for each class the area of each of them, in [0, 1].
        lengths (`list[array]`): for each split the number of words of each rationale.
    """

    def __init__(self, splits, class_names, examples):
        self.splits, self.class_names, self.num_examples = splits, class_names, examples
        self.pictures, self.maps, self.told = np.zeros((3, len(splits), len(class_names) + 1), dtype=int)
        self.map_sums = np.zeros((len(class_names) + 1, GRID, GRID))
        self.areas = [array("f") for _ in range(len(class_names) + 1)]
        self.lengths = [array("I") for _ in splits]
        self.naming_own = 0
        self.groups = [Counter() for _ in splits]
        self.rows = []  # (index of the split, id, index of the class, checksums)
        self.warnings = {kind: Warned() for kind in WARNINGS}
        self.candidates = [[] for _ in class_names]

    def add(self, split, row, finding):
        label = row["label"]
        self.pictures[split, label] += 1
        self.maps[split, label] += row["visual_explanation"] is not None
        self.told[split, label] += bool(finding.lengths)
        self.lengths[split].extend(finding.lengths)
        self.naming_own += finding.naming_own
        if finding.grid is not None:
            self.map_sums[label] += finding.grid
            self.areas[label].append(finding.area)
        if row["group"] is not None:
            self.groups[split][row["group"]] += 1
        name = f"{self.splits[split]}/{row['id']}"
        if label == UNLABELLED:
            self.warnings["unlabelled_pictures"].add(name)
        for kind, remark in finding.problems:
            self.warnings[kind].add(f"{name} ({remark})" if remark else name)
        self.rows.append((split, row["id"], label, finding.checksums))
        if finding.checksums is not None and label != UNLABELLED:
            self.consider_example(name, row, finding)

    def consider_example(self, name, row, finding):
        """Keeps a row as an example if it is among its class's first in a fixed random order, maps preferred."""
        candidates = self.candidates[row["label"]]
        key = (finding.grid is None, checksum(name.encode()))
        room = -(-self.num_examples // len(self.class_names))
        if len(candidates) == room and (not room or key > candidates[-1][0]):
            return
        mask = None if finding.grid is None else decode_map(row["visual_explanation"])
        texts = [text for text in row["textual_explanations"] or [] if text]
        item = example(name, self.class_names[row["label"]], row["group"], decode(row["image"]), mask, texts)
        bisect.insort(candidates, (key, item), key=itemgetter(0))
        del candidates[room:]

    def finish(self):
        """Adds the warnings that need all rows."""
        by_file = [checksums and checksums[0] for _, _, _, checksums in self.rows]
        by_pixels = [checksums and checksums[1] for _, _, _, checksums in self.rows]
        for rows in groups_of_equals(by_file):
            self.add_duplicates("same_file", rows)
        for rows in groups_of_equals(by_pixels):
            if len({by_file[row] for row in rows}) > 1:
                self.add_duplicates("same_pixels", rows)
        for names in similar_names(self.class_names):
            self.warnings["similar_class_names"].add(names)
        for split, name in enumerate(self.splits):
            for label, class_name in enumerate(self.class_names):
                if not self.pictures[split, label]:
                    self.warnings["classes_without_pictures"].add(f"{name}/{class_name}")
                    continue
                if not self.maps[split, label]:
                    self.warnings["classes_without_maps"].add(f"{name}/{class_name}")
                if not self.told[split, label]:
                    self.warnings["classes_without_rationales"].add(f"{name}/{class_name}")

    def add_duplicates(self, kind, rows):
        members = [self.rows[row] for row in rows]
        where = "across_splits" if len({split for split, *_ in members}) > 1 else "within_split"
        names = [f"{self.splits[split]}/{key}" for split, key, *_ in members]
        shown = " = ".join(names[:SHOWN]) + (f" = {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
        labels = sorted({label for _, _, label, _ in members})
        if len(labels) > 1:
            names = [self.class_names[label] for label in labels if label != UNLABELLED]
            shown += f" (labelled {', '.join(names)}{', and not' if labels[0] == UNLABELLED else ''})"
        self.warnings[f"{kind}_{where}"].add(shown)

    def examples(self):
        """What the page shows of at most `num_examples` examples, spread evenly over the classes."""
        items = [item for candidates in self.candidates for _, item in candidates]
        chosen = np.linspace(0, len(items) - 1, min(self.num_examples, len(items))).round().astype(int)
        return [items[index] for index in chosen]

    def summary(self):
        """The figures and the warnings, ready for JSON."""
        return {
            "splits": {name: self.split_summary(split) for split, name in enumerate(self.splits)},
            "classes": {name: self.class_summary(label) for label, name in enumerate(self.class_names)},
            "map_area": quantiles([area for areas in self.areas for area in areas]),
            "rationale_words": quantiles([length for lengths in self.lengths for length in lengths]),
            "rationales_naming_own_class": self.naming_own,
            "warnings": {
                kind: {"meaning": WARNINGS[kind], "count": warned.count, "items": warned.items}
                for kind, warned in self.warnings.items()
                if warned.count
            },
        }

    def split_summary(self, split):
        return {
            "pictures": int(self.pictures[split].sum()),
            "maps": int(self.maps[split].sum()),
            "with_rationale": int(self.told[split].sum()),
            "rationales": len(self.lengths[split]),
            "smallest_class": int(self.pictures[split, :-1].min()),
            "largest_class": int(self.pictures[split, :-1].max()),
            "groups": dict(sorted(self.groups[split].items())),
            "rationale_words": quantiles(self.lengths[split]),
        }

    def class_summary(self, label):
        grid = self.map_sums[label]
        weight, cells = grid.sum(), (np.arange(GRID) + 0.5) / GRID
        return {
            "pictures": dict(zip(self.splits, self.pictures[:, label].tolist(), strict=True)),
            "maps": dict(zip(self.splits, self.maps[:, label].tolist(), strict=True)),
            "with_rationale": dict(zip(self.splits, self.told[:, label].tolist(), strict=True)),
            "map_area": quantiles(self.areas[label]),
            "map_centre": [round(float(grid.sum(axis) @ cells / weight), 4) for axis in (0, 1)] if weight else None,
        }

    def mean_map(self, label):
        """The mean of a class's maps, `(GRID, GRID)` in [0, 1], or `None` without a map."""
        number = len(self.areas[label])
        return self.map_sums[label] / number if number else None


def quantiles(values):
    """5 %, median, 95 % and the largest of some values, to 4 decimals, or `None` without any."""
    if not len(values):
        return None
    shares = {"p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1}
    found = np.quantile(np.asarray(values), list(shares.values())).tolist()
    return {name: round(value, 4) for name, value in zip(shares, found, strict=True)}


def inspect(files, columns, examples):
    """The `Inspection` of the files that `open_dataset` gives, with at most `examples` examples."""
    class_names = columns["label"].names
    inspection = Inspection(list(files), class_names, examples)
    look = partial(examine, names=class_names, finder=class_finder(class_names))
    total = sum(pq.read_metadata(path).num_rows for paths in files.values() for path in paths)
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(total=total, description="inspect", unit=" pictures") as bar,
    ):
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)  # `decode` names the item
        for split, (name, paths) in enumerate(files.items()):
            for rows in chain.from_iterable(read_rows(path, columns) for path in paths):
                for row in rows:
                    check_row(row, name, class_names)
                for row, finding in zip(rows, pool.map(look, rows), strict=True):
                    inspection.add(split, row, finding)
                bar.update(len(rows))
    inspection.finish()
    return inspection


def check_row(row, split, class_names):
    label = row["label"]
    if label is None or not UNLABELLED <= label < len(class_names):
        raise ValueError(
            f"{split}/{row['id']}: expected `label` to be in 0..{len(class_names) - 1}, got {label}. Build the data "
            "set again, or give -1 for an unknown one."
        )


def table(summary):
    """The splits, a line each."""
    heads = f"{'split':<12}{'pictures':>9}{'a class':>15}{'maps':>9}{'':>7}{'rationales':>12}{'words':>7}"
    lines = [f"{heads}{'with one':>16}"]
    for name, split in summary["splits"].items():
        each = f"{split['smallest_class']:,} to {split['largest_class']:,}"
        share, told = (
            f"{split[kind] / split['pictures']:.0%}" if split["pictures"] else "-"
            for kind in ("maps", "with_rationale")
        )
        length = f"{split['rationale_words']['median']:.0f}" if split["rationale_words"] else "-"
        lines.append(
            f"{name:<12}{split['pictures']:>9,}{each:>15}{split['maps']:>9,}{share:>7}{split['rationales']:>12,}"
            f"{length:>7}{split['with_rationale']:>9,}{told:>7}"
        )
    return "\n".join(lines)


def warning_lines(summary):
    """A line for each warning: its count, its meaning and the first items."""
    if not summary["warnings"]:
        return "no warnings"
    lines = []
    for warned in summary["warnings"].values():
        more = [f"and {warned['count'] - SHOWN:,} more"] if warned["count"] > SHOWN else []
        text = f"warning: {warned['meaning']}: {warned['count']:,} ({'; '.join([*warned['items'], *more])})"
        # Ids and class names are another's text: nothing in them may steer the terminal.
        lines.append(printable(text))
    return "\n".join(lines)
