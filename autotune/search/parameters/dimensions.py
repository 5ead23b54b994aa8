"""Dimensions of a study file and Optuna distributions: conversion, membership, description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from autotune import optuna_private
from autotune.plan import KEEP

#: Parameters of integers, ``head.units.N`` apart.
_INTEGERS = ("depth", "image_size", "head.hidden_layers", "training.head_epochs")


def is_integer(name: str) -> bool:
    """Tell whether the values of a parameter are integers."""
    return name in _INTEGERS or name.startswith("head.units.")


def to_distribution(dimension: Any, integer: bool = False) -> BaseDistribution | None:
    """Convert a dimension of the study file to an Optuna distribution."""
    if isinstance(dimension, list):
        return CategoricalDistribution(dimension) if len(dimension) > 1 else None
    if not isinstance(dimension, dict) or dimension["low"] == dimension["high"]:
        return None
    low, high, log = dimension["low"], dimension["high"], dimension.get("log", False)
    if integer:
        return IntDistribution(low, high, log=log, step=dimension.get("step", 1))
    return FloatDistribution(low, high, log=log, step=dimension.get("step"))


def to_dimension(distribution: BaseDistribution) -> Any:
    """Write a distribution as a study file would."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    dimension = {"low": distribution.low, "high": distribution.high}
    if distribution.log:
        return {**dimension, "log": True}
    return {**dimension, "step": distribution.step} if _has_grid(distribution) else dimension


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Have a trial suggest a parameter with a given distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, int(low), int(high), step=distribution.step, log=log)
    return trial.suggest_float(name, low, high, step=distribution.step, log=log)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Tell whether a distribution can take a value."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return optuna_private.contains(distribution, value)


def integer_values(distribution: BaseDistribution) -> Sequence[int]:
    """List the values of a distribution of integers, in its order."""
    if isinstance(distribution, CategoricalDistribution):
        return [int(choice) for choice in distribution.choices if choice is not None]
    assert isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1, distribution.step)


def describe(distribution: BaseDistribution) -> str:
    """Describe a distribution: ``0.001 to 0.1, log``."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    text = f"{distribution.low} to {distribution.high}"
    if distribution.log:
        return f"{text}, log"
    return f"{text} in steps of {distribution.step}" if _has_grid(distribution) else text


def nearest_in(distribution: BaseDistribution, value: Any) -> Any:
    """Return a value if a distribution can take it, else the nearest one that it can take.

    On a logarithmic range and among positive choices (learning rates and the like), the distance
    is a ratio. Among names it is the first one.
    """
    if contains(distribution, value):
        return value
    if isinstance(distribution, CategoricalDistribution):
        numbers = [choice for choice in distribution.choices if isinstance(choice, int | float)]
        if isinstance(value, str) or len(numbers) < len(distribution.choices):
            return distribution.choices[0]
        if min(numbers) > 0 < value:
            return min(numbers, key=lambda number: abs(math.log(number / value)))
        return min(numbers, key=lambda number: abs(number - value))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    clipped = min(max(value, low), high)
    if step is None or contains(distribution, clipped):
        return clipped
    # In decimals, as Optuna counts its steps.
    on_grid = Decimal(str(low)) + round((clipped - low) / step) * Decimal(str(step))
    return min(type(low)(on_grid), high)


def least_change(distribution: BaseDistribution) -> Any:
    """Return ``keep`` where a layer has the choice; of a range, which dropout has, the low end."""
    is_choice = isinstance(distribution, CategoricalDistribution)
    return inactive_value(distribution) if is_choice else ends(distribution)[0]


def ends(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the choices of a distribution, or the ends of its range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low, distribution.high


def inactive_value(distribution: BaseDistribution) -> Any:
    """Return the value of an inactive parameter: ``keep``, the first choice or the upper end.

    Any value would do, as long as it is always the same; the upper end of a layer decay is 1.
    """
    values = ends(distribution)
    if isinstance(distribution, CategoricalDistribution):
        return KEEP if KEEP in values else values[0]
    return values[1]


def _has_grid(distribution: IntDistribution | FloatDistribution) -> bool:
    """Tell whether values lie on a grid other than that of all integers."""
    return distribution.step is not None and not (
        isinstance(distribution, IntDistribution) and distribution.step == 1
    )
