"""Draw the Pareto front of a study of two objectives."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from optuna.trial import TrialState

from autotune.results.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    add_points,
    drawable,
    hover,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import MAX_POINTS, drawn_suffix, thin
from autotune.results.study_results import StudyResults
from autotune.search import ranking

_TICKS = {"parameters": ".3~s", "latency_ms": "", "memory_mb": ","}
_AXES = {"parameters": "parameters", "latency_ms": "latency (ms)", "memory_mb": "memory (MB)"}


def front_figure(results: StudyResults) -> go.Figure | None:
    """Draw the metric of the complete trials over their cost, and the front.

    Pruned and infeasible trials have no metric and are left out. The baseline is trained although
    it may be beyond a limit; it is marked then, and never on the front.
    """
    cost, front, baseline = results.cost, results.front, results.baseline
    complete = drawable(results.trials, TrialState.COMPLETE)
    if cost is None or not complete:
        return None
    on_front = {trial.number for trial in front}
    others = [t for t in complete if t.number not in on_front and t is not baseline]
    rest = thin(results, others, MAX_POINTS)
    suffix = drawn_suffix(len(complete) - len(others) + len(rest), len(complete))
    figure = new_figure()
    # From the cheapest to the best: what a budget buys stays the same up to the next trial.
    steps = list(reversed(front))
    dearest = max(trial.values[1] for trial in complete)
    if steps:
        figure.add_scatter(
            x=[*(trial.values[1] for trial in steps), dearest],
            y=[*(trial.values[0] for trial in steps), steps[-1].values[0]],
            mode="lines",
            name="front",
            line={"color": ORANGE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
    limit = results.definition.get("constraints", {}).get(f"max_{cost.name}")
    if limit is not None and limit <= 1.5 * dearest:
        figure.add_vline(
            x=limit,
            line={"color": GREY, "width": 1.5, "dash": "dot"},
            annotation={"text": "limit", "font": {"size": 12}},
        )
    is_beyond = baseline is not None and ranking.is_infeasible(baseline)
    title = "baseline, beyond a limit" if is_beyond else "baseline"
    diamond = {
        "symbol": "diamond-open" if is_beyond else "diamond",
        "color": PURPLE,
        "size": 11,
        "line": {"width": 2 if is_beyond else 0, "color": PURPLE},
    }
    shown = f"{escape(cost.label)} %{{customdata[1]}}", "%{customdata[2]}"
    hover_text = hover("trial %{customdata[0]}", results.objective, *shown)
    for name, trials, marker in (
        ("complete", rest, {"symbol": "circle", "color": BLUE, "size": 8}),
        ("Pareto front", front, {"symbol": "star", "color": ORANGE, "size": 13}),
        (title, [baseline] if baseline else [], diamond),
    ):
        points = []
        for trial in trials:
            plan = escape(results.describe_plan(trial))
            data = [trial.number, cost.format_value(trial.values[1]), plan]
            points.append((trial.values[1], trial.values[0], data))
        add_points(figure, name, points, marker, hover_text)
    label_axes(figure, _AXES[cost.name] + suffix, results.objective)
    figure.update_layout(height=400, showlegend=True)
    figure.update_xaxes(tickformat=_TICKS[cost.name])
    return figure
