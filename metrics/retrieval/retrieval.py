"""Does a rationale find its picture among the others?"""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Ranks all pictures by how alike each is to a rationale, and looks where the rationale's own picture stands: recall at 1
and at 5, median rank and mean reciprocal rank. A text that would fit any picture finds none. How alike two are another
module says: `clip_score` of texts and pictures, `rationale` of texts and the human texts of pictures.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): one rationale for each picture.
    candidates (`list`): what stands for the pictures, in the same order: the pictures themselves, or the human texts
        of each, a `list` of `str`; whatever `similarity` takes.
    similarity (callable): `similarity(predictions, candidates)` gives an array of shape `(predictions, candidates)`,
        greater where the two are more alike. For texts `evaluate.load("metrics/rationale").similarities`; for pictures
        `functools.partial(evaluate.load("metrics/clip_score").similarities, model_name_or_path=...)`.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `recall_at_1`, `recall_at_5` (in [0, 1], higher is better): share of the rationales whose own picture is the most
        alike, or among the five most alike.
    `mean_reciprocal_rank` (in [0, 1], higher is better): mean of 1 / rank, where the most alike has rank 1.
    `median_rank` (1 or more, lower is better).
    `chance_recall_at_1`, …: what each would be if the ranks were drawn at random.
    `n`: the number of items, among which each picture is looked for. All else is `None` where it is 0.
    `per_item`: with `per_item=True`, a dict of lists: `recall_at_1`, `recall_at_5`, `mean_reciprocal_rank`, `rank`.

    Pictures that are as alike as the own one, to within 1e-6, count by expectation: as the mean over the ranks that
    they share.
Raises:
    `ValueError`: a rationale or a candidate that is `None`, another number of candidates, no `similarity`, or one that
        gives an array of another shape or with values that are not finite.
Examples:
    >>> import evaluate
    >>> retrieval = evaluate.load("metrics/retrieval")
    >>> results = retrieval.compute(
    ...     predictions=["a red fish", "a blue fish", "a fish"],
    ...     candidates=[["the red fish"], ["the blue fish"], ["a green owl"]],
    ...     similarity=evaluate.load("metrics/rationale").similarities,
    ... )
    >>> round(results["recall_at_1"], 4), results["median_rank"], round(results["mean_reciprocal_rank"], 4)
    (1.0, 1.0, 1.0)
    >>> round(results["chance_recall_at_1"], 4), results["chance_median_rank"]
    (0.3333, 2.0)
"""

_CITATION = """
@inproceedings{luo2018discriminability,
    title={Discriminability Objective for Training Descriptive Captions},
    author={Luo, Ruotian and Price, Brian and Cohen, Scott and Shakhnarovich, Gregory},
    booktitle={CVPR},
    year={2018}
}
"""

SLACK = 1e-6  # what rounding may part where two are equally alike
MEANS = ("recall_at_1", "recall_at_5", "mean_reciprocal_rank")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Retrieval(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, candidates=None, similarity=None, per_item=False):
        check_inputs(predictions, candidates, similarity)
        count = len(predictions)
        similarities = np.asarray(similarity(predictions, candidates)) if count else np.zeros((0, 0))
        check_similarities(similarities, count)

        own = similarities.diagonal()[:, None]
        better = (similarities > own + SLACK).sum(axis=1)
        tied = (abs(similarities - own) <= SLACK).sum(axis=1)
        items = rank_scores(better, tied)
        # At random: all are tied.
        chance = rank_scores(np.array([0]), np.array([count]))
        results = {name: float(np.mean(items[name])) if count else None for name in MEANS}
        results["median_rank"] = float(np.median(items["rank"])) if count else None
        for name, of_item in (*zip(MEANS, MEANS, strict=True), ("median_rank", "rank")):
            results[f"chance_{name}"] = chance[of_item][0] if count else None
        results["n"] = count
        if per_item:
            results["per_item"] = items
        return results


def check_inputs(predictions, candidates, similarity):
    if not callable(similarity):
        raise ValueError(
            "`similarity` must be a function of predictions and candidates, such as "
            f"`evaluate.load('metrics/rationale').similarities`, got {similarity!r}."
        )
    if candidates is None or len(candidates) != len(predictions):
        given = None if candidates is None else len(candidates)
        raise ValueError(
            f"`candidates` must be a list of one for each of the {len(predictions)} predictions, got {given}."
        )
    for name, values in (("predictions", predictions), ("candidates", candidates)):
        for index, value in enumerate(values):
            if value is None:
                raise ValueError(f"`{name}[{index}]` must be given, got None.")


def check_similarities(similarities, count):
    if similarities.shape != (count, count):
        raise ValueError(f"`similarity` must give an array of shape {(count, count)}, got {similarities.shape}.")
    if not np.isfinite(similarities).all():
        raise ValueError("`similarity` must give finite values, got NaN or infinity.")


def rank_scores(better, tied):
    """
    The scores of items with so many candidates before the own one, and so many level with it, which is one of them: in
    the mean over all orders of the latter.

    Args:
        better, tied (`np.ndarray` of shape `(items,)`): Whole numbers; `tied` 1 or more, but for no items.
    """
    harmonic = np.cumsum([0.0, *(1 / np.arange(1, 1 + max(better + tied, default=0)))])
    found = {f"recall_at_{k}": ((k - better) / np.maximum(tied, 1)).clip(0, 1) for k in (1, 5)}
    found["mean_reciprocal_rank"] = (harmonic[better + tied] - harmonic[better]) / np.maximum(tied, 1)
    found["rank"] = better + (tied + 1) / 2
    return {name: values.tolist() for name, values in found.items()}
