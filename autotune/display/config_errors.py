"""Collect every mistake of a study file in one message.

A wrong key prevents a check of the images, the backbone and the weights. This module leaves the
wrong keys out and checks the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autotune.config.loading import (
    apply_overrides,
    find_study_file,
    parse_overrides,
    read_study_file,
    resolve_plugin_paths,
    study_name,
)
from autotune.config.old_names import with_new_names
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.errors import ConfigError, Problem


def with_later_problems(
    error: ConfigError, study: str, overrides: Sequence[str], name: str | None
) -> ConfigError:
    """Add the mistakes in the images, backbones and weights to those of a study file."""
    config, later = _without_wrong_keys(study, overrides, name)
    problems = [*error.problems, *later]
    if config is not None:
        from autotune.study.setup.definition import define

        if config.race is not None:  # without downloads
            config = config.without_race()
        if any(problem.key == "weights" for problem in problems):
            config = config.model_copy(update={"weights": "none"})  # not those of the hub instead
        try:
            define(config)
        except ConfigError as definition_error:
            problems += definition_error.problems
    return ConfigError(error.source, dict.fromkeys(problems), error.count)


def _without_wrong_keys(
    study: str, overrides: Sequence[str], name: str | None
) -> tuple[StudyConfig | None, tuple[Problem, ...]]:
    """Return the valid rest of a study file, if it is enough for a study, and the mistakes."""
    try:
        path = find_study_file(study)
        written, misread = read_study_file(path)
        base, _ = with_new_names(written)
    except ConfigError:
        return None, ()
    replaced: dict[str, Any] = {}
    for override in overrides:
        try:
            replaced |= with_new_names(parse_overrides([override]))[0]
        except ConfigError:
            continue
    values = resolve_plugin_paths(apply_overrides(base, replaced), replaced, path.parent)
    values["name"] = name or study_name(base, replaced, Path(study).stem)
    misread = misread.without([*replaced, *(["name"] if name else [])])
    try:
        return validate(values, study, misread), ()
    except ConfigError as error:
        problems = error.problems
    try:
        return validate(_without(values, (problem.key for problem in problems)), study), problems
    except ConfigError:
        return None, problems


def _without(values: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
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
