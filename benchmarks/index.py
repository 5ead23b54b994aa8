"""How long does it take to index and to split hundreds of thousands of images, in how much memory?

Makes class folders of hard links to a few small images, and a table of the same files. Each is
opened in its own process: found and fingerprinted, then split. Seconds of the wall clock; the
memory is the most that the process had, less what it had before, and what a worker keeps of it.

    python benchmarks/index.py [--images 20000 200000] [--write]

The files are in the system's cache, as they are for all workers but the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from reports import date_and_machine, write_report

from autotune.config.schema import DataConfig
from autotune.data.progress import INDEXING
from autotune.data.sources.registry import open_source
from autotune.data.splits.stratified import make_split

CLASSES = 200
ORIGINALS = 20  # a file system limits how many links a file may have


def make_images(folder: Path, count: int) -> None:
    """Make class folders and the table beside them."""
    noise = np.random.default_rng(0)
    originals = []
    for number in range(ORIGINALS):
        originals.append(folder / f"{number}.png")
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(originals[-1])
    for label in range(CLASSES):
        (folder / "photos" / f"class-{label:03d}").mkdir(parents=True)
    with (folder / "photos.csv").open("w") as table:
        print("path,label", file=table)
        for index in range(count):
            name = f"class-{index % CLASSES:03d}"
            path = f"photos/{name}/image-{index:07d}.png"
            os.link(originals[index % ORIGINALS], folder / path)
            print(f"{path},{name}", file=table)


def memory_mb(most: bool) -> float:
    """Return the memory of this process, now or at most so far."""
    if most:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def measure(path: str) -> None:
    """Open and split the images, and print what it took, as JSON."""
    before = memory_mb(most=False)
    steps: dict[str, float] = {}

    def progress(step: str, done: int, total: int | None) -> None:
        steps[step] = time.perf_counter()

    start = time.perf_counter()
    source = open_source(path, progress)
    opened = time.perf_counter()
    split = make_split(source, DataConfig())
    done = time.perf_counter()
    kept = memory_mb(most=False)  # the system counts its peak a little behind
    print(
        json.dumps(
            {
                "images": len(split.train + split.validation + split.test),
                "index": steps[INDEXING] - start,
                "whole": opened - start,
                "split": done - opened,
                "most_mb": max(memory_mb(most=True), kept) - before,
                "kept_mb": kept - before,
            }
        )
    )


def row(path: Path, what: str) -> str:
    """Measure in its own process, and write a line of the table."""
    command = [sys.executable, __file__, "--measure", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return (
        f"| {found['images']:,} | {what} | {found['index']:.1f} | {found['whole']:.1f} | "
        f"{found['split']:.1f} | {found['most_mb']:.0f} | {found['kept_mb']:.0f} |"
    )


def main() -> None:
    """Print the table, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    lines = [
        "# Index and split of many images",
        "",
        date_and_machine("pandas", "scikit-learn"),
        "",
        f"PNG files of 16x16 in {CLASSES} classes (hard links to {ORIGINALS} files), in the "
        "system's cache; each line is a separate process. Index: all files found; in a table "
        "looked for. Opened: with the fingerprint, for which both ends of every file are read. "
        "Memory: beyond what the process had before, at most and afterwards.",
        "",
        "| images | from | index, s | opened, s | split, s | at most, MB | kept, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count in options.images:
        with tempfile.TemporaryDirectory() as folder:
            make_images(Path(folder), count)
            lines.append(row(Path(folder) / "photos", "class folders"))
            lines.append(row(Path(folder) / "photos.csv", "a table (CSV)"))
    text = "\n".join([*lines, "", "    python benchmarks/index.py", ""])
    print(text)
    if options.write:
        write_report(text, "index")


if __name__ == "__main__":
    main()
