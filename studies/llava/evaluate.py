"""Evaluates a LLaVA that answers by chain of thought: its label and its rationale, with the measures of MEGL.

```
python -m studies.llava.evaluate --model llava --dataset object_me --split test --output evaluation
```

Writes `metrics.json` and `predictions.jsonl` (one line an image), with what `megl evaluate` writes there of the
label and the rationale, so that `megl compare-evaluations` takes both. A LLaVA has no saliency map.
"""

import json
import sys

import torch
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedConfig

from dataset_builders.files import new_folder
from megl.arguments import ColumnArguments
from megl.evaluation.headlines import metrics_table
from megl.evaluation.scores import classification_scores, text_scores, with_intervals
from megl.parser import parse
from megl.tables import open_table
from megl.terminal import print_anywhere
from modeling_megl.configuration_megl import one_line
from modeling_megl.training_megl import check_labels
from studies.llava.arguments import LlavaEvaluateArguments
from studies.llava.model import parse_answer, write_answers


def load_llava(folder):
    """A trained LLaVA in evaluation mode, and its processor."""
    model_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if model_type != "llava":
        raise ValueError(f"{folder} must be a LLaVA (`train.py` makes one), got a model of type {model_type!r}.")
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, AutoProcessor.from_pretrained(folder)


def predict(model, processor, dataset, batch_size, max_new_tokens):
    """
    One dictionary for each item: `label`, `prediction` (a class name, or `None` where the answer names none),
    `rationale` and `text`, all that the model wrote.
    """
    predictions, names = [], model.config.id2label
    for start in tqdm(range(0, len(dataset), batch_size), desc="predict"):
        rows = dataset[start : start + batch_size]
        texts = write_answers(model, processor, rows["image"], max_new_tokens)
        for index, text in enumerate(texts):
            rationale, prediction = parse_answer(text, list(names.values()))
            predictions.append(
                {
                    "id": rows["id"][index],
                    "group": rows["group"][index],
                    "label": names[rows["label"][index]],
                    "prediction": prediction,
                    "rationale": rationale,
                    "text": text,
                }
            )
    return predictions


def compute_metrics(arguments, predictions, dataset, class_names):
    for item in predictions:
        item["per_item"] = {"unanswered": float(item["prediction"] is None)}
    metrics = {
        "model": arguments.model,
        "dataset": arguments.dataset,
        "split": arguments.split,
        "saliency": None,
        "rationale": text_scores(predictions, dataset["textual_explanations"], class_names),
        **classification_scores(predictions),
        "unanswered": sum(item["prediction"] is None for item in predictions) / len(predictions),
    }
    return with_intervals(metrics, predictions, arguments.resamples, arguments.seed)


def main():
    arguments, columns = parse(__doc__, LlavaEvaluateArguments, ColumnArguments)
    try:
        with new_folder(arguments.output) as folder:
            model, processor = load_llava(arguments.model)
            classes = [name for _, name in sorted(model.config.id2label.items())]
            dataset = open_table(arguments.dataset, arguments.split, columns, classes)
            check_labels(model.config.id2label, dataset)
            predictions = predict(model, processor, dataset, arguments.batch_size, arguments.max_new_tokens)
            metrics = compute_metrics(arguments, predictions, dataset, classes)
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
            with open(folder / "predictions.jsonl", "w") as lines:
                lines.writelines(json.dumps(item) + "\n" for item in predictions)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_llava: {one_line(error)}")
    print_anywhere(f"{arguments.model} on {arguments.split} of {arguments.dataset}, {len(dataset)} images")
    print_anywhere(metrics_table(metrics))


if __name__ == "__main__":
    main()
