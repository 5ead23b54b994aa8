"""Figures of the losses of single trainings, training and validation beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from autotune.results.figures.style import BLUE, ORANGE, new_figure
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.training import curves

#: Best trials whose losses are drawn, besides the baseline.
BEST_DRAWN = 3
#: Share of the lowest validation loss down to which a training loss is drawn: one that is hundreds
#: of times as low would squeeze what there is to see.
_LOWEST_DRAWN = 0.2


def trials_with_losses(results: StudyResults) -> list[FrozenTrial]:
    """Return the trials whose losses are drawn: the best ones that have them, and the baseline."""
    known = [
        trial
        for trial in ranking.rank_trials(results.trials, results.direction)
        if _losses(trial, curves.TRAINING_LOSS)
    ]
    best = known[:BEST_DRAWN]
    return best + [trial for trial in known[BEST_DRAWN:] if trial is results.baseline]


def loss_range(trials: Sequence[FrozenTrial]) -> tuple[float, float]:
    """Return the ends of an axis on which the losses of trials can be compared, in nats."""
    training, validation = (
        [loss for trial in trials for loss in _losses(trial, name).values() if loss > 0]
        for name in (curves.TRAINING_LOSS, curves.VALIDATION_LOSS)
    )
    losses = [*training, *validation] or [1.0]
    lowest = max(min(losses), _LOWEST_DRAWN * min(validation, default=0.0))
    return 0.9 * lowest, 1.1 * max(losses)


def losses_figure(trial: FrozenTrial, ends: tuple[float, float] | None = None) -> go.Figure | None:
    """Draw the training and the validation loss of a trial after each epoch.

    The axis is logarithmic: at the end of a training, losses are a small part of the first ones.

    Args:
        trial: The trial.
        ends: Ends of the axis; default: those of this trial alone.

    Returns:
        The figure; ``None`` where its losses were not recorded.
    """
    training = _losses(trial, curves.TRAINING_LOSS)
    validation = _losses(trial, curves.VALIDATION_LOSS)
    if not training:
        return None
    figure = new_figure()
    for name, losses, line in (
        ("training", training, {"color": BLUE, "width": 2, "dash": "dash"}),
        ("validation", validation, {"color": ORANGE, "width": 2.5}),
    ):
        figure.add_scatter(
            x=list(losses),
            y=list(losses.values()),
            mode="lines" if len(losses) > 1 else "markers",
            name=name,
            line=line,
            hovertemplate=f"{name} loss %{{y:.4g}}<br>epoch %{{x}}<extra></extra>",
        )
    if len(validation) > 1:
        lowest = min(validation, key=lambda epoch: validation[epoch])
        figure.add_scatter(
            x=[lowest],
            y=[validation[lowest]],
            mode="markers",
            name="lowest",
            cliponaxis=False,
            marker={
                "symbol": "circle-open",
                "color": ORANGE,
                "size": 12,
                "line": {"width": 2.5, "color": ORANGE},
            },
            hovertemplate="lowest validation loss %{y:.4g}<br>epoch %{x}<extra></extra>",
        )
    epochs = max(training)
    figure.update_layout(height=270)
    figure.update_xaxes(
        title="epoch", range=[0.8, epochs + 0.2], dtick=1 if epochs <= 12 else None
    )
    low, high = loss_range([trial]) if ends is None else ends
    figure.update_yaxes(
        type="log",
        title="loss (nats)",
        range=[math.log10(low), math.log10(high)],
        tickmode="array",
        tickvals=_ticks(low, high),
    )
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 of each decade in a range; of a wide one, 1 alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    return [tick for d in decades for step in steps if low <= (tick := step * 10.0**d) <= high]


def _losses(trial: FrozenTrial, name: str) -> dict[int, float]:
    return curves.series(trial.user_attrs.get(attrs.CURVES, {}), name)
