"""Masks for pictures of ImageNet.

Hard ImageNet (Moayeri et al., 2022), as `datasets/hard_imagenet.py` of mmoayeri/HardImageNet reads it; its lists are
pickled and not read:

```
<root>/{train,val}/<wnid>_<picture>.JPEG    masks: above 0 is inside
<images>/{train,val}/<wnid>/<picture>.JPEG  ImageNet, which `--images` names
```

ImageNet-S (Gao et al., 2021, arXiv:2106.03149), as the README and `datapreparation_train_semi.py` of LUSSeg/ImageNet-S
say; the source is ImageNetS50, ImageNetS300 or ImageNetS919, made with `--copy`, as links out of it are refused:

```
<root>/{train,validation,test}/<wnid>/<picture>.JPEG    without `train`, the pictures of `train-semi` are read
<root>/{train-semi,validation}-segmentation/<wnid>/<picture>.png    R + 256 G: the class's place among the sorted
                                            wnids, from 1; 0 other, 1000 ignored
```

For both, `LOC_synset_mapping.txt` of ImageNet, `<wnid> <name>, <name>, …` on each line, in the source or the pictures'
folder, names the classes; without it they have their WordNet ids.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .card import UNVERIFIED
from .items import Picture, as_text, bad_item, bad_source, on_disk, read_picture, shown
from .maps import upright
from .sources import Item, Source
from .tables import PUBLISHED, read_lines


TERMS = "The pictures are ImageNet's, for non-commercial research and education by its terms of access."
SYNSETS = "LOC_synset_mapping.txt"
IGNORED = 1000


class ImageNetMasks(Source):
    """Pictures of ImageNet in folders by WordNet id. `wnids` are the classes, in order."""

    SHARES = (0.0, 0.0)
    license = "other"
    wnids = ()

    @cached_property
    def names(self) -> dict[str, str]:
        """WordNet id to the first name of `LOC_synset_mapping.txt`, with the id where two classes share it."""
        path = next(
            (folder / SYNSETS for folder in (self.root, self.image_root) if (folder / SYNSETS).is_file()), None
        )
        lines = [] if path is None else read_lines(path)
        names = {words[0]: " ".join(words[1:]).partition(",")[0] or words[0] for _, words in lines}
        names = {wnid: names.get(wnid, wnid) for wnid in self.wnids}
        shared = Counter(names.values())
        return {wnid: f"{name} ({wnid})" if shared[name] > 1 else name for wnid, name in names.items()}

    @cached_property
    def label_names(self) -> list[str]:
        return list(self.names.values())

    def item(self, picture: str, wnid: str, mask: str | None, split: str | None) -> Item:
        return Item(
            id=picture,
            where=f"{self.root}: picture {picture!r}",
            image=picture,
            label=self.names[wnid],
            rationales=[],
            visual_explanation=mask,
            split=split,
            fields=("images", "masks"),
        )


class HardImageNetRelease(ImageNetMasks):
    """Hard ImageNet: the training pictures, and those of ImageNet's validation as the test split."""

    NAME = "hard_imagenet"
    NEEDS = "train/ and val/ with masks named <wnid>_<picture>.JPEG, and meta/"
    BUILDER = "hard_imagenet"
    citation = """@inproceedings{moayeri2022hard,
  title     = {Hard ImageNet: Segmentations for Objects with Strong Spurious Cues},
  author    = {Moayeri and Singla and Feizi},
  booktitle = {NeurIPS Datasets and Benchmarks Track},
  year      = {2022}
}"""

    def __init__(self, root: str | Path, images: str | None = None, **options):
        if images is None:
            expected = "`images` to be ImageNet's folder, with train/<wnid>/ and val/<wnid>/"
            raise ValueError(f"expected {expected}, got none. Name it by `--images`.")
        super().__init__(root, images=images, **options)
        self.masks = {split: file_names(self.root / split) for split in ("train", "val")}
        self.wnids = sorted({name.partition("_")[0] for names in self.masks.values() for name in names})
        if not self.wnids:
            raise bad_source(self.root, "masks in train/ and val/", "none", "Check the source folder.")

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return (root / "meta" / "hard_imagenet_idx.pkl").is_file()

    @property
    def description(self) -> str:
        return (
            f"Hard ImageNet: 15 classes of ImageNet with strong spurious cues. {TERMS} {UNVERIFIED} Published: about "
            "19,000 training and 750 test pictures."
        )

    @property
    def selection(self) -> str:
        return (
            "Every picture that has a mask's file. `test` is the folder `val`, whose 750 pictures the authors call "
            f"the test images; a validation split is not published. {self.validation_rule} The visual explanation is "
            "1 where the mask is above 0, as the authors read it, and missing where it is empty. There are no "
            "rationales."
        )

    def raw_items(self) -> Iterator[tuple]:
        for folder, split in (("train", None), ("val", "test")):
            for name in self.masks[folder]:
                yield f"{folder}/{name}", split, folder, name

    def check(self, key: str, split: str | None, folder: str, name: str) -> Item:
        wnid, _, picture = name.partition("_")
        if not picture:
            raise bad_item(f"{self.root / folder}: {name}", "a mask named <wnid>_<picture>", shown(name), PUBLISHED)
        return self.item(f"{folder}/{wnid}/{picture}", wnid, key, split)

    def read_visual_explanation(self, item: Item, picture: Picture):
        path = self.map_root / on_disk(item.visual_explanation)
        values = np.asarray(
            Image.open(io.BytesIO(read_picture(path, item.where, item.fields[1]).content)).convert("L")
        )
        return mask_row(path, values > 0, item, picture)


class ImageNetSRelease(ImageNetMasks):
    """ImageNet-S of 50, 300 or 919 classes in its published splits. Ten training pictures a class have a mask."""

    NAME = "imagenet_s"
    NEEDS = "validation/ and validation-segmentation/ with a folder for each class"
    BUILDER = "imagenet_s"
    CLASSES = (50, 300, 919)
    citation = """@article{gao2021luss,
  title   = {Large-scale Unsupervised Semantic Segmentation},
  author  = {Gao and Li and Yang and Cheng and Han and Torr},
  journal = {arXiv preprint arXiv:2106.03149},
  year    = {2021}
}"""

    def __init__(self, root: str | Path, **options):
        super().__init__(root, **options)
        self.wnids = file_names(self.root / "validation")
        if len(self.wnids) not in self.CLASSES:
            expected = f"{', '.join(map(str, self.CLASSES))} classes, since masks number them all"
            raise bad_source(self.root / "validation", expected, f"{len(self.wnids)} folders", "Restore the others.")

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return (root / "validation-segmentation").is_dir()

    @property
    def description(self) -> str:
        return (
            f"ImageNet-S of {len(self.wnids)} classes. {TERMS} {UNVERIFIED} Published of 50, 300 and 919 classes: "
            "64,431, 384,862 and 1,183,322 training pictures, ten a class with a mask; 752, 4,097 and 12,419 of "
            "validation, all with one; 1,682, 9,088 and 27,423 of test, whose masks are not public."
        )

    @property
    def selection(self) -> str:
        return (
            "Every picture of `train`, or of `train-semi` where that is missing, of `validation` and of `test`. The "
            "visual explanation is 1 on the label's class, and missing where the segmentation does not show it. There "
            "are no rationales."
        )

    def raw_items(self) -> Iterator[tuple]:
        train = "train" if (self.root / "train").is_dir() else "train-semi"
        for folder, masks, split in (
            (train, "train-semi-segmentation", "train"),
            ("validation", "validation-segmentation", "validation"),
            ("test", "test-segmentation", "test"),
        ):
            for wnid in self.wnids:
                for name in file_names(self.root / folder / wnid):
                    yield f"{folder}/{wnid}/{name}", split, wnid, f"{masks}/{wnid}/{os.path.splitext(name)[0]}.png"

    def check(self, key: str, split: str, wnid: str, mask: str) -> Item:
        has_mask = split == "validation" or os.path.exists(self.root / on_disk(mask))
        return self.item(key, wnid, mask if has_mask else None, split)

    def read_visual_explanation(self, item: Item, picture: Picture):
        path = self.map_root / on_disk(item.visual_explanation)
        content = read_picture(path, item.where, item.fields[1]).content
        values = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        classes = values[..., 0] + 256 * values[..., 1]
        if classes[classes != IGNORED].max(initial=0) > len(self.wnids):
            expected = f"numbers of {len(self.wnids)} classes, or {IGNORED}"
            raise bad_item(item.where, expected, f"{path.name} with {shown(np.unique(classes).tolist())}", PUBLISHED)
        return mask_row(path, classes == self.label_names.index(item.label) + 1, item, picture)


def file_names(folder: Path) -> list[str]:
    """The names in a folder, but for hidden ones, in order; none where there is no such folder."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(as_text(name) for name in names if not name.startswith("."))


def mask_row(path: Path, mask: np.ndarray, item: Item, picture: Picture) -> tuple[str, np.ndarray | None]:
    """What `read_visual_explanation` gives of a mask, `(H, W)` booleans."""
    values = upright(mask.astype(np.float64), path.name, item.where, picture)
    return f"{path.stem}.png", values if mask.any() else None
