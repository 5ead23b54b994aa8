"""What came out of a study so far, in a few values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from autotune.results.answer import ended_by, saved_by_pruning
from autotune.results.objective import Objective
from autotune.results.picture import LayerRow, rows
from autotune.study import record
from autotune.study.budget import Ending

if TYPE_CHECKING:
    from autotune.study.opening import OpenStudy


@dataclass(frozen=True)
class Summary:
    """What came out of a study so far.

    Args:
        objective: What is optimised.
        progress: How many trials ended how.
        baseline: The completed baseline, or ``None``.
        best: The best completed trial, or ``None``.
        picture: Locked and tuned layers of the best plan, in the order of the network.
        reasons: Why trials failed, with how often.
        ended: What has ended the study, or ``None``.
        saved: How many epochs pruning has saved, in words; empty when none.
    """

    objective: Objective
    progress: record.Progress
    baseline: FrozenTrial | None
    best: FrozenTrial | None
    picture: tuple[LayerRow, ...]
    reasons: tuple[tuple[str, int], ...]
    ended: Ending | None
    saved: str

    @property
    def difference(self) -> str:
        """How far the best trial lies from the baseline, in words; empty while one is missing."""
        if self.baseline is None or self.best is None:
            return ""
        if self.best is self.baseline:
            return "no trial is better"
        assert self.baseline.value is not None and self.best.value is not None
        return self.objective.difference(self.best.value, self.baseline.value)


def summarise(opened: OpenStudy) -> Summary:
    """Summarise a study."""
    study = opened.study
    trials = study.get_trials(deepcopy=False)
    best = record.best_of(trials, study.direction)
    plan = record.plan_of(best) if best is not None else None
    superseded = record.superseded(trials)
    reasons = Counter(
        trial.user_attrs.get(record.REASON, "unknown")
        for trial in trials
        if trial.state == TrialState.FAIL and trial.number not in superseded
    )
    progress = record.progress_of(trials, record.budget_of(study))
    return Summary(
        objective=Objective.of(study),
        progress=progress,
        baseline=record.baseline_of(trials),
        best=best,
        picture=rows(study.user_attrs[record.BACKBONE]["layers"], plan) if plan else (),
        reasons=tuple(reasons.most_common()),
        ended=ended_by(study, progress),
        saved=saved_by_pruning(study, trials),
    )
