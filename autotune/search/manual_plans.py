"""Plans that somebody gives by hand: values by name, the rest from another plan.

The names are those of parameters (``layer.1.kernel``), those of the study file
(``training.head_only_epochs``), and both without what is not needed to tell them apart (``lr``,
``head.dropout`` for all hidden layers, ``layer.kernel`` for all trainable layers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from autotune.config.old_names import stored_init
from autotune.errors import ConfigError, Problem, did_you_mean, join_sentences
from autotune.plan import HiddenLayer, TrainingPolicy, TrialPlan
from autotune.search.parameters.activity import is_active
from autotune.search.parameters.by_optimizer import (
    WEIGHT_DECAY,
    head_lr,
    optimizer_of,
    own_name,
    shared_name,
)
from autotune.search.parameters.dimensions import contains, describe, least_change, nearest_in
from autotune.search.space import KEY_NAMES, LAYER_FIELDS, Params, Space, plan_values

#: Names that people use for parameters, besides those of the study file.
_ALIASES = {
    **dict.fromkeys(("layers", "trainable_layers", "num_layers"), "depth"),
    "init": "inherit",
    "head.layers": "head.hidden_layers",
    "data.image_size": "image_size",
    **dict.fromkeys(
        ("strength", "augment.strength", "training.augment.strength"), "augment_strength"
    ),
    **{key: name for name, key in KEY_NAMES.items()},
}
#: Hidden layer of a head that is given without its units: the value of most studies.
_UNITS = 256
_LAYER_NAME = re.compile(rf"layer\.(\d+\.)?({'|'.join(LAYER_FIELDS)})")
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class ManualPlan:
    """A plan with its canonical parameters, and the values in it that were not given."""

    plan: TrialPlan
    params: Params
    filled: Params


def manual_plan(
    space: Space, given: Mapping[str, Any], base: TrialPlan, *, is_default: bool
) -> ManualPlan:
    """Return the plan with some given values, and those of another plan for the rest.

    Args:
        space: The space of the study.
        given: Values by name, numbers as numbers.
        base: The plan that has the values that are not given.
        is_default: Whether nobody has chosen ``base``: then the nearest value of the space is
            taken for each of its values.

    Raises:
        ConfigError: With every name and value that is wrong, and what is allowed.
    """
    problems: list[Problem] = []
    wanted: Params = {}
    origins: dict[str, str] = {}
    for key, value in given.items():
        names = _matching_names(space, key)
        if isinstance(names, str):
            problems.append(Problem(key, names))
            continue
        if len(names) > 1 and all(map(optimizer_of, names)):
            own, shared = dict.fromkeys(names), shared_name(names[0])
            names = [own_name(own, shared, _optimizer(space, given, base))]
        if names == ["inherit"]:
            value = stored_init(value)
        for name in names:
            if name in wanted and wanted[name] != value:
                problems.append(Problem(key, f"gives {name} a second value"))
            wanted[name], origins[name] = value, key
    for name in list(wanted):
        problem, wanted[name] = _check_value(space, name, wanted[name])
        if problem:
            problems.append(Problem(_name(name, origins[name]), problem))
    if not problems:
        params = space.canonical(_completed(space, wanted, base))
        values = {"backbone": space.backbone, **space.fixed, **params}
        problems += _without_effect(space, wanted, origins, values)
        if not is_default:
            problems += _changed(space, wanted, base, values)
    if problems:
        raise ConfigError("the plan", dict.fromkeys(problems))
    filled = {
        name: value
        for name, value in params.items()
        if name not in wanted and is_active(name, values)
    }
    return ManualPlan(space.plan(params), params, filled)


def _optimizer(space: Space, given: Mapping[str, Any], base: TrialPlan) -> str:
    """Return the optimizer of several in a space whose learning rate is meant by ``lr``."""
    keys = ("optimizer", "training.optimizer", "space.training.optimizer")
    wanted = next((given[key] for key in keys if key in given), base.policy.optimizer)
    return str(nearest_in(space.distributions["training.optimizer"], wanted))


def _matching_names(space: Space, key: str) -> list[str] | str:
    """Return the parameters that a key means, or what is wrong with it."""
    names = [*space.distributions, *space.fixed]
    if not space.limits:
        names.append("backbone")
    name = key.strip().removeprefix("space.").replace("layers.", "layer.", 1)
    *path, last = name.split(".")
    name = _ALIASES.get(name) or ".".join([*path, _ALIASES.get(last, last)])
    if name in names:
        return [name]
    short = {other: _NUMBER.sub("", shared_name(other)) for other in names}
    found = [other for other in names if short[other] == name]
    found = found or [other for other in names if short[other].endswith(f".{name}")]
    kinds = sorted({short[other] for other in found})
    if len(kinds) > 1:
        return f"is ambiguous: give {' or '.join(kinds)}"
    if found:
        return found
    if _LAYER_NAME.fullmatch(name):
        searched = [other for other in names if other.startswith("layer.")]
        has = f"it changes {_join(searched)}" if searched else "it changes no layer"
        return f"is kept by this study; {has}"
    return join_sentences(
        f"is no parameter of this study, which has {_join(names)}", did_you_mean(key, names)
    )


def _join(names: Iterator[str] | list[str]) -> str:
    """Join names, those of numbered layers once: ``layer.1-4.kernel``."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = _NUMBER.search(name)
        parts = (name[: match.start()], name[match.end() :]) if match else (name, "")
        numbers.setdefault(parts, []).extend([match[0][1:]] if match else [])
    return ", ".join(
        before + (f".{own[0]}-{own[-1]}" if len(own) > 1 else f".{own[0]}" if own else "") + after
        for (before, after), own in numbers.items()
    )


def _name(name: str, key: str) -> str:
    """Name a parameter as it was given, and what that means; several of a kind are one."""
    meaning = name if _NUMBER.search(key) else _NUMBER.sub("", name)
    return key if key.endswith(meaning) else f"{key} ({meaning})"


def _check_value(space: Space, name: str, value: Any) -> tuple[str, Any]:
    """Return what is wrong with a value, and the value as the space has it."""
    if name == "backbone" and not space.limits:
        allowed = space.backbone
        return ("" if value == allowed else f"must be {allowed}, but got {value!r}"), value
    if name in space.fixed:
        fixed = space.fixed[name]
        if fixed in (value, _as_number(value)):
            return "", fixed
        return f"is fixed at {fixed} in this study, but got {value!r}", value
    distribution = space.distributions[name]
    converted = _converted(distribution, value)
    if converted is not None and contains(distribution, converted):
        return "", converted
    kind = "one of " if isinstance(distribution, CategoricalDistribution) else "from "
    return f"must be {kind}{describe(distribution)}, but got {value!r}", value


def _converted(distribution: BaseDistribution, value: Any) -> Any:
    """Return a value with the type of a distribution; ``None`` where it has none of that type."""
    if isinstance(distribution, CategoricalDistribution):
        for meant in (value, _as_number(value)):
            for choice in distribution.choices:
                if choice == meant and _kind(choice) == _kind(meant):
                    return choice
        return None
    value = _as_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(distribution, IntDistribution):
        return int(value) if float(value).is_integer() else None
    return float(value)


def _as_number(value: Any) -> Any:
    """Return the number that a text is, such as 1e-3 to YAML; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _kind(value: Any) -> type:
    return bool if isinstance(value, bool) else float if isinstance(value, int) else type(value)


def _completed(space: Space, wanted: Params, base: TrialPlan) -> Params:
    """Return a value for every searched parameter: the one that is wanted, or that of a plan."""
    values = plan_values(base)
    params: Params = {}
    for name, distribution in space.distributions.items():
        if name in wanted:
            params[name] = wanted[name]
        elif name in values:
            params[name] = nearest_in(distribution, values[name])
        else:
            params[name] = _usual_value(name, distribution)
    return params


def _usual_value(name: str, distribution: BaseDistribution) -> Any:
    """Return the value of a layer that the other plan does not have: as little as possible."""
    if optimizer := optimizer_of(name):
        is_decay = shared_name(name) == WEIGHT_DECAY
        usual = TrainingPolicy().weight_decay if is_decay else head_lr(optimizer)
        return nearest_in(distribution, usual)
    if name.startswith("head.units."):
        return nearest_in(distribution, _UNITS)
    if name.startswith("head.dropout."):
        return nearest_in(distribution, HiddenLayer(_UNITS).dropout)
    return least_change(distribution)


def _without_effect(
    space: Space, wanted: Params, origins: Mapping[str, str], values: Params
) -> Iterator[Problem]:
    """Find what has no effect in this plan; of a key that means several, at least one must."""
    idle: dict[str, list[str]] = {}
    for name, key in origins.items():
        idle.setdefault(key, []).append(name)
    for key, names in idle.items():
        if not any(is_active(name, values) for name in names):
            yield Problem(key, f"has no effect: {_reason_inactive(names[0], values)}")
            continue
        for name in names:
            if not is_active(name, values) or values.get(name, wanted[name]) == wanted[name]:
                continue
            if name == "inherit":  # the one value with a condition of its own
                yield Problem(key, "has no effect: no layer gets another width in this plan")
            else:
                limits = space.limits[values["backbone"]]
                allowed = limits.allowed.get(name, (f"up to {limits.layers}",))
                yield Problem(
                    _name(name, key),
                    f"must be {', '.join(map(str, allowed))} for the backbone "
                    f"{values['backbone']}, but got {wanted[name]!r}",
                )


def _reason_inactive(name: str, values: Params) -> str:
    if name.startswith("layer."):
        number = name.split(".")[1]
        return f"layers is {values['depth']} in this plan; give layers={number} or more"
    if name.startswith("head."):
        number = name.rsplit(".", 1)[1] if name[-1].isdigit() else "1"
        return (
            f"head.hidden_layers is {values['head.hidden_layers']} in this plan; give "
            f"head.hidden_layers={number}"
        )
    if name == "inherit":
        return "no layer gets another kernel, width or rank in this plan"
    if optimizer := optimizer_of(name):
        return f"training.optimizer is not {optimizer} in this plan"
    if name == "training.momentum":
        return "training.optimizer is not sgd in this plan"
    return "no layer but the head trains in this plan; give layers=1 or more"


def _changed(space: Space, wanted: Params, base: TrialPlan, values: Params) -> Iterator[Problem]:
    """Find the values of a chosen plan that the space does not have."""
    before = plan_values(base)
    after = plan_values(space.plan({name: values[name] for name in space.distributions}))
    for name, value in before.items():
        is_wanted = name in wanted or shared_name(name) in wanted
        is_kept = not is_wanted and name in after and is_active(name, before)
        if is_kept and is_active(name, after) and after[name] != value:
            has = space.distributions.get(name)
            allowed = describe(has) if has is not None else str(after[name])
            yield Problem(name, f"is {value} in that plan, and this study has {allowed}")
