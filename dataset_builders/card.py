"""The README.md of a built data set: YAML that the Hub and `datasets` read, and the text."""

from collections import Counter
from pathlib import Path

from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData


CITATION = """@article{megl2024,
  title   = {MEGL: Multimodal Explanation-Guided Learning},
  author  = {Zhang and Jiang and Pan and Wang and Bai and Zhao},
  journal = {arXiv preprint arXiv:2411.13053},
  year    = {2024}
}"""
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
# Pictures, visual explanations and rationales, by split and class.
Counts = dict[str, dict[str, tuple[int, int, int]]]


def card(builder, finished: Path, counts: Counts, license: str | None) -> str:
    """The card of what `finished` holds.

    `load_dataset` keys its cache on the YAML, not on the shards. The configuration's description therefore carries a
    checksum of the shards, so that a rebuilt data set is never mistaken for its predecessor.

    Args:
        builder ([`ExplainedImages`]): after its build.
        license (`str`, *optional*): the licence; that of the source by default.
    """
    shards = sorted((finished / "data").glob("*.parquet"))
    source = builder.source
    rows = sum(split.num_examples for split in builder.info.splits.values())
    data = DatasetCardData(
        pretty_name=builder.PRETTY_NAME,
        license=license or source.license or "unknown",
        language=["en"],
        task_categories=["image-classification", "image-to-text"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        tags=["explanation-guided-learning", "saliency", "rationales"],
        configs=[
            {
                "config_name": "default",
                "description": f"{builder.PRETTY_NAME}, shards sha256 {builder.checksum.hexdigest()}",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in counts],
            }
        ],
    )
    builder.info.download_size = sum(shard.stat().st_size for shard in shards)
    DatasetInfosDict({"default": builder.info}).to_dataset_card_data(data)
    citations = "\n\n".join(filter(None, (CITATION, source.citation)))
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

{left_out(source.dropped, source.skipped)}

## Columns

| column | meaning |
|---|---|
| `id` | name of the item in its source |
| `image` | the picture, its original bytes; `datasets` applies its EXIF orientation |
| `label` | the class |
| `visual_explanation` | where the evidence is: grey PNG on [0, 1], 8 or 16 bits, any grid; `None` where missing |
| `textual_explanations` | the rationales |
| `group` | `aligned` or `conflicting` where the source says how the setting relates to the class, else `None` |

## Counts

Pictures, and visual explanations and rationales in brackets.

{counts_table(counts)}

## Citation

```bibtex
{citations}
```
"""


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
    """A Markdown table: pictures (visual explanations, rationales) by class and split."""
    splits = list(counts)
    names = list(next(iter(counts.values())))
    lines = ["| class | " + " | ".join(splits) + " |", "|---|" + "---:|" * len(splits)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(cell(counts[split][name]) for split in splits) + " |")
    totals = [tuple(sum(column) for column in zip(*counts[split].values(), strict=True)) for split in splits]
    lines.append("| all | " + " | ".join(map(cell, totals)) + " |")
    return "\n".join(lines)


def cell(numbers: tuple[int, int, int]) -> str:
    pictures, maps, rationales = numbers
    return f"{pictures:,} ({maps:,}, {rationales:,})"
