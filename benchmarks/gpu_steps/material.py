"""Made-up images, and studies of them; random weights, so that nothing is fetched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from gpu_steps.context import Context, Sizes

LR = 3e-4


def configure(context: Context, name: str, **overrides: Any) -> StudyConfig:
    """Make the configuration of a study; keys with a dot are given with two underscores."""
    sizes = context.sizes
    values: dict[str, Any] = {
        "name": name,
        "dataset": str(context.images),
        "backbone": sizes.backbone,
        "weights": "none",
        "data.image_size": sizes.image_px,
        "data.duplicates": "off",
        "space.trainable_layers": {"low": 0, "high": max(sizes.depths)},
        "search.sampler": "random",
        "search.pruner": "none",
        "search.default_plans": False,
        "training.batch_size": sizes.batch,
        "training.epochs": sizes.epochs,
        "training.num_views": sizes.views,
        "storage": f"sqlite:///{context.folder}/study.db",
        "files": str(context.folder / "files"),
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return validate(apply_overrides(read_yaml(presets()["folder"]), values), "gpu.py")


def plan_of_depth(backbone: str, depth: int) -> TrialPlan:
    """Return the plan that tunes the last layers and leaves their shapes."""
    return TrialPlan(backbone, depth, (LayerPlan(),) * depth, policy=TrainingPolicy(lr=LR))


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
