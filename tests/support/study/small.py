"""The smallest studies that are real: digits, the shipped backbone, a few images, a few epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.schema import DataConfig, StudyConfig
from autotune.config.validation import validate
from autotune.data.source import Source
from autotune.data.sources.base import DigitsSource
from autotune.data.splits import dataset as dataset_module
from autotune.data.splits.stratified import SplitIndices
from autotune.data.views.study_data import StudyData
from autotune.models import inspection, network
from autotune.models.backbone import Backbone
from autotune.models.layers import Layer
from autotune.models.network import Network
from autotune.models.prefix.split import PrefixSplit
from autotune.models.pretrained.names import PACKAGED_WEIGHTS, resolve
from autotune.models.surgery import probing
from autotune.models.surgery.capabilities import LayerCapabilities
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


_PROBED: dict[object, tuple[LayerCapabilities, ...]] = {}
_probe_layers = probing.probe_layers


def probe_once(model: nn.Module, layers: Sequence[Layer], input_size: tuple[int, ...]) -> Any:
    """Probe layers as ``define`` does; a model like an earlier one is not probed again."""
    key = (repr(model), repr(layers), tuple(input_size))
    if key not in _PROBED:
        _PROBED[key] = _probe_layers(model, layers, input_size)  # type: ignore[arg-type]
    return _PROBED[key]


_POOLS: dict[object, str] = {}
_pool_problem = network.pool_problem


def _pool_problem_once(model: nn.Module, name: str, pool: str, size: tuple[int, int, int]) -> str:
    key = (repr(model), name, pool, tuple(size))
    if key not in _POOLS:
        _POOLS[key] = _pool_problem(model, name, pool, size)
    return _POOLS[key]


_SPLITS: dict[object, PrefixSplit] = {}
_split_network = feature_reuse.split_network


def _split_network_once(network: Network, images: torch.Tensor) -> PrefixSplit:
    """Split a network; one with the layers and the weights of an earlier one is as that one."""
    if images.device.type != "cpu":
        return _split_network(network, images)
    digest = hashlib.sha256(repr(network.backbone).encode())
    for tensor in network.backbone.state_dict().values():
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    key = (
        digest.digest(),
        tuple(network.trainable_state()),
        tuple(name for name, module in network.named_modules() if is_kept_fp32(module)),
        images.shape[1:],
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
    )
    if key not in _SPLITS:
        _SPLITS[key] = _split_network(network, images)
    return _SPLITS[key]


_BACKBONES: dict[object, Backbone] = {}
_load_backbone = resources_module.load_backbone


def _load_backbone_once(
    name: str, weights: str, image_size: int | None, prefer_package: bool = False
) -> Backbone:
    """Load a backbone; one whose weights are no file of a test is as it was before."""
    if weights != "none" and (weights != "hub" or resolve(name) not in PACKAGED_WEIGHTS):
        return _load_backbone(name, weights, image_size, prefer_package)
    key = (name, weights, image_size, prefer_package)
    if key not in _BACKBONES:
        _BACKBONES[key] = _load_backbone(*key)
    return _BACKBONES[key]


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


_MADE: dict[str, SplitIndices] = {}
_make_split = dataset_module.make_split


def _make_split_once(
    source: Source, config: DataConfig, groups: np.ndarray | None = None
) -> SplitIndices:
    if not isinstance(source, DigitsSource) or groups is not None:
        return _make_split(source, config, groups)
    key = config.model_dump_json()
    if key not in _MADE:
        _MADE[key] = _make_split(source, config)
    return _MADE[key]


@contextmanager
def backbones_analyzed_once() -> Iterator[None]:
    """Load, probe and split a backbone that an earlier test has used as that test did it.

    All depend on the backbone and the space alone, and take as long as a small trial. The same
    holds for the split of the digits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_reuse, "_find_root", _find_root_once)
        patch.setattr(feature_reuse, "split_network", _split_network_once)
        patch.setattr(dataset_module, "make_split", _make_split_once)
        for module in (definition_module, resources_module):
            patch.setattr(module, "load_backbone", _load_backbone_once)
        for module in (definition_module, inspection, probing):
            patch.setattr(module, "probe_layers", probe_once)
        for module in (definition_module, inspection):
            patch.setattr(module, "pool_problem", _pool_problem_once)
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
