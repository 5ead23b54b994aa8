"""Figures of the course of a study: its values, its learning curves, its workers.

A function returns ``None`` where there is nothing to draw yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    add_points,
    drawable,
    hover,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import (
    MAX_BARS,
    MAX_CURVES,
    MAX_POINTS,
    drawn_suffix,
    thin,
)
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs

#: State -> color and pattern of its bars in the timeline.
_STATES = {
    "complete": (BLUE, ""),
    "pruned": (GREY, "/"),
    "failed": (RED, "x"),
    "retried": (PURPLE, "."),
    attrs.INFEASIBLE: (ORANGE, "-"),
    "running": (GREEN, "\\"),
}
#: State -> line and opacity of its learning curves.
_CURVES: dict[str, tuple[dict[str, Any], float]] = {
    "pruned": ({"color": GREY, "width": 0.8}, 0.7),
    "failed": ({"color": RED, "width": 0.8, "dash": "dot"}, 0.8),
    attrs.INFEASIBLE: ({"color": ORANGE, "width": 0.8, "dash": "dot"}, 0.8),
    "running": ({"color": GREEN, "width": 1.5}, 1.0),
    "complete": ({"color": BLUE, "width": 1.2}, 0.6),
}


def history_figure(results: StudyResults) -> go.Figure | None:
    """Draw the value of every trial, the best so far and the baseline."""
    objective = results.objective
    complete = drawable(results.trials, TrialState.COMPLETE)
    if not complete:
        return None
    pruned = drawable(results.trials, TrialState.PRUNED)
    pruned = [trial for trial in pruned if not attrs.ended_infeasible(trial)]
    # The trials at which the line of the best so far has a corner.
    corners = [trial for trial in complete if not ranking.is_infeasible(trial)]
    total = len(complete) + len(pruned)
    if total > MAX_POINTS:
        corners = _improvements(corners, objective)
        pruned = thin(results, pruned, MAX_POINTS * len(pruned) // total)
        keep = {trial.number for trial in corners}
        complete = thin(results, complete, MAX_POINTS * len(complete) // total, keep)
    figure = new_figure()
    hover_text = hover("trial %{x}", objective, "%{customdata[0]}", of="customdata[1]")
    values = [trial.values[0] for trial in complete]
    circle = {"symbol": "circle", "color": BLUE, "size": 8, "line": {"width": 0}}
    for name, trials, heights, marker in (
        ("pruned, at their last epoch", *_pruned_points(pruned, values, objective)),
        ("complete", complete, values, circle),
    ):
        points = [
            (trial.number, y, [escape(results.describe_plan(trial)), attrs.metric_value(trial)])
            for trial, y in zip(trials, heights, strict=True)
        ]
        add_points(figure, name, points, marker, hover_text)
    last = results.trials[-1].number
    if corners:
        so_far = _running_best(corners, objective)
        figure.add_scatter(
            x=[*(trial.number for trial in corners), last],
            y=[*so_far, so_far[-1]],
            mode="lines",
            name="best so far",
            line={"color": ORANGE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    if results.baseline is not None:
        figure.add_scatter(
            x=[0, max(last, 1)],
            y=[attrs.metric_value(results.baseline)] * 2,
            mode="lines",
            name="baseline",
            line={"color": PURPLE, "width": 2, "dash": "dash"},
            hovertemplate=hover("baseline", objective),
        )
    label_axes(figure, f"trial{drawn_suffix(len(complete) + len(pruned), total)}", objective)
    return figure


def _pruned_points(
    pruned: Sequence[FrozenTrial], finals: Sequence[float], objective: Objective
) -> tuple[list[FrozenTrial], list[float], dict[str, Any]]:
    """Return pruned trials with the heights at which they are drawn, and their marker.

    A trial that was pruned in its first epochs may be at a tenth of what it would have reached.
    So values far below all complete ones are drawn just below these, as triangles.
    """
    # Those within sight first: the legend has the symbol of the first.
    pruned = sorted(pruned, key=lambda trial: objective.gain(0.0, trial.values[0]))
    room = 0.5 * (max(finals) - min(finals))
    edge = min(finals) - room if objective.is_maximized else max(finals) + room
    values = [trial.values[0] for trial in pruned]
    heights = [objective.best_of([value, edge]) if room else value for value in values]
    beyond = "triangle-down-open" if objective.is_maximized else "triangle-up-open"
    symbols = [
        "x-thin" if y == value else beyond for y, value in zip(heights, values, strict=True)
    ]
    # A thin symbol is all outline.
    marker = {"color": GREY, "size": 7, "line": {"width": 1.5, "color": GREY}, "symbol": symbols}
    return pruned, heights, marker


def _running_best(complete: Sequence[FrozenTrial], objective: Objective) -> list[float]:
    values = (trial.values[0] for trial in complete)
    return list(accumulate(values, lambda best, value: objective.best_of((best, value))))


def _improvements(complete: Sequence[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    """Return the trials that were better than all before them."""
    best = _running_best(complete, objective)
    pairs = zip(complete, [None, *best], best, strict=False)
    return [trial for trial, before, after in pairs if after != before]


def curves_figure(results: StudyResults) -> go.Figure | None:
    """Draw the objective of every trial after each epoch."""
    objective = results.objective
    curved = [trial for trial in results.trials if trial.intermediate_values]
    if not curved:
        return None
    best = ranking.best_trial(curved, objective.direction)
    baseline = attrs.find_baseline(curved)
    running = {trial.number for trial in curved if trial.state == TrialState.RUNNING}
    trials = thin(results, curved, MAX_CURVES, running)
    figure = new_figure()
    for name, (line, opacity) in _CURVES.items():
        states = (name, "retried") if name == "failed" else (name,)
        group = [
            trial
            for trial in trials
            if results.state_of(trial) in states and trial is not best and trial is not baseline
        ]
        _add_curves(figure, name, group, line, objective, opacity)
    if baseline is not None:
        line = {"color": PURPLE, "width": 3, "dash": "dash"}
        _add_curves(figure, "baseline", [baseline], line, objective)
    if best is not None and best is not baseline:
        line = {"color": ORANGE, "width": 3.5}
        _add_curves(figure, f"best (trial {best.number})", [best], line, objective)
    label_axes(figure, f"epoch{drawn_suffix(len(trials), len(curved))}", objective)
    # Whole epochs only; a short training would be given ticks at halves.
    epochs = max(max(trial.intermediate_values) for trial in curved)
    figure.update_xaxes(range=[0.8, epochs + 0.2], dtick=1 if epochs <= 12 else None)
    return figure


def _add_curves(
    figure: go.Figure,
    name: str,
    trials: Sequence[FrozenTrial],
    line: dict[str, Any],
    objective: Objective,
    opacity: float = 1.0,
) -> None:
    """Add curves as one trace, with gaps between them: a trace per trial makes a page slow."""
    if not trials:
        return
    has_point = any(len(trial.intermediate_values) == 1 for trial in trials)

    def points() -> Iterator[tuple[int | None, float | None, list[int] | None]]:
        for trial in trials:
            for step, value in sorted(trial.intermediate_values.items()):
                yield step, value, [trial.number]
            yield None, None, None

    x, y, numbers = zip(*points(), strict=True)
    figure.add_scatter(
        x=list(x),
        y=list(y),
        customdata=list(numbers),
        # A trial with one value is a point, and no line: it was pruned after its first epoch, or
        # its head was solved.
        mode="lines+markers" if name == "pruned" or has_point else "lines",
        marker={"size": 4 if len(trials) > 1 else 9},
        name=name,
        line=line,
        opacity=opacity,
        hovertemplate=hover(f"trial %{{customdata[0]}}, {name}", objective, "epoch %{x}"),
    )


def timeline_figure(results: StudyResults) -> go.Figure | None:
    """Draw who trained what when: a lane per worker, a bar per trial."""
    started = [trial for trial in results.trials if trial.datetime_start]
    now = last_moment(started)
    if now is None:
        return None
    # The last ones without a gap: with every tenth, workers would look idle.
    running = [trial for trial in started[:-MAX_BARS] if trial.state == TrialState.RUNNING]
    trials = [*running, *started[-MAX_BARS:]]
    begin = min(trial.datetime_start for trial in trials if trial.datetime_start)
    visible_s = (now - begin).total_seconds() / 500  # a bar wide enough to be seen
    lanes = sorted({_lane(trial) for trial in trials}, reverse=True)
    figure = new_figure()
    for name, (color, pattern) in _STATES.items():
        group = [trial for trial in trials if results.state_of(trial) == name]
        if not group:
            continue
        seconds = [_duration_s(trial, now) for trial in group]
        figure.add_bar(
            base=[trial.datetime_start for trial in group],
            # On a date axis the length of a bar is in milliseconds.
            x=[1000 * max(visible_s, duration) for duration in seconds],
            y=[_lane(trial) for trial in group],
            orientation="h",
            name=name,
            marker={
                "color": color,
                "line": {"width": 0.5, "color": "rgba(255, 255, 255, 0.8)"},
                "pattern": {"shape": pattern, "size": 6, "solidity": 0.4},
            },
            customdata=[
                [trial.number, f"{duration:.3g}"]
                for trial, duration in zip(group, seconds, strict=True)
            ],
            hovertemplate=f"trial %{{customdata[0]}}, {name}<br>%{{customdata[1]}} s"
            "<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.35, height=110 + 42 * len(lanes))
    suffix = drawn_suffix(len(trials), len(started))
    newest = f"; the newest trials{suffix}" if suffix else ""
    # Optuna stamps trials with local times, without a zone.
    figure.update_xaxes(type="date", title=f"time ({now.astimezone():%Z}){newest}")
    figure.update_yaxes(categoryorder="array", categoryarray=lanes, showgrid=False)
    return figure


def last_moment(trials: Sequence[FrozenTrial]) -> datetime | None:
    """Return the last known moment of a study; running trials are drawn up to there.

    That is the present while a running trial can be alive: it started at most five times the
    longest trial ago, as in Optuna's own timeline. The report of a study that died a week ago
    must not show it at work since.

    Returns:
        The moment, or ``None`` when no trial has ended yet.
    """
    durations = [trial.duration for trial in trials if trial.duration is not None]
    if not durations:
        return None
    now = datetime.now()  # as Optuna stamps trials: local, without a zone
    stamps = []
    for trial in trials:
        start = trial.datetime_start
        stamps += [stamp for stamp in (start, trial.datetime_complete) if start and stamp]
        if trial.state == TrialState.RUNNING and start and now - start < 5 * max(durations):
            stamps.append(now)
    return max(stamps)


def _duration_s(trial: FrozenTrial, now: datetime) -> float:
    begin = trial.datetime_start or now
    return max(0.0, ((trial.datetime_complete or now) - begin).total_seconds())


def _lane(trial: FrozenTrial) -> str:
    return escape(str(trial.user_attrs.get(attrs.WORKER, "unknown worker")))
