"""Figures of the searched parameters: how much each matters, and where it is good.

A function returns ``None`` where there is nothing to draw yet.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from html import escape
from itertools import islice
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from autotune.results.figures.style import (
    BLUE,
    ORANGE,
    PURPLE,
    add_points,
    drawable,
    hover,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import MAX_SLICE_POINTS, drawn_suffix, thin
from autotune.results.study_results import StudyResults
from autotune.results.values.parameter_words import label_parameter, parameter_words
from autotune.study.state import attrs

#: Complete trials in which a parameter must have had an effect for its importance to be shown.
MIN_ACTIVE = 5


def importances(results: StudyResults) -> dict[str, float]:
    """Measure how much each parameter matters (PED-ANOVA, Optuna's default).

    A parameter that had an effect in hardly any complete trial is left out: it would be as
    important as the parameter that activates it, such as the number of hidden layers.

    Args:
        results: The study; it needs two complete trials that differ in value and in a parameter.

    Returns:
        The importance of each parameter, the largest first; empty where it cannot be measured.
    """
    complete = drawable(results.trials, TrialState.COMPLETE)
    if len({attrs.metric_value(trial) for trial in complete}) < 2:
        return {}
    drawn = [trial for trial in complete if trial.params]
    if not any(
        len({trial.params[name] for trial in drawn if name in trial.params}) > 1
        for name in results.parameter_names
    ):
        return {}
    # Of two objectives, the importances are those of the metric.
    gain = results.objective.gain
    target = None if results.cost is None else lambda trial: gain(0.0, trial.values[0])
    with warnings.catch_warnings():
        # Optuna warns of the one trial without parameters, a baseline outside the space, and
        # leaves it out, which is right; and that a target is minimized, hence the sign.
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(results.study, target=target)
    if not shares or len(set(shares.values())) < 2 <= len(shares):
        return {}  # Optuna's way of saying that it could not tell
    enough = min(MIN_ACTIVE, len(drawn))
    active = {}
    for name, value in shares.items():
        trials = (trial for trial in drawn if results.is_active(trial, name))
        if len(list(islice(trials, enough))) == enough:
            active[name] = value
    total = sum(active.values())
    return {name: value / total for name, value in active.items()} if total else {}


def importances_figure(shares: Mapping[str, float]) -> go.Figure | None:
    """Draw how much each parameter matters, from the result of :func:`importances`."""
    if not shares:
        return None
    # Drawn here: Optuna's own figure copies all trials for every bar.
    names, values = list(shares)[::-1], list(shares.values())[::-1]
    figure = new_figure()
    figure.add_bar(
        x=values,
        y=[escape(parameter_words(name)) for name in names],
        customdata=[escape(label_parameter(name)) for name in names],
        orientation="h",
        text=[f"{value:.2f}" if value >= 0.005 else "<0.01" for value in values],
        textposition="outside",
        cliponaxis=False,
        marker={"color": BLUE},
        hovertemplate="%{customdata}: %{x:.2f}<extra></extra>",
    )
    figure.update_layout(showlegend=False, height=70 + 28 * len(names))
    top = 1.25 * max(values)  # room for the number beside the longest bar, also on a phone
    figure.update_xaxes(title="importance", range=[0, top])
    return figure


def slice_figure(results: StudyResults, parameter: str) -> go.Figure | None:
    """Draw the values of the complete trials over one parameter.

    Trials in which the parameter is inactive (the units of a hidden layer that does not exist)
    are left out: their values would look like a result. The axis of the values is the same for all
    parameters, so that the figures can be compared.
    """
    complete = drawable(results.trials, TrialState.COMPLETE)
    active = [trial for trial in complete if results.is_active(trial, parameter)]
    if len({str(trial.params[parameter]) for trial in active}) < 2:
        return None  # a single value shows nothing
    drawn = thin(results, active, MAX_SLICE_POINTS)
    distribution = drawn[-1].distributions[parameter]
    figure = new_figure()
    hover_text = hover("trial %{customdata[0]}", results.objective, f"{escape(parameter)} %{{x}}")
    best, baseline = results.best, results.baseline
    rest = [trial for trial in drawn if trial is not best and trial is not baseline]
    numbers = {trial.number for trial in drawn}
    is_text = isinstance(distribution, CategoricalDistribution)
    for name, trials, marker in (
        ("complete", rest, {"color": BLUE, "size": 7, "opacity": 0.7}),
        ("baseline", [baseline], {"color": PURPLE, "size": 10, "symbol": "diamond"}),
        ("best", [best], {"color": ORANGE, "size": 14, "symbol": "star"}),
    ):
        points = []
        for trial in trials:
            if trial is not None and trial.number in numbers:
                value: Any = trial.params[parameter]
                x = escape(str(value)) if is_text else value
                points.append((x, trial.values[0], [trial.number]))
        add_points(figure, name, points, marker, hover_text)
    words = parameter_words(parameter)
    key = "" if words == parameter else f"<br><sub>{escape(parameter)}</sub>"
    title = escape(words) + drawn_suffix(len(drawn), len(active)) + key
    label_axes(figure, title, results.objective)
    figure.update_layout(showlegend=False, height=250)
    figure.update_xaxes(**_parameter_axis(distribution))
    values = [trial.values[0] for trial in complete]
    room = 0.06 * (max(values) - min(values)) or 0.01
    figure.update_yaxes(range=[min(values) - room, max(values) + room])
    return figure


def _parameter_axis(distribution: BaseDistribution) -> dict[str, Any]:
    """Return the axis of a parameter, over the whole of its space."""
    if not isinstance(distribution, IntDistribution | FloatDistribution):
        labels = [escape(str(choice)) for choice in getattr(distribution, "choices", ())]
        return {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": labels,
            "range": [-0.5, len(labels) - 0.5],
        }
    scale: Callable[[float], float] = math.log10 if distribution.log else float
    low, high = scale(distribution.low), scale(distribution.high)
    room = 0.06 * (high - low)
    axis: dict[str, Any] = {"range": [low - room, high + room]}
    if distribution.log:
        # One label a decade: with more of them they run into each other.
        return {**axis, "type": "log", "dtick": max(1, math.ceil((high - low) / 5))}
    is_short = isinstance(distribution, IntDistribution) and high - low <= 12
    return {**axis, "dtick": 1} if is_short else axis
