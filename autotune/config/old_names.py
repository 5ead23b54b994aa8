"""Old names of keys and values in study files, which are accepted for a while.

Stored studies have the old names too. Digests in files beside the database are computed over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.errors import ConfigError, Problem

#: The release that no longer accepts the old names in study files.
REMOVED_IN = "0.3"
#: Old dotted key -> (new key in the same section, old value -> new value).
RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "fit": ("refit", {}),
    "inherit": (
        "init",
        {"weights": "pretrained", "fit": "fitted", "data": "activations", "none": "random"},
    ),
    "space.depth": ("space.trainable_layers", {}),
    "space.layers.last": ("space.layers.max_layers", {}),
    "space.layers.bridge": ("space.layers.low_rank", {}),
    "space.training.head_epochs": ("space.training.head_only_epochs", {}),
    "search.order": ("search.strategy", {}),
    "search.known_good": ("search.default_plans", {}),
    "training.views": ("training.num_views", {}),
    "training.clip_norm": ("training.clip_grad_norm", {}),
    "training.amp": ("training.precision", {}),
    "training.sampling": ("training.sampling", {"plain": "uniform"}),
    "data.unreadable_limit": ("data.max_unreadable_share", {}),
    "data.duplicates": ("data.duplicates", {"together": "group"}),
}
#: Old dotted key -> new one.
KEYS = {old: new for old, (new, _) in RENAMED.items() if old != new}
#: New dotted key -> its old values and the new ones. Plans store the old values of ``init``.
VALUES = {new: values for new, values in RENAMED.values() if values}


def with_new_names(
    values: Mapping[str, Any], source: str = "study file"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a study file under new names, and what was renamed.

    Raises:
        ConfigError: When a key is given under both of its names.
    """
    renaming = _Renaming(KEYS, VALUES)
    result = renaming.mapping(values)
    if renaming.problems:
        raise ConfigError(source, renaming.problems)
    return result, renaming.renamed


def with_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under the names of version 0.1, over which digests are computed."""
    return _to_old().mapping(values)


def stored_init(dimension: Any) -> Any:
    """Return values of ``init`` as plans and parameters store them."""
    return _to_old().value("inherit", dimension)


def old_keys(section: str) -> Iterator[str]:
    """Yield the old names of the keys of a section, without the section."""
    for old in KEYS:
        parent, _, name = old.rpartition(".")
        if parent == section:
            yield name


def new_key(key: str) -> str:
    """Return the new name of a dotted key; that of a key that was not renamed is the same."""
    return _Renaming(KEYS, VALUES).new_path(key)


def describe_renamed(source: str, renamed: Mapping[str, str]) -> str:
    """Return the line that lists the new names."""
    names = ", ".join(f"{old!r} is now called {new!r}" for old, new in renamed.items())
    return f"{source}: {names}; old names work until autotune {REMOVED_IN}"


@dataclass
class _Renaming:
    """Rename nested keys and their values, and record what was renamed."""

    keys: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]  # by the resulting key
    renamed: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def mapping(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            path = f"{prefix}{key}"
            new = self.new_path(path)
            short = new[len(prefix) :] if isinstance(key, str) else key
            if new != path:
                self.renamed[path] = new
                if short in values:
                    text = f"is given twice, also under its old name {path!r}; leave that out"
                    self.problems.append(Problem(new, text))
            is_section = isinstance(value, Mapping) and "low" not in value
            result[short] = (
                self.mapping(value, f"{new}.") if is_section else self.value(new, value)
            )
        return result

    def value(self, path: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self.value(path, item) for item in value]
        new = self.values.get(path, {}).get(value) if isinstance(value, str) else None
        if new is None:
            return value
        self.renamed[f"{path}: {value}"] = f"{path}: {new}"
        return new

    def new_path(self, path: str) -> str:
        """Return the new name of a dotted key, or of the section that it is in."""
        for old, new in self.keys.items():
            if path == old or path.startswith(f"{old}."):
                return new + path[len(old) :]
        return path


def _to_old() -> _Renaming:
    return _Renaming(
        {new: old for old, new in KEYS.items()},
        {
            old: {after: before for before, after in values.items()}
            for old, (_, values) in RENAMED.items()
        },
    )
