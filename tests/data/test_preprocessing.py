from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from autotune.data.image_files import UnreadableImageError, read_image
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.errors import BackboneError
from tests.support.data.images import photo

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def center(array: np.ndarray, size: int) -> np.ndarray:
    edge = (array.shape[1] - size) // 2
    return array[:, edge : edge + size, edge : edge + size]


def test_the_spec_says_what_timm_knows() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    spec = ImageSpec.from_data_config(resolve_model_data_config(model), None)
    assert spec == ImageSpec(
        size=160,
        store_size=168,
        interpolation="bilinear",
        crop_pct=0.95,
        crop_mode="center",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_image_size_replaces_the_input_of_the_backbone() -> None:
    spec = ImageSpec.from_data_config(CONFIG, 224)
    assert (spec.size, spec.store_size) == (224, 256)


def test_the_border_is_kept_in_steps_of_four() -> None:
    for size in range(8, 400):
        for crop_pct in (0.5, 0.875, 0.9, 0.95, 0.965, 1.0):
            spec = ImageSpec.from_data_config({**CONFIG, "crop_pct": crop_pct}, size)
            border = spec.store_size - size
            assert border % 4 == 0
            assert 0 <= border <= size / crop_pct - size
            assert size / crop_pct - size - border < 5


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.8, 0.875, 0.9, 0.95, 1.0, 1.1])
def test_view_0_is_the_evaluation_transform_of_timm(crop_mode: str, crop_pct: float) -> None:
    random = np.random.default_rng(int(crop_pct * 1000))
    for case in range(25):
        size = int(random.integers(8, 60))
        width, height = (int(side) for side in random.integers(1, 150, 2))
        interpolation = ("bicubic", "bilinear", "nearest", "lanczos")[case % 4]
        config = {
            **CONFIG,
            "input_size": (3, size, size),
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
        }
        spec = ImageSpec.from_data_config(config, None)
        image = photo(width, height, seed=case)
        transform = create_transform(**config, is_training=False, normalize=False)
        try:
            expected = transform(image).numpy()
        except ValueError:  # border mode makes a thread of an image zero pixels wide
            with pytest.raises(UnreadableImageError):
                to_store_array(image, spec)
            continue
        decoded = to_store_array(image, spec)
        assert decoded.dtype == np.uint8
        assert decoded.shape == (3, spec.store_size, spec.store_size)
        assert np.array_equal(center(decoded, size), expected), (spec, image.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (1, 32, 32)}, "images with 3 channels, but the backbone takes 1; choose"),
        ({"input_size": (3, 32, 48)}, "square images, but the backbone takes 32x48; set data.im"),
        ({"crop_mode": "corner"}, "center, squash, border, but the backbone expects 'corner'"),
        ({"interpolation": "random"}, "hamming, lanczos, but the backbone expects 'random'; cho"),
    ],
)
def test_other_inputs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        ImageSpec.from_data_config({**CONFIG, **change}, None)


@pytest.mark.parametrize(
    ("crop_mode", "side", "size"), [("center", 224, (30000, 1)), ("border", None, (2, 300))]
)
def test_an_image_like_a_thread_is_refused(
    crop_mode: str, side: int | None, size: tuple[int, int]
) -> None:
    spec = ImageSpec.from_data_config({**CONFIG, "crop_mode": crop_mode}, side)
    width, height = size
    with pytest.raises(UnreadableImageError, match=f"^too long for its width: {width}x{height}$"):
        to_store_array(Image.new("RGB", size), spec)


def test_oblong_backbones_can_be_given_a_side() -> None:
    assert ImageSpec.from_data_config({**CONFIG, "input_size": (3, 32, 48)}, 40).size == 40


class TestShrink:
    """Large JPEGs at a part of their size, see ``benchmarks/decoding.py`` for photographs."""

    def both(self, path: Path, spec: ImageSpec) -> tuple[np.ndarray, np.ndarray]:
        exact = to_store_array(read_image(path), spec)
        fast = to_store_array(read_image(path, lambda image: draft_decode(image, spec)), spec)
        return exact.astype(int), fast.astype(int)

    @pytest.mark.parametrize("crop_mode", ["center", "squash"])
    @pytest.mark.parametrize("size", [(803, 605), (601, 900), (640, 640), (1003, 1009)])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_images_differ_by_less_than_half_a_level(
        self, tmp_path: Path, crop_mode: str, size: tuple[int, int], mode: str
    ) -> None:
        path = tmp_path / "a.jpg"
        detailed(*size).convert(mode).save(path, quality=92)
        config = {**CONFIG, "crop_mode": crop_mode, "crop_pct": 0.875}
        for side in (32, 64):
            exact, fast = self.both(path, ImageSpec.from_data_config(config, side))
            assert 0.0 < np.abs(exact - fast).mean() < 0.5
            assert np.abs(exact - fast).max() <= 10

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_an_image_is_upright(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "a.jpg"
        detailed(803, 605).save(path, quality=92, exif=exif)
        exact, fast = self.both(path, ImageSpec.from_data_config(CONFIG, 48))
        assert 0.0 < np.abs(exact - fast).mean() < 0.5

    @pytest.mark.parametrize(
        ("file", "mode", "size", "crop_mode"),
        [
            ("a.png", "RGB", (800, 600), "center"),
            ("a.webp", "RGB", (800, 600), "center"),
            ("a.jpg", "CMYK", (800, 600), "center"),
            ("a.jpg", "RGB", (200, 150), "center"),
            ("a.jpg", "RGB", (4000, 20), "center"),
            ("a.jpg", "RGB", (800, 600), "border"),
        ],
    )
    def test_everything_else_is_decoded_as_ever(
        self, tmp_path: Path, file: str, mode: str, size: tuple[int, int], crop_mode: str
    ) -> None:
        path = tmp_path / file
        detailed(*size).convert(mode).save(path)
        spec = ImageSpec.from_data_config({**CONFIG, "crop_mode": crop_mode}, 48)
        exact, fast = self.both(path, spec)
        assert np.array_equal(exact, fast)

    def test_a_cut_file_is_unreadable_both_ways(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        detailed(800, 600).save(path)
        path.write_bytes(path.read_bytes()[:5000])
        spec = ImageSpec.from_data_config(CONFIG, 48)
        for smaller in (None, lambda image: draft_decode(image, spec)):
            with pytest.raises(UnreadableImageError, match="truncated"):
                read_image(path, smaller)


def detailed(width: int, height: int) -> Image.Image:
    """Return a blurred picture with sharp edges."""
    image = photo(width, height)
    image.paste((250, 20, 30), (width // 3, height // 4, width // 2, height // 2))
    image.paste((10, 200, 90), (width // 2, height // 2, width // 2 + 40, height // 2 + 50))
    return image
