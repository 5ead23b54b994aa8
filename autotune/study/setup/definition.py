"""From a study file to everything a run needs, checked before anything is written.

All problems are collected: those of the file itself, and those that only the images, the
backbones and their weights reveal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

from torch import nn

from autotune.config.fields import is_plugin_ref, values_of_dimension
from autotune.config.old_names import stored_init
from autotune.config.schema import PARAMETERS, StudyConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.outputs import leave_out
from autotune.data.sources.registry import fetch_source, needs_download
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.manifest import Manifest
from autotune.errors import BackboneError, ConfigError, Problem, StorageError, UserError
from autotune.models.backbone import Backbone, build_backbone, data_config, load_backbone
from autotune.models.image_border import describe_unseen_border
from autotune.models.layers import Layer, list_layers, trained_names
from autotune.models.network import pool_problem
from autotune.models.pretrained.names import check_name
from autotune.models.surgery.capabilities import LayerCapabilities
from autotune.models.surgery.probing import probe_layers
from autotune.search.backbone_limits import Candidate
from autotune.search.parameters.by_optimizer import RANGES, WEIGHT_DECAY, own_dimensions
from autotune.search.plugins import (
    load_pruner_plugin,
    load_sampler_plugin,
    load_space_plugin,
    plugin_refs,
)
from autotune.search.space import Space, num_shaped_layers
from autotune.search.space_checks import file_problems
from autotune.storage.paths import StudyPaths
from autotune.storage.url import parse_url
from autotune.study.setup.initial_trials import check_warm_start
from autotune.study.state.race_record import RaceRecord
from autotune.text import first_line

_T = TypeVar("_T")


@dataclass(frozen=True)
class DefinedBackbone:
    """A checked backbone of a study, without its weights: workers load those again.

    Layers are counted from the last one. ``specs`` has its images at each size of the study, that
    of the baseline first, and ``hashes`` the hash of its weights there: position tables follow the
    size. ``notes`` says what a user should know of it, a sentence each. ``package`` is the package
    that has the weights, if any.
    """

    name: str
    hashes: tuple[str, ...]
    layers: tuple[Layer, ...]
    specs: tuple[ImageSpec, ...]
    notes: tuple[str, ...] = ()
    package: str = ""

    @property
    def spec(self) -> ImageSpec:
        """Its images, those of the baseline."""
        return self.specs[0]

    @property
    def weights_hash(self) -> str:
        """The hash of its weights, as the baseline has them."""
        return self.hashes[0]


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
        notes = dict.fromkeys(note for b in self.backbones for note in b.notes)
        return (*notes, *_rate_notes(self.config))

    @property
    def specs(self) -> tuple[ImageSpec, ...]:
        """The different ways in which images enter the backbones."""
        return tuple(dict.fromkeys(spec for backbone in self.backbones for spec in backbone.specs))


def open_dataset(config: StudyConfig, progress: ProgressCallback = no_progress) -> Dataset:
    """Open the images of a study file alone.

    Raises:
        ConfigError: When they cannot be used.
    """
    problems = ProblemCollector(config)
    files = StudyPaths.from_url(config.storage, config.files)
    leave_out(files.written_folders(config.storage))
    opened = problems.attempt(
        "dataset", lambda: Dataset.open(config.dataset, config.data, None, progress)
    )
    problems.raise_if_any()
    assert opened is not None
    return opened


def define(
    config: StudyConfig,
    manifest: Manifest | None = None,
    progress: ProgressCallback = no_progress,
    fetch: bool = False,
    packaged: Collection[str] = (),
    on_backbone: Callable[[Backbone], None] = lambda backbone: None,
) -> Definition:
    """Check everything that a study file names.

    Args:
        config: The checked study file.
        manifest: The split of the study, if it has been made.
        progress: Called with the progress of downloading and opening the images.
        fetch: Whether a registered dataset that is missing is downloaded once no other problem is
            left; otherwise it is a problem that it is missing.
        packaged: Backbones whose weights are of packages in the study, if it has been made.
        on_backbone: Called with each backbone, at each size of the images, and its weights, which
            are not kept.

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
        _inspect_backbone(name, config, problems, name in packaged, on_backbone)
        for name in config.backbones
    ]
    candidates = [meta.candidate for meta, _ in inspected if meta is not None]
    backbones = tuple(backbone for _, backbone in inspected if backbone is not None)
    # A backbone that is missing might support what the others do not.
    if len(candidates) == len(config.backbones):
        problems.problems += file_problems(config.space, candidates)
    plugins = plugin_refs(config)
    for key, plugin in plugins.items():
        problems.attempt(key, plugin.load)
    if to_fetch and not problems.problems:
        fetch_source(config.dataset, progress)  # a failure is no problem of the study file
        dataset = problems.attempt("dataset", open_images)
    problems.raise_if_any()
    assert dataset is not None
    init, images = stored_init(config.init), config.image_dimensions
    space = Space.from_candidates(candidates, config.space, init, images)
    if plugins:
        if custom := config.space.custom:
            original = space
            changed = problems.attempt(
                "space.custom", lambda: load_space_plugin(custom, original, candidates)
            )
            space = changed or space
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


def _rate_notes(config: StudyConfig) -> tuple[str, ...]:
    """Return a note for each range that several optimizers share, and that does not suit all."""
    policy = config.space.training
    optimizers = values_of_dimension(policy.optimizer)
    names = " and ".join(map(str, optimizers))
    shared = []
    for parameter in RANGES:
        value = getattr(policy, parameter.removeprefix("training."))
        is_default = parameter == WEIGHT_DECAY and len(values_of_dimension(value)) == 1
        is_own = len(own_dimensions(parameter, value, optimizers)) > 1
        if len(optimizers) > 1 and not is_own and not is_default:
            shared.append(parameter)
    return tuple(
        f"space.{parameter}: {names} have the same values, which do not suit them alike; 'auto' "
        "gives each its own"
        for parameter in shared
    )


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

    models: Mapping[int | None, nn.Module]
    layers: tuple[Layer, ...]
    candidate: Candidate

    @classmethod
    def build(cls, name: str, config: StudyConfig) -> _MetaBackbone:
        check_name(name)
        models = _build_sizes(name, config.image_sizes)
        shapes = {size: data_config(models[size], size)["input_size"] for size in models}
        model = models[config.image_sizes[0]]
        layers = list_layers(model)
        offers: tuple[LayerCapabilities, ...] = ()
        if reachable := layers[: num_shaped_layers(config.space)]:
            probed = [probe_layers(models[size], reachable, shapes[size]) for size in models]
            offers = tuple(map(_common, *probed))

        @cache
        def refuse_pool(pool: str) -> str:
            reasons = (pool_problem(models[size], name, pool, shapes[size]) for size in models)
            return next(filter(None, reasons), "")

        parameters = tuple(
            kind
            for kind in PARAMETERS
            if any(trained_names(model, layer, kind) for layer in layers)
        )
        return cls(models, layers, Candidate(name, len(layers), offers, refuse_pool, parameters))


def _build_sizes(name: str, sizes: Sequence[int | None]) -> dict[int | None, nn.Module]:
    """Build a backbone on the meta device for each size of the images.

    Raises:
        BackboneError: When it cannot take some of them.
    """
    models, problems = dict[int | None, nn.Module](), dict[int | None, BackboneError]()
    for size in sizes:
        try:
            models[size] = build_backbone(name, size, device="meta")
        except BackboneError as error:
            problems[size] = error
    if problems:
        first = next(iter(problems.values()))
        if len(sizes) == 1:
            raise first
        raise BackboneError(
            f"the backbone {name!r} cannot take images of {', '.join(map(str, problems))} px "
            f"({first_line(first.__cause__ or first)}); leave them out of data.image_size"
        ) from first
    return models


def _common(first: LayerCapabilities, *others: LayerCapabilities) -> LayerCapabilities:
    """Return what a layer can become at every size of the images."""
    reasons = dict(first.reasons)
    for other in others:
        for field, reason in other.reasons.items():
            reasons.setdefault(field, f"{reason} (at another size of the images)")
    return replace(first, reasons=reasons)


def _inspect_backbone(
    name: str,
    config: StudyConfig,
    problems: ProblemCollector,
    is_packaged: bool,
    on_backbone: Callable[[Backbone], None],
) -> tuple[_MetaBackbone | None, DefinedBackbone | None]:
    """Check a backbone without its weights, then with them."""
    where = name if len(config.backbones) > 1 else ""
    meta = problems.attempt("backbone", lambda: _MetaBackbone.build(name, config), where)
    if meta is None:
        return None, None
    weights, package = config.weights_of(name), ""
    specs, hashes, notes = list[ImageSpec](), list[str](), list[str]()
    for size, model in meta.models.items():
        make_spec = partial(ImageSpec.from_data_config, data_config(model, size), size)
        spec = problems.attempt("backbone", make_spec, where)
        if spec is None:
            return meta, None
        load = partial(load_backbone, name, weights, size, is_packaged)
        loaded = problems.attempt("weights", load, where)
        if loaded is None:
            return meta, None
        on_backbone(loaded)
        specs.append(spec)
        hashes.append(loaded.weights_hash)
        notes += [*loaded.notes, describe_unseen_border(loaded, size)]
        package = loaded.package
    texts = tuple(dict.fromkeys(filter(None, notes)))
    return meta, DefinedBackbone(name, tuple(hashes), meta.layers, tuple(specs), texts, package)
