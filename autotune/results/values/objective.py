"""What a study optimizes, and how its values are written on pages and in terminals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from optuna.study import StudyDirection

from autotune.config.schema import COSTS
from autotune.study.state.constraints import COST_LABELS, format_cost

#: Scores of which less is better.
_MINIMIZED = ("log_loss", "calibration_error", *COSTS)
_SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "top5_accuracy", "calibration_error")


@dataclass(frozen=True)
class Objective:
    """A metric or a cost, and how its values are written.

    Args:
        name: Its name.
        direction: Whether more or less of it is better.
        decimals: Decimals of a share in percent: what one validation image is worth.
    """

    name: str
    direction: StudyDirection
    decimals: int = 1

    def with_name(self, name: str) -> Objective:
        """Return another metric of the same trials, written with as many decimals."""
        if name == self.name:
            return self
        minimized = name in _MINIMIZED
        direction = StudyDirection.MINIMIZE if minimized else StudyDirection.MAXIMIZE
        return replace(self, name=name, direction=direction)

    @property
    def is_maximized(self) -> bool:
        """Whether more is better."""
        return self.direction == StudyDirection.MAXIMIZE

    @property
    def is_share(self) -> bool:
        """Whether values are shares, written in percent."""
        return self.name in _SHARES

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost of the network."""
        return self.name in COSTS

    @property
    def label(self) -> str:
        """The name as it stands in a sentence."""
        if self.is_cost:
            return COST_LABELS[self.name]
        return self.name.replace("_", " ").replace(" f1", " F1").replace("top5", "top-5")

    @property
    def tick_format(self) -> str:
        """Plotly's format of a value."""
        return f".{self.decimals}%" if self.is_share else ".4f"

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another one."""
        return value - other if self.is_maximized else other - value

    def gain_interval(self, difference: Mapping[str, float]) -> tuple[float, float, float]:
        """Return a gain and the ends of its interval, which count improvements as positive.

        Args:
            difference: How far the metric lies from another one: ``value`` or ``mean``, ``low``
                and ``high``.
        """
        value = difference["value"] if "value" in difference else difference["mean"]
        ends = sorted(self.gain(difference[end], 0.0) for end in ("low", "high"))
        return self.gain(value, 0.0), ends[0], ends[1]

    def best_of(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.is_maximized else min(values)

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
            return " ± ".join(f"{100 * number:.{self.decimals}f}" for number in numbers) + " %"
        return " ± ".join(f"{number:.4f}" for number in numbers)

    def format_difference(self, value: float, other: float) -> str:
        """Write how far ``value`` lies from ``other``: ``+10.9 points``, or ``0.2900 lower``."""
        if self.is_share:
            return f"{100 * (value - other):+.{self.decimals}f} points".replace("-", "−")
        if value == other:
            return "no difference"
        return f"{self.format_value(abs(value - other))} {'lower' if value < other else 'higher'}"

    def format_gain(self, gain: float, *, unit: bool = True) -> str:
        """Write by how much something is better: ``2.1 points``, or ``0.0310``."""
        if not self.is_share:
            return f"{gain:.4f}".replace("-", "−")
        text = f"{100 * gain:.{self.decimals}f}"
        if float(text) == 0.0:
            text = text.removeprefix("-")
        return text.replace("-", "−") + (" points" if unit else "")

    def format_interval(self, low: float, high: float) -> str:
        """Write the interval of a gain without a unit: ``0.9 to 3.3``."""
        return " to ".join(self.format_gain(end, unit=False) for end in (low, high))
