"""By how much two trials may differ by chance: the noise of paired differences.

Both were scored on the same images, so the images on which they agree say nothing about their
difference. Its standard error is that of the mean of paired differences (McNemar 1947 for an
accuracy). The error of one value alone is several times as large.

It covers other images, not other seeds: a training that is repeated differs as well, which
``autotune confirm`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from optuna.trial import FrozenTrial

from autotune.results.study_results import StudyResults
from autotune.study.state.budget import RIVALS
from autotune.study.state.predictions import paired_error


@dataclass(frozen=True)
class Noise:
    """How far two values may lie apart by chance: the standard error of their difference.

    Args:
        error: The standard error, or an upper bound of it.
        is_bound: Whether single images are unknown, and it is the largest that it can be.
        images: Validation images.
    """

    error: float
    is_bound: bool
    images: int

    @property
    def basis(self) -> str:
        """How it is known, in words."""
        on = f"on the same {self.images:,} validation images"
        if self.is_bound:
            return f"the largest standard error that a difference can have {on}"
        return f"the standard error of differences {on}"


def noise_between(results: StudyResults, first: FrozenTrial, other: FrozenTrial) -> Noise | None:
    """Measure the noise of the difference of two complete trials.

    Trials of older versions have no scores of single images. A share then has the largest noise
    that its values allow, that of two networks which never err on the same image.

    Returns:
        The noise, or ``None`` where it is not known.
    """
    images = int(results.dataset.get("validation") or 0)
    if not images:
        return None
    error = paired_error(first, other, results.objective.is_share)
    if error is not None:
        return Noise(error, False, images)
    if results.objective.name != "accuracy":
        return None
    values = [min(1.0, max(0.0, trial.values[0])) for trial in (first, other)]
    disagree = max(min(sum(values), 2 - sum(values)), 1 / images)
    return Noise(math.sqrt(disagree / images), True, images)


def noise_of_study(results: StudyResults, ranked: Sequence[FrozenTrial]) -> Noise | None:
    """Return the usual noise between the best trial of a study and those that follow it."""
    pairs = (noise_between(results, ranked[0], rival) for rival in ranked[1 : 1 + RIVALS])
    measured = [noise for noise in pairs if noise is not None]
    if not measured:
        return None
    error = median(noise.error for noise in measured)
    return Noise(error, any(noise.is_bound for noise in measured), measured[0].images)
