"""What came out of a study so far, in a few values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from autotune.results.diagnosis.headline import ended_by
from autotune.results.diagnosis.savings import saved_by_pruning
from autotune.results.figures.layer_diagram import LayerRow, layer_rows
from autotune.results.values.objective import Objective
from autotune.results.values.pareto_front import closest_to_feasible, front_of
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


@dataclass(frozen=True)
class Summary:
    """What came out of a study so far.

    Args:
        objective: What is optimised.
        progress: How many trials ended how.
        baseline: The completed baseline, or ``None``.
        best: The best completed trial, or ``None``.
        picture: Frozen and trainable layers of the best plan, in the order of the network.
        reasons: Why trials failed, with how often.
        ended: What has ended the study, or ``None``.
        saved: How many epochs pruning has saved, in words; empty when none.
        several: Whether the study has several backbones.
        cost: The second objective, or ``None``.
        front: Of two objectives the Pareto front, from the best metric to the lowest cost.
        nearest: Of the plans beyond the limits the one that is so by the least, or ``None``.
    """

    objective: Objective
    progress: attrs.Progress
    baseline: FrozenTrial | None
    best: FrozenTrial | None
    picture: tuple[LayerRow, ...]
    reasons: tuple[tuple[str, int], ...]
    ended: StopReason | None
    saved: str
    several: bool = False
    cost: Objective | None = None
    front: tuple[FrozenTrial, ...] = ()
    closest_to_feasible: FrozenTrial | None = None

    @property
    def difference(self) -> str:
        """How far the best trial lies from the baseline, in words; empty while one is missing."""
        if self.baseline is None or self.best is None:
            return ""
        if self.best is self.baseline:
            return "no trial is better"
        differences = [
            self.objective.format_difference(self.best.values[0], self.baseline.values[0])
        ]
        if self.cost is not None:
            differences.append(
                self.cost.format_difference(self.best.values[1], self.baseline.values[1])
            )
        return ", ".join(differences)


def summarise(opened: OpenStudy) -> Summary:
    """Summarise a study."""
    study = opened.study
    attributes = study.user_attrs
    trials = study.get_trials(deepcopy=False)
    best = ranking.best_trial(trials, attrs.metric_direction(study))
    plan = attrs.trial_plan(best) if best is not None else None
    superseded = attrs.retried_numbers(trials)
    reasons = Counter(
        trial.user_attrs.get(attrs.REASON, "unknown")
        for trial in trials
        if trial.state == TrialState.FAIL and trial.number not in superseded
    )
    progress = attrs.count_progress(trials, attrs.trial_budget(study))
    return Summary(
        objective=Objective.from_study(study),
        progress=progress,
        baseline=attrs.find_baseline(trials),
        best=best,
        picture=layer_rows(attrs.backbone_layers(attributes, plan), plan) if plan else (),
        reasons=tuple(reasons.most_common()),
        ended=ended_by(study, progress),
        saved=saved_by_pruning(study, trials),
        several=attrs.has_several_backbones(attributes),
        cost=Objective.cost_from_study(study),
        front=tuple(front_of(study)),
        closest_to_feasible=closest_to_feasible(trials),
    )
