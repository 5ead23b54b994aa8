"""Image files of any kind -> upright 8-bit RGB images."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Pillow would also open EPS, which starts Ghostscript: a file that merely calls itself .jpg
#: must not run a program. The rest is what files named .jpg and .png hold in practice.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "MPO")


class UnreadableImageError(OSError):
    """One image cannot be decoded; the data set may go on without it."""


def read_image(
    path: str | os.PathLike[str], shrink: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Read an image file as people see it.

    Args:
        path: The file. Of an animation the first frame is read.
        shrink: Gets the image before it is decoded, and may return a smaller one.

    Returns:
        The image, turned upright by its EXIF orientation, in mode RGB.

    Raises:
        UnreadableImageError: When the file is no image, damaged, or a decompression bomb.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            smaller = image if shrink is None else shrink(image)
            smaller.load()
            return to_rgb(ImageOps.exif_transpose(smaller))
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes, Pillow's plugins raise nearly anything
        raise UnreadableImageError(_reason(path, error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image of any mode into RGB.

    Transparent parts are laid on white, the paper that such drawings are made for. 16-bit grey
    is divided by 257. Modes without a fixed range (32-bit integers, floats) are read as 0..1,
    0..255 or 0..65535, whichever holds their values first, and stretched otherwise.

    Args:
        image: A decoded image, of any Pillow mode.

    Returns:
        The image in mode RGB.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(_to_uint8(np.asarray(image) / 257.0)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(_as_0_255(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _as_0_255(image: Image.Image) -> np.ndarray:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and image.mode == "F":
        return values * 255.0
    if low >= 0 and high <= 255:
        return values
    if low >= 0 and high <= 65535:
        return values / 257.0
    return (values - low) * 255.0 / max(high - low, 1.0)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        return "the file is empty" if empty else "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
