"""The figures of an evaluation from its items, how much each item moves them, their bootstrap intervals, and the
paired test of two runs.

A figure is named by its path in `metrics.json`, such as `("saliency", "iou")`. Items are the lines of
`predictions.jsonl`. A resample of the items is a row of weights: how often each item was drawn.
"""

import math
import sys
from collections import Counter, defaultdict

import numpy as np
from scipy.stats import t as student

from megl.evaluation.metrics import load
from megl.terminal import progress


LEVEL = 0.95
# Has no interval and no test: a resample's minimum lies below that of its items, the more so the fewer a group has.
WORST_GROUP = ("worst_group_accuracy",)
NOISY = [("interventions", f"noisy_{side}_accuracy") for side in ("foreground", "background")]
SENSITIVITY = ("interventions", "relative_foreground_sensitivity")
WEIGHTS_AT_ONCE = 2**22
ROUNDING = 1e-12


def figures(items, weights):
    """
    Every figure that can be resampled, for each resample.

    Args:
        items (`list[dict]`): Each with `label`, `prediction`, `group`, `per_item` and, for BLEU, `bleu_statistics`.
        weights (`np.ndarray` of shape `(resamples, items)`): Not negative. All ones give the figures themselves.

    Returns:
        `dict[tuple[str, ...], np.ndarray]`: path to values of shape `(resamples,)`, NaN where no item counts.
    """
    columns = mean_columns(items)
    values = np.stack(list(columns.values()), axis=1)
    counts = weights @ ~np.isnan(values)
    means = divide(weights @ np.nan_to_num(values), counts)
    found = dict(zip(columns, means.T, strict=True))
    groups = [path for path in found if path[0] == "accuracy_by_group"]
    if groups:
        found[WORST_GROUP] = np.fmin.reduce([found[path] for path in groups])
    found["macro_f1",] = _macro_f1(items, weights)
    filtered = found.get(("explained_accuracy", "iou_filtered"))
    if filtered is not None:
        accuracy = found["accuracy",]
        found["explained_accuracy", "iou_overall"] = np.where(accuracy == 0, 0, accuracy * filtered)
    if found.keys() >= set(NOISY):
        found[SENSITIVITY] = _foreground_sensitivity(*(found[path] for path in NOISY))
    statistics = bleu_statistics(items)
    if statistics is not None:
        found |= _bleu(weights @ statistics)
    return found


def bleu_statistics(items):
    """`(items, statistics)`, zeros where an item has no references; `None` where none has any."""
    rows = [item.get("bleu_statistics") for item in items]
    length = max((len(row) for row in rows if row), default=0)
    statistics = np.array([row or [0] * length for row in rows], dtype=np.float64)
    return statistics if statistics.any() else None


def influences(items):
    """
    By how much each item moves each figure, as far as it is a mean over items or BLEU: path to values of shape
    `(items,)` that sum to 0, NaN where an item does not count.

    Of a mean they are the deviations from it over the number of items that count. Of BLEU they are the jackknife's,
    (n - 1) / n times what the figure loses without the item (Efron and Tibshirani 1993, chapter 11), which for a mean
    are the same. The variance of a figure over other items is the sum of their squares.
    """
    found = {}
    for path, values in mean_columns(items).items():
        count = np.sum(~np.isnan(values))
        if count:
            found[path] = (values - np.nanmean(values)) / count
    statistics = bleu_statistics(items)
    if statistics is None:
        return found
    counted = statistics.any(axis=1)
    for path, scores in _bleu(statistics.sum(axis=0) - statistics[counted]).items():
        moved = np.full(len(items), np.nan)
        moved[counted] = (scores.mean() - scores) * (len(scores) - 1) / len(scores)
        found[path] = moved
    return found


def mean_columns(items):
    """The figures that are means over items: path to values of shape `(items,)`, NaN where an item does not count."""
    labels = np.array([item["label"] for item in items])
    right = (labels == np.array([item["prediction"] for item in items])).astype(np.float64)
    columns = {("accuracy",): right}
    for name in sorted({name for item in items for name in item["per_item"]}):
        scores = [item["per_item"].get(name) for item in items]
        columns[tuple(name.split("."))] = np.array([np.nan if score is None else score for score in scores])
    iou = columns.get(("saliency", "iou"))
    if iou is not None:
        columns["explained_accuracy", "iou_filtered"] = np.where(right == 1, iou, np.nan)
    groups = np.array([item["group"] for item in items], dtype=object)
    for name in sorted({group for group in groups if group is not None}):
        columns["accuracy_by_group", name] = np.where(groups == name, right, np.nan)
        if iou is not None:
            columns["iou_by_group", name] = np.where(groups == name, iou, np.nan)
    for name in sorted(set(labels)):
        columns["accuracy_by_class", str(name)] = np.where(labels == name, right, np.nan)
        if iou is not None:
            columns["iou_by_class", str(name)] = np.where(labels == name, iou, np.nan)
    return columns


def _macro_f1(items, weights):
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    labels, predictions = (np.array([item[key] for item in items]) for key in ("label", "prediction"))
    names = np.unique(labels)
    true, predicted = labels[:, None] == names, predictions[:, None] == names  # (items, classes)
    hits, occurring = weights @ (true & predicted), weights @ true
    scores = np.where(occurring > 0, divide(2 * hits, occurring + weights @ predicted), np.nan)
    return np.nanmean(scores, axis=1)


def _foreground_sensitivity(foreground, background):
    """Of accuracies `(resamples,)` with noise, by the formula of `metrics/interventions`; NaN of no items."""
    formula = sys.modules[type(load("interventions")).__module__].relative_foreground_sensitivity
    pairs = zip(foreground.tolist(), background.tolist(), strict=True)
    return np.array([np.nan if math.isnan(sum(pair)) else formula(*pair) for pair in pairs])


def _bleu(totals):
    """BLEU-1 to BLEU-4 of each row of summed statistics, by the formula of `metrics/rationale`; NaN of no items."""
    bleu = sys.modules[type(load("rationale")).__module__].bleu
    scores = np.array([bleu(row) if any(row) else [np.nan] * 4 for row in totals.tolist()])
    return {("rationale", f"bleu_{order}"): scores[:, order - 1] for order in (1, 2, 3, 4)}


def divide(numerator, denominator):
    """The quotient of arrays, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def rows_at_once(count):
    """Resamples of `count` items that are drawn together."""
    return max(1, WEIGHTS_AT_ONCE // count)


def draw_weights(count, resamples, seed):
    """How often each of `count` items is drawn: `(resamples, count)` in blocks that fit into memory."""
    rng = np.random.default_rng(seed)
    step = rows_at_once(count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def point_figures(items, figures=figures):
    """The figures themselves, of this function: path to a number, or `None` where no item counts."""
    values = figures(items, np.ones((1, len(items))))
    return {path: None if np.isnan(value[0]) else float(value[0]) for path, value in values.items()}


def resampled_figures(runs, resamples, seed, figures=figures):
    """
    For each of the runs over the same items, its figures, of this function, on the same resamples: path to
    `(resamples,)` values.
    """
    drawn = draw_weights(len(runs[0]), resamples, seed)
    blocks = [
        [figures(items, weights) for items in runs]
        for weights in progress(drawn, "bootstrap", total=math.ceil(resamples / rows_at_once(len(runs[0]))))
    ]
    return [
        {path: np.concatenate([np.asarray(block[run][path]) for block in blocks]) for path in blocks[0][run]}
        for run in range(len(runs))
    ]


def intervals(items, resamples, seed, figures=figures):
    """
    Percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) at 95 %, over the items, of the figures of
    this function.

    Returns:
        `dict[tuple[str, ...], list[float]]`: path to lower and upper end; without figures that are defined nowhere,
        and the worst group's.
    """
    (found,) = resampled_figures([items], resamples, seed, figures)
    found.pop(WORST_GROUP, None)
    ends = {path: interval(values) for path, values in found.items()}
    return {path: pair for path, pair in ends.items() if pair is not None}


def interval(values):
    """Percentile interval at 95 % of resampled values, `[low, high]`; `None` where all are NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def check_same_items(first, second, name):
    """Refuse runs that are not over the same items with the same labels, as no paired test can compare them."""
    for run in (first, second):
        repeated = [key for key, times in Counter(item["id"] for item in run).items() if times > 1]
        if repeated:
            raise ValueError(f"{name}: the item {repeated[0]!r} occurs more than once.")
    labels, others = ({item["id"]: item["label"] for item in run} for run in (first, second))
    if labels.keys() != others.keys():
        odd = sorted(labels.keys() ^ others.keys())
        raise ValueError(
            f"{name}: expected the items of the first run, got {len(odd)} that only one of them has, such as "
            f"{odd[0]!r}: evaluate both on the same split."
        )
    for key, label in labels.items():
        if others[key] != label:
            raise ValueError(
                f"{name}: the item {key!r} has the label {others[key]!r}, but {label!r} in the first run."
            )


def paired_tests(runs, names, resamples, seed):
    """
    Each run against the first: paired bootstrap test (Efron and Tibshirani 1993, chapter 16; Koehn 2004), where both
    runs are scored on the same resamples of the items.

    Args:
        runs (`list[list[dict]]`): Two or more runs over the same items, in any order.
        names (`list[str]`): What errors call the runs.

    Returns:
        `list[dict[tuple[str, ...], dict]]`: for each run after the first, path to `difference` (this run minus the
        first), its 95 % `interval`, and the two-sided `p`: twice the share of resamples in which the difference is 0
        or has the other sign, or that of Student's t test with the resamples' spread, whichever is greater.
    """
    first, *rest = runs
    order = {item["id"]: place for place, item in enumerate(first)}
    for run, name in zip(rest, names[1:], strict=True):
        check_same_items(first, run, name)
    runs = [first, *(sorted(run, key=lambda item: order[item["id"]]) for run in rest)]
    baseline, *others = resampled_figures(runs, resamples, seed)
    points, *other_points = (point_figures(run) for run in runs)
    counts, *other_counts = (counted_items(run) for run in runs)
    return [
        {
            path: {
                "difference": point[path] - points[path],
                **difference_test(
                    found[path] - baseline[path], point[path] - points[path], min(counts[path], count[path])
                ),
            }
            for path in found
            if point[path] is not None and points.get(path) is not None and path != WORST_GROUP
        }
        for found, point, count in zip(others, other_points, other_counts, strict=True)
    ]


def difference_test(differences, difference, count):
    """
    The `interval` and the two-sided `p` of a difference from its resamples, as in [`paired_tests`], and from how many
    items count.
    """
    differences = differences[~np.isnan(differences)]
    # The figures themselves count as one more resample, so that p is never 0 (Davison and Hinkley 1997, 4.2.3).
    # Rounding must not turn equal runs into different ones.
    tails = [(np.sum(sign * differences <= ROUNDING) + 1) / (len(differences) + 1) for sign in (1, -1)]
    p = max(2 * min(tails), _student_p(differences, difference, count))
    return {"interval": interval(differences), "p": float(min(1, p))}


def _student_p(differences, difference, count):
    """
    Two-sided p by Student's t with the spread of the resamples. Of few items their tails alone are too short, as the
    spread is that of n - 1 items and itself uncertain (Hesterberg 2015, section 3.4).
    """
    if count < 2 or abs(difference) <= ROUNDING:
        return 1.0
    error = differences.std() * np.sqrt(count / (count - 1))
    if error <= ROUNDING:  # every item says the same: the chance that all signs agree
        return 2.0 ** (1 - count)
    return 2 * student.sf(abs(difference) / error, count - 1)


def counted_items(items):
    """Path of a figure to how many items count in it; all of them where it is not named."""
    found = defaultdict(lambda: len(items))
    columns = mean_columns(items) | influences(items)
    found |= {path: int(np.sum(~np.isnan(values))) for path, values in columns.items()}
    filtered = ("explained_accuracy", "iou_filtered")
    if filtered in found:
        found["explained_accuracy", "iou_overall"] = found[filtered]
    if NOISY[0] in found:
        found[SENSITIVITY] = found[NOISY[0]]
    return found
