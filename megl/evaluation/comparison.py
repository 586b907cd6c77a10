"""Evaluations of several models on the same images: read back, compared and written as a table for a paper."""

import json
from collections import Counter
from pathlib import Path

from megl.evaluation.bootstrap import LEVEL, paired_tests
from megl.evaluation.headlines import at, count_of, headlines, interval_text
from megl.evaluation.saved_scores import item_fault, metrics_fault
from megl.terminal import print_anywhere


def read_evaluation(folder):
    """`(metrics, items)` as `evaluate_megl.py` wrote them."""
    folder = Path(folder)
    metrics = _parse((folder / "metrics.json").read_bytes(), folder, "metrics.json")
    path = folder / "predictions.jsonl"
    lines = enumerate(path.read_bytes().splitlines(), 1)
    items = [_parse(line, folder, f"predictions.jsonl, line {number}") for number, line in lines]
    if not isinstance(metrics.get("intervals"), dict) or not all("per_item" in item for item in items):
        raise ValueError(f"{folder} has no scores of each item: it is of an older evaluate_megl.py; run it again.")
    fault = metrics_fault(metrics)
    if fault:
        raise ValueError(f"{folder / 'metrics.json'}{fault}: run evaluate_megl.py again.")
    for number, fault in enumerate(map(item_fault, items), 1):
        if fault:
            raise ValueError(f"{path}, line {number}{fault}: run evaluate_megl.py again.")
    if not items:
        raise ValueError(f"{path} is empty: run evaluate_megl.py again.")
    return metrics, items


def _parse(content, folder, place):
    try:
        found = json.loads(content)
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(
            f"{folder} holds a file that is no JSON ({place}: {error}): run evaluate_megl.py again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{folder}, {place}: expected an object in braces, got {str(found)[:40]!r}: run it again.")
    return found


def check_same_data(runs):
    """Refuse runs on other splits or data sets than the first, which may have items of the same names."""
    first, *others = runs
    for name in others:
        for what in ("split", "dataset"):
            # The same data set may lie elsewhere, on the Hub for one, and keeps its name there.
            expected, found = (Path(str(runs[run][0].get(what))).name for run in (first, name))
            if found != expected:
                raise ValueError(
                    f"{name}: expected the {what} of {first}, {expected}, got {found}: evaluate both on the same."
                )


def check_distinct_ids(dataset):
    """Refuse a split on which several models cannot be compared, as items have the same id."""
    key, times = Counter(dataset["id"]).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"models are compared item by item, and {times} items have the id {key!r}: name a column of ids that "
            "differ by `--id_column`, or take one model."
        )


def compare(runs, resamples, seed):
    """
    Args:
        runs (`dict[str, tuple[dict, list]]`): Name to `(metrics, items)`; two or more.

    Returns:
        `dict`: what is in `comparison.json`.
    """
    names = list(runs)
    tests = paired_tests([items for _, items in runs.values()], names, resamples, seed)
    return {
        "baseline": names[0],
        "bootstrap": {"level": LEVEL, "resamples": resamples, "seed": seed},
        "runs": {
            name: {
                ".".join(path): {
                    "value": value,
                    "interval": at(metrics["intervals"], path),
                    "n": count_of(metrics, path),
                }
                for path, _, value in headlines(metrics)
            }
            for name, (metrics, _) in runs.items()
        },
        "tests": {
            name: {".".join(path): result for path, result in found.items()}
            for name, found in zip(names[1:], tests, strict=True)
        },
    }


def markdown(runs, comparison):
    """The figures of the runs as a table for a paper, and each test against the first run."""
    words = {}
    for metrics, _ in runs.values():
        words |= {".".join(path): name.strip() for path, name, _ in headlines(metrics)}
    baseline, level = comparison["baseline"], f"{comparison['bootstrap']['level']:.0%}"
    names = [_cell(name) for name in runs]
    lines = [f"| | {' | '.join(names)} | images |", f"|---|{'---|' * len(names)}---|"]
    for key, name in words.items():
        cells = [_figure(key, found, comparison["tests"].get(run)) for run, found in comparison["runs"].items()]
        lines.append(f"| {_cell(name)} | {' | '.join(cells)} | {_count(key, comparison['runs'])} |")
    lines += [
        "",
        f"In brackets: {level} bootstrap interval over the images. \\* differs from {_cell(baseline)}, p < 0.05:",
    ]
    lines += [
        f"two-sided paired bootstrap test, {comparison['bootstrap']['resamples']} resamples, each figure by itself."
    ]
    for run, tests in comparison["tests"].items():
        lines += ["", f"### {_cell(run)} against {_cell(baseline)}", ""]
        lines += [f"| | difference | {level} interval | p |", "|---|---|---|---|"]
        for key, name in words.items():
            if key in tests:
                test = tests[key]
                ends = interval_text(test["interval"], "{:+.3f} to {:+.3f}")
                lines.append(f"| {_cell(name)} | {test['difference']:+.3f} | {ends} | {test['p']:.3g} |")
    return "\n".join(lines) + "\n"


def _figure(key, figures, tests):
    if key not in figures:
        return "-"
    ends = interval_text(figures[key]["interval"], " ({:.3f}, {:.3f})")
    star = "\\*" if tests and key in tests and tests[key]["p"] < 0.05 else ""
    return f"{figures[key]['value']:.3f}{star}{ends}"


def _count(key, runs):
    """How many images a figure is of; the least and the greatest where the runs differ."""
    counts = [figures[key]["n"] for figures in runs.values() if key in figures]
    least, greatest = min(counts), max(counts)
    return f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"


def _cell(name):
    return name.replace("|", "\\|")


def write_comparison(folder, runs, resamples, seed):
    """Compare the runs, write `comparison.json` and `comparison.md` into a folder, and print the latter."""
    comparison = compare(runs, resamples, seed)
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
    text = markdown(runs, comparison)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    print_anywhere(text)


def run_names(folders):
    """The folders' own names where these tell them apart, else their paths."""
    names = [Path(folder).resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
