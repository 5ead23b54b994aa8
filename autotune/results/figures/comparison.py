"""The figure that compares studies: their best values by trials and by device time."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from autotune.results.comparison import Comparison
from autotune.results.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, THEME, hover

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot")


def comparison_figure(comparison: Comparison) -> go.Figure:
    """Draw the best value so far of every group, by finished trials and by device time."""
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    for index, group in enumerate(comparison.groups):
        points = [point for point in group.curve if point.value is not None]
        style = {
            "color": _COLORS[index % len(_COLORS)],
            "dash": _DASHES[index // len(_COLORS) % len(_DASHES)],
            "width": 2,
            "shape": "hv",
        }
        name, objective = escape(group.label), group.results.objective
        for column, unit in ((1, "trials"), (2, "minutes")):
            figure.add_scatter(
                x=[point.trials if column == 1 else point.device_s / 60 for point in points],
                y=[point.value for point in points],
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line=style,
                hovertemplate=hover(name, objective, f"%{{x:.4g}} {unit}"),
                row=1,
                col=column,
            )
    objective = comparison.studies[0].results.objective
    figure.update_layout(template=THEME, height=460, paper_bgcolor="white")
    figure.update_xaxes(title="finished trials", col=1)
    figure.update_xaxes(title="device time in minutes", col=2)
    share = {"tickformat": ".1~%"} if objective.is_share else {}
    figure.update_yaxes(title=f"best {escape(objective.label)} so far", col=1, **share)
    return figure
