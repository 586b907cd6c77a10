"""Data sets of any origin with the columns of our builders, checked before any work and without decoding a picture."""

import os
import sys
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Image, List, Value, load_dataset
from datasets.exceptions import DatasetsError

from dataset_builders.build import features, multi_label_features
from megl.arguments import ColumnArguments
from modeling_megl.collator_megl import class_label
from modeling_megl.configuration_megl import one_line
from modeling_megl.processing_megl import read_mask


_STAYS = "stays"  # in place of a column's values: they are as they should be, and stay on disk


def open_table(name, split, columns=None, class_names=None, option="--split", optional=False, multi_label=False):
    """
    A split of a data set with the columns of [`features`]: `id`, `image`, `label`, `visual_explanation`,
    `textual_explanations` and `group`.

    Labels may be a `ClassLabel`, texts or integers. Without `class_names` the classes are the values that occur,
    sorted; with them, texts are class names, and integers are ids, unless the class names are numbers themselves.
    Items without a label (-1 or null) are left out, which is said. A column of one text an item is taken for lists of
    one; blank texts are left out, and blank groups are null. What an optional column lacks is null, the ids are then
    the rows' numbers.

    A label that is a list of `ClassLabel` makes a multi-label table, with the columns of [`multi_label_features`]: for
    each label a mask or null, and a list of texts.

    Pictures stay where they are, on disk and encoded; of the other columns those that differ are rewritten in memory.

    Args:
        name (`str` or `Path`): Hub id or folder of a data set.
        split (`str`): Its split, as `load_dataset` takes it.
        columns ([`ColumnArguments`], *optional*): What its columns are called.
        class_names (`list[str]`, *optional*): The model's classes in the order of their ids.
        option (`str`): The option that named the split, for errors.
        optional (`bool`): Whether the split may be absent; then `None` is returned.
        multi_label (`bool`): Whether items may have several labels.

    Raises:
        `ValueError`: in one line, where the data set, the split, a column or a value is not what is expected.
    """
    columns = columns or ColumnArguments()
    dataset = load_split(name, split, option, optional)
    if dataset is None:
        return None
    where = f"split `{split}` of {name}"
    if not len(dataset):
        raise ValueError(f"{where} has no items: choose another split by `{option}`.")
    found = _find_columns(dataset, columns, where)
    several = isinstance(dataset.features[found["label"]], List)
    if several and not multi_label:
        raise ValueError(
            f"{where}: column {found['label']!r} has several labels an item, which only `megl init`, `train` and "
            "`evaluate` take."
        )
    if several:
        labels, class_names = _read_label_lists(dataset, found["label"], where)
    else:
        labels, class_names = _read_labels(dataset, found["label"], class_names, where)
    blank = [place for place, class_name in enumerate(class_names) if not class_name.strip()]
    if blank:
        raise ValueError(
            f"{where}: class {blank[0]} has the blank name {class_names[blank[0]]!r}, which no prompt can name: "
            "give each class a name."
        )
    ours = multi_label_features(class_names) if several else features(class_names)
    made = {
        "label": _STAYS if dataset.features[found["label"]] == ours["label"] else labels,
        "id": _read_ids(dataset, found["id"], where),
        "group": _read_groups(dataset, found["group"], where),
    }
    if several:
        made |= _read_explanation_lists(dataset, found, where)
    else:
        made["textual_explanations"] = _read_texts(dataset, found["textual_explanations"], where)
    table = _stored_columns(dataset, found, [name for name in ours if made.get(name, _STAYS) is _STAYS], where)
    for column, feature in ours.items():
        if column not in table.column_names:
            values = made.get(column)
            values = pa.nulls(len(table), ours.arrow_schema.field(column).type) if values is None else values
            table = table.add_column(column, values, feature=feature)
    return _labelled(table.select_columns(list(ours)), labels, where)


def load_split(name, split, option="--split", optional=False):
    """A split of a data set as it is; arguments and errors are those of [`open_table`]."""
    try:
        return load_dataset(str(name), split=split)
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise ValueError(f"`{option} {split!r}` of {name} cannot be loaded: {one_line(error)}") from error
        if optional:
            return None
        there = str(error).partition("Should be one of ")[2].rstrip(".")
        raise ValueError(f"`{option}` must name a split of {name}, got {split!r}. Its splits are {there}.") from error
    except (DatasetsError, ConnectionError) as error:
        if not os.path.exists(name):
            raise ValueError(
                f"{name} is neither a folder nor a data set on the Hub that can be reached: check the name, and the "
                "network."
            ) from error
        raise ValueError(f"{name} cannot be loaded as a data set: {one_line(error.__cause__ or error)}") from error


def _find_columns(dataset, columns, where):
    """Our names to the table's, `None` for those that it may lack and does."""
    names = {column.name.removesuffix("_column"): getattr(columns, column.name) for column in fields(columns)}
    defaults = {column.name.removesuffix("_column"): column.default for column in fields(columns)}
    there = dataset.column_names
    found = {}
    for ours, theirs in names.items():
        if theirs in there:
            found[ours] = theirs
        elif ours in ("image", "label") or theirs != defaults[ours]:
            raise ValueError(
                f"{where} has no column {theirs!r}: name the column by `--{ours}_column`. It has {', '.join(there)}."
            )
        else:
            found[ours] = None
    taken = {}
    for ours, theirs in found.items():
        if theirs is not None and taken.setdefault(theirs, ours) != ours:
            raise ValueError(
                f"`--{taken[theirs]}_column` and `--{ours}_column` both name {theirs!r}: each needs its own column."
            )
    return found


def _refuse(where, column, ours, expected, feature):
    kind = getattr(feature, "dtype", None) or type(feature).__name__
    raise ValueError(
        f"{where}: column {column!r} must hold {expected}, got {kind}. Name the right one by `--{ours}_column`."
    )


def _stored_columns(dataset, found, stay, where):
    """The columns that stay as they are stored, the pictures among them, under our names."""
    names = {found[ours]: ours for ours in stay if found[ours] is not None}
    table = dataset.select_columns(list(names))
    for column in [column for column, ours in names.items() if ours in ("image", "visual_explanation")]:
        feature, stored = table.features[column], table.data.column(column)
        if names[column] == "visual_explanation" and pa.types.is_null(stored.type):
            table = table.remove_columns(column)
            continue
        absent = _without_content(stored, feature)
        if absent is None:
            _refuse(where, column, names[column], "pictures (`Image`)", feature)
        if names[column] == "image" and pc.any(absent).as_py():
            row = pc.index(absent, True).as_py()
            raise ValueError(f"{where}: row {row} has no picture in {column!r}. Leave the row out, or add it.")
        empty = pc.and_(absent, pc.is_valid(stored))
        if pc.any(empty).as_py():  # a picture without content, which cannot be opened
            stored = pc.if_else(empty, pa.scalar(None, stored.type), stored)
            table = table.remove_columns(column).add_column(column, stored, feature=feature)
        if not isinstance(feature, Image) or not feature.decode:
            table = table.cast_column(column, Image())
    return table.rename_columns({column: names[column] for column in table.column_names})


def _without_content(stored, feature):
    """Which rows of a column of encoded pictures have none; `None` where the column holds no encoded pictures."""
    if pa.types.is_binary(stored.type) or pa.types.is_large_binary(stored.type):
        return pc.is_null(stored)
    names = [part.name for part in stored.type] if pa.types.is_struct(stored.type) else []
    if not isinstance(feature, Image) and sorted(names) != ["bytes", "path"]:
        return None
    parts = [pc.is_null(pc.struct_field(stored, name)) for name in names]
    return pc.or_(pc.is_null(stored), pc.and_(*parts))


def _read_labels(dataset, column, class_names, where):
    """Class ids, null where there is no label, and the class names in the order of the ids."""
    feature, values = dataset.features[column], dataset.data.column(column)
    if _is_text(values.type):
        values = pc.if_else(_is_blank(values), None, values)
    elif pa.types.is_integer(values.type):
        _check_range(values, where, column)
        values = pc.if_else(pc.equal(values, -1), None, values).cast(pa.int64())
    else:
        _refuse(where, column, "label", "class names, integers or a `ClassLabel`", feature)
    if isinstance(feature, ClassLabel):
        names = feature.names or [str(number) for number in range(feature.num_classes)]
        return _index_in(values, range(len(names)), where, column), names
    if class_names is None:
        given = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
        return _index_in(values, given, where, column), [str(value) for value in given]
    if _is_text(values.type):
        return _index_in(values, class_names, where, column), class_names
    are_numbers = all(name.removeprefix("-").isdecimal() for name in class_names)
    ids = [int(name) for name in class_names] if are_numbers else range(len(class_names))
    return _index_in(values, ids, where, column), class_names


def _read_label_lists(dataset, column, where):
    """The lists of class ids, null where there is none, and the class names in the order of the ids."""
    feature, values = dataset.features[column].feature, dataset.data.column(column)
    if not isinstance(feature, ClassLabel):
        _refuse(where, column, "label", "lists of a `ClassLabel` (`cast_column` makes them of ids)", feature)
    names = feature.names or [str(number) for number in range(feature.num_classes)]
    ids, rows = pc.list_flatten(values), pc.list_parent_indices(values).to_numpy()
    places = _index_in(ids, range(len(names)), where, column, rows)
    absent = places.is_null().to_numpy(zero_copy_only=False)
    pairs = rows * len(names) + places.fill_null(0).to_numpy()
    repeated = np.ones(len(pairs), dtype=bool)
    repeated[np.unique(pairs, return_index=True)[1]] = False
    for strange, what in ((absent, "null among its labels"), (repeated, "a label twice")):
        if strange.any():
            raise ValueError(f"{where}: row {rows[strange.argmax()]} has {what} in {column!r}. Leave it out.")
    return values, names


def _read_explanation_lists(dataset, found, where):
    """The columns of masks and of texts, lists with an entry for each label, as they are."""
    kinds = {
        "visual_explanation": "lists of pictures (`Image`), one for each label",
        "textual_explanations": "a list of texts for each label",
    }
    labels, made = dataset.data.column(found["label"]), {}
    for ours, expected in kinds.items():
        column = found[ours]
        if column is None:
            continue
        feature, values = dataset.features[column], dataset.data.column(column)
        wanted = multi_label_features([])[ours]
        if isinstance(feature, List) and isinstance(feature.feature, Image):
            feature = List(Image())  # whatever else it says of the pictures
        if feature != wanted:
            _refuse(where, column, ours, expected, feature)
        lengths = [pc.list_value_length(lists).fill_null(0) for lists in (values, labels)]
        odd = pc.and_(pc.greater(lengths[0], 0), pc.not_equal(*lengths))
        if pc.any(odd).as_py():
            row = pc.index(odd, True).as_py()
            raise ValueError(
                f"{where}: row {row} has {lengths[0][row]} entries in {column!r} for {lengths[1][row]} labels, "
                "expected one for each: null, or an empty list, where a label has none."
            )
        made[ours] = values
    if "textual_explanations" in made:
        made["textual_explanations"] = _without_blank(made["textual_explanations"])
    return made


def _without_blank(lists):
    """Lists of lists of texts, but for blank ones."""
    texts = pc.list_flatten(pc.list_flatten(lists))
    if not pc.any(_is_blank(texts)).as_py():
        return lists
    kept = [
        several and [[text for text in one or () if text and text.strip()] for one in several]
        for several in lists.to_pylist()
    ]
    return pa.array(kept, lists.type)


def _check_range(values, where, column):
    if not pa.types.is_uint64(values.type):
        return
    large = pc.greater(values, pa.scalar(2**63 - 1, values.type))
    if pc.any(large).as_py():
        row = pc.index(large, True).as_py()
        raise ValueError(
            f"{where}: row {row} has {values[row].as_py()} in {column!r}, expected an integer of at most {2**63 - 1}."
        )


def _index_in(values, given, where, column, rows=None):
    """The place of each value among those given, null for null; `rows` are theirs, where they are not their places."""
    places = pc.index_in(values, value_set=pa.array(given, values.type), skip_nulls=True)
    strange = pc.and_(pc.is_valid(values), pc.is_null(places))
    if pc.any(strange).as_py():
        place = pc.index(strange, True).as_py()
        row = place if rows is None else rows[place]
        known = f"{given[0]} to {given[-1]}" if isinstance(given, range) else ", ".join(map(repr, given))
        raise ValueError(f"{where}: row {row} has {values[place].as_py()!r} in {column!r}, expected one of {known}.")
    return places.cast(pa.int64())


def _read_ids(dataset, column, where):
    if column is None:
        return pa.array([str(row) for row in range(len(dataset))])
    values = _read_strings(dataset, column, "id", where)
    if dataset.data.column(column).null_count:
        row = pc.index(pc.is_null(dataset.data.column(column)), True).as_py()
        raise ValueError(f"{where}: row {row} has no value in {column!r}. Name another column by `--id_column`.")
    return values


def _read_groups(dataset, column, where):
    """The groups, null where they are blank, as tables of text store what is absent."""
    if column is None:
        return None
    groups = _read_strings(dataset, column, "group", where)
    values = dataset.data.column(column) if groups is _STAYS else groups
    blank = pc.and_(pc.is_valid(values), _is_blank(values))
    return pc.if_else(blank, None, values) if pc.any(blank).as_py() else groups


def _read_strings(dataset, column, ours, where):
    feature, values = dataset.features[column], dataset.data.column(column)
    if feature == Value("string"):
        return _STAYS
    if isinstance(feature, ClassLabel):
        names, places = feature.names, pc.if_else(pc.equal(values, -1), None, values)
        return pa.chunked_array([pa.array(names)]).take(_index_in(places, range(len(names)), where, column))
    if not (_is_text(values.type) or pa.types.is_integer(values.type) or pa.types.is_null(values.type)):
        _refuse(where, column, ours, "texts or integers", feature)
    return values.cast(pa.string())


def _read_texts(dataset, column, where):
    """Lists of the texts that are not blank."""
    if column is None:
        return pa.array([[]] * len(dataset), pa.list_(pa.string()))
    feature, values = dataset.features[column], dataset.data.column(column)
    kind = values.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    if not (_is_text(inner) or pa.types.is_null(inner)):
        _refuse(where, column, "textual_explanations", "a text or a list of texts", feature)
    texts = pc.list_flatten(values) if is_list else values
    blank = _is_blank(texts.cast(pa.string()))
    if feature == List(Value("string")) and not values.null_count and not pc.any(blank).as_py():
        return _STAYS
    rows = pc.list_parent_indices(values).to_numpy() if is_list else np.arange(len(values))
    kept = pc.invert(blank)
    offsets = np.searchsorted(rows[kept.to_numpy()], np.arange(len(values) + 1))
    texts = texts.cast(pa.string()).filter(kept).combine_chunks()
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)


def _is_text(kind):
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_blank(texts):
    return pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), True)


def _labelled(table, labels, where):
    """The rows that have a label; how many have none is said once."""
    absent = labels.null_count
    if not absent:
        return table
    if absent == len(table):
        raise ValueError(f"{where} has no labels: all {absent:,} are -1 or null. Choose a split that has labels.")
    if int(os.environ.get("RANK", 0)) == 0:
        share = f"{absent:,} of {len(table):,} items of {where}"
        print(f"{share} have no label (-1 or null) and are left out", file=sys.stderr)
    return table.select(pc.indices_nonzero(pc.is_valid(labels)).to_pylist())


def problem_type(dataset):
    """What `MeglConfig.problem_type` is for a table of [`open_table`]."""
    return "multi_label_classification" if class_label(dataset)[1] else None


def class_names(dataset):
    """The names of a table's classes, in the order of their ids."""
    return class_label(dataset)[0].names


def labelled_texts(dataset):
    """The rationales of a table, each with the name of the class that it is of: a list of pairs."""
    names, several = class_names(dataset), class_label(dataset)[1]
    rows = zip(dataset["label"], dataset["textual_explanations"], strict=True)
    if several:
        rows = (pair for labels, lists in rows for pair in zip(labels, lists or (), strict=False))
    return [(names[label], text) for label, texts in rows for text in texts or ()]  # rationales may be missing


def read_row(dataset, place):
    """A row with its pictures decoded; the `ValueError` of one that cannot be names the item."""
    try:
        return dataset[place]
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        key = dataset.select_columns(["id"])[place]["id"]
        raise ValueError(f"item {key!r}: its picture or map cannot be read: {error}") from error


def human_map(row):
    """The visual explanation of a row as [`read_mask`] gives it, or `None`; an error names the item."""
    mask = row["visual_explanation"]
    if mask is None:
        return None
    return read_mask(mask, row["image"].size, f"item {row['id']!r}: its visual explanation")


def evenly_spaced(count, total):
    """The places of at most `count` of `total` items, evenly spaced over them, as `int`."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
