"""Evaluates MEGL models on a split: label, saliency map and rationale against what humans gave.

```
python scripts/evaluate_megl.py --model megl-trained --dataset object_me --split test --output evaluation
python scripts/evaluate_megl.py --model megl-plain megl-trained --dataset object_me --output evaluations
```

Writes `metrics.json` (figures with bootstrap intervals; docs/evaluation.md says what each is), `predictions.jsonl`
(one line an image, with its scores), `index.html` (the report) and `examples.png` (a few pictures), fills the model's
card (`README.md` and `.eval_results` in `--model`) from `model_card.md`, and prints a table. With `--clip` (a Hub id
or folder of a CLIP model) it also computes CLIPScore and the grounding of the rationales, with `--faithfulness`
whether the class scores depend on what the maps show. Several models go into a folder each, and are compared as
`compare_evaluations.py` does.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from tqdm import tqdm

from compare_evaluations import write_comparison
from modeling_megl import MeglForImageClassification, MeglProcessor
from modeling_megl.training_megl import check_labels
from support.card import write_card
from support.output_folder import new_folder
from support.pictures import mask_array, write_sheet
from support.report import interval_head, interval_text, write_report
from support.scores import at, compute_scores, faithfulness_scores, headlines, with_intervals


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, nargs="+", help="Hub ids or folders of MEGL models")
    parser.add_argument("--dataset", required=True, help="Hub id or folder of a data set")
    parser.add_argument("--split", default="test", help="split to evaluate on")
    parser.add_argument("--output", required=True, help="folder to write; it must be new or empty")
    parser.add_argument("--clip", help="CLIP model for CLIPScore and grounding; none is downloaded unless asked")
    parser.add_argument(
        "--faithfulness",
        nargs="?",
        const="blur",
        choices=["blur", "mean", "noise"],
        help="also score the maps by deleting and inserting pixels, with this in their place (default: blur); takes "
        "82 passes through the vision model for each image",
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=40, help="greatest length of a rationale")
    parser.add_argument(
        "--examples", type=int, default=24, help="pictures in the report, evenly spaced over the split"
    )
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="draws the resamples")
    parser.add_argument("--dataset_id", help="Hub id of the data set for the card, where --dataset is a folder")
    parser.add_argument("--trust_remote_code", action="store_true", help="let the vision model run its own code")
    return parser


def parse_arguments():
    parser = make_parser()
    arguments = parser.parse_args()
    for name in ("resamples", "max_new_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"`--{name}` must be 1 or more, got {getattr(arguments, name)}")
    return arguments


@torch.no_grad()
def predict(model, processor, dataset, batch_size, max_new_tokens=40):
    """
    One dictionary for each item: `label` and `prediction` (class names), `score`, `saliency` (the map at its own
    resolution), `rationale`, and `shuffled_rationale`: what the model writes of the same picture when it is given
    another picture's map, the control for whether the rationale follows the map.
    """
    predictions, names, previous = [], model.config.id2label, None
    for start in tqdm(range(0, len(dataset), batch_size), desc="predict"):
        rows = dataset[start : start + batch_size]
        # Only a model whose evidence is weighted by human masks, an upper bound, is shown them.
        masks = rows["visual_explanation"] if model.config.grounding_map == "visual_explanation" else None
        inputs = processor(images=rows["image"], visual_explanations=masks).to(model.device)
        pixel_values = inputs.pop("pixel_values")
        output = model(pixel_values, **inputs)
        scores, labels = output.logits.softmax(dim=-1).max(dim=-1)
        prompts = processor.prompts([names[label] for label in labels.tolist()]).to(model.device)
        maps = model.grounding_maps(output.saliency, **inputs)
        # The map of the item before, over the ends of batches too.
        others = maps.roll(1, dims=0)
        if previous is not None:
            others[0] = previous
        previous = maps[-1]
        shuffled = model.ground(output.features, others)
        texts, shuffled_texts = (
            processor.batch_decode_rationales(
                model.generate_rationales(**prompts, evidence_tokens=evidence, max_new_tokens=max_new_tokens)
            )
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


def metrics_table(metrics):
    """The headline figures, a line each, with their intervals."""
    lines = [f"{'':<34}{'value':>8}   {interval_head(metrics)}"]
    for path, name, value in headlines(metrics):
        lines.append(f"{name:<34}{value:>8.3f}   {interval_text(at(metrics['intervals'], path))}".rstrip())
    return "\n".join(lines)


def evaluate_model(arguments, name, dataset, folder):
    """Write the evaluation of one model into a folder; its metrics and items are returned."""
    processor = MeglProcessor.from_pretrained(name)
    model = MeglForImageClassification.from_pretrained(name, trust_remote_code=arguments.trust_remote_code).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.vision_model.to(memory_format=torch.channels_last)  # as in training, the fastest for convolutions
    check_labels(model.config.id2label, dataset)
    torch.manual_seed(arguments.seed)  # an ablation draws its maps at random
    items = predict(model, processor, dataset, arguments.batch_size, arguments.max_new_tokens)
    masks = [mask_array(mask) for mask in dataset["visual_explanation"]]
    classes = list(model.config.id2label.values())
    faithfulness = arguments.faithfulness and partial(
        faithfulness_scores,
        model=model,
        processor=processor,
        baseline=arguments.faithfulness,
        batch_size=arguments.batch_size,
    )
    metrics = {
        "model": name,
        "dataset": arguments.dataset,
        "split": arguments.split,
        **compute_scores(items, dataset, masks, classes, arguments.clip, faithfulness),
    }
    metrics = with_intervals(metrics, items, arguments.resamples, arguments.seed)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as lines:
        for item in items:
            lines.write(json.dumps({**item, "saliency": item["saliency"].round(4).tolist()}) + "\n")
    write_report(folder / "index.html", dataset, items, metrics, arguments.examples)
    write_sheet(folder / "examples.png", dataset, items)
    write_card(name, model, metrics, arguments.dataset_id)
    print(f"{name} on {arguments.split} of {arguments.dataset}, {len(dataset)} images")
    print(metrics_table(metrics))
    return metrics, items


def main():
    arguments = parse_arguments()
    try:
        with new_folder(arguments.output) as folder:
            dataset = load_dataset(arguments.dataset, split=arguments.split)
            if len(arguments.model) == 1:
                evaluate_model(arguments, arguments.model[0], dataset, folder)
                return
            runs = {}
            for number, name in enumerate(arguments.model, start=1):
                run = f"{number}-{Path(name).name}"
                (folder / run).mkdir()
                runs[run] = evaluate_model(arguments, name, dataset, folder / run)
            write_comparison(folder, runs, arguments.resamples, arguments.seed)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_megl: {error}")


if __name__ == "__main__":
    main()
