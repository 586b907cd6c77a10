"""Evaluates a MEGL model on a split: label, saliency map and rationale against what humans gave.

```
python scripts/evaluate_megl.py --model megl-trained --dataset object_me --split test --output evaluation
```

Writes `metrics.json`, `predictions.jsonl` (one line an image), `index.html` (a page of pictures) and `examples.png` (a
few of them), fills the model's card (`README.md` in `--model`) from `model_card.md`, and prints a table. With `--clip`
(a Hub id or folder of a CLIP model) it also computes CLIPScore.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import evaluate
import numpy as np
import torch
from datasets import load_dataset
from tqdm import tqdm

from card import write_card
from dataset_builders import PLACES
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import check_labels
from output_folder import new_folder
from page import mask_array, write_page, write_sheet


METRICS = Path(__file__).resolve().parent.parent / "metrics"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or folder of a MEGL model")
    parser.add_argument("--dataset", required=True, help="Hub id or folder of a data set")
    parser.add_argument("--split", default="test", help="split to evaluate on")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--clip", help="CLIP model for CLIPScore; none is downloaded unless asked for")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--examples", type=int, default=24, help="pictures on the page, evenly spaced over the split")
    parser.add_argument("--trust_remote_code", action="store_true", help="let the vision model run its own code")
    return parser.parse_args()


@torch.no_grad()
def predict(model, processor, dataset, batch_size):
    """
    One dictionary for each item: `label` and `prediction` (class names), `score`, `saliency` (the map at its own
    resolution), `rationale`, and `shuffled_rationale`: what the model writes of the same picture when it is given
    another picture's map, the control for whether the rationale follows the map.
    """
    predictions, names = [], model.config.id2label
    for start in tqdm(range(0, len(dataset), batch_size), desc="predict"):
        rows = dataset[start : start + batch_size]
        pixel_values = processor(images=rows["image"])["pixel_values"].to(model.device)
        output = model(pixel_values)
        scores, labels = output.logits.softmax(dim=-1).max(dim=-1)
        prompts = processor.prompts([names[label] for label in labels.tolist()]).to(model.device)
        shuffled = model.ground(pixel_values, output.saliency.roll(1, dims=0))
        texts, shuffled_texts = (
            processor.batch_decode_rationales(model.generate_rationales(**prompts, evidence_tokens=evidence))
            for evidence in (output.evidence_tokens, shuffled)
        )
        for index, label in enumerate(rows["label"]):
            predictions.append(
                {
                    "id": rows["id"][index],
                    "group": rows["group"][index],
                    "label": names[label],
                    "prediction": names[labels[index].item()],
                    "score": scores[index].item(),
                    "saliency": output.saliency[index].cpu().numpy(),
                    "rationale": texts[index],
                    "shuffled_rationale": shuffled_texts[index],
                }
            )
    return predictions


def classification_metrics(predictions):
    right = np.array([item["prediction"] == item["label"] for item in predictions])
    groups = defaultdict(list)
    for item, is_right in zip(predictions, right, strict=True):
        if item["group"] is not None:
            groups[item["group"]].append(is_right)
    by_group = {name: float(np.mean(values)) for name, values in sorted(groups.items())}
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_group": by_group,
        "worst_group_accuracy": min(by_group.values(), default=None),
        "macro_f1": macro_f1(predictions),
        "n": {"accuracy": len(right), **{name: len(values) for name, values in sorted(groups.items())}},
    }


def macro_f1(predictions):
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for name in {item["label"] for item in predictions}:
        true = np.array([item["label"] == name for item in predictions])
        predicted = np.array([item["prediction"] == name for item in predictions])
        scores.append(2 * (true & predicted).sum() / (true.sum() + predicted.sum()))
    return float(np.mean(scores))


def saliency_metrics(predictions, masks):
    """The metrics of `metrics/saliency` on the items that have a visual explanation."""
    given = [(item["saliency"], mask) for item, mask in zip(predictions, masks, strict=True) if mask is not None]
    if not given:
        return None
    metric = evaluate.load(str(METRICS / "saliency"))
    return metric.compute(predictions=[pair[0] for pair in given], references=[pair[1] for pair in given])


def rationale_metrics(predictions, references, class_names):
    """
    The metrics of `metrics/rationale`, with the share of rationales that name the right kind of object and the right
    place where the references name one; `shuffled_place_accuracy` is the latter with another picture's map.
    """
    result, shuffled = (
        score_rationales([item[name] for item in predictions], references, class_names)
        for name in ("rationale", "shuffled_rationale")
    )
    return {**result, "shuffled_place_accuracy": shuffled["place_accuracy"]}


def score_rationales(texts, references, class_names):
    metric = evaluate.load(str(METRICS / "rationale"))
    phrases = {"kind": class_names, "place": list(PLACES)}
    return metric.compute(predictions=texts, references=references, phrases=phrases)


def clip_score(predictions, dataset, clip):
    """CLIPScore of `metrics/clip_score`, or `None` without a CLIP model."""
    if clip is None:
        return None
    metric = evaluate.load(str(METRICS / "clip_score"))
    texts, images = [item["rationale"] for item in predictions], list(dataset["image"])
    return metric.compute(predictions=texts, images=images, model_name_or_path=clip)["clip_score"]


def compute_metrics(arguments, predictions, dataset, class_names):
    return {
        "model": arguments.model,
        "dataset": arguments.dataset,
        "split": arguments.split,
        **classification_metrics(predictions),
        "saliency": saliency_metrics(predictions, [mask_array(mask) for mask in dataset["visual_explanation"]]),
        "rationale": rationale_metrics(predictions, dataset["textual_explanations"], class_names),
        "clip_score": clip_score(predictions, dataset, arguments.clip),
    }


def table(metrics):
    """The headline figures, a line each."""
    rows = [("accuracy", metrics["accuracy"])]
    rows += [(f"accuracy, {name}", value) for name, value in metrics["accuracy_by_group"].items()]
    rows += [("macro F1", metrics["macro_f1"])]
    rows += [(f"saliency {name}", metrics["saliency"][name]) for name in SALIENCY_ROWS if metrics["saliency"]]
    rows += [(f"rationale {name.replace('_', ' ')}", metrics["rationale"][name]) for name in RATIONALE_ROWS]
    rows += [("CLIP score", metrics["clip_score"])]
    return "\n".join(f"{name:<34}{'-' if value is None else format(value, '.3f'):>8}" for name, value in rows)


SALIENCY_ROWS = ("iou", "precision", "recall", "f1", "energy", "pointing_game")
RATIONALE_ROWS = ("bleu_4", "rouge_l", "cider", "kind_accuracy", "place_accuracy", "shuffled_place_accuracy")


def main():
    arguments = parse_arguments()
    try:
        with new_folder(arguments.output) as folder:
            processor = MeglProcessor.from_pretrained(arguments.model)
            model = MeglForImageClassification.from_pretrained(
                arguments.model, trust_remote_code=arguments.trust_remote_code
            ).eval()
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            dataset = load_dataset(arguments.dataset, split=arguments.split)
            check_labels(model.config.id2label, dataset)
            predictions = predict(model, processor, dataset, arguments.batch_size)
            metrics = compute_metrics(arguments, predictions, dataset, list(model.config.id2label.values()))
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
            with open(folder / "predictions.jsonl", "w") as lines:
                for item in predictions:
                    lines.write(json.dumps({**item, "saliency": item["saliency"].round(4).tolist()}) + "\n")
            write_page(folder / "index.html", dataset, predictions, metrics, arguments.examples)
            write_sheet(folder / "examples.png", dataset, predictions)
            write_card(arguments.model, model, metrics)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_megl: {error}")
    print(f"{arguments.model} on {arguments.split} of {arguments.dataset}, {len(dataset)} images")
    print(table(metrics))


if __name__ == "__main__":
    main()
