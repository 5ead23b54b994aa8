"""Studies that differ in their seed alone: what a search gains, and how much of that is luck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.results.study_results import StudyResults
from autotune.results.values.intervals import CONFIDENCE_LEVEL, Interval, t_interval
from autotune.results.values.objective import Objective
from autotune.study.setup.definition_changes import differences

#: The key of the study file in which the studies may differ.
SEED = "search.seed"


@dataclass(frozen=True)
class SeedResult:
    """The result of a study.

    Args:
        study: Its name.
        seed: Its seed.
        baseline: The value of the baseline; ``None`` where it has none.
        best: The best value; ``None`` where no trial has one.
        gain: By how much the best is better than the baseline.
        trial: Number of the best trial.
        plan: Its plan in words.
    """

    study: str
    seed: int
    baseline: float | None
    best: float | None
    gain: float | None
    trial: int | None
    plan: str


@dataclass(frozen=True)
class SeedComparison:
    """Studies over seeds.

    Args:
        studies: The studies, the smallest seed first.
        gain: The mean gain with Student's t interval; ``None`` below two gains.
        objective: How values are written.
    """

    studies: tuple[SeedResult, ...]
    gain: Interval | None
    objective: Objective

    @staticmethod
    def of(results: Sequence[StudyResults]) -> SeedComparison | None:
        """Compare studies; return ``None`` where they differ in more than their seed, or in none.

        Studies of other images are different, also where their definition is the same.
        """
        first = results[0].definition
        changed = {
            key for each in results[1:] for key, _, _ in differences(first, each.definition)
        }
        if changed != {SEED} or len({each.dataset.get("fingerprint") for each in results}) > 1:
            return None
        studies = tuple(sorted(map(_result_of, results), key=lambda study: study.seed))
        gains = [study.gain for study in studies if study.gain is not None]
        objective = results[0].objective
        images = int(results[0].dataset.get("validation") or 0)
        # As in a confirmation: values come in steps of an image.
        least = 1 / images / math.sqrt(6) if objective.is_share and images else 0.0
        gain = t_interval(gains, CONFIDENCE_LEVEL, least) if len(gains) > 1 else None
        return SeedComparison(studies, gain, objective)

    def describe(self) -> str:
        """Return the mean gain in a sentence."""
        count = sum(study.gain is not None for study in self.studies)
        if self.gain is None:
            return f"A mean gain needs two studies with a result, but {count} has one."
        mean = self.objective.format_gain(self.gain.mean)
        interval = self.objective.format_interval(self.gain.low, self.gain.high)
        return (
            f"Mean gain over {count} seeds: {mean} (95 % interval {interval}). The best "
            "value of a search is optimistic: 'autotune confirm' measures a plan under new seeds."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "studies": [asdict(study) for study in self.studies],
            "gain": self.gain and self.gain.mean,
            "gain_interval": self.gain and [self.gain.low, self.gain.high],
            "level": CONFIDENCE_LEVEL,
        }


def _result_of(results: StudyResults) -> SeedResult:
    baseline, best = results.baseline, results.best
    return SeedResult(
        study=results.name,
        seed=int(results.definition["search"]["seed"]),
        baseline=baseline.values[0] if baseline else None,
        best=best.values[0] if best else None,
        gain=(
            results.objective.gain(best.values[0], baseline.values[0])
            if best and baseline
            else None
        ),
        trial=best.number if best else None,
        plan=results.describe_plan(best) if best else "",
    )
