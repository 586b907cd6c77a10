"""Rows of a data set with explanations to batches: the collator that joins pictures, masks and rationales."""

import operator
import zlib
from dataclasses import dataclass

import torch
from datasets import List
from torch.utils.data import Subset
from transformers import TrainerCallback

from .processing_megl import MeglProcessor
from .recombination_megl import Recombination, make_pictures


@dataclass
class MeglDataCollator:
    """
    Rows of a data set with the columns `image`, `label`, `visual_explanation` and `textual_explanations` to a batch.

    Each row contributes one of its rationales, if it has any. In training they take turns from epoch to epoch, from a
    start that depends on `seed` and on the rationales themselves; so what is drawn depends on neither order, worker
    nor resuming.

    For a multi-label model `label` is a list, without repetition; `visual_explanation` a list, in the order of the
    labels, with `None` where one has no mask; and `textual_explanations` a list of rationales for each label. The
    label that the drawn rationale is of comes first in the batch.

    Args:
        processor ([`MeglProcessor`]): Makes the tensors.
        id2label (`dict[int, str]`): Names of the classes, for the rationales' prompts.
        seed (`int`, *optional*, defaults to 0): Which rationale comes first.
        epoch (`int` or `torch.LongTensor` of shape `()`, *optional*):
            The epoch; `None`, for evaluation, takes the first rationale of each row, and its own picture. See
            [`TellEpoch`].
        recombination ([`Recombination`], *optional*):
            Puts recombined pictures, with their labels, masks and rationales, in the place of some.
        multi_label (`bool`, *optional*, defaults to `False`): Whether a row has a list of labels.

    Returns, called with a list of rows:
        `BatchFeature` with `pixel_values` `(B, 3, H, W)`, `labels` `(B,)`, `visual_explanations` `(B, H, W)`,
        `has_visual_explanation` `(B,)`, `input_ids`, `attention_mask` and `rationale_labels` `(B, L)`, -100 where
        there is no rationale. With `multi_label`, `labels` are floats `(B, num_labels)`, 1 for a row's classes and
        else 0, `target` `(B, n)` has the ids of these classes, -1 behind the last, and the masks are `(B, n, H, W)`
        and `(B, n)`.
    """

    processor: MeglProcessor
    id2label: dict[int, str]
    seed: int = 0
    epoch: int | torch.Tensor | None = None
    recombination: Recombination | None = None
    multi_label: bool = False

    def __call__(self, rows):
        if self.multi_label:
            return self._several_labels(rows)
        recombines = self.recombination is not None and self.epoch is not None
        pairs = [None] * len(rows)
        if recombines:
            pairs = [self.recombination.draw(row, int(self.epoch), self.process) for row in rows]
            rows = [row if pair is None else pair.object.row for row, pair in zip(rows, pairs, strict=True)]
        labels = class_ids(rows, self.id2label)
        texts = {
            "label_names": [self.id2label[label] for label in labels],
            "rationales": [self.draw(row) for row in rows],
        }
        batch = self.processor(**texts)
        if "encoded" in rows[0]:  # by `FrozenLayers.encode`
            batch.update({name: torch.stack([row["encoded"][name] for row in rows]) for name in rows[0]["encoded"]})
        else:
            batch.update(self._pictures(rows, pairs) if recombines else self.process(rows))
        batch["labels"] = torch.tensor(labels)
        return batch

    def _several_labels(self, rows):
        """The batch of rows with a list of labels each."""
        check_label_lists(rows, self.id2label)
        drawn = [self._draw_label(row) for row in rows]
        rows = [_with_first(row, first) for row, (first, _) in zip(rows, drawn, strict=True)]
        labels = [row["label"] for row in rows]
        count = max(1, *map(len, labels))
        # A picture without a class has no rationale, whatever class its prompt names.
        names = [self.id2label[several[0] if several else 0] for several in labels]
        batch = self.processor(label_names=names, rationales=[text for _, text in drawn])
        masks = [[*row["visual_explanation"], *[None] * (count - len(row["label"]))] for row in rows]
        batch.update(self.process([{**row, "visual_explanation": one} for row, one in zip(rows, masks, strict=True)]))
        batch["target"] = torch.tensor([[*several, *[-1] * (count - len(several))] for several in labels])
        batch["labels"] = torch.zeros(len(rows), len(self.id2label))
        for one, several in zip(batch["labels"], labels, strict=True):
            one[several] = 1
        return batch

    def _draw_label(self, row):
        """The place of a label among those of a row, and a rationale of it, in this epoch; `(0, None)` without any."""
        lists = [[texts] if isinstance(texts, str) else texts for texts in row.get("textual_explanations") or ()]
        pairs = [(place, text) for place, texts in enumerate(lists) for text in texts or ()]
        return self._take_turns(pairs) or (0, None)

    def _pictures(self, rows, pairs):
        """What the processor makes of the pictures of rows, and in the place of some of them, recombined ones."""
        left, taken = ([place for place, pair in enumerate(pairs) if (pair is None) == own] for own in (True, False))
        parts = [make_pictures([pairs[place] for place in taken])] if taken else []
        if left:
            parts.append(self.process([rows[place] for place in left]))
        order = torch.tensor(taken + left).argsort()
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def process(self, rows):
        images = [row["image"] for row in rows]
        masks = [row.get("visual_explanation") for row in rows]
        try:
            return self.processor(images=images, visual_explanations=masks)
        except ValueError as error:
            names = ", ".join(str(row.get("id")) for row in rows)
            raise ValueError(f"A batch of the items {names}: {error}") from error

    def draw(self, row):
        """The rationale of this row in this epoch; `None` where it has none."""
        rationales = row.get("textual_explanations")
        if isinstance(rationales, str):  # of a data set with one for each item
            rationales = [rationales]
        return self._take_turns(rationales)

    def _take_turns(self, texts):
        """The one of some texts whose turn it is; `None` where there are none."""
        if not texts:
            return None
        if self.epoch is None:
            return texts[0]
        start = zlib.crc32(f"{self.seed} {texts}".encode())
        return texts[(start + int(self.epoch)) % len(texts)]


def class_ids(rows, id2label):
    """The labels of rows, a list of `int`; a `ValueError` that names the row where one is no class of the model."""
    labels = [_class_id(row.get("label")) for row in rows]
    for row, label in zip(rows, labels, strict=True):
        if label not in id2label:
            raise ValueError(
                f"Item {row.get('id')!r} must have a `label` in 0..{len(id2label) - 1}, got {label!r}: leave "
                "out what has no known class."
            )
    return labels


def check_label_lists(rows, id2label):
    """A `ValueError` that names the row where labels, masks and rationales are not lists that belong together."""
    for row in rows:
        labels, item = row.get("label"), f"Item {row.get('id')!r}"
        if not isinstance(labels, list) or len({*labels} & {*id2label}) < len(labels):
            raise ValueError(
                f"{item} must have a `label` that is a list of different classes in 0..{len(id2label) - 1}, got "
                f"{labels!r}: a multi-label model takes nothing else."
            )
        for name in ("visual_explanation", "textual_explanations"):
            values = row.get(name)
            if values and not (isinstance(values, list) and len(values) == len(labels)):
                count = len(values) if isinstance(values, list) else f"a {type(values).__name__}"
                raise ValueError(
                    f"{item} must have a list in `{name}` with an entry for each of its {len(labels)} labels, got "
                    f"{count}: put `None` where a label has none."
                )


def _with_first(row, first):
    """A row with the label in that place, and its mask, before the others."""

    def moved(values):
        return values[first : first + 1] + values[:first] + values[first + 1 :]

    masks = row.get("visual_explanation") or [None] * len(row["label"])
    return {**row, "label": moved(row["label"]), "visual_explanation": moved(masks)}


def _class_id(label):
    """A label of any integer type as `int`; anything else as it is."""
    try:
        return operator.index(label)
    except TypeError:
        return label


class TellEpoch(TrainerCallback):
    """Tells a collator the epoch before its batches are made."""

    def __init__(self, collator):
        # In shared memory, as persistent workers keep the collator that they were started with.
        self.epoch = collator.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def on_train_begin(self, args, state, control, **kwargs):
        # Counted here: of a stream of unknown length the Trainer knows the share of the steps, not the epoch.
        self.epoch.fill_(int(state.epoch or 0) - 1)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch += 1


def class_label(dataset):
    """
    The feature of a data set's classes and whether an item has a list of them: `(feature or None, bool)`, as far as
    the data set says.
    """
    feature = (getattr(dataset, "features", None) or {}).get("label")
    return (feature.feature, True) if isinstance(feature, List) else (feature, False)


def check_labels(id2label, dataset, multi_label=False):
    """
    Raise a `ValueError` where the data set names other classes than the model, or in another order, or has lists of
    them where the model takes one, or the other way round.
    """
    for part in [dataset.dataset] if isinstance(dataset, Subset) else getattr(dataset, "datasets", ()):
        check_labels(id2label, part, multi_label)
    feature, several = class_label(dataset)
    if feature is not None and several != multi_label:
        kinds = {True: "a list of classes", False: "one class"}
        raise ValueError(
            f"`label` has {kinds[several]} an item, where the model's `problem_type` says {kinds[multi_label]}: make "
            "a model for this data set with `init_megl.py`."
        )
    names = getattr(feature, "names", None)
    expected = [id2label[label] for label in sorted(id2label)]
    if names is not None and names != expected:
        raise ValueError(
            f"The data set's classes are not the model's: `label` has {names}, `config.id2label` has {expected}. "
            "Make a model for this data set with `init_megl.py`, or load the data set that the model was made for."
        )


__all__ = ["MeglDataCollator", "TellEpoch", "check_labels"]
