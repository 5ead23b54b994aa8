"""From a study file to everything a run needs, checked before anything is written.

All mistakes are collected: those of the file itself, and those that only show when the images,
the backbone and its weights are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from autotune.config import POOLS, HeadSpace, SpaceConfig, StudyConfig
from autotune.data.images import ImageSpec
from autotune.data.sources import Source
from autotune.data.task import check_dataset, dataset_fingerprint
from autotune.errors import ConfigError, Problem, StorageError, UserError, in_yaml
from autotune.models.backbone import Backbone, build, check_name, data_config, load_backbone
from autotune.models.layers import Layer, layers_of
from autotune.models.network import pool_problem
from autotune.models.offers import LayerOffer
from autotune.models.trying import offers_of
from autotune.plan import KEEP
from autotune.rules import is_own
from autotune.search.own import (
    Reference,
    dimension_of,
    load_own_pruner,
    load_own_sampler,
    own_space,
    references,
)
from autotune.search.space import LAYER_FIELDS, Space, reach, single_values
from autotune.storage.database import parse_url
from autotune.study.starting import check_warm_start

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
        offers: What its last layers can become, as many as the space may reshape.
        spec: How images enter the backbone.
        fingerprint: Of the images, their classes and their split.
    """

    config: StudyConfig
    space: Space
    source: Source
    backbone: Backbone
    layers: tuple[Layer, ...]
    offers: tuple[LayerOffer, ...]
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
        except StorageError as error:
            problems.append(Problem("storage", str(error).removeprefix("storage: ")))
        except UserError as error:
            problems.append(Problem(key, str(error).removeprefix(f"{key}: ")))
        return None

    if attempt("storage", lambda: parse_url(config.storage)) is not None:
        attempt("search.warm_start", lambda: check_warm_start(config))
    source = attempt("dataset", lambda: check_dataset(config.dataset, config.data))
    named = attempt("backbone", lambda: check_name(config.backbone)) is None and not any(
        problem.key == "backbone" for problem in problems
    )
    backbone = blank = None
    if named:
        size = config.data.image_size
        blank = attempt("backbone", lambda: _Blank.of(config))
        if blank is not None:
            problems.extend(_space_problems(config.space, blank))
        backbone = attempt("weights", lambda: load_backbone(config.backbone, config.weights, size))
    own = references(config)
    for key, reference in own.items():
        attempt(key, reference.load)
    spec = None
    if backbone is not None:
        wanted = backbone.data_config
        spec = attempt(
            "backbone", lambda: ImageSpec.from_data_config(wanted, config.data.image_size)
        )
    if problems or source is None or backbone is None or blank is None or spec is None:
        raise ConfigError(config.name or "study", problems)
    space = Space.from_config(config.backbone, config.space, config.inherit, blank.offers)
    if own:
        space = attempt("space.custom", lambda: _own_space(config, space, blank)) or space
        attempt("search.sampler", lambda: _try_sampler(config, space))
        attempt("search.pruner", lambda: _try_pruner(config))
        if problems:
            raise ConfigError(config.name or "study", problems)
    fingerprint = dataset_fingerprint(source, config.data)
    return Definition(
        config, space, source, backbone, blank.layers, blank.offers, spec, fingerprint
    )


@dataclass(frozen=True)
class _Blank:
    """A backbone on the meta device, and what can be known of it without its weights."""

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    layers: tuple[Layer, ...]
    offers: tuple[LayerOffer, ...]

    @staticmethod
    def of(config: StudyConfig) -> _Blank:
        size = config.data.image_size
        model = build(config.backbone, size, device="meta")
        input_size = data_config(model, size)["input_size"]
        layers = layers_of(model)
        within_reach = layers[: reach(config.space)]
        offers = offers_of(model, within_reach, input_size) if within_reach else ()
        return _Blank(config.backbone, model, input_size, layers, offers)


def _own_space(config: StudyConfig, space: Space, blank: _Blank) -> Space:
    """Have the study's own function change the space, and look at what comes of it."""
    custom = config.space.custom
    if custom is None:
        return space
    changed = own_space(custom, space, blank.offers)
    depth, pool = (dimension_of(changed, name) for name in ("depth", "head.pool"))
    as_file = SpaceConfig(depth=depth, head=HeadSpace(pool=pool))
    for problem in (*_depth_problems(as_file, blank), *_pool_problems(as_file, blank)):
        name = problem.key.removeprefix("space.")
        raise UserError(f"the space of {Reference.of(custom)}: {name}: {problem.message}")
    return changed


def _try_sampler(config: StudyConfig, space: Space) -> None:
    """Make the study's own sampler once, as every worker will."""
    if is_own(config.search.sampler):
        load_own_sampler(config.search.sampler, space, config.search.seed)


def _try_pruner(config: StudyConfig) -> None:
    """Make the study's own pruner once, as every worker will."""
    if is_own(config.search.pruner):
        load_own_pruner(config.search.pruner, config.training.epochs, workers=1)


def _space_problems(space: SpaceConfig, blank: _Blank) -> list[Problem]:
    """Check the parts of a space that depend on the backbone."""
    return [
        *_depth_problems(space, blank),
        *_layer_problems(space, blank.offers),
        *_pool_problems(space, blank),
    ]


def _depth_problems(space: SpaceConfig, blank: _Blank) -> Iterator[Problem]:
    depths = space.depth if isinstance(space.depth, list) else [space.depth]
    largest = max(int(one["high"] if isinstance(one, dict) else one) for one in depths)
    if largest > len(blank.layers):
        yield Problem(
            "space.depth",
            f"must be at most {len(blank.layers)}, the number of layers of {blank.name!r}, "
            f"but got {largest}",
        )
    given = [name for name, _ in _changes(space)]
    if not largest and given:
        yield Problem(
            "space.depth",
            f"must be above 0 in some trials because space.layers.{given[0]} changes tuned layers "
            f"alone, but got {in_yaml(space.depth)}; give a range such as {{low: 0, high: 4}}",
        )


def _changes(space: SpaceConfig) -> Iterator[tuple[str, Any]]:
    """Yield every value of a layer field that is not ``keep``, with the field's name."""
    for name in LAYER_FIELDS:
        for value in single_values(getattr(space.layers, name)):
            if value != KEEP:
                yield name, value


def _layer_problems(space: SpaceConfig, offers: Sequence[LayerOffer]) -> Iterator[Problem]:
    """Find the values that no layer can take; those of some layers alone are no mistake."""
    for name, value in _changes(space):
        if offers and all(offer.problem(name, value) for offer in offers):
            others = {1: "", 2: "; nor can layer 2 take it"}.get(
                len(offers), f"; nor can layers 2 to {len(offers)} take it"
            )
            problem = f"{offers[0].problem(name, value)} (layer 1{others})"
            yield Problem(f"space.layers.{name}", problem)


def _pool_problems(space: SpaceConfig, blank: _Blank) -> Iterator[Problem]:
    pools = space.head.pool if isinstance(space.head.pool, list) else [space.head.pool]

    def problem(pool: str) -> str:
        return pool_problem(blank.model, blank.name, pool, blank.input_size)

    refused = {pool: problem(str(pool)) for pool in pools}
    if any(refused.values()):
        works = [one for one in POOLS if not problem(one)]
        for reason in refused.values():
            if reason:
                yield Problem(
                    "space.head.pool", f"{reason}; {blank.name!r} allows {', '.join(works)}"
                )
