"""Reading of image files of any kind as upright 8-bit RGB images."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from autotune.data.damage import CHECKED_FORMATS, find_damage, mend
from autotune.data.image_formats import IMAGE_FORMATS, describe_content, has_heic
from autotune.file_kinds import HEAD_BYTES
from autotune.text import plural

#: Parts of Pillow's messages on files that end too early.
_TRUNCATED = ("file is truncated", "Truncated File Read", "Truncated data")
_NEW_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706
#: Limits where the header of a JPEG 2000 file is looked for.
_JP2_HEADER_BYTES = 1 << 16
#: A path, or the content of a file.
File = str | os.PathLike[str] | BinaryIO
#: Gets an image before it is decoded, and may return a smaller one.
Shrink = Callable[[Image.Image], Image.Image]
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
    file: File,
    shrink: Shrink | None = None,
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
        try:
            return _decode(file, shrink)
        except (MemoryError, UnreadableImageError):
            raise
        except Exception:
            if (mended := mend(_content(file))) is None:
                raise
            return _decode(io.BytesIO(mended), shrink)
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # on damaged bytes, Pillow's plugins raise nearly anything
        raise UnreadableImageError(_reason(file, error)) from error


def _decode(file: File, shrink: Shrink | None) -> Image.Image:
    with Image.open(file, formats=_formats()) as image:
        if _is_preview(image):
            raise UnreadableImageError(
                "a raw photo, of which only the preview would be read; export it as JPEG"
            )
        if _has_deep_planes(image):
            raise UnreadableImageError(_tiff_problem(file))
        white, has_alpha = _white(image), _may_have_alpha(image, file)
        smaller = image if shrink is None else shrink(image)
        smaller.load()
        if image.format in CHECKED_FORMATS and (problem := find_damage(image, _content(file))):
            raise UnreadableImageError(problem)
        upright = to_rgb(smaller if has_alpha else smaller.convert("RGB"), white)
        return _upright(upright, smaller)


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


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; none of other formats."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _white(image: Image.Image) -> int:
    """Return white in 16-bit gray: TIFF may hold 12 bits, and may count from white."""
    tags = _tags(image)
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    return -white if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else white


def _is_preview(image: Image.Image) -> bool:
    """Tell whether the first image of a TIFF is a small one of another, as in raw photos."""
    tags = _tags(image)
    is_reduced = bool(tags.get(_NEW_SUBFILE_TYPE, 0) & 1)
    has_others = is_reduced and (_SUB_IFDS in tags or getattr(image, "n_frames", 1) > 1)
    return _DNG_VERSION in tags or has_others


def _has_deep_planes(image: Image.Image) -> bool:
    """Tell whether Pillow would read the planes of a TIFF as 8-bit values, which they are not."""
    tags = _tags(image)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    return is_planar and len(bits) > 1 and bits[0] != 8


def _may_have_alpha(image: Image.Image, file: File) -> bool:
    """Tell whether a fourth band is transparency, where a format has other ones too.

    Near infrared for instance. A TIFF names such a band, JPEG 2000 in a box called cdef.
    """
    if image.mode not in ("RGBA", "LA"):
        return True
    if tags := _tags(image):
        return TiffImagePlugin.EXTRASAMPLES in tags
    if image.format == "JPEG2000":
        _, _, box = _content(file, _JP2_HEADER_BYTES).partition(b"cdef")
        types = box[5 : 2 + 6 * int.from_bytes(box[:2]) : 6]  # 6 bytes for each channel
        return not {1, 2}.isdisjoint(types)
    return True


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


def _content(file: File, size: int = -1) -> bytes:
    """Return the first bytes of a file, by default all."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as stream:
            return stream.read(size)
    file.seek(0)
    return file.read(size)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    if has_heic():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _tiff_problem(file: File) -> str:
    """Describe the pixels of a TIFF; empty where it is none, or its directory is damaged."""
    try:
        stream = io.BytesIO(_content(file))
        tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(tags.next)
        tags.load(stream)
        channels = plural(tags[TiffImagePlugin.SAMPLESPERPIXEL], "channel")
        bits = tags[TiffImagePlugin.BITSPERSAMPLE][0]
        kind = {2: " signed", 3: " float"}.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "")
        planes = " in planes of their own" * (tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2)
    except Exception:  # on damaged bytes, Pillow raises nearly anything
        return ""
    return (
        f"a TIFF of {channels} of {bits}-bit{kind} values{planes}, which is not read; "
        "write 1 or 3 channels of 8 bits"
    )


def _reason(file: File, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        head = _content(file, HEAD_BYTES)
        is_tiff = head.startswith((b"II*\0", b"MM\0*"))
        text = (is_tiff and _tiff_problem(file)) or describe_content(head)
        return text or "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if any(text in str(error) for text in _TRUNCATED):
        return "truncated: pixels are missing"
    return str(error) or type(error).__name__
