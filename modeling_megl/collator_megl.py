"""Rows of a data set with explanations to batches: the collator that joins pictures, masks and rationales."""

import operator
import zlib
from dataclasses import dataclass

import torch
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

    Args:
        processor ([`MeglProcessor`]): Makes the tensors.
        id2label (`dict[int, str]`): Names of the classes, for the rationales' prompts.
        seed (`int`, *optional*, defaults to 0): Which rationale comes first.
        epoch (`int` or `torch.LongTensor` of shape `()`, *optional*):
            The epoch; `None`, for evaluation, takes the first rationale of each row, and its own picture. See
            [`TellEpoch`].
        recombination ([`Recombination`], *optional*):
            Puts recombined pictures, with their labels, masks and rationales, in the place of some.

    Returns, called with a list of rows:
        `BatchFeature` with `pixel_values` `(B, 3, H, W)`, `labels` `(B,)`, `visual_explanations` `(B, H, W)`,
        `has_visual_explanation` `(B,)`, `input_ids`, `attention_mask` and `rationale_labels` `(B, L)`, -100 where
        there is no rationale.
    """

    processor: MeglProcessor
    id2label: dict[int, str]
    seed: int = 0
    epoch: int | torch.Tensor | None = None
    recombination: Recombination | None = None

    def __call__(self, rows):
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
        if not rationales:
            return None
        if self.epoch is None:
            return rationales[0]
        start = zlib.crc32(f"{self.seed} {rationales}".encode())
        return rationales[(start + int(self.epoch)) % len(rationales)]


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


def check_labels(id2label, dataset):
    """Raise a `ValueError` where the data set names other classes than the model, or in another order."""
    for part in [dataset.dataset] if isinstance(dataset, Subset) else getattr(dataset, "datasets", ()):
        check_labels(id2label, part)
    names = getattr((getattr(dataset, "features", None) or {}).get("label"), "names", None)
    expected = [id2label[label] for label in sorted(id2label)]
    if names is not None and names != expected:
        raise ValueError(
            f"The data set's classes are not the model's: `label` has {names}, `config.id2label` has {expected}. "
            "Make a model for this data set with `init_megl.py`, or load the data set that the model was made for."
        )


__all__ = ["MeglDataCollator", "TellEpoch", "check_labels"]
