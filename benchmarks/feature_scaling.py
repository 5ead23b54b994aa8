"""How do the caches grow: with images, views, depth and workers, in time and on disk?

Synthetic JPEGs and a backbone without weights, which costs what one with weights costs. Measured
are decoding, the features of the root (through most of the network, from the images), those of a
cut behind it (from the root's), and an epoch of the head on kept features. What grows linearly
has the same time an image in every row.

    python benchmarks/feature_scaling.py [--images 1000 4000 16000] [--write]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reports import date_and_machine, write_report

from autotune.config.schema import DataConfig, TrainingConfig
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.models.backbone import Backbone, build_backbone, data_config, hash_weights
from autotune.models.network import build_network
from autotune.models.prefix.split import PrefixSplit, split_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.training.features import FeatureCache, Features, bytes_per_image
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.optim.norm_recalibration import sample_batches
from autotune.training.trainer import Trainer

NAME = "resnet18"
SIZE = 64
#: Sides of the JPEGs, in pixels.
WIDTH, HEIGHT = 160, 120
CLASSES = 4
ROOT = 4
CPU = torch.device("cpu")


def make_images(folder: Path, count: int) -> None:
    """Write JPEGs of smooth noise into class folders."""
    draws = np.random.default_rng(0)

    def one(index: int, coarse: np.ndarray) -> None:
        home = folder / f"class-{index % CLASSES}"
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(home / f"{index:06}.jpg", quality=90)

    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        for index in range(count):
            coarse = draws.integers(0, 256, (15, 20, 3), dtype=np.uint8)
            pool.submit(one, index, coarse)


class Bench:
    """A backbone, images, and a cache of their features.

    Args:
        folder: Class folders.
        cache: Where things are kept.
        views: Views of each image.
    """

    def __init__(self, folder: Path, cache: Path, views: int = 1) -> None:
        model = build_backbone(NAME, SIZE).eval().requires_grad_(False)
        self.backbone = Backbone(NAME, model, data_config(model, SIZE), hash_weights(model))
        spec = ImageSpec.from_data_config(self.backbone.data_config, SIZE)
        begun = time.perf_counter()
        self.task = StudyData.open(
            str(folder), DataConfig(validation=0.05, test=0.05, image_size=SIZE), spec, cache
        )
        self.decoding_s = time.perf_counter() - begun
        self.config = TrainingConfig(epochs=2, batch_size=64, num_views=views)
        self.train = self.task.train_views(self.config.augment, views, 0, memory_bytes=0)
        self.normalize = Normalizer.from_config(self.backbone.data_config, CPU)
        self.cache = cache

    def prepare(
        self, depth: int, root: PrefixSplit | None
    ) -> tuple[Trainer, PrefixSplit, Features]:
        """Make a training of a depth on features."""
        plan = TrialPlan(NAME, depth, (LayerPlan(),) * depth)
        network = build_network(self.backbone, plan, CLASSES, 0)
        network.to(memory_format=torch.channels_last)
        training = Trainer(network, plan.policy, self.config, self.train, None, self.normalize, 0)
        found = split_network(network, next(sample_batches(self.train, 2, self.normalize, 0)))
        way = training.amp
        cache = FeatureCache(
            ArrayCache(self.cache), self.backbone.weights_hash, self.normalize, way, root
        )
        features = Features(cache, found, self.train)
        training.use_features(found, features, features)
        return training, found, features


def compute(features: Features, epoch: int) -> float:
    """Return the seconds until the features of an epoch are there."""
    begun = time.perf_counter()
    next(features.batches(torch.arange(len(features)), features.views_for_epoch(epoch), 64))
    return time.perf_counter() - begun


def epoch_s(training: Trainer) -> float:
    """Return the seconds of an epoch of training, the second one."""
    training._train_epoch()
    begun = time.perf_counter()
    training._train_epoch()
    return time.perf_counter() - begun


def by_images(counts: Sequence[int], home: Path) -> list[str]:
    """Measure each number of images in its own cache."""
    rows = []
    for count in counts:
        make_images(home / f"images-{count}", count)
        bench = Bench(home / f"images-{count}", home / f"cache-{count}")
        _, root, first = bench.prepare(ROOT, None)
        root_s = compute(first, 0)
        training, last, features = bench.prepare(0, root)
        last_s = compute(features, 0)
        trained_s = epoch_s(training)
        shown = len(bench.train)
        decoded = bench.task.store.images.nbytes
        total = len(bench.task.store.indices)
        rows.append(
            f"| {count:,} | {bench.decoding_s:.2f} | {1e6 * bench.decoding_s / total:.0f} "
            f"| {root_s:.2f} | {1e6 * root_s / shown:.0f} | {last_s:.2f} "
            f"| {1e6 * last_s / shown:.0f} | {trained_s:.3f} | {1e6 * trained_s / shown:.0f} "
            f"| {decoded / 1e6:.0f} | {bytes_per_image(root) * shown / 1e6:.0f} "
            f"| {bytes_per_image(last) * shown / 1e6:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def by_views(count: int, home: Path) -> list[str]:
    """Measure numbers of views: an entry each."""
    rows = []
    for views in (1, 2, 4, 8):
        cache = home / f"views-{views}"
        bench = Bench(home / f"images-{count}", cache, views)
        _, root, features = bench.prepare(ROOT, None)
        seconds = sum(compute(features, epoch) for epoch in range(views))
        size = bytes_per_image(root) * len(bench.train) * views
        rows.append(f"| {views} | {seconds:.2f} | {seconds / views:.2f} | {size / 1e6:.0f} |")
        print(rows[-1], flush=True)
    return rows


def by_depth(count: int, home: Path) -> list[str]:
    """Measure depths, each from the images and from the root, and an epoch of the tail."""
    rows = []
    for depth in range(ROOT + 1):
        bench = Bench(home / f"images-{count}", home / f"depth-{depth}")
        _, root, _ = bench.prepare(ROOT, None)
        alone = compute(bench.prepare(depth, None)[2], 0)
        compute(bench.prepare(ROOT, root)[2], 0)
        training, found, features = bench.prepare(depth, root)
        onward = compute(features, 0)
        rows.append(
            f"| {depth} | {found.shapes[0]} | {bytes_per_image(found) / 1e3:.1f} | {alone:.2f} "
            f"| {onward:.2f} | {epoch_s(training):.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def by_workers(count: int, home: Path) -> list[str]:
    """Measure processes that share the work: four views, each made by the first that asks."""
    rows = []
    for workers in (1, 2):
        cache = home / f"workers-{workers}"
        Bench(home / f"images-{count}", cache)  # decodes
        command = [sys.executable, __file__, "--folder", str(home / f"images-{count}")]
        processes = [
            subprocess.Popen(
                [*command, "--cache", str(cache), "--first", str(4 // workers * index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(workers)
        ]
        for one in processes:
            assert one.stdout is not None and one.stdout.readline() == "ready\n"
        begun = time.perf_counter()
        for one in processes:
            one.communicate("go\n")
        seconds = time.perf_counter() - begun
        rows.append(f"| {workers} | {seconds:.2f} |")
        print(rows[-1], flush=True)
    return rows


def be_worker(folder: Path, cache: Path, first: int) -> None:
    """Ask for four views, beginning with the process's own share."""
    _, _, features = Bench(folder, cache, views=4).prepare(ROOT, None)
    print("ready", flush=True)
    sys.stdin.readline()
    for epoch in range(4):
        compute(features, (first + epoch) % 4)
    sys.stdout.flush()
    os._exit(0)  # what the process takes to end is no part of it


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--write", action="store_true", help="write the report under results/")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        be_worker(options.folder, options.cache, options.first)
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        home = Path(name)
        least = min(options.images)
        images, views = by_images(options.images, home), by_views(least, home)
        depths, workers = by_depth(least, home), by_workers(least, home)
    text = "\n".join(
        [
            "# How the caches grow",
            "",
            date_and_machine("torch", "timm"),
            "",
            f"{NAME} without weights at {SIZE} px, JPEGs of {WIDTH}x{HEIGHT}, one run each. The "
            f"root is the cut at depth {ROOT}; features are kept in half precision.",
            "",
            "| images | decoding, s | µs/image | root from images, s | µs/image "
            "| depth 0 from root, s | µs/image | epoch of the head, s | µs/image "
            "| decoded, MB | root, MB | depth 0, MB |",
            "|" + " --- |" * 12,
            *images,
            "",
            f"Views, {least:,} images:",
            "",
            "| views | root, s | s/view | MB |",
            "|" + " --- |" * 4,
            *views,
            "",
            f"Depth, {least:,} images:",
            "",
            "| depth | crosses | kB/image | from images, s | from the root, s | epoch, s |",
            "|" + " --- |" * 6,
            *depths,
            "",
            f"Workers that make four views of {least:,} images together:",
            "",
            "| workers | s |",
            "|" + " --- |" * 2,
            *workers,
            "",
        ]
    )
    print(text)
    if options.write:
        print(write_report(text, "scaling"))


if __name__ == "__main__":
    main()
