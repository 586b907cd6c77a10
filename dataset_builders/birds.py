"""Birds of CUB-200-2011 (Wah et al., 2011), with its masks and with captions of Reed et al. (2016, arXiv:1605.05395).

CUB-200-2011, as its README says and `CUB/data_processing.py` of yewsiang/ConceptBottleneck reads it; the source is the
folder `CUB_200_2011` or the one above it:

```
<root>/images.txt                         <image id> <class>/<picture>.jpg
<root>/image_class_labels.txt             <image id> <class id>
<root>/train_test_split.txt               <image id> <1 for training, 0 for test>
<root>/classes.txt                        <class id> <number>.<class>
<root>/images/<class>/<picture>.jpg
<root>/attributes/image_attribute_labels.txt    <image id> <attribute id> <is present> <certainty id> <time>
<root>/attributes/attributes.txt          <attribute id> has_<part>_<aspect>::<value>; published beside the folder
```

Waterbirds (Sagawa et al., 2020, arXiv:1911.08731), as `data/cub_dataset.py` of kohpangwei/group_DRO and
`wilds/datasets/waterbirds_dataset.py` of p-lambda/wilds read it:

```
<root>/metadata.csv                       img_id,img_filename,y,split,place,place_filename
<root>/<class>/<picture>.jpg              the pictures that "img_filename" names
```

For both, in the source folder, or where `--masks` and `--captions` name these two:

```
segmentations/<class>/<picture>.png       grey: the share of the people who drew a mask that put a pixel inside
text_c10/<class>/<picture>.txt            ten captions, one a line (the archive cvpr2016_cub)
```
"""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from .card import UNVERIFIED
from .items import Picture, bad_item, bad_source, check_name, check_rationales, resolve_inside, shown
from .sources import Item, Source, find
from .tables import PUBLISHED, check_cells, meaning, read_csv, read_lines, read_pairs


BIRDS_CITATION = """@techreport{wah2011cub,
  title       = {The Caltech-UCSD Birds-200-2011 Dataset},
  author      = {Wah and Branson and Welinder and Perona and Belongie},
  institution = {California Institute of Technology},
  number      = {CNS-TR-2011-001},
  year        = {2011}
}"""
WATERBIRDS_CITATION = """@inproceedings{sagawa2020distributionally,
  title     = {Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for
               Worst-Case Generalization},
  author    = {Sagawa and Koh and Hashimoto and Liang},
  booktitle = {ICLR},
  year      = {2020}
}"""
CAPTIONS_CITATION = """@inproceedings{reed2016learning,
  title     = {Learning Deep Representations of Fine-Grained Visual Descriptions},
  author    = {Reed and Akata and Lee and Schiele},
  booktitle = {CVPR},
  year      = {2016}
}"""
# Of the bird itself, or of a part of it.
ATTRIBUTE = re.compile(r"has_(?:(size|shape|primary_color)|(\w+)_([a-z]+))::(\S+)")
SURE = ("3", "4")  # certainties.txt: probably, definitely


class BirdRelease(Source):
    """Pictures whose paths are those of CUB-200-2011, and so the paths of their masks and captions.

    Args:
        masks (`str`, *optional*): the folder `segmentations`, where it is not in `root`. Without either there are no
            masks.
        captions (`str`, *optional*): the folder `text_c10`, in the same way.
    """

    OPTIONS = ("masks", "captions")
    SHARES = (0.0, 0.0)

    def __init__(self, root: str | Path, masks: str | None = None, captions: str | None = None, **options):
        super().__init__(root, **options)
        masks = self.part("segmentations", masks, "masks")
        self.has_masks = masks is not None
        self.map_root = masks or self.root
        self.caption_root = self.part("text_c10", captions, "captions")

    def part(self, name: str, given: str | None, option: str) -> Path | None:
        """The folder that an option gives, else that of its published name in `root`, if any."""
        if given is None:
            return find(self.root, name, ".", "CUB_200_2011", "cvpr2016_cub")
        if not Path(given).is_dir():
            raise bad_source(given, f"the folder `{name}`", "no such folder", f"Check `--{option}`.")
        return Path(given)

    @property
    def citation(self) -> str:
        return "\n\n".join([BIRDS_CITATION, *([CAPTIONS_CITATION] if self.caption_root else [])])

    @property
    def evidence(self) -> str:
        """Where masks and rationales come from, for the card."""
        masks = "There are no masks."
        if self.has_masks:
            masks = "The visual explanation is CUB's segmentation: 1 where more than half of those who drew it say so."
        captions = "The rationales are the captions of Reed et al. (2016)." if self.caption_root else ""
        return f"{masks} {captions}".strip()

    def mask(self, picture: str) -> str | None:
        """The path of a picture's mask, if there are masks."""
        return f"{os.path.splitext(picture)[0]}.png" if self.has_masks else None

    def read_captions(self, picture: str, where: str) -> list[str]:
        """A picture's captions. Where a character was lost, they have U+FFFD; a blank takes its place."""
        if self.caption_root is None:
            return []
        path = resolve_inside(self.caption_root, f"{os.path.splitext(picture)[0]}.txt", "text_c10", where)
        try:
            lines = path.read_text(encoding="utf-8").replace("\N{REPLACEMENT CHARACTER}", " ").splitlines()
        except (OSError, UnicodeError) as error:
            raise bad_item(where, "captions in UTF-8", f"{path.name} ({error})", "Write it again.") from error
        captions = [" ".join(line.split()) for line in lines if line.strip()]
        if not captions:
            raise bad_item(where, "a caption", f"none in {path.name}", "Restore it, or leave all captions out.")
        return check_rationales(captions, where, "text_c10")

    def read_visual_explanation(self, item: Item, picture: Picture):
        name, shares = super().read_visual_explanation(item, picture)
        if not (shares > 0.5).any():
            got = f"{name}, which has none"
            raise bad_item(item.where, "a mask with a pixel above one half", got, "Restore the published file.")
        return name, (shares > 0.5).astype(np.float64)


class CubRelease(BirdRelease):
    """CUB-200-2011 in its published splits. The rationales are the captions, or else sentences of the attributes."""

    NAME = "cub"
    NEEDS = "images.txt, image_class_labels.txt, train_test_split.txt and classes.txt, or CUB_200_2011 with these"
    BUILDER = "cub"
    IMAGES = ("images", "CUB_200_2011/images")

    def __init__(self, root: str | Path, **options):
        super().__init__(root, **options)
        self.folder = find(self.root, "CUB_200_2011", ".") or self.root
        self.classes = {key: class_name(name) for key, name in read_pairs(self.folder / "classes.txt").items()}
        if len(set(self.classes.values())) < len(self.classes):
            names = shown(self.label_names)
            raise bad_source(self.folder / "classes.txt", "a name of its own for each class", names, PUBLISHED)
        self.attribute_labels = find(self.folder, "image_attribute_labels.txt", "attributes")

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return find(root, "image_class_labels.txt", ".", "CUB_200_2011") is not None

    @cached_property
    def label_names(self) -> list[str]:
        return list(self.classes.values())

    @property
    def description(self) -> str:
        return (
            "CUB-200-2011: photographs of 200 species of birds. Its README names no licence; the pictures are their "
            f"photographers'. {UNVERIFIED} Published: 5,994 training and 5,794 test pictures."
        )

    @property
    def selection(self) -> str:
        sentences = ""
        if self.caption_root is None and self.attribute_labels:
            sentences = (
                "The rationales are sentences written by code, one for each part of the bird, of the attributes that "
                "an annotator found present and was sure of, probably or definitely."
            )
        return (
            "Every picture, in its published split. CUB has no validation split: papers choose by the test split, or "
            "by a part of the training split, as concept bottleneck models (Koh et al., 2020) do by 20 %. "
            f"{self.validation_rule} {self.evidence} {sentences}"
        )

    def raw_items(self) -> Iterator[tuple]:
        labels = read_pairs(self.folder / "image_class_labels.txt")
        training = read_pairs(self.folder / "train_test_split.txt")
        present = self.read_attributes()
        for key, picture in read_pairs(self.folder / "images.txt").items():
            split = "test" if training.get(key) == "0" else None  # a validation split may be drawn from the others
            yield picture, split, key, labels.get(key), training.get(key), present.get(key, [])

    def read_attributes(self) -> dict[str, list[tuple]]:
        """Image id to the (part, aspect, value) of its present attributes; of none where captions take their place."""
        if self.attribute_labels is None or self.caption_root is not None:
            return {}
        path = find(self.root, "attributes.txt", "attributes", "CUB_200_2011/attributes", ".", "CUB_200_2011")
        if path is None:
            remedy = "Copy it from beside the folder CUB_200_2011, or name the folder that holds both as the source."
            raise bad_source(self.attribute_labels.parent, "a file attributes.txt", "none", remedy)
        attributes = {key: parse_attribute(path, name) for key, name in read_pairs(path).items()}
        present = {}
        for number, words in read_lines(self.attribute_labels):
            # Some lines of the published file have more than five.
            if len(words) < 4 or words[1] not in attributes or words[2] not in ("0", "1"):
                where = f"{self.attribute_labels}: line {number}"
                raise bad_source(where, "an image, an attribute, 0 or 1, a certainty", shown(words), PUBLISHED)
            if words[2] == "1" and words[3] in SURE:
                present.setdefault(words[0], []).append(attributes[words[1]])
        return present

    def check(self, key: str, split: str | None, image: str, label: str, training: str, present: list) -> Item:
        where = f"{self.folder / 'images.txt'}: image {image}"
        meaning({"0": "test", "1": "training"}, training, where, "train_test_split.txt")
        return Item(
            id=key,
            where=where,
            image=key,
            label=meaning(self.classes, label, where, "image_class_labels.txt"),
            rationales=self.read_captions(key, where) or attribute_sentences(present),
            visual_explanation=self.mask(key),
            split=split,
            fields=("images.txt", "segmentations"),
        )


def class_name(published: str) -> str:
    """The words of a class, as "Black footed Albatross" of 001.Black_footed_Albatross."""
    return published.partition(".")[2].replace("_", " ") or published


def parse_attribute(path: Path, name: str) -> tuple[str, str, str]:
    """The part, aspect and value of an attribute such as has_bill_shape::hooked_seabird, or `ValueError`."""
    found = ATTRIBUTE.fullmatch(name)
    if found is None:
        raise bad_source(path, "attributes such as has_bill_shape::dagger", shown(name), PUBLISHED)
    own, part, aspect, value = found.groups()
    return tuple(text.replace("_", " ") for text in (part or "bird", own or aspect, value))


def attribute_sentences(attributes: list[tuple[str, str, str]]) -> list[str]:
    """One sentence for each part, as in "The shape of the bill is dagger, its color is grey and black."."""
    parts = {}
    for part, aspect, value in attributes:
        parts.setdefault(part, {}).setdefault(aspect, {})[value] = True
    sentences = []
    for part, aspects in parts.items():
        first, *others = [(aspect, " and ".join(values)) for aspect, values in aspects.items()]
        clauses = [f"The {first[0]} of the {part} is {first[1]}"]
        clauses += [f"its {aspect} is {values}" for aspect, values in others]
        sentences.append(", ".join(clauses) + ".")
    return sentences


class WaterbirdsRelease(BirdRelease):
    """Waterbirds of any correlation (95, 100), in the published splits.

    Args:
        four_groups (`bool`, defaults to `False`): whether a group is a label on a place, as in "waterbird on land", of
            whose four the worst is published; by default it is "aligned" where the place is the label's, else
            "conflicting".
    """

    NAME = "waterbirds"
    NEEDS = "metadata.csv with the columns img_filename, y, split and place"
    BUILDER = "waterbirds"
    OPTIONS = (*BirdRelease.OPTIONS, "four_groups")
    license = "other"
    COLUMNS = ("img_filename", "y", "split", "place")
    LABELS = {"0": "landbird", "1": "waterbird"}
    PLACES = {"0": "land", "1": "water"}
    SPLIT_CODES = {"0": "train", "1": "validation", "2": "test"}

    def __init__(self, root: str | Path, four_groups: bool = False, **options):
        super().__init__(root, **options)
        self.four_groups = four_groups

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        try:
            with open(root / "metadata.csv", encoding="utf-8-sig") as file:
                return set(cls.COLUMNS) <= set(file.readline(10_000).strip().split(","))
        except (OSError, UnicodeError):
            return False

    @cached_property
    def label_names(self) -> list[str]:
        return list(self.LABELS.values())

    @property
    def description(self) -> str:
        return (
            "Waterbirds as group_DRO and WILDS publish it: birds of CUB-200-2011, cut out and put on land or water of "
            "Places. WILDS restricts the use to non-commercial research and education. "
            f"{UNVERIFIED} Published of Waterbirds-95: 4,795 training pictures (landbirds 3,498 on land and 184 on "
            "water, waterbirds 56 on land and 1,057 on water), 1,199 of validation and 5,794 of test."
        )

    @property
    def selection(self) -> str:
        groups = "`group` is `aligned` where the place is the label's, else `conflicting`."
        if self.four_groups:
            groups = "`group` is the label on the place: the four groups whose worst accuracy is published."
        return (
            f"Every row of `metadata.csv`, in its published split. {groups} In training most pictures are aligned; in "
            "validation and test half of each class. Published average accuracies weigh the test groups by their "
            f"shares in training. {self.evidence}"
        )

    @property
    def citation(self) -> str:
        return f"{WATERBIRDS_CITATION}\n\n{super().citation}"

    def raw_items(self) -> Iterator[tuple]:
        path = self.root / "metadata.csv"
        for number, row in read_csv(path, self.COLUMNS):
            key = row["img_filename"] or f"line {number}"
            yield key, self.SPLIT_CODES.get(row["split"]), f"{path}: line {number}", row

    def check(self, key: str, split: str | None, where: str, row: dict) -> Item:
        check_cells(row, where)
        picture = check_name(row["img_filename"], where, "img_filename")
        label = meaning(self.LABELS, row["y"], where, "y")
        place = meaning(self.PLACES, row["place"], where, "place")
        own = "aligned" if row["y"] == row["place"] else "conflicting"
        return Item(
            id=picture,
            where=where,
            image=picture,
            label=label,
            rationales=self.read_captions(picture, where),
            visual_explanation=self.mask(picture),
            split=meaning(self.SPLIT_CODES, row["split"], where, "split"),
            group=f"{label} on {place}" if self.four_groups else own,
            fields=("img_filename", "segmentations"),
        )
