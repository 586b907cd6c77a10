"""The results of a study from its cells: figures by seed, paired tests, tables, and one HTML page."""

import gzip
import json
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from dataset_builders.files import write_file
from megl.evaluation.bootstrap import LEVEL, check_same_items, influences
from megl.evaluation.headlines import headlines
from megl.evaluation.saved_scores import item_fault, metrics_fault
from studies.page import page
from studies.random_effects import contrast, estimate, holm
from studies.study import BEST_BASELINE, COLUMNS


# Controls, of which more is not better.
CONTROLS = {"shuffled_place_accuracy", "background_gap", "background_alone_agreement"}
# Where in `metrics.json` the scores of rationales are.
TEXTUAL = {"rationale", "grounding", "clip_score", "ref_clip_score", "cider_overall"}
TEXTUAL |= {"simulatability", "retrieval", "self_consistency"}
# Marks a test of one seed.
ONE_SEED = " ¹"
RUN_AGAIN = "remove its folder and run the study again."


@dataclass
class Run:
    """What is kept of a cell that is done."""

    folder: Path
    method: str
    seed: int
    settings: dict

    @cached_property
    def record(self):
        path = self.folder / "cell.json"
        record = _read(path)
        kinds = {"key": str, "training_settings": dict, "seconds": dict, "machine": dict, "versions": dict}
        for name, kind in kinds.items():
            if not isinstance(record.get(name), kind):
                raise ValueError(f"{path} has no `{name}`: {RUN_AGAIN}")
        if not {"processor", "cores"} <= record["machine"].keys():
            raise ValueError(f"{path} has no `processor` and `cores` of its `machine`: {RUN_AGAIN}")
        if not all(isinstance(value, int | float) for value in record["seconds"].values()):
            raise ValueError(f"{path}: expected numbers in `seconds`, got {record['seconds']}: {RUN_AGAIN}")
        record.setdefault("commit", None)
        return record

    @cached_property
    def paths(self):
        """Metric as in `results.json` to its path in `metrics.json`, of all that have a value."""
        names = {}
        for path, _, _ in headlines(self.metrics):
            # A language model that was never trained writes noise: its scores say nothing of the method.
            if (path[0] in TEXTUAL or path[-1] in TEXTUAL) and not self.writes:
                continue
            if path == ("interventions", "accuracy"):  # of the pictures with an object, again
                continue
            name = f"accuracy_{path[1]}" if path[0] == "accuracy_by_group" else path[-1]
            # The part's figures have the names of the classifier's.
            names["_".join(path) if path[0] == "simulatability" else name] = path
        return names

    @cached_property
    def writes(self):
        return self.record["training_settings"].get("text_loss_weight", 1) > 0  # a LLaVA does nothing but write

    @cached_property
    def metrics(self):
        path = self.folder / "metrics.json"
        metrics = _read(path)
        fault = metrics_fault(metrics)
        if fault:
            raise ValueError(f"{path}{fault}: {RUN_AGAIN}")
        return metrics

    @cached_property
    def figures(self):
        """Metric to value."""
        values = {path: value for path, _, value in headlines(self.metrics)}
        return {name: values[path] for name, path in self.paths.items()}

    @cached_property
    def items(self):
        path = self.folder / "predictions.jsonl.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                items = [json.loads(line) for line in lines]
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read ({error}): {RUN_AGAIN}") from error
        for number, item in enumerate(items, 1):
            fault = item_fault(item) if isinstance(item, dict) else " is no object in braces"
            if fault:
                raise ValueError(f"{path}, line {number}{fault}: {RUN_AGAIN}")
        if not items:
            raise ValueError(f"{path} is empty: {RUN_AGAIN}")
        return items


def _read(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON ({error}): {RUN_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no object in braces: {RUN_AGAIN}")
    return found


class Group:
    """
    The runs of a study on one data set with one architecture: method to runs, by seed. `count` says how many of them
    the study asks for.
    """

    def __init__(self, dataset, architecture, runs, count, reference, baselines, claims):
        self.dataset, self.architecture = dataset, architecture
        self.runs, self.count = runs, count
        self.reference = reference if reference in runs else None
        self.baselines = [name for name in baselines if name in runs]
        self.claims = claims

    @cached_property
    def values(self):
        """`{method: {metric: [one value per seed]}}`, of metrics that every seed has."""
        found = {}
        for method, runs in self.runs.items():
            names = [name for name in runs[0].figures if all(name in run.figures for run in runs)]
            found[method] = {name: [run.figures[name] for run in runs] for name in names}
        return found

    @cached_property
    def metrics(self):
        """Those of `COLUMNS` that some method has."""
        return [name for name in COLUMNS if any(name in values for values in self.values.values())]

    @cached_property
    def _influences(self):
        """`{method: {seed: {metric: (images,)}}}`, the images in one order."""
        runs = [run for runs in self.runs.values() for run in runs]
        places = {item["id"]: place for place, item in enumerate(runs[0].items)}
        found = defaultdict(dict)
        for run in runs:
            check_same_items(runs[0].items, run.items, str(run.folder))
            by_path = influences(sorted(run.items, key=lambda item: places[item["id"]]))
            found[run.method][run.seed] = {name: by_path[path] for name, path in run.paths.items() if path in by_path}
        return found

    def _figures(self, method, metric, seeds):
        """The figure of each seed, `(seeds,)`, and the influences of the images, `(seeds, images)`."""
        runs = {run.seed: run for run in self.runs[method]}
        figures = np.array([runs[seed].figures[metric] for seed in seeds])
        return figures, np.stack([self._influences[method][seed][metric] for seed in seeds])

    def _seeds(self, metric, *methods):
        """The seeds of which all the methods have a figure that can be tested."""
        having = [
            {seed for seed, found in self._influences.get(method, {}).items() if metric in found} for method in methods
        ]
        return sorted(set.intersection(*having))

    def interval(self, method, metric):
        """Interval of the mean over images and seeds; `None` where there is none."""
        seeds = self._seeds(metric, method)
        found = estimate(*self._figures(method, metric, seeds)) if len(seeds) == len(self.runs[method]) else None
        return None if found is None else found.interval()

    def difference(self, method, other, metric, ratio=False):
        """
        The [`Estimate`] of a method's gain over another, of the seeds that both have, or of the logarithm of their
        ratio, by the delta method; `None` where one of them lacks the metric, or has a mean of 0 in a ratio.
        """
        seeds = self._seeds(metric, method, other)
        if not seeds:
            return None
        (figures, moved), (others, others_moved) = (self._figures(name, metric, seeds) for name in (method, other))
        if not ratio:
            return estimate(figures - others, contrast(moved, others_moved))
        mean_of, mean_of_other = figures.mean(), others.mean()
        if min(mean_of, mean_of_other) <= 0:
            return None
        factors = (1 / mean_of, -1 / mean_of_other)
        found = estimate(figures * factors[0] + others * factors[1], contrast(moved, others_moved, factors))
        return found and replace(found, mean=float(np.log(mean_of / mean_of_other)))

    @cached_property
    def checks(self):
        """
        Of each claim of the study whose methods were run: the `claim`, the method it is `over`, what was `found`, its
        `interval`, its `p` against what is asked, adjusted over the claims here, the `seeds`, and the `verdict`: it
        holds or fails where p is below 5 %, by the side on which it was found. What has no interval is undecided.
        """
        found = [check for check in map(self._check, self.claims) if check is not None]
        for check, p in zip(found, holm([check["p"] for check in found]), strict=True):
            check["p"] = p
            decided = p < 1 - LEVEL
            check["verdict"] = ("holds" if check["above"] else "fails") if decided else "undecided"
        return found

    def _check(self, claim):
        metric, ratio = claim["metric"], "ratio" in claim
        over = self.best_baseline(metric) if claim["over"] == BEST_BASELINE else claim["over"]
        if not all(metric in self.values.get(name, {}) for name in (claim["method"], over)):
            return None
        found = self.difference(claim["method"], over, metric, ratio)
        if found is None:
            return {"claim": claim, "over": over, "interval": None, "p": 1.0, "above": False}
        bar = np.log(claim["ratio"]) if ratio else claim.get("gain", -claim.get("no_worse_than", 0))
        low, high = found.interval()
        ends = np.exp([found.mean, low, high]) if ratio else np.array([found.mean, low, high])
        value, *ends = ends.tolist()
        common = {"found": value, "interval": ends, "p": found.p(bar), "seeds": found.seeds}
        return {"claim": claim, "over": over, **common, "above": found.mean >= bar}

    def best_baseline(self, metric):
        """The baseline with the highest mean, or `None`."""
        having = [name for name in self.baselines if metric in self.values[name]]
        if not having or metric in CONTROLS:
            return None
        return max(having, key=lambda name: mean(self.values[name][metric]))

    def opponents(self, method, metric):
        """Mark to the method that this one is tested against at a metric."""
        found = {}
        if self.reference is not None and method != self.reference:
            found["*"] = self.reference
        best = self.best_baseline(metric)
        if best is not None and best != self.reference and method not in (*self.baselines, self.reference):
            found["†"] = best
        return found


def read_groups(study, places):
    """
    The groups of the cells that are done.

    Args:
        study (`dict`): What `read_study` gives.
        places (`list[tuple[Cell, Path]]`): Each cell of the study, and the folder that it has once it is done.
    """
    runs = defaultdict(lambda: defaultdict(list))
    for cell, folder in places:
        if folder.exists():
            run = Run(folder, cell.method, cell.seed, cell.settings)
            runs[cell.dataset, cell.architecture][cell.method].append(run)
    asked = (study.get("reference"), study.get("baselines") or [], study.get("claims") or [])
    counts = Counter((cell.dataset, cell.architecture) for cell, _ in places)
    return [Group(*names, dict(found), counts[names], *asked) for names, found in runs.items()]


def write_results(study, cells, output, name):
    """Write `results.json`, `results.md` and `index.html` of a study."""
    groups = read_groups(study, [(cell, output / "cells" / cell.key) for cell in cells])
    if not groups:
        raise ValueError(f"{output} has none of the study's {len(cells)} cells: run it without `--report`.")
    results = {}
    for group in groups:
        results.setdefault(group.dataset, {})[group.architecture] = group.values
    text = markdown(study, name, groups)
    folder = output / name
    write_file(folder / "results.json", json.dumps({name: results}, indent=2) + "\n")
    write_file(folder / "results.md", text)
    write_file(folder / "index.html", page(study, name, [(group, _page_texts(study, group)) for group in groups]))
    print(text)
    print(f"{folder / 'index.html'}")


def _page_texts(study, group):
    """What the HTML page says of a group: lines and tables of `(heads, rows)`."""
    return {
        "run": what_was_run(study, group),
        "figures": figures_table(group),
        "note": _note(group),
        "tables": [*claims_tables(group), *test_tables(group)],
    }


# ---- Markdown ----


def markdown(study, name, groups):
    lines = [f"# Study: {name}", ""]
    if study.get("description"):
        lines += [study["description"].strip(), ""]
    for group in groups:
        lines += [f"## {group.dataset}, {group.architecture}", "", *what_was_run(study, group), ""]
        heads, rows = figures_table(group)
        lines += [*_markdown_table(heads, rows), "", _markdown_text(_note(group)), ""]
        for title, heads, rows in (*claims_tables(group), *test_tables(group)):
            lines += [f"{title}:", "", *_markdown_table(heads, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(heads, rows):
    lines = [heads, ["---"] * len(heads), *([_markdown_text(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _markdown_text(text):
    return text.replace("*", "\\*").replace("|", "\\|")


def figures_table(group):
    """Heads and rows: mean ± standard deviation over the seeds, with the marks of the tests."""
    rows = []
    for method, values in group.values.items():
        cells = []
        for metric in group.metrics:
            if metric not in values:
                cells.append("–")
                continue
            tests = {
                mark: group.difference(method, other, metric)
                for mark, other in group.opponents(method, metric).items()
            }
            marks = "".join(mark for mark, test in tests.items() if test is not None and test.p() < 1 - LEVEL)
            cells.append(_mean_text(values[metric]) + marks)
        rows.append([method, str(len(group.runs[method])), *cells])
    return ["", "seeds", *(COLUMNS[metric] for metric in group.metrics)], rows


def _mean_text(values):
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def test_tables(group):
    """Title, heads and rows for each opponent: the differences with their intervals and p."""
    words = {"*": f"Difference from {group.reference}", "†": "Difference from the best baseline at each metric"}
    heads = ["", *(COLUMNS[metric] for metric in group.metrics)]
    for mark, title in words.items():
        rows = []
        for method in group.values:
            others = {metric: group.opponents(method, metric).get(mark) for metric in group.metrics}
            tests = {metric: group.difference(method, other, metric) for metric, other in others.items() if other}
            if any(tests.values()):
                rows.append([method, *(_test_text(tests.get(metric)) for metric in group.metrics)])
        if rows:
            if mark == "†":
                rows.insert(0, ["(which)", *(group.best_baseline(metric) or "–" for metric in group.metrics)])
            yield title, heads, rows


def claims_tables(group):
    """Title, heads and rows for what the study claims, where the methods were run."""
    rows = []
    for check in group.checks:
        claim = check["claim"]
        kind = "× {:.2f}" if "ratio" in claim else "{:+.3f}"
        over = f"{claim['over']}, {check['over']}" if claim["over"] == BEST_BASELINE else claim["over"]
        title = f"{claim['method']} over {over}: {COLUMNS[claim['metric']]}"
        asked = f"at least {kind.format(claim.get('ratio', claim.get('gain', 0)))}"
        if "no_worse_than" in claim:
            asked = f"no worse than {-claim['no_worse_than']:+.3f}"
        if check["interval"] is None:
            rows.append([title, asked, *("–" * 3), check["verdict"]])
            continue
        ends = " to ".join(kind.format(end) for end in check["interval"])
        one = ONE_SEED if check["seeds"] == 1 else ""
        rows.append([title, asked, kind.format(check["found"]), ends, p_text(check["p"]), check["verdict"] + one])
    if rows:
        yield "Claims", ["", "asked", "found", "95 % interval", "p, by Holm", "verdict"], rows


def p_text(p):
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _test_text(test):
    if test is None:
        return "–"
    low, high = test.interval()
    p = p_text(test.p())
    one = ONE_SEED if test.seeds == 1 else ""
    return f"{test.mean:+.3f} ({low:+.3f}, {high:+.3f}), p {'' if p[0] == '<' else '= '}{p}{one}"


def _note(group):
    parts = ["Mean ± standard deviation over the seeds."]
    seeds = [{run.seed for run in runs} for runs in group.runs.values()]
    if any(len(some & others) == 1 for some in seeds for others in seeds):
        parts.append(f"{ONE_SEED.strip()} of the one seed that both have: says nothing about other seeds.")
    if group.reference:
        parts.append(f"* differs from {group.reference}, p < {1 - LEVEL:.2f}.")
    if group.baselines:
        parts.append(f"† differs from the best of {', '.join(group.baselines)} at this metric.")
    return " ".join(parts)


def what_was_run(study, group):
    """Sentences: which cells, where, with what, how long."""
    runs = [run for runs in group.runs.values() for run in runs]
    records = list({run.record["key"]: run.record for run in runs}.values())
    hours = sum(sum(record["seconds"].values()) for record in records) / 3600
    machines = [record["machine"] for record in records]
    versions = sorted({", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in records})
    kinds = sorted({f"{m.get('gpu') or m['processor']}, {m['cores']} cores" for m in machines})
    commits = ", ".join(sorted({str(record["commit"]) for record in records}))
    split = study.get("split", "test")
    return [
        f"{len(runs)} of {group.count} cells, evaluated on the {split} split, in {hours:.2f} hours of machine time. "
        f"Commit {commits}; {'; '.join(versions)}; {'; '.join(kinds)}.",
        "Tests are over images and seeds, each by itself but for the claims. "
        "Rationales of methods that train none are not scored.",
    ]
