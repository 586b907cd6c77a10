"""A training as curves and as one self-contained HTML page: what was logged, the sheets, and what to type next."""

import math

from PIL import Image

from dataset_builders.files import write_file
from megl.pages.charts import INK, STRONG, Points, chart_of_points
from megl.pages.html_page import TEMPLATES, figure, render
from megl.tables import evenly_spaced


# Name in the Trainer's log, with the prefix `eval_` in evaluation, to what a chart calls it.
CURVES = {
    "loss": "loss, the weighted sum",
    "loss_classification": "classification loss",
    "loss_visual": "visual loss",
    "loss_text": "text loss",
    "loss_distribution": "distribution loss (VEDC)",
    "accuracy": "accuracy",
    "f1_micro": "micro F1",
}
TITLE = "The loss, its terms and the accuracy over the steps, in training and in evaluation"
MOST_POINTS = 200
MOST_SHEETS = 6
_WIDTH, _HEIGHT, _GAP = 560, 220, 12
_SPEEDS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def curves(history):
    """
    A chart for each of `CURVES` that was logged.

    Args:
        history (`list[dict]`): The Trainer's `log_history`.

    Returns:
        `list[tuple[str, Markup]]`: what a chart shows, and its SVG; empty where nothing was logged.
    """
    found = {name: (_logged(history, name), _logged(history, f"eval_{name}")) for name in CURVES}
    steps = [step for pairs in found.values() for points in pairs for step, _ in points]
    return [(CURVES[name], _curve(name, *pairs, max(steps))) for name, pairs in found.items() if any(pairs)]


def _logged(history, name):
    """`(step, value)` of what was logged under a name, but for what is no finite number."""
    found = [(entry["step"], entry[name]) for entry in history if isinstance(entry.get(name), (int, float))]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    return [found[place] for place in evenly_spaced(MOST_POINTS, len(found))] if found else []


def _curve(name, trained, evaluated, last_step):
    series = []
    for points, called, colour in ((trained, "training", STRONG), (evaluated, "evaluation", INK)):
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        tips = [f"{called}, step {step:,}: {value:.3f}" for step, value in points]
        names = [*[""] * (len(points) - 1), called]
        series.append(Points(steps, values, tips, names, sizes=2.5, colour=colour, line=True))
    values = [value for _, value in (*trained, *evaluated)]
    low, high = min(0, *values), max(0, *values)
    ends = (0, max(last_step, 1)), (low, high if high > low else low + 1)
    return chart_of_points(f"{CURVES[name]} over the steps", "step", CURVES[name], series, *ends, height=_HEIGHT)


def write_curves(path, history):
    """
    Write the curves as an SVG that stands by itself, two charts in a row.

    Args:
        path (`Path`): The file.
        history (`list[dict]`): The Trainer's `log_history`.

    Returns:
        `bool`: whether there was anything to draw.
    """
    charts = curves(history)
    if not charts:
        return False
    columns = min(2, len(charts))
    placed = [
        (number % columns * (_WIDTH + _GAP), number // columns * (_HEIGHT + _GAP), chart)
        for number, (_, chart) in enumerate(charts)
    ]
    sizes = {"width": placed[columns - 1][0] + _WIDTH, "height": placed[-1][1] + _HEIGHT}
    sizes |= {"chart_width": _WIDTH, "chart_height": _HEIGHT}
    write_file(path, render(TEMPLATES / "curves.svg", title=TITLE, placed=placed, **sizes))
    return True


def write_training(path, state, settings, sheets, next_commands):
    """
    Write the page of a training that is under way or done.

    Args:
        path (`Path`): The HTML file.
        state (`TrainerState`): Of the Trainer.
        settings (`dict`): Name to value.
        sheets (`list[Path]`): The sheets of explanations, `step-000100.png`, in their order.
        next_commands (`list[str]`): What to type next; empty while the training is under way.
    """
    shown = [sheets[place] for place in evenly_spaced(MOST_SHEETS, len(sheets))] if sheets else []
    page = render(
        TEMPLATES / "training.html",
        name=path.parent.resolve().name,
        state=state,
        curves=curves(state.log_history),
        evaluations=_evaluations(state.log_history),
        sheets=[_sheet(sheet) for sheet in shown],
        all_sheets=len(sheets),
        trained_on=settings.get("eval_split") == settings.get("train_split") is not None,
        settings=(["", "value"], [[name, str(value)] for name, value in settings.items() if value is not None]),
        next_commands=next_commands,
    )
    write_file(path, page)


def _evaluations(history):
    """Head and rows of a table of the first and the last evaluation, or `None` where there is none."""
    found = [entry for entry in history if "eval_loss" in entry]
    if not found:
        return None
    shown = [found[0], found[-1]] if len(found) > 1 else found
    names = [name for name in found[-1] if name.startswith("eval_") and name not in _SPEEDS]
    rows = [[CURVES.get(name[5:], name[5:]), *(_number(entry.get(name)) for entry in shown)] for name in names]
    return ["", *(f"step {entry['step']:,}" for entry in shown)], rows


def _number(value):
    return f"{value:.3f}" if isinstance(value, (int, float)) else ""


def _sheet(path):
    step = f"step {int(path.stem.rpartition('-')[2]):,}"
    with Image.open(path) as image:
        return figure(image.convert("RGB"), step, f"Pictures with maps and rationales at {step}", side=528)
