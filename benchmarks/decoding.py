r"""What does ``data.decode: fast`` bring, and what does it cost?

Every image is decoded both ways in one run: in full, and at a part of its size where it is large
enough. Seconds of one thread, images a second of all cores, and the difference of the decoded
images in levels of 255.

    python benchmarks/decoding.py                        # photographs of 4000x3000 that it makes
    python benchmarks/decoding.py --images PHOTOS        # and a folder of JPEGs

The made ones have the spectrum of a photograph (amplitude over frequency), edges and noise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, features
from reports import date_and_machine

from autotune.data.image_files import read_image
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array

WIDTH, HEIGHT = 4000, 3000
EDGES = 60
NOISE = 4.0


@dataclass(frozen=True)
class Row:
    """One set of images at one size of the input."""

    what: str
    size: int
    full_s: float
    fast_s: float
    full_rate: float
    fast_rate: float
    mean: float
    worst: float
    largest: int

    def __str__(self) -> str:
        return (
            f"| {self.what} | {self.size} | {1000 * self.full_s:.1f} | {1000 * self.fast_s:.1f} "
            f"| {self.full_s / self.fast_s:.2f} | {self.full_rate:.1f} | {self.fast_rate:.1f} "
            f"| {self.fast_rate / self.full_rate:.2f} "
            f"| {self.mean:.2f} | {self.worst:.2f} | {self.largest} |"
        )


def make_photo(seed: int) -> Image.Image:
    """Make a picture with the spectrum of a photograph."""
    draws = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1.0 / WIDTH
    planes = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * draws.random(frequency.shape))
        plane = np.fft.irfft2(phases / frequency, (HEIGHT, WIDTH))
        planes.append((plane - plane.mean()) / plane.std())
    picture = np.stack([0.8 * planes[0] + 0.2 * plane for plane in planes], axis=-1) * 45 + 120
    picture += draws.normal(0.0, NOISE, picture.shape)
    for _ in range(EDGES):
        top, left, side = draws.integers((HEIGHT, WIDTH, 600))
        picture[top : top + side, left : left + side] = draws.integers(0, 256, 3)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def spec_of(size: int) -> ImageSpec:
    """Return what most backbones want: bicubic, 0.875 of the short side."""
    config = {"input_size": (3, size, size), "interpolation": "bicubic", "crop_pct": 0.875}
    return ImageSpec.from_data_config({**config, "mean": (0.5,) * 3, "std": (0.5,) * 3}, None)


def decoded(path: Path, spec: ImageSpec, fast: bool) -> np.ndarray:
    """Decode an image as a store does."""
    return to_store_array(
        read_image(path, partial(draft_decode, spec=spec) if fast else None), spec
    )


def rate(paths: Sequence[Path], spec: ImageSpec, fast: bool) -> float:
    """Return images a second of one thread a core."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(lambda path: decoded(path, spec, fast), paths):
            pass
    return len(paths) / (time.perf_counter() - start)


def compare(what: str, paths: Sequence[Path], size: int) -> Row:
    """Decode all images both ways."""
    spec = spec_of(size)
    seconds = {False: 0.0, True: 0.0}
    means, largest = [], 0
    for path in paths:
        made = {}
        for fast in (False, True):
            start = time.perf_counter()
            made[fast] = decoded(path, spec, fast)
            seconds[fast] += time.perf_counter() - start
        apart = np.abs(made[False].astype(int) - made[True].astype(int))
        means.append(float(apart.mean()))
        largest = max(largest, int(apart.max()))
    full_s, fast_s = (second / len(paths) for second in seconds.values())
    full, fast = (rate(paths, spec, fast) for fast in (False, True))
    return Row(what, size, full_s, fast_s, full, fast, float(np.mean(means)), max(means), largest)


def rows(made: int, images: Path | None, limit: int) -> Iterator[Row]:
    """Compare the made photographs, and those of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for seed in range(made):
            paths.append(Path(folder) / f"{seed}.jpg")
            make_photo(seed).save(paths[-1], quality=92)
        for size in (64, 224, 384):
            yield compare(f"{len(paths)} of {WIDTH}x{HEIGHT}", paths, size)
    if images is not None:
        paths = sorted(images.rglob("*.jpg"))[:limit]
        sides = sorted(min(Image.open(path).size) for path in paths)
        what = f"{len(paths)} photographs, short side {sides[len(sides) // 2]} (median)"
        for size in (24, 32, 40, 64, 80, 224):
            yield compare(what, paths, size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs")
    parser.add_argument("--made", type=int, default=6, help="how many photographs to make")
    parser.add_argument("--limit", type=int, default=100, help="number of images of the folder")
    arguments = parser.parse_args()
    turbo = features.version("libjpeg_turbo") or "none"
    print(f"{date_and_machine('pillow', 'timm')} libjpeg-turbo: {turbo}.\n")
    print(
        "| images | input | full, ms | fast, ms | ratio | full, images/s | fast, images/s | ratio "
        "| mean difference | of the worst image | of the worst pixel |"
    )
    print("|" + " --- |" * 11)
    for row in rows(arguments.made, arguments.images, arguments.limit):
        print(row, flush=True)


if __name__ == "__main__":
    main()
