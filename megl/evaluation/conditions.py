"""The figures of an audit by name, and conditions on them that a program can be failed by."""

import math
import operator
import re


# Name of a figure in `audit.json` to its path in metrics.
FIGURES = {
    "accuracy": ("accuracy",),
    "worst_group_accuracy": ("worst_group_accuracy",),
    "macro_f1": ("macro_f1",),
    **{name: ("saliency", name) for name in ("iou", "energy", "pointing_game")},
    **{
        name: ("interventions", name)
        for kind in ("same", "other", "object_alone", "background_alone", "noisy_foreground", "noisy_background")
        for name in (f"{kind}_accuracy", f"{kind}_agreement")
    },
    "relative_foreground_sensitivity": ("interventions", "relative_foreground_sensitivity"),
    "background_gap": ("interventions", "background_gap"),
}
COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*", re.ASCII)


def read_condition(text):
    """
    `(name, comparison, number)` of a text such as `background_gap>0.1`: a name of `FIGURES`, one of `<`, `>`, `<=` and
    `>=`, and a decimal number.

    Raises:
        `ValueError`: where it is anything else, or the name is that of no figure.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(
            f"`--fail_if` must be NAME, one of < > <= >=, and a NUMBER, such as 'background_gap>0.1', got {text!r}"
        )
    name, comparison, number = found.groups()
    if name not in FIGURES:
        raise ValueError(f"`--fail_if` must name one of {', '.join(FIGURES)}, got {name!r}")
    return name, comparison, float(number)


def met(conditions, figures):
    """
    The conditions that hold, each with the figure's value; and those that nobody can tell, as the figure is of no
    picture, which are not to pass for fulfilled.

    Args:
        conditions (`list[str]`): As [`read_condition`] takes them.
        figures (`dict[str, dict]`): Name to the figure, whose `value` may be `None`.
    """
    found = []
    for text in conditions:
        name, comparison, number = read_condition(text)
        value = figures[name]["value"]
        if value is None or math.isnan(value):
            found.append(f"{text}: there is no {name}")
        elif COMPARISONS[comparison](value, number):
            found.append(f"{text}: it is {value:.3f}")
    return found
