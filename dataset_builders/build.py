"""Building a data set: what all builders share, and the folder that one becomes."""

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import (
    BuilderConfig,
    ClassLabel,
    DatasetInfo,
    Features,
    GeneratorBasedBuilder,
    Image,
    List,
    SplitDict,
    SplitGenerator,
    SplitInfo,
    Value,
)
from datasets.utils import tqdm
from datasets.utils.py_utils import convert_file_size_to_int

from .act_x import ActX
from .birds import CubRelease, WaterbirdsRelease
from .card import CardText, Counts, card
from .coco import CocoInstances
from .files import check_apart, new_folder
from .image_folder import ImageFolder
from .imagenet import HardImageNetRelease, ImageNetSRelease
from .items import as_text, bad_source
from .oxford_pets import PetsRelease
from .release import Release
from .scenes import Scenes
from .shards import SHARD_BYTES, Shard, in_order, write_part, write_shard
from .sources import Source
from .vqa_x import VqaX


PUBLISHED_LAYOUTS = (WaterbirdsRelease, CubRelease, PetsRelease, HardImageNetRelease, ImageNetSRelease)
ALL_LAYOUTS = (Release, ActX, VqaX, ImageFolder, CocoInstances, *PUBLISHED_LAYOUTS)
LAYOUTS = {layout.NAME: layout for layout in ALL_LAYOUTS}
# What some layouts take and others do not.
OPTIONS = sorted({name for layout in LAYOUTS.values() for name in layout.OPTIONS})


@dataclass
class ExplainedImagesConfig(BuilderConfig):
    """
    Args:
        source (`str`, defaults to `"sample"`): a folder in one of `LAYOUTS`, or `"sample"`.
        layout (`str`, *optional*): its layout; by default it is told from the folder's files.
        seed (`int`, defaults to 0): draws the sample, or the split of items that have none.
        sample_sizes (`dict[str, int]`, *optional*): number of pictures of the sample's splits.
        num_proc (`int`, defaults to 1): processes of `build_dataset`, each of which reads and writes shards of its
            own; the data set does not depend on their number.
        validation_share, test_share, on_error, images, scratch: as in [`Source`].
        activity_level (`str`, *optional*): as in [`ActX`].
        explain_category (`bool`): as in [`CocoInstances`].
        masks, captions (`str`, *optional*): as in [`BirdRelease`].
        four_groups (`bool`): as in [`WaterbirdsRelease`].
    """

    source: str = "sample"
    layout: str | None = None
    seed: int = 0
    sample_sizes: dict | None = None
    validation_share: float | None = None
    test_share: float | None = None
    on_error: str = "stop"
    num_proc: int = 1
    images: str | None = None
    scratch: str | None = None
    activity_level: str | None = None
    explain_category: bool = False
    masks: str | None = None
    captions: str | None = None
    four_groups: bool = False


class ExplainedImages(GeneratorBasedBuilder):
    """Pictures with a label, a visual explanation where there is one, and textual explanations.

    A source has `label_names`, `description`, `selection`, `license`, `citation`, `OWN`, `splits`,
    `parts(split, limit)`, `rows(part, refused)`, `skipped`, `dropped` and `unread_keys`; a subclass names the data set
    and the subjects that its sample draws, or the one `LAYOUT` that it is made of.

    Attributes:
        counts (`dict`): split to class name to the numbers of pictures, visual explanations and rationales written.
        silent (`int`): number of pictures written without a rationale.
        checksum (`hashlib.sha256`): of the checksums of all files written, in order. These three by `write` alone.
    """

    BUILDER_CONFIG_CLASS = ExplainedImagesConfig
    PRETTY_NAME = None
    SUMMARY = None
    CITATION = None  # beside the source's
    SUBJECTS = None
    LAYOUT = None

    def _info(self) -> DatasetInfo:
        self.source = self.open_source()
        self.counts, self.silent, self.checksum = {}, 0, hashlib.sha256()
        citation = self.CITATION or self.source.citation
        return DatasetInfo(description=self.SUMMARY, citation=citation, features=features(self.source.label_names))

    def open_source(self) -> Source | Scenes:
        config = self.config
        if config.num_proc < 1:
            raise ValueError(f"expected `num_proc` to be at least 1, got {config.num_proc}.")
        if config.source == "sample":
            if self.SUBJECTS is None:
                expected = f"`source` to be a folder with {LAYOUTS[self.LAYOUT].NEEDS}"
                raise ValueError(f"expected {expected}, got the sample, which {self.name} does not have.")
            for name in ("layout", "images", *OPTIONS):
                if getattr(config, name):
                    raise ValueError(f"expected `{name}` with a source folder alone, got the sample. Leave it out.")
            return Scenes(self.SUBJECTS, config.seed, config.sample_sizes)
        layout = find_layout(Path(config.source), config.layout or self.LAYOUT)
        if self.LAYOUT not in (None, layout.NAME):
            raise ValueError(f"expected the layout {self.LAYOUT} for the builder {self.name}, got {layout.NAME}.")
        if layout.BUILDER not in (None, self.name):
            raise ValueError(f"expected the builder {layout.BUILDER} for the layout {layout.NAME}, got {self.name}.")
        names = ("validation_share", "test_share", "seed", "on_error", "images", "scratch")
        options = {name: getattr(config, name) for name in names}
        for name in filter(partial(getattr, config), OPTIONS):
            if name not in layout.OPTIONS:
                owners = " or ".join(owner.NAME for owner in LAYOUTS.values() if name in owner.OPTIONS)
                raise ValueError(f"expected `{name}` with the layout {owners} alone, got {layout.NAME}.")
            options[name] = getattr(config, name)
        return layout(config.source, **options)

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        return [SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.source.splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        refused = []
        for part in self.source.parts(split, SHARD_BYTES):
            for row in self.source.rows(part, refused):
                # With a path, `datasets` would look for a file of that name in the working folder to take instead.
                for column in ("image", "visual_explanation"):
                    row[column] = row[column] and {"bytes": row[column]["bytes"], "path": None}
                yield row["id"], row
        if refused:
            self.source.note(refused)

    def write(self, folder: Path, limit: int):
        """Writes all splits as Parquet files of about `limit` bytes, and tells of them in `info`.

        `download_and_prepare` ends a batch after so many rows whatever their size, and its shards depend on the number
        of processes; here memory and shards are bounded in bytes, and a shard is of a part of the source.
        """
        self.info.splits = SplitDict(dataset_name=self.dataset_name)
        for split in self.source.splits:
            shards = self.write_split(split, folder, limit)
            lengths, num_bytes = [shard.num_rows for shard in shards], sum(shard.num_bytes for shard in shards)
            self.info.splits.add(SplitInfo(split, num_bytes, sum(lengths), lengths))
        self.info.dataset_size = sum(info.num_bytes for info in self.info.splits.values())

    def write_split(self, split: str, folder: Path, limit: int) -> list[Shard]:
        self.counts[split] = dict.fromkeys(self.source.label_names, (0, 0, 0))
        shards, parts = [], list(enumerate(self.source.parts(split, limit)))
        num_proc = min(self.config.num_proc, len(parts))
        several = num_proc > 1  # whose bars of pictures would lie over each other
        write = partial(write_part, self.source, self.info.features, folder / f"{split}-part", limit, not several)
        bar = {"total": len(parts), "desc": f"prepare {split}", "unit": " parts", "disable": None if several else True}
        with closing(in_order(write, parts, num_proc)) as written_parts:
            for written in tqdm(written_parts, **bar):
                shards += written.shards
                self.silent += written.silent
                if written.refused:
                    self.source.note(written.refused)
                for label, counts in written.counts.items():
                    self.counts[split][label] = tuple(map(sum, zip(self.counts[split][label], counts, strict=True)))
        shards = shards or [write_shard([], self.info.features, folder / f"{split}-part.parquet")]
        for index, shard in enumerate(shards):
            shard.path.rename(folder / f"{split}-{index:05d}-of-{len(shards):05d}.parquet")
            self.checksum.update(bytes.fromhex(shard.sha256))
        return shards


def find_layout(root: Path, name: str | None) -> type[Source]:
    """The source class of a folder's layout, by name or else by the files that tell it."""
    if name is not None and name not in LAYOUTS:
        raise ValueError(f"expected `layout` to be one of {list(LAYOUTS)}, got {name!r}.")
    if not root.is_dir():
        raise bad_source(root, "a source folder or the word `sample`", "no such folder", "Check the path.")
    if name is not None:
        return LAYOUTS[name]
    found = [layout for layout in LAYOUTS.values() if layout.is_layout_of(root)]
    if len(found) == 1:
        return found[0]
    if not found:
        known = "; ".join(f"{layout.NAME}: {layout.NEEDS}" for layout in LAYOUTS.values())
        raise bad_source(root, f"the files of one layout ({known})", "none of them", "Check the path.")
    names = " and ".join(layout.NAME for layout in found)
    raise bad_source(root, "the files of one layout", f"those of {names}", "Choose one by `--layout`.")


def features(label_names: list[str]) -> Features:
    """The columns of every explained data set."""
    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "label": ClassLabel(names=label_names),
            "visual_explanation": Image(),
            "textual_explanations": List(Value("string")),
            "group": Value("string"),
        }
    )


def multi_label_features(label_names: list[str]) -> Features:
    """The columns of explained pictures with several labels: a mask, or `None`, and rationales for each label."""
    several = {
        "label": List(ClassLabel(names=label_names)),
        "visual_explanation": List(Image()),
        "textual_explanations": List(List(Value("string"))),
    }
    return Features({**features(label_names), **several})


def build_dataset(
    builder_class: type[ExplainedImages],
    source: str | Path,
    output: str | Path,
    overwrite: bool = False,
    license: str | None = None,
    max_shard_size: str | int = SHARD_BYTES,
    name: str | None = None,
    language: str | list[str] | None = None,
    description: str | None = None,
    **options,
) -> Counts:
    """Builds a data set into a folder that `load_dataset` loads: Parquet shards, a card, and `skipped.jsonl` if any.

    Everything is written in a hidden folder beside `output` and put into place in one step, so `output` is never
    half-written. On any failure the temporary folder is removed and `output` is as it was.

    Args:
        builder_class (`type`): one of `BUILDERS`.
        source (`str` or `Path`): a folder in one of the layouts, or `"sample"`.
        output (`str` or `Path`): the folder to write.
        overwrite (`bool`, defaults to `False`): whether to replace `output` where it exists and is not empty.
        license (`str`, *optional*): the card's licence; that of the source, if it has one, by default.
        max_shard_size (`str` or `int`, defaults to 200 MB): of a Parquet file, such as `"500MB"`.
        name (`str`, *optional*): the data set's name in the card; for own pictures that of their folder by default,
            else the builder's.
        language (`str` or `list[str]`, *optional*): ISO 639 codes of the rationales' languages for the card; by
            default none for own pictures, else English.
        description (`str`, *optional*): what the card says that the pictures show.
        options: as in [`ExplainedImagesConfig`].

    Returns:
        `dict`: split to class name to (number of pictures, of visual explanations, of rationales).

    Raises:
        `ValueError`: if the source is not as it should be.
        `FileExistsError`: if `output` exists, is not empty and `overwrite` is not set, or another build writes it.
        `OSError`: if `output` cannot be written.
    """
    text = CardText(license=license, name=name, language=language, description=description)
    return build_folder(builder_class, source, output, overwrite, text, max_shard_size, **options).counts


def build_folder(
    builder_class: type[ExplainedImages],
    source: str | Path,
    output: str | Path,
    overwrite: bool,
    text: CardText,
    max_shard_size: str | int,
    **options,
) -> ExplainedImages:
    """As [`build_dataset`], but returns the builder, whose `source` knows what was left out."""
    limit = shard_limit(max_shard_size)
    output = Path(os.path.realpath(output))
    folders = [source, *(options.get(name) for name in ("images", "masks", "captions"))]
    folders = [folder for folder in folders if folder and folder != "sample"]
    check_apart(output, [Path(folder) for folder in folders])
    with (
        plain_errors(output),
        new_folder(output, overwrite) as finished,
        tempfile.TemporaryDirectory(prefix=".", dir=finished) as work,
    ):
        builder = builder_class(cache_dir=f"{work}/cache", source=str(source), scratch=work, **options)
        (finished / "data").mkdir()
        builder.write(finished / "data", limit)
        check_not_empty(builder)
        if builder.source.skipped:
            shutil.copyfile(builder.source.skip_log, finished / "skipped.jsonl")
        (finished / "README.md").write_text(card(builder, finished, as_text(output.name), text), encoding="utf-8")
    return builder


def shard_limit(size: str | int) -> int:
    """`max_shard_size` in bytes, or `ValueError`."""
    try:
        limit = int(size) if str(size).isdecimal() else convert_file_size_to_int(size)
    except (ValueError, AttributeError):
        limit = 0
    if limit < 1:
        raise ValueError(f"expected `max_shard_size` to be a size above 0, such as '500MB', got {size!r}.")
    return limit


@contextmanager
def plain_errors(output: Path) -> Iterator[None]:
    """What ends a build from outside, a full disk or a killed process, as one `OSError` that says so."""
    try:
        yield
    except (sqlite3.Error, BrokenProcessPool) as error:
        raise OSError(f"{output}: the build was stopped ({error}). Is the disk or the memory full?") from error
    except OSError as error:
        if error.errno and not error.filename:
            raise OSError(f"{output}: {error}") from error
        raise


def check_not_empty(builder: ExplainedImages):
    """Raises `ValueError` if all items of the source are bad."""
    if not sum(info.num_examples for info in builder.info.splits.values()):
        bad = sum(builder.source.skipped.values())
        raise bad_source(builder.config.source, "at least one good item", f"{bad} bad ones", "Mend it.")
