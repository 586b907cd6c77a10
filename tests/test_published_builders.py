"""Tests of the builders of published data sets, on small folders with the published names and forms of files."""

import io
import shutil
import sys

import numpy as np
import pytest
from dataset_sources import load, write_picture
from datasets import Image
from huggingface_hub import DatasetCard
from PIL import Image as PILImage

from dataset_builders import Cub, HardImageNet, ImageNetS, ObjectMe, Pets, Waterbirds, build_dataset
from dataset_builders.birds import attribute_sentences, class_name


pytestmark = pytest.mark.usefixtures("own_cache")
ALBATROSS = "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18"
LAYSAN = "002.Laysan_Albatross/Laysan_Albatross_0002_1027"
BUNTING = "016.Painted_Bunting/Painted_Bunting_0001_16585"
CARDINAL = "017.Cardinal/Cardinal_0001_17057"
BIRDS = (ALBATROSS, LAYSAN, BUNTING, CARDINAL)
# A mask of five people: what k of them put inside is k / 5 of white.
SHARES = np.zeros((30, 40), dtype=np.uint8)
SHARES[5:20, 10:25] = np.repeat([51, 102, 153, 204, 255], 3)
CAPTIONS = b"this bird is brown with a long bill.\na dark bird, \xef\xbf\xbd\xef\xbf\xbdwith  long wings .\n\n"
SAID = ["this bird is brown with a long bill.", "a dark bird, with long wings ."]


def write_mask(path, values=SHARES):
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(values).save(path)


def write_text(path, content: str | bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_masks_and_captions(root):
    for bird in BIRDS:
        write_mask(root / "segmentations" / f"{bird}.png")
        write_text(root / "cvpr2016_cub" / "text_c10" / f"{bird}.txt", CAPTIONS)


def published_parts(root) -> dict[str, str]:
    return {"masks": str(root / "segmentations"), "captions": str(root / "cvpr2016_cub" / "text_c10")}


def rows_of(folder, *splits) -> dict[str, dict]:
    return {row["id"]: {**row, "split": split} for split in splits for row in load(folder, split)}


def card_of(folder) -> DatasetCard:
    return DatasetCard.load(folder / "README.md")


def one_line(text: str) -> str:
    return " ".join(text.split())


# Waterbirds

WATERBIRDS_TABLE = f"""img_id,img_filename,y,split,place,place_filename
1,{ALBATROSS}.jpg,1,2,0,/b/bamboo_forest/00000045.jpg
2,{LAYSAN}.jpg,1,0,1,/o/ocean/00002545.jpg
850,{BUNTING}.jpg,0,1,0,/f/forest/broadleaf/00000013.jpg
910,{CARDINAL}.jpg,0,0,1,/l/lake/natural/00000005.jpg
"""


def make_waterbirds(root, table=WATERBIRDS_TABLE):
    folder = root / "waterbird_complete95_forest2water2"
    write_text(folder / "metadata.csv", table)
    for number, bird in enumerate(BIRDS):
        write_picture(folder / f"{bird}.jpg", (number * 60, 90, 30))
    write_masks_and_captions(root)
    return folder


def test_waterbirds(tmp_path):
    root = make_waterbirds(tmp_path)
    counts = build_dataset(Waterbirds, root, tmp_path / "out", **published_parts(tmp_path))
    assert counts == {
        "train": {"landbird": (1, 1, 2), "waterbird": (1, 1, 2)},
        "validation": {"landbird": (1, 1, 2), "waterbird": (0, 0, 0)},
        "test": {"landbird": (0, 0, 0), "waterbird": (1, 1, 2)},
    }
    rows = rows_of(tmp_path / "out", "train", "validation", "test")
    assert [(key, row["label"], row["group"], row["split"]) for key, row in rows.items()] == [
        (f"{LAYSAN}.jpg", 1, "aligned", "train"),
        (f"{CARDINAL}.jpg", 0, "conflicting", "train"),
        (f"{BUNTING}.jpg", 0, "aligned", "validation"),
        (f"{ALBATROSS}.jpg", 1, "conflicting", "test"),
    ]
    for row in rows.values():
        # A majority is three of five.
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), np.where(SHARES >= 153, 255, 0))
        assert row["textual_explanations"] == SAID
    raw = load(tmp_path / "out", "test").cast_column("image", Image(decode=False))[0]["image"]
    assert raw == {"bytes": (root / f"{ALBATROSS}.jpg").read_bytes(), "path": "Black_Footed_Albatross_0046_18.jpg"}


def test_the_card_of_waterbirds(tmp_path):
    root = make_waterbirds(tmp_path)
    build_dataset(Waterbirds, root, tmp_path / "out", **published_parts(tmp_path))
    card = card_of(tmp_path / "out")
    text = one_line(card.text)
    assert (card.data.license, card.data.pretty_name, card.data.language) == ("other", "Waterbirds", ["en"])
    for part in (
        "WILDS restricts the use to non-commercial research and education",
        "never on the published files themselves",
        "4,795 training pictures",
        "`group` is `aligned` where the place is the label's, else `conflicting`.",
        "1 where more than half of those who drew it say so.",
        "captions of Reed et al. (2016)",
        "sagawa2020distributionally",
        "wah2011cub",
        "reed2016learning",
    ):
        assert part in text, part
    build_dataset(Waterbirds, root, tmp_path / "bare", four_groups=True)
    card = card_of(tmp_path / "bare")
    text = one_line(card.text)
    assert card.data.language is None and "megl2024" not in text  # no rationales; not this project's data
    assert "`group` is the label on the place" in text and "There are no masks." in text and "reed2016" not in text


def test_waterbirds_in_the_four_published_groups(tmp_path):
    counts = build_dataset(Waterbirds, make_waterbirds(tmp_path), tmp_path / "out", four_groups=True)
    assert counts["train"] == {"landbird": (1, 0, 0), "waterbird": (1, 0, 0)}
    rows = rows_of(tmp_path / "out", "train", "validation", "test")
    groups = ["waterbird on water", "landbird on water", "landbird on land", "waterbird on land"]
    assert [row["group"] for row in rows.values()] == groups
    assert {row["visual_explanation"] for row in rows.values()} == {None}
    assert [row["textual_explanations"] for row in rows.values()] == [[]] * 4


def test_masks_and_captions_are_found_inside_the_source(tmp_path):
    root = make_waterbirds(tmp_path)
    for name in ("segmentations", "cvpr2016_cub"):
        (tmp_path / name).rename(root / name)
    assert build_dataset(Waterbirds, root, tmp_path / "out")["test"]["waterbird"] == (1, 1, 2)


def test_waterbirds_by_the_command_in_two_processes(tmp_path, monkeypatch, capsys):
    from megl.scripts import prepare_dataset

    command = ["prepare_dataset", "waterbirds", "--source", make_waterbirds(tmp_path), "--output", tmp_path / "out"]
    command += ["--masks", tmp_path / "segmentations", "--num_proc", 2, "--max_shard_size", 100]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    prepare_dataset.main()
    assert "| landbird | 1 (1, 0) | 1 (1, 0) | 0 (0, 0) |" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out" / "data").glob("train-*")) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert list(rows_of(tmp_path / "out", "train")) == [f"{LAYSAN}.jpg", f"{CARDINAL}.jpg"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "img_filename,y,split,place,",
            "img_filename,y,split,background,",
            r"columns \['img_filename', 'y', 'split', ",
        ),
        ("1,2,0,/b", "1,3,0,/b", r"line 2: expected `split` to be one of \['0', '1', '2'\], got '3'"),
        ("1,2,0,/b", "waterbird,2,0,/b", r"line 2: expected `y` to be one of \['0', '1'\], got 'waterbird'"),
        ("1,2,0,/b", "1,2,,/b", r"line 2: expected `place` to be one of \['0', '1'\], got ''"),
        (",1,2,0,/b/bamboo_forest/00000045.jpg", ",1,2", "line 2: expected a cell for each of .*, got another number"),
        ("0045.jpg\n", "0045.jpg,more\n", "line 2: expected a cell for each of .*, got another number"),
        (f"1,{ALBATROSS}.jpg", "1,", "line 2: expected `img_filename` to be a name, got ''"),
        (f"1,{ALBATROSS}", "1,no/bird", "expected the file that `img_filename` names, got no file 'no/bird.jpg'"),
        (f"1,{ALBATROSS}", "1,../bird", "expected `img_filename` to be a path inside the source folder"),
        (LAYSAN, ALBATROSS, "line 3: expected an id of its own, got '001.Black.*', which occurs twice"),
    ],
)
def test_a_bad_table_of_waterbirds(tmp_path, old, new, message):
    assert WATERBIRDS_TABLE.count(old) == 1
    root = make_waterbirds(tmp_path, WATERBIRDS_TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        build_dataset(Waterbirds, root, tmp_path / "out", masks=str(tmp_path / "segmentations"))
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_missing_or_no_text(tmp_path):
    root = make_waterbirds(tmp_path)
    (root / "metadata.csv").write_bytes(b"img_filename,y,split,place\n\xff,0,0,0\n")
    with pytest.raises(ValueError, match="metadata.csv: expected a CSV table in UTF-8, got text that is not"):
        build_dataset(Waterbirds, root, tmp_path / "out")
    (root / "metadata.csv").unlink()
    with pytest.raises(ValueError, match="metadata.csv: expected a text file, got no such file"):
        build_dataset(Waterbirds, root, tmp_path / "out")


@pytest.mark.parametrize(
    "values, message",
    [
        (SHARES[:, :30], r"picture's aspect ratio \(40 x 30 pixels\), got .*_0046_18.png of 30 x 30"),
        (np.minimum(SHARES, 102), "expected a mask with a pixel above one half, got .*_0046_18.png, which has none"),
        (SHARES // 255, "expected an integer visual explanation in 0..255, got .* with 0 and 1 only"),
        (SHARES * 0, "expected a visual explanation that points somewhere, got .*, all zero"),
        (None, r"the file that `segmentations` names, got no file '001.Black_footed_Albatross/.*_0046_18.png'"),
    ],
)
def test_a_bad_mask_of_a_bird(tmp_path, values, message):
    root = make_waterbirds(tmp_path)
    path = tmp_path / "segmentations" / f"{ALBATROSS}.png"
    path.unlink() if values is None else write_mask(path, values)
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        build_dataset(Waterbirds, root, tmp_path / "out", masks=str(tmp_path / "segmentations"))
    options = {"masks": str(tmp_path / "segmentations"), "on_error": "skip"}
    build_dataset(Waterbirds, root, tmp_path / "out", **options)
    assert sorted(rows_of(tmp_path / "out", "train", "validation")) == sorted(f"{bird}.jpg" for bird in BIRDS[1:])
    assert "skipped: 1" in card_of(tmp_path / "out").text


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a bird\xff", "expected captions in UTF-8"),
        (b" \n\n", "expected a caption, got none in Black_Footed_Albatross_0046_18.txt"),
        (None, "the file that `text_c10` names, got no file"),
    ],
)
def test_bad_captions(tmp_path, content, message):
    root = make_waterbirds(tmp_path)
    path = tmp_path / "cvpr2016_cub" / "text_c10" / f"{ALBATROSS}.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=f"line 2: .*{message}" if content is None else message):
        build_dataset(Waterbirds, root, tmp_path / "out", captions=str(tmp_path / "cvpr2016_cub" / "text_c10"))


def test_a_picture_with_colours_as_its_mask_counts_as_grey(tmp_path):
    root = make_waterbirds(tmp_path)
    stream = io.BytesIO()
    PILImage.fromarray(SHARES).convert("RGBA").save(stream, format="PNG")
    (tmp_path / "segmentations" / f"{ALBATROSS}.png").write_bytes(stream.getvalue())
    build_dataset(Waterbirds, root, tmp_path / "out", masks=str(tmp_path / "segmentations"))
    mask = rows_of(tmp_path / "out", "test")[f"{ALBATROSS}.jpg"]["visual_explanation"]
    np.testing.assert_array_equal(np.asarray(mask), np.where(SHARES >= 153, 255, 0))


# CUB-200-2011

CUB_TABLES = {
    "images.txt": f"1 {ALBATROSS}.jpg\n61 {LAYSAN}.jpg\n850 {BUNTING}.jpg\n",
    "image_class_labels.txt": "1 1\n61 2\n850 16\n",
    "train_test_split.txt": "1 0\n61 1\n850 1\n",
    "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n16 016.Painted_Bunting\n",
    "attributes/certainties.txt": "1 not visible\n2 guessing\n3 probably\n4 definitely\n",
    # <image> <attribute> <present> <certainty> <time>; a few lines of the published file have a word more.
    "attributes/image_attribute_labels.txt": """1 2 1 4 27.7080
1 6 1 3 1.8
1 7 1 2 1.8
1 11 1 4 1.8
1 9 0 4 27.7080
61 9 1 4 0 1.509
61 10 1 3 3.5
61 11 1 1 3.5
850 1 1 4 5.115
""",
}
ATTRIBUTES = """1 has_bill_shape::curved_(up_or_down)
2 has_bill_shape::dagger
6 has_bill_length::about_the_same_as_head
7 has_bill_color::grey
9 has_upper_tail_color::brown
10 has_upper_tail_color::grey
11 has_size::medium_(9_-_16_in)
"""


def make_cub(root, **tables):
    """The folder that holds CUB_200_2011, with attributes.txt beside it, as the archive has it."""
    for name, content in {**CUB_TABLES, **tables}.items():
        write_text(root / "CUB_200_2011" / name, content)
    write_text(root / "attributes.txt", ATTRIBUTES)
    for number, bird in enumerate(BIRDS[:3]):
        write_picture(root / "CUB_200_2011" / "images" / f"{bird}.jpg", (number * 60, 90, 30))
        write_mask(root / "segmentations" / f"{bird}.png")
    return root


def test_cub(tmp_path):
    counts = build_dataset(Cub, make_cub(tmp_path / "cub"), tmp_path / "out")
    assert counts == {
        "train": {"Black footed Albatross": (0, 0, 0), "Laysan Albatross": (1, 1, 1), "Painted Bunting": (1, 1, 1)},
        "test": {"Black footed Albatross": (1, 1, 2), "Laysan Albatross": (0, 0, 0), "Painted Bunting": (0, 0, 0)},
    }
    rows = rows_of(tmp_path / "out", "train", "test")
    assert [(key, row["label"], row["split"], row["group"]) for key, row in rows.items()] == [
        (f"{LAYSAN}.jpg", 1, "train", None),
        (f"{BUNTING}.jpg", 2, "train", None),
        (f"{ALBATROSS}.jpg", 0, "test", None),
    ]
    assert [row["textual_explanations"] for row in rows.values()] == [
        ["The color of the upper tail is brown and grey."],
        ["The shape of the bill is curved (up or down)."],
        [
            "The shape of the bill is dagger, its length is about the same as head.",
            "The size of the bird is medium (9 - 16 in).",
        ],
    ]
    for row in rows.values():
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), np.where(SHARES >= 153, 255, 0))


def test_the_card_of_cub(tmp_path):
    build_dataset(Cub, make_cub(tmp_path / "cub"), tmp_path / "out")
    card = card_of(tmp_path / "out")
    text = one_line(card.text)
    assert (card.data.license, card.data.pretty_name) == ("unknown", "CUB-200-2011")
    for part in (
        "Its README names no licence",
        "never on the published files themselves",
        "5,994 training and 5,794 test pictures",
        "CUB has no validation split: papers choose by the test split",
        "`--validation_share` can draw one from the training split; none is.",
        "sentences written by code",
        "wah2011cub",
    ):
        assert part in text, part


def test_a_validation_split_is_drawn_from_the_training_split_alone(tmp_path):
    root = make_cub(tmp_path / "cub")
    counts = build_dataset(Cub, root, tmp_path / "out", validation_share=0.5)
    assert {split: sum(number for number, *_ in of.values()) for split, of in counts.items()} == {
        "validation": 2,  # half of one picture of each of two classes, rounded up
        "test": 1,
    }
    assert list(rows_of(tmp_path / "out", "test")) == [f"{ALBATROSS}.jpg"]
    text = one_line(card_of(tmp_path / "out").text)
    assert "50% of each class of the training split, drawn with seed 0, are the validation split." in text
    with pytest.raises(ValueError, match="expected no `test_share`, as the test split is published, got 0.2"):
        build_dataset(Cub, root, tmp_path / "out2", test_share=0.2)


def test_cub_with_captions_has_no_sentences_of_attributes(tmp_path):
    root = make_cub(tmp_path / "cub")
    write_masks_and_captions(root)
    (root / "attributes.txt").unlink()  # which is not read then
    build_dataset(Cub, root, tmp_path / "out")
    assert [row["textual_explanations"] for row in rows_of(tmp_path / "out", "train", "test").values()] == [SAID] * 3
    text = one_line(card_of(tmp_path / "out").text)
    assert "captions of Reed et al. (2016)" in text and "sentences written by code" not in text


def test_the_folder_of_cub_itself_is_a_source(tmp_path):
    root = make_cub(tmp_path / "cub")
    options = {"masks": str(root / "segmentations")}
    with pytest.raises(ValueError, match="attributes: expected a file attributes.txt, got none. Copy it from beside"):
        build_dataset(Cub, root / "CUB_200_2011", tmp_path / "out", **options)
    (root / "attributes.txt").rename(root / "CUB_200_2011" / "attributes" / "attributes.txt")
    assert build_dataset(Cub, root / "CUB_200_2011", tmp_path / "out", **options)["train"]["Laysan Albatross"] == (
        1,
        1,
        1,
    )
    with pytest.raises(ValueError, match="expected the builder cub for the layout cub, got object_me"):
        build_dataset(ObjectMe, root / "CUB_200_2011", tmp_path / "out2")


def test_cub_without_masks_and_attributes(tmp_path):
    root = make_cub(tmp_path / "cub")
    (root / "CUB_200_2011" / "attributes" / "image_attribute_labels.txt").unlink()
    counts = build_dataset(Cub, root / "CUB_200_2011", tmp_path / "out")
    assert counts["train"]["Laysan Albatross"] == (1, 0, 0)
    assert "There are no masks." in one_line(card_of(tmp_path / "out").text)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("image_class_labels.txt", "1 1\n850 16\n", "image 61: expected `image_class_labels.txt` to be .*, got None"),
        ("image_class_labels.txt", "1 1\n61 3\n850 16\n", r"to be one of \['1', '2', '16'\], got '3'"),
        ("train_test_split.txt", "1 0\n61 2\n850 1\n", r"image 61: .*split.txt` to be one of \['0', '1'\], got '2'"),
        ("images.txt", f"1 {ALBATROSS}.jpg\n1 {LAYSAN}.jpg\n", "line 2: expected an id that occurs once and one word"),
        (
            "images.txt",
            "1 a b.jpg\n",
            "images.txt: line 1: expected an id that occurs once and one word, got '1 a b.jpg'",
        ),
        ("images.txt", "1 no/bird.jpg\n", "expected the file that `images.txt` names, got no file 'no/bird.jpg'"),
        ("images.txt", b"1 \xff.jpg\n", "images.txt: expected text in UTF-8"),
        ("classes.txt", "1 001.A\n2 002.A\n", "classes.txt: expected a name of its own for each class, got .*'A'"),
        ("attributes/image_attribute_labels.txt", "1 8 1 4 2.0\n", "line 1: expected an image, an attribute, 0 or 1"),
        ("attributes/image_attribute_labels.txt", "1 1 1\n", "line 1: expected an image, an attribute, 0 or 1"),
        ("attributes/image_attribute_labels.txt", "1 1 4 1\n", "line 1: expected an image, an attribute, 0 or 1"),
        (
            "attributes/attributes.txt",
            "1 bill\n",
            "attributes.txt: expected attributes such as has_bill_shape::dagger",
        ),
    ],
)
def test_a_bad_table_of_cub(tmp_path, name, content, message):
    root = make_cub(tmp_path / "cub", **{name: content})
    with pytest.raises(ValueError, match=message):
        build_dataset(Cub, root, tmp_path / "out")


@pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt", "classes.txt", "images.txt"])
def test_a_missing_table_of_cub(tmp_path, name):
    root = make_cub(tmp_path / "cub")
    (root / "CUB_200_2011" / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: expected a text file, got no such file"):
        build_dataset(Cub, root, tmp_path / "out")


def test_sentences_of_attributes():
    assert attribute_sentences([]) == []
    assert attribute_sentences(
        [("wing", "color", "blue"), ("bird", "size", "small"), ("wing", "color", "grey"), ("wing", "shape", "long")]
    ) == ["The color of the wing is blue and grey, its shape is long.", "The size of the bird is small."]
    assert class_name("029.American_Crow") == "American Crow" and class_name("crow") == "crow"


# Oxford-IIIT Pet

PETS_TABLES = {
    "list.txt": "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\nAbyssinian_100 1 1 1\n",
    "trainval.txt": "Abyssinian_100 1 1 1\namerican_bulldog_100 2 2 1\n",
    "test.txt": "Abyssinian_201 1 1 1\n",
}
TRIMAP = np.full((30, 40), 2, dtype=np.uint8)
TRIMAP[4:21, 9:26] = 3
TRIMAP[5:20, 10:25] = 1


def make_pets(root, **tables):
    for name, content in {**PETS_TABLES, **tables}.items():
        write_text(root / "annotations" / name, content)
    for number, pet in enumerate(("Abyssinian_100", "american_bulldog_100", "Abyssinian_201")):
        write_picture(root / "images" / f"{pet}.jpg", (number * 60, 90, 30))
        write_mask(root / "annotations" / "trimaps" / f"{pet}.png", TRIMAP)
    return root


def test_pets(tmp_path):
    counts = build_dataset(Pets, make_pets(tmp_path / "pets"), tmp_path / "out")
    assert counts == {
        "train": {"Abyssinian": (1, 1, 0), "American Bulldog": (1, 1, 0)},
        "test": {"Abyssinian": (1, 1, 0), "American Bulldog": (0, 0, 0)},
    }
    rows = rows_of(tmp_path / "out", "train", "test")
    assert [(key, row["label"], row["group"], row["split"]) for key, row in rows.items()] == [
        ("Abyssinian_100", 0, "cat", "train"),
        ("american_bulldog_100", 1, "dog", "train"),
        ("Abyssinian_201", 0, "cat", "test"),
    ]
    for row in rows.values():
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), np.where(TRIMAP == 1, 255, 0))
        assert row["textual_explanations"] == []
    card = card_of(tmp_path / "out")
    assert (card.data.license, card.data.pretty_name) == ("cc-by-sa-4.0", "Oxford-IIIT Pet")
    for part in ("3,680 pictures for training", "never on the published files", "parkhi2012cats", "trimap says pet"):
        assert part in one_line(card.text), part


def test_pets_without_trimaps_and_with_a_drawn_validation_split(tmp_path):
    root = make_pets(tmp_path / "pets")
    shutil.rmtree(root / "annotations" / "trimaps")
    counts = build_dataset(Pets, root, tmp_path / "out", validation_share=0.5)
    assert counts["validation"] == {"Abyssinian": (1, 0, 0), "American Bulldog": (1, 0, 0)}
    assert counts["test"]["Abyssinian"] == (1, 0, 0)
    assert "There are no masks." in one_line(card_of(tmp_path / "out").text)


@pytest.mark.parametrize(
    "content, message",
    [
        ("Abyssinian_100 1 1\n", "line 1: expected a picture, a class id, a species and a breed id"),
        ("Abyssinian_100 one 1 1\n", "line 1: expected a picture, a class id, a species and a breed id"),
        ("Abyssinian_100 1 3 1\n", r"line 1: expected `species` to be one of \['1', '2'\], got '3'"),
        (
            "Abyssinian_100 1 1 1\nBengal_1 1 1 1\n",
            "line 2: expected a picture of the class 1, 'Abyssinian', got 'Bengal",
        ),
        ("Abyssinian 1 1 1\n", "line 1: expected a picture of the class 1, '', got 'Abyssinian'"),
        ("Bengal_1 6 1 2\n", "line 1: expected the file that `images` names, got no file 'Bengal_1.jpg'"),
        ("Abyssinian_201 1 1 1\n", "test.txt: line 1: expected an id of its own, got 'Abyssinian_201', which occurs"),
    ],
)
def test_a_bad_line_of_pets(tmp_path, content, message):
    root = make_pets(tmp_path / "pets", **{"trainval.txt": content})
    with pytest.raises(ValueError, match=message):
        build_dataset(Pets, root, tmp_path / "out")


def test_pets_without_a_test_split(tmp_path):
    root = make_pets(tmp_path / "pets")
    (root / "annotations" / "test.txt").unlink()
    with pytest.raises(ValueError, match="test.txt: expected a text file, got no such file"):
        build_dataset(Pets, root, tmp_path / "out")


@pytest.mark.parametrize(
    "values, message",
    [
        (TRIMAP[:, :30], r"picture's aspect ratio \(40 x 30 pixels\), got Abyssinian_100.png of 30 x 30"),
        (TRIMAP - 1, r"a trimap of 1 \(pet, somewhere\), 2 and 3, got Abyssinian_100.png with \[0, 1, 2\]"),
        (np.maximum(TRIMAP, 2), r"a trimap of 1 \(pet, somewhere\), 2 and 3, got .* with \[2, 3\]"),
        (np.dstack([TRIMAP] * 3), r"an integer visual explanation that reaches 16 of 255"),
        (None, "the file that `trimaps` names, got no file 'Abyssinian_100.png'"),
    ],
)
def test_a_bad_trimap(tmp_path, values, message):
    root = make_pets(tmp_path / "pets")
    path = root / "annotations" / "trimaps" / "Abyssinian_100.png"
    path.unlink() if values is None else write_mask(path, values)
    with pytest.raises(ValueError, match=f"trainval.txt: line 1: expected .*{message}"):
        build_dataset(Pets, root, tmp_path / "out")


# Hard ImageNet

SLED, MONKEY = "n03218198", "n02492660"
HARD = {
    "train": [(SLED, f"{SLED}_10.JPEG"), (MONKEY, f"{MONKEY}_7.JPEG")],
    "val": [(SLED, "ILSVRC2012_val_00000023.JPEG")],
}
SYNSETS = f"{MONKEY} howler monkey, howler\n{SLED} dogsled, dog sled, dog sleigh\n"


def make_hard_imagenet(root):
    """The masks in `hardImageNet`, the pictures in `ILSVRC2012`."""
    write_text(root / "hardImageNet" / "meta" / "hard_imagenet_idx.pkl", "never read")
    for split, pictures in HARD.items():
        for wnid, name in pictures:
            write_picture(root / "ILSVRC2012" / split / wnid / name)
            PILImage.fromarray(SHARES // 51).save(
                write_folder(root / "hardImageNet" / split) / f"{wnid}_{name}", "PNG"
            )
    return root / "hardImageNet", {"images": str(root / "ILSVRC2012")}


def write_folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_hard_imagenet(tmp_path):
    root, images = make_hard_imagenet(tmp_path)
    write_text(tmp_path / "ILSVRC2012" / "LOC_synset_mapping.txt", SYNSETS)
    counts = build_dataset(HardImageNet, root, tmp_path / "out", **images)
    assert counts == {
        "train": {"howler monkey": (1, 1, 0), "dogsled": (1, 1, 0)},
        "test": {"howler monkey": (0, 0, 0), "dogsled": (1, 1, 0)},
    }
    rows = rows_of(tmp_path / "out", "train", "test")
    assert [(key, row["label"], row["split"]) for key, row in rows.items()] == [
        (f"train/{MONKEY}/{MONKEY}_7.JPEG", 0, "train"),
        (f"train/{SLED}/{SLED}_10.JPEG", 1, "train"),
        (f"val/{SLED}/ILSVRC2012_val_00000023.JPEG", 1, "test"),
    ]
    for row in rows.values():  # values of 1 to 5 of 255 are inside
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), np.where(SHARES > 0, 255, 0))
    card = card_of(tmp_path / "out")
    assert (card.data.license, card.data.pretty_name) == ("other", "Hard ImageNet")
    for part in (
        "750 test pictures",
        "never on the published files",
        "moayeri2022hard",
        "1 where the mask is above 0",
    ):
        assert part in one_line(card.text), part


def test_an_empty_mask_of_hard_imagenet_is_none_and_classes_may_lack_a_name(tmp_path):
    root, images = make_hard_imagenet(tmp_path)
    PILImage.fromarray(SHARES * 0).save(root / "train" / f"{MONKEY}_{MONKEY}_7.JPEG", "PNG")
    counts = build_dataset(HardImageNet, root, tmp_path / "out", validation_share=0.5, **images)
    assert counts == {
        "validation": {MONKEY: (1, 0, 0), SLED: (1, 1, 0)},
        "test": {MONKEY: (0, 0, 0), SLED: (1, 1, 0)},
    }


def test_bad_files_of_hard_imagenet(tmp_path):
    root, images = make_hard_imagenet(tmp_path)
    with pytest.raises(
        ValueError, match="expected `images` to be ImageNet's folder, .*got none. Name it by `--images`"
    ):
        build_dataset(HardImageNet, root, tmp_path / "out")
    with pytest.raises(ValueError, match="expected masks in train/ and val/, got none"):
        build_dataset(HardImageNet, root / "meta", tmp_path / "out", **images)
    mask = root / "train" / f"{MONKEY}_{MONKEY}_7.JPEG"
    PILImage.fromarray(SHARES[:, :30]).save(mask, "PNG")
    with pytest.raises(ValueError, match=r"picture 'train/n02492660/.*aspect ratio \(40 x 30 pixels\), got n02492660"):
        build_dataset(HardImageNet, root, tmp_path / "out", **images)
    mask.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="expected `masks` to be a whole picture, got n02492660_n02492660_7.JPEG"):
        build_dataset(HardImageNet, root, tmp_path / "out", **images)
    (tmp_path / "ILSVRC2012" / "train" / MONKEY / f"{MONKEY}_7.JPEG").unlink()
    with pytest.raises(
        ValueError, match="the file that `images` names, got no file 'train/n02492660/n02492660_7.JPEG'"
    ):
        build_dataset(HardImageNet, root, tmp_path / "out", **images)
    (root / "val" / "stray.png").write_bytes(b"")
    mask.rename(root / "train" / MONKEY)
    with pytest.raises(ValueError, match=f"expected a mask named <wnid>_<picture>, got '{MONKEY}'"):
        build_dataset(HardImageNet, root, tmp_path / "out", **images)


# ImageNet-S

WNIDS = sorted([SLED, MONKEY, *(f"n{number:08d}" for number in range(1440764, 1440812))])
# Numbers above 255 in two channels: the label's class, another one, ignored and none.
CLASS_NUMBERS = np.zeros((30, 40), dtype=int)
CLASS_NUMBERS[5:20, 10:25] = WNIDS.index(MONKEY) + 1
CLASS_NUMBERS[20:25, 10:25] = 3
CLASS_NUMBERS[:, :2] = 1000


def write_segmentation(path, numbers=CLASS_NUMBERS):
    write_mask(path, np.dstack([numbers % 256, numbers // 256, numbers * 0]).astype(np.uint8))


def make_imagenet_s(root, train="train"):
    """ImageNetS50: pictures of one class, folders of all 50."""
    for wnid in WNIDS:
        write_folder(root / "validation" / wnid)
    for folder, name in (
        (train, f"{MONKEY}_7"),
        (train, f"{MONKEY}_8"),
        ("validation", "ILSVRC2012_val_00000003"),
        ("test", "ILSVRC2012_val_00000008"),
    ):
        write_picture(root / folder / MONKEY / f"{name}.JPEG")
    write_segmentation(root / "train-semi-segmentation" / MONKEY / f"{MONKEY}_7.png")
    write_segmentation(root / "validation-segmentation" / MONKEY / "ILSVRC2012_val_00000003.png")
    return root


@pytest.mark.parametrize("train", ["train", "train-semi"])
def test_imagenet_s(tmp_path, train):
    root = make_imagenet_s(tmp_path / "ImageNetS50", train)
    write_text(root / "LOC_synset_mapping.txt", SYNSETS + "n01440764 crane\nn01440765 crane\n")
    counts = build_dataset(ImageNetS, root, tmp_path / "out")
    assert {split: of["howler monkey"] for split, of in counts.items()} == {
        "train": (2, 1, 0),
        "validation": (1, 1, 0),
        "test": (1, 0, 0),
    }
    names = list(counts["train"])
    assert names[:3] == ["crane (n01440764)", "crane (n01440765)", "n01440766"] and len(names) == 50
    rows = rows_of(tmp_path / "out", "train", "validation", "test")
    assert [(key, names[row["label"]], row["visual_explanation"] is None) for key, row in rows.items()] == [
        (f"{train}/{MONKEY}/{MONKEY}_7.JPEG", "howler monkey", False),
        (f"{train}/{MONKEY}/{MONKEY}_8.JPEG", "howler monkey", True),
        (f"validation/{MONKEY}/ILSVRC2012_val_00000003.JPEG", "howler monkey", False),
        (f"test/{MONKEY}/ILSVRC2012_val_00000008.JPEG", "howler monkey", True),
    ]
    expected = np.zeros((30, 40))
    expected[5:20, 10:25] = 255
    for row in list(rows.values())[::2]:
        np.testing.assert_array_equal(np.asarray(row["visual_explanation"]), expected)
    card = card_of(tmp_path / "out")
    assert (card.data.license, card.data.pretty_name) == ("other", "ImageNet-S")
    for part in ("ImageNet-S of 50 classes", "never on the published files", "gao2021luss", "1 on the label's class"):
        assert part in one_line(card.text), part


def test_a_segmentation_without_the_label_is_none(tmp_path):
    root = make_imagenet_s(tmp_path / "ImageNetS50")
    write_segmentation(root / "validation-segmentation" / MONKEY / "ILSVRC2012_val_00000003.png", CLASS_NUMBERS * 0)
    assert build_dataset(ImageNetS, root, tmp_path / "out")["validation"][MONKEY] == (1, 0, 0)


def test_bad_files_of_imagenet_s(tmp_path):
    root = make_imagenet_s(tmp_path / "ImageNetS50")
    path = root / "validation-segmentation" / MONKEY / "ILSVRC2012_val_00000003.png"
    write_segmentation(path, CLASS_NUMBERS + 48)
    with pytest.raises(
        ValueError, match=r"expected numbers of 50 classes, or 1000, got .*00000003.png with \[48, 51, "
    ):
        build_dataset(ImageNetS, root, tmp_path / "out")
    write_segmentation(path, CLASS_NUMBERS[:, :30])
    with pytest.raises(
        ValueError, match=r"aspect ratio \(40 x 30 pixels\), got ILSVRC2012_val_00000003.png of 30 x 30"
    ):
        build_dataset(ImageNetS, root, tmp_path / "out")
    path.unlink()
    with pytest.raises(
        ValueError, match="the file that `masks` names, got no file 'validation-segmentation/n02492660"
    ):
        build_dataset(ImageNetS, root, tmp_path / "out")
    (root / "validation" / WNIDS[0]).rmdir()
    with pytest.raises(ValueError, match="expected 50, 300, 919 classes, since masks number them all, got 49 folders"):
        build_dataset(ImageNetS, root, tmp_path / "out")


# What a builder is for


def test_a_builder_of_published_files_takes_these_alone(tmp_path):
    root = make_waterbirds(tmp_path)
    for options, message in (
        ({"layout": "coco"}, "expected the layout waterbirds for the builder waterbirds, got coco"),
        (
            {"masks": str(tmp_path / "nowhere")},
            "nowhere: expected the folder `segmentations`.*`--masks`",
        ),
        ({"captions": str(tmp_path / "nowhere")}, "expected the folder `text_c10`.*`--captions`"),
        ({"activity_level": "first"}, "expected `activity_level` with the layout act_x alone, got waterbirds"),
    ):
        with pytest.raises(ValueError, match=message):
            build_dataset(Waterbirds, root, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="expected `source` to be a folder with metadata.csv .*, got the sample"):
        build_dataset(Waterbirds, "sample", tmp_path / "out")
    with pytest.raises(ValueError, match="expected the builder waterbirds for the layout waterbirds, got object_me"):
        build_dataset(ObjectMe, root, tmp_path / "out")
    with pytest.raises(ValueError, match="expected `four_groups` with a source folder alone, got the sample"):
        build_dataset(ObjectMe, "sample", tmp_path / "out", four_groups=True)
    with pytest.raises(ValueError, match="a folder of its own, got .*, which is in the source .*segmentations"):
        build_dataset(Waterbirds, root, tmp_path / "segmentations" / "out", masks=str(tmp_path / "segmentations"))


def test_a_table_of_other_columns_is_not_taken_for_waterbirds(tmp_path):
    write_text(tmp_path / "source" / "metadata.csv", "file_name,label\na.jpg,cat\n")
    with pytest.raises(ValueError, match="expected the files of one layout .*, got none of them"):
        build_dataset(ObjectMe, tmp_path / "source", tmp_path / "out")
