"""ACT-X (Park et al., 2018, arXiv:1802.08129), from which Action-ME is made.

```
<root>/textual/exp_{train,val,test}_split.json    {id: {"iid", "ans", "exp": [rationales]}}
<root>/visual/{val,test}/<id>.npy                 the maps of one or more people, where there are any
<root>/images/<iid>.jpg                           the pictures of MPII Human Pose, or in the folder `--images`
```
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .items import bad_item, check_name, check_rationales, on_disk, shown, stream_json
from .sources import Item, Source, find


PUBLISHED_SPLITS = {"train": "train", "val": "validation", "test": "test"}
CITATION = """@inproceedings{park2018multimodal,
  title     = {Multimodal Explanations: Justifying Decisions and Pointing to the Evidence},
  author    = {Park and Hendricks and Akata and Rohrbach and Schiele and Darrell and Rohrbach},
  booktitle = {CVPR},
  year      = {2018}
}"""


class PublishedMaps:
    """The maps that Park et al. publish, one file an item in a folder for each split.

    Args:
        root (`Path`): the source's folder.
        folders (`str`): the folders of `root` that may hold `visual`.
    """

    def __init__(self, root: Path, *folders: str):
        self.root = root
        self.visual = find(root, "visual", *folders)
        self.found = 0

    def path(self, name: str, *keys: str) -> str | None:
        """The map's path from `root`, under the first of the names it may have."""
        if self.visual is None:
            return None
        folder = self.visual.relative_to(self.root).as_posix()
        paths = (f"{folder}/{name}/{key}{suffix}" for key in keys for suffix in (".npy", ".npz"))
        path = next((path for path in paths if os.path.exists(self.root / on_disk(path))), None)
        self.found += path is not None
        return path

    def check(self):
        """Raises `ValueError` if there are map files and none belongs to an item, so that none is lost unseen."""
        if self.visual is None or self.found:
            return
        stray = next((path for path in sorted(self.visual.rglob("*")) if path.is_file()), None)
        if stray is not None:
            raise bad_item(
                str(self.visual), "maps named <id>.npy in the folders val and test", stray.name, "Rename the files."
            )


class ActX(Source):
    """ACT-X with the pictures of MPII Human Pose. The published splits are kept.

    Args:
        activity_level (`str`, defaults to `"full"`): the class is all of `ans`, as in "bicycling, mountain", or, for
            `"first"`, what precedes its first comma.
    """

    NAME = "act_x"
    NEEDS = "textual/exp_{train,val,test}_split.json"
    BUILDER = "action_me"
    IMAGES = ("images", "Images")
    OPTIONS = ("activity_level",)
    citation = CITATION

    def __init__(self, root: str | Path, activity_level: str = "full", **options):
        super().__init__(root, **options)
        if activity_level not in ("full", "first"):
            raise ValueError(f"expected `activity_level` to be 'full' or 'first', got {activity_level!r}.")
        self.activity_level = activity_level
        self.maps = PublishedMaps(self.root, ".")

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return any(find(root, f"exp_{name}_split.json", "textual", ".") for name in PUBLISHED_SPLITS)

    @property
    def description(self) -> str:
        return "ACT-X, rationales and maps for pictures of MPII Human Pose, each under the terms of its publisher."

    @property
    def selection(self) -> str:
        part = "all of `ans`" if self.activity_level == "full" else "the part of `ans` before its first comma"
        return f"Every item, in its published split. The class is the activity, {part}."

    def raw_items(self) -> Iterator[tuple]:
        for name, split in PUBLISHED_SPLITS.items():
            path = find(self.root, f"exp_{name}_split.json", "textual", ".")
            if path is not None:
                for key, raw in stream_json(path):
                    yield key, split, path, name, raw
        self.maps.check()

    def check(self, key: str, split: str, path: Path, name: str, raw) -> Item:
        where = f"{path}: item {key!r}"
        if not isinstance(raw, dict):
            raise bad_item(where, "a JSON object", shown(raw), "Check the source's layout.")
        picture = check_name(raw.get("iid"), where, "iid")
        activity = check_name(raw.get("ans"), where, "ans").strip()
        if self.activity_level == "first":
            activity = check_name(activity.split(",")[0].strip(), where, "ans")
        rationales = [raw["exp"]] if isinstance(raw.get("exp"), str) else raw.get("exp")
        return Item(
            id=key,
            where=where,
            image=f"{picture}.jpg",
            label=activity,
            rationales=check_rationales(rationales, where, "exp"),
            visual_explanation=self.maps.path(name, key, picture),
            split=split,
            fields=("iid", "visual"),
        )
