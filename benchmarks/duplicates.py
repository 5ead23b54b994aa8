r"""What does the search for duplicates find, what does it miss, and what does it cost?

Every photograph of a folder is compared with variants of itself, as they come again in practice,
and with all other photographs, by the hash that autotune takes and by others of the library.

    python benchmarks/duplicates.py PHOTOS
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from reports import date_and_machine

from autotune.data.image_files import Shrink, read_image
from autotune.data.image_formats import ENDINGS
from autotune.data.source import Sample, Source
from autotune.data.splits.duplicates import HASH_SIDE, NEAR_BITS, fingerprint_images, near_pairs

HASHES: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "pHash, 256 bits": lambda image: imagehash.phash(image, hash_size=HASH_SIDE).hash,
    "pHash, 64 bits": lambda image: imagehash.phash(image).hash,
    "dHash, 256 bits": lambda image: imagehash.dhash(image, hash_size=16).hash,
    "dHash, 64 bits": lambda image: imagehash.dhash(image).hash,
    "average, 256 bits": lambda image: imagehash.average_hash(image, hash_size=16).hash,
}


class Photographs(Source):
    """A flat list of photographs as a source of one class."""

    name = "photographs"
    classes = ("any",)

    def __init__(self, paths: list[Path]) -> None:
        self.samples = tuple(Sample(str(path), 0, None) for path in paths)

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return nothing: no store is made of them."""
        return ""

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return a photograph."""
        return read_image(sample.key, shrink)


def variants(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Yield an image as it comes again."""
    width, height = image.size

    def jpeg(quality: int) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    def cut(left: float, top: float, right: float, bottom: float) -> Image.Image:
        box = (width * left, height * top, width * (1 - right), height * (1 - bottom))
        return image.crop(tuple(round(one) for one in box))

    yield "decoded in full", image
    yield "JPEG of quality 75", jpeg(75)
    yield "JPEG of quality 30", jpeg(30)
    yield "a quarter of the size", image.resize((max(1, width // 4), max(1, height // 4)))
    yield "twice the size", image.resize((2 * width, 2 * height))
    yield "squashed to a square", image.resize((224, 224))
    yield "grey", image.convert("L").convert("RGB")
    yield "20 % brighter", image.point(lambda value: min(255, round(1.2 * value)))
    yield "5 % of the area cut off around", cut(*[0.0127] * 4)
    yield "5 % of each side cut off around", cut(*[0.025] * 4)
    yield "5 % cut off at one side", cut(0.05, 0, 0, 0)
    yield "10 % cut off at one side", cut(0.1, 0, 0, 0)
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def main() -> None:
    """Measure and print a report in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder of photographs")
    folder = parser.parse_args().images
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS]
    print("# Duplicates: what the hash finds\n")
    print(date_and_machine("pillow", "ImageHash"), end="\n\n")
    print(f"{len(paths)} photographs. Bits by which a variant differs from the original:\n")
    print("| variant | median | 99 % | most | found |\n| --- | --- | --- | --- | --- |")
    apart: dict[tuple[str, str], list[int]] = {}
    known: dict[str, list[np.ndarray]] = {name: [] for name in HASHES}
    for path in paths:
        original = Image.open(path)
        original.draft("RGB", (128, 128))
        of = {name: hashed(original.convert("RGB")) for name, hashed in HASHES.items()}
        for name, bits in of.items():
            known[name].append(bits)
        for kind, image in variants(read_image(path)):
            for name, hashed in HASHES.items():
                bits = int((hashed(image) != of[name]).sum())
                apart.setdefault((name, kind), []).append(bits)
    first = next(iter(HASHES))
    for (name, kind), bits in apart.items():
        if name == first:
            found = np.mean(np.array(bits) <= NEAR_BITS)
            middle, most = np.median(bits), np.quantile(bits, 0.99)
            print(f"| {kind} | {middle:.0f} | {most:.0f} | {max(bits)} | {100 * found:.1f} % |")
    print("\nThe nearest two different photographs, and the variants at less than that:\n")
    print("| hash | nearest | variants found without an error |\n| --- | --- | --- |")
    for name in HASHES:
        pairs = combinations(known[name], 2)
        nearest = min(int((one != other).sum()) for one, other in pairs)
        kinds = [bits for (one, kind), bits in apart.items() if one == name and kind != "mirrored"]
        share = np.mean(np.concatenate(kinds) < nearest)
        print(f"| {name} | {nearest} | {100 * share:.1f} % |")
    start = time.perf_counter()
    fingerprint_images(Photographs(paths), range(len(paths)))
    rate = len(paths) / (time.perf_counter() - start)
    print(f"\nLooking at the photographs: {rate:.0f} images/s.")
    for count in (20_000, 100_000):
        random = np.random.default_rng(0)
        hashes = random.integers(0, 2**64, (count, 4), dtype=np.uint64)
        start = time.perf_counter()
        list(near_pairs(hashes))
        print(f"Comparing {count:,} hashes: {time.perf_counter() - start:.1f} s.")


if __name__ == "__main__":
    main()
