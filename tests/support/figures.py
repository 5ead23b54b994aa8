"""Reading what a figure draws."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.search import ranking


def some(figure: go.Figure | None) -> go.Figure:
    assert figure is not None
    return figure


def traces(figure: go.Figure | None) -> dict[str, Any]:
    return {trace.name: trace for trace in some(figure).data}


def best_of(study: Study) -> FrozenTrial:
    best = ranking.best_trial(study.trials, study.direction)
    assert best is not None
    return best


def add(
    study: Study, params: dict[str, Any], found: dict[str, BaseDistribution], value: float
) -> FrozenTrial:
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, value=value, params=params, distributions=found)
    )
    return study.trials[-1]
