"""The smallest studies that are real: digits, the shipped backbone, a few images, a few epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.data.views.study_data import StudyData
from autotune.models import inspection
from autotune.models.layers import Layer
from autotune.models.prefix.split import PrefixSplit
from autotune.models.surgery import probing
from autotune.models.surgery.capabilities import LayerCapabilities
from autotune.plan import TrialPlan
from autotune.search.plugins import plugin_refs
from autotune.storage.paths import StudyPaths
from autotune.study.setup import definition as definition_module
from autotune.study.setup.definition import Definition, define
from autotune.study.setup.opening import OpenStudy, open_or_create
from autotune.study.trial import feature_reuse
from autotune.study.trial.context import WorkerContext
from autotune.training.trainer import Trainer

OVERRIDES: dict[str, Any] = {
    "name": "small",
    "training.epochs": 2,
    "training.num_views": 1,
    "data.train_per_class": 5,
    "data.validation": 0.1,
    "data.image_size": 16,
    "space.head.hidden_layers": {"low": 0, "high": 1},
    "space.head.units": 8,
    "search.trials": 3,
    "search.default_plans": False,
}


def small_config(folder: Path, **overrides: Any) -> StudyConfig:
    """Make a small configuration; keys with a dot are given with two underscores."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    values = apply_overrides(
        read_yaml(presets()["digits"]),
        {**OVERRIDES, "storage": f"sqlite:///{folder}/study.db", **dotted},
    )
    return validate(values, "test")


_PROBED: dict[object, tuple[LayerCapabilities, ...]] = {}
_probe_layers = probing.probe_layers


def probe_once(model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, ...]) -> Any:
    """Probe layers as ``define`` does; a model like an earlier one is not probed again."""
    key = (repr(model), repr(layers), tuple(input_size))
    if key not in _PROBED:
        _PROBED[key] = _probe_layers(model, layers, input_size)  # type: ignore[arg-type]
    return _PROBED[key]


_ROOTS: dict[object, PrefixSplit | None] = {}
_find_root = feature_reuse._find_root


def _find_root_once(trainer: Trainer, plan: TrialPlan, resources: Any, ctx: WorkerContext) -> Any:
    spec, device = resources.data.spec, trainer.device
    key = (
        resources.backbone.weights_hash,
        plan.backbone,
        spec,
        ctx.space.max_depth,
        trainer.amp,
        device,
    )
    if key not in _ROOTS:
        _ROOTS[key] = _find_root(trainer, plan, resources, ctx)
    return _ROOTS[key]


@contextmanager
def backbones_analyzed_once() -> Iterator[None]:
    """Probe and split a backbone that an earlier test has used as that test did it.

    Both depend on the backbone and the space alone, and take as long as a small trial.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_reuse, "_find_root", _find_root_once)
        for module in (definition_module, inspection, probing):
            patch.setattr(module, "probe_layers", probe_once)
        yield


_LOOKED: dict[str, Definition] = {}
#: What :func:`define` looks at, where nothing of it is a file.
_LOOKS = ("dataset", "data", "backbone", "weights", "space", "init")


def defined(config: StudyConfig) -> Definition:
    """Define a study; the images and backbones of an earlier one are not looked at again."""
    if config.dataset != "digits" or plugin_refs(config) or config.search.warm_start:
        return define(config)
    if config.weights not in ("hub", "none"):
        return define(config)
    key = f"{config.model_dump_json(include=set(_LOOKS))} {config.image_dimensions}"
    if key not in _LOOKED:
        with backbones_analyzed_once():
            _LOOKED[key] = define(config)
    return replace(_LOOKED[key], config=config)


def open_small(folder: Path, **overrides: Any) -> OpenStudy:
    return open_defined(defined(small_config(folder, **overrides)))


def open_defined(definition: Definition) -> OpenStudy:
    config = definition.config
    files = StudyPaths.from_url(config.storage, config.files)
    for spec in definition.specs:
        limit = config.cache.disk_bytes
        task = StudyData.open(config.dataset, config.data, spec, files.cache, limit_bytes=limit)
    return open_or_create(definition, task.info.to_json())
