"""What every source of explained pictures checks: JSON files, paths, pictures, rationales, shares.

Each function takes `where`, the annotation file and item that an error should name, and raises one `ValueError` that
says what was expected, what came and what to do about it.
"""

import difflib
import io
import json
import os
import re
import reprlib
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import ijson
from PIL import Image, UnidentifiedImageError


SPLITS = ("train", "validation", "test")
RATIONALE_WORDS = (
    *("rationale", "rationales", "explanation", "explanations"),
    *("textual_explanation", "textual_explanations", "textual_exp", "exp"),
)
MAP_WORDS = ("saliency", "mask", "map", "visual_explanation", "visual_explanation_file_name", "visual_exp")
EXIF_ORIENTATION = 0x0112
LONGEST_RATIONALE = 10_000  # characters; rationales that people wrote have some hundred at most
LARGEST_PICTURE = 400_000_000  # bytes; four a pixel of the largest picture that Pillow decodes without a warning
DEEPEST = 6_000  # brackets within a read; annotations have some ten
SHAPING = "\u200c\u200d\u200e\u200f"  # joiners and marks of direction, which emoji and scripts need
VARIATION_SELECTORS = dict.fromkeys((0xFE0E, 0xFE0F))  # a sign as text or emoji: the same sign
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a byte of data nor a restart marker

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = 120


class BadItem(ValueError):
    """One item of a source is not as it should be; the others may be."""


def bad_item(where: str, expected: str, got: str, remedy: str) -> BadItem:
    """The error for one bad item, ready to be raised."""
    return BadItem(f"{where}: expected {expected}, got {got}. {remedy}")


def bad_source(where: str | Path, expected: str, got: str, remedy: str) -> ValueError:
    """The error for a source that cannot be read at all, ready to be raised."""
    return ValueError(f"{where}: expected {expected}, got {got}. {remedy}")


def shown(value) -> str:
    """`repr`, cut short where it is long."""
    return _reprs.repr(value)


def printable(text: str) -> str:
    """A text of another's as one line that cannot steer a terminal."""
    return "".join(
        character if character.isprintable() or character in SHAPING else "\N{REPLACEMENT CHARACTER}"
        for character in " ".join(text.splitlines())
    )


def folded(text: str) -> str:
    """A text without the differences of case, blanks and Unicode's forms, in which a letter and its mark are one."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(text.translate(VARIATION_SELECTORS).replace("_", " ").split())


def similar_names(names: list[str]) -> list[str]:
    """The names that are the same when `folded`, as texts such as "'cat' = 'Cat'"."""
    return [" = ".join(repr(names[place]) for place in places) for places in groups_of_equals(map(folded, names))]


def groups_of_equals(values: Iterable) -> list[list[int]]:
    """Lists of the positions that share a value, `None` aside."""
    positions = {}
    for position, value in enumerate(values):
        if value is not None:
            positions.setdefault(value, []).append(position)
    return [equal for equal in positions.values() if len(equal) > 1]


# JSON


def read_json_object(path: Path) -> dict:
    """Reads a small JSON object, with or without a byte order mark.

    Raises:
        `ValueError`: if the file is missing, is not UTF-8 JSON, is not an object, or holds a key twice.
    """
    content = {}
    for key, value in stream_json(path):
        if key in content:
            raise bad_source(path, "every key once", f"the key {key!r} twice", "Remove one.")
        content[key] = value
    return content


def stream_json(path: Path, field: str | None = None) -> Iterator:
    """Yields what a JSON object holds without holding the file in memory, so that it may be of any size.

    Args:
        field (`str`, *optional*): a key of the object whose value is a list, to yield the elements of that list; by
            default the object's own keys and values are yielded, in pairs.

    Raises:
        `ValueError`: if the file is missing, is not UTF-8 JSON, or is not an object.
    """
    if not path.is_file():
        raise bad_source(path, "a JSON file", "no such file", "Check the source folder and its layout.")
    with open(path, "rb") as file:
        if file.peek(3)[:3] == BYTE_ORDER_MARK:
            file.seek(3)
        start = file.peek(64)[:64].lstrip()[:1]
        if start != b"{":
            got = f"text that begins with {start!r}" if start else "an empty file"
            raise bad_source(path, "a JSON object in UTF-8", got, "Check the source's layout.")
        try:
            if field is None:
                yield from ijson.kvitems(Shallow(file), "", use_float=True)
            else:
                yield from ijson.items(Shallow(file), f"{field}.item", use_float=True)
        except (ijson.JSONError, UnicodeError) as error:
            reason = " ".join(str(error).split())
            raise bad_source(
                path, "a JSON object in UTF-8", f"text that is not: {reason}", "Write it again."
            ) from error


class Shallow:
    """A JSON file that ends in an error where brackets nest too deep: ijson's memory grows with the square of that."""

    def __init__(self, file):
        self.file = file

    def read(self, size: int = -1) -> bytes:
        content, depth = self.file.read(size), 0
        for start in range(0, len(content), 4096):
            part = content[start : start + 4096]
            depth += sum(map(part.count, b"[{")) - sum(map(part.count, b"]}"))  # those in texts hardly count
            if depth > DEEPEST:
                raise ijson.JSONError(f"brackets more than {DEEPEST:,} deep")
        return content


def parse_json_line(line: bytes, where: str) -> dict:
    """The object on one line of a JSON Lines file."""
    try:
        content = json.loads(line.decode("utf-8"), object_pairs_hook=partial(unique_keys, where))
    except BadItem:
        raise
    except (ValueError, RecursionError) as error:
        raise bad_item(where, "a JSON object in UTF-8", f"text that is not: {error}", "Write it again.") from error
    if not isinstance(content, dict):
        raise bad_item(where, "a JSON object", shown(content), "Check the source's layout.")
    return content


def unique_keys(where: str, pairs: list[tuple]) -> dict:
    """A JSON object of its keys and values, or `ValueError`: of a key that comes twice, JSON takes the last."""
    content = {}
    for key, value in pairs:
        if key in content:
            raise bad_item(where, "every key once", f"the key {shown(key)} twice", "Remove one.")
        content[key] = value
    return content


def check_keys(raw: dict, keys: dict[str, tuple], where: str) -> set[str]:
    """The keys of an item that are not read, or `ValueError` if one is meant to be one of `keys` that it lacks.

    Args:
        keys (`dict[str, tuple]`): those that are read, with what the same things are called elsewhere.
    """
    lacking = {key: words for key, words in keys.items() if key not in raw}
    plain = {plain_key(key): key for key in lacking}
    elsewhere = {plain_key(word): key for key, words in lacking.items() for word in words}
    others = raw.keys() - keys.keys()
    for key in sorted(others):
        near = [plain[match] for match in difflib.get_close_matches(plain_key(key), plain, n=1, cutoff=0.75)]
        meant = elsewhere.get(plain_key(key)) or next(iter(near), None)
        if meant is not None:
            remedy = f"Did you mean `{meant}`? Rename it, or take it out."
            raise bad_item(where, f"keys among {list(keys)}", shown(key), remedy)
    return others


def plain_key(key: str) -> str:
    """A key without case and signs, as `fileName` and `file-name` differ from `file_name`."""
    return "".join(filter(str.isalnum, key.lower()))


# Files


def on_disk(name: str) -> str:
    """A file's name of an annotation as the system has it, whose encoding may be another: in bytes it is UTF-8."""
    return os.fsdecode(name.encode(errors="surrogatepass"))


def as_text(name: str) -> str:
    """A name of the system's as text, whatever its bytes are: the other way round."""
    return os.fsencode(name).decode("utf-8", "replace")


def folder_name(folder: Path) -> str:
    """The name of a folder as a line of text."""
    return printable(as_text(folder.resolve().name))


def resolve_inside(root: Path, relative, field: str, where: str) -> Path:
    """The real path of a source's file, which must lie inside `root` even after symbolic links are followed.

    Args:
        root (`Path`): the folder that the path starts from.
        relative (`str`): what the annotation gives.
        field (`str`): the annotation's key, for the message.
    """
    expected = f"`{field}` to be a path inside the source folder"
    if not isinstance(relative, str) or not relative.strip():
        raise bad_item(where, expected, shown(relative), "Give a path relative to the source folder.")
    if relative.startswith("/") or ".." in relative.split("/"):
        raise bad_item(where, expected, shown(relative), "Absolute paths and `..` are refused; move the file inside.")
    try:
        path = real_path(os.path.join(root, on_disk(relative)))
        is_file = os.path.isfile(path)
    except (OSError, ValueError) as error:
        raise bad_item(where, expected, f"{shown(relative)} ({error})", "Correct the path.") from error
    if not path.startswith(os.path.join(real_folder(str(root)), "")):
        raise bad_item(
            where,
            expected,
            f"{shown(relative)}, a symbolic link out of it",
            "Copy the file into the source folder, or name the folder of the pictures by `--images`.",
        )
    if not is_file:
        raise bad_item(
            where, f"the file that `{field}` names", f"no file {shown(relative)}", "Restore it or drop the item."
        )
    return Path(path)


def real_path(path: str) -> str:
    """`os.path.realpath`, which looks at every folder above, for many files of few folders."""
    folder, name = os.path.split(path)
    path = os.path.join(real_folder(folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@dataclass(frozen=True)
class Picture:
    """A picture's file.

    Attributes:
        content (`bytes`): the file, unchanged.
        size (`tuple[int, int]`): width and height in pixels as seen, EXIF orientation applied.
        orientation (`int`): the EXIF orientation, 1 to 8; `datasets` and [`MeglProcessor`] apply it when they load.
    """

    content: bytes
    size: tuple[int, int]
    orientation: int


def read_picture(path: Path, where: str, field: str) -> Picture:
    """Reads a picture's original bytes and checks that they hold one whole picture that RGB can show.

    Of a JPEG only what [`jpeg_head`] gives is decoded, since to decode all would take most of a build's time.

    Raises:
        `ValueError`: if the file does not decode, has more pixels than Pillow's limit for decompression bombs, has
            several frames, or has 16 bits, which a conversion to RGB would clip to white.
    """
    expected = f"`{field}` to be a whole picture"
    replace = "Replace the file or drop the item."
    content = read_bytes(path, expected, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(jpeg_head(content) or content))
            width, height = image.size
            frames = number_of_frames(image)
            mode = image.mode
            image.draft("L", (1, 1))  # of a JPEG, an eighth of the size; of other formats, all
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"a picture of at most {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise bad_item(where, f"`{field}` to be {limit}", f"{path.name} ({error})", "Store it smaller.") from error
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise bad_item(where, expected, f"{path.name}, which does not decode (no known format)", replace) from error
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise bad_item(where, expected, f"{path.name}, which does not decode ({error})", replace) from error
    if frames > 1:
        still = f"`{field}` to be a still picture"
        raise bad_item(where, still, f"{path.name} with {frames} frames", "Store the frame that the label is of.")
    if mode.startswith(("I", "F")):
        eight = f"`{field}` to be a picture of 8 bits a channel"
        raise bad_item(where, eight, f"{path.name} of mode {mode}", "Convert it: RGB would clip it to white.")
    orientation = orientation if orientation in range(1, 9) else 1
    return Picture(content, (height, width) if orientation >= 5 else (width, height), orientation)


def number_of_frames(image: Image.Image) -> int:
    """Of an opened picture: 1 for a still one. Those of an MPO are a camera's other views and previews of one."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def jpeg_head(content: bytes) -> bytes | None:
    """The header of a JPEG and the first of its data, which decodes if the whole does; `None` where all must decode.

    All must in other formats, and where a file has several scans or pictures. libjpeg fails at a header, at an
    unexpected marker among the data, or where the data end without the end marker.
    """
    if not content.startswith(JPEG_START):
        return None
    position = len(JPEG_START)
    while content[position : position + 1] == b"\xff" and content[position + 1 : position + 2] != b"\xda":
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    marker = JPEG_MARKER.search(content, position)
    if marker is None or marker.group() != JPEG_END or marker.end() < len(content):
        return None
    return content[: position + 256] + JPEG_END


def read_bytes(path: Path, expected: str, where: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_PICTURE:
            raise bad_item(where, expected, f"{path.name} of {size:,} bytes", "Store it smaller.")
        return path.read_bytes()
    except OSError as error:
        raise bad_item(where, expected, f"{path.name}, which cannot be read ({error})", "Mend its rights.") from error


# Text and numbers


def check_rationales(rationales, where: str, field: str) -> list[str]:
    """Returns the rationales of an item if they are a list of non-blank strings; `None` is an empty one."""
    if rationales is None:
        return []
    if not isinstance(rationales, list):
        expected = f"`{field}` to be a list of rationales"
        raise bad_item(where, expected, shown(rationales), "Write a list, empty if there are none.")
    for rationale in rationales:
        if not isinstance(rationale, str) or not rationale.strip():
            raise bad_item(where, "every rationale to be text", shown(rationale), "Write it or take it out.")
        if len(rationale) > LONGEST_RATIONALE:
            raise bad_item(
                where,
                f"every rationale to have at most {LONGEST_RATIONALE:,} characters",
                f"{shown(rationale)} of {len(rationale):,}",
                "Shorten it or take it out.",
            )
        check_encodes(rationale, where, "every rationale")
    return rationales


def check_encodes(text: str, where: str, what: str):
    """JSON can hold one half of a character that needs two, which no file of UTF-8 can."""
    try:
        text.encode()
    except UnicodeError as error:
        raise bad_item(where, f"{what} to be text", f"half a character ({error})", "Mend it.") from error


def check_name(value, where: str, field: str) -> str:
    """Returns a class's, group's or item's name if it is a non-blank string."""
    if not isinstance(value, str) or not value.strip():
        raise bad_item(where, f"`{field}` to be a name", shown(value), "Correct it.")
    check_encodes(value, where, f"`{field}`")
    return value


def check_own_split(split, where: str) -> str | None:
    """Returns the split that an item asks for, or `None`."""
    if split is not None and split not in SPLITS:
        raise bad_item(where, f"`split` to be one of {list(SPLITS)}", shown(split), "Rename it or leave it out.")
    return split


def check_shares(validation_share: float, test_share: float):
    """Raises `ValueError` unless the shares leave something to train on."""
    # NaN compares as false.
    if not (validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1):
        raise ValueError(
            "expected `validation_share` and `test_share` to be at least 0 and to sum to less than 1, got "
            f"{validation_share} and {test_share}."
        )
