"""What is wrong with `metrics.json` and with lines of `predictions.jsonl` that are read back, in words that follow the
place."""

import math

from megl.evaluation.headlines import BLEU_STATISTICS, HEADLINES


def metrics_fault(metrics):
    """What is wrong with the figures that tables show or their intervals; `None` where nothing is."""
    for path in HEADLINES:
        fault = _fault_at(metrics, path, _figure_fault) or _fault_at(metrics, ("intervals", *path), _interval_fault)
        if fault:
            return fault
    return None if _is_number(metrics.get("accuracy")) else _expected("a number", "accuracy", metrics.get("accuracy"))


def item_fault(item):
    """What is wrong with an item as far as figures and tests are made of it; `None` where nothing is."""
    kinds = {"id": str, "label": str, "prediction": str | None, "group": str | None, "per_item": dict}
    for name, kind in kinds.items():
        if name not in item:
            return f" has no `{name}`"
        if not isinstance(item[name], kind):
            words = {str: "a text", dict: "an object in braces"}.get(kind, "a text or null")
            return _expected(words, name, item[name])
    for name, score in item["per_item"].items():
        if score is not None and not _is_number(score):
            return _expected("a number", name, score)
    counts = item.get("bleu_statistics")
    if counts is None or isinstance(counts, list) and len(counts) == BLEU_STATISTICS and all(map(_is_number, counts)):
        return None
    return _expected(f"{BLEU_STATISTICS} numbers", "bleu_statistics", counts)


def _fault_at(metrics, path, fault):
    """What is wrong at a path of nested objects, where there is anything."""
    for place, name in enumerate(path):
        if not isinstance(metrics, dict):
            return None if metrics is None else _expected("an object in braces", ".".join(path[:place]), metrics)
        metrics = metrics.get(name)
    values = metrics if path[-1] == "accuracy_by_group" and isinstance(metrics, dict) else {"": metrics}
    places = ((".".join([*path, *filter(None, [name])]), value) for name, value in values.items())
    return next(filter(None, (fault(*pair) for pair in places)), None)


def _figure_fault(name, value):
    return None if value is None or _is_number(value) else _expected("a number", name, value)


def _interval_fault(name, value):
    if value is None or isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return None
    return _expected("two numbers", name, value)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _expected(words, name, value):
    return f": expected {words} as `{name}`, got {repr(value)[:40]}"
