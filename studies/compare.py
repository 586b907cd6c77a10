"""Compares methods × architectures × data sets × seeds, as a study file says.

```
python -m studies.compare studies/paper.yaml --output runs/studies
python -m studies.compare studies/paper.yaml --output runs/studies --set datasets.photographs.path=photographs --jobs 2
python -m studies.compare studies/paper.yaml --output runs/studies --report
```

Every cell is a run of `init_megl.py`, `train_megl.py` and `evaluate_megl.py`, or of `llava/train.py` and
`llava/evaluate.py`, in a folder of its own, `OUTPUT/cells/…`, named by all its settings. Cells that are done are
skipped, so that a killed study goes on where it was, and studies share what they have in common. Writes
`OUTPUT/STUDY/`: `index.html`, `results.md` and `results.json`; `--report` makes these of the cells that are done and
runs none. docs/studies.md says how a study file is written.
"""

import argparse
import ctypes
import gzip
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dataset_builders.files import new_folder
from megl.machine import KEEP_MEMORY, processor_name
from studies.cells import fetch_cells, publish_cells
from studies.results import write_results
from studies.study import DIMENSIONS, make_cells, read_study, study_name


ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "datasets", "evaluate", "accelerate", "peft", "numpy")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file")
    parser.add_argument("--output", required=True, help="folder of cells and reports, new or of earlier studies")
    parser.add_argument("--section", default="small", help="section of the file, such as small or full")
    parser.add_argument("--jobs", type=int, default=1, help="cells to run at a time, which share the cores")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME=A,B", help=f"cells to keep; NAME: {', '.join(DIMENSIONS)}"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="what to put in place of the file's, such as a path"
    )
    parser.add_argument("--report", action="store_true", help="report what is done, and run nothing")
    parser.add_argument("--keep_models", action="store_true", help="keep each cell's model and evaluation")
    parser.add_argument(
        "--publish",
        metavar="FOLDER",
        help="also add the cells to FOLDER/cells, where those that are there already are done; `python -m "
        "studies.publish` makes the pages of FOLDER from them",
    )
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"`--jobs` must be 1 or more, got {arguments.jobs}")
    if not all("=" in part for part in arguments.only):
        parser.error(f"`--only` takes NAME=A,B, got {' '.join(arguments.only)}")
    return arguments


def run_cells(cells, folder, jobs, keep_models):
    """Run the cells that are not done; the messages of those that failed are returned."""
    folder.mkdir(parents=True, exist_ok=True)
    distinct = list({cell.key: cell for cell in cells}.values())
    missing = [cell for cell in distinct if not (folder / cell.key).exists()]
    print(f"{len(distinct)} cells, {len(distinct) - len(missing)} of them done", flush=True)
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(run_cell, cell, folder, jobs, keep_models): cell for cell in missing}
        try:
            for number, run in enumerate(as_completed(runs), start=1):
                title = f"[{number}/{len(missing)}] {runs[run].title}"
                try:
                    print(f"{title}: {run.result()}", flush=True)
                except RuntimeError as error:
                    failures.append(f"{runs[run].title}: {error}")
                    print(f"{title}: failed", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def run_cell(cell, folder, jobs, keep_models):
    """Run one cell, unless another process has meanwhile; a line about it is returned."""
    output = folder / cell.key
    try:
        with new_folder(output, wait=True) as work:
            record = _run_steps(cell, work, jobs, output.with_suffix(".log"))
            metrics = _keep_results(cell, work, record, keep_models)
    except FileExistsError:
        return "done meanwhile"
    return f"accuracy {metrics['accuracy']:.3f}, {sum(record['seconds'].values()):.0f} s"


def _keep_results(cell, work, record, keep_models):
    """Write what is kept of a cell, of which the metrics are returned, and remove the rest."""
    evaluation = work / "evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    metrics["model"] = cell.key  # its folder was a temporary one
    (work / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    _keep_predictions(evaluation / "predictions.jsonl", work / "predictions.jsonl.gz")
    (work / "cell.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    kept = {"model", "evaluation"} if keep_models else set()
    for part in work.iterdir():
        if part.is_dir() and part.name not in kept:
            shutil.rmtree(part)
    return metrics


def _run_steps(cell, work, jobs, failed_log):
    """Run the cell's scripts in `work`; what `cell.json` holds is returned."""
    cores = len(os.sched_getaffinity(0))
    threads = str(max(1, cores // jobs))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads}
    started, seconds = datetime.now(UTC).isoformat(timespec="seconds"), {}
    for step, arguments in cell.commands(work).items():
        start = time.perf_counter()
        with open(work / "log.txt", "a", encoding="utf-8") as log:
            command = [sys.executable, "-m", cell.steps[step][0], *arguments]
            done = subprocess.run(command, stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent)
        seconds[step] = round(time.perf_counter() - start, 1)
        if done.returncode:
            shutil.copy(work / "log.txt", failed_log)
            end = (work / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise RuntimeError(f"{command[2]} failed, see {failed_log}: {''.join(end)}")
    trained = work / "model" / "training_settings.json"
    return {
        **{name: getattr(cell, name) for name in ("key", "dataset", "architecture", "seed", "path", "split")},
        "settings": cell.settings,
        "training_settings": json.loads(trained.read_text(encoding="utf-8")),
        "started": started,
        "seconds": seconds,
        "jobs": jobs,
        "threads": int(threads),
        **provenance(),
    }


def _keep_predictions(source, target):
    """What paired tests read of the predictions: all but the maps, and scores to five digits, half the size."""
    with open(source, encoding="utf-8") as lines, gzip.open(target, "wt", encoding="utf-8") as kept:
        for line in lines:
            item = json.loads(line)
            item.pop("saliency", None)
            for name, score in item["per_item"].items():
                if isinstance(score, float):
                    item["per_item"][name] = float(f"{score:.5g}")
            kept.write(json.dumps(item) + "\n")


def provenance():
    """The commit, versions and machine that run."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass
    machine = {"system": platform.platform(), "processor": processor_name(), "cores": len(os.sched_getaffinity(0))}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"commit": commit, "versions": versions, "machine": machine}


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent():
    """Linux ends this process when its parent ends: a killed study leaves no training behind."""
    if _LIBC is not None:
        pr_set_pdeathsig = 1
        _LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL)


def main():
    arguments = parse_arguments()
    place = f"{arguments.study}, {arguments.section}"
    try:
        study = read_study(arguments.study, arguments.section, arguments.set)
        only = {name: value.split(",") for name, _, value in (part.partition("=") for part in arguments.only)}
        cells = make_cells(study, place, only)
        if not cells:
            raise ValueError(f"{place}: no cell is left by `--only {' '.join(arguments.only)}`.")
        output, published = Path(arguments.output), arguments.publish and Path(arguments.publish, "cells")
        keys = {cell.key for cell in cells}
        if published:
            fetch_cells(keys, published, output / "cells")
        failures = (
            [] if arguments.report else run_cells(cells, output / "cells", arguments.jobs, arguments.keep_models)
        )
        name = study_name(arguments.study, arguments.section)
        write_results(study, cells, output, name)
        if published:
            publish_cells(keys, output / "cells", published, name)
    except (ValueError, OSError) as error:
        sys.exit(f"compare: {error}")
    if failures:
        sys.exit("compare: " + "\n".join([f"{len(failures)} cells failed; run it again to try them anew.", *failures]))


if __name__ == "__main__":
    main()
