"""What a plan costs and may cost: limits as Optuna's constraints, costs in words."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import Trial

COST_LABELS = {"parameters": "parameters", "latency_ms": "latency", "memory_mb": "memory"}
_UNITS = {"parameters": "", "latency_ms": " ms", "memory_mb": " MB"}


def set_constraints(trial: Trial, costs: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Tell the study how a plan's costs lie to the limits, feasible or not.

    The samplers weigh a trial by the sum of what it is beyond its limits, so each is told as a
    share of the limit: 0.2 is a fifth too much, of parameters and of milliseconds alike. Zero or
    less is within the limit.

    Args:
        trial: The trial that runs.
        costs: Cost by name.
        limits: The most that each may be, by name; every trial of a study has the same.
    """
    told = trial.constraints  # a trial that goes on with smaller parts has told it before
    for cost, limit in limits.items():
        if f"max_{cost}" not in told:
            trial.set_constraint(f"max_{cost}", costs[cost] / limit - 1.0)


def violations(costs: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Say what is beyond its limit; empty when nothing is.

    Example:
        >>> violations({"parameters": 12_300_000}, {"parameters": 10_000_000})
        '12.3 M parameters, at most 10.0 M'
    """
    found = []
    for cost, limit in limits.items():
        if costs[cost] > limit:
            has, may = format_cost(cost, costs[cost]), format_cost(cost, limit)
            if has == may:  # the difference is in the digits that are not shown
                has, may = (f"{one:,.10g}{_UNITS[cost]}" for one in (costs[cost], limit))
            found.append(f"{has} {COST_LABELS[cost]}, at most {may}")
    return "; ".join(found)


def format_cost(cost: str, value: float) -> str:
    """Write a cost with its unit: ``12.3 M``, ``4.56 ms`` or ``1,234 MB``."""
    if cost == "parameters":
        return format_count(round(value))
    # Three digits, zeros too: a column of them is to line up.
    return (f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}") + _UNITS[cost]


def format_count(count: int) -> str:
    """Write a number of parameters in three digits.

    Example:
        >>> format_count(21_284_672)
        '21.3 M'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What would be rounded up to 1000 of a unit belongs to the next one.
        if count >= size * 0.9995:
            share = count / size
            decimals = 2 if share < 9.995 else 1 if share < 99.95 else 0
            return f"{share:.{decimals}f} {unit}"
    return str(count)
