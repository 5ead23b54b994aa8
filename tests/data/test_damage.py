"""Files of which an end marker or something beside the pixels is damaged, and half-empty ones."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autotune.data.cache.reading import silence_pillow
from autotune.data.image_files import UnreadableImageError, read_image
from tests.support.data.odd_images import (
    encoded,
    half_empty,
    picture,
    png_chunk,
    profile_chunk,
    with_chunk,
)

PICTURE = picture(1)
PNG = encoded(PICTURE, "PNG")
JPEG = encoded(PICTURE, "JPEG", quality=95, subsampling=0)
PROGRESSIVE = encoded(PICTURE, "JPEG", quality=95, subsampling=0, progressive=True)
WEBP = encoded(PICTURE, "WEBP", lossless=True)
TURN = Image.Exif()
TURN[0x0112] = 6
EXIF = TURN.tobytes().removeprefix(b"Exif\0\0")
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><d tiff:Orientation=\"6\"/></x:xmpmeta>"


def read(content: bytes) -> np.ndarray:
    with silence_pillow():
        return np.asarray(read_image(io.BytesIO(content))).astype(int)


def problem(content: bytes) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(io.BytesIO(content))
    return str(caught.value)


def is_picture(pixels: np.ndarray, turned: bool = False) -> bool:
    expected = np.asarray(PICTURE).astype(int)
    expected = np.rot90(expected, -1) if turned else expected
    return pixels.shape == expected.shape and bool(np.abs(pixels - expected).mean() < 4)


@pytest.mark.parametrize(
    "chunk",
    [
        profile_chunk(2_000_000),
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"tEXt", b"a\0" + bytes(900_000)) * 8,
        png_chunk(b"tEXt", b"a\0b", is_right=False),
        png_chunk(b"gAMA", bytes(4), is_right=False),
        png_chunk(b"prVt", b"private", is_right=False),
        png_chunk(b"iCCP", b"a\0\7broken"),
        png_chunk(b"pHYs", b"short"),
        png_chunk(b"eXIf", b"no EXIF"),
        png_chunk(b"acTL", bytes(3)),
    ],
    ids=lambda chunk: f"{chunk[4:8].decode()}-{len(chunk)}",
)
def test_what_lies_beside_the_pixels_of_a_png_does_not_matter(chunk: bytes) -> None:
    assert is_picture(read(with_chunk(PNG, chunk)))
    assert is_picture(read(PNG[:-12] + chunk + PNG[-12:]))


@pytest.mark.parametrize(
    "orientation",
    [
        png_chunk(b"eXIf", EXIF),
        png_chunk(b"eXIf", EXIF, is_right=False),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
)
def test_a_png_keeps_its_orientation_whatever_is_beside_it(orientation: bytes) -> None:
    assert is_picture(read(with_chunk(PNG, orientation)), turned=True)
    assert is_picture(read(with_chunk(PNG, orientation + profile_chunk(2_000_000))), turned=True)


def test_a_png_keeps_its_transparency_whatever_is_beside_it() -> None:
    content = encoded(Image.new("L", (2, 1)), "PNG")
    clear = png_chunk(b"tRNS", b"\0\0") + profile_chunk(2_000_000)
    assert read(with_chunk(content, clear)).tolist() == [[[255, 255, 255]] * 2]


def test_what_lies_beside_the_pixels_of_a_jpeg_does_not_matter() -> None:
    draws = random.Random(0)
    starts = (b"Exif\0\0MM\0*\0\0\0\x08", b"ICC_PROFILE\0", b"MPF\0II*\0\x08\0\0\0", b"Adobe")
    for _ in range(200):
        data = draws.choice((*starts, b"Photoshop 3.0\x008BIM", b"JFIF\0"))
        data += draws.randbytes(draws.choice((0, 1, 2, 9, 60)))
        marker = draws.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE))
        segment = struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
        if not (marker == 0xEE and len(data) >= 12):  # Adobe's mark says what the colors are
            assert is_picture(read(JPEG[:2] + segment + JPEG[2:])), segment
    options = {"quality": 95, "subsampling": 0, "exif": TURN, "icc_profile": bytes(2_000_000)}
    content = encoded(PICTURE, "JPEG", **options)
    assert is_picture(read(content), turned=True)


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ABCD"])
def test_what_lies_beside_the_pixels_of_a_webp_does_not_matter(name: bytes) -> None:
    flags = struct.pack("<I3sI", 10, b"", 0)[:4] + bytes([0x0C, 0, 0, 0])
    size = struct.pack("<I", PICTURE.width - 1)[:3] + struct.pack("<I", PICTURE.height - 1)[:3]
    body = b"WEBPVP8X" + flags + size + WEBP[12:] + name + struct.pack("<I", 400) + b"\xa5" * 400
    content = b"RIFF" + struct.pack("<I", len(body)) + body
    for cut in (0, 1, 300, 405, 408):
        assert is_picture(read(content[: len(content) - cut]))


def test_odd_tags_of_a_tiff_do_not_matter() -> None:
    content = bytearray(encoded(PICTURE, "TIFF", dpi=(300, 300), software="x" * 100))
    start = struct.unpack("<I", content[4:8])[0]
    for entry in range(struct.unpack("<H", content[start : start + 2])[0]):
        offset = start + 2 + 12 * entry
        if struct.unpack("<H", content[offset : offset + 2])[0] in (282, 283, 296, 305):
            for kind in (0, 2, 13, 99):
                content[offset + 2 : offset + 4] = struct.pack("<H", kind)
                assert is_picture(read(bytes(content)))


@pytest.mark.parametrize(
    ("content", "cuts"),
    [
        (JPEG, (1, 2)),
        (PROGRESSIVE, (1, 2)),
        (encoded(PICTURE.convert("L"), "JPEG", quality=95), (1, 2)),
        (encoded(PICTURE, "JPEG", quality=95, optimize=True, restart_marker_rows=1), (1, 2)),
        (PNG, (1, 4, 12, 16)),
        (encoded(PICTURE, "GIF"), (1, 2)),
        (WEBP, (1,) * (len(WEBP) % 2)),
    ],
)
def test_without_its_end_marker_an_image_has_all_pixels(
    content: bytes, cuts: tuple[int, ...]
) -> None:
    for cut in cuts:
        assert np.array_equal(read(content[:-cut]), read(content))


@pytest.mark.parametrize(
    "content",
    [
        half_empty(JPEG, b"\xff\xd9"),
        half_empty(JPEG),
        half_empty(JPEG)[:-2] + b"\xff\xd9",
        half_empty(encoded(PICTURE, "JPEG", optimize=True), bytes(5000) + b"\xff\xd9"),
        half_empty(encoded(PICTURE.convert("L"), "JPEG"), b"\xff\xd9"),
        half_empty(encoded(PICTURE.convert("CMYK"), "JPEG"), b"\xff\xd9"),
        half_empty(encoded(PICTURE, "JPEG", restart_marker_rows=1), b"\xff\xd9"),
        half_empty(PROGRESSIVE, b"\xff\xd9"),
        half_empty(PROGRESSIVE),
        PROGRESSIVE[: PROGRESSIVE.rfind(b"\xff\xda")] + b"\xff\xd9",
        JPEG[:-60],
        PROGRESSIVE[:-60],
        half_empty(PNG),
        half_empty(PNG)[:-12] + PNG[-12:],
        PNG[: len(PNG) // 2],
        half_empty(encoded(PICTURE, "GIF")),
        half_empty(WEBP),
        half_empty(encoded(PICTURE, "WEBP", quality=99)),
        WEBP[:-60],
        half_empty(encoded(PICTURE, "AVIF", quality=99)),
        encoded(PICTURE, "BMP")[:-60],
        encoded(PICTURE, "TIFF")[:-60],
    ],
)
def test_missing_pixels_are_named(content: bytes) -> None:
    assert any(word in problem(content) for word in ("truncated", "damaged", "broken"))


def test_the_share_that_is_missing_is_named() -> None:
    text = problem(half_empty(JPEG, b"\xff\xd9"))
    assert re.fullmatch(r"truncated: the lower [45]\d % of the image is missing", text)


def flat(color: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (640, 480), color)  # type: ignore[arg-type]


def half_flat(color: tuple[int, int, int]) -> Image.Image:
    image = flat(color)
    image.paste(PICTURE)
    return image


@pytest.mark.parametrize(
    "image",
    [
        *(flat(color) for color in ((128, 128, 128), (127, 127, 127), (255, 255, 255))),
        flat(128, "L"),
        flat((0, 0, 0, 127), "CMYK"),
        *(half_flat(color) for color in ((128, 128, 128), (255, 255, 255), (0, 0, 0))),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"quality": 100, "optimize": True}]
)
def test_images_of_one_color_and_gray_corners_are_whole(
    image: Image.Image, options: dict[str, object]
) -> None:
    content = encoded(image, "JPEG", **options)
    for file in (content, content[:-2], content + bytes(4096)):
        assert read(file).shape == (480, 640, 3)


def test_zeros_after_the_image_are_no_damage() -> None:
    for content in (JPEG, PROGRESSIVE, PNG, WEBP):
        assert is_picture(read(content + bytes(4096)))


def test_a_wrong_checksum_of_right_pixels_is_no_damage() -> None:
    start = PNG.index(b"IDAT")
    end = start + 4 + struct.unpack(">I", PNG[start - 4 : start])[0]
    assert is_picture(read(PNG[:end] + b"wrong"[:4] + PNG[end + 4 :]))
