"""The README.md of a built data set: YAML that the Hub and `datasets` read, and the text."""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from .items import folder_name, printable, shown


CITATION = """@article{megl2024,
  title   = {MEGL: Multimodal Explanation-Guided Learning},
  author  = {Zhang and Jiang and Pan and Wang and Bai and Zhao},
  journal = {arXiv preprint arXiv:2411.13053},
  year    = {2024}
}"""
OWN_SUMMARY = "Pictures with a class each, and visual and textual explanations of it where there are any."
UNVERIFIED = (
    "The builder was tested on small folders with the published names and forms of files, never on the published "
    "files themselves: compare the counts below with the published ones."
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
# Pictures, visual explanations and rationales, by split and class.
Counts = dict[str, dict[str, tuple[int, int, int]]]


@dataclass
class CardText:
    """What the user says in the card, checked; the rest is told from the source. As in [`build_dataset`]."""

    license: str | None = None
    name: str | None = None
    language: str | list[str] | None = None
    description: str | None = None

    def __post_init__(self):
        self.language = [self.language] if isinstance(self.language, str) else self.language
        for field in ("license", "name", "description"):
            value = getattr(self, field)
            if value is not None and not is_text(value, lines=field == "description"):
                expected = "text" if field == "description" else "one line of text"
                raise ValueError(f"expected `{field}` to be {expected}, got {shown(value)}.")
        for code in self.language or []:
            if not isinstance(code, str) or not LANGUAGE.fullmatch(code):
                raise ValueError(f"expected `language` to be ISO 639 codes, such as 'en', got {shown(code)}.")


def is_text(value, lines: bool) -> bool:
    """Whether a value is a string that shows something and holds no control characters, but line ends if `lines`."""
    if not isinstance(value, str) or not value.strip() or not lines and len(value.splitlines()) > 1:
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value if character not in "\t\n\r")


def card(builder, finished: Path, folder: str, text: CardText) -> str:
    """The card of what `finished` holds.

    `load_dataset` keys its cache on the YAML, not on the shards. The configuration's description therefore carries a
    checksum of the shards, so that a rebuilt data set is never mistaken for its predecessor.

    Args:
        builder ([`ExplainedImages`]): after its build.
        folder (`str`): the name of the folder that it will be.
        text ([`CardText`]): what the user says.
    """
    source = builder.source
    rows = sum(split.num_examples for split in builder.info.splits.values())
    name = text.name or (folder_name(source.root) or "Own pictures" if source.OWN else builder.PRETTY_NAME)
    maps = sum(number for classes in builder.counts.values() for _, number, _ in classes.values())
    told = rows - builder.silent
    metadata = _metadata(builder, finished, text, name, (rows, maps, told))
    citations = "\n\n".join(filter(None, (builder.CITATION, source.citation)))
    return f"""---
{metadata.to_yaml()}
---

# {name}

{text.description or (OWN_SUMMARY if source.OWN else builder.SUMMARY)}

```python
from datasets import load_dataset

dataset = load_dataset({json.dumps(folder, ensure_ascii=False)})
```

## Source and selection

{source.description}

{source.selection}

{left_out(source.dropped, source.skipped)}

## Columns

| column | meaning |
|---|---|
| `id` | name of the item in its source |
| `image` | the picture, its original bytes; `datasets` applies its EXIF orientation |
| `label` | the class |
| `visual_explanation` | where the evidence is: grey PNG on [0, 1], 8 or 16 bits, any grid; `None` where missing |
| `textual_explanations` | the rationales; an empty list where missing |
| `group` | the group that the source puts the item in, else `None` |

## Counts

Pictures; in brackets the pictures with a visual explanation and the number of rationales, of which a picture may have
several. Of {rows:,} pictures, {maps:,} have a visual explanation
and {told:,} have a rationale.

{counts_table(builder.counts)}

## Citation

```bibtex
{citations}
```
"""


def _metadata(builder, finished, text, name, numbers):
    """The card's YAML, from its name and the numbers of rows, of visual explanations and of rows with a rationale."""
    source, (rows, maps, told) = builder.source, numbers
    data = DatasetCardData(
        pretty_name=name,
        license=text.license or source.license or "unknown",
        language=text.language or (["en"] if told and not source.OWN else None),
        task_categories=["image-classification", *(["image-to-text"] if told else [])],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        tags=["explanation-guided-learning", *(["saliency"] if maps else []), *(["rationales"] if told else [])],
        configs=[
            {
                "config_name": "default",
                "description": f"{name}, shards sha256 {builder.checksum.hexdigest()}",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in builder.counts],
            }
        ],
    )
    shards = (finished / "data").glob("*.parquet")
    builder.info.download_size = sum(shard.stat().st_size for shard in shards)
    DatasetInfosDict({"default": builder.info}).to_dataset_card_data(data)
    return data


def left_out(dropped: Counter, skipped: Counter) -> str:
    """What the selection and `--on_error skip` left out, in words."""
    lines = [f"- {number:,} items: {reason}" for reason, number in dropped.items()]
    selection = "\n".join(["The selection leaves out:", "", *lines]) if lines else "The selection leaves out nothing."
    if not skipped:
        return f"{selection}\n\nNo item was bad."
    by_split = ", ".join(f"{number:,} of {split or 'no split yet'}" for split, number in skipped.items())
    total = sum(skipped.values())
    return f"{selection}\n\nBad items that were skipped: {total:,} ({by_split}). `skipped.jsonl` has the reasons."


def counts_table(counts: Counts) -> str:
    """A Markdown table: pictures (of these with a visual explanation, number of rationales) by class and split."""
    splits = list(counts)
    names = list(next(iter(counts.values())))
    lines = ["| class | " + " | ".join(splits) + " |", "|---|" + "---:|" * len(splits)]
    for name in names:
        cells = " | ".join(cell(counts[split][name]) for split in splits)
        lines.append("| " + printable(name).replace("|", "\\|") + f" | {cells} |")
    totals = [tuple(sum(column) for column in zip(*counts[split].values(), strict=True)) for split in splits]
    lines.append("| all | " + " | ".join(map(cell, totals)) + " |")
    return "\n".join(lines)


def cell(numbers: tuple[int, int, int]) -> str:
    pictures, maps, rationales = numbers
    return f"{pictures:,} ({maps:,}, {rationales:,})"
