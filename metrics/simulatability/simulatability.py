"""Can a reader tell from the rationale alone what the classifier decided?"""

import numbers
import re
from collections import Counter

import datasets
import evaluate
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


_DESCRIPTION = """
Does a rationale carry the decision? A reader who sees the rationale and not the picture guesses the class that the
classifier predicted: a bag of words (multinomial naive Bayes) that has read other rationales, or a language model. Its
accuracy stands beside chance, and is also given apart for pictures that are classified right and wrong: a rationale of
a wrong label should argue for that label. This is the side of simulatability that Hase et al. 2020 call leakage.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): rationales.
    references (`list` of `str` or `int`): the classes that the classifier predicted, which the reader is to guess.
    labels (`list` of `str` or `int`, *optional*): the true classes, to tell right from wrong predictions.
    train_rationales (`list` of `str`), train_labels (`list` of `str` or `int`): texts and their classes, from which
        the bag of words learns; not of the same pictures.
    folds, train_folds (`list` of `int`, *optional*): numbers of rationales and of texts to learn from. A rationale is
        then read by a bag of words that has not learned from the texts of its own number, which may be of its picture.
    language_model (`str`, *optional*): Hub id or folder of a causal language model, the reader in place of the bag of
        words. It takes the class whose name it finds likeliest after the rationale, by the mean log-likelihood of the
        name's tokens. Without it nothing is loaded.
    classes (`list` of `str`, *optional*): with `language_model`: the names it chooses from; those in `references` by
        default.
    hide (`list` of `str`, *optional*): what the reader is not shown, such as the class names: each of their words is
        taken out of all texts.
    batch_size (`int`, defaults to 32): with `language_model`: class names that go through it at once.
    device (`str`, *optional*): where the language model runs; the GPU if there is one, else the CPU.
    local_files_only (`bool`, defaults to `False`): never look for the language model on the Hub.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `accuracy` (in [0, 1], higher is better): share of the rationales from which the reader guesses the class. Where it
        finds k classes equally likely, the right one of them counts 1 / k.
    `chance` (in [0, 1]): share of the commonest class in `references`: what naming it always would score.
    `n`: the number of items. The others are `None` where it is 0.
    `accuracy_correct`, `chance_correct`, `n_correct`, `accuracy_wrong`, `chance_wrong`, `n_wrong`: with `labels`, the
        same of the pictures whose predicted class is the true one, and of the others.
    `per_item`: with `per_item=True`, a dict of lists; `None` where an item is not of `_correct` or `_wrong`.
Raises:
    `ValueError`: not one reader, lists of unequal length, `folds` without `train_folds`, a text or class that is
        `None`, no text to learn from, or a reference that is not among `classes`.
Examples:
    The third picture is taken for an owl, and its rationale argues for one:

    >>> import evaluate
    >>> simulatability = evaluate.load("metrics/simulatability")
    >>> results = simulatability.compute(
    ...     predictions=["it has feathers", "it has whiskers", "feathers again"],
    ...     references=["owl", "cat", "owl"],
    ...     labels=["owl", "cat", "cat"],
    ...     train_rationales=["these are feathers", "these are whiskers"],
    ...     train_labels=["owl", "cat"],
    ... )
    >>> results["accuracy"], round(results["chance"], 3), results["n"]
    (1.0, 0.667, 3)
    >>> results["accuracy_wrong"], results["n_wrong"]
    (1.0, 1)
"""

_CITATION = """
@inproceedings{hase2020leakage,
    title={Leakage-Adjusted Simulatability: Can Models Generate Non-Trivial Explanations of Their Behavior in Natural
        Language?},
    author={Hase, Peter and Zhang, Shiyue and Xie, Harry and Bansal, Mohit},
    booktitle={Findings of EMNLP},
    year={2020}
}
@inproceedings{hase2020evaluating,
    title={Evaluating Explainable {AI}: Which Algorithmic Explanations Help Users Predict Model Behavior?},
    author={Hase, Peter and Bansal, Mohit},
    booktitle={ACL},
    year={2020}
}
"""

WORD = re.compile(r"\w+")
PROMPT = "{rationale}\nThe picture shows:"
SLACK = 1e-6  # what rounding may part where two classes are equally likely


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Simulatability(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://github.com/peterbhase/LAS-NL-Explanations"],
        )

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one rationale with the predicted class, its name or id."""
        super().add(prediction=prediction, reference=class_text(reference, "reference"), **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add rationales with the predicted classes, their names or ids."""
        if references is not None:
            references = class_texts(references, "references")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(
        self,
        predictions,
        references,
        labels=None,
        train_rationales=None,
        train_labels=None,
        folds=None,
        train_folds=None,
        language_model=None,
        classes=None,
        hide=None,
        batch_size=32,
        device=None,
        local_files_only=False,
        per_item=False,
    ):
        check_lists({"predictions": predictions, "references": references, "labels": labels, "folds": folds})
        check_readers(train_rationales, train_labels, language_model)
        hidden = set(words(" ".join(hide or [])))
        texts = [without(hidden, text) for text in predictions]
        if language_model is None:
            check_folds(folds, train_folds)
            check_lists(
                {"train_rationales": train_rationales, "train_labels": train_labels, "train_folds": train_folds}
            )
            learned = [without(hidden, text) for text in train_rationales]
            pairs = [*zip(learned, class_texts(train_labels, "train_labels"), strict=True)]
            guesses = read_by_words(texts, folds, pairs, train_folds)
        else:
            classes = sorted(set(references)) if classes is None else classes
            check_classes(references, classes)
            reader = LanguageModelReader(language_model, batch_size, device, local_files_only)
            guesses = [reader.guess(text, classes) for text in texts]
        return scored(guesses, references, labels, per_item)


def scored(guesses, references, labels, per_item):
    """The results, from the classes that the reader found likeliest for each item."""
    scores = [(true in found) / len(found) for true, found in zip(references, guesses, strict=True)]
    parts = {"": [True] * len(scores)}
    if labels is not None:
        pairs = zip(class_texts(labels, "labels"), references, strict=True)
        correct = [label == reference for label, reference in pairs]
        parts |= {"_correct": correct, "_wrong": [not right for right in correct]}
    results, items = {}, {}
    for suffix, chosen in parts.items():
        of_part = [score if belongs else None for score, belongs in zip(scores, chosen, strict=True)]
        classes = [reference for reference, belongs in zip(references, chosen, strict=True) if belongs]
        results[f"accuracy{suffix}"] = mean(of_part)
        results[f"chance{suffix}"] = max(Counter(classes).values()) / len(classes) if classes else None
        results[f"n{suffix}"] = len(classes)
        items[f"accuracy{suffix}"] = of_part
    if per_item:
        results["per_item"] = items
    return results


def class_texts(values, name):
    return [class_text(value, f"{name}[{index}]") for index, value in enumerate(values)]


def class_text(value, name):
    """Names and ids of classes alike are compared as text."""
    if not isinstance(value, (str, numbers.Integral)):
        raise ValueError(f"`{name}` must be the name or id of a class, a string or an integer, got {value!r}.")
    return str(value)


def check_readers(train_rationales, train_labels, language_model):
    learns = train_rationales is not None and train_labels is not None
    if learns == (language_model is not None):
        raise ValueError(
            "Expected either `train_rationales` with `train_labels`, or `language_model`, got "
            f"{'both' if learns else 'neither'}."
        )


def check_folds(folds, train_folds):
    if (folds is None) != (train_folds is None):
        missing = "train_folds" if train_folds is None else "folds"
        raise ValueError(f"`{missing}` must be given, since `folds` and `train_folds` belong together, got None.")


def check_lists(lists):
    """Refuse lists that are not as long as the first, and missing values in those that are given."""
    (first, expected), *_ = lists.items()
    for name, values in lists.items():
        if values is None:
            continue
        if len(values) != len(expected):
            raise ValueError(
                f"`{name}` must have one value for each of the {len(expected)} {first}, got {len(values)}."
            )
        for index, value in enumerate(values):
            if value is None:
                raise ValueError(f"`{name}[{index}]` must be given, got None.")


def check_classes(references, classes):
    for index, reference in enumerate(references):
        if reference not in classes:
            raise ValueError(f"`references[{index}]` must be one of the classes {classes}, got {reference!r}.")


def words(text):
    return WORD.findall(text.casefold())


def without(hidden, text):
    """The text without the words that are hidden."""
    return WORD.sub(lambda word: "" if word[0].casefold() in hidden else word[0], text) if hidden else text


def read_by_words(texts, folds, pairs, train_folds):
    """The likeliest classes of each text, by a [`BagOfWords`] that has not learned from the pairs of its fold."""
    if folds is None:
        folds, train_folds = [0] * len(texts), [1] * len(pairs)
    guesses = [None] * len(texts)
    for fold in dict.fromkeys(folds):
        learned = [pair for pair, other in zip(pairs, train_folds, strict=True) if other != fold]
        if not learned:
            raise ValueError(f"`train_rationales` must have texts of other folds than {fold}, got none.")
        reader = BagOfWords(learned)
        for place, own in enumerate(folds):
            if own == fold:
                guesses[place] = reader.guess(texts[place])
    return guesses


class BagOfWords:
    """
    Multinomial naive Bayes over words, with one added to each count (Manning et al. 2008, section 13.2).

    Args:
        pairs (`list` of `(text, class)`): What it learns from.
    """

    def __init__(self, pairs):
        self.classes = sorted({label for _, label in pairs})
        rows = {label: row for row, label in enumerate(self.classes)}
        texts = [(words(text), rows[label]) for text, label in pairs]
        self.columns = {
            word: column for column, word in enumerate(dict.fromkeys(w for text, _ in texts for w in text))
        }
        counts = np.ones((len(rows), len(self.columns)))
        for text, row in texts:
            np.add.at(counts[row], [self.columns[word] for word in text], 1)
        self.log_likelihood = np.log(counts / counts.sum(axis=1, keepdims=True))
        self.log_prior = np.log(np.bincount([row for _, row in texts]) / len(texts))

    def guess(self, text):
        """The likeliest classes; words that were not learned tell nothing."""
        known = [self.columns[word] for word in words(text) if word in self.columns]
        return likeliest(self.classes, self.log_prior + self.log_likelihood[:, known].sum(axis=1))


class LanguageModelReader:
    """A causal language model that is asked what a picture shows of which it is given the rationale."""

    def __init__(self, name, batch_size, device, local_files_only):
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
        model = AutoModelForCausalLM.from_pretrained(name, local_files_only=local_files_only)
        self.model, self.batch_size = model.eval().to(self.device), batch_size

    def guess(self, text, classes):
        """The classes whose names have the greatest mean log-likelihood of their tokens, in nats."""
        prompt = self.tokenizer(PROMPT.format(rationale=text))["input_ids"]
        names = [self.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in classes]
        scores = [
            score
            for start in range(0, len(names), self.batch_size)
            for score in self._log_likelihoods(prompt, names[start : start + self.batch_size])
        ]
        return likeliest(classes, np.array(scores))

    @torch.no_grad()
    def _log_likelihoods(self, prompt, names):
        """The mean log-likelihood of the tokens of each name after the prompt."""
        rows = [torch.tensor(prompt + name) for name in names]
        # Padding stands at the end, where no token that counts sees it.
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        log_probabilities = self.model(input_ids=inputs).logits.float().log_softmax(dim=-1)
        found = log_probabilities[:, :-1].gather(2, inputs[:, 1:, None]).squeeze(2)  # (names, tokens - 1)
        start = len(prompt) - 1
        return [row[start : start + len(name)].mean().item() for row, name in zip(found, names, strict=True)]


def likeliest(classes, scores):
    """Those with the greatest score."""
    return [name for name, score in zip(classes, scores, strict=True) if score >= scores.max() - SLACK]


def mean(values):
    """The mean of the values that are not `None`, or `None`."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None
