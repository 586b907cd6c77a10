"""BLEU, ROUGE-L, METEOR and CIDEr of rationales, as the COCO caption evaluation defines them."""

import math
import re
import shutil
import subprocess
import unicodedata
from collections import Counter, defaultdict
from functools import partial
from importlib import import_module
from pathlib import Path

import datasets
import evaluate
import numpy as np

from .ptb_tokenizer import tokenize


_DESCRIPTION = """
Scores rationales (short texts) against several human references each: BLEU-1 to BLEU-4, ROUGE-L, METEOR and CIDEr as
the COCO caption evaluation (pycocoevalcap) defines them, including its Penn Treebank tokenisation. All but METEOR are
plain Python: no Java, no downloads. METEOR is a Java program that pycocoevalcap brings; where that or Java is missing,
the results say so. On request also SPICE, BERTScore, and how often a rationale names the right phrase of a given list,
such as the right place.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): one rationale per item; an empty one scores 0.
    references (`list` of `list` of `str`): references of each item. An item without any, `[]` or `None`, is left out
        of all scores.
    phrases (`dict` of `str` to `list` of `str`, *optional*): name to phrases. Over the items whose references contain
        a phrase of the list, the share whose prediction's first phrase is one that its references contain. Whole words
        only, without regard to case and punctuation; symbols of the phrases count ("C++", "=", emoji). Where phrases
        overlap the longer wins ("upper centre" before "centre").
    meteor (`bool`, defaults to `True`): compute METEOR, which takes seconds to start and more than 1 GB of memory.
    spice (`bool`, defaults to `False`): also compute SPICE, which takes minutes.
    bert_score (`str`, *optional*): folder or Hub id of the model whose embeddings BERTScore compares, such as
        `roberta-large`. Without it there is no BERTScore, and nothing is downloaded.
    bert_score_layers (`int`, *optional*): with `bert_score`: the layer whose embeddings are compared. Needed where
        the package bert-score knows none for the model, as for a folder.
    per_item (`bool`, defaults to `False`): also return the scores of each item.
Returns:
    `bleu_1`, `bleu_2`, `bleu_3`, `bleu_4`, `rouge_l`, `meteor` (in [0, 1]) and `cider` (in [0, 10]): higher is better.
    BLEU and METEOR are those of the corpus, the others are means over the items. `None` where `n` is 0.
    `spice` (in [0, 1]), `bert_score` (F1, in [-1, 1]), when asked for: means over the items.
    `n`: the number of items scored. `n_without_reference`: of those left out.
    `absent`: which of `meteor`, `spice` and `bert_score` were not computed, with the reason. A score that was asked
        for and lacks its parts is `None`.
    `<name>_accuracy` (in [0, 1], higher is better; `None` where no item counts) and `<name>_n` (the number of items
    that count) for each name in `phrases`.
    `per_item`: with `per_item=True`, a dict of lists; `<name>_accuracy` is 1, 0, or `None` where the item does not
    count. A score whose parts are missing has `None` in place of its list.
Raises:
    `ValueError`: a text that is `None`, an item without references, a phrase without words, or a model of BERTScore
        without `bert_score_layers`.
Examples:
    >>> import evaluate
    >>> rationale = evaluate.load("metrics/rationale")
    >>> predictions = ["An owl in the upper left.", "A dog runs."]
    >>> references = [["An owl in the upper left", "There is an owl."], ["A cat sleeps in the centre."]]
    >>> results = rationale.compute(predictions=predictions, references=references, per_item=True)
    >>> {name: round(results[name], 4) for name in ["bleu_1", "bleu_4", "rouge_l", "cider"]}
    {'bleu_1': 0.5573, 'bleu_4': 0.585, 'rouge_l': 0.6048, 'cider': 3.2847}
    >>> [round(score, 4) for score in results["per_item"]["rouge_l"]]
    [1.0, 0.2096]

    The place that a rationale names:

    >>> places = {"place": ["left", "centre", "upper left", "upper centre"]}
    >>> results = rationale.compute(predictions=predictions, references=references, phrases=places)
    >>> results["place_accuracy"], results["place_n"]
    (0.5, 2)

    What was not computed:

    >>> results = rationale.compute(predictions=predictions, references=references, meteor=False)
    >>> results["meteor"], results["absent"]["meteor"]
    (None, 'not asked for')
"""

_CITATION = """
@article{chen2015microsoft,
    title={Microsoft {COCO} Captions: Data Collection and Evaluation Server},
    author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh
        and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
    journal={arXiv:1504.00325},
    year={2015}
}
@inproceedings{papineni2002bleu,
    title={{BLEU}: a Method for Automatic Evaluation of Machine Translation},
    author={Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
    booktitle={ACL},
    year={2002}
}
@inproceedings{lin2004rouge,
    title={{ROUGE}: A Package for Automatic Evaluation of Summaries},
    author={Lin, Chin-Yew},
    booktitle={Text Summarization Branches Out},
    year={2004}
}
@inproceedings{vedantam2015cider,
    title={{CIDEr}: Consensus-based Image Description Evaluation},
    author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
    booktitle={CVPR},
    year={2015}
}
@inproceedings{denkowski2014meteor,
    title={{METEOR} Universal: Language Specific Translation Evaluation for Any Target Language},
    author={Denkowski, Michael and Lavie, Alon},
    booktitle={Workshop on Statistical Machine Translation},
    year={2014}
}
@inproceedings{anderson2016spice,
    title={{SPICE}: Semantic Propositional Image Caption Evaluation},
    author={Anderson, Peter and Fernando, Basura and Johnson, Mark and Gould, Stephen},
    booktitle={ECCV},
    year={2016}
}
@inproceedings{zhang2020bertscore,
    title={{BERTScore}: Evaluating Text Generation with {BERT}},
    author={Zhang, Tianyi and Kishore, Varsha and Wu, Felix and Weinberger, Kilian Q. and Artzi, Yoav},
    booktitle={ICLR},
    year={2020}
}
"""

MAX_NGRAM = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
SCORES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "cider"]
# Joiners, variation selectors and soft hyphens: with and without them a word or an emoji is the same.
INVISIBLE = re.compile("[\u00ad\u200b-\u200d\u2060\ufe00-\ufe0f\ufeff]")
# What the program of SPICE looks for, and pycocoevalcap does not bring.
SPICE_FILES = ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Rationale(evaluate.Metric):
    # The scores of all texts together, which are not the means of their values for each item.
    corpus_scores = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
            reference_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def similarities(self, predictions, references):
        """
        How alike each text is to the references of each item: the cosine of their tf-idf weights, with the document
        frequencies of all these references, in the mean over the references and over n-grams of orders 1 to 4. This is
        CIDEr as Vedantam et al. 2015 define it, without the clipping, the penalty and the factor 10 of CIDEr-D.

        Args:
            predictions (`list` of `str`): texts, as many as you like.
            references (`list` of `list` of `str`): references of each item; one without any is like nothing, 0.

        Returns:
            `np.ndarray` of shape `(texts, items)`, values in [0, 1].

        Raises:
            `ValueError`: a text that is `None`.
        """
        check_texts(predictions, references)
        hypotheses = [tokenize(text) for text in predictions]
        return similarity_matrix(hypotheses, [[tokenize(text) for text in texts or []] for texts in references])

    def _compute(
        self,
        predictions,
        references,
        phrases=None,
        meteor=True,
        spice=False,
        bert_score=None,
        bert_score_layers=None,
        per_item=False,
    ):
        check_texts(predictions, references)
        finders = {name: phrase_finder(name, texts) for name, texts in (phrases or {}).items()}
        count = len(predictions)
        scored = [index for index, texts in enumerate(references) if texts]
        predictions, references = [predictions[i] for i in scored], [references[i] for i in scored]
        hypotheses = [tokenize(text) for text in predictions]
        targets = [[tokenize(text) for text in texts] for texts in references]

        results, items = own_scores(hypotheses, targets)
        results["n"], results["n_without_reference"] = len(scored), count - len(scored)
        programs = {
            "meteor": meteor and partial(meteor_scores, hypotheses, targets),
            "spice": spice and partial(spice_scores, hypotheses, targets),
            "bert_score": bert_score and partial(bert_scores, predictions, references, bert_score, bert_score_layers),
        }
        found, of_items, results["absent"] = run_programs(programs, len(scored))
        results.update(found)
        items.update(of_items)
        for name, finder in finders.items():
            hits = [phrase_hit(finder, text, texts) for text, texts in zip(predictions, references, strict=True)]
            counted = [hit for hit in hits if hit is not None]
            items[f"{name}_accuracy"] = hits
            results[f"{name}_accuracy"] = mean(counted) if counted else None
            results[f"{name}_n"] = len(counted)
        if per_item:
            results["per_item"] = {name: spread(values, scored, count) for name, values in items.items()}
        return results


def check_texts(predictions, references):
    for index, prediction in enumerate(predictions):
        if prediction is None:
            raise ValueError(f"`predictions[{index}]` must be a string, got None; an empty rationale is ''.")
    for index, texts in enumerate(references):
        if texts and None in texts:
            raise ValueError(f"`references[{index}]` must be a list of strings, got {texts}.")


def spread(values, places, count):
    """The values at their places in a list of `count`, and `None` elsewhere; `None` for no values."""
    if values is None:
        return None
    by_place = dict(zip(places, values, strict=True))
    return [by_place.get(place) for place in range(count)]


def own_scores(hypotheses, targets):
    """BLEU, ROUGE-L and CIDEr of lists of tokens: those of all, and by name those of each item."""
    statistics = [bleu_statistics(hypothesis, refs) for hypothesis, refs in zip(hypotheses, targets, strict=True)]
    items = {f"bleu_{n}": [] for n in range(1, MAX_NGRAM + 1)}
    for item in statistics:
        for name, score in zip(items, bleu(item), strict=True):
            items[name].append(score)
    items["rouge_l"] = [rouge_l(hypothesis, refs) for hypothesis, refs in zip(hypotheses, targets, strict=True)]
    items["cider"] = cider(hypotheses, targets)

    results = dict.fromkeys(SCORES)
    if hypotheses:
        totals = [sum(column) for column in zip(*statistics, strict=True)]
        results.update(zip(SCORES, bleu(totals), strict=False))
        results.update({name: mean(items[name]) for name in ("rouge_l", "cider")})
    return results, items


def mean(values):
    return sum(values) / len(values)


def ngram_counts(tokens, n):
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def bleu_statistics(hypothesis, references):
    """
    Length, closest reference length, then for each n the number of matches and of n-grams. Items can be summed: those
    without references are all 0.
    """
    if not references:
        return [0] * (2 + 2 * MAX_NGRAM)
    closest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(hypothesis)), n))
    statistics = [len(hypothesis), closest]
    for n in range(1, MAX_NGRAM + 1):
        allowed = Counter()
        for reference in references:
            allowed |= ngram_counts(reference, n)
        matches = ngram_counts(hypothesis, n) & allowed
        statistics += [sum(matches.values()), max(0, len(hypothesis) - n + 1)]
    return statistics


def bleu(statistics):
    """BLEU-1 to BLEU-4. The small constants are the reference's: they keep every step finite."""
    length, closest, *counts = statistics
    if counts[0] == 0:  # no word in common; the constants alone would give some 1e-16
        return [0.0] * MAX_NGRAM
    ratio = (length + 1e-15) / (closest + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores = []
    product = 1.0
    for n in range(1, MAX_NGRAM + 1):
        matches, total = counts[2 * n - 2 : 2 * n]
        product *= (matches + 1e-15) / (total + 1e-9)
        scores.append(product ** (1 / n) * brevity)
    return scores


def rouge_l(hypothesis, references):
    """F-measure of the best precision and the best recall that any reference gives."""
    if not hypothesis:
        return 0.0
    common = [longest_common_subsequence(hypothesis, reference) for reference in references]
    precision = max(common) / len(hypothesis)
    recall = max(c / len(reference) if reference else 0 for c, reference in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def longest_common_subsequence(first, second):
    lengths = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if token == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]


def cider(hypotheses, references):
    """CIDEr of each item; the document frequencies are those of all references given."""
    targets = [[ngrams_of_all_orders(tokens) for tokens in texts] for texts in references]
    idf, unseen = inverse_frequencies(targets)
    scores = []
    for hypothesis, texts in zip(hypotheses, targets, strict=True):
        vector = tf_idf(ngrams_of_all_orders(hypothesis), idf, unseen)
        scores.append(10 * mean([cider_similarity(vector, tf_idf(counts, idf, unseen)) for counts in texts]))
    return scores


def inverse_frequencies(targets):
    """N-gram to the logarithm of all items over those that have it in a reference, and that of n-grams none has."""
    frequencies = Counter()
    for texts in targets:
        frequencies.update(set().union(*texts))
    unseen = math.log(len(targets)) if targets else 0.0
    return {ngram: unseen - math.log(frequency) for ngram, frequency in frequencies.items()}, unseen


def similarity_matrix(hypotheses, references):
    """What [`Rationale.similarities`] gives, of lists of tokens."""
    targets = [[ngrams_of_all_orders(tokens) for tokens in texts] for texts in references]
    idf, unseen = inverse_frequencies(targets)
    postings = defaultdict(dict)  # n-gram to item to its mean weight there
    for place, texts in enumerate(targets):
        for counts in texts:
            for ngram, weight in directions(counts, idf, unseen):
                postings[ngram][place] = postings[ngram].get(place, 0.0) + weight / len(texts)
    columns = {ngram: (list(of), np.array(list(of.values()))) for ngram, of in postings.items()}
    found = np.zeros((len(hypotheses), len(references)))
    for row, tokens in zip(found, hypotheses, strict=True):
        for ngram, weight in directions(ngrams_of_all_orders(tokens), idf, unseen):
            if ngram in columns:
                places, weights = columns[ngram]
                row[places] += weight * weights
    return found / MAX_NGRAM


def directions(counts, idf, unseen):
    """N-grams and their tf-idf weights over the norm of all of their order; without those that every item has."""
    orders, norms, _ = tf_idf(counts, idf, unseen)
    for weights, norm in zip(orders, norms, strict=True):
        yield from ((ngram, weight / norm) for ngram, weight in weights.items() if weight)


def ngrams_of_all_orders(tokens):
    """Counts of the n-grams of orders 1 to 4."""
    counts = {}
    for n in range(1, MAX_NGRAM + 1):
        counts.update(ngram_counts(tokens, n))
    return counts


def tf_idf(counts, idf, unseen):
    """One dict of n-gram weights for each order, their norms, and the number of bigrams, which is CIDEr's length."""
    weights = [{} for _ in range(MAX_NGRAM)]
    length = 0
    for ngram, count in counts.items():
        weights[len(ngram) - 1][ngram] = count * idf.get(ngram, unseen)
        length += count * (len(ngram) == 2)
    norms = [math.sqrt(sum(weight**2 for weight in order.values())) for order in weights]
    return weights, norms, length


def cider_similarity(hypothesis, reference):
    """Mean over the orders of the cosine with clipped weights, times a Gaussian penalty on unequal lengths."""
    weights, norms, length = hypothesis
    other_weights, other_norms, other_length = reference
    cosines = []
    for order in range(MAX_NGRAM):
        others = other_weights[order]
        pairs = [(weight, others[ngram]) for ngram, weight in weights[order].items() if ngram in others]
        product = sum(min(weight, other) * other for weight, other in pairs)
        scale = norms[order] * other_norms[order]
        cosines.append(product / scale if scale else 0.0)
    return mean(cosines) * math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))


class MissingPart(Exception):
    """Why a score cannot be computed here."""


def run_programs(programs, count):
    """
    Runs what computes a score of the corpus and of each item, or is false for a score that nobody asked for.

    Returns:
        name to score, name to scores of the items, and name to the reason why there is none.
    """
    results, items, absent = {}, {}, {}
    for name, program in programs.items():
        if not program:
            absent[name] = "not asked for"
            continue
        try:
            results[name], items[name] = program() if count else (None, [])
        except MissingPart as reason:
            results[name], items[name], absent[name] = None, None, str(reason)
    return results, items, absent


def java_program(name, module):
    """The module of pycocoevalcap that starts a Java program."""
    try:
        found = import_module(module)
    except ImportError:
        raise MissingPart(f"{name} needs the package pycocoevalcap: `pip install pycocoevalcap`") from None
    if shutil.which("java") is None:
        raise MissingPart(f"{name} needs Java: there is no `java` on the PATH")
    return found


def coco_form(hypotheses, references):
    """References and hypotheses as pycocoevalcap takes them: by item, a list of texts of single-spaced tokens."""
    joined = [[" ".join(tokens) for tokens in texts] for texts in references]
    return dict(enumerate(joined)), {index: [" ".join(tokens)] for index, tokens in enumerate(hypotheses)}


def meteor_scores(hypotheses, references):
    """METEOR 1.5 (Denkowski and Lavie 2014) of the corpus and of each item."""
    program = java_program("METEOR", "pycocoevalcap.meteor.meteor").Meteor()
    try:
        return program.compute_score(*coco_form(hypotheses, references))
    except (OSError, ValueError) as error:  # Java ended, so a pipe broke or an answer is empty
        program.lock.release()  # pycocoevalcap does not after an error, and then waits for it for ever
        program.meteor_p.kill()
        said = program.meteor_p.communicate()[1].decode(errors="replace").strip() or str(error)
        raise MissingPart(f"METEOR needs a Java that runs its program: {said.splitlines()[0]}") from None


def spice_scores(hypotheses, references):
    """SPICE (Anderson et al. 2016) of the corpus and of each item."""
    module = java_program("SPICE", "pycocoevalcap.spice.spice")
    for name in SPICE_FILES:
        if not (Path(module.__file__).parent / "lib" / name).is_file():
            raise MissingPart(
                f"SPICE needs {name} in its folder `lib`: pycocoevalcap.spice.get_stanford_models downloads it"
            )
    try:
        _, items = module.Spice().compute_score(*coco_form(hypotheses, references))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        status = getattr(error, "returncode", error)
        raise MissingPart(f"SPICE needs a Java that runs its program, from 8 to 15, and 8 GB: {status}") from None
    scores = [item["All"]["f"] for item in items]
    scores = [0.0 if math.isnan(score) else float(score) for score in scores]
    return mean(scores), scores


def bert_scores(predictions, references, model, layers):
    """BERTScore (Zhang et al. 2020), the F1 of the best reference, without idf weights and rescaling."""
    try:
        package = import_module("bert_score")
    except ImportError:
        raise MissingPart("BERTScore needs the package bert-score: `pip install bert-score`") from None
    if layers is None and model not in package.utils.model2layers:
        raise ValueError(f"`bert_score_layers` must say which layer of {model!r} to compare, got None.")
    texts = [[text for text in several if text.strip()] for several in references]
    # bert-score fails for empty texts: they have no words that could be alike.
    chosen = [index for index, text in enumerate(predictions) if text.strip() and texts[index]]
    scores = [0.0] * len(predictions)
    if chosen:
        scorer = package.BERTScorer(model_type=model, num_layers=layers)
        *_, f1 = scorer.score([predictions[index] for index in chosen], [texts[index] for index in chosen])
        for index, score in zip(chosen, f1.tolist(), strict=True):
            scores[index] = score
    return mean(scores), scores


def phrase_finder(name, phrases):
    """A [`PhraseFinder`], or the error that names the list of phrases."""
    finder = PhraseFinder(phrases)
    if not finder.phrases or not all(finder.phrases):
        raise ValueError(
            f"`phrases[{name!r}]` must be a list of one or more phrases with visible characters, got {phrases}."
        )
    return finder


class PhraseFinder:
    """
    Finds phrases in texts: whole words in any script, without regard to case and punctuation, the longest first.

    Symbols that a phrase has ("C++", "=", an emoji) count, and so does the punctuation of a phrase of nothing else
    ("?"). A phrase is not found where its last symbol is repeated, or its first: "+" is not in "C++".
    """

    def __init__(self, phrases):
        self.symbols = {character for phrase in phrases for character in symbols_of(phrase)}
        self.phrases = [words(phrase, self.symbols) for phrase in phrases]
        longest_first = sorted(self.phrases, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(self._whole, longest_first)))

    def find(self, text):
        """The phrases in the text, in its order, as [`words`] writes them."""
        return self.pattern.findall(words(text, self.symbols))

    def _whole(self, phrase):
        """The pattern of a phrase that does not go on at its ends."""
        of_word = rf"[^\s{''.join(map(re.escape, sorted(self.symbols)))}]"
        before, after = (re.escape(end) if end in self.symbols else of_word for end in (phrase[:1], phrase[-1:]))
        return f"(?<!{before}){re.escape(phrase)}(?!{after})"


def words(text, symbols=frozenset()):
    """The words and the given symbols of a text, single-spaced, without regard to case (Unicode's case folding)."""
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text.casefold()))
    return " ".join("".join(c if is_of_word(c) or c in symbols else " " for c in text).split())


def is_of_word(character):
    """Whether it is a letter, a digit or a combining mark, as accents and vowel signs are."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


def symbols_of(phrase):
    """The characters of a phrase that count beside those of words."""
    others = [c for c in INVISIBLE.sub("", phrase) if not is_of_word(c) and not c.isspace()]
    if not words(phrase):
        return others
    return [c for c in others if c == "#" or unicodedata.category(c).startswith("S")]


def phrase_hit(finder, prediction, references):
    """1 or 0, or `None` where no reference has a phrase."""
    wanted = {phrase for text in references for phrase in finder.find(text)}
    if not wanted:
        return None
    found = finder.find(prediction)
    return int(bool(found) and found[0] in wanted)
