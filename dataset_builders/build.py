"""Building a data set: the builder that Object-ME and Action-ME share, and the folder that it becomes."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import (
    BuilderConfig,
    ClassLabel,
    DatasetInfo,
    Features,
    GeneratorBasedBuilder,
    Image,
    List,
    SplitGenerator,
    Value,
)
from datasets.arrow_writer import ParquetWriter
from datasets.utils.py_utils import convert_file_size_to_int

from .act_x import ActX
from .card import CITATION, Counts, card
from .coco import CocoInstances
from .image_folder import ImageFolder
from .items import bad_source
from .release import Release
from .scenes import Scenes
from .sources import Source
from .staging import check_output, replace_folder, stage_beside
from .vqa_x import VqaX


LAYOUTS = {layout.NAME: layout for layout in (Release, ActX, VqaX, ImageFolder, CocoInstances)}
BATCH_ROWS = 100  # at most, of a row group, and so of what is held in memory
BATCH_BYTES = 16_000_000


@dataclass
class ExplainedImagesConfig(BuilderConfig):
    """
    Args:
        source (`str`, defaults to `"sample"`): a folder in one of `LAYOUTS`, or `"sample"`.
        layout (`str`, *optional*): its layout; by default it is told from the folder's files.
        seed (`int`, defaults to 0): draws the sample, or the split of items that have none.
        sample_sizes (`dict[str, int]`, *optional*): number of pictures of the sample's splits.
        validation_share, test_share, on_error, num_proc, images, scratch: as in [`Source`].
        activity_level (`str`, *optional*): as in [`ActX`].
        explain_category (`bool`): as in [`CocoInstances`].
    """

    source: str = "sample"
    layout: str | None = None
    seed: int = 0
    sample_sizes: dict | None = None
    validation_share: float = 0.1
    test_share: float = 0.2
    on_error: str = "stop"
    num_proc: int = 1
    images: str | None = None
    scratch: str | None = None
    activity_level: str | None = None
    explain_category: bool = False


class ExplainedImages(GeneratorBasedBuilder):
    """Pictures with a label, a visual explanation where there is one, and textual explanations.

    A source has `label_names`, `description`, `selection`, `license`, `citation`, `splits`, `rows(split)`, `skipped`
    and `dropped`; a subclass names the data set and the subjects that its sample draws.

    Attributes:
        counts (`dict`): split to class name to the numbers of pictures, visual explanations and rationales written.
    """

    BUILDER_CONFIG_CLASS = ExplainedImagesConfig
    PRETTY_NAME = None
    SUMMARY = None
    SUBJECTS = None

    def _info(self) -> DatasetInfo:
        self.source = self.open_source()
        self.counts = {}
        return DatasetInfo(description=self.SUMMARY, citation=CITATION, features=features(self.source.label_names))

    def open_source(self) -> Source | Scenes:
        config = self.config
        if config.source == "sample":
            return Scenes(self.SUBJECTS, config.seed, config.sample_sizes)
        layout = find_layout(Path(config.source), config.layout)
        if layout.BUILDER not in (None, self.name):
            raise ValueError(f"expected the builder {layout.BUILDER} for the layout {layout.NAME}, got {self.name}.")
        names = ("validation_share", "test_share", "seed", "on_error", "num_proc", "images", "scratch")
        options = {name: getattr(config, name) for name in names}
        for owner, name in ((ActX, "activity_level"), (CocoInstances, "explain_category")):
            if getattr(config, name) and layout is not owner:
                raise ValueError(f"expected `{name}` with the layout {owner.NAME} alone, got {layout.NAME}.")
            if getattr(config, name):
                options[name] = getattr(config, name)
        return layout(config.source, **options)

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        return [SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.source.splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self.source.rows(split))

    def _prepare_split(self, split_generator, file_format="parquet", num_proc=None, max_shard_size=None):
        """Writes one split.

        The writer of `datasets` ends a batch after so many rows whatever their size, and its shards depend on the
        number of processes; here memory and shards are bounded in bytes, and the source reads in parallel.
        """
        if file_format != "parquet":
            raise ValueError(f"expected `file_format` to be 'parquet', got {file_format!r}.")
        split = split_generator.name
        self.counts[split] = dict.fromkeys(self.source.label_names, (0, 0, 0))
        rows = self.counted((row for _, row in self._generate_examples(split)), self.counts[split])
        limit = convert_file_size_to_int(max_shard_size or "450MB")
        lengths, num_bytes = write_shards(rows, self.info.features, Path(self._output_dir), split, limit)
        info = split_generator.split_info
        info.num_examples, info.num_bytes, info.shard_lengths = sum(lengths), num_bytes, lengths

    @staticmethod
    def counted(rows: Iterable[dict], counts: dict[str, tuple[int, int, int]]) -> Iterator[dict]:
        for row in rows:
            pictures, maps, rationales = counts[row["label"]]
            has_map = row["visual_explanation"] is not None
            counts[row["label"]] = (pictures + 1, maps + has_map, rationales + len(row["textual_explanations"]))
            yield row


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


def build_dataset(
    builder_class: type[ExplainedImages],
    source: str | Path,
    output: str | Path,
    overwrite: bool = False,
    license: str | None = None,
    max_shard_size: str = "450MB",
    **options,
) -> Counts:
    """Builds a data set into a folder that `load_dataset` loads: Parquet shards, a card, and `skipped.jsonl` if any.

    Everything is written in a temporary folder beside `output` and put into place in one step, so `output` is never
    half-written. On any failure the temporary folder is removed and `output` is as it was.

    Args:
        builder_class (`type`): `ObjectMe` or `ActionMe`.
        source (`str` or `Path`): a folder in one of the layouts, or `"sample"`.
        output (`str` or `Path`): the folder to write.
        overwrite (`bool`, defaults to `False`): whether to replace `output` where it exists and is not empty.
        license (`str`, *optional*): the card's licence; that of the source by default.
        options: as in [`ExplainedImagesConfig`].

    Returns:
        `dict`: split to class name to (number of pictures, of visual explanations, of rationales).

    Raises:
        `ValueError`: if the source is not as it should be.
        `FileExistsError`: if `output` exists, is not empty and `overwrite` is not set, or another build writes it.
    """
    output = Path(output).resolve()
    folders = [folder for folder in (source, options.get("images")) if folder and folder != "sample"]
    check_output(output, [Path(folder) for folder in folders], overwrite)
    with stage_beside(output) as stage:
        scratch = stage / "scratch"
        scratch.mkdir()
        builder = builder_class(cache_dir=str(stage / "cache"), source=str(source), scratch=str(scratch), **options)
        builder.download_and_prepare(str(stage / "parquet"), file_format="parquet", max_shard_size=max_shard_size)
        finished = stage / "dataset"
        collect(builder, stage / "parquet", finished)
        (finished / "README.md").write_text(card(builder, finished, builder.counts, license), encoding="utf-8")
        replace_folder(finished, output)
    return builder.counts


def batches(rows: Iterable[dict]) -> Iterator[tuple[list[dict], int]]:
    """Lists of rows, bounded in number and bytes, each with the bytes of its pictures and maps."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += sum(len(row[name]["bytes"]) for name in ("image", "visual_explanation") if row[name])
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def write_shards(
    rows: Iterable[dict], features: Features, folder: Path, split: str, limit: int
) -> tuple[list[int], int]:
    """Writes `<split>-00000-of-00001.parquet` and so on, each of at most about `limit` bytes and at least one batch.

    Returns:
        `tuple(list[int], int)`: the number of rows of each shard, and the bytes of all rows in memory.
    """
    lengths, total, writer, written = [], 0, None, 0

    def finish():
        nonlocal total
        number, num_bytes = writer.finalize()
        lengths.append(number)
        total += num_bytes

    def start():
        path = folder / f"{split}-{len(lengths):05d}.parquet"
        return ParquetWriter(features=features, path=str(path), writer_batch_size=BATCH_ROWS)

    writer = start()
    for batch, size in batches(rows):
        if written and written + size > limit:
            finish()
            writer, written = start(), 0
        columns = {name: [row[name] for row in batch] for name in features}
        writer.write_batch(features.encode_batch(columns))
        written += size
    finish()
    for index in range(len(lengths)):
        name = f"{split}-{index:05d}"
        (folder / f"{name}.parquet").rename(folder / f"{name}-of-{len(lengths):05d}.parquet")
    return lengths, total


def collect(builder: ExplainedImages, parquet: Path, finished: Path):
    """Moves the shards, by their expected names alone, to `finished/data`, and the list of bad items beside it."""
    data = finished / "data"
    data.mkdir(parents=True)
    for split, info in builder.info.splits.items():
        for index in range(len(info.shard_lengths)):
            name = f"{split}-{index:05d}-of-{len(info.shard_lengths):05d}.parquet"
            (parquet / name).rename(data / name)
    skipped = builder.source.skipped
    if skipped:
        shutil.copyfile(builder.source.skip_log, finished / "skipped.jsonl")
    if not sum(info.num_examples for info in builder.info.splits.values()):
        raise bad_source(
            builder.config.source, "at least one good item", f"{sum(skipped.values())} bad ones", "Mend it."
        )
