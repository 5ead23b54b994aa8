from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from autotune.data.image_files import UnreadableImageError, read_image
from tests.support.data.images import photo
from tests.support.data.odd_images import png_chunk
from tests.support.data.odd_images import tiff as write_tiff


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "jpg"])
def test_color_files_of_every_format_become_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = photo(24, 16)
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    difference = np.abs(pixels(path).astype(int) - np.asarray(image).astype(int))
    assert difference.mean() < (25 if suffix in ("gif", "jpg") else 1e-9)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda array: array),
        (2, np.fliplr),
        (3, lambda array: np.rot90(array, 2)),
        (4, np.flipud),
        (5, lambda array: array.transpose(1, 0, 2)),
        (6, lambda array: np.rot90(array, -1)),
        (7, lambda array: np.rot90(array, 2).transpose(1, 0, 2)),
        (8, lambda array: np.rot90(array, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert callable(upright)
    for ending, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{ending}"
        photo(12, 7).save(path, exif=exif, **options)
        assert np.array_equal(pixels(path), upright(np.asarray(photo(12, 7)))), ending


def test_gray_and_bilevel_become_three_equal_channels(tmp_path: Path) -> None:
    photo(8, 8).convert("L").save(tmp_path / "gray.png")
    photo(8, 8).convert("1").save(tmp_path / "two.png")
    for name in ("gray.png", "two.png"):
        array = pixels(tmp_path / name)
        assert (array == array[..., :1]).all()
    assert set(np.unique(pixels(tmp_path / "two.png"))) == {0, 255}


def test_cmyk_keeps_its_colors_with_and_without_the_mark_of_adobe(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    data = (tmp_path / "a.jpg").read_bytes()
    mark = data.index(b"\xff\xee")
    length = 2 + struct.unpack(">H", data[mark + 2 : mark + 4])[0]
    assert b"Adobe" in data[mark : mark + length]
    (tmp_path / "b.jpg").write_bytes(data[:mark] + data[mark + length :])
    assert np.array_equal(pixels(tmp_path / "a.jpg"), pixels(tmp_path / "b.jpg"))
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [200, 30, 60]).max() < 8


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def png(width: int, depth: int, color: int, row: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Write one row by hand, which Pillow cannot do with 16-bit color."""
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff(bits: int, samples: int, photometric: int, data: bytes) -> bytes:
    """Write an uncompressed TIFF of one row of two pixels by hand."""
    start = 8 + 2 + 12 * 9 + 4  # of what the entries have no room for
    entries = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, start + 2 * samples), (277, samples), (279, len(data))]
    entries += [(338, 2)] if samples == 4 else [(278, 1)]  # alpha; one strip is the default
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    for tag, value in sorted(entries):
        count = samples if tag == 258 else 1
        value = start if count > 2 else value
        content += struct.pack("<HHIHH", tag, 3, count, value, 0)
    return content + bytes(4) + struct.pack("<H", bits) * samples + data


def test_16_bit_color_is_scaled_not_clipped(tmp_path: Path) -> None:
    row = struct.pack(">6H", 0, 257 * 128, 65535, 65535, 0, 257)
    (tmp_path / "a.png").write_bytes(png(2, 16, 2, row))
    little = np.frombuffer(row, ">u2").astype("<u2").tobytes()
    (tmp_path / "a.tif").write_bytes(tiff(16, 3, 2, little))
    for name in ("a.png", "a.tif"):
        assert pixels(tmp_path / name).tolist() == [[[0, 128, 255], [255, 0, 1]]]


def test_16_bits_and_transparency_together(tmp_path: Path) -> None:
    clear, solid = 0, 65535
    gray = struct.pack(">4H", 257 * 100, solid, 0, clear)
    color = struct.pack(">8H", 257 * 100, 0, 0, solid, 0, 0, 0, clear)
    (tmp_path / "la.png").write_bytes(png(2, 16, 4, gray))
    (tmp_path / "rgba.png").write_bytes(png(2, 16, 6, color))
    little = np.frombuffer(color, ">u2").astype("<u2").tobytes()
    (tmp_path / "rgba.tif").write_bytes(tiff(16, 4, 2, little))
    key = (b"tRNS", struct.pack(">H", 0))  # this gray is transparent
    (tmp_path / "l.png").write_bytes(png(2, 16, 0, struct.pack(">2H", 257 * 100, 0), key))
    for name, left in (("la.png", 100), ("l.png", 100), ("rgba.png", None), ("rgba.tif", None)):
        expected = [100, 0, 0] if left is None else [left] * 3
        assert pixels(tmp_path / name).tolist() == [[expected, [255, 255, 255]]], name


@pytest.mark.parametrize(
    ("bits", "white", "data", "expected"),
    [
        (16, 1, struct.pack("<2H", 0, 257 * 9), [0, 9]),
        (16, 0, struct.pack("<2H", 0, 257 * 9), [255, 246]),  # 0 is white, as in scans
        (8, 0, bytes([0, 9]), [255, 246]),
        (12, 1, b"\x00\x0f\xff", [0, 255]),
    ],
)
def test_gray_tiffs_are_as_bright_as_they_say(
    tmp_path: Path, bits: int, white: int, data: bytes, expected: list[int]
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(bits, 1, white, data))
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[70000, 70000, 70000]], np.int32), [0, 0, 0]),
        (np.array([[-0.25, 0.0, 0.25]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.nan, np.inf]], np.float32), [0, 0, 0]),
    ],
)
def test_modes_without_a_range_are_scaled_by_their_values(
    tmp_path: Path, values: np.ndarray, expected: list[int]
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == expected


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    assert pixels(tmp_path / "rgba.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    rgba.convert("LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0, 1].tolist() == [255, 255, 255]


def test_palette_with_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for position in range(3):
        image.putpixel((position, 0), position)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 255]))
    expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert pixels(tmp_path / "a.png").tolist() == expected


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_an_animation_or_a_document_the_first_is_read(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]


def test_the_content_of_a_file_is_read_as_the_file_is(tmp_path: Path) -> None:
    photo(9, 7).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(np.asarray(read_image(io.BytesIO(content))), pixels(tmp_path / "a.png"))
    with pytest.raises(UnreadableImageError, match=r"^the file is empty$"):
        read_image(io.BytesIO())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match=r"^not a file$"):
        read_image(tmp_path / "pipe.jpg")


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UnreadableImageError, match=r"^the file is empty$"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(UnreadableImageError, match=r"^a PostScript drawing, which is not read"):
        read_image(tmp_path / "eps.jpg")
    with pytest.raises(UnreadableImageError, match=r"^No such file or directory$"):
        read_image(tmp_path / "gone.jpg")


def test_a_decompression_bomb_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_image(tmp_path / "a.png")


COLORS = np.asarray(photo(6, 5))
INFRARED = COLORS[..., :1] // 2


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("bands", "extra", "has_alpha"),
    [(4, None, False), (4, [0], False), (4, [2], True), (5, [0, 0], False), (5, [2, 0], True)],
)
def test_only_a_band_that_is_called_alpha_is_transparency(
    bands: int, extra: list[int] | None, has_alpha: bool, planar: bool
) -> None:
    values = np.concatenate([COLORS, INFRARED, INFRARED][: bands - 2], axis=2)
    for pixels in (values, values.astype("<u2") * 257)[: 2 - (planar or bands > 4)]:
        content = write_tiff(pixels, 2, extra, planar)
        try:
            image = np.asarray(read_image(io.BytesIO(content)))
        except UnreadableImageError:  # Pillow reads few TIFFs with planes
            assert planar
            continue
        on_white = 255 - (255 - COLORS.astype(float)) * INFRARED / 255
        expected = on_white if has_alpha else COLORS
        assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "photometric", "text"),
    [
        (np.zeros((4, 4, 5), "u1"), 2, "a TIFF of 5 channels of 8-bit values, which is not read"),
        (np.zeros((4, 4, 3), "<f4"), 2, "a TIFF of 3 channels of 32-bit float values"),
        (np.zeros((4, 4, 2), "u1"), 1, "a TIFF of 2 channels of 8-bit values"),
    ],
)
def test_a_tiff_that_is_not_read_says_of_what_pixels_it_is(
    pixels: np.ndarray, photometric: int, text: str
) -> None:
    with pytest.raises(UnreadableImageError, match=text):
        read_image(io.BytesIO(write_tiff(pixels, photometric)))


@pytest.mark.parametrize("tags", [{254: 1, 330: 8}, {50706: 1}])
def test_the_preview_of_a_raw_photo_is_not_taken_for_it(tags: dict[int, int]) -> None:
    stream = io.BytesIO()
    photo(16, 12).save(stream, "TIFF", tiffinfo=tags)
    with pytest.raises(UnreadableImageError, match="a raw photo, of which only the preview"):
        read_image(stream)


def test_the_first_page_that_is_a_small_copy_is_not_taken_for_the_image() -> None:
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream, True) as pages:
        for size, kind in (((4, 3), 1), ((16, 12), 0)):
            photo(*size).save(pages, "TIFF", tiffinfo={254: kind})
            pages.newFrame()
        with pytest.raises(UnreadableImageError, match="only the preview would be read"):
            read_image(io.BytesIO(stream.getvalue()))


def test_planes_of_16_bits_are_not_read_as_8_bits() -> None:
    content = write_tiff(np.zeros((4, 4, 4), "<u2"), 2, None, planar=True)
    with pytest.raises(UnreadableImageError, match="16-bit values in planes of their own"):
        read_image(io.BytesIO(content))


def test_jpeg_2000_says_in_its_header_whether_a_band_is_alpha() -> None:
    for mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 4))  # black, and clear throughout
        stream = io.BytesIO()
        image.save(stream, "JPEG2000")
        assert np.asarray(read_image(stream)).min() == 255
        without = stream.getvalue().replace(b"cdef", b"free")
        assert np.asarray(read_image(io.BytesIO(without))).max() == 0


def test_heic_is_read_upright() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    photo(24, 16).save(stream, "HEIF", exif=exif.tobytes())
    assert read_image(stream).size == (16, 24)
