"""Visual explanations: read from arrays and pictures, brought to [0, 1], written as grey PNG."""

import io
import math
import warnings
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile, is_zipfile

import numpy as np
from PIL import Image, ImageOps

from .items import Picture, bad_item, number_of_frames


# How `np.rot90` and transposing bring the stored pixels of EXIF orientations 5 to 8 upright.
UPRIGHT = {
    5: lambda values: values.T,
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values, 2).T,
    8: lambda values: np.rot90(values),
}
FAINTEST = 16 / 255  # the least maximum of a map that is not almost black, as masks of 0 and 1 and class numbers are
FORMS = "one or more maps of floats in [0, 1], integers in 0..255, 16-bit integers or booleans"


def read_map(path: Path, where: str, field: str, picture: Picture) -> np.ndarray:
    """Reads a visual explanation stored as `.npy`, `.npz` with one array, or a picture.

    It may have one map or several, `(H, W)`, `(C, H, W)` or `(H, W, C)`, whose mean is taken; H x W may be any grid of
    the picture's aspect ratio. A picture's transparency counts as 0.

    Args:
        field (`str`): the annotation's key, for the message.
        picture ([`Picture`]): what the map is of.

    Returns:
        `np.ndarray` of shape `(H, W)`, float64 in [0, 1]: 1 is where the explanation points. It lies over the picture
        as seen; a map that fits only the stored pixels of a turned picture is turned with it.
    """
    values = load_array(path, where, field) if path.suffix in (".npy", ".npz") else load_picture(path, where, field)
    return upright(scale_map(values, path.name, where), path.name, where, picture)


def load_array(path: Path, where: str, field: str) -> np.ndarray:
    try:
        if not is_zipfile(path):
            with open(path, "rb") as file:
                return read_array(file)
        with ZipFile(path) as archive:
            (name,) = archive.namelist()
            with archive.open(name) as file:
                return read_array(file)
    except Exception as error:  # damaged archives raise many kinds, among them zlib.error and BadZipFile
        raise bad_item(
            where,
            f"`{field}` to be a whole .npy file of plain numbers, or .npz of one array",
            f"{path.name}: {error}",
            "Pickled content is never loaded; write it again with `np.save(path, array, allow_pickle=False)`.",
        ) from error


def read_array(file: BinaryIO) -> np.ndarray:
    """The array of a `.npy` stream, whose header is read first: it may claim any size, and an archive unpack to it."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of the format, which holds no plain numbers")
    shape, _, dtype = readers[version](file)
    values = math.prod(shape)
    if max(values, values * dtype.itemsize // 8) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"shape {shape} of {dtype}, above the limit of {Image.MAX_IMAGE_PIXELS:,} values")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)  # a pickled array can carry code


def load_picture(path: Path, where: str, field: str) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            if number_of_frames(image) > 1:
                raise ValueError(f"it has {image.n_frames} frames")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") and image.mode != "I;16":
                return sixteen_bits(np.asarray(image))
            if image.mode in ("L", "1", "I;16", "F"):
                return np.asarray(image)
            values = np.asarray(image.convert("RGBA"))
    except Exception as error:
        raise bad_item(
            where,
            f"`{field}` to be a .npy file or a whole picture",
            f"{path.name}, which does not decode ({error})",
            "Write it again, or give null.",
        ) from error
    values = values[..., :3].sum(axis=2, dtype=np.uint32) * values[..., 3]
    if values.max() <= 3 * 255:  # 0 and 1 only
        return (values > 0).astype(np.uint8)
    values = values / (3 * 255 * 255)
    check_not_faint(values, path.name, where)
    return values


def sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Whole numbers of 32 bits as 16-bit ones, which they are in a picture."""
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()} instead of 0..65535")
    return values.astype(np.uint16)


def scale_map(values: np.ndarray, name: str, where: str) -> np.ndarray:
    """Brings a stored visual explanation to a `(H, W)` float64 array in [0, 1], or raises `ValueError`."""
    if values.dtype.kind not in "buif":
        raise bad_item(where, FORMS, f"{name} of type {values.dtype}", "Store plain numbers.")
    if values.size == 0 or values.ndim not in (2, 3):
        raise bad_item(where, FORMS, f"{name} of shape {values.shape}", "Store one map a picture.")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise bad_item(where, FORMS, f"{name} with NaN or infinite values", "Repair the map, or give null.")
    whole = values.dtype.kind in "ui"
    top = 1 if not whole else 65535 if values.dtype == np.uint16 and values.max() > 255 else 255
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
    if whole:
        check_not_faint(values, name, where)
    if values.ndim == 3:
        values = values.mean(axis=0 if values.shape[0] <= values.shape[2] else 2)
    if values.max() * 65535 < 0.5:
        raise bad_item(
            where, "a visual explanation that points somewhere", f"{name}, all zero", "Give null for a missing one."
        )
    return values


def check_not_faint(values: np.ndarray, name: str, where: str):
    """Raises `ValueError` if integers, brought to [0, 1], are almost black: they are numbers of something else."""
    if is_faint(values):
        raise bad_item(
            where,
            f"an integer visual explanation that reaches {FAINTEST * 255:.0f} of 255 (or {FAINTEST * 65535:,.0f} of "
            "65,535)",
            f"{name} with at most {values.max() * 255:.3g} of 255, which would be almost black",
            "Scale it to the whole range. Of a map of class numbers, store a mask of the label's alone.",
        )


def is_faint(values: np.ndarray) -> bool:
    """Whether a map in [0, 1] shows something, but nothing that reaches `FAINTEST`."""
    return bool(0 < values.max() < FAINTEST - 1e-6)


def upright(values: np.ndarray, name: str, where: str, picture: Picture) -> np.ndarray:
    """A `(H, W)` map as it lies over the picture as seen, or `ValueError` if it has another aspect ratio."""
    height, width = values.shape
    if fits(width, height, picture.size):
        return values
    if picture.orientation in UPRIGHT and fits(height, width, picture.size):
        return UPRIGHT[picture.orientation](values)
    raise bad_item(
        where,
        f"a visual explanation of the picture's aspect ratio ({picture.size[0]} x {picture.size[1]} pixels)",
        f"{name} of {width} x {height}",
        "Store the map over the whole picture, uncropped and unstretched.",
    )


def fits(width: int, height: int, size: tuple[int, int]) -> bool:
    """Whether a grid has a picture's aspect ratio. Whole cells may be off by half a cell in each direction."""
    return abs(width * size[1] - height * size[0]) <= 0.5 * sum(size)


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
