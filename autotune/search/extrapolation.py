"""Predict what a pruned trial would have reached, from its curve and the curves of others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import StatisticsError, linear_regression, mean, median

Curve = Mapping[int, float]
#: Minimum number of complete trials for a regression line; with fewer, only the gain is used.
MIN_TRIALS = 4


def last_value(curve: Curve) -> tuple[int, float] | None:
    """Return step and value of the last finite value of a curve."""
    finite = [step for step, value in curve.items() if math.isfinite(value)]
    return (max(finite), curve[max(finite)]) if finite else None


class FinalValuePredictor:
    """Predicts the final value of pruned trials by regression on the complete trials of a study.

    Of the trials that continued beyond a step, the final value is regressed on the value at that
    step. A line, not the mean gain: plans that are behind early, above all those with a high
    learning rate, gain more than others. With the gain alone they look as bad as they were when
    they were pruned (the GP then learns from its pruner; benchmarks/search_quality.py). Selection
    by the pruner does not bend the line: it selects by the variable that is regressed on.
    """

    def __init__(self, complete: Iterable[tuple[Curve, float]]) -> None:
        self._complete = list(complete)
        self._lines: dict[int, tuple[float, float]] = {}

    def predict(self, curve: Curve) -> float | None:
        """Return the predicted final value, ``None`` for a curve without a finite value.

        If no complete trial has a value at the last step of the curve, it is the last value.
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
        """Return slope and intercept; the slope is limited to 0 to 1."""
        pairs = [
            (curve[step], final)
            for curve, final in self._complete
            if math.isfinite(curve.get(step, math.nan)) and math.isfinite(final)
        ]
        if not pairs:
            return 1.0, 0.0
        if len(pairs) < MIN_TRIALS:
            return 1.0, median(final - value for value, final in pairs)
        values, finals = zip(*pairs, strict=True)
        try:
            slope = min(1.0, max(0.0, linear_regression(values, finals).slope))
        except StatisticsError:  # all values are equal
            slope = 1.0
        return slope, mean(finals) - slope * mean(values)
