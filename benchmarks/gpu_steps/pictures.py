"""Made-up images."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from gpu_steps.context import Sizes

#: Shares of the images by part.
PARTS = {"train": 0.75, "val": 0.15, "test": 0.1}


def make_images(folder: Path, sizes: Sizes) -> Path:
    """Write JPEGs of smooth noise into folders of parts and classes; return the folder."""
    draws = np.random.default_rng(0)

    def write(path: Path, coarse: np.ndarray) -> None:
        picture = Image.fromarray(coarse)
        side = (sizes.jpeg_px, sizes.jpeg_px)
        picture.resize(side, Image.Resampling.BICUBIC).save(path, quality=90)

    written = []
    with ThreadPoolExecutor() as pool:
        for part, share in PARTS.items():
            for label in range(sizes.classes):
                (folder / part / f"class-{label}").mkdir(parents=True)
            for index in range(round(share * sizes.images)):
                path = folder / part / f"class-{index % sizes.classes}" / f"{index:05}.jpg"
                # Classes differ in their colors, so that there is something to learn.
                coarse = draws.integers(0, 200, (8, 8, 3), dtype=np.uint8)
                coarse[..., index % 3] += np.uint8(5 * (index % sizes.classes))
                written.append(pool.submit(write, path, coarse))
    for one in written:
        one.result()
    return folder
