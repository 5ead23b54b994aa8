"""Studies of the made-up images; random weights, so that nothing is fetched."""

from __future__ import annotations

from typing import Any

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
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


def plan_of_depth(backbone: str, depth: int) -> TrialPlan:
    """Return the plan that tunes the last layers and leaves their shapes."""
    return TrialPlan(backbone, depth, (LayerPlan(),) * depth, policy=TrainingPolicy(lr=LR))
