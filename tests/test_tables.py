"""Tables of any origin as the scripts open them."""

import io

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from dataset_builders.build import features
from megl.arguments import ColumnArguments
from megl.tables import open_table


pytestmark = pytest.mark.usefixtures("own_cache")

PICTURES = [PILImage.new("RGB", (8, 8), (50 * number, 0, 0)) for number in range(4)]
TEXTS = List(Value("string"))


@pytest.fixture
def write(tmp_path):
    """`write(**columns)`, each a list of four values and their feature, writes the split `test` of a data set."""

    def write(**columns):
        columns = {"image": (PICTURES, Image()), **columns}
        kinds = Features({name: feature for name, (_, feature) in columns.items()})
        rows = Dataset.from_dict({name: values for name, (values, _) in columns.items()}, features=kinds)
        (tmp_path / "table" / "data").mkdir(parents=True)
        rows.to_parquet(tmp_path / "table" / "data" / "test-00000-of-00001.parquet")
        return tmp_path / "table"

    return write


LABELS = ([0, 1, 0, 1], ClassLabel(names=["x", "y"]))


def test_a_data_set_of_the_builders_stays_as_it_is_on_disk(write):
    """Nor is any picture decoded: these cannot be."""
    broken = [{"bytes": b"no picture", "path": None}] * 4
    folder = write(
        id=(list("abcd"), Value("string")),
        image=(broken, Image()),
        label=LABELS,
        visual_explanation=([None, *broken[1:]], Image()),
        textual_explanations=([["one"], ["two", "three"], [], ["four"]], TEXTS),
        group=(["g", None, "h", None], Value("string")),
    )
    table = open_table(folder, "test")
    assert table.features == features(["x", "y"])
    expected = load_dataset(str(folder), split="test")
    assert table.cache_files == expected.cache_files != []
    assert table.data.nbytes == expected.data.nbytes
    columns = ["id", "label", "textual_explanations", "group"]
    assert table.select_columns(columns)[:] == expected.select_columns(columns)[:]


@pytest.mark.parametrize(
    "values, feature, class_names, names, ids",
    [
        (["dog", "cat", "dog", "owl"], Value("string"), None, ["cat", "dog", "owl"], [1, 0, 1, 2]),
        (
            ["dog", "cat", "dog", "owl"],
            Value("large_string"),
            ["owl", "dog", "cat"],
            ["owl", "dog", "cat"],
            [1, 2, 1, 0],
        ),
        ([10, 9, 10, 2], Value("int32"), None, ["2", "9", "10"], [2, 1, 2, 0]),
        ([0, 2, 1, 0], Value("uint8"), ["cat", "dog", "owl"], ["cat", "dog", "owl"], [0, 2, 1, 0]),
        ([9, 2, 9, 2], Value("int64"), ["2", "9", "10"], ["2", "9", "10"], [1, 0, 1, 0]),
        ([0, 1, 1, 0], ClassLabel(names=["x", "y"]), ["x", "y"], ["x", "y"], [0, 1, 1, 0]),
        ([0, 1, 1, 0], ClassLabel(num_classes=2), None, ["0", "1"], [0, 1, 1, 0]),
    ],
)
def test_labels_are_names_numbers_or_classes(write, values, feature, class_names, names, ids):
    table = open_table(write(label=(values, feature)), "test", class_names=class_names)
    assert table.features["label"] == ClassLabel(names=names)
    assert table["label"] == ids


@pytest.mark.parametrize(
    "values, feature, kept",
    [
        ([1, -1, 0, 1], ClassLabel(names=["x", "y"]), [0, 2, 3]),
        ([None, 0, 0, 1], ClassLabel(names=["x", "y"]), [1, 2, 3]),
        ([7, 9, -1, -1], Value("int64"), [0, 1]),
        (["b", " ", None, "a"], Value("string"), [0, 3]),
    ],
)
def test_items_of_unknown_class_are_left_out_and_counted(write, capsys, values, feature, kept):
    table = open_table(write(label=(values, feature)), "test")
    assert table["id"] == [str(row) for row in kept]
    assert [row["image"].getpixel((0, 0))[0] for row in table] == [50 * row for row in kept]
    assert f"{4 - len(kept)} of 4 items of split `test`" in capsys.readouterr().err


def test_what_optional_columns_lack(write):
    table = open_table(write(label=LABELS), "test")
    assert table.features == features(["x", "y"]) and table["id"] == ["0", "1", "2", "3"]
    for column, value in (("visual_explanation", None), ("textual_explanations", []), ("group", None)):
        assert table[column] == [value] * 4


def test_columns_of_other_names_and_kinds(write):
    buffer = io.BytesIO()
    PICTURES[3].save(buffer, "PNG")
    stored = {"bytes": Value("binary"), "path": Value("string")}
    folder = write(
        img=([buffer.getvalue()] * 4, Value("binary")),
        fine_label=LABELS,
        mask=([{"bytes": buffer.getvalue(), "path": None}, None, None, None], stored),
        caption=(["a cat", None, " ", "a dog"], Value("string")),
        number=([4, 5, 6, 7], Value("int64")),
        group=([0, 1, -1, 0], ClassLabel(names=["g", "h"])),
        label=([0.5] * 4, Value("float32")),
    )
    names = ColumnArguments("img", "fine_label", "mask", "caption", "number")
    table = open_table(folder, "test", names)
    assert table.features == features(["x", "y"])
    assert table["textual_explanations"] == [["a cat"], [], [], ["a dog"]]
    assert table["id"] == ["4", "5", "6", "7"] and table["group"] == ["g", "h", None, "g"]
    assert table[0]["image"].getpixel((0, 0)) == table[0]["visual_explanation"].getpixel((0, 0)) == (150, 0, 0)
    assert table[1]["visual_explanation"] is None


@pytest.mark.parametrize("kind", [TEXTS, List(Value("string"), length=2), List(Value("large_string"))])
def test_blank_rationales_are_none(write, kind):
    values = [["a", " "], ["", None], ["b", "c"], [None, "d"]]
    table = open_table(write(label=LABELS, textual_explanations=(values, kind)), "test")
    assert table.features["textual_explanations"] == TEXTS
    assert table["textual_explanations"] == [["a"], [], ["b", "c"], ["d"]]


@pytest.mark.parametrize("kind", [Value("string"), Value("large_string"), ClassLabel(names=["g", "", "h"])])
def test_blank_groups_are_none(write, kind):
    table = open_table(write(label=LABELS, group=(["g", "", "h", None], kind)), "test")
    assert table["group"] == ["g", None, "h", None]
    assert table.features["group"] == Value("string")


@pytest.mark.parametrize("as_image", [True, False])
def test_a_map_without_content_is_none(write, as_image):
    buffer = io.BytesIO()
    PICTURES[3].save(buffer, "PNG")
    nothing, stored = {"bytes": None, "path": None}, {"bytes": buffer.getvalue(), "path": None}
    kind = {"bytes": Value("binary"), "path": Value("string")}
    folder = write(label=LABELS, visual_explanation=([nothing, stored, None, nothing], kind))
    if as_image:
        rows = load_dataset(str(folder), split="test").cast_column("visual_explanation", Image())
        rows.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    table = open_table(folder, "test")
    assert table.features == features(["x", "y"])
    assert [row["visual_explanation"] is None for row in table] == [True, False, True, True]
    assert table[1]["visual_explanation"].getpixel((0, 0)) == (150, 0, 0)


@pytest.mark.parametrize(
    "columns, arguments, message",
    [
        ({}, {}, "has no column 'label': name the column by `--label_column`. It has image."),
        ({"label": LABELS}, {"columns": ColumnArguments(id_column="key")}, "no column 'key': .* by `--id_column`"),
        ({"label": ([0.5] * 4, Value("float32"))}, {}, "'label' must hold class names, integers .*, got float32"),
        ({"label": (["x", "z", "x", "x"], Value("string"))}, {"class_names": ["x", "y"]}, "row 1 has 'z' in 'label'"),
        ({"label": ([0, 1, 2, 0], Value("int64"))}, {"class_names": ["x", "y"]}, "row 2 has 2 in 'label', .* 0 to 1"),
        ({"label": ([0, 1, 7, 0], Value("int64"))}, {"class_names": ["0", "1"]}, "row 2 has 7 in 'label'"),
        ({"label": ([-1] * 4, Value("int64"))}, {}, "has no labels: all 4 are -1 or null"),
        ({"label": LABELS, "image": ([None, *PICTURES[1:]], Image())}, {}, "row 0 has no picture in 'image'"),
        (
            {"label": LABELS, "image": (["/etc/x"] * 4, Value("string"))},
            {},
            "'image' must hold pictures .*, got string",
        ),
        ({"label": LABELS, "visual_explanation": ([1] * 4, Value("int64"))}, {}, "must hold pictures .*, got int64"),
        (
            {"label": LABELS, "textual_explanations": ([[1]] * 4, List(Value("int64")))},
            {},
            "a text or a list of texts",
        ),
        ({"label": LABELS, "id": (["a", None, "c", "d"], Value("string"))}, {}, "row 1 has no value in 'id'"),
        ({"label": LABELS, "id": ([0.5] * 4, Value("float64"))}, {}, "'id' must hold texts or integers, got float64"),
        ({"label": LABELS}, {"columns": ColumnArguments(group_column="label")}, "both name 'label'"),
        (
            {"label": LABELS},
            {"split": "tset"},
            "`--split` must name a split of .*, got 'tset'. Its splits are .'test'.",
        ),
        ({"label": LABELS}, {"split": "test[:0]"}, r"`--split 'test\[:0\]'` of .*table .* corresponds to no data"),
        ({"label": LABELS}, {"split": "test[:x]"}, r"`--split 'test\[:x\]'` of .*table cannot be loaded: Unrec"),
        ({"label": LABELS}, {"split": "", "option": "--eval_split"}, "`--eval_split ''` of .*table cannot be loaded"),
        (
            {"label": (pa.array([1, 2, 2**64 - 1, 1], pa.uint64()), Value("uint64"))},
            {},
            "row 2 has 18446744073709551615 in 'label', expected",
        ),
        ({"label": ([0, 1, 0, 1], ClassLabel(names=["x", " "]))}, {}, "class 1 has the blank name ' ', which no "),
        ({"label": ([0, 1, 0, 1], Value("int64"))}, {"class_names": ["", "x"]}, "class 0 has the blank name ''"),
    ],
)
def test_what_is_no_table_of_pictures_is_one_clear_error(write, columns, arguments, message):
    folder, arguments = write(**columns), {"split": "test", **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        open_table(folder, **arguments)
    assert "\n" not in str(caught.value)


def test_a_split_may_be_a_part_or_absent(write):
    folder = write(label=LABELS)
    assert open_table(folder, "test[2:]")["label"] == [0, 1]
    assert open_table(folder, "validation", optional=True) is None


def test_no_data_set_is_one_clear_error(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="^.*$"):
        open_table(tmp_path, "test")
