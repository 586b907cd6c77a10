"""Data sets with worse masks: what becomes of each, and that nothing else changes."""

import sys

import numpy as np
import pytest
from datasets import Image, load_dataset
from explained_rows import make_dataset
from PIL import Image as PILImage

from modeling_megl.processing_megl import read_mask
from studies import worse_masks
from studies.worse_masks import KINDS, worsen


def square(size, top, left, height, width):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + height, left : left + width] = 255
    return PILImage.fromarray(mask)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dilated", square(20, 3, 7, 6, 8)),  # by a pixel
        ("shifted", square(20, 6, 10, 4, 6)),  # by two
        ("boxes", square(20, 4, 8, 4, 6)),
    ],
)
def test_masks_by_hand(kind, expected):
    assert np.array_equal(KINDS[kind](square(20, 4, 8, 4, 6)), expected)


def test_a_box_holds_all_of_a_mask_and_an_empty_one_stays():
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[2, 3] = mask[9, 5] = 200
    mask[11, 15] = 100  # hardly inside
    found = np.asarray(worse_masks.boxes(PILImage.fromarray(mask)))
    assert found[2:10, 3:6].min() == 255 and found.sum() == 8 * 3 * 255
    assert not np.asarray(worse_masks.boxes(PILImage.new("L", (9, 9)))).any()


def test_what_is_shifted_out_does_not_come_back():
    assert not np.asarray(worse_masks.shifted(square(20, 18, 18, 2, 2))).any()


def test_coarse_masks_are_means():
    found = np.asarray(worse_masks.coarse(square(14, 0, 0, 3, 2)))
    assert found.shape == (7, 7)
    assert found[:2, 0].tolist() == [255, 128] and found.sum() == 255 + 128


def test_one_mask_in_ten_is_swapped():
    dataset = make_dataset(60, masks=set(range(40)))
    for mask in (before := dataset["visual_explanation"]):
        assert mask is None or mask.size == (32, 32)
    found = worsen(dataset, "swapped")["visual_explanation"]
    assert [mask is None for mask in found] == [mask is None for mask in before]
    areas = [[np.asarray(mask).sum() for mask in masks if mask is not None] for masks in (before, found)]
    assert sorted(areas[0]) == sorted(areas[1])
    assert 0 < sum(a != b for a, b in zip(*areas, strict=True)) <= 4


def test_masks_are_swapped_between_pictures_of_one_shape_and_never_with_themselves():
    dataset = make_dataset(12, masks="all")

    def turned(row, place):
        size = (64, 32) if place % 2 else (32, 32)
        return {name: row[name].resize(size) for name in ("image", "visual_explanation")}

    dataset = dataset.map(turned, with_indices=True)
    found = worsen(dataset, "swapped")
    changed = 0
    for before, after in zip(dataset, found, strict=True):
        assert before["visual_explanation"].size == after["visual_explanation"].size
        changed += before["visual_explanation"] != after["visual_explanation"]
    assert changed == 4  # two of each shape


def test_what_is_made_of_small_and_faint_masks_can_be_read():
    coarse = worse_masks.coarse(square(128, 3, 3, 1, 1))
    assert read_mask(coarse, coarse.size, "it").max() > 0
    assert np.asarray(worse_masks.dilated(square(4, 1, 1, 1, 1))).astype(bool).sum() == 9
    faint = square(12, 2, 2, 4, 4).point(lambda value: value * 100 // 255)
    assert np.array_equal(worse_masks.boxes(faint), square(12, 2, 2, 4, 4))


@pytest.mark.parametrize("kind", ["coarse", "dilated", "shifted"])
def test_the_training_masks_alone_change(tmp_path, monkeypatch, capsys, kind):
    splits = {"train": make_dataset(30, masks=set(range(20))), "test": make_dataset(4, masks="all")}
    for name, split in splits.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    monkeypatch.setattr(sys, "argv", ["worse_masks", str(tmp_path), "--kind", kind, "--output", str(tmp_path / "out")])
    worse_masks.main()
    before, after = (
        load_dataset(str(folder), cache_dir=str(folder / "cache")) for folder in (tmp_path, tmp_path / "out")
    )
    assert after["train"].features == before["train"].features
    for name in splits:
        stored = [data[name].cast_column("image", Image(decode=False))["image"] for data in (before, after)]
        assert [image["bytes"] for image in stored[0]] == [image["bytes"] for image in stored[1]]
        masks = [data[name]["visual_explanation"] for data in (before, after)]
        changed = [a != b for a, b in zip(*masks, strict=True)]
        assert any(changed) == (name == "train") and not any(changed[20:])
    with pytest.raises(SystemExit, match="worse_masks: .*out.* not empty"):
        worse_masks.main()
