"""What a study optimises, and how its values are written, on a page and in a terminal alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from autotune.config.schema import COSTS
from autotune.study.state import attrs
from autotune.study.state.constraints import COST_LABELS, format_cost


@dataclass(frozen=True)
class Objective:
    """What a study optimises, and how its values are written.

    Args:
        name: Name of the metric.
        direction: Whether more or less of it is better.
        decimals: Decimals of a share in percent; what one image of the validation part is worth.
    """

    name: str
    direction: StudyDirection
    decimals: int = 1

    @staticmethod
    def from_study(study: Study) -> Objective:
        """Read the objective of a study; of two, the metric."""
        names = study.metric_names
        images = study.user_attrs.get(attrs.DATASET, {}).get("validation") or 0
        return Objective(
            names[0] if names else "objective",
            attrs.metric_direction(study),
            2 if images >= 1000 else 1,
        )

    @staticmethod
    def cost_from_study(study: Study) -> Objective | None:
        """Read the second objective of a study, a cost, or return ``None``."""
        names = study.metric_names or ()
        return Objective(names[1], study.directions[1]) if len(names) > 1 else None

    def with_name(self, name: str) -> Objective:
        """Return another metric of the same trials, to be written alike."""
        return replace(self, name=name)

    @property
    def is_maximized(self) -> bool:
        """Whether more is better."""
        return self.direction == StudyDirection.MAXIMIZE

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share, to be written in percent."""
        shares = ("accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy")
        return self.name in (*shares, "calibration_error")

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost of the network."""
        return self.name in COSTS

    @property
    def label(self) -> str:
        """The name as one writes it in a sentence."""
        if self.is_cost:
            return COST_LABELS[self.name]
        return self.name.replace("_", " ").replace(" f1", " F1").replace("top5", "top-5")

    @property
    def tick_format(self) -> str:
        """How plotly is to write a value."""
        return f".{self.decimals}%" if self.is_share else ".4f"

    def format_value(self, value: float | None, deviation: float | None = None) -> str:
        """Write a value: ``84.2 %``, or ``0.5130`` where the metric is no share.

        Args:
            value: The value.
            deviation: Its standard deviation over folds, if there are any: ``84.2 ± 1.1 %``.
        """
        if value is None or not math.isfinite(value):
            return "–" if value is None or math.isnan(value) else f"{value}"
        if self.is_cost:
            return format_cost(self.name, value)
        numbers = [value] if deviation is None else [value, deviation]
        if self.is_share:
            return " ± ".join(f"{100 * one:.{self.decimals}f}" for one in numbers) + " %"
        return " ± ".join(f"{one:.4f}" for one in numbers)

    def format_difference(self, value: float, other: float) -> str:
        """Write how far ``value`` lies from ``other``: ``+10.9 points``, or ``0.2900 lower``."""
        if self.is_share:
            return f"{100 * (value - other):+.{self.decimals}f} points".replace("-", "−")
        side = "lower" if value < other else "higher"
        return (
            "no difference"
            if value == other
            else f"{self.format_value(abs(value - other))} {side}"
        )

    def best_of(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.is_maximized else min(values)


def format_values(trial: FrozenTrial, objective: Objective, cost: Objective | None) -> str:
    """Write what a trial reached: ``91.7 %``, or ``91.7 % at 1.23 ms`` of two objectives.

    Means over folds come with their standard deviation: ``91.7 ± 0.9 %``.
    """
    shown = objective.format_value(
        attrs.metric_value(trial), attrs.metric_deviation(trial, objective.name)
    )
    if cost is None or trial.values is None:
        return shown
    return f"{shown} at {cost.format_value(trial.values[1])}"


def format_duration(seconds: float) -> str:
    """Write a duration with two units.

    Example:
        >>> in_time(4980)
        '1 h 23 min'
    """
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.3g} s"
