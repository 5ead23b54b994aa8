"""Figures of the losses of single trainings, training and validation beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from autotune.results.figures.style import BLUE, GREY, ORANGE, new_figure
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.state import attrs, curves

#: Best trials whose losses are drawn, besides the baseline.
BEST_DRAWN = 3
#: Room above the highest loss from the second epoch on; the first may be far above, and is cut.
_ROOM = 1.5


def trials_with_losses(results: StudyResults) -> list[FrozenTrial]:
    """Return the trials whose losses are drawn: the best ones that have them, and the baseline."""
    known = [
        trial
        for trial in ranking.rank_trials(results.trials, results.direction)
        if curves.series(_stored(trial), curves.TRAINING_LOSS)
    ]
    best = known[:BEST_DRAWN]
    return best + [trial for trial in known[BEST_DRAWN:] if trial is results.baseline]


def highest_loss(trials: Sequence[FrozenTrial]) -> float:
    """Return the upper end of an axis on which the losses of trials can be compared."""
    losses = [
        _losses(trial, name)
        for trial in trials
        for name in (curves.TRAINING_LOSS, curves.VALIDATION_LOSS)
    ]
    highest = max((loss for one in losses for loss in one.values()), default=1.0)
    later = [loss for one in losses for epoch, loss in one.items() if epoch > min(one)]
    return 1.05 * min(highest, _ROOM * max(later, default=highest))


def losses_figure(trial: FrozenTrial, highest: float | None = None) -> go.Figure | None:
    """Draw the training and the validation loss of a trial after each epoch.

    Args:
        trial: The trial.
        highest: Upper end of the axis; default: that of this trial alone.

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
    top = highest_loss([trial]) if highest is None else highest
    figure.update_yaxes(title="loss (nats)", range=[0, top], linecolor=GREY)
    return figure


def _losses(trial: FrozenTrial, name: str) -> dict[int, float]:
    return curves.series(_stored(trial), name)


def _stored(trial: FrozenTrial) -> curves.Stored:
    stored: curves.Stored = trial.user_attrs.get(attrs.CURVES, {})
    return stored
