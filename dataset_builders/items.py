"""What every source of explained pictures checks: paths, pictures, visual explanations, rationales, splits.

Each function takes `where`, the annotation file and item that an error should name, and raises one `ValueError` that
says what was expected, what came and what to do about it.
"""

import hashlib
import io
import json
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image


SPLITS = ("train", "validation", "test")
EXIF_ORIENTATION = 0x0112


def bad_item(where: str, expected: str, got: str, remedy: str) -> ValueError:
    """The error for one bad item, ready to be raised."""
    return ValueError(f"{where}: expected {expected}, got {got}. {remedy}")


def read_json_object(path: Path) -> dict:
    """Reads a JSON object, with or without a byte order mark.

    Raises:
        `ValueError`: if the file is missing, is not UTF-8 JSON, is not an object, or holds a key twice.
    """

    def unique(pairs):
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [key for key, _ in pairs]
            repeated = next(key for key in names if names.count(key) > 1)
            raise ValueError(f"the key {repeated!r} occurs twice in one object")
        return content

    if not path.is_file():
        raise bad_item(str(path), "a JSON file", "no such file", "Check the source folder and its layout.")
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=unique)
    except ValueError as error:
        raise bad_item(str(path), "a JSON object in UTF-8", f"text that is not: {error}", "Write it again.") from error
    if not isinstance(content, dict):
        raise bad_item(str(path), "a JSON object", f"a {type(content).__name__}", "Check the source's layout.")
    return content


def resolve_inside(root: Path, relative, field: str, where: str) -> Path:
    """The path of a source's file, which must lie inside `root` even after symbolic links are followed.

    Args:
        root (`Path`): the source's folder.
        relative (`str`): what the annotation gives.
        field (`str`): the annotation's key, for the message.
    """
    expected = f"`{field}` to be a path inside the source folder"
    if not isinstance(relative, str) or not relative.strip():
        raise bad_item(where, expected, repr(relative), "Give a path relative to the annotation file.")
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts:
        raise bad_item(where, expected, repr(relative), "Absolute paths and `..` are refused; move the file inside.")
    try:
        path = (root / relative).resolve()
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise bad_item(where, expected, f"{relative!r} ({error})", "Correct the path.") from error
    if not path.is_relative_to(root.resolve()):
        raise bad_item(
            where, expected, f"{relative!r}, a symbolic link out of it", "Copy the file into the source folder."
        )
    if not is_file:
        raise bad_item(
            where, f"the file that `{field}` names", f"no file {relative!r}", "Restore it or drop the item."
        )
    return path


def read_image(path: Path, where: str) -> tuple[bytes, tuple[int, int]]:
    """Reads a picture's original bytes and checks that they decode.

    Returns:
        `tuple(bytes, (int, int))`: the file's bytes, and its width and height as seen, EXIF orientation applied.
    """
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except Exception as error:  # Pillow's decoders raise many kinds, among them SyntaxError and struct.error
        raise bad_item(
            where,
            "`image_path` to be a whole picture",
            f"{path.name}, which does not decode ({error})",
            "Replace the file or drop the item.",
        ) from error
    return content, (height, width) if turned else (width, height)


def read_map(path: Path, where: str, image_size: tuple[int, int]) -> np.ndarray:
    """Reads a visual explanation stored as `.npy`.

    Accepted are `(3, H, W)` floats in [0, 1] (the mean of the channels is taken), `(H, W)` integers in 0..255,
    `(H, W)` floats in [0, 1] and `(H, W)` booleans. H x W may be any grid of the picture's aspect ratio.

    Args:
        image_size (`tuple(int, int)`): the picture's width and height in pixels.

    Returns:
        `np.ndarray` of shape `(H, W)`, float64 in [0, 1]: 1 is where the explanation points.
    """
    try:
        values = np.load(path, allow_pickle=False)  # a pickled array can carry code
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise bad_item(
            where,
            "`visual_exp` to be a whole .npy file of plain numbers",
            f"{path.name}: {error}",
            "Pickled content is never loaded; write it again with `np.save(path, array, allow_pickle=False)`.",
        ) from error
    values = scale_map(values, path.name, where)
    height, width = values.shape
    # A grid of whole cells may be off by half a cell in each direction.
    if abs(width * image_size[1] - height * image_size[0]) > 0.5 * sum(image_size):
        raise bad_item(
            where,
            f"a visual explanation of the picture's aspect ratio ({image_size[0]} x {image_size[1]} pixels)",
            f"{path.name} of {width} x {height}",
            "Store the map over the whole picture, uncropped and unstretched.",
        )
    return values


def scale_map(values, name: str, where: str) -> np.ndarray:
    """Brings a stored visual explanation to a `(H, W)` float64 array in [0, 1], or raises `ValueError`."""
    forms = "(3, H, W) floats in [0, 1], (H, W) integers in 0..255 or (H, W) floats in [0, 1]"
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        kind = values.dtype if isinstance(values, np.ndarray) else "an archive of arrays"
        raise bad_item(where, forms, f"{name} of type {kind}", "Store one array of plain numbers.")
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[0] == 3)):
        raise bad_item(where, forms, f"{name} of shape {values.shape}", "Store one map a picture.")
    whole = values.dtype.kind in "ui"
    top = 255 if whole else 1
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise bad_item(where, forms, f"{name} with NaN or infinite values", "Repair the map, or give null.")
    if values.min() < 0 or values.max() > top:
        raise bad_item(
            where,
            f"a visual explanation of type {values.dtype} in 0..{top}",
            f"{name} with values from {values.min()} to {values.max()}",
            "Rescale the map.",
        )
    if whole and values.max() == 1:
        raise bad_item(
            where,
            "an integer visual explanation in 0..255",
            f"{name} with 0 and 1 only, which would be almost black",
            "Multiply it by 255, or store floats or booleans.",
        )
    values = values.astype(np.float64) / top
    values = values.mean(axis=0) if values.ndim == 3 else values
    if values.max() * 65535 < 0.5:
        raise bad_item(
            where, "a visual explanation that points somewhere", f"{name}, all zero", "Give null for a missing one."
        )
    return values


def encode_map(values: np.ndarray) -> bytes:
    """Writes a `(H, W)` map in [0, 1] as a grey PNG.

    The PNG has 8 bits (1 is 255) where that holds the values exactly, otherwise 16 bits (1 is 65535).
    """
    eight_bit = np.rint(values * 255)
    if np.abs(values * 255 - eight_bit).max() < 1e-3:
        return encode_png(Image.fromarray(eight_bit.astype(np.uint8)))
    return encode_png(Image.fromarray(np.rint(values * 65535).astype(np.uint16)))


def encode_png(image: Image.Image) -> bytes:
    """The bytes of `image` as PNG."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def check_rationales(rationales, where: str) -> list[str]:
    """Returns the rationales of an item if they are a list of one or more non-blank strings."""
    expected = "`exp` to be a list of one or more rationales"
    if not isinstance(rationales, list) or not rationales:
        raise bad_item(where, expected, repr(rationales), "Write a rationale or drop the item.")
    for rationale in rationales:
        if not isinstance(rationale, str) or not rationale.strip():
            raise bad_item(where, "every rationale to be text", repr(rationale), "Write it or take it out.")
    return rationales


def check_shares(validation_share: float, test_share: float):
    """Raises `ValueError` unless the shares leave something to train on."""
    if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
        raise ValueError(
            "expected `validation_share` and `test_share` to be at least 0 and to sum to less than 1, got "
            f"{validation_share} and {test_share}."
        )


def stratified_splits(
    classes: dict[str, str], validation_share: float, test_share: float, seed: int
) -> dict[str, str]:
    """Draws a split for each picture, with the same shares in every class.

    The order within a class is that of a hash of seed and picture, so it depends on neither the order of the items nor
    the version of a random number generator.

    Args:
        classes (`dict[str, str]`): picture to class name.

    Returns:
        `dict[str, str]`: picture to one of `SPLITS`.
    """
    check_shares(validation_share, test_share)
    by_class = {}
    for picture, name in classes.items():
        by_class.setdefault(name, []).append(picture)
    splits = {}
    for pictures in by_class.values():
        pictures.sort(key=lambda picture: hashlib.sha256(f"{seed}:{picture}".encode()).digest())
        test = int(len(pictures) * test_share + 0.5)
        validation = test + int(len(pictures) * validation_share + 0.5)
        for position, picture in enumerate(pictures):
            splits[picture] = "test" if position < test else "validation" if position < validation else "train"
    return splits
