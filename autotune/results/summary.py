"""What came out of a study so far, in a few values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from autotune.results.picture import LayerRow, rows
from autotune.study import record
from autotune.study.opening import OpenStudy


@dataclass(frozen=True)
class Summary:
    """What came out of a study so far.

    Args:
        objective: Name of the metric that is optimised.
        progress: How many trials ended how.
        baseline: The completed baseline, or ``None``.
        best: The best completed trial, or ``None``.
        picture: Locked and tuned layers of the best plan, in the order of the network.
        reasons: Why trials failed, with how often.
    """

    objective: str
    progress: record.Progress
    baseline: FrozenTrial | None
    best: FrozenTrial | None
    picture: tuple[LayerRow, ...]
    reasons: tuple[tuple[str, int], ...]

    @property
    def gain(self) -> float | None:
        """Value of the best trial less that of the baseline."""
        if self.baseline is None or self.best is None:
            return None
        assert self.baseline.value is not None and self.best.value is not None
        return self.best.value - self.baseline.value


def summarise(opened: OpenStudy) -> Summary:
    """Summarise a study."""
    study = opened.study
    trials = study.get_trials(deepcopy=False)
    best = record.best_of(trials, study.direction)
    plan = record.plan_of(best) if best is not None else None
    superseded = {number for trial in trials for number in record.retries(trial)}
    reasons = Counter(
        trial.user_attrs.get(record.REASON, "unknown")
        for trial in trials
        if trial.state == TrialState.FAIL and trial.number not in superseded
    )
    return Summary(
        objective=(study.metric_names or ["value"])[0],
        progress=record.progress_of(trials, record.budget_of(study)),
        baseline=record.baseline_of(trials),
        best=best,
        picture=rows(study.user_attrs[record.BACKBONE]["layers"], plan) if plan else (),
        reasons=tuple(reasons.most_common()),
    )
