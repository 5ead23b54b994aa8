"""Samplers, pruners and spaces of one's own: what ``my_file.py:name`` in a study file names.

A file is run as it lies there, under a private name: its folder is not put on the path, so that
it cannot stand in the way of anybody else's module, and all of its code is in the one file whose
contents a study remembers.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from pydantic import BaseModel, TypeAdapter, ValidationError

from autotune.config.fields import choice_dimension, is_plugin_ref, largest
from autotune.config.loading import get_dotted
from autotune.config.old_names import VALUES
from autotune.config.schema import (
    PLUGIN_KEYS,
    HeadSpace,
    LayerSpace,
    PolicySpace,
    SpaceConfig,
    StudyConfig,
)
from autotune.errors import UserError, did_you_mean, join_sentences
from autotune.plan import KEEP
from autotune.search.dimensions import contains, describe
from autotune.search.space import KEY_NAMES, Space

if TYPE_CHECKING:
    from autotune.models.surgery.capabilities import LayerCapabilities


@dataclass(frozen=True)
class PluginRef:
    """What ``my_file.py:name`` names.

    Args:
        path: The file.
        name: What to take from it.
    """

    path: Path
    name: str

    @staticmethod
    def from_text(text: str) -> PluginRef:
        """Read ``my_file.py:name``."""
        path, _, name = text.rpartition(":")
        return PluginRef(Path(path), name)

    def __str__(self) -> str:
        return f"{self.path.name}:{self.name}"

    def source(self) -> bytes:
        """Read the file.

        Raises:
            UserError: When there is none, or it cannot be read.
        """
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            beside = sorted(path.name for path in self.path.parent.glob("*.py"))
            raise UserError(
                join_sentences(
                    f"there is no file {self.path}; a path is relative to the study file, on the "
                    "command line to the working directory",
                    did_you_mean(self.path.name, beside),
                )
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from None

    def digest(self) -> str:
        """Return the SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.source()).hexdigest()

    def load(self) -> Callable[..., Any]:
        """Run the file, once a process, and return what the name stands for.

        Raises:
            UserError: When the file fails, or has no such name that can be called.
        """
        module = self._module()
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        if not hasattr(module, self.name):
            raise UserError(
                join_sentences(
                    f"{self.path} has no {self.name!r}; it has {', '.join(own) or 'nothing'}",
                    did_you_mean(self.name, own),
                )
            )
        found: Any = getattr(module, self.name)
        if not callable(found):
            raise UserError(
                f"{self} must be a class or a function, but is {type(found).__name__} {found!r}"
            )
        return self._blamed(found)

    def call(self, **arguments: Any) -> Any:
        """Load what the name stands for and call it.

        Raises:
            UserError: When loading or the call fails.
        """
        return self.load()(**arguments)

    def guard(self, thing: Any, *names: str) -> None:
        """Have some methods of an object blame this file for what they raise."""
        for name in names:
            setattr(thing, name, self._blamed(getattr(thing, name)))

    def _module(self) -> ModuleType:
        source = self.source()
        # Of the path too, so that a traceback names the file that was meant.
        key = hashlib.sha256(bytes(self.path) + b"\0" + source).hexdigest()[:16]
        name = f"_autotune_own_{key}"
        if name not in sys.modules:
            loader = _Source(self.path, source)
            spec = importlib.util.spec_from_loader(name, loader, origin=str(self.path))
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # dataclasses look themselves up there
            try:
                with self._blame():
                    loader.exec_module(module)
            except UserError:
                del sys.modules[name]
                raise
        return sys.modules[name]

    def _blamed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._blame():
                return function(*arguments, **named)

        return call

    @contextmanager
    def _blame(self) -> Iterator[None]:
        """Turn what the code of the file raises into one message that says where.

        Raises:
            UserError: With file, line and error.
        """
        try:
            yield
        except (UserError, StorageInternalError):
            raise
        except (Exception, SystemExit) as error:
            # The file itself is loaded below a path of Python's own; the last frame in it counts.
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == str(self.path)
            ]
            if isinstance(error, SyntaxError) and error.filename == str(self.path):
                lines = [error.lineno]
            where = f"{self.path}:{lines[-1]}" if lines else f"{self.path} ({self.name})"
            message = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"{where} raises {type(error).__name__}: {message}") from error


class _Source(importlib.abc.SourceLoader):
    """Loads a module from text that was read already; writes no bytecode beside the file."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path = path
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._source


def plugin_refs(config: StudyConfig) -> dict[str, PluginRef]:
    """Return what a study file names of one's own, by key."""
    values = config.model_dump()
    named = {key: get_dotted(values, key) for key in PLUGIN_KEYS}
    return {key: PluginRef.from_text(text) for key, text in named.items() if is_plugin_ref(text)}


def load_sampler_plugin(reference: str, space: Space, seed: int) -> BaseSampler:
    """Make a sampler of one's own: ``MySampler(space=space, seed=seed)``.

    Args:
        reference: ``/path/to/my_file.py:MySampler``.
        space: The static space of the study.
        seed: Seed of this worker.

    Returns:
        The sampler. It sees canonical trials of the space when ``CanonicalSampler`` wraps it, and
        what it raises or proposes outside of the space is one message that names the file.

    Raises:
        UserError: When the file or the class fails, or it makes no sampler.
    """
    own = PluginRef.from_text(reference)
    sampler = own.call(space=space, seed=seed)
    if not isinstance(sampler, BaseSampler):
        raise UserError(_not_a(own, "optuna.samplers.BaseSampler", sampler))
    relative, independent = sampler.sample_relative, sampler.sample_independent

    def sample_relative(study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        params = dict(relative(study, trial, search_space))
        for name, value in params.items():
            _check_proposed(own, space, name, value)
        return params

    def sample_independent(study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
        value = independent(study, trial, param_name, distribution)
        _check_proposed(own, space, param_name, value)
        return value

    sampler.sample_relative = sample_relative  # type: ignore[method-assign]
    sampler.sample_independent = sample_independent  # type: ignore[method-assign, assignment]
    own.guard(sampler, "sample_relative", "sample_independent", "before_trial", "after_trial")
    return sampler


def _check_proposed(own: PluginRef, space: Space, name: str, value: Any) -> None:
    found = space.distributions.get(name)
    if found is None:
        raise UserError(
            join_sentences(
                f"{own} proposes {name!r} = {value!r}, which is no parameter of the space",
                did_you_mean(name, space.distributions),
            )
        )
    if not contains(found, value):
        raise UserError(f"{own} proposes {name} = {value!r}, but it must be of {describe(found)}")


def load_pruner_plugin(reference: str, epochs: int, workers: int) -> BasePruner:
    """Make a pruner of one's own: ``MyPruner(epochs=epochs, workers=workers)``.

    Args:
        reference: ``/path/to/my_file.py:MyPruner``.
        epochs: Epochs of an unpruned trial.
        workers: Workers of the study.

    Raises:
        UserError: When the file or the class fails, or it makes no pruner.
    """
    own = PluginRef.from_text(reference)
    pruner = own.call(epochs=epochs, workers=workers)
    if not isinstance(pruner, BasePruner):
        raise UserError(_not_a(own, "optuna.pruners.BasePruner", pruner))
    own.guard(pruner, "prune")
    return pruner


def load_space_plugin(reference: str, space: Space, offers: Sequence[LayerCapabilities]) -> Space:
    """Have a function of one's own change a space: ``function(space)`` returns another one.

    It may replace distributions and fix or free parameters; the parameters stay the same, and
    their values keep to the rules of the study file and to what each layer can take.

    Args:
        reference: ``/path/to/my_file.py:function``.
        space: The space made from all other keys.
        offers: What the last layers can become.

    Raises:
        UserError: When the function fails, or with the first thing that is wrong with its space.
    """
    own = PluginRef.from_text(reference)
    changed = own.load()(space)
    if not isinstance(changed, Space):
        raise UserError(_not_a(own, "autotune.search.space.Space", changed))
    if problem := _space_problem(changed, space, offers):
        raise UserError(f"the space of {own}: {problem}")
    return changed


def _not_a(own: PluginRef, kind: str, got: Any) -> str:
    return f"{own} must make an instance of {kind}, but made {type(got).__name__}"


def _space_problem(changed: Space, space: Space, offers: Sequence[LayerCapabilities]) -> str:
    """Say what is wrong with a changed space first, in an empty string if nothing is."""
    before = {*space.fixed, *space.distributions}
    now = [*changed.fixed, *changed.distributions]
    for name in now:
        if name not in before:
            return join_sentences(
                f"{name!r} is no parameter of the space", did_you_mean(name, before)
            )
        if now.count(name) > 1:
            return f"{name} must be fixed or searched, but is both"
    if missing := sorted(before - set(now)):
        return f"{', '.join(missing)} must be fixed or searched, but is missing"
    if changed.backbone != space.backbone:
        return f"the backbone must stay {space.backbone!r}, but is {changed.backbone!r}"
    offer_of = {offer.index: offer for offer in offers}
    for name in now:
        dimension = dimension_of(changed, name)
        if problem := _rule_problem(name, dimension) or _offer_problem(name, dimension, offer_of):
            return f"{name}: {problem}"
    hidden = largest(dimension_of(changed, "head.hidden_layers"))
    units = sum(name.startswith("head.units.") for name in now)
    if hidden > units:
        return (
            f"head.hidden_layers: must be at most {units}, that of space.head.hidden_layers, but "
            f"got {hidden}"
        )
    try:
        read = Space.from_json(json.loads(json.dumps(changed.to_json())))
    except (TypeError, ValueError) as error:
        return f"must be plain JSON values, but {error}"
    return "" if read == changed else "must be plain JSON values: lists for tuples, texts for keys"


def dimension_of(space: Space, name: str) -> Any:
    """Write what a space has of a parameter as a study file would."""
    if name in space.fixed:
        return space.fixed[name]
    found: BaseDistribution = space.distributions[name]
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    assert isinstance(found, IntDistribution | FloatDistribution)
    ends = {"low": found.low, "high": found.high}
    if found.log:
        return {**ends, "log": True}
    whole = isinstance(found, IntDistribution) and found.step == 1
    return ends if whole or found.step is None else {**ends, "step": found.step}


def _rule_problem(name: str, dimension: Any) -> str:
    """Hold a parameter against the rule of its key in the study file."""
    section, _, field = name.partition(".")
    models: Mapping[str, tuple[type[BaseModel], str]] = {
        "layer": (LayerSpace, field.partition(".")[2]),
        "head": (HeadSpace, field.partition(".")[0]),
        "training": (PolicySpace, field),
        "depth": (SpaceConfig, "trainable_layers"),
        "inherit": (StudyConfig, "init"),
    }
    model, key = models[section]
    key = KEY_NAMES.get(key, key)
    if _is_whole(name) and isinstance(dimension, dict) and isinstance(dimension["low"], float):
        return "must be an IntDistribution or a choice of whole numbers, but is of any numbers"
    rule: TypeAdapter[Any] = TypeAdapter(model.model_fields[key].rebuild_annotation())
    if name == "inherit":  # a space has the values of plans
        rule = TypeAdapter(Annotated[Any, choice_dimension(tuple(VALUES[key]))])
    try:
        rule.validate_python(dimension)
    except ValidationError as error:
        one = error.errors()[0]
        return str(one.get("ctx", {}).get("error", one["msg"]))
    return ""


def _is_whole(name: str) -> bool:
    whole = ("depth", "head.hidden_layers", "training.head_epochs")
    return name in whole or name.startswith("head.units.")


def _offer_problem(name: str, dimension: Any, offers: Mapping[int, LayerCapabilities]) -> str:
    """Find the first value of a layer's field that the layer cannot take."""
    section, _, rest = name.partition(".")
    if section != "layer":
        return ""
    index, _, field = rest.partition(".")
    values = dimension if isinstance(dimension, list) else [dimension]
    if isinstance(dimension, dict):
        values = [dimension["low"], dimension["high"]]
    for value in values:
        if value != KEEP and (problem := offers[int(index)].reason_unsupported(field, value)):
            return problem
    return ""
