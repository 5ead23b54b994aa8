from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotune.data.reading import UnreadableImageError, read_image
from tests.support.images import photo


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "jpg"])
def test_colour_files_of_every_format_become_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = photo(24, 16)
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    difference = np.abs(pixels(path).astype(int) - np.asarray(image).astype(int))
    assert difference.mean() < (25 if suffix in ("gif", "jpg") else 1e-9)


def test_the_ending_need_not_tell_the_format(tmp_path: Path) -> None:
    photo(8, 8).save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "a.jpg"), np.asarray(photo(8, 8)))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda array: array),
        (2, np.fliplr),
        (3, lambda array: np.rot90(array, 2)),
        (6, lambda array: np.rot90(array, -1)),
        (8, lambda array: np.rot90(array, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(12, 7).save(tmp_path / "a.png", exif=exif)
    assert callable(upright)
    assert np.array_equal(pixels(tmp_path / "a.png"), upright(np.asarray(photo(12, 7))))


def test_grey_and_bilevel_become_three_equal_channels(tmp_path: Path) -> None:
    photo(8, 8).convert("L").save(tmp_path / "grey.png")
    photo(8, 8).convert("1").save(tmp_path / "two.png")
    for name in ("grey.png", "two.png"):
        array = pixels(tmp_path / name)
        assert (array == array[..., :1]).all()
    assert set(np.unique(pixels(tmp_path / "two.png"))) == {0, 255}


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - [200, 30, 60]).max() < 8


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    # Pillow writes no 16-bit colour: one row of two pixels, written by hand
    row = b"\0" + struct.pack(">6H", 0, 257 * 128, 65535, 65535, 0, 257)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    ]
    with open(tmp_path / "a.png", "wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            checksum = struct.pack(">I", zlib.crc32(name + data))
            stream.write(struct.pack(">I", len(data)) + name + data + checksum)
    assert pixels(tmp_path / "a.png").tolist() == [[[0, 128, 255], [255, 0, 1]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[70000, 70000, 70000]], np.int32), [0, 0, 0]),
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
    for place in range(3):
        image.putpixel((place, 0), place)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 255]))
    expected = [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert pixels(tmp_path / "a.png").tolist() == expected


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def test_a_damaged_jpeg_is_unreadable(tmp_path: Path) -> None:
    photo(200, 200).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def test_a_damaged_png_is_unreadable(tmp_path: Path) -> None:
    photo(50, 50).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "a.png")


def test_what_is_no_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UnreadableImageError, match=r"^the file is empty$"):
        read_image(tmp_path / "empty.jpg")
    for name in ("text.jpg", "eps.jpg"):
        with pytest.raises(UnreadableImageError, match=r"^not an image that Pillow can read$"):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableImageError, match=r"^No such file or directory$"):
        read_image(tmp_path / "gone.jpg")


def test_a_decompression_bomb_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        read_image(tmp_path / "a.png")
