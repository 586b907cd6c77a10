"""Does a rationale change when its map does, and stay when the background changes?"""

import re
from collections import Counter

import datasets
import evaluate


_DESCRIPTION = """
Compares the rationales that a model gives pictures with those that it gives them under another picture's saliency
map, and with those that it gives once their backgrounds are exchanged. A rationale that speaks of what the map shows
changes with the map; one that speaks of the object stays when the background changes. Two texts are as alike as the F1
of their words says.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): rationales of the pictures as they are.
    swapped_map (`list` of `str`, *optional*): rationales of the same pictures, each under another picture's map;
        `None` for an item without.
    swapped_background (`list` of `str`, *optional*): rationales of the pictures with other backgrounds; `None` for an
        item without.
    correct (`list` of `bool`, *optional*): whether each picture is classified right, for the same figures of these.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `map_sensitivity` (in [0, 1], higher is better): mean over the items of 1 - the F1 of the words of the rationale
        and of that under another map.
    `background_stability` (in [0, 1], higher is better): mean F1 with the rationale on the other background.
    `map_unchanged`, `background_unchanged` (in [0, 1]): share of the items whose two texts are the same to the letter.
    `n_map`, `n_background`: the number of items with such texts. Means of none are `None`.
    `map_sensitivity_correct`, …, `n_background_correct`: with `correct`, the same of the items classified right.
    `per_item`: with `per_item=True`, a dict of lists; `None` where an item has no such text, or is not of `_correct`.
Raises:
    `ValueError`: neither of the two lists, one of another length, a rationale that is `None`, or what is no `bool`.
Examples:
    The first text follows its map and keeps to the object, the second says the same whatever it is shown:

    >>> import evaluate
    >>> self_consistency = evaluate.load("metrics/self_consistency")
    >>> results = self_consistency.compute(
    ...     predictions=["a fish, left", "an owl"],
    ...     swapped_map=["a fish, right", "an owl"],
    ...     swapped_background=["a fish, left", "an owl"],
    ... )
    >>> round(results["map_sensitivity"], 4), results["map_unchanged"]
    (0.1667, 0.5)
    >>> results["background_stability"], results["background_unchanged"], results["n_background"]
    (1.0, 1.0, 2)
"""

_CITATION = """
@inproceedings{atanasova2023faithfulness,
    title={Faithfulness Tests for Natural Language Explanations},
    author={Atanasova, Pepa and Camburu, Oana-Maria and Lioma, Christina and Lukasiewicz, Thomas
        and Simonsen, Jakob Grue and Augenstein, Isabelle},
    booktitle={ACL},
    year={2023}
}
@inproceedings{rajpurkar2016squad,
    title={{SQuAD}: 100,000+ Questions for Machine Comprehension of Text},
    author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
    booktitle={EMNLP},
    year={2016}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class SelfConsistency(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, swapped_map=None, swapped_background=None, correct=None, per_item=False):
        check_inputs(predictions, swapped_map, swapped_background, correct)
        missing = [None] * len(predictions)
        alike = similarities(predictions, swapped_map or missing)
        items = {
            "map_sensitivity": [None if value is None else 1 - value for value in alike],
            "map_unchanged": unchanged(predictions, swapped_map or missing),
            "background_stability": similarities(predictions, swapped_background or missing),
            "background_unchanged": unchanged(predictions, swapped_background or missing),
        }
        if correct is not None:
            items |= {
                f"{name}_correct": [value if right else None for value, right in zip(values, correct, strict=True)]
                for name, values in items.items()
            }
        results = {name: mean(values) for name, values in items.items()}
        for suffix in ("",) if correct is None else ("", "_correct"):
            for kind in ("map", "background"):
                results[f"n_{kind}{suffix}"] = counted(items[f"{kind}_unchanged{suffix}"])
        if per_item:
            results["per_item"] = items
        return results


def check_inputs(predictions, swapped_map, swapped_background, correct):
    if swapped_map is None and swapped_background is None:
        raise ValueError("`swapped_map` or `swapped_background` must be given: rationales of the same pictures.")
    given = {"swapped_map": swapped_map, "swapped_background": swapped_background, "correct": correct}
    for name, values in given.items():
        if values is not None and len(values) != len(predictions):
            raise ValueError(
                f"`{name}` must have one value for each of the {len(predictions)} predictions, got {len(values)}."
            )
    for index, text in enumerate(predictions):
        if text is None:
            raise ValueError(f"`predictions[{index}]` must be a string, got None; an empty rationale is ''.")
    for index, right in enumerate(correct or []):
        if right not in (True, False):
            raise ValueError(f"`correct[{index}]` must be True or False, got {right!r}.")


def similarities(texts, others):
    """The F1 of the words of each pair; `None` where there is no other text."""
    return [None if other is None else word_f1(text, other) for text, other in zip(texts, others, strict=True)]


def unchanged(texts, others):
    """1 or 0 for each pair of texts; `None` where there is no other."""
    return [None if other is None else int(text == other) for text, other in zip(texts, others, strict=True)]


def word_f1(text, other):
    """F1 of precision and recall of the words, each as often as it occurs (Rajpurkar et al. 2016); 1 of no words."""
    first, second = (Counter(re.findall(r"\w+", one.casefold())) for one in (text, other))
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def mean(values):
    """The mean of the values that are not `None`, or `None`."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def counted(values):
    return sum(value is not None for value in values)
