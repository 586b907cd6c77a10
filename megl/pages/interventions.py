"""What pages show of pictures whose object or background was changed: charts, and pictures with their labels."""

from megl.evaluation.headlines import at
from megl.pages.charts import bars
from megl.pages.html_page import figure
from megl.pages.pictures import as_pictures


MADE = {  # kinds of picture that are made, in words
    "same": "same-class background",
    "other": "other-class background",
    "object_alone": "object alone",
    "background_alone": "background alone",
    "noisy_foreground": "noise on object",
    "noisy_background": "noise on background",
}


def intervention_charts(metrics):
    """`(heading, chart)` of accuracy and of agreement on the pictures made of others."""
    found, intervals = metrics["interventions"], at(metrics["intervals"], ("interventions",))

    def row(words, name, count):
        return words, found[name], intervals.get(name), f"n = {found[count]:,}"

    rows = [
        [row(words, f"{kind}_{what}", f"{kind}_n") for kind, words in MADE.items()]
        for what in ("accuracy", "agreement")
    ]
    rows[0].insert(0, row("as it is", "accuracy", "n"))
    titles = ("Accuracy", "Label kept: as for the picture as it is")
    return [(title, bars(title, part)) for title, part in zip(titles, rows, strict=True)]


def made_pictures(interventions, place, *items):
    """
    For the macro `made` of the templates: `(id, label, pictures)` of an item, each picture with what it is called.

    Args:
        interventions ([`Interventions`]): How the pictures are made.
        place (`int`): The item's place in the data set.
        items (`dict`): What each of the models made of the item.
    """
    own, _ = interventions.read([place])
    made = {"as it is": own} | {MADE[kind]: pictures for kind, _, pictures in interventions.make([place])}
    labels = [_labels(item) for item in items]
    pictures = [
        (
            figure(as_pictures(pictures, interventions.processor.image_processor)[0], words),
            [of_model[words] for of_model in labels if words in of_model],
        )
        for words, pictures in made.items()
    ]
    return items[0]["id"], items[0]["label"], pictures


def _labels(item):
    """Kind of picture in words to what a model calls it; of an item without an object, of the picture as it is."""
    given = item["interventions"] or {}
    return {"as it is": item["prediction"]} | {MADE[kind]: label for kind, label in given.items()}
