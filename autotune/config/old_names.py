"""Keys and values of a study file that have a new name; the old ones are accepted for a while.

Studies that earlier versions stored have the old names too, and digests in files beside the
database were computed over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autotune.errors import ConfigError, Problem

#: The release that no longer accepts the old names in study files.
REMOVED_IN = "0.3"
#: Old dotted key -> new one, in the same section.
KEYS = {
    "fit": "refit",
    "inherit": "init",
    "space.depth": "space.trainable_layers",
    "space.layers.last": "space.layers.max_layers",
    "space.layers.bridge": "space.layers.low_rank",
    "space.training.head_epochs": "space.training.head_only_epochs",
    "search.order": "search.strategy",
    "search.known_good": "search.default_plans",
    "training.views": "training.num_views",
    "training.clip_norm": "training.clip_grad_norm",
    "training.amp": "training.precision",
    "data.unreadable_limit": "data.max_unreadable_share",
}
#: New dotted key -> its old values and the new ones. Plans store the old ones of ``init``.
VALUES = {
    "init": {"weights": "pretrained", "data": "activations", "none": "random"},
    "training.sampling": {"plain": "uniform"},
    "data.duplicates": {"together": "group"},
}
_OLD_KEYS = {new: old for old, new in KEYS.items()}
_OLD_VALUES = {
    _OLD_KEYS.get(key, key): {new: old for old, new in names.items()}
    for key, names in VALUES.items()
}


def with_new_names(
    values: Mapping[str, Any], source: str = "study file"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a study file under new names, and what was renamed.

    Args:
        values: Nested values; keys may be dotted, as in overrides.
        source: Origin of the values, for the message.

    Raises:
        ConfigError: When a key is given under both of its names.
    """
    renamed: dict[str, str] = {}
    problems: list[Problem] = []
    result = _rename(values, "", KEYS, VALUES, renamed, problems)
    if problems:
        raise ConfigError(source, problems)
    return result, renamed


def with_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under the names of version 0.1, over which digests are computed."""
    return _rename(values, "", _OLD_KEYS, _OLD_VALUES, {}, [])


def stored_init(dimension: Any) -> Any:
    """Return values of ``init`` as plans and parameters store them."""
    return _rename_value("inherit", dimension, _OLD_VALUES, {})


def old_keys(section: str) -> Iterator[str]:
    """Yield the old names of the keys of a section, without the section."""
    for old in KEYS:
        parent, _, name = old.rpartition(".")
        if parent == section:
            yield name


def describe_renamed(source: str, renamed: Mapping[str, str]) -> str:
    """Return the line that tells the new names."""
    names = ", ".join(f"{old!r} is now called {new!r}" for old, new in renamed.items())
    return f"{source}: {names}; old names work until autotune {REMOVED_IN}"


def _rename(
    values: Mapping[str, Any],
    prefix: str,
    keys: Mapping[str, str],
    names: Mapping[str, Mapping[str, str]],
    renamed: dict[str, str],
    problems: list[Problem],
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        new = _new_path(path, keys)
        short = new[len(prefix) :] if isinstance(key, str) else key
        if new != path:
            renamed[path] = new
            if short in values:
                message = f"is given twice, also under its old name {path!r}; leave that out"
                problems.append(Problem(new, message))
        if isinstance(value, Mapping) and "low" not in value:
            result[short] = _rename(value, f"{new}.", keys, names, renamed, problems)
        else:
            result[short] = _rename_value(new, value, names, renamed)
    return result


def _new_path(path: str, keys: Mapping[str, str]) -> str:
    """Return the new name of a dotted key, or of the section that it is in."""
    for old, new in keys.items():
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return path


def _rename_value(
    path: str, value: Any, names: Mapping[str, Mapping[str, str]], renamed: dict[str, str]
) -> Any:
    if isinstance(value, list):
        return [_rename_value(path, item, names, renamed) for item in value]
    new = names.get(path, {}).get(value) if isinstance(value, str) else None
    if new is None:
        return value
    renamed[f"{path}: {value}"] = f"{path}: {new}"
    return new
