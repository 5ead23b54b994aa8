"""From a study file to everything a run needs, checked before anything is written.

All mistakes are collected: those of the file itself, and those that only show when the images,
the backbones and their weights are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from autotune.config.fields import is_plugin_ref, values_of_dimension
from autotune.config.old_names import stored_init
from autotune.config.schema import POOLS, HeadSpace, SpaceConfig, StudyConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.progress import Progress, no_progress
from autotune.data.sources.registry import fetch_source, needs_download
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.manifest import Manifest
from autotune.errors import ConfigError, Problem, StorageError, UserError, format_yaml
from autotune.models.backbone import build_backbone, check_name, data_config, load_backbone
from autotune.models.layers import Layer, list_layers
from autotune.models.network import pool_problem
from autotune.models.surgery.capabilities import LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.plan import KEEP
from autotune.search.backbone_limits import Candidate
from autotune.search.plugins import (
    PluginRef,
    dimension_of,
    load_pruner_plugin,
    load_sampler_plugin,
    load_space_plugin,
    plugin_refs,
)
from autotune.search.space import KEY_NAMES, LAYER_FIELDS, Space, num_shaped_layers
from autotune.storage.url import parse_url
from autotune.study.setup.initial_trials import check_warm_start

_T = TypeVar("_T")


@dataclass(frozen=True)
class DefinedBackbone:
    """One backbone of a study that can be run; its weights are loaded again by who trains it.

    Args:
        name: timm model name with its pretrained tag.
        weights_hash: Fingerprint of its weights.
        layers: Its layers, the last one first.
        offers: What its last layers can become, as many as the space may reshape.
        spec: How images enter it.
    """

    name: str
    weights_hash: str
    layers: tuple[Layer, ...]
    offers: tuple[LayerCapabilities, ...]
    spec: ImageSpec


@dataclass(frozen=True)
class Definition:
    """A study that can be run.

    Args:
        config: The checked study file.
        space: Its static space.
        dataset: The images and their split.
        backbones: The pretrained backbones, that of the baseline first.
    """

    config: StudyConfig
    space: Space
    dataset: Dataset
    backbones: tuple[DefinedBackbone, ...]

    @property
    def specs(self) -> tuple[ImageSpec, ...]:
        """How images enter the backbones, each way once."""
        return tuple(dict.fromkeys(one.spec for one in self.backbones))


def define(
    config: StudyConfig,
    manifest: Manifest | None = None,
    progress: Progress = no_progress,
    fetch: bool = False,
) -> Definition:
    """Look at everything that a study file names.

    Args:
        config: The checked study file.
        manifest: The split of the study, where it has been made.
        progress: Told how far the fetching and the opening of its images are.
        fetch: Whether a known dataset that is not here yet is fetched, once nothing else is found
            wrong. Otherwise that it is not here is a mistake.

    Raises:
        ConfigError: With every mistake that was found.
    """
    mistakes = _Mistakes()
    if mistakes.attempt("storage", lambda: parse_url(config.storage)) is not None:
        mistakes.attempt("search.warm_start", lambda: check_warm_start(config))
    to_fetch = fetch and needs_download(config.dataset)
    dataset = None if to_fetch else _images(config, manifest, progress, mistakes)
    looked = [_look_at(name, config, mistakes) for name in config.backbones]
    blanks = [blank for blank, _ in looked if blank is not None]
    backbones = tuple(found for _, found in looked if found is not None)
    if len(blanks) == len(config.backbones):  # else who knows what the missing one can take
        mistakes.found += _space_problems(config.space, blanks)
    own = plugin_refs(config)
    for key, reference in own.items():
        mistakes.attempt(key, reference.load)
    if to_fetch and not mistakes.found:
        fetch_source(config.dataset, progress)  # when it fails, that is no mistake of the file
        dataset = _images(config, manifest, progress, mistakes)
    if mistakes.found or dataset is None:
        raise ConfigError(config.name or "study", mistakes.found)
    space = Space.from_candidates(
        [one.candidate for one in blanks], config.space, stored_init(config.init)
    )
    if own:
        found = mistakes.attempt("space.custom", lambda: _own_space(config, space, blanks))
        space = found or space
        mistakes.attempt("search.sampler", lambda: _try_sampler(config, space))
        mistakes.attempt("search.pruner", lambda: _try_pruner(config))
        if mistakes.found:
            raise ConfigError(config.name or "study", mistakes.found)
    return Definition(config, space, dataset, backbones)


class _Mistakes:
    """Collects what is wrong with a study file."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def attempt(self, key: str, step: Callable[[], _T], where: str = "") -> _T | None:
        """Take a step that may show a mistake.

        Args:
            key: The key of the study file that is looked at.
            step: What may raise.
            where: The backbone that is looked at, where there are several.

        Returns:
            What the step returns, ``None`` when it shows a mistake.
        """
        try:
            return step()
        except ConfigError as error:
            self.found.extend(error.problems)
        except StorageError as error:
            self.found.append(Problem("storage", str(error).removeprefix("storage: ")))
        except UserError as error:
            message = str(error).removeprefix(f"{key}: ")
            named = not where or repr(where) in message
            self.found.append(Problem(key, message if named else f"{where!r}: {message}"))
        return None


def _images(
    config: StudyConfig, manifest: Manifest | None, progress: Progress, mistakes: _Mistakes
) -> Dataset | None:
    return mistakes.attempt(
        "dataset", lambda: Dataset.open(config.dataset, config.data, manifest, progress)
    )


@dataclass(frozen=True)
class _Blank:
    """A backbone on the meta device, and what can be known of it without its weights."""

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    layers: tuple[Layer, ...]
    offers: tuple[LayerCapabilities, ...]
    pool_problems: Mapping[str, str]

    @staticmethod
    def of(name: str, config: StudyConfig) -> _Blank:
        check_name(name)
        size = config.data.image_size
        model = build_backbone(name, size, device="meta")
        input_size = data_config(model, size)["input_size"]
        layers = list_layers(model)
        within_reach = layers[: num_shaped_layers(config.space)]
        offers = probe_layers(model, within_reach, input_size) if within_reach else ()
        pool_problems = {
            pool: pool_problem(model, name, pool, input_size)
            for pool in values_of_dimension(config.space.head.pool)
        }
        return _Blank(name, model, input_size, layers, offers, pool_problems)

    @property
    def candidate(self) -> Candidate:
        """What a space has to know of the backbone."""
        pools = tuple(pool for pool, problem in self.pool_problems.items() if not problem)
        return Candidate(self.name, len(self.layers), self.offers, pools)

    @property
    def pools(self) -> str:
        """The global poolings that the backbone can have, in words."""
        works = [
            one for one in POOLS if not pool_problem(self.model, self.name, one, self.input_size)
        ]
        return f"{self.name!r} allows {', '.join(works)}"


def _own_space(config: StudyConfig, space: Space, blanks: Sequence[_Blank]) -> Space:
    """Have the study's own function change the space, and look at what comes of it."""
    custom = config.space.custom
    if custom is None:
        return space
    changed = load_space_plugin(custom, space, blanks[0].offers)
    depth, pool = (dimension_of(changed, name) for name in ("depth", "head.pool"))
    as_file = SpaceConfig(trainable_layers=depth, head=HeadSpace(pool=pool))
    for problem in (*_depth_problems(as_file, blanks), *_pool_problems(as_file, blanks)):
        name = problem.key.removeprefix("space.")
        raise UserError(f"the space of {PluginRef.from_text(custom)}: {name}: {problem.message}")
    return changed


def _try_sampler(config: StudyConfig, space: Space) -> None:
    """Make the study's own sampler once, as every worker will."""
    if is_plugin_ref(config.search.sampler):
        load_sampler_plugin(config.search.sampler, space, config.search.seed)


def _try_pruner(config: StudyConfig) -> None:
    """Make the study's own pruner once, as every worker will."""
    if is_plugin_ref(config.search.pruner):
        load_pruner_plugin(config.search.pruner, config.training.epochs, workers=1)


def _look_at(
    name: str, config: StudyConfig, mistakes: _Mistakes
) -> tuple[_Blank | None, DefinedBackbone | None]:
    """Look at a backbone without its weights and with them."""
    where = name if len(config.backbones) > 1 else ""
    blank = mistakes.attempt("backbone", lambda: _Blank.of(name, config), where)
    if blank is None:
        return None, None
    size = config.data.image_size
    wanted = data_config(blank.model, size)
    spec = mistakes.attempt("backbone", lambda: ImageSpec.from_data_config(wanted, size), where)
    if spec is None:
        return blank, None
    loaded = mistakes.attempt("weights", lambda: load_backbone(name, config.weights, size), where)
    if loaded is None:
        return blank, None
    found = DefinedBackbone(name, loaded.weights_hash, blank.layers, blank.offers, spec)
    return blank, found


def _space_problems(space: SpaceConfig, blanks: Sequence[_Blank]) -> list[Problem]:
    """Check the parts of a space that depend on the backbones: one of them has to fit."""
    return [
        *_depth_problems(space, blanks),
        *_layer_problems(space, blanks),
        *_pool_problems(space, blanks),
    ]


def _depth_problems(space: SpaceConfig, blanks: Sequence[_Blank]) -> Iterator[Problem]:
    depths = (
        space.trainable_layers
        if isinstance(space.trainable_layers, list)
        else [space.trainable_layers]
    )
    largest = max(int(one["high"] if isinstance(one, dict) else one) for one in depths)
    deepest = max(blanks, key=lambda one: len(one.layers))
    if largest > len(deepest.layers):
        most = ", which has most" if len(blanks) > 1 else ""
        yield Problem(
            "space.trainable_layers",
            f"must be at most {len(deepest.layers)}, the number of layers of "
            f"{deepest.name!r}{most}, but got {largest}",
        )
    given = [name for name, _ in _changes(space)]
    if not largest and given:
        yield Problem(
            "space.trainable_layers",
            f"must be above 0 in some trials because space.layers.{given[0]} changes trainable "
            f"layers alone, but got {format_yaml(space.trainable_layers)}; give a range such as "
            "{low: 0, high: 4}",
        )


def _changes(space: SpaceConfig) -> Iterator[tuple[str, Any]]:
    """Yield every value of a layer field that is not ``keep``, with the field's name."""
    for name in LAYER_FIELDS:
        for value in values_of_dimension(getattr(space.layers, KEY_NAMES.get(name, name))):
            if value != KEEP:
                yield name, value


def _layer_problems(space: SpaceConfig, blanks: Sequence[_Blank]) -> Iterator[Problem]:
    """Find the values that no layer can take; those of some layers alone are no mistake."""
    for name, value in _changes(space):
        reasons = [_no_layer_takes(name, value, one.offers) for one in blanks]
        if all(reasons):
            if len(blanks) > 1:
                reasons = [
                    f"{one.name!r} {reason}" for one, reason in zip(blanks, reasons, strict=True)
                ]
            yield Problem(f"space.layers.{KEY_NAMES.get(name, name)}", "; ".join(reasons))


def _no_layer_takes(name: str, value: Any, offers: Sequence[LayerCapabilities]) -> str:
    """Say why no layer of a backbone takes a value; empty if one does, or none is trainable."""
    if not offers or not all(offer.reason_unsupported(name, value) for offer in offers):
        return ""
    others = {1: "", 2: "; nor can layer 2 take it"}.get(
        len(offers), f"; nor can layers 2 to {len(offers)} take it"
    )
    return f"{offers[0].reason_unsupported(name, value)} (layer 1{others})"


def _pool_problems(space: SpaceConfig, blanks: Sequence[_Blank]) -> Iterator[Problem]:
    for pool in values_of_dimension(space.head.pool):
        reasons = [one.pool_problems[pool] for one in blanks]
        if all(reasons):
            allowed = "; ".join(one.pools for one in blanks)
            yield Problem("space.head.pool", f"{reasons[0]}; {allowed}")
