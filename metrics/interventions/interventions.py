"""Does a classifier decide by the object or by the background?"""

import datasets
import evaluate


_DESCRIPTION = """
Tells whether an image classifier decides by the object or by the background, from its labels of pictures in which one
of the two was exchanged or left out: accuracy and agreement with the label of the picture as it is, on the background
of another picture of the same class, on that of another class, on the object alone and on the background alone. The
background gap is the accuracy that a classifier owes to backgrounds that go with the class; the relative foreground
sensitivity says which of the two noise does more harm on. No groups are needed.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): predicted class ids of the pictures as they are.
    references (`list` of `int`): true class ids.
    same (`list` of `int`, *optional*): predictions where each object stands on the background of another picture of
        its class; `None` for an item without.
    other (`list` of `int`, *optional*): the same on the background of a picture of another class.
    object_alone (`list` of `int`, *optional*): predictions for the objects without their backgrounds.
    background_alone (`list` of `int`, *optional*): predictions for the backgrounds without their objects.
    noisy_foreground (`list` of `int`, *optional*): predictions with noise on the objects.
    noisy_background (`list` of `int`, *optional*): predictions with the same noise on the backgrounds.
    num_classes (`int`, *optional*): between how many classes the classifier chooses; without, as many as `references`
        have.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `accuracy` (in [0, 1]): of the pictures as they are.
    `same_accuracy`, `other_accuracy`, `object_alone_accuracy`, `background_alone_accuracy`,
        `noisy_foreground_accuracy`, `noisy_background_accuracy` (in [0, 1]): share of the true class among the
        predictions for each kind of picture.
    `same_agreement`, … (in [0, 1]): share of them that are as for the picture as it is, right or wrong.
    `background_gap` (in [-1, 1]): `same_accuracy` - `other_accuracy`, over the items that have both.
    `relative_foreground_sensitivity` (in [-1, 1], higher is better): RFS, the accuracy with noise on the background
        minus that with noise on the foreground, over the most that this can be at their mean, over the items that have
        both.
    `chance`: 1 / `num_classes`, what `background_alone_accuracy` is of a background that tells nothing.
    `commonest`: share of the commonest class, the accuracy of always naming it.
    `n`, `same_n`, …, `background_gap_n`, `relative_foreground_sensitivity_n`: the number of items in each figure,
        which is `None` where it is 0.
    `per_item`: with `per_item=True`, a dict of lists: 1 or 0, `None` where an item has no such picture.
Examples:
    A classifier that goes by the background: it is always right on backgrounds of the class, and never on others.

    >>> import evaluate
    >>> interventions = evaluate.load("metrics/interventions")
    >>> results = interventions.compute(
    ...     predictions=[0, 0, 1, 1],
    ...     references=[0, 0, 1, 1],
    ...     same=[0, 0, 1, 1],
    ...     other=[1, 1, 0, 0],
    ...     object_alone=[0, 1, 0, 1],
    ...     background_alone=[0, 0, 1, 1],
    ... )
    >>> results["accuracy"], results["same_accuracy"], results["other_accuracy"], results["background_gap"]
    (1.0, 1.0, 0.0, 1.0)
    >>> results["object_alone_accuracy"], results["background_alone_accuracy"], results["chance"]
    (0.5, 1.0, 0.5)

    Of another, noise on the background does less harm than noise on the object:

    >>> noisy = {"noisy_foreground": [0, 1, 1, 0], "noisy_background": [0, 0, 1, 0]}
    >>> results = interventions.compute(predictions=[0, 0, 1, 1], references=[0, 0, 1, 1], **noisy)
    >>> results["noisy_foreground_accuracy"], results["noisy_background_accuracy"]
    (0.5, 0.75)
    >>> round(results["relative_foreground_sensitivity"], 3)
    0.333
"""

_CITATION = """
@inproceedings{xiao2021noise,
    title={Noise or Signal: The Role of Image Backgrounds in Object Recognition},
    author={Xiao, Kai and Engstrom, Logan and Ilyas, Andrew and M{\\k{a}}dry, Aleksander},
    booktitle={ICLR},
    year={2021}
}
@inproceedings{moayeri2022comprehensive,
    title={A Comprehensive Study of Image Classification Model Sensitivity to Foregrounds, Backgrounds, and Visual
        Attributes},
    author={Moayeri, Mazda and Pope, Phillip and Balaji, Yogesh and Feizi, Soheil},
    booktitle={CVPR},
    year={2022}
}
@inproceedings{moayeri2022hard,
    title={Hard {ImageNet}: Segmentations for Objects with Strong Spurious Cues},
    author={Moayeri, Mazda and Singla, Sahil and Feizi, Soheil},
    booktitle={NeurIPS Datasets and Benchmarks},
    year={2022}
}
"""

PICTURES = ["same", "other", "object_alone", "background_alone", "noisy_foreground", "noisy_background"]


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Interventions(evaluate.Metric):
    def _info(self):
        columns = ["predictions", "references", *PICTURES]
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({name: datasets.Value("int64") for name in columns}),
            reference_urls=["https://github.com/MadryLab/backgrounds_challenge"],
        )

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Compute the scores, of what is given here or was added before. See the description of the inputs."""
        return super().compute(predictions=predictions, references=references, **dict.fromkeys(PICTURES) | kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one item, with those of the optional inputs that it has."""
        given = {"prediction": prediction, "reference": reference, **kwargs}
        for name, value in given.items():
            check_whole(name, value)
        super().add(prediction=prediction, reference=reference, **dict.fromkeys(PICTURES) | kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add items, with those of the optional inputs that they have."""
        # `evaluate` stores every declared input of every item.
        given = {name: values for name, values in kwargs.items() if values is not None}
        for name, values in {"predictions": predictions, "references": references, **given}.items():
            for index, value in enumerate(() if values is None else values):
                check_whole(f"{name}[{index}]", value)
        if predictions is not None:
            given = {name: [None] * len(predictions) for name in PICTURES} | given
        super().add_batch(predictions=predictions, references=references, **given)

    def _compute(
        self,
        predictions,
        references,
        same,
        other,
        object_alone,
        background_alone,
        noisy_foreground,
        noisy_background,
        num_classes=None,
        per_item=False,
    ):
        given = (same, other, object_alone, background_alone, noisy_foreground, noisy_background)
        made = dict(zip(PICTURES, given, strict=True))
        check_classes({"predictions": predictions, "references": references}, num_classes)
        check_classes(made, num_classes, optional=True)
        items = {"accuracy": equal(predictions, references)}
        items |= {f"{name}_accuracy": equal(labels, references) for name, labels in made.items()}
        items |= {f"{name}_agreement": equal(labels, predictions) for name, labels in made.items()}
        pairs = zip(items["same_accuracy"], items["other_accuracy"], strict=True)
        items["background_gap"] = [None if None in pair else pair[0] - pair[1] for pair in pairs]

        results = {name: mean(values) for name, values in items.items()}
        noisy = zip(items["noisy_foreground_accuracy"], items["noisy_background_accuracy"], strict=True)
        noisy = [pair for pair in noisy if None not in pair]
        sensitivity = relative_foreground_sensitivity(*map(mean, zip(*noisy, strict=True))) if noisy else None
        results["relative_foreground_sensitivity"] = sensitivity
        classes = num_classes or len(set(references))
        results["chance"] = 1 / classes if classes else None
        results["commonest"] = max(map(references.count, set(references))) / len(references) if references else None
        results["n"] = len(references)
        results |= {f"{name}_n": counted(labels) for name, labels in made.items()}
        results["background_gap_n"] = counted(items["background_gap"])
        results["relative_foreground_sensitivity_n"] = len(noisy)
        if per_item:
            results["per_item"] = items
        return results


def relative_foreground_sensitivity(foreground, background):
    """
    RFS (Moayeri et al. 2022) of the accuracies with noise on foregrounds and on backgrounds: their difference over the
    greatest that two accuracies of their mean can have; 0 where that is 0.
    """
    mean = (foreground + background) / 2
    most = 2 * min(mean, 1 - mean)
    return (background - foreground) / most if most > 0 else 0.0


def check_whole(name, value):
    """Refuse a class id that is no integer, which would be stored as one."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        raise ValueError(f"`{name}` must be a class id, an integer, got {value!r}.")


def check_classes(columns, num_classes, optional=False):
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ValueError(f"`num_classes` must be a whole number, 1 or more, got {num_classes!r}.")
    for name, labels in columns.items():
        for index, label in enumerate(labels):
            if label is None and optional:
                continue
            if label is None or label < 0 or num_classes is not None and label >= num_classes:
                ids = "0 or more" if num_classes is None else f"from 0 to {num_classes - 1}, as `num_classes` says"
                raise ValueError(f"`{name}[{index}]` must be a class id, {ids}, got {label}.")


def equal(labels, others):
    """1 or 0 for each pair of class ids, `None` where there is none of the first."""
    return [None if label is None else int(label == other) for label, other in zip(labels, others, strict=True)]


def mean(values):
    """The mean of the values that are not `None`, or `None`."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def counted(values):
    return sum(value is not None for value in values)
