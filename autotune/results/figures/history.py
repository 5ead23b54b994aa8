"""The course of a study as figures: its values, its learning curves, its workers.

A function returns ``None`` where there is nothing to draw yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    hover,
    is_finite,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import (
    MOST_BARS,
    MOST_CURVES,
    MOST_POINTS,
    count_in_words,
    thin,
)
from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.search import ranking
from autotune.study.state import attrs

_STATES = {
    # Name of the bars of the timeline, their colour and their pattern.
    "complete": (BLUE, ""),
    "pruned": (GREY, "/"),
    "failed": (RED, "x"),
    "retried": (PURPLE, "."),
    attrs.INFEASIBLE: (ORANGE, "-"),
    "running": (GREEN, "\\"),
}


def history_figure(study: Study | StudyResults) -> go.Figure | None:
    """Draw the value of every trial, the best so far and the baseline.

    Args:
        study: The study.
    """
    results = StudyResults.from_study(study)
    objective, trials = results.objective, results.trials
    several = results.has_several_backbones
    complete = [one for one in trials if is_finite(one, TrialState.COMPLETE)]
    if not complete:
        return None
    figure = new_figure()
    allowed = [one for one in complete if not ranking.is_infeasible(one)]
    pruned = [
        one
        for one in trials
        if is_finite(one, TrialState.PRUNED) and not attrs.ended_infeasible(one)
    ]
    total = len(complete) + len(pruned)
    if total > MOST_POINTS:
        allowed = _improvements(allowed, objective)
        improved = {one.number for one in allowed}
        pruned = thin(results, pruned, MOST_POINTS * len(pruned) // total)
        complete = thin(results, complete, MOST_POINTS * len(complete) // total, improved)
    drawn_of = count_in_words(len(complete) + len(pruned), total)
    # Those within sight first: the legend has the symbol of the first.
    pruned = _nearest_first(pruned, objective)
    values = [value for one in pruned if (value := attrs.metric_value(one)) is not None]
    nearer = _up_to_sight(values, [one.values[0] for one in complete], objective)
    # A thin symbol is all outline.
    crosses = {"color": GREY, "size": 7, "line": {"width": 1.5, "color": GREY}}
    beyond = "triangle-down-open" if objective.is_maximized else "triangle-up-open"
    crosses["symbol"] = [
        "x-thin" if drawn == value else beyond for drawn, value in zip(nearer, values, strict=True)
    ]
    for name, shown, drawn, marker in (
        ("pruned, at their last epoch", pruned, nearer, crosses),
        (
            "complete",
            complete,
            [one.values[0] for one in complete],
            {"symbol": "circle", "color": BLUE, "size": 8, "line": {"width": 0}},
        ),
    ):
        if shown:
            figure.add_scatter(
                x=[one.number for one in shown],
                y=drawn,
                mode="markers",
                name=name,
                marker=marker,
                customdata=[
                    [plan_in_words(one, several), attrs.metric_value(one)] for one in shown
                ],
                hovertemplate=hover(
                    "trial %{x}", objective, "%{customdata[0]}", of="customdata[1]"
                ),
            )
    last = trials[-1].number
    if allowed:
        so_far = _running_best(allowed, objective)
        figure.add_scatter(
            x=[*(one.number for one in allowed), last],
            y=[*so_far, so_far[-1]],
            mode="lines",
            name="best so far",
            line={"color": ORANGE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    baseline = results.baseline
    if baseline is not None:
        figure.add_scatter(
            x=[0, max(last, 1)],
            y=[attrs.metric_value(baseline)] * 2,
            mode="lines",
            name="baseline",
            line={"color": PURPLE, "width": 2, "dash": "dash"},
            hovertemplate=hover("baseline", objective),
        )
    label_axes(figure, f"trial{drawn_of}", objective)
    return figure


def _nearest_first(pruned: Sequence[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    sign = -1.0 if objective.is_maximized else 1.0
    return sorted(pruned, key=lambda one: sign * (attrs.metric_value(one) or 0.0))


def _up_to_sight(
    values: Sequence[float], complete: Sequence[float], objective: Objective
) -> list[float]:
    """Bring values that are far worse than all complete ones near enough to tell these apart.

    A trial that was pruned in its first epochs may be at a tenth of what it would have reached.
    """
    room = 0.5 * (max(complete) - min(complete))
    if room == 0:
        return list(values)
    if objective.is_maximized:
        return [max(value, min(complete) - room) for value in values]
    return [min(value, max(complete) + room) for value in values]


def curves_figure(study: Study | StudyResults) -> go.Figure | None:
    """Draw the objective of every trial after each epoch.

    Args:
        study: The study.
    """
    results = StudyResults.from_study(study)
    objective = results.objective
    curved = [one for one in results.trials if one.intermediate_values]
    if not curved:
        return None
    best = ranking.best_trial(curved, objective.direction)
    baseline = attrs.find_baseline(curved)
    running = {one.number for one in curved if one.state == TrialState.RUNNING}
    trials = thin(results, curved, MOST_CURVES, running)
    figure = new_figure()
    groups = (
        ("pruned", {"color": GREY, "width": 0.8}, 0.7),
        ("failed", {"color": RED, "width": 0.8, "dash": "dot"}, 0.8),
        (attrs.INFEASIBLE, {"color": ORANGE, "width": 0.8, "dash": "dot"}, 0.8),
        ("running", {"color": GREEN, "width": 1.5}, 1.0),
        ("complete", {"color": BLUE, "width": 1.2}, 0.6),
    )
    for name, line, opacity in groups:
        shown = [
            one
            for one in trials
            # Without regard to successors: an attempt that was given back has failed.
            if describe_state(one, ()) == name and one is not best and one is not baseline
        ]
        if shown:
            _add_curves(figure, name, shown, line, objective, opacity)
    if baseline is not None:
        line = {"color": PURPLE, "width": 3, "dash": "dash"}
        _add_curves(figure, "baseline", [baseline], line, objective)
    if best is not None and best is not baseline:
        line = {"color": ORANGE, "width": 3.5}
        _add_curves(figure, f"best (trial {best.number})", [best], line, objective)
    label_axes(figure, f"epoch{count_in_words(len(trials), len(curved))}", objective)
    # Whole epochs only; a short training would be given ticks at halves.
    epochs = max(max(one.intermediate_values) for one in curved)
    figure.update_xaxes(range=[0.8, epochs + 0.2], dtick=1 if epochs <= 12 else None)
    return figure


def timeline_figure(study: Study | StudyResults) -> go.Figure | None:
    """Draw who did what when: a lane per worker, a bar per trial.

    Args:
        study: The study.
    """
    results = StudyResults.from_study(study)
    started = [one for one in results.trials if one.datetime_start]
    now = last_moment(started)
    if now is None:
        return None
    # The last ones without a gap: with every tenth, workers would look idle.
    running = [one for one in started[:-MOST_BARS] if one.state == TrialState.RUNNING]
    trials = [*running, *started[-MOST_BARS:]]
    begin = min(one.datetime_start for one in trials if one.datetime_start)
    least = (now - begin).total_seconds() / 500  # a bar one can see
    superseded = results.superseded
    lanes = sorted({_lane(one) for one in trials}, reverse=True)
    figure = new_figure()
    for name, (colour, pattern) in _STATES.items():
        shown = [one for one in trials if describe_state(one, superseded) == name]
        if not shown:
            continue
        figure.add_bar(
            base=[one.datetime_start for one in shown],
            # On a date axis the length of a bar is in milliseconds.
            x=[1000 * max(least, _duration_s(one, now)) for one in shown],
            y=[_lane(one) for one in shown],
            orientation="h",
            name=name,
            marker={
                "color": colour,
                "line": {"width": 0.5, "color": "rgba(255, 255, 255, 0.8)"},
                "pattern": {"shape": pattern, "size": 6, "solidity": 0.4},
            },
            customdata=[[one.number, f"{_duration_s(one, now):.3g}"] for one in shown],
            hovertemplate=f"trial %{{customdata[0]}}, {name}<br>%{{customdata[1]}} s"
            "<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.35, height=110 + 42 * len(lanes))
    figure.update_xaxes(type="date")
    if drawn_of := count_in_words(len(trials), len(started)):
        figure.update_xaxes(title=f"the newest trials{drawn_of}")
    figure.update_yaxes(categoryorder="array", categoryarray=lanes, showgrid=False)
    return figure


def describe_state(trial: FrozenTrial, superseded: Iterable[int]) -> str:
    """Name the state of a trial: ``complete``, ``pruned``, ``infeasible``, ``failed``, ...

    Args:
        trial: The trial.
        superseded: Numbers of the attempts that have a successor.
    """
    if trial.state == TrialState.FAIL:
        return "retried" if trial.number in superseded else "failed"
    return attrs.INFEASIBLE if attrs.ended_infeasible(trial) else trial.state.name.lower()


def last_moment(trials: Sequence[FrozenTrial]) -> datetime | None:
    """Return when a study was last heard of; running trials are drawn up to there.

    That is the present while a running trial can be alive: it started at most five times the
    longest trial ago, as Optuna's own timeline has it. A report of a study that died a week ago
    must not show it at work since.

    Args:
        trials: The trials of the study.

    Returns:
        The moment, or ``None`` when no trial has ended yet.
    """
    ended = [one for one in trials if one.datetime_start and one.datetime_complete]
    if not ended:
        return None
    longest = max(one.duration for one in ended if one.duration is not None)
    now = datetime.now()  # as Optuna stamps trials: local, without a zone
    starts = [one.datetime_start for one in trials if one.datetime_start]
    alive = any(
        one.state == TrialState.RUNNING
        and one.datetime_start is not None
        and now - one.datetime_start < 5 * longest
        for one in trials
    )
    stamps = [*starts, *(one.datetime_complete for one in ended if one.datetime_complete)]
    return max([*stamps, now] if alive else stamps)


def _duration_s(trial: FrozenTrial, now: datetime) -> float:
    assert trial.datetime_start is not None
    return max(0.0, ((trial.datetime_complete or now) - trial.datetime_start).total_seconds())


def _lane(trial: FrozenTrial) -> str:
    return escape(str(trial.user_attrs.get(attrs.WORKER, "unknown worker")))


def _improvements(complete: Sequence[FrozenTrial], objective: Objective) -> list[FrozenTrial]:
    """Return the trials that were better than all before them."""
    found: list[FrozenTrial] = []
    for one, best in zip(complete, _running_best(complete, objective), strict=True):
        if not found or best != found[-1].values[0]:
            found.append(one)
    return found


def _running_best(complete: Sequence[FrozenTrial], objective: Objective) -> list[float]:
    best: list[float] = []
    for one in complete:
        value = attrs.metric_value(one)
        assert value is not None
        best.append(objective.best_of([*best[-1:], value]))
    return best


def plan_in_words(trial: FrozenTrial, named: bool) -> str:
    """Return the plan of a trial in words, as HTML.

    Args:
        trial: The trial.
        named: Whether the plan is to name its backbone.
    """
    plan = attrs.trial_plan(trial)
    return escape(plan.describe(named)) if plan else ""


def _add_curves(
    figure: go.Figure,
    name: str,
    trials: Sequence[FrozenTrial],
    line: dict[str, Any],
    objective: Objective,
    opacity: float = 1.0,
) -> None:
    """Add curves as one trace, with gaps between them: a trace per trial makes a page slow."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[list[int] | None] = []
    for one in trials:
        steps = sorted(one.intermediate_values)
        x += [*steps, None]
        y += [*(one.intermediate_values[step] for step in steps), None]
        numbers += [*([one.number] for _ in steps), None]
    figure.add_scatter(
        x=x,
        y=y,
        customdata=numbers,
        # A trial that was pruned after its first epoch is a point, and no line.
        mode="lines" if name.startswith(("complete", "baseline", "best")) else "lines+markers",
        marker={"size": 4},
        name=name,
        line=line,
        opacity=opacity,
        hovertemplate=hover(f"trial %{{customdata[0]}}, {name}", objective, "epoch %{x}"),
    )
