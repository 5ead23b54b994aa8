"""What the questions to a study have in common: its trials by rank, its noise, and findings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.parameters import importances
from autotune.results.noise import Noise, noise_between, noise_of_study
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs

Severity = Literal["ok", "warning", "action", "unknown"]


#: What is missing where differences cannot be judged.
NO_NOISE = (
    "how far values differ by chance is not known: no two trials have scores of single images"
)


@dataclass(frozen=True)
class Finding:
    """What the trials say to a question.

    Args:
        answer: The answer in a sentence or two, with its numbers.
        severity: ``ok``: nothing to do; ``warning``: worth a look; ``action``: change something;
            ``unknown``: it cannot be answered yet, and the answer says what is missing.
        advice: What to do about it; empty where nothing needs to be done.
    """

    answer: str
    severity: Severity
    advice: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether the trials cannot answer it yet."""
        return self.severity == "unknown"


def unknown(missing: str, advice: str = "") -> Finding:
    """Return the finding that a question cannot be answered, and what is missing."""
    return Finding(f"Cannot tell yet: {missing}.", "unknown", advice)


@dataclass(frozen=True, eq=False)
class Facts:
    """What the checks of a study have in common."""

    results: StudyResults

    @property
    def objective(self) -> Objective:
        """The metric."""
        return self.results.objective

    @cached_property
    def ranked(self) -> list[FrozenTrial]:
        """The complete trials within the limits that have a finite value, the best one first."""
        trials = ranking.rank_trials(self.results.last_attempts, self.objective.direction)
        return [trial for trial in trials if math.isfinite(trial.values[0])]

    @cached_property
    def best(self) -> FrozenTrial | None:
        """The best of them."""
        return self.ranked[0] if self.ranked else None

    @cached_property
    def improved(self) -> FrozenTrial | None:
        """The best trial, unless that is the baseline, or only equal to it."""
        is_equal = self.best is self.results.baseline or self.results.is_tied
        return None if is_equal else self.best

    @cached_property
    def others(self) -> list[FrozenTrial]:
        """Those besides the baseline."""
        return [trial for trial in self.ranked if not attrs.is_baseline(trial)]

    @property
    def candidate(self) -> FrozenTrial | None:
        """The best trial besides the baseline, whether or not it is better."""
        return self.others[0] if self.others else None

    def describe_candidate(self) -> str:
        """Name the candidate, and say so where the baseline is better."""
        if self.candidate is None:
            return ""
        name = f"trial {self.candidate.number}"
        return name if self.improved else f"{name}, the best plan besides the baseline"

    @cached_property
    def good(self) -> list[FrozenTrial]:
        """The best quarter of the complete trials that have a curve, four at least."""
        curved = [trial for trial in self.ranked if len(trial.intermediate_values) > 1]
        return curved[: max(4, len(curved) // 4)]

    @cached_property
    def trained(self) -> list[FrozenTrial]:
        """Complete and pruned trials, in the order of their numbers."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [
            trial
            for trial in self.results.last_attempts
            if trial.state in ended and not attrs.ended_infeasible(trial)
        ]

    @cached_property
    def diverged(self) -> list[FrozenTrial]:
        """The trials that diverged."""
        return [trial for trial in self.results.last_attempts if attrs.has_diverged(trial)]

    @cached_property
    def importances(self) -> dict[str, float]:
        """How much each parameter matters; see :func:`.parameters.importances`."""
        return importances(self.results)

    @cached_property
    def noise(self) -> Noise | None:
        """By how much good trials differ from each other by chance, where that is known."""
        return noise_of_study(self.results, self.ranked)

    def noise_to(self, first: FrozenTrial, other: FrozenTrial) -> Noise | None:
        """Return the noise of the difference of two trials."""
        return noise_between(self.results, first, other)

    def gain(self, value: float, other: float) -> float:
        """Return by how much a value is better than another one."""
        return self.objective.gain(value, other)

    def format(self, gain: float) -> str:
        """Write a gain with its unit."""
        return self.objective.format_gain(gain)
