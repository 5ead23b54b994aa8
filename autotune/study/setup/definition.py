"""From a study file to everything a run needs, checked before anything is written.

All problems are collected: those of the file itself, and those that only the images, the
backbones and their weights reveal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from autotune.config.fields import is_plugin_ref, largest, values_of_dimension, without_all
from autotune.config.old_names import stored_init
from autotune.config.schema import (
    PARAMETERS,
    POOLS,
    HeadSpace,
    PolicySpace,
    SpaceConfig,
    StudyConfig,
)
from autotune.data.preprocessing import ImageSpec
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.outputs import leave_out
from autotune.data.sources.registry import fetch_source, needs_download
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.manifest import Manifest
from autotune.errors import ConfigError, Problem, StorageError, UserError, format_yaml
from autotune.models.backbone import build_backbone, data_config, load_backbone
from autotune.models.image_border import describe_unseen_border
from autotune.models.layers import Layer, list_layers, trained_names
from autotune.models.network import pool_problem
from autotune.models.pretrained.names import check_name
from autotune.models.surgery.capabilities import LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.plan import KEEP
from autotune.search.backbone_limits import Candidate
from autotune.search.plugins import (
    PluginRef,
    load_pruner_plugin,
    load_sampler_plugin,
    load_space_plugin,
    plugin_refs,
)
from autotune.search.space import KEY_NAMES, LAYER_FIELDS, Space, num_shaped_layers
from autotune.search.space_checks import dimension_of
from autotune.storage.paths import StudyPaths
from autotune.storage.url import parse_url
from autotune.study.setup.initial_trials import check_warm_start
from autotune.study.state.race_record import RaceRecord
from autotune.text import join_some

_T = TypeVar("_T")


@dataclass(frozen=True)
class DefinedBackbone:
    """A checked backbone of a study, without its weights: workers load those again.

    Layers are counted from the last one; ``offers`` has as many as the space may reshape.
    ``notes`` says what a user should know of it, a sentence each. ``package`` is the package that
    has the weights, if any.
    """

    name: str
    weights_hash: str
    layers: tuple[Layer, ...]
    offers: tuple[LayerCapabilities, ...]
    spec: ImageSpec
    notes: tuple[str, ...] = ()
    package: str = ""


@dataclass(frozen=True)
class Definition:
    """A study that can be run; its first backbone is that of the baseline.

    ``race`` is the race that has chosen the backbones, or chooses them by this study.
    """

    config: StudyConfig
    space: Space
    dataset: Dataset
    backbones: tuple[DefinedBackbone, ...]
    race: RaceRecord | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the backbones and their weights, a sentence each."""
        return tuple(dict.fromkeys(note for b in self.backbones for note in b.notes))

    @property
    def specs(self) -> tuple[ImageSpec, ...]:
        """The different ways in which images enter the backbones."""
        return tuple(dict.fromkeys(backbone.spec for backbone in self.backbones))


def define(
    config: StudyConfig,
    manifest: Manifest | None = None,
    progress: ProgressCallback = no_progress,
    fetch: bool = False,
    packaged: Collection[str] = (),
) -> Definition:
    """Check everything that a study file names.

    Args:
        config: The checked study file.
        manifest: The split of the study, if it has been made.
        progress: Called with the progress of downloading and opening the images.
        fetch: Whether a registered dataset that is missing is downloaded once no other problem is
            left; otherwise it is a problem that it is missing.
        packaged: Backbones whose weights are of packages in the study, if it has been made.

    Raises:
        ConfigError: With every problem.
    """
    problems = ProblemCollector(config)
    if problems.attempt("storage", lambda: parse_url(config.storage)) is not None:
        problems.attempt("search.warm_start", lambda: check_warm_start(config))
        files = StudyPaths.from_url(config.storage, config.files)
        leave_out(files.written_folders(config.storage))

    def open_images() -> Dataset:
        return Dataset.open(config.dataset, config.data, manifest, progress)

    to_fetch = fetch and needs_download(config.dataset)
    dataset = None if to_fetch else problems.attempt("dataset", open_images)
    inspected = [
        _inspect_backbone(name, config, problems, name in packaged) for name in config.backbones
    ]
    metas = [meta for meta, _ in inspected if meta is not None]
    backbones = tuple(backbone for _, backbone in inspected if backbone is not None)
    if len(metas) == len(config.backbones):  # else a missing one might support what others do not
        problems.problems += [
            *_depth_problems(config.space, metas),
            *_layer_problems(config.space, metas),
            *_pool_problems(config.space, metas),
            *_parameter_problems(config.space, metas),
        ]
    plugins = plugin_refs(config)
    for key, plugin in plugins.items():
        problems.attempt(key, plugin.load)
    if to_fetch and not problems.problems:
        fetch_source(config.dataset, progress)  # a failure is no problem of the study file
        dataset = problems.attempt("dataset", open_images)
    problems.raise_if_any()
    assert dataset is not None
    space = Space.from_candidates(
        [meta.candidate for meta in metas], config.space, stored_init(config.init)
    )
    if plugins:
        custom = problems.attempt("space.custom", lambda: _customize(config, space, metas))
        space = custom or space
        search = config.search
        if is_plugin_ref(search.sampler):  # made once here, as every worker will
            problems.attempt(
                "search.sampler", lambda: load_sampler_plugin(search.sampler, space, search.seed)
            )
        if is_plugin_ref(search.pruner):
            epochs = config.training.epochs
            problems.attempt("search.pruner", lambda: load_pruner_plugin(search.pruner, epochs, 1))
        problems.raise_if_any()
    return Definition(config, space, dataset, backbones)


class ProblemCollector:
    """Collects the problems of a study file."""

    def __init__(self, config: StudyConfig) -> None:
        self._name = config.name or "study"
        self.problems: list[Problem] = []

    def attempt(self, key: str, step: Callable[[], _T], backbone: str = "") -> _T | None:
        """Return the result of a step; ``None`` and a new problem if it fails.

        Args:
            key: The key of the study file that the step checks.
            step: What may raise.
            backbone: The backbone that it checks, if there are several.
        """
        try:
            return step()
        except ConfigError as error:
            self.problems.extend(error.problems)
        except StorageError as error:
            self.problems.append(Problem("storage", str(error).removeprefix("storage: ")))
        except UserError as error:
            message = str(error).removeprefix(f"{key}: ")
            is_named = not backbone or repr(backbone) in message
            self.problems.append(Problem(key, message if is_named else f"{backbone!r}: {message}"))
        return None

    def raise_if_any(self) -> None:
        """Raise a ConfigError with all problems, if there are any."""
        if self.problems:
            raise ConfigError(self._name, self.problems)


@dataclass(frozen=True)
class _MetaBackbone:
    """A backbone on the meta device, and what can be known of it without its weights."""

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    layers: tuple[Layer, ...]
    offers: tuple[LayerCapabilities, ...]
    pool_problems: Mapping[str, str]
    parameters: tuple[str, ...]

    @classmethod
    def build(cls, name: str, config: StudyConfig) -> _MetaBackbone:
        check_name(name)
        size = config.data.image_size
        model = build_backbone(name, size, device="meta")
        input_size = data_config(model, size)["input_size"]
        layers = list_layers(model)
        reachable = layers[: num_shaped_layers(config.space)]
        offers = probe_layers(model, reachable, input_size) if reachable else ()
        pool_problems = {
            pool: pool_problem(model, name, pool, input_size)
            for pool in values_of_dimension(config.space.head.pool)
        }
        parameters = tuple(
            kind
            for kind in PARAMETERS
            if any(trained_names(model, layer, kind) for layer in layers)
        )
        return cls(name, model, input_size, layers, offers, pool_problems, parameters)

    @property
    def candidate(self) -> Candidate:
        """What a space has to know of the backbone."""
        pools = tuple(pool for pool, problem in self.pool_problems.items() if not problem)
        return Candidate(self.name, len(self.layers), self.offers, pools, self.parameters)

    def describe_pools(self) -> str:
        pools = [p for p in POOLS if not pool_problem(self.model, self.name, p, self.input_size)]
        return f"{self.name!r} allows {', '.join(pools)}"


def _customize(config: StudyConfig, space: Space, metas: Sequence[_MetaBackbone]) -> Space:
    """Let the plugin of the study change the space, and check the result."""
    custom = config.space.custom
    if custom is None:
        return space
    changed = load_space_plugin(custom, space, metas[0].offers)
    names = ("depth", "head.pool", "training.parameters")
    depth, pool, parameters = (dimension_of(changed, name) for name in names)
    as_file = SpaceConfig(
        trainable_layers=depth,
        head=HeadSpace(pool=pool),
        training=PolicySpace(parameters=parameters),
    )
    for problem in (
        *_depth_problems(as_file, metas),
        *_pool_problems(as_file, metas),
        *_parameter_problems(as_file, metas),
    ):
        name = problem.key.removeprefix("space.")
        raise UserError(f"the space of {PluginRef.from_text(custom)}: {name}: {problem.message}")
    return changed


def _inspect_backbone(
    name: str, config: StudyConfig, problems: ProblemCollector, is_packaged: bool
) -> tuple[_MetaBackbone | None, DefinedBackbone | None]:
    """Check a backbone without its weights, then with them."""
    where = name if len(config.backbones) > 1 else ""
    meta = problems.attempt("backbone", lambda: _MetaBackbone.build(name, config), where)
    if meta is None:
        return None, None
    size = config.data.image_size
    images = data_config(meta.model, size)
    spec = problems.attempt("backbone", lambda: ImageSpec.from_data_config(images, size), where)
    if spec is None:
        return meta, None
    weights = config.weights_of(name)
    loaded = problems.attempt(
        "weights", lambda: load_backbone(name, weights, size, is_packaged), where
    )
    if loaded is None:
        return meta, None
    border = describe_unseen_border(loaded, size)
    notes = (*loaded.notes, border) if border else loaded.notes
    return meta, DefinedBackbone(
        name, loaded.weights_hash, meta.layers, meta.offers, spec, notes, loaded.package
    )


def _depth_problems(space: SpaceConfig, metas: Sequence[_MetaBackbone]) -> Iterator[Problem]:
    deepest = max(metas, key=lambda meta: len(meta.layers))
    layers = len(deepest.layers)
    largest_depth = int(largest(without_all(space.trainable_layers, layers)))
    if largest_depth > layers:
        most = ", which has most" if len(metas) > 1 else ""
        yield Problem(
            "space.trainable_layers",
            f"must be at most {layers}, the number of layers of {deepest.name!r}{most}, but got "
            f"{largest_depth}; 'all' takes what the backbone has",
        )
    changed = [name for name, _ in _changes(space)]
    if not largest_depth and changed:
        yield Problem(
            "space.trainable_layers",
            f"must be above 0 in some trials because space.layers.{changed[0]} changes trainable "
            f"layers alone, but got {format_yaml(space.trainable_layers)}; give a range such as "
            "{low: 0, high: 4}",
        )


def _changes(space: SpaceConfig) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of every layer field that is not ``keep``."""
    for name in LAYER_FIELDS:
        for value in values_of_dimension(getattr(space.layers, KEY_NAMES.get(name, name))):
            if value != KEEP:
                yield name, value


def _layer_problems(space: SpaceConfig, metas: Sequence[_MetaBackbone]) -> Iterator[Problem]:
    """Find the values that no layer supports; a value that some layers support is fine."""
    for name, value in _changes(space):
        reasons = [_unsupported_reason(name, value, meta.offers) for meta in metas]
        if all(reasons):
            if len(metas) > 1:
                pairs = zip(metas, reasons, strict=True)
                reasons = [f"{meta.name!r} {reason}" for meta, reason in pairs]
            yield Problem(f"space.layers.{name}", "; ".join(reasons))


def _unsupported_reason(name: str, value: Any, offers: Sequence[LayerCapabilities]) -> str:
    """Say why no layer of a backbone supports a value; empty if one does, or none is trainable."""
    if not offers or not all(offer.reason_unsupported(name, value) for offer in offers):
        return ""
    others = {1: "", 2: "; nor can layer 2 take it"}.get(
        len(offers), f"; nor can layers 2 to {len(offers)} take it"
    )
    return f"{offers[0].reason_unsupported(name, value)} (layer 1{others})"


def _pool_problems(space: SpaceConfig, metas: Sequence[_MetaBackbone]) -> Iterator[Problem]:
    for pool in values_of_dimension(space.head.pool):
        reasons = [meta.pool_problems[pool] for meta in metas]
        if all(reasons):
            allowed = "; ".join(meta.describe_pools() for meta in metas)
            yield Problem("space.head.pool", f"{reasons[0]}; {allowed}")


def _parameter_problems(space: SpaceConfig, metas: Sequence[_MetaBackbone]) -> Iterator[Problem]:
    for kind in values_of_dimension(space.training.parameters):
        if not any(kind in meta.parameters for meta in metas):
            names = join_some([repr(meta.name) for meta in metas])
            yield Problem(
                "space.training.parameters",
                f"{names} has no {kind} that could train alone; 'all' always works",
            )
