"""Studies of the made-up images; random weights, so that nothing is fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.data.views.study_data import StudyData
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.storage.paths import StudyPaths
from autotune.study.engine.pool import Job
from autotune.study.engine.worker import run_worker
from autotune.study.setup.definition import define
from autotune.study.setup.opening import OpenStudy, open_or_create
from gpu_steps.context import Context

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


def open_study(config: StudyConfig) -> OpenStudy:
    """Decode the images of a study and make it; no worker is started."""
    definition = define(config)
    files = StudyPaths.from_url(config.storage, config.files)
    opened = [
        StudyData.open(
            config.dataset,
            config.data,
            spec,
            files.cache,
            limit_bytes=config.cache.disk_bytes,
            manifest=definition.dataset.manifest,
        )
        for spec in definition.specs
    ]
    return open_or_create(definition, opened[0].info.to_json())


def work_here(context: Context, opened: OpenStudy, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the trials of a study by a worker in this process."""
    job = Job(
        study=opened.name,
        storage=opened.url,
        files=str(opened.files.root),
        worker="gpu.py/0",
        index=0,
        workers=1,
        threads=0,
        log=str(context.folder / "worker.log"),
    )
    run_worker(job, threading.Event(), tell)


def plan_of_depth(backbone: str, depth: int) -> TrialPlan:
    """Return the plan that tunes the last layers and leaves their shapes."""
    return TrialPlan(backbone, depth, (LayerPlan(),) * depth, policy=TrainingPolicy(lr=LR))
