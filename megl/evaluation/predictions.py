"""What a MEGL model gives for the pictures of a split, shared over processes, with the controls of its rationales.

Under `torchrun` the processes take turns at the batches; what they find is then the same in all of them, and the same
as in one process. One picture of the data set is in memory at a time, besides the small ones of a batch.
"""

import json
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Image
from transformers.utils import cached_file

from megl.tables import read_row
from megl.terminal import progress


def predict(model, processor, dataset, batch_size=32, max_new_tokens=40, seed=0, scorers=None, writes=True):
    """
    Args:
        model ([`MeglForImageClassification`]), processor ([`MeglProcessor`]): The model, in evaluation mode; without
            `writes` also a [`Classifier`].
        dataset: The split, with the columns of the data set builders.
        batch_size (`int`): Images at a time; no figure depends on it.
        max_new_tokens (`int`): Greatest length of a rationale.
        seed (`int`): Draws the pairs of the control, and the maps of an ablation that draws its maps.
        scorers (`dict[str, callable]`, *optional*): Name to a function of a batch's items, places and `pixel_values`
            that scores the items and returns a `dict` about the batch.
        writes (`bool`): Whether the model writes; if not, each `rationale` is empty, and there is no control of it.

    Returns:
        `(items, parts)`: one dictionary for each item: `label` and `prediction` (class names), `score`, `saliency`
        (the map at its own resolution), `rationale`, `shuffled_rationale`, what the model writes of the same picture
        under the map of another picture, `no_evidence_rationale`, what it writes of the class name alone, and
        `per_item`; and for each scorer what it returned of the batches.

    Raises:
        `ValueError`: in all processes alike, where a picture cannot be read in one of them.
    """
    batches = in_all_processes(
        lambda: [
            _predict_batch(model, processor, dataset, places, max_new_tokens if writes else 0, seed, scorers or {})
            for places in own_batches(len(dataset), batch_size, "predict")
        ]
    )
    batches.sort(key=lambda batch: batch["places"][0])
    items, maps, checksums = ([one for batch in batches for one in batch[name]] for name in ("items", "maps", "files"))
    if writes and len(items) > 1:
        others = [maps[place] for place in partners(checksums, seed)]
        _write_shuffled(model, processor, dataset, items, others, batch_size, max_new_tokens)
    if writes:
        _write_without_evidence(model, processor, items, batch_size, max_new_tokens)
    return items, {name: [batch["parts"][name] for batch in batches] for name in scorers or {}}


def why_untaught(name):
    """Why what a model writes is noise, where `train_megl.py` recorded that it did not teach it; or `None`."""
    path = cached_file(
        name,
        "training_settings.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None or json.loads(Path(path).read_text(encoding="utf-8")).get("text_loss_weight") != 0:
        return None
    return "the language model was not trained, as `text_loss_weight` is 0 in training_settings.json"


def own_batches(count, batch_size, description):
    """The places of this process's batches."""
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in progress(starts, description, shown=state.is_main_process):
        yield list(range(start, min(start + batch_size, count)))


def in_all_processes(work):
    """What `work()` lists in all processes together; the error of one of them is raised in all."""
    found, failed = [], None
    try:
        found = work()
    except (ValueError, OSError) as error:
        failed = error
    gathered = gather_object([(None if failed is None else str(failed), found)])
    if failed is not None:
        raise failed
    for message, _ in gathered:
        if message is not None:
            raise ValueError(message)
    return [one for _, part in gathered for one in part]


@torch.no_grad()
def _predict_batch(model, processor, dataset, places, max_new_tokens, seed, scorers):
    # Only a model whose evidence is weighted by human masks, an upper bound, is shown them.
    with_masks = max_new_tokens > 0 and model.config.grounding_map == "visual_explanation"
    rows, inputs = read_batch(processor, dataset, places, with_masks)
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    pixel_values = inputs.pop("pixel_values").to(model.dtype)
    output = model(pixel_values, **inputs)
    scores, labels = model.probabilities(output.logits).max(dim=-1)
    names = model.config.id2label
    predictions = [names[label] for label in labels.tolist()]
    maps, texts = output.saliency, [""] * len(places)
    if max_new_tokens:
        maps = evidence_maps(model, output.saliency, inputs, places, seed)
        texts = write_rationales(model, processor, predictions, model.ground(output.features, maps), max_new_tokens)
    class_names = dataset.features["label"].names  # which may be fewer than the model's, and in another order
    items = [
        {
            "id": row["id"],
            "group": row["group"],
            "label": class_names[row["label"]],
            "prediction": prediction,
            "score": score,
            "saliency": saliency,
            "rationale": text,
            "per_item": {},
        }
        for row, prediction, score, saliency, text in zip(
            rows, predictions, scores.tolist(), output.saliency.float().cpu().numpy(), texts, strict=True
        )
    ]
    parts = {name: score(items, places, pixel_values) for name, score in scorers.items()}
    files = picture_checksums(dataset, places)
    return {"places": places, "items": items, "maps": list(maps.cpu()), "files": files, "parts": parts}


def read_batch(processor, dataset, places, with_masks=False):
    """The rows but their pictures, and the inputs that the processor makes of these, one picture at a time."""
    rows, inputs = [], []
    for place in places:
        row = read_row(dataset, place)
        picture, mask = row.pop("image"), row.pop("visual_explanation")
        try:
            inputs.append(processor(images=[picture], visual_explanations=[mask] if with_masks else None))
        except ValueError as error:
            raise ValueError(f"item {row['id']!r}: {error}") from error
        rows.append(row)
    return rows, {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}


def evidence_maps(model, saliency, masks, places, seed):
    """The maps that weight the evidence; each is drawn for itself where an ablation draws them."""
    maps = []
    for index, place in enumerate(places):
        torch.manual_seed(seed + place)
        one = slice(index, index + 1)
        maps.append(model.grounding_maps(saliency[one], **{name: values[one] for name, values in masks.items()}))
    return torch.cat(maps)


def write_rationales(model, processor, class_names, evidence, max_new_tokens):
    """What the model writes of class names and their evidence `(B, K, D)`."""
    prompts = processor.prompts(class_names).to(model.device)
    tokens = model.generate_rationales(**prompts, evidence_tokens=evidence, max_new_tokens=max_new_tokens)
    return processor.batch_decode_rationales(tokens)


def picture_checksums(dataset, places):
    """Of the pictures' files as they are stored, a list of `bytes`."""
    files = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    return [_checksum(files[place]["image"]) for place in places]


def _checksum(stored):
    content = stored["bytes"]
    if content is None:
        path = Path(stored["path"])
        content = path.read_bytes() if path.is_file() else stored["path"].encode()
    return blake2b(content, digest_size=16).digest()


def partners(checksums, seed):
    """
    For each item the place of another, each once, drawn at random; of another picture, wherever the split has enough:
    only where more than half of all items are the same picture, some of these are paired with one another.

    Args:
        checksums (`list`): Equal for items with the same picture.
    """
    order = np.random.default_rng(seed).permutation(len(checksums)).tolist()
    counts = Counter(checksums)
    # The same pictures side by side: a shift by the number of the commonest leads out of each such block.
    first = {}
    for rank, place in enumerate(order):
        first.setdefault(checksums[place], rank)
    order.sort(key=lambda place: first[checksums[place]])
    shift = min(max(counts.values()), len(order) - 1)
    others = np.empty(len(order), dtype=int)
    others[order] = np.roll(order, shift)
    return others.tolist()


@torch.no_grad()
def _write_shuffled(model, processor, dataset, items, others, batch_size, max_new_tokens):
    """The rationale of each item under the map of another, the control for whether the rationale follows the map."""

    def write(places):
        _, inputs = read_batch(processor, dataset, places)
        features = model(inputs["pixel_values"].to(model.device, model.dtype)).features
        evidence = model.ground(features, torch.stack([others[place] for place in places]).to(model.device))
        names = [items[place]["prediction"] for place in places]
        return list(zip(places, write_rationales(model, processor, names, evidence, max_new_tokens), strict=True))

    batches = own_batches(len(items), batch_size, "control")
    for place, text in in_all_processes(lambda: [pair for places in batches for pair in write(places)]):
        items[place]["shuffled_rationale"] = text


@torch.no_grad()
def _write_without_evidence(model, processor, items, batch_size, max_new_tokens):
    """The rationale of each predicted class under an empty map: what the prompt, which names the class, says alone."""
    names = sorted({item["prediction"] for item in items})
    texts = []
    for start in range(0, len(names), batch_size):
        chosen = names[start : start + batch_size]
        maps = torch.zeros(len(chosen), *items[0]["saliency"].shape, device=model.device)
        features = torch.zeros(len(chosen), sum(model.grounding.channels), *maps.shape[1:], device=model.device)
        texts += write_rationales(model, processor, chosen, model.ground(features, maps), max_new_tokens)
    by_name = dict(zip(names, texts, strict=True))
    for item in items:
        item["no_evidence_rationale"] = by_name[item["prediction"]]
