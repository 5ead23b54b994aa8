"""From a study file to everything a run needs, checked before anything is written.

All mistakes are collected: those of the file itself, and those that only show when the images,
the backbone and its weights are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from autotune.config import POOLS, SpaceConfig, StudyConfig
from autotune.data.images import ImageSpec
from autotune.data.sources import Source
from autotune.data.task import check_dataset, dataset_fingerprint
from autotune.errors import ConfigError, PlanError, Problem, UserError
from autotune.models.backbone import Backbone, build, check_name, data_config, load_backbone
from autotune.models.layers import Layer, layers_of
from autotune.models.network import feature_count, set_pool
from autotune.plan import KEEP
from autotune.search.space import Space
from autotune.storage.database import parse_url

_T = TypeVar("_T")


@dataclass(frozen=True)
class Definition:
    """A study that can be run.

    Args:
        config: The checked study file.
        space: Its static space.
        source: The images.
        backbone: The pretrained backbone.
        layers: Its layers, the last one first.
        spec: How images enter the backbone.
        fingerprint: Of the images, their classes and their split.
    """

    config: StudyConfig
    space: Space
    source: Source
    backbone: Backbone
    layers: tuple[Layer, ...]
    spec: ImageSpec
    fingerprint: str


def define(config: StudyConfig) -> Definition:
    """Look at everything that a study file names.

    Raises:
        ConfigError: With every mistake that was found.
    """
    problems: list[Problem] = []

    def attempt(key: str, step: Callable[[], _T]) -> _T | None:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
        except UserError as error:
            problems.append(Problem(key, str(error).removeprefix(f"{key}: ")))
        return None

    attempt("storage", lambda: parse_url(config.storage))
    source = attempt("dataset", lambda: check_dataset(config.dataset, config.data))
    named = attempt("backbone", lambda: check_name(config.backbone)) is None and not any(
        problem.key == "backbone" for problem in problems
    )
    backbone = layers = None
    if named:
        size = config.data.image_size
        layers = attempt("backbone", lambda: _layers(config))
        if layers is not None:
            problems.extend(_space_problems(config.space, config.backbone, layers, size))
        backbone = attempt("weights", lambda: load_backbone(config.backbone, config.weights, size))
    spec = None
    if backbone is not None:
        wanted = backbone.data_config
        spec = attempt(
            "backbone", lambda: ImageSpec.from_data_config(wanted, config.data.image_size)
        )
    if problems or source is None or backbone is None or layers is None or spec is None:
        raise ConfigError(config.name or "study", problems)
    space = Space.from_config(config.backbone, config.space)
    fingerprint = dataset_fingerprint(source, config.data)
    return Definition(config, space, source, backbone, layers, spec, fingerprint)


def _layers(config: StudyConfig) -> tuple[Layer, ...]:
    return layers_of(build(config.backbone, config.data.image_size, device="meta"))


def _space_problems(
    space: SpaceConfig, name: str, layers: Sequence[Layer], image_size: int | None
) -> list[Problem]:
    """Check the parts of a space that depend on the backbone."""
    problems = []
    depths = space.depth if isinstance(space.depth, list) else [space.depth]
    largest = max(int(one["high"] if isinstance(one, dict) else one) for one in depths)
    if largest > len(layers):
        problems.append(
            Problem(
                "space.depth",
                f"must be at most {len(layers)}, the number of layers of {name!r}, "
                f"but got {largest}",
            )
        )
    pools = space.head.pool if isinstance(space.head.pool, list) else [space.head.pool]
    refused = {pool: _pool_problem(name, str(pool), image_size) for pool in pools}
    if any(refused.values()):
        works = [one for one in POOLS if not _pool_problem(name, one, image_size)]
        problems.extend(
            Problem("space.head.pool", f"{reason}; {name!r} allows {', '.join(works)}")
            for reason in refused.values()
            if reason
        )
    return problems


def _pool_problem(name: str, pool: str, image_size: int | None) -> str:
    """Try a pooling on the meta device; return why it does not work, or an empty string."""
    if pool == KEEP:
        return ""
    module = build(name, image_size, device="meta")
    size = int(data_config(module, image_size)["input_size"][-1])
    try:
        set_pool(module, pool, name)
        with torch.device("meta"):
            feature_count(module, (3, size, size))
    except (PlanError, RuntimeError, ValueError, AssertionError) as error:
        return f"cannot pool with {pool!r} ({str(error).splitlines()[0][:120]})"
    return ""
