"""
Pictures in which the object or the background was exchanged, left out or made noisy, and what a model calls them: does
the label come from the object?

Objects are cut out by the human masks, on the processor's tensors: what is made is what a model sees. An item counts
where its mask shows an object and leaves a background.
"""

import numpy as np
import torch
from PIL import Image

from megl.evaluation.metrics import load
from megl.evaluation.predictions import (
    evidence_maps,
    in_all_processes,
    own_batches,
    picture_checksums,
    read_batch,
    write_rationales,
)
from megl.evaluation.scores import keep_per_item
from modeling_megl.recombination_megl import OBJECT, TRACE, annotated_places, fill_in, has_object, recombine


KINDS = ("same", "other", "object_alone", "background_alone", "noisy_foreground", "noisy_background")
NOISE = 0.25  # its standard deviation where white is 1, as in the program of Hard ImageNet (Moayeri et al. 2022)


class Interventions:
    """
    Args:
        processor ([`MeglProcessor`]): Makes the tensors that the model sees.
        dataset: The split whose items are scored, with the columns of the data set builders.
        donors (*optional*): The split that gives the backgrounds; that of the items by default. None is given by a
            picture of the item's own id or file.
        batch_size (`int`): Pictures at a time; nothing depends on it.
        seed (`int`): With an item's place, draws the pictures that give it backgrounds.

    Raises:
        `ValueError`: in all processes alike, where a split has no picture that can be used.
    """

    def __init__(self, processor, dataset, donors=None, batch_size=32, seed=0):
        self.processor, self.dataset, self.seed = processor, dataset, seed
        self.donors = dataset if donors is None else donors
        found = find_objects(processor, dataset, batch_size)
        given = found if donors is None else find_objects(processor, donors, batch_size)
        if not found or not given:
            raise ValueError(
                "pictures are needed with human maps that show an object and leave a background, and the split "
                f"{'of the items' if not found else 'that gives the backgrounds'} has none: name another split."
            )
        ends = [Image.new("RGB", (1, 1), colour) for colour in ("black", "white")]
        ends = processor.image_processor(ends, return_tensors="pt")["pixel_values"]
        self.black, self.white = ends.mean(dim=(2, 3), keepdim=True)  # (C, 1, 1)
        self.places, self.donor_places = found.keys(), np.array(list(given))
        self.files = {place: file for place, (file, _) in found.items()}
        self.donor_files = np.array([file for file, _ in given.values()])
        self.keys = list(zip(dataset["id"], dataset["label"], strict=True))
        self.donor_ids, self.donor_labels = (
            np.array(self.donors[name])[self.donor_places] for name in ("id", "label")
        )
        # The mean of all backgrounds: a picture's own would tell of its background, and black is like no picture.
        self.colour = torch.from_numpy(np.mean([colour for _, colour in given.values()], axis=0)).float()

    def draw(self, place):
        """The places of the pictures that give an item `same` and `other` backgrounds; `None` where there is none."""
        key, label = self.keys[place]
        # Ids may be row numbers, which tell nothing of another split.
        elsewhere = (self.donor_ids != key) & (self.donor_files != self.files[place])
        alike = self.donor_labels == label
        draw = np.random.default_rng([self.seed, place])
        chosen = (self.donor_places[elsewhere & alike], self.donor_places[elsewhere & ~alike])
        return [int(draw.choice(places)) if len(places) else None for places in chosen]

    def read(self, places, dataset=None, device="cpu"):
        """`pixel_values` `(B, C, H, W)` and masks `(B, H, W)` of items."""
        _, inputs = read_batch(self.processor, dataset or self.dataset, places, with_masks=True)
        return inputs["pixel_values"].to(device), inputs["visual_explanations"].to(device)

    def make(self, places, device="cpu"):
        """Each of the `KINDS`, the places of the items that have it, and their pictures `(B, C, H, W)`."""
        own, masks = self.read(places, device=device)
        drawn = zip(*map(self.draw, places), strict=True)
        for kind, donors in zip(("same", "other"), drawn, strict=True):
            rows = [row for row, donor in enumerate(donors) if donor is not None]
            if rows:
                backgrounds = fill_in(*self.read([donors[row] for row in rows], self.donors, device))
                yield kind, [places[row] for row in rows], recombine(own[rows], masks[rows], backgrounds)
        plain = self.colour.to(own)[:, None, None].expand_as(own)
        yield "object_alone", places, recombine(own, masks, plain)
        yield "background_alone", places, fill_in(own, masks)
        noise, inside = self.draw_noise(places, own), (masks > OBJECT)[:, None]
        for kind, where in (("noisy_foreground", inside), ("noisy_background", ~inside)):
            yield kind, places, (own + where * noise).clamp(self.black.to(own), self.white.to(own))

    def draw_noise(self, places, pixel_values):
        """Normal noise `(B, C, H, W)` in the units of the pixel values, an item's own."""
        shape = pixel_values.shape[1:]
        drawn = [np.random.default_rng([self.seed, place, 1]).standard_normal(shape, np.float32) for place in places]
        return NOISE * (self.white - self.black).to(pixel_values) * torch.from_numpy(np.stack(drawn)).to(pixel_values)


def find_objects(processor, dataset, batch_size):
    """
    The places, in their order, of the items with an object and a background, to the checksum of the picture's file and
    the mean colour `(C,)` of the background.
    """
    given = annotated_places(dataset)

    def find(places):
        _, inputs = read_batch(processor, dataset, places, with_masks=True)
        outside = inputs["visual_explanations"][:, None] <= TRACE
        sums = (inputs["pixel_values"].double() * outside).sum(dim=(2, 3))
        colours = (sums / outside.sum(dim=(2, 3))).numpy()
        usable = has_object(inputs["visual_explanations"]).tolist()
        found = zip(places, colours, usable, strict=True)
        found = [(place, colour) for place, colour, use in found if use]
        checksums = picture_checksums(dataset, [place for place, _ in found])
        return [(place, (file.hex(), colour)) for (place, colour), file in zip(found, checksums, strict=True)]

    batches = own_batches(len(given), batch_size, "objects")
    found = dict(in_all_processes(lambda: [pair for batch in batches for pair in find(given[batch].tolist())]))
    return dict(sorted(found.items()))


@torch.no_grad()
def label_interventions(items, places, pixel_values, model, interventions, max_new_tokens=0):
    """
    Give each item of a batch `interventions`: what the model calls the pictures made of it, the kind of picture to the
    class name, or `None` where the item has no object. If the model writes, `max_new_tokens` or less, each item also
    has its `other_background_rationale`, of the picture of kind `other`, or `None`.
    """
    chosen = [place for place in places if place in interventions.places]
    of_place = dict(zip(places, items, strict=True))
    for place, item in of_place.items():
        item["interventions"] = {} if place in chosen else None
        if max_new_tokens:
            item["other_background_rationale"] = None
    for kind, made_of, pictures in interventions.make(chosen, model.device) if chosen else ():
        writes = kind == "other" and max_new_tokens > 0
        output = model(pictures.to(model.dtype), output_saliency=writes)
        names = [model.config.id2label[label] for label in output.logits.argmax(dim=-1).tolist()]
        for place, name in zip(made_of, names, strict=True):
            of_place[place]["interventions"][kind] = name
        if writes:
            maps = evidence_maps(model, output.saliency, {}, made_of, interventions.seed)
            evidence = model.ground(output.features, maps)
            texts = write_rationales(model, interventions.processor, names, evidence, max_new_tokens)
            for place, text in zip(made_of, texts, strict=True):
                of_place[place]["other_background_rationale"] = text


def intervention_scores(items, class_names):
    """The metrics of `metrics/interventions` over the items with an object, and how many have none."""
    shown = [item for item in items if item["interventions"] is not None]
    ids = {name: number for number, name in enumerate(class_names)}
    result = load("interventions").compute(
        predictions=[ids[item["prediction"]] for item in shown],
        references=[ids[item["label"]] for item in shown],
        num_classes=len(class_names),
        per_item=True,
        **{kind: [ids.get(item["interventions"].get(kind)) for item in shown] for kind in KINDS},
    )
    result["n_without_object"] = len(items) - len(shown)
    return keep_per_item(shown, "interventions.", result)
