"""What a model says of the pictures that people annotate, and which picture helps it most."""

import threading
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from megl.evaluation.classifier import is_megl, load_classifier
from megl.evaluation.predictions import why_untaught
from megl.terminal import progress
from modeling_megl import MeglForImageClassification, MeglProcessor


LARGEST_MAP = 256  # pixels of the longer side of a map that is kept


@dataclass(frozen=True)
class Suggestion:
    """A model's answer for a picture.

    Attributes:
        label (`str`), score (`float`): the predicted class and its probability.
        rationale (`str`): why; empty where the model does not write.
        saliency (`np.ndarray` of shape `(map_height, map_width)`): uint8, 255 where the map is 1, over the whole
            picture.
        inside (`float`, *optional*): the share of the map that lies in the picture's mask, in [0, 1].
    """

    label: str
    score: float
    rationale: str
    saliency: np.ndarray
    inside: float | None = None


def load_suggester(name, trust_remote_code=False):
    """`suggest(image)`, which gives the `Suggestion` of a MEGL model, or of any image classifier, without a rationale,
    and the names of the classes. Errors are those of `from_pretrained` and of `load_classifier`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_megl(name):
        classifier, processor = load_classifier(name, trust_remote_code=trust_remote_code)
        classifier.to(device)

        def classify(image):
            pixel_values = processor(images=[image])["pixel_values"].to(device, classifier.dtype)
            output = classifier(pixel_values)
            score, label = classifier.probabilities(output.logits)[0].max(dim=-1)
            saliency = output.saliency[0].float().cpu().numpy()
            return Suggestion(classifier.class_names[label.item()], score.item(), "", grey(saliency))

        return classify, classifier.class_names

    processor = MeglProcessor.from_pretrained(name)
    model = MeglForImageClassification.from_pretrained(name, trust_remote_code=trust_remote_code).eval().to(device)
    untaught = why_untaught(name)
    options = {"max_new_tokens": 1} if untaught else {}

    def explain(image):
        (one,) = model.explain(image, processor, **options)
        return Suggestion(one["label"], one["score"], "" if untaught else one["rationale"], grey(one["saliency"]))

    return explain, list(model.config.id2label.values())


def grey(saliency):
    """A map in [0, 1] as bytes, shrunk to `LARGEST_MAP`."""
    image = Image.fromarray((saliency * 255).round().astype(np.uint8))
    image.thumbnail((LARGEST_MAP, LARGEST_MAP), Image.Resampling.BOX)
    return np.asarray(image)


def share_inside(saliency, mask):
    """The share of a map's sum that lies in a mask, the energy-based pointing game (Wang et al. 2020, Score-CAM); 0 of
    a map that is zero everywhere.

    Args:
        saliency (`np.ndarray` of shape `(map_height, map_width)`), mask (`np.ndarray` of shape `(height, width)`,
            bool): both over the whole picture.
    """
    height, width = saliency.shape
    cells = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return float((saliency * np.asarray(cells)).sum() / max(saliency.sum(dtype=np.int64), 1))


class Suggestions(threading.Thread):
    """Asks a model about all pictures of [`Annotations`], the one that someone looks at before the others.

    Args:
        annotations ([`Annotations`]): The pictures.
        suggest: What [`load_suggester`] gives.

    Attributes:
        found (`dict[int, Suggestion]`), failed (`dict[int, str]`): By a picture's number, what it said, or why it
            said nothing.
    """

    def __init__(self, annotations, suggest):
        super().__init__(daemon=True)
        self.annotations, self.suggest = annotations, suggest
        self.found, self.failed, self.wanted, self.ended = {}, {}, None, False

    def run(self):
        waiting = dict.fromkeys(range(len(self.annotations)))
        for _ in progress(range(len(waiting)), "suggestions", unit=" pictures"):
            if self.ended:
                return
            wanted = self.wanted
            number = wanted if wanted in waiting else next(iter(waiting))
            del waiting[number]
            try:
                self.found[number] = self._ask(number)
            except (ValueError, OSError) as error:
                self.failed[number] = str(error)

    def stop(self):
        """End with the picture that the model looks at: a program that leaves torch at work is aborted."""
        self.ended = True
        self.join()

    def _ask(self, number):
        one = self.suggest(self.annotations.image(number))
        mask = self.annotations.mask(number)
        inside = None if mask is None else share_inside(one.saliency, mask)
        return Suggestion(one.label, one.score, one.rationale, one.saliency, inside)


def place_in_queue(item, suggestion, class_names=()):
    """
    Where a picture stands among those to annotate, and why.

    GRADIA's reasonability matrix (Gao et al. 2022, Aligning Eyes between Humans and Deep Neural Network) tells labels
    that are right and wrong from maps that are: a wrong label comes first, the surest before others; then a right one
    with less than half of the map in the mask; then a picture without a mask, and the rest, the least sure first.
    Those that were put off, and then those that are done, are last. Of equals those of the class with the fewest masks
    come first ([`take_turns`]).

    Args:
        item (`Item`), suggestion (`Suggestion`, *optional*): The picture, and what the model says of it.
        class_names: The model's; a label that is not among them cannot be wrong.

    Returns:
        `(tuple, str)`: what to sort by, and the reason in words.
    """
    label, has_mask = item.row.get("label"), item.row.get("visual_explanation_file_name") is not None
    score = 1.0 if suggestion is None else suggestion.score
    if item.done:
        return (5, 0.0), f"done by {item.who}"
    if item.skipped:
        return (4, 0.0), f"put off by {item.who}"
    if suggestion is not None and label in class_names and suggestion.label != label:
        return (0, -score), f"label wrong? The model says {suggestion.label}, {score:.0%} sure"
    if suggestion is not None and suggestion.inside is not None and suggestion.inside < 0.5:
        return (1, suggestion.inside), f"map off: {suggestion.inside:.0%} of it in the mask"
    sure = "" if suggestion is None else f", {score:.0%} sure"
    if label is None or not has_mask:
        lacking = [name for name, there in (("label", label), ("mask", has_mask)) if not there]
        return (2, score), f"no {' and no '.join(lacking)}{sure}"
    return (3, score), f"has label and mask{sure}"


def take_turns(items):
    """
    What to sort pictures by that stand equal in the queue, so that masks come to all classes alike.

    Args:
        items (`list[Item]`): All pictures.

    Returns:
        `list[int]`: for each, how many pictures of its class have a mask, or none and come before it.
    """
    counts = Counter(item.row.get("label") for item in items if "visual_explanation_file_name" in item.row)
    turns = []
    for item in items:
        turns.append(counts[item.row.get("label")])
        counts[item.row.get("label")] += "visual_explanation_file_name" not in item.row
    return turns
