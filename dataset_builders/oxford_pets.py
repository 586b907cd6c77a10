"""Oxford-IIIT Pet (Parkhi et al., 2012), as `torchvision/datasets/oxford_iiit_pet.py` of pytorch/vision reads it.

```
<root>/images/<breed>_<number>.jpg
<root>/annotations/{trainval,test}.txt           <breed>_<number> <class id> <1 cat, 2 dog> <breed id>
<root>/annotations/trimaps/<breed>_<number>.png  1 pet, 2 background, 3 not classified
```

`annotations/list.txt` has the lines of both files, without their splits, and is not read.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from .card import UNVERIFIED
from .items import Picture, bad_item, on_disk, shown
from .maps import load_picture, upright
from .sources import Item, Source
from .tables import PUBLISHED, meaning, read_lines


SPECIES = {"1": "cat", "2": "dog"}
CITATION = """@inproceedings{parkhi2012cats,
  title     = {Cats and Dogs},
  author    = {Parkhi and Vedaldi and Zisserman and Jawahar},
  booktitle = {CVPR},
  year      = {2012}
}"""


class PetsRelease(Source):
    """Oxford-IIIT Pet in its published splits. The classes are the breeds, by class id; the groups cat and dog."""

    NAME = "pets"
    NEEDS = "annotations/trainval.txt, annotations/test.txt and images/"
    BUILDER = "pets"
    IMAGES = ("images",)
    SHARES = (0.0, 0.0)
    license = "cc-by-sa-4.0"
    citation = CITATION

    def __init__(self, root: str | Path, **options):
        super().__init__(root, **options)
        self.map_root = self.root / "annotations" / "trimaps"
        self.breeds = {}

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return (root / "annotations" / "trainval.txt").is_file()

    @cached_property
    def label_names(self) -> list[str]:
        present = self.index.distinct("label")
        return [breed for _, breed in sorted(self.breeds.items()) if breed in present]

    @property
    def description(self) -> str:
        return (
            "Oxford-IIIT Pet: photographs of cats and dogs. Its publishers give it under CC BY-SA 4.0; the pictures "
            f"stay their owners'. {UNVERIFIED} Published: 3,680 pictures for training (trainval) and 3,669 of test."
        )

    @property
    def selection(self) -> str:
        masks = "There are no masks."
        if self.map_root.is_dir():
            masks = "The visual explanation is 1 where the trimap says pet, 0 on the background and the border."
        return (
            "Every line of `trainval.txt` and `test.txt`, in that split; `group` is cat or dog. What is of training "
            f"and what of validation is not published. {self.validation_rule} {masks} There are no rationales."
        )

    def raw_items(self) -> Iterator[tuple]:
        for name, split in (("trainval", None), ("test", "test")):
            path = self.root / "annotations" / f"{name}.txt"
            for number, words in read_lines(path):
                yield words[0], split, f"{path}: line {number}", words

    def check(self, key: str, split: str | None, where: str, words: list[str]) -> Item:
        if len(words) != 4 or not words[1].isdecimal():
            expected = "a picture, a class id, a species and a breed id"
            raise bad_item(where, expected, shown(" ".join(words)), PUBLISHED)
        breed = key.rpartition("_")[0].replace("_", " ").title()
        known = self.breeds.setdefault(int(words[1]), breed)
        if not breed or known != breed:
            raise bad_item(where, f"a picture of the class {words[1]}, {known!r}", shown(key), PUBLISHED)
        return Item(
            id=key,
            where=where,
            image=f"{key}.jpg",
            label=breed,
            rationales=[],
            visual_explanation=f"{key}.png" if self.map_root.is_dir() else None,
            split=split,
            group=meaning(SPECIES, words[2], where, "species"),
            fields=("images", "trimaps"),
        )

    def read_visual_explanation(self, item: Item, picture: Picture):
        path = self.map_root / on_disk(item.visual_explanation)
        trimap = load_picture(path, item.where, item.fields[1])
        if trimap.ndim != 2 or not np.isin(trimap, (1, 2, 3)).all() or not (trimap == 1).any():
            got = f"{path.name} with {shown(np.unique(trimap).tolist())}"
            raise bad_item(item.where, "a trimap of 1 (pet, somewhere), 2 and 3", got, PUBLISHED)
        return item.visual_explanation, upright((trimap == 1).astype(np.float64), path.name, item.where, picture)
