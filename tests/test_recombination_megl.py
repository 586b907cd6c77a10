"""Pictures with their own objects and other backgrounds: the pixels, what is drawn, and what is trained by it."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import LABELS
from explained_rows import make_dataset, make_rows
from PIL import Image
from torch.utils.data import DataLoader

from modeling_megl import MeglDataCollator
from modeling_megl.recombination_megl import (
    Recombination,
    _checksum,
    fill_in,
    has_object,
    make_pictures,
    recombine,
)
from modeling_megl.training_megl import MeglTrainer


def square(size, rows, columns):
    mask = torch.zeros(1, size, size)
    mask[0, slice(*rows), slice(*columns)] = 1
    return mask


# ---- Pixels ----


def test_a_hole_is_filled_from_coarser_copies_of_its_surroundings():
    """Worked by hand: at half the resolution [?, 4; 8, 0], and at a quarter their mean, 4."""
    picture = torch.full((1, 1, 4, 4), 99.0)
    picture[0, 0, :2, 2:], picture[0, 0, 2:, :2], picture[0, 0, 2:, 2:] = 4.0, 8.0, 0.0
    filled = fill_in(picture, square(4, (0, 1), (0, 1)))[0, 0]  # a hole of a pixel, and a border of another
    assert filled[:2, :2].tolist() == [[4.0, 4.0], [5.0, 4.5]]
    picture[0, 0, :2, :2] = filled[:2, :2]
    assert torch.equal(filled, picture[0, 0])


@pytest.mark.parametrize("size", [(7, 7), (64, 64), (33, 50)])
def test_a_plain_background_stays_plain_at_any_size(size):
    masks = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    picture = torch.full((3, 2, *size), -1.5)
    picture = torch.where(masks[:, None] > 0.5, 7.0, picture)
    assert torch.equal(fill_in(picture, torch.zeros(3, *size)), picture)
    masks = square(size[0], (2, 5), (2, 5))[:, :, : size[1]]
    masks = torch.nn.functional.pad(masks, (0, size[1] - masks.shape[2]))
    picture = torch.where(masks[:, None] > 0, 7.0, torch.full((1, 2, *size), -1.5))
    torch.testing.assert_close(fill_in(picture, masks), torch.full((1, 2, *size), -1.5))


def test_the_object_stands_on_the_other_background_with_a_soft_edge():
    own, donor = torch.full((1, 3, 8, 8), 9.0), torch.zeros(1, 3, 8, 8)
    donor[:, :, 6:, 6:] = 5.0  # the donor's object, which must not be seen
    made = recombine(own, square(8, (2, 5), (2, 5)), fill_in(donor, square(8, (6, 8), (6, 8))))[0, 0]
    assert made[3, 3] == 9 and made[7, 7] == made[0, 0] == 0
    assert made[3].tolist() == [0, 3, 6, 9, 6, 3, 0, 0]
    assert made[1, 1] == 1 and made[2, 2] == 4


def test_a_mask_of_all_or_nothing_has_no_object():
    masks = torch.stack([torch.zeros(20, 20), torch.ones(20, 20), square(20, (0, 1), (0, 1))[0], torch.ones(20, 20)])
    masks[3, :2] = 0  # a tenth is left of the background
    assert has_object(masks).tolist() == [False, False, True, True]
    masks[3, 0, 0] = 1
    assert not has_object(masks)[3]


# ---- What is drawn ----


def collate(rows, processor, epoch=0, dataset=None, seed=0):
    recombination = Recombination(make_rows(12, masks="all") if dataset is None else dataset, 1.0, seed)
    collator = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=epoch, recombination=recombination)
    return collator(rows)


def changed_share(batch, rows, processor):
    """Share of the values of each picture that are not those of its row: `(B,)`."""
    plain = processor(images=[row["image"] for row in rows])["pixel_values"]
    return (batch["pixel_values"] != plain).float().mean(dim=(1, 2, 3))


def test_objects_masks_labels_and_rationales_stay(processor):
    rows = make_rows(4, masks="all")
    plain = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=0)(rows)
    batch = collate(rows, processor)
    for name in plain:
        if name != "pixel_values":
            assert torch.equal(batch[name], plain[name]), name
    for row in range(4):
        inside = torch.nn.functional.avg_pool2d(plain["visual_explanations"][row][None], 3, stride=1, padding=1)[0]
        changed = batch["pixel_values"][row] != plain["pixel_values"][row]
        assert not changed[:, inside == 1].any() and changed[:, inside == 0].float().mean() > 0.9


def test_an_annotated_object_takes_the_place_of_a_picture_without_a_mask(processor):
    annotated = make_rows(9, masks={3, 7})
    batch = collate(make_rows(4, masks="none"), processor, dataset=annotated)
    assert batch["has_visual_explanation"].all()
    assert set(batch["labels"].tolist()) <= {3 % 3, 7 % 3}
    masks = MeglDataCollator(processor, dict(enumerate(LABELS)))([annotated[3], annotated[7]])["visual_explanations"]
    assert all(any(torch.equal(found, mask) for mask in masks) for found in batch["visual_explanations"])


def test_the_draw_follows_from_seed_epoch_and_picture_alone(processor):
    rows = make_rows(6)
    whole = collate(rows, processor)["pixel_values"]
    parts = [collate(rows[place : place + 2], processor)["pixel_values"] for place in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(collate(rows[::-1], processor)["pixel_values"].flip(0), whole)
    for other in (collate(rows, processor, epoch=1), collate(rows, processor, seed=1)):
        assert not torch.equal(other["pixel_values"], whole)


def test_workers_draw_the_same(processor):
    rows = make_dataset(12, masks="all")
    recombination = Recombination(rows, 0.5)
    collator = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=3, recombination=recombination)
    batches = [
        [batch["pixel_values"] for batch in DataLoader(rows, 4, collate_fn=collator, num_workers=workers)]
        for workers in (0, 2)
    ]
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))


@pytest.fixture()
def process(processor):
    return MeglDataCollator(processor, dict(enumerate(LABELS))).process


def test_a_share_of_the_rows_is_drawn(process):
    rows = make_rows(400)
    recombination = Recombination(rows, 0.25)
    pairs = [recombination.draw(row, epoch, process) for epoch in (0, 1) for row in rows]
    drawn = [pair is not None for pair in pairs]
    assert abs(np.mean(drawn) - 0.25) < 3 * (0.25 * 0.75 / 800) ** 0.5
    assert drawn[:400] != drawn[400:]
    for row, pair in zip(rows, pairs, strict=False):
        assert pair is None or (pair.object.row["id"] == row["id"]) == (row["visual_explanation"] is not None)


def test_no_picture_is_its_own_background(process):
    rows = make_rows(2, masks="all")
    for epoch in range(8):
        for own, other in ("01", "10"):
            pair = Recombination(rows, 1.0).draw(rows[int(own)], epoch, process)
            assert pair.object.row["id"] == own and pair.background.row["id"] == other
        pair = Recombination(rows, 1.0).draw(make_rows(3, masks="none")[2], epoch, process)
        assert {pair.object.row["id"], pair.background.row["id"]} == {"0", "1"}


def test_rows_with_one_picture_keep_what_they_say(processor):
    """A row for each rationale, or the same picture under two labels: whatever the order, and what is kept."""
    picture, mask = (make_rows(1, masks="all")[0][name] for name in ("image", "visual_explanation"))
    rows = [
        {
            "id": str(row),
            "image": picture,
            "label": row % 3,
            "visual_explanation": mask,
            "textual_explanations": [word],
        }
        for row, word in enumerate(["one", "two", "three", "four"])
    ]
    for order in (slice(None), slice(None, None, -1)):
        recombination = Recombination([*make_rows(4, masks="all"), *rows], 1.0)
        collator = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=0, recombination=recombination)
        for _ in range(2):
            batch, plain = collator(rows[order]), MeglDataCollator(processor, collator.id2label, epoch=0)(rows[order])
            assert torch.equal(batch["labels"], plain["labels"])
            assert torch.equal(batch["rationale_labels"], plain["rationale_labels"])


def test_pictures_that_differ_by_palette_or_shape_alone_are_others(process):
    image = Image.new("P", (32, 32))
    image.putdata([number % 4 for number in range(32 * 32)])
    rows = make_rows(4, masks="all")
    for shade, row in enumerate(rows):
        row["image"] = image.copy()
        row["image"].putpalette([50 * shade + 5 * number for number in range(12)])
    recombination = Recombination(rows, 1.0)
    for row in 2 * rows:
        own = recombination.draw(row, 0, process).object
        assert torch.equal(own.pixel_values, process([row])["pixel_values"][0]) and own.row["id"] == row["id"]
    wide, high = ({"image": Image.new("L", size), "visual_explanation": None} for size in ((40, 20), (20, 40)))
    assert _checksum(wide) != _checksum(high)


def test_nothing_of_a_soft_object_is_left_in_its_background():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    distance = ((rows - 32) ** 2 + (columns - 32) ** 2).sqrt()
    picture = torch.where(distance <= 14, 5.0, -1.0)[None, None]
    mask = torch.exp(-0.5 * (distance / 6) ** 2)[None]
    assert has_object(mask).all() and fill_in(picture, mask).max() == -1
    assert not has_object(mask / 2.1).any()  # nothing of it is above a half
    assert not has_object(mask.clamp_min(0.2)).any()  # all of it may be the object


def test_what_leaves_nothing_to_recombine_is_said_once(process, caplog):
    rows = make_rows(4, masks="all")
    rows[2]["visual_explanation"] = rows[3]["visual_explanation"] = Image.new("L", (32, 32))
    logging.Logger.warning_once.cache_clear()
    recombination = Recombination(rows, 1.0)
    for row in rows:
        recombination.draw(row, 0, process)
    assert caplog.text.count("Some masks show no object (less than 0.1% of their picture is above 0.5 of white)") == 1


def test_what_is_cut_out_is_kept_as_far_as_there_is_room(process, monkeypatch):
    rows, made = make_rows(6, masks="all"), []

    def counted(rows):
        made.extend(row["id"] for row in rows)
        return process(rows)

    def pictures(recombination):
        pairs = [recombination.draw(row, epoch, counted) for epoch in range(8) for row in rows]
        return make_pictures(pairs)["pixel_values"]

    recombination = Recombination(rows, 1.0)
    expected = pictures(recombination)
    assert len(made) < 12
    made.clear()
    assert torch.equal(pictures(recombination), expected) and not made
    monkeypatch.setattr("modeling_megl.recombination_megl.KEPT_BYTES", 2 * (2 * 3 + 1) * 32 * 32 * 4)
    recombination = Recombination(rows, 1.0)
    assert torch.equal(pictures(recombination), expected)
    assert len(recombination._kept) == 2 * 2 and len(made) > 20


@pytest.mark.parametrize("value", [0, 255])
def test_what_has_no_object_or_no_background_stays_as_it_is_and_lends_nothing(processor, value):
    rows = make_rows(4, masks="all")
    plain = MeglDataCollator(processor, dict(enumerate(LABELS)), epoch=0)(rows)
    without = [{**row, "visual_explanation": Image.new("L", (32, 32), value)} for row in rows]
    for own, donors in ((without, rows), (rows, without)):
        batch = collate(own, processor, dataset=donors)
        assert torch.equal(batch["pixel_values"], plain["pixel_values"])


def test_pictures_of_a_single_class(processor):
    rows = [row for row in make_rows(12, masks="all") if row["label"] == 1]
    assert (changed_share(collate(rows, processor, dataset=rows), rows, processor) > 0.5).all()


@pytest.mark.parametrize("annotated", [set(), {3}])
def test_two_annotated_pictures_are_needed(annotated):
    for data in (make_rows(5, masks=annotated), make_dataset(5, masks=annotated)):
        with pytest.raises(ValueError, match=f"needs two training pictures .* or more, got {len(annotated)}"):
            Recombination(data, 1.0)
    with pytest.raises(ValueError, match="got 0"):
        Recombination(make_dataset(5).remove_columns("visual_explanation"), 1.0)


def test_the_annotated_are_found_without_decoding(monkeypatch):
    dataset = make_dataset(9, masks={1, 4, 5}).select([5, 0, 4, 8, 1])
    monkeypatch.setattr("PIL.Image.open", None)
    assert Recombination(dataset, 1.0).places.tolist() == [0, 2, 4]


# ---- Training ----


def losses_of(trainer):
    trainer.train()
    return [entry["loss_classification"] for entry in trainer.state.log_history if "loss_classification" in entry]


def test_the_label_loss_is_that_of_the_recombined_pictures(make_trainer):
    data = make_dataset(12, masks={0, 1, 2, 6})
    trainer = make_trainer(max_steps=1, per_device_train_batch_size=12, recombine=0.5, train=data)
    trainer.model.train()
    trainer.data_collator.epoch.fill_(0)  # as at the beginning of the training
    rows = [trainer.train_dataset[place] for place in range(12)]
    batch = trainer.data_collator(rows)
    assert 2 < (changed_share(batch, rows, trainer.processing_class) > 0).sum() < 10
    with torch.no_grad():
        outputs = trainer.model(batch["pixel_values"])
    assert losses_of(trainer) == pytest.approx(
        [float(torch.nn.functional.cross_entropy(outputs.logits, batch["labels"]))], abs=1e-4
    )


def test_accumulated_steps_are_one_large_batch(make_trainer):
    found = [
        losses_of(
            make_trainer(
                "megl-vit-tiny",
                train=make_dataset(8, masks={0, 1, 2}),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
                recombine=0.4,
                max_steps=2,
                learning_rate=1e-3,
                train_sampling_strategy="sequential",
                output=f"run{size}",
            )
        )
        for size in (8, 4)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_evaluation_sees_the_pictures_as_they_are(make_trainer):
    plain, recombining = make_trainer(), make_trainer(recombine=1.0, train=make_dataset(12, masks="all"))
    assert recombining.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize("visual_loss", ["gradia", "haics", "res_g", "res_l", "rrr", "energy", "ppce"])
@pytest.mark.parametrize("rationales", [True, False])
def test_with_every_visual_loss_with_rationales_or_none(make_trainer, visual_loss, rationales):
    dataset = make_dataset(8, masks={0, 1, 5}, rationales=None if rationales else set())
    trainer = make_trainer(train=dataset, recombine=0.5, visual_loss=visual_loss, max_steps=1)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_frozen_layers_see_the_recombined_pictures(make_trainer):
    trainer = make_trainer(recombine=1.0, frozen_layer="resnet.encoder.stages.0", train=make_dataset(8, masks="all"))
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(4)])
    assert "pixel_values" in batch
    before = {name: tensor.clone() for name, tensor in trainer.model.vision_model.state_dict().items()}
    trainer.train()
    changed = {
        name for name, tensor in trainer.model.vision_model.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed and not any("embedder" in name or "stages.0" in name for name in changed)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_every_class_needs_a_mask(make_trainer, share):
    rows = make_dataset(9, masks={0, 3, 4})  # of the classes 0, 0 and 1
    name = make_trainer().model.config.id2label[2]
    with pytest.raises(
        ValueError, match=f"`recombine` needs a visual explanation in every class, and there is none of {name}"
    ):
        make_trainer(train=rows, recombine=share)


def test_masks_that_show_nothing_are_told_before_the_work(make_trainer):
    def fainter(row):
        return {"visual_explanation": row["visual_explanation"].point(lambda value: value // 3)}

    rows = make_dataset(9, masks="all").map(fainter)
    with pytest.raises(ValueError, match="no object in the first 9 visual explanations: it needs more than 0.1% of a"):
        make_trainer(train=rows, recombine=1.0)


def test_balanced_weights_count_what_is_trained_on(make_trainer):
    """Of 12 rows 4 of each class; of the masks 1, 2 and 3: half of the epoch has 6 pictures in these shares."""
    trainer = make_trainer(train=make_dataset(12, masks={0, 1, 4, 2, 5, 8}), recombine=0.5, class_weights="balanced")
    counts = torch.tensor([2 + 1.0, 2 + 2.0, 2 + 3.0])
    torch.testing.assert_close(trainer._class_weights, 12 / (3 * counts))


def test_weights_that_find_nothing_among_the_annotated_are_named(make_trainer, caplog):
    rows = make_dataset(9, masks={0, 1, 2}, rationales={5, 6})
    make_trainer(train=rows, recombine=1.0, distribution_loss_weight=0.1, max_steps=1).train()
    assert "`text_loss_weight` and `distribution_loss_weight`: the training data have no explanations" in caplog.text


@dataclass
class OfTheUser(MeglDataCollator):
    """With a state that is no field, and a call of its own."""

    def __call__(self, rows):
        self.calls += len(rows)
        return super().__call__(rows)


def test_a_collator_of_the_users_stays_what_it_is(make_trainer, processor):
    collator = OfTheUser(processor, dict(enumerate(LABELS)))
    collator.calls = 0
    rows = make_dataset(8, masks="all")
    made = make_trainer(recombine=0.5, train=rows, max_steps=1)
    trainer = MeglTrainer(model=made.model, args=made.args, data_collator=collator, train_dataset=rows)
    trainer.train()
    assert trainer.data_collator.calls >= 4


def test_what_does_not_go_with_it_is_refused(make_trainer):
    with pytest.raises(ValueError, match="`recombine` is a share of the pictures, in .0, 1., got 1.5"):
        make_trainer(recombine=1.5)
    with pytest.raises(ValueError, match="`recombine` must be a number that is not negative, got -1"):
        make_trainer(recombine=-1)
    with pytest.raises(ValueError, match="`recombine` takes backgrounds from anywhere .* no stream"):
        make_trainer(recombine=0.5, train=make_dataset(6).to_iterable_dataset())
    with pytest.raises(ValueError, match="got 0: one gives its object, the other its background"):
        make_trainer(recombine=0.5, train=make_dataset(6, masks="none"))
