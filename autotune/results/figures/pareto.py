"""The Pareto front of a study of two objectives as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import TrialState

from autotune.results.figures.history import plan_in_words
from autotune.results.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    hover,
    is_finite,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import MOST_POINTS, count_in_words, thin
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs

_TICKS = {"parameters": ".3~s", "latency_ms": "", "memory_mb": ","}
_AXES = {"parameters": "parameters", "latency_ms": "latency (ms)", "memory_mb": "memory (MB)"}


def front_figure(study: Study | StudyResults) -> go.Figure | None:
    """Draw the metric of the complete trials over their cost, and the front.

    Trials that are pruned or infeasible are not there: they have no metric. Only the baseline is
    trained although it may be beyond a limit; it is marked, and never on the front.

    Args:
        study: The study.
    """
    results = StudyResults.from_study(study)
    objective, cost = results.objective, results.cost
    if cost is None:
        return None
    several = results.has_several_backbones
    front, baseline = results.front, results.baseline
    complete = [one for one in results.trials if is_finite(one, TrialState.COMPLETE)]
    if not complete:
        return None
    figure = new_figure()
    chosen = {one.number for one in front}
    every = [one for one in complete if one.number not in chosen and one is not baseline]
    rest = thin(results, every, MOST_POINTS)
    drawn_of = count_in_words(len(complete) - len(every) + len(rest), len(complete))
    # From the cheapest to the best: what a budget buys stays the same up to the next trial.
    steps = list(reversed(front))
    dearest = max(one.values[1] for one in complete)
    if steps:
        figure.add_scatter(
            x=[*(one.values[1] for one in steps), dearest],
            y=[*(one.values[0] for one in steps), steps[-1].values[0]],
            mode="lines",
            name="front",
            line={"color": ORANGE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
    limit = _limit_of(results.attributes, cost)
    if limit is not None and limit <= 1.5 * dearest:
        figure.add_vline(
            x=limit,
            line={"color": GREY, "width": 1.5, "dash": "dot"},
            annotation={"text": "limit", "font": {"size": 12}},
        )
    beyond = baseline is not None and ranking.is_infeasible(baseline)
    for name, shown, marker in (
        ("complete", rest, {"symbol": "circle", "color": BLUE, "size": 8}),
        ("Pareto front", front, {"symbol": "star", "color": ORANGE, "size": 13}),
        (
            "baseline, beyond a limit" if beyond else "baseline",
            [] if baseline is None else [baseline],
            {
                "symbol": "diamond-open" if beyond else "diamond",
                "color": PURPLE,
                "size": 11,
                "line": {"width": 2 if beyond else 0, "color": PURPLE},
            },
        ),
    ):
        if shown:
            figure.add_scatter(
                x=[one.values[1] for one in shown],
                y=[one.values[0] for one in shown],
                mode="markers",
                name=name,
                marker=marker,
                customdata=[
                    [one.number, cost.format_value(one.values[1]), plan_in_words(one, several)]
                    for one in shown
                ],
                hovertemplate=hover(
                    "trial %{customdata[0]}",
                    objective,
                    f"{escape(cost.label)} %{{customdata[1]}}",
                    "%{customdata[2]}",
                ),
            )
    label_axes(figure, _AXES[cost.name] + drawn_of, objective)
    figure.update_layout(height=400, showlegend=True)
    figure.update_xaxes(tickformat=_TICKS[cost.name])
    return figure


def _limit_of(attributes: Mapping[str, Any], cost: Objective) -> float | None:
    limits = attributes.get(attrs.DEFINITION, {}).get("constraints", {})
    found: float | None = limits.get(f"max_{cost.name}")
    return found
