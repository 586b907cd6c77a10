"""Measures what building a data set costs: rows per second, against a loop that only reads and copies the same files,
and the peak of the memory of all processes together.

```
python -m benchmarks.builders --work_dir benchmark --items 50000 --num_proc 1 2
```
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from dataset_builders import ObjectMe, build_dataset


CLASSES = [f"class {index}" for index in range(20)]
PATTERNS = 50  # different pictures; each item's file differs by a comment
EXPLAINED = 3  # in ten items


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", required=True, help="a new folder, which is removed at the end")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument(
        "--size", type=int, nargs=2, default=[640, 480], metavar=("WIDTH", "HEIGHT"), help="of the pictures, in pixels"
    )
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1], help="one build for each number of processes")
    return parser.parse_args()


def generate(root: Path, number: int, width: int, height: int):
    """Writes a release of JPEGs of about 0.25 bytes a pixel, with a map of a 12th of their size for three in ten."""
    for folder in ("images", "visual_exp"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    patterns = []
    for index in range(PATTERNS):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        noisy = np.asarray(coarse.resize((width, height))) + rng.normal(0, 6, (height, width, 1))
        picture = root / f"{index}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(picture, quality=72)
        patterns.append(picture.read_bytes())
        picture.unlink()
    with open(root / "exp_annotation.json", "w") as file:
        for index in range(number):
            comment = f"{index:08d}".encode()
            content = patterns[index % PATTERNS]
            picture = content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:]
            (root / "images" / f"{index}.jpg").write_bytes(picture)
            explained = index % 10 < EXPLAINED
            if explained:
                values = np.zeros((height // 12, width // 12), dtype=np.float32)
                inside = values[2:-3, 3:-7]
                inside[:] = rng.random(inside.shape)
                np.save(root / "visual_exp" / f"{index}.npy", values)
            item = {
                "image_path": f"images/{index}.jpg",
                "visual_exp": f"visual_exp/{index}.npy" if explained else None,
                "class_id": index % len(CLASSES),
                "ans": CLASSES[index % len(CLASSES)],
                "exp": [f"It is number {index}.", "One sees it at once."],
            }
            file.write(("," if index else "{") + json.dumps(str(index)) + ": " + json.dumps(item))
        file.write("}")
    mapping = {name: index for index, name in enumerate(CLASSES)}
    (root / "label_class_id_mapping.json").write_text(json.dumps(mapping))


def copy_files(root: Path, target: Path, num_proc: int):
    for path in [*root.glob("images/*"), *root.glob("visual_exp/*")]:
        folder = target / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())


def build(root: Path, target: Path, num_proc: int):
    build_dataset(ObjectMe, root, target, num_proc=num_proc)


def measure(work, *arguments) -> np.ndarray:
    """Runs a function in a process of its own: seconds that pass, seconds of CPU, peak memory in MB, with children."""
    os.sync()  # what was written before is not written back meanwhile
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    started, used = time.perf_counter(), cpu_seconds()
    process.start()
    peak = 0
    while process.is_alive():
        peak = max(peak, memory(process.pid))
        process.join(0.5)  # to look at all processes takes milliseconds
    if process.exitcode:
        raise SystemExit(f"benchmark_builders: {work.__name__} failed")
    return np.array([time.perf_counter() - started, cpu_seconds() - used, peak / 1e6])


def cpu_seconds() -> float:
    """CPU time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory(pid: int) -> int:
    """Resident bytes of a process and its children; what they share counts for each."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def idle(*arguments):
    """What starting a process with the imports takes."""


def forget(root: Path):
    """Drops a source's files from memory, so that they are read from the disk, as those of a large source are."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def compare(root: Path, work: Path, processes: list[int], from_disk: bool) -> dict:
    """Copying and building, with the source's files in memory or on the disk alone."""

    def timed(function, *arguments):
        if from_disk:
            forget(root)
        return measure(function, root, *arguments) - start

    start = measure(idle) * [1, 1, 0]
    items = sum(1 for _ in (root / "images").iterdir())
    copying, copying_cpu, _ = timed(copy_files, work / "copy", 1)
    shutil.rmtree(work / "copy")
    report = {"copied_per_second": round(items / copying)}
    for num_proc in processes:
        target = work / f"built_{num_proc}"
        seconds, cpu, peak = timed(build, target, num_proc)
        report[f"num_proc {num_proc}"] = {
            "rows_per_second": round(items / seconds),
            "share_of_copying": round(copying / seconds, 2),
            "share_of_copying_by_cpu_time": round(copying_cpu / cpu, 2),
            "peak_memory_mb": round(peak),
            "largest_shard_mb": round(max(path.stat().st_size for path in (target / "data").iterdir()) / 1e6),
        }
        shutil.rmtree(target)
    return report


def main():
    arguments = parse_arguments()
    work = Path(arguments.work_dir)
    work.mkdir(parents=True)
    try:
        root = work / "release"
        generate(root, arguments.items, *arguments.size)
        sizes = [path.stat().st_size for path in (root / "images").iterdir()]
        report = {
            "items": arguments.items,
            "picture_kb": round(statistics.mean(sizes) / 1e3),
            "from_memory": compare(root, work, arguments.num_proc, from_disk=False),
            "from_disk": compare(root, work, arguments.num_proc, from_disk=True),
        }
        print(json.dumps(report, indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
