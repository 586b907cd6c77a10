"""Is a classifier right for the right reasons: its figures on a split, the verdict, and what would mend it."""

import shlex
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from megl.evaluation.classifier import is_megl
from megl.evaluation.conditions import FIGURES
from megl.evaluation.headlines import at, count_of
from megl.evaluation.interventions import Interventions, intervention_scores, label_interventions
from megl.evaluation.predictions import predict
from megl.evaluation.scores import classification_scores, joined, saliency_scores, with_intervals
from modeling_megl.recombination_megl import annotated_places


# Of so few pictures none may show what a tenth of all do: the rule of three, 3 / 30 = 0.1.
LEAST_PICTURES = 30
USUAL_PICTURES = 50  # of which a few have an object too small, or no other of their class
GAP, KEPT = 0.1, 2 / 3
OBJECT, BACKGROUND, UNKNOWN = "object", "background", "cannot tell"


def audit(classifier, processor, dataset, donors=None, batch_size=32, resamples=2000, seed=0):
    """
    Args:
        classifier ([`Classifier`]), processor ([`MeglProcessor`]): What [`load_classifier`] gives.
        dataset: The split, with the columns of the data set builders, whose classes are among the classifier's.
        donors (*optional*): The split that gives the backgrounds; that split itself by default.
        batch_size (`int`): Pictures at a time; no figure depends on it.
        resamples, seed (`int`): Of the bootstrap; the seed also draws the backgrounds.

    Returns:
        `(metrics, items, interventions)`: the figures with intervals as `megl evaluate` has them, of labels and maps;
        the pictures as [`predict`] gives them; and the [`Interventions`], `None` where no picture has a mask.
    """
    scorers = {"saliency": lambda items, places, pixel_values: saliency_scores(items, places, dataset)}
    interventions = None
    if len(annotated_places(dataset)):
        interventions = Interventions(processor, dataset, donors, batch_size, seed)
        scorers["interventions"] = partial(label_interventions, model=classifier, interventions=interventions)
    items, parts = predict(classifier, processor, dataset, batch_size, scorers=scorers, writes=False)
    saliency = joined(items, "saliency.", parts["saliency"])
    shown = ("iou", "energy", "pointing_game", "n", "n_undefined")
    metrics = {
        **classification_scores(items),
        "saliency": None if saliency is None else {name: saliency[name] for name in shown},
        "interventions": interventions and intervention_scores(items, classifier.class_names),
    }
    return with_intervals(metrics, items, resamples, seed), items, interventions


def figures(metrics):
    """Name of each of `FIGURES` to its `value`, its `interval` and the number `n` of pictures that it is of."""
    found = {}
    for name, path in FIGURES.items():
        value = at(metrics, path)
        n = 0 if value is None else count_of(metrics, path)
        found[name] = {"value": value, "interval": at(metrics["intervals"], path), "n": n}
    return found


def verdict(figures):
    """
    Where the labels come from, by three figures of the pictures that have a mask: the `background_gap`, by how much
    accuracy is lower on backgrounds of another class than on those of the own; `other_agreement`, the share of labels
    that stay on a background of another class; and `background_alone_agreement`, the share that stay without the
    object. What counts are the ends of their 95 % intervals, *low* and *high*; the first rule that holds decides:

    1. `"cannot tell"`: fewer than 30 pictures have a background gap.
    2. `"background"`: the gap is above 0.1 (low > 0.1, or high < -0.1: better on backgrounds of other classes); or the
       label follows the background, which shows where backgrounds do not go with classes, too: most labels change
       with it (`other_agreement`, high < 0.5) and most stay without the object (`background_alone_agreement`,
       low > 0.5).
    3. `"object"`: the gap is small (low >= -0.1 and high <= 0.1), labels stay with the object (`other_agreement`,
       low >= 2/3), and fewer stay without it (`background_alone_agreement`, high < low of `other_agreement`): a
       classifier that says the same of every picture has no gap either.
    4. `"cannot tell"`: all else; the sentence says what is missing for 3.

    It is about where labels come from, not how many are right. Where backgrounds do not go with classes in the split
    that gives them, there is no gap to see: a classifier may pass of whose labels a third come from the background.

    Args:
        figures (`dict[str, dict]`): Name to `value`, `interval` (`[low, high]`) and `n`.

    Returns:
        `(verdict, sentence)`: the sentence has the figures that it rests on.
    """
    gap, kept, alone = (figures[name] for name in ("background_gap", "other_agreement", "background_alone_agreement"))
    if gap["n"] < LEAST_PICTURES <= alone["n"]:
        return UNKNOWN, (
            f"Cannot tell where the labels come from: of {alone['n']:,} pictures with a mask, {gap['n']:,} have "
            f"backgrounds of their own class and of another one, and {LEAST_PICTURES} are needed: the split that "
            "gives the backgrounds must have pictures with masks of two classes or more; `--backgrounds` names it."
        )
    if gap["n"] < LEAST_PICTURES:
        return UNKNOWN, (
            f"Cannot tell where the labels come from: {_count(gap['n'])} a mask and backgrounds to exchange, and "
            f"{LEAST_PICTURES} are needed; masks for {USUAL_PICTURES} pictures, of all classes, would do."
        )
    (low, high), (kept_low, kept_high), (alone_low, alone_high) = (one["interval"] for one in (gap, kept, alone))
    rests_on = (
        f"of {gap['n']:,} pictures, the background gap is {_figure(gap)}, and of the labels {_figure(kept)} stay on "
        f"another class's background, {_figure(alone)} without the object."
    )
    if low > GAP or high < -GAP or kept_high < 0.5 < alone_low:
        return BACKGROUND, f"The labels come from the background, wholly or in part: {rests_on}"
    missing = {
        "the gap may be larger than 0.1": low < -GAP or high > GAP,
        "fewer than two thirds of the labels may stay on another class's background": kept_low < KEPT,
        "as many labels may stay without the object": alone_high >= kept_low,
    }
    reasons = [reason for reason, holds in missing.items() if holds]
    if reasons:
        return UNKNOWN, f"Cannot tell where the labels come from, as {', and '.join(reasons)}: {rests_on}"
    return OBJECT, f"The labels come from the object: {rests_on}"


def _count(number):
    return {0: "no picture has", 1: "one picture has"}.get(number, f"{number:,} pictures have")


def _figure(found):
    return "{:.2f} ({:.2f} to {:.2f})".format(found["value"], *found["interval"])


def telling(items, most):
    """
    The places of the pictures that tell the most, the clearest first and the classes in turn: rightly named ones that
    are named so on the background alone, and others whose name is wrong as soon as the background is another class's.

    Args:
        items (`list[dict]`): What [`audit`] gives.
        most (`int`): Of each kind.

    Returns:
        `list[tuple[str, int, list[int]]]`: a heading, how many pictures are such ones, and the places of the first.
    """
    right = [
        place for place, item in enumerate(items) if item.get("interventions") and item["prediction"] == item["label"]
    ]
    by_background = [place for place in right if _is_right(items[place], "background_alone")]
    misled = [place for place in right if _is_right(items[place], "other") is False]
    first = _clearest(items, by_background)[:most]
    second = _clearest(items, [place for place in misled if place not in first])[:most]
    return [
        ("Right on the background alone", len(by_background), first),
        ("Wrong as soon as the background is another class's", len(misled), second),
    ]


def _is_right(item, kind):
    """Whether a picture made of an item is named right; `None` where there is none."""
    given = item["interventions"].get(kind)
    return None if given is None else given == item["label"]


def _clearest(items, places):
    """The places by how many faults they show, then by probability; the classes take turns."""
    ordered = sorted(places, key=lambda place: (-_faults(items[place]), -items[place]["score"], place))
    turns = Counter()
    ranks = {}
    for place in ordered:
        label = items[place]["label"]
        ranks[place] = turns[label]
        turns[label] += 1
    return sorted(ordered, key=ranks.get)


def _faults(item):
    wrong = [_is_right(item, kind) is False for kind in ("other", "object_alone")]
    return sum([_is_right(item, "background_alone") is True, *wrong])


def mending(name, data, split, train, options=(), again=()):
    """
    The commands that train a classifier anew with its objects on other backgrounds, and audit it beside the first.

    Args:
        name (`str`): Hub id or folder of the classifier.
        data (`str`): The same of the data set.
        split (`str`): The audited split.
        train: The training split `train`, or `None`.
        options (`list[str]`): Options that each of the commands takes, such as names of columns.
        again (`list[str]`): Options of the audit that the next one takes as well.

    Returns:
        `list[str]`: Command lines; empty where there is one class, or not every class has masks to train with.
    """
    annotated = [] if train is None else annotated_places(train)
    masked = len(np.unique(np.array(train["label"])[annotated])) if len(annotated) else 0
    if masked < 2 or masked < len(train.features["label"].names):
        return []
    untaught = [] if any(train["textual_explanations"]) else ["--text_loss_weight", "0"]
    made, mended = (f"{Path(name).resolve().name.lstrip('-')}-{end}" for end in ("megl", "mended"))
    source = ["--model", name] if is_megl(name) else ["--vision", name, "--text", "llama-tiny"]
    settings = ["--recombine", "1", *untaught, "--num_train_epochs", "10", "--per_device_train_batch_size", "16"]
    settings += ["--learning_rate", "3e-4", "--text_learning_rate", "3e-3", "--lr_scheduler_type", "cosine"]
    lines = [
        ["init", *source, "--dataset", data, "--output", made],
        ["train", "--model_name_or_path", made, "--dataset_name", data, "--output_dir", mended, *settings],
        ["audit", name, data, "--split", split, "--beside", mended, "--output", f"{mended}-audit", *again],
    ]
    return [shlex.join(["megl", *line, *options]) for line in lines]
