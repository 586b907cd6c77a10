"""What the page of results says in numbers: means, differences, ratios and claims, as words."""

from statistics import mean

import numpy as np

from studies.figures import CONVOLUTIONAL, CURVES, METHODS, RECOMBINED, TRANSFORMERS, place_of
from studies.results import p_text
from studies.study import BEST_BASELINE, COLUMNS


# Metrics that are shares of images: their differences are told in points.
SHARES = {"accuracy", "accuracy_conflicting", "accuracy_aligned", "pointing_game", "place_accuracy", "colour_accuracy"}
VERDICTS = {"holds": "**holds**", "fails": "*fails*", "undecided": "undecided"}
NAMES = {name: words for name, (words, _, _) in METHODS.items()} | {"llava": "the LLaVA"}
NAMES |= {"res_g weight 1": "RES-G, weight 1", "res_g weight 1 and text": "RES-G, weight 1, and rationales"}
NAMES |= {name: words for name, (words, _, _) in CURVES.items()}


class Findings:
    """
    The groups of published studies, by the study and by their place as `figures.place_of` calls it.

    Args:
        studies (`list[Published]`): As `publish.read_published` gives them.
    """

    def __init__(self, studies):
        self.groups = {(one.name, place_of(group)): group for one in studies for group in one.groups}

    def group(self, study, place):
        if (study, place) not in self.groups:
            raise ValueError(f"the page needs the study {study} on {place}, of which no cell is published.")
        return self.groups[study, place]

    def words(self):
        """What the template calls."""
        records = {
            run.record["key"]: run.record
            for group in self.groups.values()
            for runs in group.runs.values()
            for run in runs
        }
        hours = sum(sum(record["seconds"].values()) for record in records.values()) / 3600
        called = (self.mean, self.means, self.gain, self.ratio, self.claims, self.pairs)
        names = {"cells": len(records), "hours": f"{hours:.0f}", "places": CONVOLUTIONAL + TRANSFORMERS}
        names |= {"recombined": RECOMBINED}
        return names | {function.__name__: function for function in called}

    def mean(self, place, method, metric, study="paper"):
        return f"{mean(self.group(study, place).values[method][metric]):.3f}"

    def means(self, place, methods, metric, study="interventions"):
        """Of some methods, such as `0.253, –, 0.796` where the second was not run."""
        run = self.group(study, place).values
        found = [self.mean(place, method, metric, study) if method in run else "–" for method in methods]
        return ", ".join(found).replace("-", "−")

    def gain(self, place, method, over, metric, study="paper"):
        """A difference and its 95 % interval, such as `+57.3 points (51.2 to 63.5)`."""
        found = self.group(study, place).difference(method, over, metric)
        return _gain_text(metric, found.mean, found.interval(), " points")

    def ratio(self, place, method, over, metric, study="paper"):
        """Such as `× 2.4 (2.0 to 2.9)`."""
        found = self.group(study, place).difference(method, over, metric, ratio=True)
        return _ratio_text(*np.exp([found.mean, *found.interval()]))

    def claims(self, study, places, methods):
        """Rows of a table: what is claimed of a method, and for each of the places what `_verdict` gives."""
        groups, rows = [self.group(study, place) for place in places], []
        for method in methods:
            for claim in groups[0].claims:
                if claim["method"] == method:
                    title = f"{name_of(method)} over {name_of(claim['over'])}: {COLUMNS[claim['metric']]}"
                    verdicts = [_verdict(_check_of(group, claim)) for group in groups]
                    rows.append([f"{title}, {asked(claim)}", *verdicts])
        return rows

    def pairs(self, study, place):
        """Rows of a table: a method over another, and what is found of its accuracy and its IoU."""
        group, rows = self.group(study, place), {}
        for check in group.checks:
            claim = check["claim"]
            names = [name_of(claim["method"]), name_of(claim["over"])]
            (name, _, share), (other, _, share_of_other) = (words.rpartition(", ") for words in names)
            title = f"{name} over {other}, {share}" if share == share_of_other else " over ".join(names)
            title += f": {asked(claim)}" if "no_worse_than" in claim else ""
            rows.setdefault(title, {})[claim["metric"]] = _verdict(check)
        return [[title, *(cells.get(metric, "") for metric in ("accuracy", "iou"))] for title, cells in rows.items()]


def name_of(method):
    """A method in words."""
    if method == BEST_BASELINE:
        return "the best masks alone"
    name, _, share = method.partition(" mask_share=")
    return f"{NAMES.get(name, name)}, {100 * float(share):g} % of the masks" if share else NAMES.get(name, name)


def asked(claim):
    """What a claim asks, in words."""
    points = claim["metric"] in SHARES
    for name, words in (("gain", "at least +{}"), ("no_worse_than", "at most {} worse")):
        if name in claim:
            return words.format(f"{100 * claim[name]:.0f} points" if points else f"{claim[name]:g}")
    return f"at least × {claim['ratio']:g}"


def _check_of(group, claim):
    return next((check for check in group.checks if check["claim"] is claim), None)


def _verdict(check):
    """Lines of a cell of a table."""
    if check is None:
        return "not run"
    verdict = VERDICTS[check["verdict"]]
    if check["interval"] is None:
        return verdict
    if "ratio" in check["claim"]:
        found = _ratio_text(check["found"], *check["interval"])
    else:
        found = _gain_text(check["claim"]["metric"], check["found"], check["interval"])
    over = f"<br>{name_of(check['over'])}" if check["claim"]["over"] == BEST_BASELINE else ""
    p = p_text(check["p"])
    return f"{verdict}<br>{found.replace(' (', '<br>(')}<br>p {'' if p[0] == '<' else '= '}{p}{over}"


def _gain_text(metric, value, interval, unit=""):
    scale, digits, unit = (100, 1, unit) if metric in SHARES else (1, 3, "")
    value, *ends = (round(scale * number, digits) + 0.0 for number in (value, *interval))  # no -0.0
    sign = "+" if ends[0] < 0 else ""
    ends = " to ".join(f"{end:{sign}.{digits}f}" for end in ends)
    return f"{value:+.{digits}f}{unit} ({ends})".replace("-", "−")


def _ratio_text(value, low, high):
    return f"× {value:.2f} ({low:.2f} to {high:.2f})"
