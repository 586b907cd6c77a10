"""Published cells: a Parquet file a study, a row a cell, which `datasets` and pandas read.

Where cells are run they are folders. Published is what tables and tests read of them: the record, the figures, and of
each image its label, prediction, group and scores.
"""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builders.files import new_folder, only_writer, whole_file
from megl.evaluation.headlines import headlines


# What names a cell, and its folder.
KEY = r"[\w+-][\w.+-]*"
# What a report reads of a cell's folder.
RECORD, METRICS, PREDICTIONS = CELL_FILES = ("cell.json", "metrics.json", "predictions.jsonl.gz")
# Significant digits of a score: with four, a p of 0.0041 became 0.0042. A float of 32 bits holds seven.
DIGITS = 5
MAPS = ("saliency.iou", "saliency.pointing_game", "saliency.energy")
RATIONALES = (
    *("rationale.rouge_l", "rationale.cider", "rationale.kind_accuracy", "rationale.colour_accuracy"),
    *("rationale.place_accuracy", "rationale.shuffled_place_accuracy", "clip_score"),
)
INTERVENTIONS = tuple(
    f"interventions.{name}"
    for name in ("other_accuracy", "object_alone_accuracy", "background_alone_agreement", "background_gap")
)
BLEU = "bleu_statistics"
_TEXT, _NUMBER, _TEXTS, _SCORES = pa.string(), pa.int64(), pa.list_(pa.string()), pa.list_(pa.float32())
PLAIN = {"key": _TEXT, "dataset": _TEXT, "architecture": _TEXT, "seed": _NUMBER, "path": _TEXT, "split": _TEXT}
PLAIN |= {"started": _TEXT, "jobs": _NUMBER, "threads": _NUMBER, "commit": _TEXT}
OBJECTS = ("settings", "training_settings", "seconds", "versions", "machine")  # as JSON
ITEM = ("id", "label", "prediction", "group")
SCHEMA = pa.schema(
    PLAIN
    | dict.fromkeys((*OBJECTS, "metrics"), _TEXT)
    | dict.fromkeys(ITEM, _TEXTS)
    | dict.fromkeys((*MAPS, *RATIONALES, *INTERVENTIONS), _SCORES)
    | {BLEU: pa.list_(pa.list_(pa.int16()))}
)
# Columns, as Parquet calls them, but for scores of which hardly two are alike: these a dictionary makes larger.
_REPEATED = [
    name + ".list.element" * str(field.type).count("list<")
    for name, field in zip(SCHEMA.names, SCHEMA, strict=True)
    if name not in ("saliency.iou", "saliency.energy", "rationale.cider")
]


def published_cells(folder):
    """Key to the Parquet file of each cell that is published in `folder`; a `ValueError` where two cells have one."""
    files = {}
    for file in sorted(folder.glob("*.parquet")):
        for key in _read(file, ["key"])["key"].to_pylist():
            if not re.fullmatch(KEY, key or ""):
                raise ValueError(f"{file} has a cell of the name {key!r}, which is none: restore it from git.")
            if key in files:
                raise ValueError(f"{file} has the cell {key}, which is in {files[key]} too: restore one from git.")
            files[key] = file
    return files


def fetch_cells(keys, published, folder):
    """Write those of the cells that are published, and that `folder` lacks, into folders of their own there."""
    files = published_cells(published)
    wanted = {key for key in keys if key in files and not (folder / key).exists()}
    for file in sorted({files[key] for key in wanted}):
        table = _read(file)
        for number, key in enumerate(table["key"].to_pylist()):
            if key in wanted:
                _to_folder(table.slice(number, 1).to_pylist()[0], folder / key)


def publish_cells(keys, folder, published, name):
    """Add those of the cells that are done in `folder`, and that nobody has published, to the file of the study."""
    published.mkdir(parents=True, exist_ok=True)
    # One lock for the folder: a cell is published once, whichever study has it.
    with only_writer(published / "cells", wait=True):
        known = published_cells(published)
        rows = [_from_folder(folder / key) for key in sorted(set(keys) - known.keys()) if (folder / key).is_dir()]
        if not rows:
            return
        file = published / f"{name}.parquet"
        added = pa.Table.from_pylist(rows, SCHEMA)
        table = pa.concat_tables([_read(file), added]) if file.exists() else added
        # Cells that are alike stand together, which halves the file.
        table = table.sort_by([(column, "ascending") for column in ("dataset", "split", "architecture", "key")])
        layout = {"compression": "zstd", "compression_level": 19, "use_dictionary": _REPEATED}
        with whole_file(file) as partial:
            pq.write_table(table, partial, write_statistics=False, **layout)


def _read(file, columns=None):
    """The table of a file, or some of its columns; a `ValueError` where it lacks any, or a cell's lists do not fit."""
    try:
        there = pq.read_schema(file)
        missing = [field.name for field in SCHEMA if field.name not in (*there.names, *INTERVENTIONS)]
        if missing:
            raise ValueError(f"{file} is no file of cells (it has no column {missing[0]}): restore it from git.")
        # Older files lack the interventions, whose columns are empty then.
        return pq.read_table(file, columns=columns, schema=SCHEMA if columns is None else None)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is no file of cells ({str(error).splitlines()[0]}): restore it from git.") from error


def _from_folder(folder):
    """A row of a Parquet file: a cell's record, figures, and its images in the order of their ids."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    with gzip.open(folder / PREDICTIONS, "rt", encoding="utf-8") as lines:
        items = sorted(map(json.loads, lines), key=lambda item: item["id"])
    writes = record["training_settings"].get("text_loss_weight", 1) > 0
    row = {name: record.get(name) for name in PLAIN}
    row |= {name: json.dumps(record.get(name, {})) for name in OBJECTS}
    row["metrics"] = json.dumps(_figures(metrics))
    row |= {name: [item[name] for item in items] for name in ITEM}
    for name in (*MAPS, *INTERVENTIONS, *(RATIONALES if writes else ())):
        if any(name in item["per_item"] for item in items):
            row[name] = [_rounded(item["per_item"].get(name)) for item in items]
    if writes and any(BLEU in item for item in items):
        row[BLEU] = [item.get(BLEU) for item in items]
    return row


def _to_folder(row, output):
    """The folder of a cell as [`_from_folder`] reads it; a `ValueError` where a part of it is missing."""
    scores = [name for name in (*MAPS, *RATIONALES, *INTERVENTIONS) if row[name] is not None]
    for name in (*OBJECTS, "metrics", *ITEM):
        if row[name] is None:
            raise ValueError(f"the published cell {row['key']} has no {name}: restore its file from git.")
    for name in (*ITEM, *scores, *([BLEU] if row[BLEU] is not None else [])):
        if len(row[name]) != len(row["id"]):
            raise ValueError(
                f"the published cell {row['key']} has {len(row['id'])} images and {len(row[name])} of {name}: restore "
                "its file from git."
            )
    with new_folder(output) as work:
        record = {name: row[name] for name in PLAIN} | {name: json.loads(row[name]) for name in OBJECTS}
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (work / METRICS).write_text(json.dumps(json.loads(row["metrics"]), indent=2) + "\n", encoding="utf-8")
        with gzip.open(work / PREDICTIONS, "wt", compresslevel=1, encoding="utf-8") as lines:
            for place in range(len(row["id"])):
                item = {name: row[name][place] for name in ITEM}
                item["per_item"] = {name: _rounded(row[name][place]) for name in scores}
                if row[BLEU] is not None:
                    item[BLEU] = row[BLEU][place]
                lines.write(json.dumps(item) + "\n")


def _rounded(score):
    """Also gives back the decimal number that a float of 32 bits stands for."""
    return None if score is None else float(f"{score:.{DIGITS}g}")


def _figures(metrics):
    """The figures that tables show, in their places of `metrics.json`."""
    kept = {}
    for path, _, value in headlines(metrics):
        part = kept
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = value
    return kept
