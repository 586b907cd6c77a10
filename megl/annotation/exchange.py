"""Annotations from and to COCO's instances and Label Studio's tasks, with the pictures' file names as they are.

A label that is not a region's, and rationales, have no place in COCO: they stand at its `images`, as `label` and
`textual_explanations`. In Label Studio they are `choices` and a `textarea`. Masks are written as run lengths, and read
from those and polygons; of several regions the label's together are the mask.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from dataset_builders.coco import BAD_ENTRIES, entry_shape, polygon_mask, shape_mask
from dataset_builders.items import BadItem, bad_item, bad_source, check_name, check_rationales, shown

from .store import KEEP, LONGEST_NAME, RATIONALES, from_runs, to_runs


# The widths in bits of the counts of Label Studio's run lengths; the last serves all that is written.
COUNT_BITS = (3, 4, 8, 16)


def export_annotations(annotations, kind: str) -> str:
    """The pictures that have a label, as JSON.

    Args:
        annotations ([`~store.Annotations`]): an open one. A mask that is no drawing of 0 and 1 is cut at one half.
        kind (`str`): `coco` or `label_studio`.
    """
    rows = []
    for number, item in enumerate(annotations.items):
        if "label" in item.row:
            picture = annotations.picture(number)
            mask = annotations.mask(number, picture)
            rows.append((number, item, picture.size, mask if mask is not None and mask.any() else None))
    content = {"coco": to_coco, "label_studio": to_label_studio}[kind](rows, annotations.labels)
    return json.dumps(content, ensure_ascii=False) + "\n"


def import_annotations(annotations, path, kind: str) -> tuple[int, list[str]]:
    """Saves what a file says of the pictures; what was there before stays in the log.

    Args:
        annotations ([`~store.Annotations`]): an open one, to whose labels those of the file are added.
        path (`str` or `Path`): the file.
        kind (`str`): `coco` or `label_studio`.

    Returns:
        `tuple[int, list[str]]`: the number of pictures saved, and what the file calls those that the folder lacks.

    Raises:
        `ValueError`: if the file is not as it should be; nothing is saved.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise bad_source(path, "JSON", f"text that is not: {error}", "Export it again.") from error
    numbers = {item.file_name: number for number, item in enumerate(annotations.items)}
    found, missing = {}, []
    try:
        for address, read in {"coco": from_coco, "label_studio": from_label_studio}[kind](content):
            number = find_picture(numbers, address)
            if number is None:
                missing.append(address)
                continue
            where, row = f"{path}: {shown(address)}", annotations.items[number].row
            label, rationales, mask = read(annotations.picture(number).size, where)
            label = check_name(row.get("label") if label is None else label, where, "the label")
            rationales = row.get(RATIONALES) if rationales is None else rationales
            rationales = check_rationales(rationales, where, "rationales")
            found[number] = label, rationales, KEEP if mask is None else to_runs(mask)
    except BadItem:
        raise
    except (*BAD_ENTRIES, IndexError, ValueError) as error:
        kinds = {"coco": "COCO's `images`, `annotations` and `categories`", "label_studio": "Label Studio's tasks"}
        raise bad_source(path, kinds[kind], f"something else ({error!r})", "Export it again.") from error
    for number, (label, rationales, runs) in found.items():
        mask = KEEP if runs is KEEP else from_runs(runs, annotations.picture(number).size)
        annotations.labels = sorted({*annotations.labels, label})
        who = f"imported from {Path(path).name}"[:LONGEST_NAME]
        annotations.save(number, annotations.items[number].version, who, label, rationales, mask)
    return len(found), missing


def find_picture(numbers: dict[str, int], address: str) -> int | None:
    """The picture whose file name is the longest end of an address, in whole folders, without what uploads add."""
    parts = re.split("[?&]d=", unquote(address))[-1].split("/")
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    ends.append(re.sub("^[0-9a-f]{8}-", "", parts[-1]))
    return next((numbers[end] for end in ends if end in numbers), None)


def choose_label(label: str | None, regions: list[tuple]) -> tuple:
    """The label, by default that of the regions that cover the most, and the union of its regions, or of all where
    none has its name; `regions` are names and masks."""
    masks = {}
    for name, mask in regions:
        masks[name] = masks.get(name, False) | mask
    if label is None and masks:
        label = max(masks, key=lambda name: masks[name].sum())
    chosen = [masks[label]] if label in masks else list(masks.values())
    return label, np.logical_or.reduce(chosen) if chosen else None


# COCO


def to_coco(rows, labels):
    """`images`, `annotations` and `categories`."""
    images, instances = [], []
    for number, item, (width, height), mask in rows:
        said = {name: item.row[name] for name in ("label", RATIONALES) if name in item.row}
        images.append({"id": number, "file_name": item.file_name, "width": width, "height": height, **said})
        if mask is None:
            continue
        down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [across[0], down[0], across[-1] + 1 - across[0], down[-1] + 1 - down[0]]
        instances.append(
            {
                "id": number,
                "image_id": number,
                "category_id": labels.index(item.row["label"]),
                "segmentation": {"size": [height, width], "counts": to_runs(mask.T)},
                "area": int(mask.sum()),
                "bbox": [int(side) for side in box],
                "iscrowd": 1,  # as COCO has it where there are run lengths
            }
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(labels)]
    return {"images": images, "annotations": instances, "categories": categories}


def from_coco(content):
    """Yields the file name of each picture, and what reads what is said of it, given its size."""
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    instances = {}
    for entry in content["annotations"]:
        instances.setdefault(entry["image_id"], []).append((names[entry["category_id"]], entry_shape(entry)))
    for image in content["images"]:

        def read(size, where, image=image):
            if [image.get("width"), image.get("height")] != list(size):
                got = f"{shown(image.get('width'))} x {shown(image.get('height'))}"
                raise bad_item(where, f"the picture's {size[0]} x {size[1]} pixels", got, "Export it again.")
            regions = instances.get(image["id"], [])
            regions = [(name, shape_mask(shape, *size, where)) for name, shape in regions]
            label, mask = choose_label(image.get("label"), regions)
            return label, image.get(RATIONALES), mask

        yield image["file_name"], read


# Label Studio


def to_label_studio(rows, labels):
    """A task for each picture."""
    return [
        {"data": {"image": item.file_name}, "annotations": [{"result": list(task_results(item, size, mask))}]}
        for _, item, size, mask in rows
    ]


def task_results(item, size, mask):
    """The label as `choices`, the rationales as a `textarea`, and the mask as `brushlabels`."""
    label, rationales = item.row["label"], item.row.get(RATIONALES)
    found = [("label", "choices", {"choices": [label]})]
    if rationales:
        found.append(("rationales", "textarea", {"text": rationales}))
    if mask is not None:
        found.append(("mask", "brushlabels", {"format": "rle", "rle": pack_mask(mask), "brushlabels": [label]}))
    sizes = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    for name, kind, value in found:
        yield {"id": name, "from_name": name, "to_name": "image", "type": kind, **sizes, "value": value}


def from_label_studio(content):
    """Yields the address of each task's picture, and what reads what its last annotation says, given its size."""
    for task in content:
        address = [value for value in task["data"].values() if isinstance(value, str)][0]
        said = [each for each in task.get("annotations") or [] if not each.get("was_cancelled")]
        if not said:
            continue

        def read(size, where, results=said[-1]["result"]):
            label, rationales, regions = None, None, []
            for one in results:
                value, kind = one["value"], one["type"]
                if kind == "choices":
                    label = value["choices"][0]
                elif kind == "textarea":
                    text = value["text"]
                    rationales = (rationales or []) + ([text] if isinstance(text, str) else text)
                elif kind in ("brushlabels", "polygonlabels"):
                    regions.append((value[kind][0], region_mask(value, size, where)))
            label, mask = choose_label(label, regions)
            return label, rationales, mask

        yield address, read


def region_mask(value, size, where):
    """The mask `(height, width)` of a region: packed run lengths, or a polygon in per cent of width and height."""
    if "rle" in value:
        return unpack_mask(value["rle"], size, where)
    corners = np.asarray(value["points"], dtype=float)
    if corners.ndim != 2 or corners.shape[1] != 2 or not ((corners >= -1e3) & (corners <= 1e3)).all():
        raise bad_item(where, "polygons of points in per cent", shown(value["points"]), "Export it again.")
    return polygon_mask((corners * size / 100).ravel().tolist(), *size)


def pack_mask(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths, in the format of thi.ng's rle-pack, of a picture of 4 channels, each 255 inside.

    Bits: 32 for the number of values, 5 for the bits of a value, 4 for those of each of four kinds of counts, each
    less one; then for each run 1, two for the kind of count, the count less one, and the value. After a 0 the count is
    that of single values.
    """
    bits = [f"{4 * mask.size:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in COUNT_BITS)]
    longest = 1 << COUNT_BITS[-1]
    for place, run in enumerate(to_runs(mask)):
        value = f"{255 * (place % 2):08b}"
        for start in range(0, 4 * run, longest):
            bits.append(f"111{min(4 * run - start, longest) - 1:016b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def unpack_mask(packed, size: tuple[int, int], where: str) -> np.ndarray:
    """The mask `(height, width)` of Label Studio's run lengths, true where the opacity is one half or more."""
    width, height = size
    bad = bad_item(where, f"run lengths of {width} x {height} x 4 values", shown(packed), "Export it again.")
    if not isinstance(packed, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in packed):
        raise bad
    data, place = bytes(packed), 0

    def read(bits):
        nonlocal place
        first, place = place, place + bits
        if place > 8 * len(data):
            raise bad
        part = int.from_bytes(data[first // 8 : (place + 7) // 8])
        return part >> (-place % 8) & ((1 << bits) - 1)

    count, value_bits = read(32), read(5) + 1
    count_bits = [read(4) + 1 for _ in range(4)]
    if count != 4 * width * height or value_bits != 8:
        raise bad
    values = bytearray()
    while len(values) < count:
        same, length = read(1), read(count_bits[read(2)]) + 1
        if len(values) + length > count:
            raise bad
        values += bytes([read(8)]) * length if same else bytes(read(8) for _ in range(length))
    return np.frombuffer(values, np.uint8).reshape(height, width, 4)[..., 3] >= 128
