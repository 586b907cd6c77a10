"""A map over its picture, as colours or level lines, and what it shows on another background."""

import numpy as np
from PIL import Image, ImageFilter


LEVELS = (0.25, 0.5, 0.75)


def at_size(saliency, size):
    """A map in [0, 1] at a picture's `size`, width and height: `np.ndarray` of shape `(height, width)`, float32."""
    values = Image.fromarray((np.asarray(saliency, dtype=np.float32) * 255).round().astype(np.uint8))
    return np.asarray(values.resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255


def heat(values):
    """The colours of values in [0, 1], an array of any shape: yellow (0) to red (1), as RGB in a last dimension."""
    values = np.asarray(values, dtype=np.float32)
    return np.stack([np.full_like(values, 255), 230 * (1 - values), np.zeros_like(values)], axis=-1)


def overlay(image, saliency, strength=0.6):
    """
    The map over its picture, from clear (0) through yellow to red (1).

    Args:
        image (`PIL.Image.Image`): The picture.
        saliency (`np.ndarray` of shape `(height, width)`): Values in [0, 1] at any resolution; resized to the picture.
        strength (`float`): Opacity where the map is 1.
    """
    image = image.convert("RGB")
    values = at_size(saliency, image.size)
    opacity = strength * np.minimum(2 * values, 1)[..., None]
    return Image.fromarray((np.asarray(image) * (1 - opacity) + heat(values) * opacity).round().astype(np.uint8))


def contours(image, saliency, levels=LEVELS):
    """
    The lines at which the map rises to some levels, in the colours of [`overlay`] with a dark rim on their outside.

    Args:
        image (`PIL.Image.Image`): What to draw on.
        saliency (`np.ndarray` of shape `(height, width)`): Values in [0, 1] at any resolution; resized to the picture.
        levels (`tuple[float]`): In [0, 1], the lowest first.
    """
    pixels, values = np.array(image.convert("RGB")), at_size(saliency, image.size)
    for level in levels:
        region = values >= level
        grey = Image.fromarray(region).convert("L")
        smaller, larger = (
            np.asarray(grey.filter(kind(5))) > 0 for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
        )
        pixels[larger & ~region] = 40
        pixels[region & ~smaller] = heat(level)
    return Image.fromarray(pixels)


def paste(image, saliency, threshold, background):
    """
    What lies under the map, on another background: does the label follow from what the map shows?

    Args:
        image (`PIL.Image.Image`): The picture.
        saliency (`np.ndarray` of shape `(height, width)`): Its map in [0, 1] at any resolution.
        threshold (`float`): Pixels stay where the map is at least that.
        background (`PIL.Image.Image`): What takes the place of the others; resized to the picture.
    """
    stays = at_size(saliency, image.size) >= threshold
    background = background.convert("RGB").resize(image.size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.where(stays[..., None], np.asarray(image.convert("RGB")), np.asarray(background)))


def without_object(image, saliency, trace=0.1):
    """
    A picture with what its map shows filled from the surroundings, to be a background: another object in it would
    lend its own label. What is filled in, a 32nd of the picture around it included, is the mean of the pixels that
    stay in the smallest of some ever coarser cells that has any, interpolated; grey where none has.

    Args:
        image (`PIL.Image.Image`): The picture.
        saliency (`np.ndarray` of shape `(height, width)`): Its map in [0, 1] at any resolution.
        trace (`float`): What the map shows is where it is above that.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    hole = Image.fromarray(at_size(saliency, image.size) > trace).convert("L")
    # Larger by a 32nd, as the edge of an object tells its shape.
    stays = np.asarray(hole.filter(ImageFilter.BoxBlur(max(image.size) // 32))) == 0
    planes = [Image.fromarray(plane) for plane in (*(pixels * stays[..., None]).transpose(2, 0, 1), np.float32(stays))]
    filled = np.full_like(pixels, 128)
    for cells in (1, 2, 4, 8, 16, 32):
        coarse = (plane.resize((cells, cells), Image.Resampling.BOX) for plane in planes)
        sums = np.stack([plane.resize(image.size, Image.Resampling.BILINEAR) for plane in coarse], axis=-1)
        share = sums[..., 3:]
        filled = np.where(share > 0.05, sums[..., :3] / np.maximum(share, 0.05), filled)
    return Image.fromarray(np.where(stays[..., None], pixels, filled).clip(0, 255).round().astype(np.uint8))
