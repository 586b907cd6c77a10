"""The results of a study from its cells: figures by seed, paired tests, tables, and one HTML page."""

import gzip
import html
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from .bootstrap import LEVEL, check_same_items, difference_test, interval, resampled_figures
from .charts import STYLE, bars, curve, dot, frame, named_dots, table, unit_chart, within
from .html_page import document
from .output_folder import write_file
from .scores import headlines
from .study import BEST_BASELINE, COLUMNS


# A control, of which neither more nor less is better.
CONTROLS = {"shuffled_place_accuracy"}
# Where in `metrics.json` the scores of rationales are.
TEXTUAL = {"rationale", "grounding", "clip_score", "ref_clip_score", "cider_overall"}
BARS = ("accuracy", "accuracy_conflicting", "iou", "pointing_game", "rouge_l", "place_accuracy")


@dataclass
class Run:
    """What is kept of a cell that is done."""

    folder: Path
    method: str
    seed: int
    settings: dict

    @cached_property
    def record(self):
        return _read(self.folder / "cell.json")

    @cached_property
    def paths(self):
        """Metric as in `results.json` to its path in `metrics.json`, of all that have a value."""
        names = {}
        for path, _, _ in headlines(self.metrics):
            # A language model that was never trained writes noise: its scores say nothing of the method.
            if (path[0] in TEXTUAL or path[-1] in TEXTUAL) and not self.writes:
                continue
            names[f"accuracy_{path[1]}" if path[0] == "accuracy_by_group" else path[-1]] = path
        return names

    @cached_property
    def writes(self):
        return self.record["training_settings"].get("text_loss_weight", 1) > 0  # a LLaVA does nothing but write

    @cached_property
    def metrics(self):
        return _read(self.folder / "metrics.json")

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
                return [json.loads(line) for line in lines]
        except (OSError, EOFError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove its folder and run the study again.") from error


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): remove its folder and run the study again.") from error


class Group:
    """
    The runs of a study on one data set with one architecture: method to runs, by seed. `count` says how many of them
    the study asks for.
    """

    def __init__(self, dataset, architecture, runs, count, reference, baselines, claims, resamples):
        self.dataset, self.architecture = dataset, architecture
        self.runs, self.count, self.resamples = runs, count, resamples
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
    def _resampled(self):
        """`{method: {seed: path to values (resamples,)}}`, all on the same resamples of the items."""
        runs = [run for runs in self.runs.values() for run in runs]
        first = {item["id"]: place for place, item in enumerate(runs[0].items)}
        for run in runs[1:]:
            check_same_items(runs[0].items, run.items, str(run.folder))
        ordered = [sorted(run.items, key=lambda item: first[item["id"]]) for run in runs]
        found = defaultdict(dict)
        for run, figures in zip(runs, resampled_figures(ordered, self.resamples, seed=0), strict=True):
            found[run.method][run.seed] = {name: figures[path] for name, path in run.paths.items() if path in figures}
        return found

    def _means(self, method, seeds, metric):
        """Resampled means over the seeds, which are drawn too: the same for every method with these seeds."""
        drawn = np.random.default_rng(1).integers(len(seeds), size=(self.resamples, len(seeds)))
        found = self._resampled[method]
        if any(metric not in found[seed] for seed in seeds):
            return None
        values = np.stack([found[seed][metric] for seed in seeds], axis=1)
        return np.take_along_axis(values, drawn, axis=1).mean(axis=1)

    def interval(self, method, metric):
        """Bootstrap interval of the mean, over images and seeds; `None` where it cannot be resampled."""
        means = self._means(method, sorted(self._resampled[method]), metric)
        return None if means is None else interval(means)

    def _paired(self, method, other, metric):
        """
        Means over the seeds that two methods share, and the same resampled: two pairs. `None` where one of them lacks
        the metric.
        """
        if any(metric not in self.values.get(name, {}) for name in (method, other)):
            return None
        seeds = sorted(self._resampled[method].keys() & self._resampled[other].keys())
        means = [self._means(name, seeds, metric) for name in (method, other)] if seeds else [None]
        if any(part is None for part in means):
            return None
        points = [
            mean(run.figures[metric] for run in self.runs[name] if run.seed in seeds) for name in (method, other)
        ]
        return points, means

    def test(self, method, other, metric):
        """`difference`, `interval` and `p` of a method against another; `None` where one of them lacks the metric."""
        paired = self._paired(method, other, metric)
        if paired is None:
            return None
        points, means = paired
        return {"difference": points[0] - points[1], **difference_test(means[0] - means[1])}

    def check(self, claim):
        """
        Whether a claim of the study holds here: `over`, `found`, its `interval` and `holds`; `None` where a method
        that it names was not run. The gain is the difference of the means over the seeds, the ratio their quotient.
        """
        metric = claim["metric"]
        over = self.best_baseline(metric) if claim["over"] == BEST_BASELINE else claim["over"]
        paired = None if over is None else self._paired(claim["method"], over, metric)
        if paired is None:
            return None
        combine = np.divide if "ratio" in claim else np.subtract
        (point, other), resampled = paired
        found, (low, high) = float(combine(point, other)), interval(combine(*resampled))
        asked = claim["ratio"] if "ratio" in claim else claim["gain"]
        holds = "yes" if found >= asked else "no"
        if low < asked <= high:
            holds += ", within noise"
        return {"over": over, "found": found, "interval": (low, high), "holds": holds}

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


def read_groups(study, cells, folder, resamples):
    """The groups of the cells that are done."""
    runs = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if (folder / cell.key).exists():
            run = Run(folder / cell.key, cell.method, cell.seed, cell.settings)
            runs[cell.dataset, cell.architecture][cell.method].append(run)
    if not runs:
        raise ValueError(f"{folder} has none of the study's {len(cells)} cells: run it without `--report`.")
    asked = (study.get("reference"), study.get("baselines") or [], study.get("claims") or [])
    counts = Counter((cell.dataset, cell.architecture) for cell in cells)
    return [Group(*names, dict(found), counts[names], *asked, resamples) for names, found in runs.items()]


def write_results(study, cells, output, name, resamples, publish=None):
    """Write `results.json`, `results.md` and `index.html` of a study, and into the folder `publish` its part there."""
    groups = read_groups(study, cells, output / "cells", resamples)
    results = {}
    for group in groups:
        results.setdefault(group.dataset, {})[group.architecture] = group.values
    text = markdown(study, name, groups)
    folder = output / name
    write_file(folder / "results.json", json.dumps({name: results}, indent=2) + "\n")
    write_file(folder / "results.md", text)
    write_file(folder / "index.html", page(study, name, groups))
    print(text)
    print(f"{folder / 'index.html'}")
    if publish is not None:
        publish_results(publish, name, results, text)


# ---- Markdown ----


def markdown(study, name, groups):
    lines = [f"## Study: {name}", ""]
    if study.get("description"):
        lines += [study["description"].strip(), ""]
    for group in groups:
        lines += [f"### {group.dataset}, {group.architecture}", "", *what_was_run(study, group), ""]
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
                mark: group.test(method, other, metric) for mark, other in group.opponents(method, metric).items()
            }
            marks = "".join(mark for mark, test in tests.items() if test is not None and test["p"] < 1 - LEVEL)
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
            tests = {metric: group.test(method, other, metric) for metric, other in others.items() if other}
            if any(tests.values()):
                rows.append([method, *(_test_text(tests.get(metric)) for metric in group.metrics)])
        if rows:
            if mark == "†":
                rows.insert(0, ["(which)", *(group.best_baseline(metric) or "–" for metric in group.metrics)])
            yield title, heads, rows


def claims_tables(group):
    """Title, heads and rows for what the study claims, where the methods were run."""
    rows = []
    for claim in group.claims:
        found = group.check(claim)
        if found is None:
            continue
        kind = "× {:.2f}" if "ratio" in claim else "{:+.3f}"
        low, high = (kind.format(end) for end in found["interval"])
        asked = kind.format(claim["ratio"] if "ratio" in claim else claim["gain"])
        over = f"{claim['over']}, {found['over']}" if claim["over"] == BEST_BASELINE else claim["over"]
        title = f"{claim['method']} over {over}: {COLUMNS[claim['metric']]}"
        rows.append([title, f"at least {asked}", kind.format(found["found"]), f"{low} to {high}", found["holds"]])
    if rows:
        yield "Claims", ["", "asked", "found", "95 % interval", "holds"], rows


def _test_text(test):
    if test is None:
        return "–"
    low, high = test["interval"]
    return f"{test['difference']:+.3f} ({low:+.3f}, {high:+.3f}), p = {test['p']:.2g}"


def _note(group):
    parts = ["Mean ± standard deviation over the seeds."]
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
        f"Tests and intervals: paired bootstrap over images and seeds, {group.resamples} resamples, each figure "
        "by itself. Rationales of methods that train none are not scored.",
    ]


# ---- HTML ----


def page(study, name, groups):
    parts = [f"<h1>Study: {html.escape(name)}</h1>"]
    if study.get("description"):
        parts.append(f"<p>{html.escape(study['description'].strip())}</p>")
    for group in groups:
        parts.append(f"<h2>{html.escape(group.dataset)}, {html.escape(group.architecture)}</h2>")
        parts += [f'<p class="figures">{html.escape(line)}</p>' for line in what_was_run(study, group)]
        parts.append(table(*figures_table(group)) + f'<p class="figures">{html.escape(_note(group))}</p>')
        parts.append(
            f'<div class="charts">{"".join(_bar_charts(group))}{_against_iou(group)}{_against_masks(group)}</div>'
        )
        for title, heads, rows in (*claims_tables(group), *test_tables(group)):
            parts.append(f"<h3>{html.escape(title)}</h3>{table(heads, rows)}")
    return document(f"MEGL: study {name}", "\n".join(parts), STYLE)


def _bar_charts(group):
    for metric in BARS:
        having = [method for method, values in group.values.items() if metric in values]
        if not having:
            continue
        means = {method: mean(group.values[method][metric]) for method in having}
        rows = [(_label(method), value, group.interval(method, metric), "") for method, value in means.items()]
        yield f"<div><h3>{html.escape(COLUMNS[metric])}</h3>{bars(COLUMNS[metric], rows)}</div>"


def _label(method):
    """A method's name in a chart, where there is room for the values of its settings alone."""
    return re.sub(r"\w+=", "", method)


def _against_iou(group):
    having = {method: values for method, values in group.values.items() if "iou" in values}
    if not having:
        return ""
    places = {method: (mean(values["iou"]), mean(values["accuracy"])) for method, values in having.items()}
    x_ends, y_ends = (frame(values) for values in zip(*places.values(), strict=True))
    points = [
        (within(x, x_ends), within(y, y_ends), _label(method), f"{method}: IoU {x:.3f}, accuracy {y:.3f}", "")
        for method, (x, y) in places.items()
    ]
    title = "Accuracy against IoU"
    chart = unit_chart(title, "IoU of the maps", "accuracy", named_dots(points), x_ends, y_ends)
    return f"<div><h3>{title}</h3>{chart}</div>"


def _against_masks(group):
    """Metrics against the share of masks: a curve for each method that the study varies it of, and the reference."""
    curves = defaultdict(list)
    for method, runs in group.runs.items():
        name, *varied = method.split(" ")
        others = [part for part in varied if not part.startswith("mask_share=")]
        if len(others) < len(varied):
            curves[" ".join([name, *others])].append((runs[0].settings["mask_share"], method))
    charts = [_share_chart(group, metric, curves) for metric in ("accuracy", "accuracy_conflicting", "iou")]
    return "".join(charts) if curves else ""


def _share_chart(group, metric, curves):
    lines = {
        name: [
            (x, mean(group.values[method][metric])) for x, method in sorted(shares) if metric in group.values[method]
        ]
        for name, shares in curves.items()
    }
    reference = group.values.get(group.reference, {}).get(metric)
    if reference is not None:
        lines[group.reference] = [(0, mean(reference)), (1, mean(reference))]
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return ""
    ends = frame(values)
    marks, named = [], []
    for name, points in lines.items():
        places = [(x, within(y, ends)) for x, y in points]
        if not places:
            continue
        marks.append(curve(places, "" if name == group.reference else "curve"))
        titles = [f"{name}, {x:.0%} of the masks: {y:.3f}" for x, y in points]
        marks += [dot(*at, title) for at, title in zip(places, titles, strict=True)]
        named.append((*places[-1], name, titles[-1], ""))
    title = f"{COLUMNS[metric]} against the share of masks"
    chart = unit_chart(title, "share of the masks", COLUMNS[metric], marks + named_dots(named), y_ends=ends)
    return f"<div><h3>{html.escape(title)}</h3>{chart}</div>"


# ---- Several studies on one page ----


def publish_results(folder, name, results, text):
    """
    Put a study into `results.json` and `results.md` of a folder, each data set and architecture in place of what they
    have of it; what the study was not run on now is kept.

    In `results.md` a study stands between two comments; all else in it is written by hand, and kept.
    """
    path = folder / "results.json"
    known = _read(path) if path.exists() else {}
    study = known.setdefault(name, {})
    for dataset, architectures in results.items():
        study[dataset] = {**study.get(dataset, {}), **architectures}
    write_file(path, json.dumps(known, indent=2) + "\n")
    path = folder / "results.md"
    page = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    begin, end = f"<!-- study {name} -->\n", f"<!-- end of study {name} -->\n"
    before, found, rest = page.partition(begin)
    if not found:
        before, old, rest = f"{page.rstrip()}\n\n", "", ""
    elif end not in rest:
        raise ValueError(f"{path} has {begin.strip()!r} and no {end.strip()!r} after it: put it where the study ends.")
    else:
        old, _, rest = rest.partition(end)
    head, sections = _sections(text)
    sections = {**_sections(old)[1], **sections}
    text = "\n\n".join([head, *sections.values()])
    write_file(path, f"{before}{begin}{text}\n{end}{rest}")


def _sections(text):
    """What stands above the sections of a study, and heading to section."""
    head, *parts = re.split(r"^(?=### )", text, flags=re.MULTILINE)
    return head.rstrip(), {part.partition("\n")[0]: part.rstrip() for part in parts}
