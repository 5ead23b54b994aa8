"""The style of all figures of a study.

Paper and plot area are transparent, and the colors read on a light and on a dark page. They stay
apart for color-blind readers (after Okabe and Ito 2008, "Color universal design",
https://jfly.uni-koeln.de/color/); a shape or a pattern always says the same as a color.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from autotune.results.values.objective import Objective
from autotune.study.state import attrs

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


def new_figure() -> go.Figure:
    """Return an empty figure."""
    return go.Figure(layout={"template": THEME, "height": 340})


def label_axes(figure: go.Figure, x: str, objective: Objective) -> None:
    """Name the axes of a figure with the objective on the y axis."""
    figure.update_xaxes(title=x)
    share = {"tickformat": ".1~%"} if objective.is_share else {}
    figure.update_yaxes(title=escape(objective.label), **share)


def add_points(
    figure: go.Figure,
    name: str,
    points: Sequence[tuple[Any, Any, list[Any]]],
    marker: dict[str, Any],
    hover_text: str,
) -> None:
    """Add points as one trace; nothing where there are none."""
    if points:
        x, y, data = zip(*points, strict=True)
        figure.add_scatter(
            x=list(x),
            y=list(y),
            customdata=list(data),
            mode="markers",
            name=name,
            marker=marker,
            hovertemplate=hover_text,
        )


def hover(title: str, objective: Objective, *more: str, of: str = "y") -> str:
    """Return what plotly shows beside a point."""
    value = f"{objective.label} %{{{of}:{objective.tick_format}}}"
    return "<br>".join([title, value, *more]) + "<extra></extra>"


def drawable(trials: Iterable[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    """Return the trials in a state whose metric is finite."""
    return [
        trial
        for trial in trials
        if trial.state == state
        and (value := attrs.metric_value(trial)) is not None
        and math.isfinite(value)
    ]
