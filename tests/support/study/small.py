"""The smallest studies that are real: digits, the shipped backbone, a few images, a few epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import DataConfig, StudyConfig
from autotune.config.validation import validate
from autotune.data.source import Source
from autotune.data.sources.base import DigitsSource
from autotune.data.splits import dataset as dataset_module
from autotune.data.views.study_data import StudyData
from autotune.models import inspection, network
from autotune.models.network import Network
from autotune.models.pretrained.names import PACKAGED_WEIGHTS, resolve
from autotune.models.surgery import probing
from autotune.plan import TrialPlan
from autotune.search.plugins import plugin_refs
from autotune.storage.paths import StudyPaths
from autotune.study.setup import definition as definition_module
from autotune.study.setup import resources as resources_module
from autotune.study.setup.definition import Definition, define
from autotune.study.setup.opening import OpenStudy, open_or_create
from autotune.study.trial import feature_reuse
from autotune.study.trial.context import WorkerContext
from autotune.training.compute.amp import is_kept_fp32
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
    # A trained baseline has epochs, losses and checkpoints, and can be interrupted.
    "baseline.head_start": "random",
}


_DIGITS = read_yaml(presets()["digits"])


def small_config(folder: Path, **overrides: Any) -> StudyConfig:
    """Make a small configuration; keys with a dot are given with two underscores."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    values = apply_overrides(
        _DIGITS,
        {**OVERRIDES, "storage": f"sqlite:///{folder}/study.db", **dotted},
    )
    return validate(values, "test")


def once(function: Callable[..., Any], key: Callable[..., object]) -> Callable[..., Any]:
    """Call a function once for each key; always where the key is ``None``."""
    found: dict[object, Any] = {}

    def call(*arguments: Any, **options: Any) -> Any:
        name = key(*arguments, **options)
        if name is None:
            return function(*arguments, **options)
        if name not in found:
            found[name] = function(*arguments, **options)
        return found[name]

    return call


def _content_of(network: Network, images: torch.Tensor) -> object:
    """Tell networks apart by their layers, their weights and what of them trains."""
    if images.device.type != "cpu":
        return None
    digest = hashlib.sha256(repr(network.backbone).encode())
    for tensor in network.backbone.state_dict().values():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return (
        digest.digest(),
        tuple(network.trainable_state()),
        tuple(name for name, module in network.named_modules() if is_kept_fp32(module)),
        images.shape[1:],
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )


def _packaged(name: str, weights: str, size: int | None, prefer_package: bool = False) -> object:
    """Tell backbones apart whose weights are no file of a test."""
    is_packaged = weights == "hub" and resolve(name) in PACKAGED_WEIGHTS
    return (name, weights, size, prefer_package) if weights == "none" or is_packaged else None


def _root_of(trainer: Trainer, plan: TrialPlan, resources: Any, ctx: WorkerContext) -> object:
    spec, weights = resources.data.spec, resources.backbone.weights_hash
    return weights, plan.backbone, spec, ctx.space.max_depth, trainer.amp, trainer.device


def _digits_of(source: Source, config: DataConfig, groups: np.ndarray | None = None) -> object:
    is_plain = isinstance(source, DigitsSource) and groups is None
    return config.model_dump_json() if is_plain else None


_probe_layers = once(
    probing.probe_layers, lambda model, layers, size: (repr(model), repr(layers), tuple(size))
)
_pool_problem = once(
    network.pool_problem, lambda model, name, pool, size: (repr(model), name, pool, tuple(size))
)
_split_network = once(feature_reuse.split_network, _content_of)
_load_backbone = once(resources_module.load_backbone, _packaged)
_find_root = once(feature_reuse._find_root, _root_of)
_make_split = once(dataset_module.make_split, _digits_of)


@contextmanager
def backbones_analyzed_once() -> Iterator[None]:
    """Load, probe and split a backbone that an earlier test has used as that test did it.

    All depend on the backbone and the space alone, and take as long as a small trial. The same
    holds for the split of the digits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_reuse, "_find_root", _find_root)
        patch.setattr(feature_reuse, "split_network", _split_network)
        patch.setattr(dataset_module, "make_split", _make_split)
        for module in (definition_module, resources_module):
            patch.setattr(module, "load_backbone", _load_backbone)
        for module in (definition_module, inspection, probing):
            patch.setattr(module, "probe_layers", _probe_layers)
        for module in (definition_module, inspection):
            patch.setattr(module, "pool_problem", _pool_problem)
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
