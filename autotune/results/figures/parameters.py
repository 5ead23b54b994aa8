"""The searched parameters of a study as figures: how much each matters, and where it is good.

A function returns ``None`` where there is nothing to draw yet.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
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
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.style import (
    BLUE,
    ORANGE,
    PURPLE,
    hover,
    is_finite,
    label_axes,
    new_figure,
)
from autotune.results.figures.thinning import MOST_SLICE_POINTS, count_in_words, thin
from autotune.results.study_results import StudyResults
from autotune.search import space as search_space
from autotune.search.space import Space
from autotune.study.state import attrs

#: In so many complete trials a parameter had an effect whose importance is shown.
EFFECTIVE = 5


def importances(study: Study | StudyResults) -> dict[str, float]:
    """Measure how much each parameter matters (PED-ANOVA, Optuna's default).

    A parameter that had an effect in hardly any complete trial is left out: it would be as
    important as the one that gives it an effect, such as the number of hidden layers.

    Args:
        study: The study; it needs two complete trials that differ in value and in a parameter.

    Returns:
        The importance of each parameter, the largest first; nothing where it cannot be told.
    """
    results = StudyResults.from_study(study)
    complete = [one for one in results.trials if is_finite(one, TrialState.COMPLETE)]
    if len({attrs.metric_value(one) for one in complete}) < 2:
        return {}
    if not any(_varies(complete, name) for name in results.parameter_names):
        return {}
    with warnings.catch_warnings():
        # Optuna warns of the one trial that has no parameters, a baseline outside the space, and
        # leaves it out, which is right; and that a target is minimised, which the sign sees to.
        warnings.simplefilter("ignore", UserWarning)
        target = _metric_to_minimise(results)
        found = optuna.importance.get_param_importances(results.study, target=target)
    if not found or len(set(found.values())) < 2 <= len(found):
        return {}  # Optuna's way of saying that it could not tell
    space, drawn = results.space, [one for one in complete if one.params]
    known = {name: value for name, value in found.items() if _has_effect(space, drawn, name)}
    total = sum(known.values())
    return {name: value / total for name, value in known.items()} if total else {}


def _has_effect(space: Space | None, trials: Sequence[FrozenTrial], name: str) -> bool:
    """Tell whether a parameter had an effect in enough trials, in all where they are few."""
    enough = min(EFFECTIVE, len(trials))
    effective = (one for one in trials if is_active(space, one, name))
    return sum(1 for _ in islice(effective, enough)) == enough


def importances_figure(
    study: Study | StudyResults, found: Mapping[str, float] | None = None
) -> go.Figure | None:
    """Draw how much each parameter matters.

    Args:
        study: The study.
        found: Its :func:`importances`, where they are at hand.
    """
    found = importances(study) if found is None else found
    if not found:
        return None
    # Drawn here: Optuna's own figure copies all trials for every bar.
    names, values = list(found)[::-1], list(found.values())[::-1]
    figure = new_figure()
    figure.add_bar(
        x=values,
        y=[escape(name) for name in names],
        orientation="h",
        text=[f"{value:.2f}" if value >= 0.005 else "<0.01" for value in values],
        textposition="outside",
        cliponaxis=False,
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    figure.update_layout(showlegend=False, height=70 + 28 * len(names))
    top = 1.15 * max(values)  # room for the number beside the longest bar
    figure.update_xaxes(title="importance", range=[0, top])
    return figure


def slice_figure(study: Study | StudyResults, parameter: str) -> go.Figure | None:
    """Draw the values of the complete trials over one parameter.

    Trials in which the parameter has no meaning (the units of a hidden layer that is not there)
    are left out: their inert value would look like a finding.

    Args:
        study: The study.
        parameter: Name of a searched parameter.
    """
    results = StudyResults.from_study(study)
    objective, space = results.objective, results.space
    meant = [
        one
        for one in results.trials
        if is_finite(one, TrialState.COMPLETE) and is_active(space, one, parameter)
    ]
    if len(meant) < 2:
        return None
    shown = thin(results, meant, MOST_SLICE_POINTS)
    numbers = {one.number for one in shown}
    found = shown[-1].distributions[parameter]
    best, baseline = results.best, results.baseline
    figure = new_figure()
    rest = [one for one in shown if one is not best and one is not baseline]
    for name, group, marker in (
        ("complete", rest, {"color": BLUE, "size": 7, "opacity": 0.7}),
        ("baseline", [baseline], {"color": PURPLE, "size": 10, "symbol": "diamond"}),
        ("best", [best], {"color": ORANGE, "size": 14, "symbol": "star"}),
    ):
        members = [one for one in group if one is not None and one.number in numbers]
        if members:
            figure.add_scatter(
                x=[_shown_value(one.params[parameter], found) for one in members],
                y=[attrs.metric_value(one) for one in members],
                mode="markers",
                name=name,
                marker=marker,
                customdata=[[one.number] for one in members],
                hovertemplate=hover(
                    "trial %{customdata[0]}", objective, f"{escape(parameter)} %{{x}}"
                ),
            )
    drawn_of = count_in_words(len(shown), len(meant))
    label_axes(figure, escape(parameter) + drawn_of, objective)
    figure.update_layout(showlegend=False, height=250)
    figure.update_xaxes(**_parameter_axis(found))
    return figure


def parameter_names(study: Study | StudyResults) -> tuple[str, ...]:
    """Return the searched parameters of a study, in the order of its space."""
    return StudyResults.from_study(study).parameter_names


def space_of(study: Study | StudyResults) -> Space | None:
    """Return the space that a study remembers, or ``None`` when it cannot be read."""
    return StudyResults.from_study(study).space


def is_active(space: Space | None, trial: FrozenTrial, parameter: str) -> bool:
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
    if not space.limits and parameter != "inherit":
        # The same as below at a fiftieth of the time: what a parameter means does not depend on
        # its own value, and equal values have equal forms.
        values_of_trial = {**space.fixed, **trial.params}
        return not found.single() and search_space.is_active(parameter, values_of_trial)
    if isinstance(found, CategoricalDistribution):
        values: Sequence[Any] = found.choices  # to a backbone, some of them may mean the same
    else:
        assert isinstance(found, IntDistribution | FloatDistribution)
        values = (found.low, found.high)
    first, *others = (space.canonical({**trial.params, parameter: value}) for value in values)
    return any(form != first for form in others)


def _metric_to_minimise(results: StudyResults) -> Callable[[FrozenTrial], float] | None:
    """Return what importances are of in a study of two objectives: the metric alone."""
    if results.cost is None:
        return None
    sign = -1.0 if results.objective.is_maximized else 1.0
    return lambda trial: sign * trial.values[0]


def _varies(trials: Sequence[FrozenTrial], parameter: str) -> bool:
    return len({one.params[parameter] for one in trials if parameter in one.params}) > 1


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
    place: Callable[[float], float] = math.log10 if found.log else float
    low, high = place(found.low), place(found.high)
    room = 0.06 * (high - low)
    axis: dict[str, Any] = {"range": [low - room, high + room]}
    if found.log:
        # One label a decade: with more of them they run into each other.
        return {**axis, "type": "log", "dtick": max(1, math.ceil((high - low) / 5))}
    whole = isinstance(found, IntDistribution) and high - low <= 12
    return {**axis, "dtick": 1} if whole else axis
