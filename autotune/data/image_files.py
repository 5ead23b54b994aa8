"""Image files of any kind -> upright 8-bit RGB images."""

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
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """One image cannot be decoded; the data set may go on without it."""


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
    """Turn an image of any mode into RGB.

    Transparent parts are laid on white, the paper that such drawings are made for. 16-bit grey
    is divided by 257. Modes without a fixed range (32-bit integers, floats) are read as 0..1,
    0..255 or 0..65535, whichever holds their values first, and stretched otherwise. Colour
    profiles are not applied: the networks were trained on images read without them.

    Args:
        image: A decoded image, of any Pillow mode.
        white: The value of white in 16-bit grey; negative where 0 is white.

    Returns:
        The image in mode RGB.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = values * (255.0 / abs(white))
        grey = 255.0 - grey if white < 0 else grey
        if isinstance(clear := image.info.get("transparency"), int):
            grey = np.where(values == clear, 255.0, grey)
        return Image.fromarray(_to_uint8(grey)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(_as_0_255(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _white(image: Image.Image) -> int:
    """Return what white is in 16-bit grey: TIFF may hold 12 bits, and may count from white."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 65535
    tags = image.tag_v2
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    return -white if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else white


def _upright(image: Image.Image, tagged: Image.Image) -> Image.Image:
    """Turn an image by the orientation that the file's EXIF has; damaged EXIF has none."""
    try:
        turn = _TURNS.get(tagged.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged bytes, Pillow raises nearly anything
        return image
    return image if turn is None else image.transpose(turn)


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
        return "the file is empty" if _size(file) == 0 else "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _size(file: str | os.PathLike[str] | BinaryIO) -> int:
    if isinstance(file, str | os.PathLike):
        return os.path.getsize(file)
    return file.seek(0, os.SEEK_END)
