"""The authors' release of Object-ME and Action-ME.

```
<root>/exp_annotation.json            {id: {"image_path", "visual_exp", "class_id", "ans", "exp"?, "split"?, "group"?}}
<root>/label_class_id_mapping.json    {class name: class_id}
<root>/images/, <root>/visual_exp/    the files that the annotation names
```
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .items import (
    MAP_WORDS,
    RATIONALE_WORDS,
    bad_item,
    bad_source,
    check_keys,
    check_name,
    check_own_split,
    check_rationales,
    folder_name,
    read_json_object,
    shown,
    stream_json,
)
from .sources import Item, Source


KEYS = {
    "image_path": (),
    "visual_exp": MAP_WORDS,
    "class_id": (),
    "ans": (),
    "exp": RATIONALE_WORDS,
    "split": (),
    "group": (),
}


class Release(Source):
    """A folder in the layout of the authors' release. Its classes are those of the mapping, by class id."""

    NAME = "release"
    NEEDS = "exp_annotation.json and label_class_id_mapping.json"

    def __init__(self, root: str | Path, **options):
        super().__init__(root, **options)
        self.annotation_path = self.root / "exp_annotation.json"
        self.class_ids = read_class_ids(self.root / "label_class_id_mapping.json")

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return any((root / name).exists() for name in ("exp_annotation.json", "label_class_id_mapping.json"))

    @cached_property
    def label_names(self) -> list[str]:
        return sorted(self.class_ids, key=self.class_ids.get)

    @property
    def description(self) -> str:
        return f"The authors' release layout, read from a folder named `{folder_name(self.root)}`."

    @property
    def selection(self) -> str:
        return (
            "Every item of `exp_annotation.json`. An item's own split is kept; the others are split "
            f"{self.split_rule}."
        )

    def raw_items(self) -> Iterator[tuple]:
        for key, raw in stream_json(self.annotation_path):
            yield key, None, raw

    def check(self, key: str, split: None, raw) -> Item:
        where = f"{self.annotation_path}: item {key!r}"
        if not key.strip():
            raise bad_item(where, "an id", "a blank one", "Name the item.")
        if not isinstance(raw, dict):
            raise bad_item(where, "a JSON object", shown(raw), "Check the source's layout.")
        self.unread_keys |= check_keys(raw, KEYS, where)
        class_id, name = raw.get("class_id"), raw.get("ans")
        if type(class_id) is not int or class_id not in self.class_ids.values():
            raise bad_item(
                where,
                "`class_id` to be an id of label_class_id_mapping.json",
                shown(class_id),
                f"Its ids are {shown(sorted(self.class_ids.values()))}.",
            )
        if not isinstance(name, str) or self.class_ids.get(name) != class_id:
            expected = next(known for known, number in self.class_ids.items() if number == class_id)
            raise bad_item(
                where,
                f"`ans` to be {expected!r}, the class of `class_id` {class_id}",
                shown(name),
                "Correct one of the two.",
            )
        return Item(
            id=key,
            where=where,
            image=raw.get("image_path"),
            label=name,
            rationales=check_rationales(raw.get("exp"), where, "exp"),
            visual_explanation=raw.get("visual_exp"),
            split=check_own_split(raw.get("split"), where),
            group=None if raw.get("group") is None else check_name(raw["group"], where, "group"),
            fields=("image_path", "visual_exp"),
        )


def read_class_ids(path: Path) -> dict[str, int]:
    """Reads `label_class_id_mapping.json`: class name to class id, each used once.

    Raises:
        `ValueError`: if it is missing, empty, or does not map names to different whole numbers.
    """
    class_ids = read_json_object(path)
    if not class_ids:
        raise bad_source(path, "at least one class", "none", "Write the classes into it.")
    for name, class_id in class_ids.items():
        if not name.strip() or type(class_id) is not int:
            raise bad_source(path, "class names with whole numbers", f"{name!r}: {shown(class_id)}", "Correct it.")
    if len(set(class_ids.values())) < len(class_ids):
        raise bad_source(path, "a class id of its own for each class", str(class_ids), "Renumber the classes.")
    return class_ids
