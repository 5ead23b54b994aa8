"""Compare the definition of a study with that of a study file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import optuna
import yaml
from optuna.study import Study
from pydantic import ValidationError

from autotune import optuna_private
from autotune.config.fields import is_plugin_ref
from autotune.config.loading import apply_overrides, get_dotted, slug
from autotune.config.schema import LIMITS, PRUNER, StudyConfig
from autotune.config.weights import weights_of
from autotune.errors import ChangedStudyError
from autotune.models.pretrained.packages import INSTALL
from autotune.search.plugins import PluginRef, plugin_refs
from autotune.study.setup.manifest_store import describe_changes
from autotune.study.state import attrs

if TYPE_CHECKING:
    from autotune.study.setup.definition import Definition


#: A key of a definition, its stored value and the value now.
Difference = tuple[str, Any, Any]


def check_same(study: Study, definition: Definition) -> None:
    """Refuse a study that was defined differently.

    Images and weights are compared by content: another path is no difference. Nor is a key with
    its default value that did not exist when the study was made, or another built-in pruner.

    Raises:
        StudyError: With every difference and what to do.
    """
    stored = _with_defaults(study.user_attrs[attrs.DEFINITION])
    current = definition.config.identity()
    pruners = [get_dotted(values, PRUNER) for values in (stored, current)]
    has_plugin = any(map(is_plugin_ref, pruners))
    free = dict.fromkeys(LIMITS if has_plugin else (*LIMITS, PRUNER))
    stored, current = (apply_overrides(values, free) for values in (stored, current))
    changes, stored = _compare_plugins(study, stored, definition.config)
    changes += _content_changes(study, definition, stored, current)
    compared = dict.fromkeys(("dataset", "weights"))
    stored, current = (apply_overrides(values, compared) for values in (stored, current))
    changes += differences(stored, current)
    if changes:
        lines = [f"  {key}: {old!r} in the study, {new!r} now" for key, old, new in changes]
        is_other_dataset = "dataset" in (key for key, *_ in changes)
        if is_other_dataset and (text := describe_changes(study, definition.dataset)):
            lines.append(f"  dataset: {text}")
        if package := _missing_package(study, definition):
            lines.append(f"  weights: {INSTALL} gives {package}")
        raise _changed(study, lines, _warm_start(study, definition))


def _changed(study: Study, lines: list[str], start: str = "") -> ChangedStudyError:
    """Return the error that says what of a study has changed, and what to do."""
    other = _unused_name(study)
    lines = [
        *lines,
        "continue it with its own definition, or start another one with --name "
        f"{other} (make: NAME={other})",
    ]
    if start:
        lines.append(f"search.warm_start={start} lets that one try the best plans of this one")
    return ChangedStudyError(
        f"the study {study.study_name!r} exists with another definition:\n" + "\n".join(lines),
        {"--name": other, **({"search.warm_start": start} if start else {})},
    )


def refuse_race(study: Study, now: Any) -> ChangedStudyError:
    """Return the error for a study whose backbones were not chosen by the race asked for now."""
    race = study.user_attrs.get(attrs.RACE)
    before = race["asked"] if race else attrs.definition(study.user_attrs)["backbone"]
    lines = [f"  backbone: {before!r} in the study, {now!r} now"]
    if isinstance(before, str):
        name = study.study_name
        lines.append(
            f"  backbone={before} --name {name} (make: BACKBONE={before} NAME={name}) continues it"
        )
    return _changed(study, lines)


def _missing_package(study: Study, definition: Definition) -> str:
    """Return the first package whose weights the study has and this machine has not."""
    stored = study.user_attrs[attrs.BACKBONES]
    missing = (
        stored.get(backbone.name, {}).get("package", "")
        for backbone in definition.backbones
        if not backbone.package
    )
    return next(filter(None, missing), "")


def _unused_name(study: Study) -> str:
    """Return a name for another study after this one: its own with a number that is free."""
    names = optuna.get_all_study_names(optuna_private.storage(study))
    own = slug(study.study_name) or "study"
    return next(name for i in count(2) if (name := f"{own}-{i}") not in names)


def _warm_start(study: Study, definition: Definition) -> str:
    """Return ``search.warm_start`` for another study; empty where no plan would fit, or may."""
    config = definition.config
    if config.search.strategy == "greedy" or not (
        set(config.backbones) & set(study.user_attrs[attrs.BACKBONES])
    ):
        return ""
    names = dict.fromkeys([*config.search.warm_start, study.study_name])
    return yaml.safe_dump(
        [*names], default_flow_style=True, allow_unicode=True, width=10**6
    ).strip()


def _with_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of keys that did not exist when a definition was stored."""
    try:
        return StudyConfig.model_validate(dict(stored)).identity()
    except ValidationError:  # of a later version: its differences are shown as they are
        return dict(stored)


def _content_changes(
    study: Study, definition: Definition, stored: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yield the images and weights whose hashes differ, with their paths before and now."""
    before, now = study.user_attrs[attrs.DATASET]["fingerprint"], definition.dataset.fingerprint
    if before != now:
        yield (
            "dataset",
            f"{stored['dataset']} (hash {before})",
            f"{current['dataset']} (hash {now})",
        )
    remembered = study.user_attrs[attrs.BACKBONES]
    for backbone in definition.backbones:
        name = backbone.name
        if name in remembered:  # else the lists of backbones differ, which is shown as well
            facts = remembered[name]
            old = _weights(stored, name, facts.get("package"), facts["weights_hash"])
            new = _weights(current, name, backbone.package, backbone.weights_hash)
            if facts["weights_hash"] != backbone.weights_hash:
                yield "weights", old, new


def _weights(values: Mapping[str, Any], backbone: str, package: str | None, digest: str) -> str:
    """Describe the weights of a backbone, which is named where there are several."""
    names = values["backbone"]
    backbones = [names] if isinstance(names, str) else names
    text = weights_of(values["weights"], backbones, backbone)
    text += f" of {backbone}" if len(backbones) > 1 else ""
    text += f" from the package {package}" if package else ""
    return f"{text} (hash {digest})"


def _compare_plugins(
    study: Study, stored: dict[str, Any], config: StudyConfig
) -> tuple[list[Difference], dict[str, Any]]:
    """Compare the files of plugins by content.

    Returns:
        The differences, and the stored definition with the current paths of these plugins.
    """
    changes: list[Difference] = []
    for key, plugin in plugin_refs(config).items():
        before = get_dotted(stored, key)
        if is_plugin_ref(before):
            old, new = study.user_attrs[attrs.PLUGINS][key], plugin.digest()
            if (PluginRef.from_text(before).name, old) != (plugin.name, new):
                changes.append((key, f"{before} (hash {old[:16]})", f"{plugin} (hash {new[:16]})"))
            stored = apply_overrides(stored, {key: get_dotted(config.model_dump(), key)})
    return changes, stored


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[Difference]:
    """List the dotted keys whose values differ, with both values."""
    changes: list[Difference] = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping) and "low" not in before:
            changes += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            changes.append((f"{prefix}{key}", before, now))
    return changes
