"""What the best of many plans is worth on images that did not choose it.

The best value is the one with the most luck: it was chosen by the very images that measure it. How
much that brings follows from choosing again. The images are resampled, the best plan of the sample
is chosen, and its value there is compared with its value on all images. Where the sample flatters
the chosen plan, the images flattered the best one alike. So the choice is repeated
:data:`RESAMPLES` times, and by as much as its plan looks better in the sample than on all images,
that plan is taken to be worse::

    corrected = mean over samples of (2 * value(chosen) - value in the sample(chosen))

This is the bootstrap bias-corrected cross-validation of Tsamardinos, Greasidou and Borboudakis
(2018, https://doi.org/10.1007/s10994-018-5714-4). Theirs measures the chosen plan on the images
that the sample has left out: on average they lie as far below the value on all images as the
sample lies above it. Here only that difference is needed, and it can be scaled where scores of a
part of the images are kept. ``benchmarks/selection.py`` measures bias and coverage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autotune.results.values.intervals import CONFIDENCE_LEVEL, Estimate

#: How often the images are resampled.
RESAMPLES = 1000
_CHUNK = 100  # resamples at a time: 0.8 MB for 1,000 images

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Selection:
    """The choice of the best of several plans, judged.

    Args:
        value: The metric of the chosen plan.
        gain: By how much it is better than the baseline; ``None`` without a baseline.
        chances: Probability of each plan to be the best of them on other images of the same kind.
    """

    value: Estimate
    gain: Estimate | None
    chances: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return value and gain as JSON values."""
        numbers = {"value": asdict(self.value), "gain": self.gain and asdict(self.gain)}
        return {**numbers, "level": CONFIDENCE_LEVEL, "compared": len(self.chances)}


def judge_selection(
    values: Mapping[int, float],
    scores: Mapping[int, Floats],
    *,
    maximized: bool = True,
    images: int | None = None,
    baseline: int | None = None,
) -> Selection:
    """Judge the choice of the best of several plans.

    Args:
        values: The metric of each plan, by its number; of equal ones the first is the best.
        scores: Scores of each on the same images ``(N,)``, whose mean is the metric.
        maximized: Whether more is better.
        images: Number of images that were chosen by, where scores of a part of them are kept.
        baseline: Number of the plan that the best one is compared with.

    Example:
        Of 50 plans that guess heads or tails of 100 coins, the best one seems to know more.

        >>> guesses = np.random.default_rng(0).integers(0, 2, (50, 100)).astype(float)
        >>> values = dict(enumerate(guesses.mean(axis=1)))
        >>> selection = judge_selection(values, dict(enumerate(guesses)))
        >>> f"{max(values.values()):.2f} is worth {selection.value.value:.1f}"
        '0.62 is worth 0.5'
    """
    sign, numbers = 1.0 if maximized else -1.0, list(values)
    matrix = sign * np.stack([scores[number] for number in numbers])
    level = sign * np.array(list(values.values()))
    means, kept = matrix.mean(axis=1), matrix.shape[1]
    scale = (kept / (images or kept)) ** 0.5
    best, gains = [], []
    wins = np.zeros(len(numbers))
    for weights in _draws(kept):
        shift = scale * (weights @ matrix.T - means)
        chosen = (level + shift).argmax(axis=1)
        wins += np.bincount(chosen, minlength=len(numbers))
        reflected = level - shift
        best.append(np.take_along_axis(reflected, chosen[:, None], axis=1)[:, 0])
        if baseline is not None:
            gains.append(best[-1] - reflected[:, numbers.index(baseline)])
    return Selection(
        _estimate(sign * np.concatenate(best)),
        _estimate(np.concatenate(gains)) if gains else None,
        dict(zip(numbers, (wins / RESAMPLES).tolist(), strict=True)),
    )


def _estimate(draws: Floats) -> Estimate:
    return Estimate.from_draws(draws.mean(), draws)


def _draws(images: int) -> Iterator[Floats]:
    """Yield how much each image counts in some resamples, ``(resamples, images)``."""
    generator = np.random.default_rng(0)
    for _ in range(RESAMPLES // _CHUNK):
        yield generator.multinomial(images, np.full(images, 1 / images), size=_CHUNK) / images
