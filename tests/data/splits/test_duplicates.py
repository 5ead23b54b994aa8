from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autotune.config.schema import DataConfig
from autotune.data.quality.checks import check_dataset, dataset_warnings
from autotune.data.sources.registry import open_source
from autotune.data.splits import duplicates as duplicates_module
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.duplicates import (
    count_duplicates,
    find_duplicates,
    find_pairs,
    fingerprint_images,
    near_pairs,
)
from autotune.errors import DatasetError


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Return an image with detail at all scales, as photographs have it."""
    random = np.random.default_rng(seed)
    noise = np.fft.rfft2(random.normal(size=(height, width, 3)), axes=(0, 1))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = noise / np.maximum(np.hypot(x, y), 1 / width)[..., None]
    pixels = np.fft.irfft2(falling, s=(height, width), axes=(0, 1))
    pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten scenes in each of two classes."""
    root = tmp_path / "photos"
    for label, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for index in range(10):
            scene(100 * label + index).save(root / name / f"{index}.png")
    return root


def variants(image: Image.Image, root: Path) -> None:
    """Write an image as it comes again in practice."""
    width, height = image.size
    image.save(root / "x-jpeg.jpg", quality=40)
    image.resize((2 * width, 2 * height)).save(root / "x-large.jpg")
    image.resize((100, 75)).save(root / "x-small.png")
    image.resize((128, 128)).save(root / "x-square.png")
    image.convert("L").save(root / "x-gray.png")
    image.crop((4, 3, width - 4, height - 3)).save(root / "x-cropped.png")
    image.save(root / "x-equal.png")


def test_copies_are_found_and_others_are_not(photos: Path) -> None:
    variants(scene(3), photos / "a")
    (photos / "b" / "0.png").write_bytes(b"")
    source = open_source(str(photos))
    result = find_duplicates(source)
    keys = [sample.key for sample in source.samples]
    assert [[keys[one] for one in pair] for pair in result.exact] == [["a/3.png", "a/x-equal.png"]]
    alike = {index for pair in result.near for index in pair.tolist()}
    names = ("jpeg.jpg", "large.jpg", "small.png", "square.png", "gray.png", "cropped.png")
    assert {keys[index] for index in alike} == {"a/3.png", *(f"a/x-{name}" for name in names)}
    assert (result.images, result.unreadable, result.small, result.too_many) == (26, 1, 0, False)


def test_small_images_are_compared_pixel_by_pixel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            scene(index % 3, 63, 80).save(tmp_path / name / f"{index}.png")
            scene(index % 3, 63, 80).save(tmp_path / name / f"{index}.jpg")
    result = find_duplicates(open_source(str(tmp_path)))
    assert (result.small, len(result.near)) == (16, 0)
    assert len(result.exact) == 16 - 6


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
def test_blocks_find_every_pair(count: int) -> None:
    random = np.random.default_rng(count)
    hashes = random.integers(0, 2**64, (count, 4), dtype=np.uint64)
    hashes[:: max(1, count // 7)] = hashes[0] ^ np.array([0, 0b111, 0, 1 << 63], dtype=np.uint64)
    brute = {
        (one, other)
        for one, other in combinations(range(count), 2)
        if np.bitwise_count(hashes[one] ^ hashes[other]).sum() <= 64
    }
    result = [tuple(pair) for block in near_pairs(hashes) for pair in block.tolist()]
    assert set(result) == brute
    assert len(result) == len(brute)


def counted(photos: Path, mode: str = "report", **data: Any) -> dict[str, Any]:
    dataset = Dataset.open(str(photos), DataConfig(duplicates=mode, **data))
    values: dict[str, Any] = check_dataset(dataset, mode)["duplicates"]
    return values


def test_duplicates_of_a_group_are_in_one_split(photos: Path) -> None:
    for path in [*photos.glob("*/[0-4].png")]:
        Image.open(path).resize((320, 240)).save(path.with_name(f"again-{path.stem}.jpg"))
    apart, together = counted(photos), counted(photos, "group")
    assert apart["near"] == together["near"] == 20
    assert apart["test"] + apart["validation"] > 0
    assert together["test"] == together["validation"] == 0
    first = Dataset.open(str(photos), DataConfig(duplicates="group"))
    assert first.split == Dataset.open(str(photos), DataConfig(duplicates="group")).split
    assert first.split == Dataset.open(str(photos), DataConfig(), first.manifest).split


def test_no_image_is_decoded_where_nobody_asks(photos: Path) -> None:
    (photos / "a" / "0.png").write_bytes(b"")  # would be counted as unreadable
    assert "duplicates" not in check_dataset(Dataset.open(str(photos), DataConfig()), "off")


def test_what_it_says(photos: Path) -> None:
    for name in ("a", "b"):
        for index in range(10):
            scene(7).save(photos / name / f"same-{index}.png")
    values = check_dataset(Dataset.open(str(photos), DataConfig()), "report")
    result = values["duplicates"]
    assert (result["exact"], result["near"], result["classes"]) == (21, 0, 10)
    assert (result["test"], result["validation"]) == (4, 3)
    assert [one for one in result["examples"] if one[1] == one[3]] == []
    _, second = dataset_warnings(values, {})
    assert second == (
        "10 pairs of duplicates have two classes: one of the two labels may be wrong."
    )


def test_copies_of_what_looks_alike_count_too(photos: Path) -> None:
    """A near pair is one of the first images; their copies are as near to each other."""
    for index in range(3):
        scene(5).save(photos / "a" / f"z{index}.png")
        scene(5).resize((320, 240)).save(photos / "b" / f"z{index}.png")
    source = open_source(str(photos))
    result = find_duplicates(source)
    split = Dataset.open(str(photos), DataConfig()).split
    values = count_duplicates(result, source, split)
    assert (len(result.exact), len(result.near)) == (5, 1)
    assert (values["exact"], values["near"]) == (7, 7)
    alike = {i for i, one in enumerate(source.samples) if "/z" in one.key or one.key == "a/5.png"}
    assert values["test"] == len(alike & set(split.test))


def test_images_that_all_look_alike_are_no_duplicates(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_module, "_MAX_PAIRS", 1)
    variants(scene(3), photos / "a")
    for index in range(8):
        scene(3).resize((170 + index, 120)).save(photos / "b" / f"z{index}.png")
    result = find_pairs(fingerprint_images(open_source(str(photos)), range(35)))
    assert (result.too_many, len(result.near), len(result.exact)) == (True, 0, 1)
    values = check_dataset(Dataset.open(str(photos), DataConfig()), "report")
    assert dataset_warnings(values, {})[0].startswith(
        "The images look so much alike that near duplicates"
    )
    with pytest.raises(DatasetError, match="needs images that can be told apart"):
        Dataset.open(str(photos), DataConfig(duplicates="group"))
