"""The authors' release of Object-ME and Action-ME, read and checked.

```
<root>/exp_annotation.json            {id: {"image_path", "visual_exp", "class_id", "ans", "exp", "split"?, "group"?}}
<root>/label_class_id_mapping.json    {class name: class_id}
<root>/images/, <root>/visual_exp/    the files that the annotation names
```
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from .items import (
    SPLITS,
    bad_item,
    check_rationales,
    check_shares,
    encode_map,
    read_image,
    read_json_object,
    read_map,
    resolve_inside,
    stratified_splits,
)


class Release:
    """A folder in the layout of the authors' release.

    Args:
        root (`str` or `Path`): the folder that holds `exp_annotation.json`.
        validation_share, test_share (`float`): shares of each class, for items without a `"split"` of their own.
        seed (`int`): draws that split.

    Attributes:
        label_names (`list[str]`): every class of the mapping, by class id.

    Raises:
        `ValueError`: naming the file (and item) that is not as it should be, here or when the rows are read.
    """

    license = None

    def __init__(self, root: str | Path, validation_share: float = 0.1, test_share: float = 0.2, seed: int = 0):
        check_shares(validation_share, test_share)
        self.root = Path(root)
        if not self.root.is_dir():
            raise bad_item(str(root), "a source folder or the word `sample`", "no such folder", "Check the path.")
        self.validation_share = validation_share
        self.test_share = test_share
        self.seed = seed
        self.annotation_path = self.root / "exp_annotation.json"
        self.class_ids = read_class_ids(self.root / "label_class_id_mapping.json")
        self.label_names = sorted(self.class_ids, key=self.class_ids.get)

    @property
    def description(self) -> str:
        return f"The authors' release layout, read from a folder named `{self.root.resolve().name}`."

    @property
    def selection(self) -> str:
        return (
            "Every item of `exp_annotation.json`. An item's own split is kept; the others are split by picture, "
            f"stratified by class: test {self.test_share:.0%}, validation {self.validation_share:.0%}, seed "
            f"{self.seed}."
        )

    @cached_property
    def items(self) -> dict[str, dict]:
        """The annotation, by id, each item checked as far as that goes without opening its files."""
        items = read_json_object(self.annotation_path)
        if not items:
            raise bad_item(str(self.annotation_path), "at least one item", "none", "Check the source folder.")
        for key, item in items.items():
            self.check(key, item)
        return items

    @cached_property
    def split_of(self) -> dict[str, str]:
        """Item id to split. Items of one picture stay in one split unless they say otherwise."""
        pictures = {key: PurePosixPath(item["image_path"]).as_posix() for key, item in self.items.items()}
        own = {key: item["split"] for key, item in self.items.items() if item.get("split") is not None}
        known = {pictures[key]: split for key, split in own.items()}
        rest = {pictures[key]: item["ans"] for key, item in self.items.items() if pictures[key] not in known}
        known.update(stratified_splits(rest, self.validation_share, self.test_share, self.seed))
        return {key: own.get(key, known[picture]) for key, picture in pictures.items()}

    @property
    def splits(self) -> list[str]:
        """The splits that have items, in the usual order."""
        present = set(self.split_of.values())
        return [split for split in SPLITS if split in present]

    def rows(self, split: str) -> Iterator[dict]:
        """Yields the rows of one split in the annotation's order."""
        for key, item in self.items.items():
            if self.split_of[key] == split:
                yield self.row(key, item)

    def where(self, key: str) -> str:
        return f"{self.annotation_path}: item {key!r}"

    def check(self, key: str, item):
        """Raises `ValueError` if an item's annotation is not as the layout says."""
        where = self.where(key)
        if not key.strip():
            raise bad_item(where, "an id", "a blank one", "Name the item.")
        if not isinstance(item, dict):
            raise bad_item(where, "a JSON object", repr(item), "Check the source's layout.")
        class_id, name = item.get("class_id"), item.get("ans")
        if type(class_id) is not int or class_id not in self.class_ids.values():
            raise bad_item(
                where,
                "`class_id` to be an id of label_class_id_mapping.json",
                repr(class_id),
                f"Its ids are {sorted(self.class_ids.values())}.",
            )
        if not isinstance(name, str) or self.class_ids.get(name) != class_id:
            expected = next(known for known, number in self.class_ids.items() if number == class_id)
            raise bad_item(
                where,
                f"`ans` to be {expected!r}, the class of `class_id` {class_id}",
                repr(name),
                "Correct one of the two.",
            )
        check_rationales(item.get("exp"), where)
        if item.get("split") is not None and item["split"] not in SPLITS:
            raise bad_item(
                where, f"`split` to be one of {list(SPLITS)}", repr(item["split"]), "Rename it or leave it out."
            )
        group = item.get("group")
        if group is not None and (not isinstance(group, str) or not group.strip()):
            raise bad_item(where, "`group` to be a name or null", repr(group), "Correct it or leave it out.")
        resolve_inside(self.root, item.get("image_path"), "image_path", where)
        if item.get("visual_exp") is not None:
            resolve_inside(self.root, item["visual_exp"], "visual_exp", where)

    def row(self, key: str, item: dict) -> dict:
        """Reads an item's files and returns its row."""
        where = self.where(key)
        path = resolve_inside(self.root, item["image_path"], "image_path", where)
        content, size = read_image(path, where)
        explanation = None
        if item.get("visual_exp") is not None:
            map_path = resolve_inside(self.root, item["visual_exp"], "visual_exp", where)
            values = read_map(map_path, where, size)
            explanation = {"bytes": encode_map(values), "path": f"{map_path.stem}.png"}
        return {
            "id": key,
            "image": {"bytes": content, "path": path.name},
            "label": item["ans"],
            "visual_explanation": explanation,
            "textual_explanations": item["exp"],
            "group": item.get("group"),
        }


def read_class_ids(path: Path) -> dict[str, int]:
    """Reads `label_class_id_mapping.json`: class name to class id, each used once.

    Raises:
        `ValueError`: if it is missing, empty, or does not map names to different whole numbers.
    """
    class_ids = read_json_object(path)
    if not class_ids:
        raise bad_item(str(path), "at least one class", "none", "Write the classes into it.")
    for name, class_id in class_ids.items():
        if not name.strip() or type(class_id) is not int:
            raise bad_item(str(path), "class names with whole numbers", f"{name!r}: {class_id!r}", "Correct it.")
    if len(set(class_ids.values())) < len(class_ids):
        raise bad_item(str(path), "a class id of its own for each class", str(class_ids), "Renumber the classes.")
    return class_ids
