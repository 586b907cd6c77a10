"""Tables as plain text, as data sets publish them."""

import csv
from collections.abc import Iterator
from pathlib import Path

from .items import bad_item, bad_source, shown


PUBLISHED = "Compare it with the published file."


def read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Yields the line's number and the cells by column of each row of a CSV file, with a header, in UTF-8.

    Raises:
        `ValueError`: if the file is missing, is no such table, or lacks one of `columns`.
    """
    check_file(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(columns) <= set(reader.fieldnames or ()):
                raise bad_source(path, f"the columns {list(columns)}", shown(reader.fieldnames), PUBLISHED)
            for row in reader:
                yield reader.line_num, row
    except (csv.Error, UnicodeError) as error:
        raise bad_source(path, "a CSV table in UTF-8", f"text that is not: {error}", PUBLISHED) from error


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the words of each line of a text file, but for blank ones and those that begin with `#`.

    Raises:
        `ValueError`: if the file is missing or is no text.
    """
    check_file(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                words = line.split()
                if words and not line.startswith("#"):
                    yield number, words
    except UnicodeError as error:
        raise bad_source(path, "text in UTF-8", f"bytes that are not: {error}", PUBLISHED) from error


def read_pairs(path: Path) -> dict[str, str]:
    """The words by id of a text file of `<id> <word>` lines.

    Raises:
        `ValueError`: if the file is missing, has another line or an id twice.
    """
    pairs = {}
    for number, words in read_lines(path):
        if len(words) != 2 or words[0] in pairs:
            expected = "an id that occurs once and one word"
            raise bad_source(f"{path}: line {number}", expected, shown(" ".join(words)), PUBLISHED)
        pairs[words[0]] = words[1]
    return pairs


def check_file(path: Path):
    """Raises `ValueError` unless there is such a file."""
    if not path.is_file():
        raise bad_source(path, "a text file", "no such file", "Check the source folder and its layout.")


def check_cells(row: dict, where: str):
    """Raises `ValueError` unless a row of [`read_csv`] has one cell for each column."""
    if None in row or None in row.values():
        raise bad_item(where, f"a cell for each of {[*filter(None, row)]}", "another number of them", PUBLISHED)


def meaning(codes: dict[str, str], code: str | None, where: str, field: str) -> str:
    """What the code in a field stands for, or `ValueError` if it is not one of `codes`."""
    if code not in codes:
        raise bad_item(where, f"`{field}` to be one of {shown(list(codes))}", shown(code), PUBLISHED)
    return codes[code]
