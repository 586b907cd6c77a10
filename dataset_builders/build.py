"""Building a data set: the builder that Object-ME and Action-ME share, staging, the card, the move into place."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
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
from datasets.exceptions import DatasetGenerationError
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from .release import Release
from .scenes import Scenes


CITATION = """@article{megl2024,
  title   = {MEGL: Multimodal Explanation-Guided Learning},
  author  = {Zhang and Jiang and Pan and Wang and Bai and Zhao},
  journal = {arXiv preprint arXiv:2411.13053},
  year    = {2024}
}"""


@dataclass
class ExplainedImagesConfig(BuilderConfig):
    """
    Args:
        source (`str`, defaults to `"sample"`): a folder in the authors' release layout, or `"sample"`.
        seed (`int`, defaults to 0): draws the sample, or the split of a release that has none.
        validation_share, test_share (`float`): shares of each class in a split that is drawn.
        sample_sizes (`dict[str, int]`, *optional*): number of pictures of the sample's splits.
    """

    source: str = "sample"
    seed: int = 0
    validation_share: float = 0.1
    test_share: float = 0.2
    sample_sizes: dict | None = None


class ExplainedImages(GeneratorBasedBuilder):
    """Pictures with a label, a visual explanation where there is one, and textual explanations.

    A source has `label_names`, `description`, `selection`, `license`, `splits` and `rows(split)`; a subclass names the
    data set and the subjects that its sample draws.
    """

    BUILDER_CONFIG_CLASS = ExplainedImagesConfig
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows held in memory, and the step at which a shard may end
    PRETTY_NAME = None
    SUMMARY = None
    SUBJECTS = None

    def _info(self) -> DatasetInfo:
        self.source = self.open_source()
        return DatasetInfo(description=self.SUMMARY, citation=CITATION, features=features(self.source.label_names))

    def open_source(self) -> Release | Scenes:
        if self.config.source == "sample":
            return Scenes(self.SUBJECTS, self.config.seed, self.config.sample_sizes)
        return Release(self.config.source, self.config.validation_share, self.config.test_share, self.config.seed)

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        return [SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.source.splits]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        yield from enumerate(self.source.rows(split))


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
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    overwrite: bool = False,
    license: str | None = None,
    sample_sizes: dict[str, int] | None = None,
    max_shard_size: str = "450MB",
) -> dict[str, dict[str, tuple[int, int]]]:
    """Builds a data set into a folder that `load_dataset` loads: Parquet shards and a card.

    Everything is written in a temporary folder beside `output` and renamed into place, so `output` is never
    half-written. On any failure the temporary folder is removed and `output` is as it was.

    Args:
        builder_class (`type`): `ObjectMe` or `ActionMe`.
        source (`str` or `Path`): a folder in the authors' release layout, or `"sample"`.
        output (`str` or `Path`): the folder to write.
        overwrite (`bool`, defaults to `False`): whether to replace `output` where it exists and is not empty.
        license (`str`, *optional*): the card's licence; that of the source by default.
        sample_sizes (`dict[str, int]`, *optional*): number of pictures of the sample's splits.

    Returns:
        `dict`: split to class name to (number of pictures, number of visual explanations).

    Raises:
        `ValueError`: if the source is not as it should be.
        `FileExistsError`: if `output` exists, is not empty and `overwrite` is not set.
    """
    output = Path(output).resolve()
    check_output(output, source, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    clean_leftovers(output)
    stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    try:
        builder = builder_class(
            cache_dir=str(stage / "cache"),
            source=str(source),
            seed=seed,
            validation_share=validation_share,
            test_share=test_share,
            sample_sizes=sample_sizes,
        )
        write_parquet(builder, stage / "parquet", max_shard_size)
        finished = stage / "dataset"
        collect_shards(builder, stage / "parquet", finished)
        counts = count_rows(finished, builder.source.label_names, builder.source.splits)
        (finished / "README.md").write_text(card(builder, finished, counts, license), encoding="utf-8")
        replace_folder(finished, output)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return counts


def check_output(output: Path, source: str | Path, overwrite: bool):
    """Raises unless `output` may be written."""
    protected = [Path.cwd()] if source == "sample" else [Path.cwd(), Path(source).resolve()]
    for folder in protected:
        if folder.is_relative_to(output):
            raise ValueError(
                f"expected `output` to be a folder of its own, got {output}, which holds the source or the folder you "
                "are in. Give another folder."
            )
    if not output.exists():
        return
    if not output.is_dir():
        raise FileExistsError(f"expected `output` to be a folder, got the file {output}. Give another name.")
    if any(output.iterdir()) and not overwrite:
        raise FileExistsError(
            f"expected `output` to be a new or empty folder, got {output}, which is not empty. Give another folder, "
            "or set `overwrite` to replace all that is in it."
        )


def clean_leftovers(output: Path):
    """Removes what a killed build left beside `output`, and puts the old folder back if it was being replaced."""
    for old in sorted(output.parent.glob(f".{output.name}.old-*")):
        if output.exists():
            shutil.rmtree(old)
        else:
            old.rename(output)
    for stale in output.parent.glob(f".{output.name}.building-*"):
        shutil.rmtree(stale, ignore_errors=True)


def replace_folder(finished: Path, output: Path):
    """Renames `finished` to `output`; an old `output` is put aside first and put back if that fails."""
    if not output.exists():
        finished.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old-", dir=output.parent))
    output.rename(old)  # a folder may be renamed onto an empty one
    try:
        finished.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_parquet(builder: ExplainedImages, folder: Path, max_shard_size: str):
    """Runs the builder, and raises the reason itself where `datasets` wraps it."""
    try:
        builder.download_and_prepare(str(folder), file_format="parquet", max_shard_size=max_shard_size)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def collect_shards(builder: ExplainedImages, parquet: Path, finished: Path):
    """Moves the shards to `finished/data/<split>-00000-of-00001.parquet`, by their expected names alone."""
    data = finished / "data"
    data.mkdir(parents=True)
    for split, info in builder.info.splits.items():
        number = len(info.shard_lengths or [info.num_examples])
        for shard in range(number):
            suffix = f"{shard:05d}-of-{number:05d}"
            written = f"{builder.dataset_name}-{split}" + (f"-{suffix}" if number > 1 else "")
            (parquet / f"{written}.parquet").rename(data / f"{split}-{suffix}.parquet")


def count_rows(finished: Path, label_names: list[str], splits: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Counts the pictures and visual explanations that were written, by split and class."""
    counts = {}
    for split in splits:
        counts[split] = {name: (0, 0) for name in label_names}
        for shard in sorted((finished / "data").glob(f"{split}-*.parquet")):
            for batch in pq.ParquetFile(shard).iter_batches(256, columns=["label", "visual_explanation"]):
                explained = batch.column("visual_explanation").is_valid().to_pylist()
                for label, has_map in zip(batch.column("label").to_pylist(), explained, strict=True):
                    pictures, maps = counts[split][label_names[label]]
                    counts[split][label_names[label]] = (pictures + 1, maps + has_map)
    return counts


def counts_table(counts: dict[str, dict[str, tuple[int, int]]]) -> str:
    """A Markdown table: pictures (visual explanations) by class and split."""
    splits = list(counts)
    names = list(next(iter(counts.values())))
    lines = ["| class | " + " | ".join(splits) + " |", "|---|" + "---:|" * len(splits)]
    for name in names:
        cells = [f"{counts[split][name][0]:,} ({counts[split][name][1]:,})" for split in splits]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    totals = [[sum(column) for column in zip(*counts[split].values(), strict=True)] for split in splits]
    lines.append("| all | " + " | ".join(f"{pictures:,} ({maps:,})" for pictures, maps in totals) + " |")
    return "\n".join(lines)


def card(
    builder: ExplainedImages, finished: Path, counts: dict[str, dict[str, tuple[int, int]]], license: str | None
) -> str:
    """The README.md of a built data set: YAML from the real features, sizes and splits, and the text.

    `load_dataset` keys its cache on the YAML, not on the shards. The configuration's description therefore carries a
    checksum of the shards, so that a rebuilt data set is never mistaken for its predecessor.
    """
    shards = sorted((finished / "data").glob("*.parquet"))
    checksum = hashlib.sha256()
    for shard in shards:
        with open(shard, "rb") as file:
            checksum.update(hashlib.file_digest(file, "sha256").digest())
    source = builder.source
    data = DatasetCardData(
        pretty_name=builder.PRETTY_NAME,
        license=license or source.license or "unknown",
        language=["en"],
        task_categories=["image-classification", "image-to-text"],
        tags=["explanation-guided-learning", "saliency", "rationales"],
        configs=[
            {
                "config_name": "default",
                "description": f"{builder.PRETTY_NAME}, shards sha256 {checksum.hexdigest()}",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in counts],
            }
        ],
    )
    builder.info.download_size = sum(os.path.getsize(shard) for shard in shards)
    DatasetInfosDict({"default": builder.info}).to_dataset_card_data(data)
    return f"""---
{data.to_yaml()}
---

# {builder.PRETTY_NAME}

{builder.SUMMARY}

```python
from datasets import load_dataset

dataset = load_dataset("{builder.dataset_name}")
```

## Source and selection

{source.description}

{source.selection}

## Columns

| column | meaning |
|---|---|
| `id` | name of the item in its source |
| `image` | the picture, its original bytes |
| `label` | the class |
| `visual_explanation` | where the evidence is: grey PNG on [0, 1], 8 or 16 bits, any grid; `None` where missing |
| `textual_explanations` | one or more rationales |
| `group` | `aligned` or `conflicting` where the source says how the setting relates to the class, else `None` |

## Counts

Pictures, and visual explanations in brackets.

{counts_table(counts)}

## Citation

```bibtex
{CITATION}
```
"""
