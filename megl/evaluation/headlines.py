"""What tables show of `metrics.json`: which figures, their names, intervals and counts."""

BLEU_STATISTICS = 10  # of an item: lengths, and hits and tries of each order
# What tables show, of what there is: path in `metrics.json` to its name in words.
HEADLINES = {
    ("accuracy",): "accuracy",
    ("accuracy_by_group",): "accuracy, {}",
    ("worst_group_accuracy",): "worst-group accuracy",
    ("macro_f1",): "macro F1",
    ("mean_average_precision",): "mean average precision",
    ("f1_micro",): "micro F1 of labels",
    ("f1_macro",): "macro F1 of labels",
    ("calibration", "ece"): "expected calibration error",
    ("saliency", "iou"): "map IoU",
    ("saliency", "precision"): "map precision",
    ("saliency", "recall"): "map recall",
    ("saliency", "f1"): "map F1",
    ("saliency", "energy"): "map energy inside",
    ("saliency", "pointing_game"): "map pointing game",
    ("saliency", "relevance_rank_accuracy"): "map relevance rank accuracy",
    ("saliency", "mae"): "map mean absolute error",
    ("saliency", "nss"): "map NSS",
    ("saliency", "cc"): "map CC",
    ("saliency", "kl"): "map KL",
    ("saliency", "auc"): "map AUC",
    ("saliency", "sparseness"): "map sparseness",
    ("faithfulness", "deletion"): "map deletion AUC",
    ("faithfulness", "random_deletion"): "  deletion, shuffled map",
    ("faithfulness", "insertion"): "map insertion AUC",
    ("faithfulness", "random_insertion"): "  insertion, shuffled map",
    ("faithfulness", "comprehensiveness"): "map comprehensiveness",
    ("faithfulness", "random_comprehensiveness"): "  comprehensiveness, shuffled map",
    ("faithfulness", "sufficiency"): "map sufficiency",
    ("faithfulness", "random_sufficiency"): "  sufficiency, shuffled map",
    ("faithfulness", "road"): "label kept without pixels (ROAD)",
    ("faithfulness", "random_road"): "  ROAD, shuffled map",
    ("faithfulness", "sanity_check", "spearman"): "map after random weights, Spearman",
    ("faithfulness", "sensitivity", "max_sensitivity"): "map changed by noise, at most",
    ("interventions", "accuracy"): "accuracy, with an object",
    ("interventions", "same_accuracy"): "accuracy, same-class background",
    ("interventions", "other_accuracy"): "accuracy, other-class background",
    ("interventions", "object_alone_accuracy"): "accuracy, object alone",
    ("interventions", "background_alone_accuracy"): "accuracy, background alone",
    ("interventions", "background_gap"): "background gap",
    ("interventions", "noisy_foreground_accuracy"): "accuracy, noise on object",
    ("interventions", "noisy_background_accuracy"): "accuracy, noise on background",
    ("interventions", "relative_foreground_sensitivity"): "relative foreground sensitivity",
    ("interventions", "same_agreement"): "label kept, same-class background",
    ("interventions", "other_agreement"): "label kept, other-class background",
    ("interventions", "object_alone_agreement"): "label kept, object alone",
    ("interventions", "background_alone_agreement"): "label kept, background alone",
    ("interventions", "noisy_foreground_agreement"): "label kept, noise on object",
    ("interventions", "noisy_background_agreement"): "label kept, noise on background",
    ("rationale", "bleu_4"): "rationale BLEU-4",
    ("rationale", "meteor"): "rationale METEOR",
    ("rationale", "rouge_l"): "rationale ROUGE-L",
    ("rationale", "cider"): "rationale CIDEr",
    ("rationale", "no_evidence_bleu_4"): "  BLEU-4, of the label alone",
    ("rationale", "no_evidence_cider"): "  CIDEr, of the label alone",
    ("rationale", "kind_accuracy"): "rationale names the kind",
    ("rationale", "no_evidence_kind_accuracy"): "  of the label alone",
    ("rationale", "colour_accuracy"): "rationale names the colour",
    ("rationale", "no_evidence_colour_accuracy"): "  of the label alone",
    ("rationale", "place_accuracy"): "rationale names the place",
    ("rationale", "shuffled_place_accuracy"): "  with another picture's map",
    ("rationale", "no_evidence_place_accuracy"): "  of the label alone",
    ("simulatability", "accuracy"): "label guessed from the rationale",
    ("simulatability", "unnamed_accuracy"): "  class names hidden",
    ("simulatability", "chance"): "  the commonest label",
    ("simulatability", "accuracy_wrong"): "wrong label guessed from it",
    ("simulatability", "unnamed_accuracy_wrong"): "  class names hidden",
    ("simulatability", "chance_wrong"): "  the commonest wrong label",
    ("retrieval", "recall_at_1"): "picture found by the rationale",
    ("retrieval", "chance_recall_at_1"): "  at random",
    ("retrieval", "recall_at_5"): "picture found in the first five",
    ("retrieval", "chance_recall_at_5"): "  at random",
    ("self_consistency", "map_sensitivity"): "text changed by another map",
    ("self_consistency", "map_unchanged"): "  the same to the letter",
    ("self_consistency", "background_stability"): "text kept, other-class background",
    ("self_consistency", "background_unchanged"): "  the same to the letter",
    ("explained_accuracy", "iou_overall"): "accuracy x IoU where right",
    ("explained_accuracy", "cider_overall"): "accuracy x CIDEr where right",
    ("clip_score",): "CLIPScore",
    ("ref_clip_score",): "RefCLIPScore",
    ("grounding", "grounding"): "CLIP grounding",
    ("grounding", "shuffled_grounding"): "  with another's rationale",
}


def headlines(metrics):
    """`(path, name, value)` of the figures that tables show."""
    for path, name in HEADLINES.items():
        value = at(metrics, path)
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for part, number in parts:
            if number is not None:
                yield path if part is None else (*path, part), name.format(part), number


def count_of(metrics, path):
    """How many images the figure at a path is of; of several labels an image, how many maps."""
    part, name = path[0], path[-1]
    if part == "accuracy_by_group":
        return at(metrics, ("n_by_group", name))
    if part == "rationale":
        name = name.removeprefix("shuffled_").removeprefix("no_evidence_")
        return metrics[part][f"{name.removesuffix('_accuracy')}_n" if name.endswith("_accuracy") else "n"]
    if part == "interventions":
        name = name.removesuffix("_accuracy").removesuffix("_agreement")
        return metrics[part]["n" if name == "accuracy" else f"{name}_n"]
    if part == "simulatability":
        return metrics[part]["n_wrong" if name.endswith("_wrong") else "n"]
    if part == "self_consistency":
        return metrics[part][f"n_{name.partition('_')[0]}"]
    if part == "ref_clip_score":
        return metrics["rationale"]["n"]
    if part in ("saliency", "faithfulness", "grounding", "retrieval"):
        return (metrics[part] if len(path) == 2 else at(metrics, path[:-1]))["n"]
    return metrics["n"]["accuracy"] if "accuracy" in metrics else metrics["n"]


def at(metrics, path):
    """The value at a path of nested dictionaries, or `None` where there is none."""
    for name in path:
        if metrics is None:
            return None
        metrics = metrics.get(name)
    return metrics


def interval_head(metrics):
    return f"{metrics['bootstrap']['level']:.0%} interval"


def interval_text(ends, form="{:.3f} to {:.3f}"):
    return "" if ends is None else form.format(*ends)


def metrics_table(metrics):
    """The headline figures, a line each, with their intervals and how many images they are of."""
    lines = [f"{'':<34}{'value':>8}   {interval_head(metrics):<18}{'images':>8}"]
    for path, name, value in headlines(metrics):
        interval = interval_text(at(metrics["intervals"], path))
        lines.append(f"{name:<34}{value:>8.3f}   {interval:<18}{count_of(metrics, path):>8,}")
    return "\n".join(lines)
