"""Costs of a plan and their limits: as Optuna's constraints, and as text."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.trial import Trial

COST_LABELS = {"parameters": "parameters", "latency_ms": "latency", "memory_mb": "memory"}
_UNITS = {"parameters": "", "latency_ms": " ms", "memory_mb": " MB"}


def set_constraints(trial: Trial, costs: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Set the constraints of a running trial from the costs of its plan, feasible or not.

    The samplers weigh a trial by the sum of what exceeds its limits, so each is a share of the
    limit: 0.2 is a fifth too much, of parameters and of milliseconds alike. Zero or less is within
    the limit. Every trial of a study has the same limits.
    """
    values = trial.constraints  # a trial that continues with a smaller micro-batch has set them
    for cost, limit in limits.items():
        if f"max_{cost}" not in values:
            trial.set_constraint(f"max_{cost}", costs[cost] / limit - 1.0)


def violations(costs: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Describe the costs that exceed their limits; empty when none does.

    Example:
        >>> violations({"parameters": 12_300_000}, {"parameters": 10_000_000})
        '12.3 M parameters, at most 10.0 M'
    """
    texts = []
    for cost, limit in limits.items():
        if costs[cost] > limit:
            value, most = format_cost(cost, costs[cost]), format_cost(cost, limit)
            if value == most:  # the difference is in the digits that are not shown
                value, most = (f"{size:,.10g}{_UNITS[cost]}" for size in (costs[cost], limit))
            texts.append(f"{value} {COST_LABELS[cost]}, at most {most}")
    return "; ".join(texts)


def format_cost(cost: str, value: float) -> str:
    """Write a cost with its unit: ``12.3 M``, ``4.56 ms`` or ``1,234 MB``."""
    if cost == "parameters":
        return format_count(round(value))
    # Three digits, zeros too, so that a column of them lines up.
    return (f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}") + _UNITS[cost]


def format_count(count: int) -> str:
    """Write a count in three digits.

    Example:
        >>> format_count(21_284_672)
        '21.3 M'
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # A count that would be rounded up to 1000 of a unit gets the next one.
        if count >= size * 0.9995:
            share = count / size
            return f"{share:.{2 if share < 9.995 else 1 if share < 99.95 else 0}f} {unit}"
    return str(count)
