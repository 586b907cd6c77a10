"""Task score and explanation score together: right answers that are also explained well."""

import math
import numbers

import datasets
import evaluate


_DESCRIPTION = """
Joins the score of a task and the score of its explanations, as e-ViL (Kayser et al. 2021) does: the task score S_T is
the accuracy, the explanation score S_E that of the explanations of correctly classified items, and the overall score
their product, which is the explanation score where the explanation of a wrong answer counts 0. The explanation score
over all items, right or wrong ("unfiltered", NLX-GPT, Sammani et al. 2022), is given beside it.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str` or `int`): predicted classes.
    references (`list` of `str` or `int`): true classes.
    explanation_scores (`list` of `float`, *optional*): one score an item, such as a person's rating or the IoU of a
        map; `None` or NaN where it has none. S_E is their mean.
    explanations (`list` of `str`, *optional*): texts, instead of `explanation_scores`.
    explanation_references (`list` of `list` of `str`): with `explanations`: the human texts of each item; `[]` or
        `None` where it has none.
    explanation_metric: with `explanations`: a loaded `evaluate` module, or any object whose
        `compute(predictions=..., references=...)` returns a `dict`. S_E is each `float` in it, computed over the
        correctly classified items alone. Where the module names its `corpus_scores`, as `rationale` does, only those
        are: the others, such as CIDEr, are means over these items of what they have among all items
        (`per_item=True`). A score that it cannot compute, which is `None`, stays `None`.
    score_name (`str`, defaults to `"explanation_score"`): what the results call the mean of `explanation_scores`.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `task_score` (S_T, in [0, 1]): share of the items whose classes agree.
    `<name>_unfiltered`, `<name>_filtered` (S_E), `<name>_overall` (S_T * S_E): higher is better where the score's is.
        The name is `score_name`, or each one that `explanation_metric` gives. `None` where no item counts; the overall
        score is 0 where no item is classified correctly.
    `n`, `n_filtered`: the number of items, and of correctly classified ones.
    `n_undefined`, `n_undefined_filtered`: how many of these have no explanation score, or no text to compare with.
        They are left out of its means.
    `per_item`: with `per_item=True`, a dict of lists: `correct` (1 or 0) and, with `explanation_scores`, these.
Examples:
    >>> import evaluate
    >>> explained_accuracy = evaluate.load("metrics/explained_accuracy")
    >>> results = explained_accuracy.compute(
    ...     predictions=["owl", "cat", "cat", "owl"],
    ...     references=["owl", "cat", "owl", "cat"],
    ...     explanation_scores=[1.0, 0.5, 0.25, 0.25],
    ... )
    >>> results["task_score"], results["n_filtered"]
    (0.5, 2)
    >>> [results[f"explanation_score_{kind}"] for kind in ("unfiltered", "filtered", "overall")]
    [0.5, 0.75, 0.375]

    Texts, scored by another module:

    >>> results = explained_accuracy.compute(
    ...     predictions=["owl", "cat"],
    ...     references=["owl", "owl"],
    ...     explanations=["it has feathers", "it has whiskers"],
    ...     explanation_references=[["it has feathers"], ["the feathers"]],
    ...     explanation_metric=evaluate.load("metrics/rationale"),
    ... )
    >>> [round(results[f"rouge_l_{kind}"], 3) for kind in ("unfiltered", "filtered", "overall")]
    [0.5, 1.0, 0.5]
"""

_CITATION = """
@inproceedings{kayser2021evil,
    title={{e-ViL}: A Dataset and Benchmark for Natural Language Explanations in Vision-Language Tasks},
    author={Kayser, Maxime and Camburu, Oana-Maria and Salewski, Leonard and Emde, Cornelius and Do, Virginie
        and Akata, Zeynep and Lukasiewicz, Thomas},
    booktitle={ICCV},
    year={2021}
}
@inproceedings{sammani2022nlxgpt,
    title={{NLX-GPT}: A Model for Natural Language Explanations in Vision and Vision-Language Tasks},
    author={Sammani, Fawaz and Mukherjee, Tanmoy and Deligiannis, Nikos},
    booktitle={CVPR},
    year={2022}
}
"""

# What an item holds that was given no explanation, or no score.
BLANKS = {"explanation_scores": None, "explanations": "", "explanation_references": []}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ExplainedAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "explanation_scores": datasets.Value("float64"),
                    "explanations": datasets.Value("string"),
                    "explanation_references": datasets.List(datasets.Value("string")),
                }
            ),
            reference_urls=["https://github.com/maximek3/e-ViL"],
        )

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Compute the scores, of what is given here or was added before. See the description of the inputs."""
        return super().compute(predictions=predictions, references=references, **dict.fromkeys(BLANKS) | kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one item, with `explanation_scores` or `explanations` and `explanation_references`."""
        prediction, reference = class_text(prediction, "prediction"), class_text(reference, "reference")
        if "explanation_scores" in kwargs:
            kwargs["explanation_scores"] = undefined_as_nan(kwargs["explanation_scores"])
        super().add(prediction=prediction, reference=reference, **BLANKS | kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add items, with `explanation_scores` or `explanations` and `explanation_references`."""
        # `evaluate` stores every declared input of every item.
        given = {name: values for name, values in kwargs.items() if values is not None}
        if "explanation_scores" in given:
            given["explanation_scores"] = [undefined_as_nan(score) for score in given["explanation_scores"]]
        if predictions is not None:
            given = {name: [blank] * len(predictions) for name, blank in BLANKS.items()} | given
            predictions = [class_text(value, f"predictions[{i}]") for i, value in enumerate(predictions)]
        if references is not None:
            references = [class_text(value, f"references[{i}]") for i, value in enumerate(references)]
        super().add_batch(predictions=predictions, references=references, **given)

    def _compute(
        self,
        predictions,
        references,
        explanation_scores,
        explanations,
        explanation_references,
        explanation_metric=None,
        score_name="explanation_score",
        per_item=False,
    ):
        if predictions:
            check_explanations(explanation_scores, explanation_references, explanation_metric)
        correct = [prediction == true for prediction, true in zip(predictions, references, strict=True)]
        chosen = [index for index, is_correct in enumerate(correct) if is_correct]
        items = {"correct": [int(is_correct) for is_correct in correct]}
        if explanation_metric is None:
            scores = [None if score is None or math.isnan(score) else score for score in explanation_scores]
            undefined = [score is None for score in scores]
            items[score_name] = scores
            unfiltered, filtered = ({score_name: mean(kept)} for kept in (scores, [scores[i] for i in chosen]))
        else:
            undefined = [not texts for texts in explanation_references]
            unfiltered, filtered = text_scores(explanation_metric, explanations, explanation_references, chosen)

        task_score = mean(items["correct"])
        results = {"task_score": task_score}
        for name, score in unfiltered.items():
            results[f"{name}_unfiltered"] = score
            results[f"{name}_filtered"] = filtered.get(name)
            results[f"{name}_overall"] = None if score is None else product(task_score, filtered.get(name))
        results["n"], results["n_filtered"] = len(correct), len(chosen)
        results["n_undefined"] = sum(undefined)
        results["n_undefined_filtered"] = sum(undefined[i] for i in chosen)
        if per_item:
            results["per_item"] = items
        return results


def class_text(value, name):
    """Names and ids of classes alike are stored, and compared, as text."""
    if not isinstance(value, (str, numbers.Integral)):
        raise ValueError(f"`{name}` must be the name or id of a class, a string or an integer, got {value!r}.")
    return str(value)


def undefined_as_nan(score):
    """A score that is given and undefined, unlike the `None` that is stored where none is given."""
    return math.nan if score is None else score


def check_explanations(scores, references, metric):
    with_scores, with_texts = any(score is not None for score in scores), any(references)
    if (with_scores and with_texts) or (metric is None and not with_scores and not with_texts):
        raise ValueError(
            "Expected either `explanation_scores`, or `explanations` with `explanation_references`, got "
            f"{'both' if with_scores else 'neither'}."
        )
    if with_scores and metric is not None:
        raise ValueError(
            "`explanation_metric` scores texts: pass `explanations` and `explanation_references` with it."
        )
    if not with_scores and not hasattr(metric, "compute"):
        raise ValueError(
            "`explanation_metric` must be what scores the texts, such as `evaluate.load('metrics/rationale')`, got "
            f"{metric!r}."
        )
    for index, texts in enumerate(references):
        if texts and None in texts:
            raise ValueError(f"`explanation_references[{index}]` must be a list of strings, got {texts}.")


def mean(values):
    """The mean of the values that are not `None`, or `None`."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def mean_at(values, places):
    """The mean of the values at these places; `None` without values."""
    return None if values is None else mean([values[place] for place in places])


def text_scores(metric, texts, references, chosen):
    """Each score that the metric gives, by name: over the items that have references, and over the chosen of them."""
    scored = [index for index, several in enumerate(references) if several]
    chosen = [index for index in chosen if references[index]]

    def scores_of(places, **options):
        """Of these items alone."""
        given = {"predictions": [texts[i] for i in places], "references": [references[i] for i in places]}
        return metric.compute(**given, **options) if places else {}

    if not hasattr(metric, "corpus_scores"):
        return floats(scores_of(scored)), floats(scores_of(chosen))
    results = metric.compute(predictions=texts, references=references, per_item=True)
    items, alone = results["per_item"], scores_of(chosen)
    filtered = {
        name: alone.get(name) if name in metric.corpus_scores else mean_at(items.get(name), chosen)
        for name in floats(results)
    }
    return floats(results), filtered


def floats(results):
    """The scores among the results: what is a `float`, or `None`, which is one that could not be computed."""
    return {name: value for name, value in results.items() if value is None or isinstance(value, float)}


def product(task_score, explanation_score):
    """S_T * S_E. Where nothing is classified correctly every explanation counts 0, and so does the whole."""
    if task_score == 0:
        return 0.0
    return None if explanation_score is None else task_score * explanation_score
