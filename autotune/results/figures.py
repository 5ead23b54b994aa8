"""The figures of a study, as plotly draws them.

Paper and plot area are transparent, and the colours read on a light and on a dark page. They
stay apart for colour-blind readers (after Okabe and Ito 2008, "Color universal design",
https://jfly.uni-koeln.de/color/), and what a colour says, a shape or a pattern says too.

A function returns ``None`` where there is nothing to draw yet.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from autotune.config import SpaceConfig
from autotune.search.space import Space
from autotune.study import record

BLUE, ORANGE, PURPLE = "#3f88c5", "#d9822b", "#b0609f"
GREEN, RED, GREY = "#2a9d78", "#d1495b", "#8b919a"

_GRID = "rgba(128, 128, 128, 0.25)"
_AXIS = {
    "gridcolor": _GRID,
    "linecolor": GREY,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
    "ticks": "outside",
    "tickcolor": _GRID,
    # Beside each other "0.01" and "100μ" do not read as one scale.
    "exponentformat": "power",
}
THEME = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }
)
_STATES = {
    # Name of the bars of the timeline, their colour and their pattern.
    "complete": (BLUE, ""),
    "pruned": (GREY, "/"),
    "failed": (RED, "x"),
    "retried": (PURPLE, "."),
    "running": (GREEN, "\\"),
}


@dataclass(frozen=True)
class Objective:
    """What a study optimises, and how its values are written.

    Args:
        name: Name of the metric.
        direction: Whether more or less of it is better.
        decimals: Decimals of a share in percent; what one image of the validation part is worth.
    """

    name: str
    direction: StudyDirection
    decimals: int = 1

    @staticmethod
    def of(study: Study) -> Objective:
        """Read the objective of a study."""
        names = study.metric_names
        images = study.user_attrs.get(record.DATASET, {}).get("validation") or 0
        return Objective(
            names[0] if names else "objective", study.direction, 2 if images >= 1000 else 1
        )

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.direction == StudyDirection.MAXIMIZE

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share, to be written in percent."""
        return self.name in ("accuracy", "balanced_accuracy", "macro_f1")

    @property
    def words(self) -> str:
        """The name as one writes it in a sentence."""
        return self.name.replace("_", " ").replace(" f1", " F1")

    @property
    def tick_format(self) -> str:
        """How plotly is to write a value."""
        return f".{self.decimals}%" if self.is_share else ".4f"

    def show(self, value: float | None) -> str:
        """Write a value: ``84.2 %``, or ``0.5130`` where the metric is no share."""
        if value is None or not math.isfinite(value):
            return "–" if value is None or math.isnan(value) else f"{value}"
        return f"{100 * value:.{self.decimals}f} %" if self.is_share else f"{value:.4f}"

    def difference(self, value: float, other: float) -> str:
        """Write how far ``value`` lies from ``other``: ``+10.9 points``, or ``0.2900 lower``."""
        if self.is_share:
            return f"{100 * (value - other):+.{self.decimals}f} points".replace("-", "−")
        side = "lower" if value < other else "higher"
        return "no difference" if value == other else f"{abs(value - other):.4f} {side}"

    def better(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return max(values) if self.maximised else min(values)


# ---------------------------------------------------------------------------------------------
# The course of the study


def history_figure(study: Study) -> go.Figure | None:
    """Draw the value of every trial, the best so far and the baseline.

    Args:
        study: The study.
    """
    objective = Objective.of(study)
    trials = study.get_trials(deepcopy=False)
    complete = [one for one in trials if _finite(one, TrialState.COMPLETE)]
    if not complete:
        return None
    figure = _new_figure()
    pruned = [one for one in trials if _finite(one, TrialState.PRUNED)]
    for name, shown, marker in (
        ("pruned, at their last epoch", pruned, {"symbol": "x-thin", "color": GREY, "size": 7}),
        ("complete", complete, {"symbol": "circle", "color": BLUE, "size": 8}),
    ):
        if shown:
            # A thin symbol is all outline.
            outline = {"width": 1.5, "color": GREY} if shown is pruned else {"width": 0}
            figure.add_scatter(
                x=[one.number for one in shown],
                y=[one.value for one in shown],
                mode="markers",
                name=name,
                marker={**marker, "line": outline},
                customdata=[[_plan_in_words(one)] for one in shown],
                hovertemplate=_hover("trial %{x}", objective, "%{customdata[0]}"),
            )
    so_far = _running_best(complete, objective)
    last = trials[-1].number
    figure.add_scatter(
        x=[*(one.number for one in complete), last],
        y=[*so_far, so_far[-1]],
        mode="lines",
        name="best so far",
        line={"color": ORANGE, "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    baseline = record.baseline_of(trials)
    if baseline is not None:
        figure.add_scatter(
            x=[0, max(last, 1)],
            y=[baseline.value] * 2,
            mode="lines",
            name="baseline",
            line={"color": PURPLE, "width": 2, "dash": "dash"},
            hovertemplate=_hover("baseline", objective),
        )
    _label_axes(figure, "trial", objective)
    return figure


def curves_figure(study: Study) -> go.Figure | None:
    """Draw the objective of every trial after each epoch.

    Args:
        study: The study.
    """
    objective = Objective.of(study)
    trials = [one for one in study.get_trials(deepcopy=False) if one.intermediate_values]
    if not trials:
        return None
    best = record.best_of(trials, objective.direction)
    baseline = record.baseline_of(trials)
    figure = _new_figure()
    groups = (
        ("pruned", TrialState.PRUNED, {"color": GREY, "width": 0.8}, 0.7),
        ("failed", TrialState.FAIL, {"color": RED, "width": 0.8, "dash": "dot"}, 0.8),
        ("running", TrialState.RUNNING, {"color": GREEN, "width": 1.5}, 1.0),
        ("complete", TrialState.COMPLETE, {"color": BLUE, "width": 1.2}, 0.6),
    )
    for name, state, line, opacity in groups:
        shown = [one for one in trials if one.state == state and one not in (best, baseline)]
        if shown:
            _add_curves(figure, name, shown, line, objective, opacity)
    if baseline is not None:
        line = {"color": PURPLE, "width": 3, "dash": "dash"}
        _add_curves(figure, "baseline", [baseline], line, objective)
    if best is not None and best is not baseline:
        line = {"color": ORANGE, "width": 3.5}
        _add_curves(figure, f"best (trial {best.number})", [best], line, objective)
    _label_axes(figure, "epoch", objective)
    # Whole epochs only; a short training would be given ticks at halves.
    epochs = max(max(one.intermediate_values) for one in trials)
    figure.update_xaxes(range=[0.8, epochs + 0.2], dtick=1 if epochs <= 12 else None)
    return figure


def timeline_figure(study: Study) -> go.Figure | None:
    """Draw who did what when: a lane per worker, a bar per trial.

    Args:
        study: The study.
    """
    trials = [one for one in study.get_trials(deepcopy=False) if one.datetime_start]
    now = last_moment(trials)
    if now is None:
        return None
    superseded = {number for one in trials for number in record.retries(one)}
    lanes = sorted({_lane(one) for one in trials}, reverse=True)
    figure = _new_figure()
    for name, (colour, pattern) in _STATES.items():
        shown = [one for one in trials if state_in_words(one, superseded) == name]
        if not shown:
            continue
        figure.add_bar(
            base=[one.datetime_start for one in shown],
            # On a date axis the length of a bar is in milliseconds.
            x=[1000 * _duration_s(one, now) for one in shown],
            y=[_lane(one) for one in shown],
            orientation="h",
            name=name,
            marker={
                "color": colour,
                "line": {"width": 0.5, "color": "rgba(255, 255, 255, 0.8)"},
                "pattern": {"shape": pattern, "size": 6, "solidity": 0.4},
            },
            customdata=[[one.number, f"{_duration_s(one, now):.0f}"] for one in shown],
            hovertemplate=f"trial %{{customdata[0]}}, {name}<br>%{{customdata[1]}} s"
            "<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.35, height=110 + 42 * len(lanes))
    figure.update_xaxes(type="date")
    figure.update_yaxes(categoryorder="array", categoryarray=lanes, showgrid=False)
    return figure


# ---------------------------------------------------------------------------------------------
# The parameters


def importances_figure(study: Study) -> go.Figure | None:
    """Draw how much each parameter matters (PED-ANOVA, Optuna's default).

    Args:
        study: The study; it needs two complete trials that differ in value and in a parameter.
    """
    complete = [
        one for one in study.get_trials(deepcopy=False) if _finite(one, TrialState.COMPLETE)
    ]
    if len({one.value for one in complete}) < 2:
        return None
    if not any(_varies(complete, name) for name in parameter_names(study)):
        return None
    with warnings.catch_warnings():
        # Optuna warns of the one trial that has no parameters, a baseline outside the space, and
        # leaves it out, which is right.
        warnings.simplefilter("ignore", UserWarning)
        figure = optuna.visualization.plot_param_importances(study)
    if not figure.data or len(set(figure.data[0].x)) < 2 <= len(figure.data[0].x):
        return None  # Optuna's way of saying that it could not tell
    figure.update_traces(
        marker_color=BLUE,
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    figure.update_layout(
        template=THEME, title=None, showlegend=False, height=70 + 28 * len(figure.data[0].y)
    )
    top = 1.15 * max(figure.data[0].x)  # room for the number beside the longest bar
    figure.update_xaxes(title="importance", range=[0, top])
    figure.update_yaxes(title=None)
    return figure


def slice_figure(study: Study, parameter: str) -> go.Figure | None:
    """Draw the values of the complete trials over one parameter.

    Trials in which the parameter has no meaning (the units of a hidden layer that is not there)
    are left out: their inert value would look like a finding.

    Args:
        study: The study.
        parameter: Name of a searched parameter.
    """
    objective = Objective.of(study)
    space = space_of(study)
    trials = study.get_trials(deepcopy=False)
    shown = [
        one
        for one in trials
        if _finite(one, TrialState.COMPLETE) and has_meaning(space, one, parameter)
    ]
    if len(shown) < 2:
        return None
    found = shown[-1].distributions[parameter]
    best, baseline = record.best_of(trials, objective.direction), record.baseline_of(trials)
    figure = _new_figure()
    rest = [one for one in shown if one not in (best, baseline)]
    for name, group, marker in (
        ("complete", rest, {"color": BLUE, "size": 7, "opacity": 0.7}),
        ("baseline", [baseline], {"color": PURPLE, "size": 10, "symbol": "diamond"}),
        ("best", [best], {"color": ORANGE, "size": 14, "symbol": "star"}),
    ):
        members = [one for one in group if one in shown]
        if members:
            figure.add_scatter(
                x=[_shown_value(one.params[parameter], found) for one in members],
                y=[one.value for one in members],
                mode="markers",
                name=name,
                marker=marker,
                customdata=[[one.number] for one in members],
                hovertemplate=_hover(
                    "trial %{customdata[0]}", objective, f"{escape(parameter)} %{{x}}"
                ),
            )
    _label_axes(figure, escape(parameter), objective)
    figure.update_layout(showlegend=False, height=250)
    figure.update_xaxes(**_parameter_axis(found))
    return figure


def parameter_names(study: Study) -> tuple[str, ...]:
    """Return the searched parameters of a study, in the order of its space."""
    trials = study.get_trials(deepcopy=False)
    return tuple(dict.fromkeys(name for one in trials for name in one.distributions))


def space_of(study: Study) -> Space | None:
    """Return the space of a study, or ``None`` when its definition does not tell."""
    definition = study.user_attrs.get(record.DEFINITION, {})
    try:
        config = SpaceConfig.model_validate(definition["space"])
        return Space.from_config(definition["backbone"], config)
    except (KeyError, TypeError, ValidationError):
        return None  # made by another version of autotune: its trials can still be drawn


def has_meaning(space: Space | None, trial: FrozenTrial, parameter: str) -> bool:
    """Tell whether a parameter has an effect in a trial, under the trial's other parameters.

    The space decides: a parameter without meaning has the same canonical form whatever its value.

    Args:
        space: The space of the study, if it is known.
        trial: The trial.
        parameter: Name of a searched parameter.
    """
    if parameter not in trial.params:
        return False
    if space is None or set(trial.params) != set(space.distributions):
        return True
    found = space.distributions[parameter]
    if isinstance(found, CategoricalDistribution):
        ends: Sequence[Any] = (found.choices[0], found.choices[-1])
    else:
        assert isinstance(found, IntDistribution | FloatDistribution)
        ends = (found.low, found.high)
    forms = [space.canonical({**trial.params, parameter: end}) for end in ends]
    return forms[0] != forms[1]


@dataclass(frozen=True)
class Edge:
    """A parameter whose best value lies at the edge of the space.

    Args:
        parameter: Its name.
        value: The best value, in words.
        side: ``lower`` or ``upper``.
        bound: The bound of the space, in words.
        can_be_widened: Whether a study file could ask for values beyond it.
    """

    parameter: str
    value: str
    side: str
    bound: str
    can_be_widened: bool


def edges_of_space(study: Study, trial: FrozenTrial) -> tuple[Edge, ...]:
    """Find the parameters that say: look further out.

    A number is at the edge within 5 % of the range (in decades where the range is logarithmic);
    a choice among three or more numbers when it is the smallest or the largest.

    Args:
        study: The study.
        trial: Its best trial.
    """
    space = space_of(study)
    layers = len(study.user_attrs.get(record.BACKBONE, {}).get("layers", ()))
    edges = []
    for name, found in trial.distributions.items():
        if not has_meaning(space, trial, name):
            continue
        side, bound, beyond = _side(found, trial.params[name])
        if side:
            possible = _is_allowed(name, beyond) and not (name == "depth" and beyond > layers > 0)
            value = f"{trial.params[name]:.3g}"
            edges.append(Edge(name, value, side, f"{bound:.3g}", possible))
    return tuple(edges)


def _side(found: BaseDistribution, value: Any) -> tuple[str, float, float]:
    """Return the side a value is at, if any, the bound there, and a value beyond it."""
    place: Callable[[float], float] = _identity
    if isinstance(found, CategoricalDistribution):
        numbers = [one for one in found.choices if isinstance(one, int | float)]
        if len(numbers) < max(3, len(found.choices)):
            return "", 0.0, 0.0
        low, high, step = min(numbers), max(numbers), 0.0
    else:
        assert isinstance(found, IntDistribution | FloatDistribution)
        low, high = found.low, found.high
        place = math.log10 if found.log else _identity
        step = found.step or 0.0
        if found.step and (high - low) / found.step < 2:
            return "", 0.0, 0.0  # of two values one is always at the edge
    span = place(high) - place(low)
    margin = 0.0 if isinstance(found, CategoricalDistribution) else 0.05 * span
    whole = isinstance(low, int) and isinstance(high, int)
    further = max(step, 1) if whole else step or 0.1 * (high - low)
    if place(value) - place(low) <= margin:
        return "lower", low, low / 2 if place is math.log10 and not whole else low - further
    if place(high) - place(value) <= margin:
        return "upper", high, high * 2 if place is math.log10 and not whole else high + further
    return "", 0.0, 0.0


def _identity(value: float) -> float:
    return value


def _is_allowed(parameter: str, value: float) -> bool:
    """Ask the rules of the study file whether a parameter could have a value."""
    section, _, key = parameter.partition(".")
    key = key.rsplit(".", 1)[0]  # head.units.1 is the key head.units
    try:
        SpaceConfig.model_validate({section: {key: value} if key else value})
    except ValidationError:
        return False
    return True


# ---------------------------------------------------------------------------------------------
# What they share


def state_in_words(trial: FrozenTrial, superseded: Iterable[int]) -> str:
    """Name the state of a trial: ``complete``, ``pruned``, ``failed``, ``retried``, ...

    Args:
        trial: The trial.
        superseded: Numbers of the attempts that have a successor.
    """
    if trial.state == TrialState.FAIL:
        return "retried" if trial.number in superseded else "failed"
    return trial.state.name.lower()


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
    longest = max(one.duration for one in ended if one.duration)
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
    seconds = ((trial.datetime_complete or now) - trial.datetime_start).total_seconds()
    return max(seconds, 1.0)  # a bar one can see


def _lane(trial: FrozenTrial) -> str:
    return escape(str(trial.user_attrs.get(record.WORKER, "unknown worker")))


def _finite(trial: FrozenTrial, state: TrialState) -> bool:
    return trial.state == state and trial.value is not None and math.isfinite(trial.value)


def _varies(trials: Sequence[FrozenTrial], parameter: str) -> bool:
    return len({one.params[parameter] for one in trials if parameter in one.params}) > 1


def _running_best(complete: Sequence[FrozenTrial], objective: Objective) -> list[float]:
    best: list[float] = []
    for one in complete:
        assert one.value is not None
        best.append(objective.better([*best[-1:], one.value]))
    return best


def _plan_in_words(trial: FrozenTrial) -> str:
    plan = record.plan_of(trial)
    return escape(plan.in_words()) if plan else ""


def _hover(title: str, objective: Objective, *more: str) -> str:
    value = f"{objective.words} %{{y:{objective.tick_format}}}"
    return "<br>".join([title, value, *more]) + "<extra></extra>"


def _new_figure() -> go.Figure:
    return go.Figure(layout={"template": THEME, "height": 340})


def _label_axes(figure: go.Figure, x: str, objective: Objective) -> None:
    figure.update_xaxes(title=x)
    share = {"tickformat": ".0%"} if objective.is_share else {}
    figure.update_yaxes(title=escape(objective.words), **share)


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
        mode="lines+markers" if name in ("pruned", "failed", "running") else "lines",
        marker={"size": 4},
        name=name,
        line=line,
        opacity=opacity,
        hovertemplate=_hover(f"trial %{{customdata[0]}}, {name}", objective, "epoch %{x}"),
    )


def _shown_value(value: Any, found: BaseDistribution) -> Any:
    return escape(str(value)) if isinstance(found, CategoricalDistribution) else value


def _parameter_axis(found: BaseDistribution) -> dict[str, Any]:
    """Return the axis of a parameter, over the whole of its space."""
    if isinstance(found, CategoricalDistribution):
        labels = [escape(str(choice)) for choice in found.choices]
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": labels,
            "range": [-0.5, len(labels) - 0.5],
        }
    assert isinstance(found, IntDistribution | FloatDistribution)
    place: Callable[[float], float] = math.log10 if found.log else _identity
    low, high = place(found.low), place(found.high)
    room = 0.06 * (high - low)
    axis: dict[str, Any] = {"range": [low - room, high + room]}
    if found.log:
        # One label a decade: with more of them they run into each other.
        return {**axis, "type": "log", "dtick": max(1, math.ceil((high - low) / 5))}
    whole = isinstance(found, IntDistribution) and high - low <= 12
    return {**axis, "dtick": 1} if whole else axis
