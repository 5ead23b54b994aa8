"""Custom samplers, pruners and spaces: what ``my_file.py:name`` in a study file refers to.

A file runs where it lies, under a private module name. Its folder is not put on ``sys.path``, so
it shadows no other module, and all of its code is in the one file whose contents a study stores.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from autotune.config.fields import is_plugin_ref
from autotune.config.loading import get_dotted
from autotune.config.schema import PLUGIN_KEYS, StudyConfig
from autotune.errors import UserError, did_you_mean, join_sentences
from autotune.search.backbone_limits import Candidate
from autotune.search.parameters.dimensions import contains, describe
from autotune.search.space import Space
from autotune.search.space_checks import find_space_problem


@dataclass(frozen=True)
class PluginRef:
    """A parsed ``my_file.py:name``."""

    path: Path
    name: str

    @staticmethod
    def from_text(text: str) -> PluginRef:
        """Parse ``my_file.py:name``."""
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
            siblings = sorted(path.name for path in self.path.parent.glob("*.py"))
            raise UserError(
                join_sentences(
                    f"there is no file {self.path}; a path is relative to the study file, on the "
                    "command line to the working directory",
                    did_you_mean(self.path.name, siblings),
                )
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from None

    def digest(self) -> str:
        """Return the SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.source()).hexdigest()

    def load(self) -> Callable[..., Any]:
        """Run the file, once a process, and return the object of that name.

        Raises:
            UserError: When the file fails, or has no such name that can be called.
        """
        module = self._module()
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        if not hasattr(module, self.name):
            raise UserError(
                join_sentences(
                    f"{self.path} has no {self.name!r}; it has {', '.join(names) or 'nothing'}",
                    did_you_mean(self.name, names),
                )
            )
        value: Any = getattr(module, self.name)
        if not callable(value):
            raise UserError(
                f"{self} must be a class or a function, but is {type(value).__name__} {value!r}"
            )
        return self._wrap(value)

    def check(self, made: Any, kind: type, name: str) -> Any:
        """Return what the file made if it is an instance of a class, given with its name."""
        if isinstance(made, kind):
            return made
        raise UserError(f"{self} must make an instance of {name}, but made {type(made).__name__}")

    def attribute_errors_to_file(self, thing: Any, *methods: str) -> None:
        """Have errors in some methods of an object name this file."""
        for method in methods:
            setattr(thing, method, self._wrap(getattr(thing, method)))

    def _module(self) -> ModuleType:
        source = self.source()
        # The path is part of the key, so that a traceback names the file that was meant.
        key = hashlib.sha256(bytes(self.path) + b"\0" + source).hexdigest()[:16]
        name = f"_autotune_own_{key}"
        if name not in sys.modules:
            module = ModuleType(name)
            module.__file__ = str(self.path)
            sys.modules[name] = module  # dataclasses look themselves up there
            try:
                with self._errors_name_file():
                    exec(compile(source, str(self.path), "exec"), vars(module))
            except UserError:
                del sys.modules[name]
                raise
        return sys.modules[name]

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._errors_name_file():
                return function(*arguments, **named)

        return call

    @contextmanager
    def _errors_name_file(self) -> Iterator[None]:
        """Turn what the code of the file raises into one message.

        Raises:
            UserError: With file, line and error.
        """
        try:
            yield
        except (UserError, StorageInternalError):
            raise
        except (Exception, SystemExit) as error:
            # The last frame in the file counts, whatever it calls.
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
            message = str(error)
            if isinstance(error, SyntaxError):
                message = error.msg
                if error.filename == str(self.path):
                    lines = [error.lineno]
            where = f"{self.path}:{lines[-1]}" if lines else f"{self.path} ({self.name})"
            raise UserError(f"{where} raises {type(error).__name__}: {message}") from error


def plugin_refs(config: StudyConfig) -> dict[str, PluginRef]:
    """Return the plugins of a study file, by key."""
    values = config.model_dump()
    named = {key: get_dotted(values, key) for key in PLUGIN_KEYS}
    return {key: PluginRef.from_text(text) for key, text in named.items() if is_plugin_ref(text)}


def load_sampler_plugin(reference: str, space: Space, seed: int) -> BaseSampler:
    """Make a custom sampler: ``MySampler(space=space, seed=seed)``.

    Returns:
        The sampler. It sees canonical trials of the space when ``CanonicalSampler`` wraps it. An
        error in it, or a value outside of the space, is one message that names the file.

    Raises:
        UserError: When the file or the class fails, or it makes no sampler.
    """
    ref = PluginRef.from_text(reference)
    made = ref.load()(space=copy.deepcopy(space), seed=seed)
    sampler: BaseSampler = ref.check(made, BaseSampler, "optuna.samplers.BaseSampler")
    relative, independent = sampler.sample_relative, sampler.sample_independent

    def sample_relative(study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        params = dict(relative(study, trial, search_space))
        for name, value in params.items():
            _check_proposed(ref, space, name, value)
        return params

    def sample_independent(study: Any, trial: Any, param_name: str, distribution: Any) -> Any:
        value = independent(study, trial, param_name, distribution)
        _check_proposed(ref, space, param_name, value)
        return value

    sampler.sample_relative = sample_relative  # type: ignore[method-assign]
    sampler.sample_independent = sample_independent  # type: ignore[method-assign, assignment]
    ref.attribute_errors_to_file(
        sampler, "sample_relative", "sample_independent", "before_trial", "after_trial"
    )
    return sampler


def _check_proposed(ref: PluginRef, space: Space, name: str, value: Any) -> None:
    distribution = space.distributions.get(name)
    if distribution is None:
        raise UserError(
            join_sentences(
                f"{ref} proposes {name!r} = {value!r}, which is no parameter of the space",
                did_you_mean(name, space.distributions),
            )
        )
    if not contains(distribution, value):
        raise UserError(
            f"{ref} proposes {name} = {value!r}, but it must be of {describe(distribution)}"
        )


def load_pruner_plugin(reference: str, epochs: int, workers: int) -> BasePruner:
    """Make a custom pruner: ``MyPruner(epochs=epochs, workers=workers)``.

    Raises:
        UserError: When the file or the class fails, or it makes no pruner.
    """
    ref = PluginRef.from_text(reference)
    made = ref.load()(epochs=epochs, workers=workers)
    pruner: BasePruner = ref.check(made, BasePruner, "optuna.pruners.BasePruner")
    ref.attribute_errors_to_file(pruner, "prune")
    return pruner


def load_space_plugin(reference: str, space: Space, candidates: Sequence[Candidate]) -> Space:
    """Have a custom function change a space: ``function(space)`` returns another one.

    It may replace distributions and fix or free parameters. The parameters stay the same, and
    their values keep to the rules of the study file and to what the backbone can take.

    Raises:
        UserError: When the function fails, or with the first problem of its space.
    """
    ref = PluginRef.from_text(reference)
    given = copy.deepcopy(space)  # the function may change what it gets
    changed: Space = ref.check(ref.load()(given), Space, "autotune.search.space.Space")
    if problem := find_space_problem(changed, space, candidates):
        raise UserError(f"the space of {ref}: {problem}")
    return changed
