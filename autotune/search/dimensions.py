"""One dimension of a study file and its Optuna distribution: made, asked, and put into words."""

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

from autotune.plan import KEEP


def to_distribution(dimension: Any, integer: bool = False) -> BaseDistribution | None:
    """Turn a dimension of the study file into an Optuna distribution.

    Args:
        dimension: A single value, a list, or a range with ``low`` and ``high``.
        integer: Whether the numbers are whole.

    Returns:
        The distribution, or ``None`` when only one value is possible.
    """
    if isinstance(dimension, list):
        return CategoricalDistribution(dimension) if len(dimension) > 1 else None
    if not isinstance(dimension, dict) or dimension["low"] == dimension["high"]:
        return None
    if integer:
        return IntDistribution(
            dimension["low"],
            dimension["high"],
            log=dimension.get("log", False),
            step=dimension.get("step", 1),
        )
    return FloatDistribution(
        dimension["low"],
        dimension["high"],
        log=dimension.get("log", False),
        step=dimension.get("step"),
    )


def only_value(dimension: Any) -> Any:
    """Return the value of a dimension that has just one."""
    if isinstance(dimension, list):
        return dimension[0]
    return dimension["low"] if isinstance(dimension, dict) else dimension


def suggest(trial: Trial, name: str, found: BaseDistribution) -> Any:
    """Have a trial suggest a parameter with a given distribution."""
    if isinstance(found, CategoricalDistribution):
        return trial.suggest_categorical(name, found.choices)
    if isinstance(found, IntDistribution):
        return trial.suggest_int(name, found.low, found.high, step=found.step, log=found.log)
    assert isinstance(found, FloatDistribution)
    return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)


def contains(found: BaseDistribution, value: Any) -> bool:
    """Tell whether a distribution can take a value."""
    if isinstance(found, CategoricalDistribution):
        return value in found.choices
    try:
        return found._contains(found.to_internal_repr(value))
    except ValueError:  # 0 on a logarithmic range
        return False


def integer_values(found: BaseDistribution) -> Sequence[int]:
    """List the values of a distribution of whole numbers, in its order."""
    if isinstance(found, CategoricalDistribution):
        return [int(one) for one in found.choices if one is not None]
    assert isinstance(found, IntDistribution)
    return range(found.low, found.high + 1, found.step)


def describe(found: BaseDistribution) -> str:
    """Write a distribution as one reads it: ``0.001 to 0.1, log``."""
    if isinstance(found, CategoricalDistribution):
        return ", ".join(map(str, found.choices))
    assert isinstance(found, IntDistribution | FloatDistribution)
    text = f"{found.low} to {found.high}"
    if found.log:
        return f"{text}, log"
    whole = isinstance(found, IntDistribution) and found.step == 1
    return text if whole or found.step is None else f"{text} in steps of {found.step}"


def nearest_in(found: BaseDistribution, value: Any) -> Any:
    """Return the value itself when a distribution can take it, else the nearest that it can.

    Near is meant by ratio on a logarithmic range and among positive choices, which are learning
    rates and the like. Among names none is near: the first one is returned.
    """
    if contains(found, value):
        return value
    if isinstance(found, CategoricalDistribution):
        numbers = [one for one in found.choices if isinstance(one, int | float)]
        if isinstance(value, str) or len(numbers) < len(found.choices):
            return found.choices[0]
        return _nearest(numbers, value, by_ratio=min(numbers) > 0 < value)
    assert isinstance(found, IntDistribution | FloatDistribution)
    clipped = min(max(value, found.low), found.high)
    if found.step is None or contains(found, clipped):
        return clipped
    steps = round((clipped - found.low) / found.step)
    # In decimals, as Optuna counts its steps.
    on_grid = Decimal(str(found.low)) + steps * Decimal(str(found.step))
    return min(type(found.low)(on_grid), found.high)


def _nearest(numbers: Sequence[float], value: float, by_ratio: bool) -> float:
    if by_ratio:
        return min(numbers, key=lambda one: abs(math.log(one / value)))
    return min(numbers, key=lambda one: abs(one - value))


def inactive_value(found: BaseDistribution) -> Any:
    """Return the value that a parameter without meaning takes: its first choice or upper end.

    Any value would do, as long as it is always the same; the upper end of a layer decay is 1.
    """
    if isinstance(found, CategoricalDistribution):
        return KEEP if KEEP in found.choices else found.choices[0]
    assert isinstance(found, IntDistribution | FloatDistribution)
    return found.high
