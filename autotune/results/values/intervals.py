"""Is a plan better than the baseline, or was it lucky? The statistics, without any training.

Values are paired: under each seed every plan and the baseline have one. The gain of a plan is the
mean of its differences to the baseline, with Student's t interval of paired values.

The intervals of all k plans hold together: each is made for ``1 - (1 - CONFIDENCE_LEVEL) / k``
(Dunn 1961, "Multiple Comparisons among Means", J. Am. Stat. Assoc. 56, 52-64). So the best plan
may be chosen afterwards by the very values that made the intervals, whatever the plans have in
common. Where nothing helps, a win is as rare as ``(1 - CONFIDENCE_LEVEL) / 2``, the side of the
interval that decides.

Three usual ways are not taken. Dunnett's test pools the variances, and those of a frozen and of a
trainable backbone differ by far. Permutations of signs have no small probabilities: 3 seeds have
8, 5 have 32. Holm's steps do not help the plan with the smallest probability, and make no
intervals.

The differences are assumed to be normal. Five seeds do not show what happens under one seed in
twenty, a collapse for example.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

#: Probability that all intervals of the gains of one comparison hold.
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, ``mean ± half_width``."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width


@dataclass(frozen=True)
class Estimate:
    """A metric, or a difference of two, with the ends of its interval."""

    value: float
    low: float
    high: float

    @staticmethod
    def from_draws(value: float, draws: npt.NDArray[np.float64]) -> Estimate:
        """Return a value with the percentile interval of its draws at ``CONFIDENCE_LEVEL``."""
        ends = [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]
        low, high = np.quantile(draws, ends)
        return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class PlanComparison:
    """A plan compared with the baseline.

    Args:
        name: Number of its trial.
        mean: Mean of its values, with its own interval at ``CONFIDENCE_LEVEL``.
        gain: By how much it is better than the baseline; positive also where less is better. The
            intervals of all plans hold together at ``CONFIDENCE_LEVEL``.
    """

    name: int
    mean: Interval
    gain: Interval

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be better than the baseline."""
        return self.gain.low > 0.0


def compare_with_baseline(
    values: Mapping[int, Sequence[float]],
    baseline: Sequence[float],
    *,
    maximized: bool = True,
    step: float = 0.0,
    num_compared: int | None = None,
    overlap: float = 0.0,
) -> list[PlanComparison]:
    """Compare plans with the baseline.

    Args:
        values: A value of each plan for every seed, at least two.
        baseline: The baseline's under the same seeds, in the same order.
        maximized: Whether more is better.
        step: The smallest possible difference of values: one image's share of an accuracy.
            Rounding to such steps hides a part of the deviation, and equal differences show none
            at all; no deviation is taken to be smaller than what rounding alone gives to a
            difference of two values, ``step / sqrt(6)``.
        num_compared: Number of plans that these were chosen from; by default all of them.
        overlap: See :func:`t_interval`.

    Returns:
        The plans, the best mean first; among equals the first one given.
    """
    plans = len(values) if num_compared is None else num_compared
    sign = 1.0 if maximized else -1.0
    compared = []
    for name, of_plan in values.items():
        gains = [sign * (value - base) for value, base in zip(of_plan, baseline, strict=True)]
        gain = t_interval(gains, 1 - (1 - CONFIDENCE_LEVEL) / plans, step / math.sqrt(6), overlap)
        mean = t_interval(of_plan, CONFIDENCE_LEVEL, step / math.sqrt(12), overlap)
        compared.append(PlanComparison(name, mean, gain))
    return sorted(compared, key=lambda plan: -sign * plan.mean.mean)


def t_interval(
    values: Sequence[float], level: float, least: float = 0.0, overlap: float = 0.0
) -> Interval:
    """Return Student's t interval of the mean of some values.

    Args:
        values: At least two.
        level: How often the interval holds the true mean.
        least: The smallest deviation that counts.
        overlap: Validation images per training image, where the values come from random divisions
            of the same images. Their training images overlap, so the values depend on each other,
            and the variance of their mean is larger by this share of that of a value (Nadeau and
            Bengio 2003, the corrected resampled t test).
    """
    deviation = max(statistics.stdev(values), least)
    width = float(stdtrit(len(values) - 1, (1 + level) / 2))
    error = deviation * math.sqrt(1 / len(values) + overlap)
    return Interval(statistics.fmean(values), width * error)
