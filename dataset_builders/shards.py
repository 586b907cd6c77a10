"""Writing a data set's Parquet files, in one process or several: each writes the files of one part after another."""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from datasets.utils import tqdm


SHARD_BYTES = 200_000_000  # of a file, and so of what a process does at a time; well below the Hub's limits
BATCH_ROWS = 100  # at most, of a row group, and so of what is held in memory
BATCH_BYTES = 16_000_000
# The options of `datasets`, and so its bytes. Pages end where their content says: the Hub, which cuts uploads in the
# same way, keeps once what two versions share. Pictures are not compressed again.
CHUNKS = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
COMPRESSED = ["id", "label", "textual_explanations.list.element", "group"]
OPTIONS = {
    "compression": dict.fromkeys(COMPRESSED, "snappy"),
    "use_dictionary": COMPRESSED,
    "use_content_defined_chunking": CHUNKS,
    "write_page_index": True,
}


@dataclass(frozen=True)
class Shard:
    """A Parquet file, its number of rows, their bytes in memory and the file's SHA-256."""

    path: Path
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass
class WrittenPart:
    """
    Attributes:
        shards (`list[Shard]`): its files, in order.
        counts (`dict`): class name to the numbers of pictures, visual explanations and rationales written.
        silent (`int`): number of pictures without a rationale.
        refused (`list[dict]`): `id`, `split` and `reason` of its bad items.
    """

    shards: list[Shard]
    counts: dict[str, tuple[int, int, int]]
    silent: int
    refused: list[dict]


def write_part(source, features: Features, stem: Path, limit: int, shown: bool, numbered_part: tuple) -> WrittenPart:
    """Writes one part of a source, (its number, what the source calls it), to files whose names begin with `stem`.

    Where it is `shown`, a bar counts the pictures.
    """
    number, part = numbered_part
    written = WrittenPart([], {}, 0, [])
    rows = counted(source.rows(part, written.refused), written)
    rows = tqdm(rows, desc=stem.name.replace("-part", ""), unit=" pictures", disable=None if shown else True)
    written.shards.extend(write_shards(rows, features, stem.with_name(f"{stem.name}-{number}"), limit))
    return written


def counted(rows: Iterable[dict], written: WrittenPart) -> Iterator[dict]:
    for row in rows:
        pictures, maps, rationales = written.counts.get(row["label"], (0, 0, 0))
        has_map, texts = row["visual_explanation"] is not None, len(row["textual_explanations"])
        written.counts[row["label"]] = (pictures + 1, maps + has_map, rationales + texts)
        written.silent += not texts
        yield row


def write_shards(rows: Iterable[dict], features: Features, stem: Path, limit: int) -> list[Shard]:
    """Writes `<stem>-0.parquet` and so on, each of at most about `limit` bytes and at least one batch."""
    return [
        write_shard(map(itemgetter(1), numbered), features, stem.with_name(f"{stem.name}-{number}.parquet"))
        for number, numbered in groupby(numbered_batches(rows, limit), key=itemgetter(0))
    ]


def numbered_batches(rows: Iterable[dict], limit: int) -> Iterator[tuple[int, list[dict]]]:
    """Batches of rows, each with the number of its shard."""
    number, written = 0, 0
    for batch, size in batches(rows):
        if written and written + size > limit:
            number, written = number + 1, 0
        yield number, batch
        written += size


def write_shard(batches: Iterable[list[dict]], features: Features, path: Path) -> Shard:
    """Writes a Parquet file with a row group for each batch."""
    schema, label = features.arrow_schema, features["label"]
    num_rows, num_bytes = 0, 0
    # A file of Python's, as pyarrow opens no path that is not UTF-8.
    with open(path, "wb") as file, pq.ParquetWriter(file, schema, **OPTIONS) as writer:
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
        for batch in batches:
            rows = [row | {"label": label.str2int(row["label"])} for row in batch]
            table = pa.Table.from_pylist(rows, schema=schema)
            writer.write_table(table)
            num_rows, num_bytes = num_rows + table.num_rows, num_bytes + table.nbytes
    with open(path, "rb") as file:
        return Shard(path, num_rows, num_bytes, hashlib.file_digest(file, "sha256").hexdigest())


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


def in_order(function: Callable, arguments: Iterable, num_proc: int) -> Iterator:
    """`map(function, arguments)` by `num_proc` processes; what is not yet begun is not if one of them raises."""
    if num_proc == 1:
        yield from map(function, arguments)
        return
    with ProcessPoolExecutor(num_proc, initializer=die_with_parent) as pool:
        yield from pool.map(function, arguments)


def die_with_parent():
    """Ends this process when its parent ends, even by SIGKILL; it would wait for work forever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
