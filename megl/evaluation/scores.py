"""All scores of a run: the modules of `metrics/` on its items, calibration and confusion, with intervals.

What a module gives for each item goes into the item's `per_item`, under its path in `metrics.json` joined by dots.
"""

import sys
from collections import Counter
from functools import partial

import numpy as np
import torch
from PIL import Image

from dataset_builders import COLOURS, PLACES
from megl.evaluation.bootstrap import LEVEL, figures, intervals, point_figures
from megl.evaluation.headlines import BLEU_STATISTICS
from megl.evaluation.metrics import load
from megl.tables import evenly_spaced, human_map, read_row
from megl.terminal import progress


BINS = 10
PIXELS_AT_ONCE = 2**20  # of masks that are scored together: a megapixel takes 100 MB as the module stores it
MOST_PIXELS = 2**22  # of a mask as it is scored
FOLDS = 5  # of the human texts that a reader of rationales learns from
ROAD = (10, 30, 50, 70, 90)  # percentages of the pixels that are filled in
MOST_CANDIDATES = 2000  # among which a rationale's picture is looked for: all pairs are compared


def compute_scores(
    items,
    dataset,
    class_names,
    clip=None,
    saliency=None,
    faithfulness=None,
    interventions=None,
    temperature=1.0,
    not_scored=None,
):
    """
    Args:
        items (`list[dict]`): What [`predict`] gives, with the scores of their maps; filled with those of their texts.
        dataset: The split, with the columns of the data set builders.
        class_names (`list[str]`): In the order of their ids.
        clip (`str`, *optional*): Hub id or folder of a CLIP model.
        saliency, faithfulness, interventions (`dict`, *optional*): These parts, of all items.
        temperature (`float`, *optional*, defaults to 1.0): At which the probabilities are.
        not_scored (`str`, *optional*): Why the rationales are not scored, if they are not.

    Returns:
        `dict`: the parts of `metrics.json` that need no resampling.
    """
    references = [[] if not_scored else texts or [] for texts in dataset["textual_explanations"]]
    clip = None if not_scored else clip
    scores = {"saliency": saliency, "faithfulness": faithfulness, "interventions": interventions}
    of_texts = {
        "rationale": partial(text_scores, items, references, class_names),
        "simulatability": partial(simulatability_scores, items, references, class_names),
        "retrieval": partial(retrieval_scores, items, references),
        "self_consistency": partial(self_consistency_scores, items),
    }
    scores |= {name: score() for name, score in progress(of_texts.items(), "texts", unit=" metrics")}
    scores |= clip_scores(items, dataset, references, clip)
    if not_scored:
        scores["rationale"]["not_scored"] = not_scored
    scores["explained_accuracy"] = explained_accuracy(items, references, saliency)
    return {
        **classification_scores(items),
        **scores,
        "calibration": {**calibration(items), "temperature": temperature},
        "confusion": confusion(items, class_names),
        "label_and_map": label_and_map(items),
    }


def classification_scores(items):
    """Accuracy over all items, groups and classes, and macro F1; with how many items there are of each."""
    found = point_figures(items)
    groups = dict(sorted(Counter(item["group"] for item in items if item["group"] is not None).items()))
    by = {
        name: {path[1]: value for path, value in found.items() if path[0] == name}
        for name in ("accuracy_by_group", "accuracy_by_class", "iou_by_group", "iou_by_class")
    }
    return {
        "accuracy": found["accuracy",],
        "accuracy_by_group": by.pop("accuracy_by_group"),
        "worst_group_accuracy": found.get(("worst_group_accuracy",)),
        "macro_f1": found["macro_f1",],
        **by,
        # A group may have the name of the total: `n_by_group` has it all the same.
        "n": {**groups, "accuracy": len(items)},
        "n_by_group": groups,
        "n_by_class": dict(sorted(Counter(item["label"] for item in items).items())),
    }


def saliency_scores(items, places, dataset):
    """
    The metrics of `metrics/saliency` on the items of a batch that have a visual explanation. The masks are read one by
    one.
    """
    given = dataset.select_columns(["id", "image", "visual_explanation"])
    masks = (human_map(read_row(given, place)) for place in places)
    pairs = ((item, mask) for item, mask in zip(items, masks, strict=True) if mask is not None)
    return joined(items, "saliency.", score_maps(pairs))


def score_maps(pairs):
    """
    What `metrics/saliency` gives for items, each with its `saliency`, and their masks: a list of results, as they are
    scored a few at a time, as many as `PIXELS_AT_ONCE` allows; masks of more than `MOST_PIXELS` are averaged down
    first. What is of an item alone goes into its `per_item`.
    """
    parts, waiting, pixels = [], [], 0
    for item, mask in pairs:
        mask = _at_most(MOST_PIXELS, mask)
        if waiting and pixels + mask.size > PIXELS_AT_ONCE:
            parts.append(_score_maps(waiting))
            waiting, pixels = [], 0
        waiting.append((item, mask))
        pixels += mask.size
    if waiting:
        parts.append(_score_maps(waiting))
    return parts


def _at_most(pixels, mask):
    """The mask, or the means of its squares of the least side that leaves no more than `pixels` of them."""
    side = 1
    while -(-mask.shape[0] // side) * -(-mask.shape[1] // side) > pixels:
        side += 1
    return mask if side == 1 else np.asarray(Image.fromarray(mask).reduce(side)).clip(0, 1)


def _score_maps(pairs):
    items, masks = zip(*pairs, strict=True)
    maps = [item["saliency"] for item in items]
    result = load("saliency", keep_in_memory=True).compute(predictions=maps, references=list(masks), per_item=True)
    return keep_per_item(items, "saliency.", result)


def joined(items, prefix, parts):
    """
    What a module gives for all items, from what it gave for parts of them and left in their `per_item` under `prefix`:
    means over the items, and sums of what is counted (`n`, `n_...`). `None` where nothing was scored.
    """
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    results = {}
    for name, value in parts[0].items():
        scored = [item["per_item"][prefix + name] for item in items if prefix + name in item["per_item"]]
        if scored:
            values = [score for score in scored if score is not None]
            results[name] = float(np.mean(values)) if values else None
        elif name.split("_")[0] == "n":
            results[name] = sum(part[name] for part in parts)
        else:  # a setting, such as the threshold
            results[name] = next((part[name] for part in parts if part[name] is not None), value)
    return results


def faithfulness_scores(items, places, pixel_values, model, baseline, batch_size):
    """
    The metrics of `metrics/faithfulness` for a batch's maps of the predicted classes, with the `baseline` that stands
    in for pixels.
    """
    result = load("faithfulness", keep_in_memory=True).compute(
        predictions=[item["saliency"] for item in items],
        images=pixel_values.float().cpu(),
        references=[model.config.label2id[item["prediction"]] for item in items],
        model=lambda images: model(images.to(model.dtype), output_saliency=False).logits,
        baseline=baseline,
        road=ROAD,
        batch_size=batch_size,
        device=model.device,
        first=places[0],
        per_item=True,
    )
    return keep_per_item(items, "faithfulness.", result)


def map_checks(items, dataset, model, processor, count):
    """
    The `sanity_check` of `metrics/faithfulness`, where the vision model's weights are randomised, and its
    `max_sensitivity`, under `sensitivity`, on at most `count` items, evenly spaced over the data set.
    """
    chosen = evenly_spaced(count, len(items))
    pictures = [processor(images=[read_row(dataset, place)["image"]])["pixel_values"] for place in chosen]
    pixel_values = torch.cat(pictures).to(model.device, model.dtype)
    classes = [model.config.label2id[items[place]["prediction"]] for place in chosen]
    target = torch.tensor(classes, device=model.device)

    @torch.no_grad()
    def explain(model, images=pixel_values):
        return model(images, target=target).saliency

    layers = [
        f"vision_model.{name}"
        for name, module in model.vision_model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    metric = load("faithfulness")
    return {
        "sanity_check": metric.sanity_check(model, explain, layers[::-1]),
        "sensitivity": metric.max_sensitivity(partial(explain, model), pixel_values),
    }


def text_scores(items, references, class_names):
    """
    [`rationale_scores`] of the items that have references, `n`, with how many have none; and `no_evidence_...`, what
    the same rationales score that the model writes of the label alone, where the items have one.
    """
    given = [place for place, texts in enumerate(references) if texts]
    items_given, references_given = [items[place] for place in given], [references[place] for place in given]
    result = rationale_scores(items_given, references_given, class_names)
    result["n_without_reference"] = len(items) - len(given)
    for item in items if given else []:
        item.setdefault("bleu_statistics", [0] * BLEU_STATISTICS)  # which add nothing to the corpus
    if not all("no_evidence_rationale" in item for item in items):
        return result
    control = load("rationale").compute(
        predictions=[item["no_evidence_rationale"] for item in items_given],
        references=references_given,
        phrases=_phrases(class_names),
        meteor=False,
        per_item=True,
    )
    names = ("bleu_4", "cider", "kind_accuracy", "colour_accuracy", "place_accuracy")
    result |= {f"no_evidence_{name}": control[name] for name in names}
    of_items = {f"no_evidence_{name}": control["per_item"][name] for name in names[1:]}
    keep_per_item(items_given, "rationale.", {"per_item": of_items})
    return result


def _phrases(class_names):
    """What rationales may name, by kind."""
    return {"kind": class_names, "colour": list(COLOURS), "place": list(PLACES)}


def rationale_scores(items, references, class_names):
    """
    The metrics of `metrics/rationale` over the items that have references, with the share of rationales that name the
    right kind of object, colour and place where the references name one; `shuffled_place_accuracy` is the last with
    another picture's map, where the items have a `shuffled_rationale`.
    """
    metric = load("rationale")
    common = {"references": references, "phrases": _phrases(class_names), "per_item": True}
    result = metric.compute(predictions=[item["rationale"] for item in items], **common)
    if all("shuffled_rationale" in item for item in items):
        control = metric.compute(predictions=[item["shuffled_rationale"] for item in items], meteor=False, **common)
        result["shuffled_place_accuracy"] = control["place_accuracy"]
        result["per_item"]["shuffled_place_accuracy"] = control["per_item"]["place_accuracy"]
    # BLEU and METEOR are those of the corpus, not means over sentences: what can be resampled are BLEU's counts.
    for name in metric.corpus_scores:
        del result["per_item"][name]
    functions = sys.modules[type(metric).__module__]
    for item, several in zip(items, references, strict=True):
        tokens, targets = functions.tokenize(item["rationale"]), [functions.tokenize(text) for text in several or []]
        item["bleu_statistics"] = functions.bleu_statistics(tokens, targets)
    return keep_per_item(items, "rationale.", result)


def simulatability_scores(items, references, class_names):
    """
    The metrics of `metrics/simulatability` by a bag of words that learns from the human texts and true labels of the
    other folds of items, and its accuracies with the class names hidden (`unnamed_accuracy`, …); `None` where no two
    folds have human texts.
    """
    folds = (np.random.default_rng(0).permutation(len(items)) % FOLDS).tolist()
    learned = [(text, place) for place, texts in enumerate(references) for text in texts]
    if len({folds[place] for _, place in learned}) < 2:
        return None
    common = {
        "predictions": [item["rationale"] for item in items],
        "references": [item["prediction"] for item in items],
        "labels": [item["label"] for item in items],
        "train_rationales": [text for text, _ in learned],
        "train_labels": [items[place]["label"] for _, place in learned],
        "folds": folds,
        "train_folds": [folds[place] for _, place in learned],
        "per_item": True,
    }
    metric = load("simulatability")
    result, unnamed = metric.compute(**common), metric.compute(**common, hide=class_names)
    for name, values in unnamed["per_item"].items():
        result[f"unnamed_{name}"] = unnamed[name]
        result["per_item"][f"unnamed_{name}"] = values
    return keep_per_item(items, "simulatability.", result)


def retrieval_scores(items, references):
    """
    The metrics of `metrics/retrieval` by the words of the human texts, over the items that have some, at most
    `MOST_CANDIDATES`, evenly spaced; `None` where none has.
    """
    given = [place for place, texts in enumerate(references) if texts]
    if not given:
        return None
    chosen = [given[index] for index in evenly_spaced(MOST_CANDIDATES, len(given))]
    result = load("retrieval").compute(
        predictions=[items[place]["rationale"] for place in chosen],
        candidates=[references[place] for place in chosen],
        similarity=load("rationale").similarities,
        per_item=True,
    )
    del result["per_item"]["rank"]  # its median is no mean over items
    return keep_per_item([items[place] for place in chosen], "retrieval.", result)


def self_consistency_scores(items):
    """
    The metrics of `metrics/self_consistency`: of another picture's map, and of another class's background where there
    are such rationales; `None` where there are neither.
    """
    columns = {"swapped_map": "shuffled_rationale", "swapped_background": "other_background_rationale"}
    given = {column: [item.get(name) for item in items] for column, name in columns.items()}
    given = {column: texts for column, texts in given.items() if any(text is not None for text in texts)}
    if not given:
        return None
    result = load("self_consistency").compute(
        predictions=[item["rationale"] for item in items],
        correct=[item["prediction"] == item["label"] for item in items],
        per_item=True,
        **given,
    )
    return keep_per_item(items, "self_consistency.", result)


def clip_scores(items, dataset, references, clip):
    """What `metrics/clip_score` and `metrics/grounding` give; `None` without a CLIP model."""
    names = ("clip_score", "ref_clip_score", "n_truncated")
    if clip is None:
        return {**dict.fromkeys(names[:2]), "clip_n_truncated": None, "grounding": None}
    clip_score, grounding = load("clip_score"), load("grounding")
    for place, (item, texts) in enumerate(zip(items, references, strict=True)):
        # Without its format, in which it would be compressed anew. The modules keep the pictures on disk.
        picture = read_row(dataset, place)["image"].convert("RGB")
        given = {"predictions": [item["rationale"]], "images": [picture]}
        clip_score.add_batch(references=[texts], **given)
        grounding.add_batch(maps=[item["saliency"]], **given)
    options = {"model_name_or_path": clip, "per_item": True}
    result = keep_per_item(items, "", clip_score.compute(**options))
    score, ref_score, truncated = (result.get(name) for name in names)
    return {
        "clip_score": score,
        "ref_clip_score": ref_score,
        "clip_n_truncated": truncated,
        "grounding": keep_per_item(items, "grounding.", grounding.compute(**options)),
    }


def explained_accuracy(items, references, saliency):
    """The metrics of `metrics/explained_accuracy`, for each score of the rationales and for the IoU of the maps."""
    metric = load("explained_accuracy")
    labels = {
        "predictions": [item["prediction"] for item in items],
        "references": [item["label"] for item in items],
    }
    result = metric.compute(
        **labels,
        explanations=[item["rationale"] for item in items],
        explanation_references=references,
        explanation_metric=load("rationale"),
    )
    for kind in ("", "_filtered"):
        result[f"n_without_reference{kind}"] = result.pop(f"n_undefined{kind}")
    if saliency is None or saliency["iou"] is None:
        return result
    ious = [item["per_item"].get("saliency.iou") for item in items]
    of_maps = metric.compute(**labels, explanation_scores=ious, score_name="iou")
    for name in ("n_undefined", "n_undefined_filtered"):
        of_maps[f"iou_{name}"] = of_maps.pop(name)
    return {**result, **of_maps}


def calibration(items):
    """[`expected_calibration_error`] of a run's items."""
    scores = np.array([item["score"] for item in items])
    right = np.array([item["prediction"] == item["label"] for item in items])
    return expected_calibration_error(scores, right)


def expected_calibration_error(scores, right):
    """
    The expected calibration error (Guo et al. 2017, equation 5) over `BINS` bins of equal width of the probability of
    the predicted class, with the bins of the reliability curve.

    Args:
        scores, right (`np.ndarray` of shape `(images,)`): Probability of the predicted class, and whether that is
            right.
    """
    # A bin holds its upper end and not its lower one, but for the first, which holds both.
    places = (np.ceil(scores * BINS) - 1).clip(0, BINS - 1).astype(int)
    counts = np.bincount(places, minlength=BINS)
    sums = [np.bincount(places, weights=values, minlength=BINS) for values in (scores, right)]
    bins = []
    for place, count in enumerate(counts.tolist()):
        confidence, accuracy = (float(total[place]) / count if count else None for total in sums)
        ends = {"low": place / BINS, "high": (place + 1) / BINS}
        bins.append({**ends, "n": count, "confidence": confidence, "accuracy": accuracy})
    return {"ece": float(np.abs(sums[0] - sums[1]).sum() / len(scores)), "bins": bins}


def confusion(items, class_names):
    """How often an item of each class (row) was taken for each class (column)."""
    places = {name: place for place, name in enumerate(class_names)}
    counts = np.zeros((len(class_names), len(class_names)), dtype=int)
    np.add.at(counts, tuple([places[item[key]] for item in items] for key in ("label", "prediction")), 1)
    return {"classes": class_names, "counts": counts.tolist()}


def label_and_map(items):
    """How many items have a right or wrong label and a map that peaks inside the human map or not; `None` without."""
    pairs = Counter(
        (item["prediction"] == item["label"], item["per_item"]["saliency.pointing_game"] == 1)
        for item in items
        if item["per_item"].get("saliency.pointing_game") is not None
    )
    if not pairs:
        return None
    words = {True: "right", False: "wrong"}
    return {f"label_{words[a]}_map_{words[b]}": pairs[a, b] for a in (True, False) for b in (True, False)}


def with_intervals(metrics, items, resamples, seed, figures=figures):
    """
    The metrics, with the intervals of those that can be resampled, which `figures` gives, under `intervals`, in the
    same structure.
    """
    nested = {}
    for path, ends in intervals(items, resamples, seed, figures).items():
        part = nested
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = ends
    return {**metrics, "bootstrap": {"level": LEVEL, "resamples": resamples, "seed": seed}, "intervals": nested}


def keep_per_item(items, prefix, result):
    """Move what a module gives for each item to the items; the rest is returned."""
    for name, values in result.pop("per_item").items():
        for item, value in zip(items, values, strict=True):
            item["per_item"][prefix + name] = value
    return result
