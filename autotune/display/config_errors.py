"""Every mistake of a study file in one message, those that only show in a second look included.

A wrong key keeps the images, the backbone and the weights from being looked at. Here the wrong
keys are left out, and what is left is looked at all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autotune.config.loading import (
    apply_overrides,
    find_study_file,
    parse_overrides,
    read_yaml,
    resolve_plugin_paths,
    study_name,
    validate,
)
from autotune.config.old_names import with_new_names
from autotune.config.schema import StudyConfig
from autotune.errors import ConfigError, Problem


def with_later_problems(
    error: ConfigError, study: str, overrides: Sequence[str], name: str | None
) -> ConfigError:
    """Add to the mistakes of a study file what is wrong with what it names.

    Args:
        error: The mistakes of the file and of the overrides.
        study: A preset's name or the path of a YAML file.
        overrides: ``dotted.key=value`` strings.
        name: Name of the study.
    """
    problems = list(error.problems)
    config, more = _without_wrong_keys(study, overrides, name)
    problems += more
    if config is not None:
        from autotune.study.setup.definition import define

        try:
            define(config)
        except ConfigError as later:
            problems += later.problems
    return ConfigError(error.source, dict.fromkeys(problems), error.count)


def _without_wrong_keys(
    study: str, overrides: Sequence[str], name: str | None
) -> tuple[StudyConfig | None, tuple[Problem, ...]]:
    """Return what is right of a study file, if it is enough for a study, and what is wrong."""
    try:
        path = find_study_file(study)
        base, _ = with_new_names(read_yaml(path))
    except ConfigError:
        return None, ()
    replaced: dict[str, Any] = {}
    for one in overrides:
        try:
            replaced |= with_new_names(parse_overrides([one]))[0]
        except ConfigError:
            continue
    values = resolve_plugin_paths(apply_overrides(base, replaced), replaced, path.parent)
    values["name"] = name or study_name(base, replaced, Path(study).stem)
    try:
        return validate(values, study), ()
    except ConfigError as error:
        problems = error.problems
    try:
        return validate(_left_out(values, (one.key for one in problems)), study), problems
    except ConfigError:
        return None, problems


def _left_out(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy of nested values without some dotted keys."""
    result = apply_overrides(values, {})
    for dotted in keys:
        target: Any = result
        *parents, last = dotted.split(".")
        for parent in parents:
            target = target.get(parent) if isinstance(target, dict) else None
        if isinstance(target, dict):
            target.pop(last, None)
    return result
