"""Tiny image folders for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB image of blurred noise: a photo has edges, and no two are alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def make_class_folders(
    root: Path,
    counts: Mapping[str, int],
    size: tuple[int, int] = (20, 16),
    suffix: str = ".png",
) -> Path:
    """Write a folder of class folders.

    Args:
        root: The folder to make.
        counts: Class name -> number of images, all of which differ.
        size: Width and height.
        suffix: Ending, and so format, of the files.

    Returns:
        ``root``.
    """
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = photo(*size, seed=1000 * number + index)
            image.save(root / name / f"{index:03d}{suffix}")
    return root


def make_split_folder(root: Path, parts: Mapping[str, Mapping[str, int]]) -> Path:
    """Write a folder that is already split: part's folder -> class name -> number of images."""
    for name, counts in parts.items():
        make_class_folders(root / name, counts)
    return root
