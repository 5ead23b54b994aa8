"""The backbones of a study, and which of them won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.values.objective import Objective, format_values
from autotune.search import ranking
from autotune.study.state import attrs


@dataclass(frozen=True)
class BackboneRow:
    """A backbone.

    Args:
        name: Its name.
        mark: ``best``, ``baseline``, both or neither.
        parameters: Number of its values.
        layers: Number of its layers.
        weights: Fingerprint of its weights.
        trials: How many of its trials are complete.
        value: What the best of them reached, in words.
    """

    name: str
    mark: str
    parameters: int
    layers: int
    weights: str
    trials: int
    value: str


def backbones_of(
    study: Study, trials: Sequence[FrozenTrial], best: FrozenTrial | None
) -> list[BackboneRow]:
    """Return the backbones of a study, that of the baseline first.

    Args:
        study: The study.
        trials: Its trials.
        best: The best of them, if there is one.
    """
    objective, cost = Objective.from_study(study), Objective.cost_from_study(study)
    complete: dict[str, list[FrozenTrial]] = {}
    for one in trials:
        plan = attrs.trial_plan(one)
        if plan is not None and one.state == TrialState.COMPLETE:
            complete.setdefault(plan.backbone, []).append(one)
    rows = []
    for position, (name, facts) in enumerate(study.user_attrs.get(attrs.BACKBONES, {}).items()):
        own = complete.get(name, [])
        found = ranking.best_trial(own, attrs.metric_direction(study))
        marks = (("best", best is not None and best in own), ("baseline", not position))
        rows.append(
            BackboneRow(
                name=name,
                mark=" ".join(mark for mark, holds in marks if holds),
                parameters=int(facts["parameters"]),
                layers=len(facts["layers"]),
                weights=str(facts["weights_hash"]),
                trials=len(own),
                value=format_values(found, objective, cost)
                if found
                else objective.format_value(None),
            )
        )
    return rows
