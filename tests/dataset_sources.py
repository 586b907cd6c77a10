"""Small sources in every layout, as the tests of the builders write them."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from datasets import load_dataset
from PIL import Image as PILImage

from dataset_builders import ObjectMe, build_dataset


REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = {"train": 20, "validation": 5, "test": 10}
GRID = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def picture_bytes(colour=(200, 30, 30), size=(40, 30), **options) -> bytes:
    stream = io.BytesIO()
    PILImage.new("RGB", size, colour).save(stream, format="JPEG", **options)
    return stream.getvalue()


def make_release(root: Path, number: int = 4, **changes) -> Path:
    """Writes a release of `number` items named a, b, ..., classes cat (5) and dog (2); `changes` go into item b."""
    (root / "images").mkdir(parents=True)
    (root / "visual_exp").mkdir()
    names = {0: "cat", 1: "dog"}
    ids = {"cat": 5, "dog": 2, "owl": 9}
    items = {}
    for index in range(number):
        key = chr(ord("a") + index)
        (root / "images" / f"{key}.jpg").write_bytes(picture_bytes((index * 20, 90, 30)))
        items[key] = {
            "image_path": f"images/{key}.jpg",
            "visual_exp": None,
            "class_id": ids[names[index % 2]],
            "ans": names[index % 2],
            "exp": [f"It is {key}.", f"One sees {key}."],
        }
    if number > 1:
        items["b"].update(changes)
    (root / "exp_annotation.json").write_text(json.dumps(items))
    (root / "label_class_id_mapping.json").write_text(json.dumps(ids))
    return root


def build_release(root: Path, output: Path, **options):
    return build_dataset(ObjectMe, root, output, **{"validation_share": 0, "test_share": 0, **options})


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("source", "cache"))


def write_picture(path: Path, *arguments, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(*arguments, **options))


def write_json(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_map(path: Path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def make_act_x(root: Path) -> Path:
    """Four items in the layout and with the keys that ACT-X is published with; maps for one of val and one of test."""
    items = {
        "train": {"t1": ("0001", "bicycling, mountain", ["he rides a bike uphill", "he wears a helmet"])},
        "val": {"v1": ("0002", "bicycling, racing", ["a number is on his shirt"])},
        "test": {"s1": ("0003", "yoga, Power", "she stands on one leg"), "s2": ("0004", "rowing", ["an oar"])},
    }
    for split, entries in items.items():
        content = {key: {"iid": iid, "ans": answer, "exp": texts} for key, (iid, answer, texts) in entries.items()}
        write_json(root / "textual" / f"exp_{split}_split.json", content)
        for iid, *_ in entries.values():
            write_picture(root / "images" / f"{iid}.jpg", (int(iid) * 40, 10, 90))
    write_map(root / "visual" / "val" / "v1.npy", np.stack([GRID / 255, GRID / 255, 0 * GRID]))
    write_map(root / "visual" / "test" / "s2.npy", GRID)
    return root


# question id: split of VQA-X, picture, answer
QUESTIONS = {
    "42001": ("train", 42, "dogs"),
    "42002": ("train", 42, "A Dog"),
    "43001": ("train", 43, "yes"),
    "44001": ("train", 44, "cat"),
    "44002": ("train", 44, "couch"),
    "9001": ("val", 9, "sofa"),
    "10001": ("val", 10, "tv"),
    "10002": ("test", 10, "television"),
    "11001": ("test", 11, "people"),
}


def make_vqa_x(root: Path) -> Path:
    """Nine questions in the layout and with the keys of VQA-X and VQA v2; pictures 42-44 are of train2014."""
    year = {"train": "train2014", "val": "val2014", "test": "val2014"}
    annotations = {"train2014": [], "val2014": []}
    for split in year:
        own = {key: value for key, value in QUESTIONS.items() if value[0] == split}
        write_json(root / "Annotations" / f"{split}_exp_anno.json", {key: [f"because of {key}"] for key in own})
        for key, (_, picture, answer) in own.items():
            annotations[year[split]].append(
                {
                    "question_type": "what",
                    "multiple_choice_answer": answer,
                    "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
                    "image_id": picture,
                    "answer_type": "other",
                    "question_id": int(key),
                }
            )
            name = f"COCO_{year[split]}_{picture:012d}.jpg"
            write_picture(root / "Images" / year[split] / name, (picture * 5, 90, 30))
    annotations["val2014"].append({"question_id": 1, "image_id": 1, "multiple_choice_answer": "cat"})
    for name, entries in annotations.items():
        write_json(root / "Annotations" / f"v2_mscoco_{name}_annotations.json", {"info": {}, "annotations": entries})
    write_map(root / "Annotations" / "visual" / "val" / "9001.npy", np.stack([GRID / 255] * 3))
    return root


def make_image_folder(root: Path, number: int = 4, **changes) -> Path:
    """Pictures a.jpg, b.jpg, ... of classes cat and dog with a `metadata.jsonl`; `changes` go into the line of b."""
    lines = []
    for index in range(number):
        key = chr(ord("a") + index)
        write_picture(root / f"{key}.jpg", (index * 20, 90, 30))
        line = {
            "file_name": f"{key}.jpg",
            "label": ("cat", "dog")[index % 2],
            "textual_explanations": [f"It is {key}."],
        }
        lines.append({**line, **(changes if key == "b" else {})})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def make_coco(root: Path) -> Path:
    """COCO instances for three pictures of val2014, of 40 x 30 pixels: two cats and a dog, a dog, and nothing."""
    square = [2, 3, 12, 3, 12, 13, 2, 13]
    instances = [
        {"id": 1, "image_id": 7, "category_id": 17, "segmentation": [square], "area": 100, "bbox": [2, 3, 10, 10]},
        {"id": 2, "image_id": 7, "category_id": 17, "area": 40, "bbox": [30, 20, 5, 8], "segmentation": []},
        {"id": 3, "image_id": 7, "category_id": 18, "area": 50, "bbox": [0, 0, 5, 10], "segmentation": []},
        {
            "id": 4,
            "image_id": 8,
            "category_id": 18,
            "iscrowd": 1,
            "area": 300,
            "bbox": [10, 0, 10, 30],
            "segmentation": {"size": [30, 40], "counts": [300, 300, 600]},
        },
    ]
    images = [{"id": key, "file_name": f"{key:012d}.jpg", "width": 40, "height": 30} for key in (7, 8, 9)]
    categories = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 1, "name": "person"}]
    content = {"images": images, "annotations": instances, "categories": categories}
    write_json(root / "annotations" / "instances_val2014.json", content)
    for image in images:
        write_picture(root / "images" / "val2014" / image["file_name"])
    return root


def load(folder: Path, split: str):
    return load_dataset(str(folder), split=split)


def values_of(explanation) -> np.ndarray:
    """A loaded visual explanation on [0, 1]."""
    return np.asarray(explanation) / (65535 if explanation.mode == "I;16" else 255)
