"""What a trial that was pruned would have reached, told from its curve and those of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import StatisticsError, linear_regression, mean, median

Curve = Mapping[int, float]
#: So many complete trials make a line; fewer tell no more than what they gained.
MIN_TRIALS = 4


def last_value(curve: Curve) -> tuple[int, float] | None:
    """Return step and value of the last finite value of a curve."""
    finite = [step for step, value in curve.items() if math.isfinite(value)]
    return (max(finite), curve[max(finite)]) if finite else None


class FinalValuePredictor:
    """Foresees the final value of pruned trials by regression on the complete ones of a study.

    Of the trials that were at a step and went on, the final value is regressed on the one at that
    step. A line and not what they gained: plans that are behind early, above all those with a high
    learning rate, gain more than others, and with the gain alone they look as bad as they were
    when they were pruned (the GP then learns from its pruner; benchmarks/search_quality.py). That
    the better ones were kept does not bend the line: they were chosen by what is regressed on.

    Args:
        complete: Curve and final value of every complete trial.
    """

    def __init__(self, complete: Iterable[tuple[Curve, float]]) -> None:
        self._complete = list(complete)
        self._lines: dict[int, tuple[float, float]] = {}

    def predict(self, curve: Curve) -> float | None:
        """Return what a curve promises, ``None`` where it has no finite value.

        Where no complete trial has a value at its last step, that is its last value.
        """
        last = last_value(curve)
        if last is None:
            return None
        step, value = last
        if step not in self._lines:
            self._lines[step] = self._line(step)
        slope, intercept = self._lines[step]
        return slope * value + intercept

    def _line(self, step: int) -> tuple[float, float]:
        """Return slope and intercept; a lead at a step neither turns round nor grows."""
        pairs = [
            (curve[step], final)
            for curve, final in self._complete
            if math.isfinite(curve.get(step, math.nan)) and math.isfinite(final)
        ]
        if not pairs:
            return 1.0, 0.0
        then, finally_ = zip(*pairs, strict=True)
        if len(pairs) < MIN_TRIALS:
            return 1.0, median(after - before for before, after in pairs)
        try:
            slope = min(1.0, max(0.0, linear_regression(then, finally_).slope))
        except StatisticsError:  # all of them were at the same value
            slope = 1.0
        return slope, mean(finally_) - slope * mean(then)
