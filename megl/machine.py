"""What a machine is, and what steps cost on it: timed in turns, each row in a process of its own."""

import platform
import re
import statistics
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from tqdm import tqdm


# Otherwise glibc returns big tensors to the kernel at each step, and pages that are zeroed anew are what is timed.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "500000000",
}


def seconds(bench, step):
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    getattr(bench, step)()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(bench, arguments, name, *steps, **options):
    """Times of steps, methods of what `bench(name, arguments, …)` makes: a tuple for each repeat, in turns."""
    made = bench(name, arguments, **options)
    for warm_up in reversed(steps):
        seconds(made, warm_up)
    return [tuple(seconds(made, step) for step in steps) for _ in range(arguments.repeats)]


def peak_memory(bench, arguments, name, step, **options):
    """Greatest memory of a few steps, in bytes: the process's on a CPU, what torch allocated on a GPU."""
    made = bench(name, arguments, **options)
    for _ in range(made.memory_steps):
        getattr(made, step)()
    if made.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # `ru_maxrss` would begin with the peak of the process that started this one.
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


class Page:
    """Rows of measurements of the steps of `bench`, each in a fresh process."""

    def __init__(self, bench, arguments):
        self.bench, self.arguments = bench, arguments
        self.progress = tqdm(desc="measured")

    def run(self, function, *args, **options):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            result = pool.submit(function, self.bench, self.arguments, *args, **options).result()
        self.progress.update()
        return result

    def ratio(self, name, step, reference, **options):
        """Cells: the median ratio, its least and greatest, and both median times in milliseconds."""
        pairs = self.run(compare, name, step, reference, **options)
        ratios = [first / second for first, second in pairs]
        times = [1000 * statistics.median(column) for column in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        return [f"**{statistics.median(ratios):.2f}**", spread, *(f"{value:,.0f}" for value in times)]

    def memory_ratio(self, name, step, reference):
        first, second = (self.run(peak_memory, name, kind) for kind in (step, reference))
        return [f"**{first / second:.2f}**", f"{first / 2**20:,.0f}", f"{second / 2**20:,.0f}"]


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def timed_header(subject, first, second):
    return [subject, "ratio", "spread", f"{first}, ms", f"{second}, ms"]


def machine(arguments):
    if torch.device(arguments.device).type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{processor_name()}, {torch.get_num_threads()} threads"
    compiled = ", compiled layers" if arguments.compile else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {arguments.dtype}{compiled}, {versions}"


def processor_name():
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    fields = dict(line.split(":", 1) for line in found.splitlines() if ":" in line)
    return fields.get("Model name", platform.processor()).strip()
