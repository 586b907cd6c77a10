"""The page of an audit: the verdict and its figures, the pictures that tell the most, and what would mend it."""

from megl.evaluation.audit import telling
from megl.evaluation.conditions import FIGURES
from megl.evaluation.headlines import at, count_of, headlines, interval_head, interval_text
from megl.pages.charts import bars
from megl.pages.html_page import TEMPLATES, figure, render
from megl.pages.interventions import intervention_charts, made_pictures
from megl.pages.pictures import row_pictures
from megl.tables import read_row


def write_audit(path, dataset, runs, found, most):
    """
    Args:
        path (`Path`): The HTML file.
        dataset: The split.
        runs (`dict[str, tuple]`): Name to what [`audit`] gives, of the audited model first.
        found (`dict`): What is in `audit.json`.
        most (`int`): Pictures of each kind to show.
    """
    page = render(
        TEMPLATES / "audit.html",
        found=found,
        names=list(runs),
        metrics=next(iter(runs.values()))[0],
        table_of=_table({name: metrics for name, (metrics, _, _) in runs.items()}, found["tests"]),
        charts={name: _charts(metrics) for name, (metrics, _, _) in runs.items()},
        cases=_cases(dataset, runs, most),
    )
    path.write_text(page, encoding="utf-8")


def _table(models, tests):
    """The figures of each model with their intervals, and p of the difference where there are two."""
    first = next(iter(models.values()))
    several = len(models) > 1
    heads = [""]
    for name in models:
        heads += [name if several else "value", interval_head(first)]
    named = {path: name for name, path in FIGURES.items()}
    rows = []
    for path, name, _ in headlines(first):
        row = [name]
        for metrics in models.values():
            value = at(metrics, path)
            row += ["" if value is None else f"{value:.3f}", interval_text(at(metrics["intervals"], path))]
        test = (tests or {}).get(named.get(path))
        rows.append([*row, f"{count_of(first, path):,}", *(["" if test is None else f"{test['p']:.3g}"] * several)])
    return [*heads, "images", *(["p"] * several)], rows


def _charts(metrics):
    """`(heading, chart)` of the labels on changed pictures, and of accuracy by group, of those that there are."""
    charts = intervention_charts(metrics) if metrics["interventions"] else []
    groups, intervals = metrics["accuracy_by_group"], at(metrics["intervals"], ("accuracy_by_group",))
    if groups:
        rows = [(name, groups[name], intervals.get(name), f"n = {metrics['n_by_group'][name]:,}") for name in groups]
        charts.append(("Accuracy by group", bars("Accuracy by group", rows)))
    return charts


def _cases(dataset, runs, most):
    """`(heading, explanation, items)` of the pictures that tell the most, each with its maps and its versions."""
    (_, items, interventions), *others = runs.values()
    if interventions is None:
        return []
    cases = []
    for heading, count, places in telling(items, most):
        words = f"{count:,} of {len(interventions.places):,} pictures, those that tell the most first"
        shown = [
            _case(dataset, place, interventions, items[place], *(other[place] for _, other, _ in others))
            for place in places
        ]
        cases.append((heading, words, shown))
    return cases


def _case(dataset, place, interventions, *items):
    id, label, pictures = made_pictures(interventions, place, *items)
    row = read_row(dataset, place)
    (_, human, own), *others = (row_pictures(row, item) for item in items)
    maps = [human, own, *((other[-1][0], "map of the other model") for other in others)]
    return id, label, [pictures[0], *((figure(picture, caption), []) for picture, caption in maps), *pictures[1:]]
