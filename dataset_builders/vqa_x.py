"""VQA-X (Park et al., 2018, arXiv:1802.08129) reduced to object categories, for Object-ME.

```
<root>/Annotations/{train,val,test}_exp_anno.json            {question id: [rationales]}
<root>/Annotations/v2_mscoco_{train,val}2014_annotations.json    VQA v2: {"annotations": [{"question_id", "image_id",
                                                             "multiple_choice_answer", ...}]}
<root>/Annotations/visual/{val,test}/<question id>.npy       the maps of one or more people, where there are any
<root>/Images/{train,val}2014/COCO_<year>_<image id>.jpg     COCO 2014, or in the folder `--images`
```

The files may also lie in `textual`, `visual` and `images`, as the archive is published. VQA v2's questions are not
read: its annotations have the answer and the picture.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from .act_x import CITATION, PUBLISHED_SPLITS, PublishedMaps
from .items import bad_item, bad_source, check_rationales, shown, stream_json
from .sources import Item, Source, find


ANNOTATIONS = ("Annotations", "annotations", "textual", ".")
YEARS = ("train2014", "val2014")
ARTICLES = ("a ", "an ", "the ")


class VqaX(Source):
    """The items of VQA-X whose majority answer names an object category of COCO, one category a picture.

    A picture whose questions name different categories is left out. The published splits are kept.
    """

    NAME = "vqa_x"
    NEEDS = "Annotations/{train,val,test}_exp_anno.json and VQA v2's annotations"
    BUILDER = "object_me"
    IMAGES = ("Images", "images")
    citation = CITATION

    def __init__(self, root: str | Path, **options):
        super().__init__(root, **options)
        self.maps = PublishedMaps(self.root, ".", "Annotations")
        self.categories = read_categories()

    @classmethod
    def is_layout_of(cls, root: Path) -> bool:
        return any(find(root, f"{name}_exp_anno.json", *ANNOTATIONS) for name in PUBLISHED_SPLITS)

    @cached_property
    def label_names(self) -> list[str]:
        present = self.index.distinct("label")
        return [name for name in dict.fromkeys(self.categories.values()) if name in present]

    @property
    def description(self) -> str:
        return (
            "VQA-X, rationales and maps for questions of VQA v2 on COCO 2014, each under the terms of its publisher."
        )

    @property
    def selection(self) -> str:
        return (
            "The paper does not publish its selection; this is ours. An item is kept if its majority answer "
            "(`multiple_choice_answer`) names one of COCO's 80 object categories, in the singular, the plural or a "
            "synonym of `coco_synonyms.json`, and if all such answers for its picture name the same one, which is the "
            "label. The published splits are kept; a picture of several splits stays in the last of train, validation "
            "and test."
        )

    def raw_items(self) -> Iterator[tuple]:
        explained = list(self.read_explanations())
        answers = self.read_answers({key for key, *_ in explained})
        named = {}
        for key, *_ in explained:
            if key in answers:
                answer, picture = answers[key]
                named.setdefault(picture, set()).add(self.category(answer))
        for key, split, path, name, rationales in explained:
            answer, picture = answers.get(key, (None, None))
            category = self.category(answer)
            if picture is not None and category is None:
                self.dropped["the answer names no object category"] += 1
            elif picture is not None and len(named[picture] - {None}) > 1:
                self.dropped["the picture's answers name different categories"] += 1
            else:
                yield key, split, path, name, rationales, picture, category
        self.maps.check()

    def read_explanations(self) -> Iterator[tuple]:
        for name, split in PUBLISHED_SPLITS.items():
            path = find(self.root, f"{name}_exp_anno.json", *ANNOTATIONS)
            if path is not None:
                for key, rationales in stream_json(path):
                    yield key, split, path, name, rationales

    def read_answers(self, keys: set[str]) -> dict[str, tuple[str, str]]:
        """Question id to (answer, path of the picture), for the questions that have rationales."""
        answers = {}
        for year in YEARS:
            path = find(self.root, f"v2_mscoco_{year}_annotations.json", *ANNOTATIONS)
            if path is None:
                continue
            for entry in stream_json(path, "annotations"):
                key = str(entry.get("question_id")) if isinstance(entry, dict) else None
                if key not in keys:
                    continue
                answer, image = entry.get("multiple_choice_answer"), entry.get("image_id")
                if not isinstance(answer, str) or type(image) is not int:
                    raise bad_source(
                        f"{path}: question {key}",
                        "`multiple_choice_answer` to be text and `image_id` a whole number",
                        f"{shown(answer)} and {shown(image)}",
                        "Download VQA v2's annotations again.",
                    )
                answers[key] = (answer, f"{year}/COCO_{year}_{image:012d}.jpg")
        if not answers:
            raise bad_source(
                self.root,
                "v2_mscoco_{train,val}2014_annotations.json of VQA v2 with the questions of VQA-X",
                "none of them",
                "Copy them into Annotations/.",
            )
        return answers

    def category(self, answer: str | None) -> str | None:
        """The category that an answer names, if any."""
        if answer is None:
            return None
        answer = " ".join(answer.lower().split()).rstrip(".")
        for article in ARTICLES:
            answer = answer.removeprefix(article)
        return self.categories.get(answer)

    def check(self, key: str, split: str, path: Path, name: str, rationales, picture, category) -> Item:
        where = f"{path}: item {key!r}"
        if picture is None:
            raise bad_item(where, "a question of VQA v2's annotations", "none of that id", "Add the missing file.")
        return Item(
            id=key,
            where=where,
            image=picture,
            label=category,
            rationales=check_rationales(rationales, where, "rationales"),
            visual_explanation=self.maps.path(name, key),
            split=split,
            fields=("image_id", "visual"),
        )


def read_categories() -> dict[str, str]:
    """Each form of a category's name to the category, in COCO's order."""
    forms = json.loads((Path(__file__).parent / "coco_synonyms.json").read_text(encoding="utf-8"))
    return {form: category for category, others in forms.items() for form in (category, *others)}
