"""Reading of image files of any kind as upright 8-bit RGB images."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

#: Pillow would also open EPS, which starts Ghostscript: a file that merely calls itself .jpg
#: must not run a program. The rest is what files named .jpg and .png hold in practice.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "MPO")
#: EXIF orientation -> what turns the image upright.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """One image cannot be decoded; the data set can be used without it."""


def read_image(
    file: str | os.PathLike[str] | BinaryIO,
    shrink: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """Read an image file as people see it.

    Args:
        file: Its path, or its content. Of an animation the first frame is read, of a document the
            first page.
        shrink: Gets the image before it is decoded, and may return a smaller one.

    Returns:
        The image, turned upright by its EXIF orientation, in mode RGB.

    Raises:
        UnreadableImageError: When the file is no image, damaged, or a decompression bomb.
    """
    try:
        if isinstance(file, str | os.PathLike) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UnreadableImageError("not a file")  # a pipe would be waited for
        with Image.open(file, formats=_formats()) as image:
            white = _white(image)
            smaller = image if shrink is None else shrink(image)
            smaller.load()
            return _upright(to_rgb(smaller, white), smaller)
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # on damaged bytes, Pillow's plugins raise nearly anything
        raise UnreadableImageError(_reason(file, error)) from error


def to_rgb(image: Image.Image, white: int = 65535) -> Image.Image:
    """Convert an image of any mode to RGB.

    Transparent parts get a white background, the paper that such drawings are made for. 16-bit
    gray is divided by 257. Modes without a fixed range (32-bit integers, floats) are read as 0..1,
    0..255 or 0..65535, whichever holds their values first, and stretched otherwise. Color
    profiles are not applied: the networks were trained on images read without them.

    Args:
        image: A decoded image, of any Pillow mode.
        white: The value of white in 16-bit gray; negative where 0 is white.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        gray = values * (255.0 / abs(white))
        gray = 255.0 - gray if white < 0 else gray
        if isinstance(clear := image.info.get("transparency"), int):
            gray = np.where(values == clear, 255.0, gray)
        return Image.fromarray(_to_uint8(gray)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(_as_0_255(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _white(image: Image.Image) -> int:
    """Return white in 16-bit gray: TIFF may hold 12 bits, and may count from white."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 65535
    tags = image.tag_v2
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    return -white if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else white


def _upright(image: Image.Image, tagged: Image.Image) -> Image.Image:
    """Turn an image by the EXIF orientation of its file; damaged EXIF has none."""
    try:
        transpose = _TRANSPOSES.get(tagged.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged bytes, Pillow raises nearly anything
        return image
    return image if transpose is None else image.transpose(transpose)


def _as_0_255(image: Image.Image) -> np.ndarray:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1 and image.mode == "F":
        return values * 255.0
    if low >= 0 and high <= 255:
        return values
    if low >= 0 and high <= 65535:
        return values / 257.0
    return (values - low) * 255.0 / ((high - low) or 1.0)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(file: str | os.PathLike[str] | BinaryIO, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        if isinstance(file, str | os.PathLike):
            is_empty = os.path.getsize(file) == 0
        else:
            is_empty = file.seek(0, os.SEEK_END) == 0
        return "the file is empty" if is_empty else "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
