"""Writing a data set's Parquet files, in one process or several: each writes the files of one part after another."""

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from datasets import Features
from datasets.arrow_writer import ParquetWriter


SHARD_BYTES = 200_000_000  # of a file, and so of what a process does at a time; well below the Hub's limits
BATCH_ROWS = 100  # at most, of a row group, and so of what is held in memory
BATCH_BYTES = 16_000_000


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


def write_part(source, features: Features, stem: Path, limit: int, numbered_part: tuple) -> WrittenPart:
    """Writes one part of a source, (its number, what the source calls it), to files whose names begin with `stem`."""
    number, part = numbered_part
    written = WrittenPart([], {}, 0, [])
    rows = counted(source.rows(part, written.refused), written)
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
    shards, written = [], 0

    def start():
        path = stem.with_name(f"{stem.name}-{len(shards)}.parquet")
        return path, ParquetWriter(features=features, path=str(path), writer_batch_size=BATCH_ROWS)

    def finish():
        num_rows, num_bytes = writer.finalize()
        with open(path, "rb") as file:
            shards.append(Shard(path, num_rows, num_bytes, hashlib.file_digest(file, "sha256").hexdigest()))

    path, writer = start()
    for batch, size in batches(rows):
        if written and written + size > limit:
            finish()
            (path, writer), written = start(), 0
        columns = {name: [row[name] for row in batch] for name in features}
        writer.write_batch(features.encode_batch(columns))
        written += size
    finish()
    return shards


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
