"""What the losses of a training say, where the truth is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from optuna.trial import FrozenTrial, create_trial

from autotune.results.diagnosis.loss_curves import LossCurves, describe_losses
from autotune.study.state import attrs
from tests.support.study.studies import curves_of

FALLING = [1.0, 0.7, 0.5, 0.4, 0.32, 0.26, 0.21, 0.17, 0.14, 0.12]
SETTLED = [1.0, 0.8, 0.7, 0.65, 0.63, 0.62, 0.615, 0.612, 0.611, 0.6105]
RISING = [1.0, 0.7, 0.6, 0.62, 0.66, 0.7, 0.74, 0.78, 0.82, 0.86]


def trial_with(
    training: Sequence[float], validation: Sequence[float], error: float
) -> FrozenTrial:
    values = dict.fromkeys(range(1, len(training) + 1), 0.5)
    return create_trial(
        value=0.5,
        intermediate_values=values,
        user_attrs={attrs.CURVES: curves_of(training, validation, error)},
    )


@pytest.mark.parametrize(
    ("training", "validation", "error", "text"),
    [
        (FALLING, RISING, 0.02, "Overfits: the validation loss was lowest after epoch 3."),
        (FALLING, RISING, 0.2, "Cannot tell: the validation loss has risen, by no more"),
        (RISING, RISING, 0.02, "Got worse: the validation loss has risen, and the training"),
        (FALLING, FALLING, 0.004, "Still learns at its end: both losses fall."),
        (FALLING, FALLING, 0.1, "Neither overfits nor still learns"),
        (FALLING, SETTLED, 0.0001, "Neither overfits nor still learns"),  # by too little
        (SETTLED, FALLING[:4] + RISING[3:9], 0.01, "Overfits: .* after epoch 4"),
        (FALLING[:4], RISING[:4], 0.01, "Cannot tell: 5 epochs are needed, and it has 4."),
    ],
)
def test_what_losses_say(
    training: list[float], validation: list[float], error: float, text: str
) -> None:
    said = describe_losses(trial_with(training, validation, error))
    assert re.match(text, said), said


def test_losses_that_are_not_all_known() -> None:
    whole = trial_with(FALLING, RISING, 0.02)
    assert describe_losses(create_trial(value=0.5, intermediate_values={1: 0.5})) == ""
    stored = whole.user_attrs[attrs.CURVES]
    gap = {**stored, "training_loss": [None, *stored["training_loss"][1:]]}
    epochs = whole.intermediate_values
    part = create_trial(value=0.5, intermediate_values=epochs, user_attrs={attrs.CURVES: gap})
    assert LossCurves.from_trial(part) is None and describe_losses(part) == ""


@pytest.mark.parametrize("epochs", [5, 12, 40])
@pytest.mark.parametrize(
    "trend",
    [lambda share: 0 * share, lambda share: np.exp(-6 * share)],
    ids=["flat", "settled"],
)
def test_chance_is_seldom_taken_for_overfitting(
    epochs: int, trend: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Curves that jump, of networks whose losses drift on 300 images, without any trend."""
    rng, count, error, jump = np.random.default_rng(0), 300, 0.02, 0.01
    steps = np.arange(1, epochs + 1)
    overfit = 0
    for _ in range(count):
        drift = np.cumsum(rng.normal(0, error, epochs))
        losses = 0.5 + trend(steps / epochs) + drift + rng.normal(0, jump, epochs)
        lowest = [int(losses[:epoch].argmin()) for epoch in range(1, epochs)]
        errors = [error * (epoch - low) ** 0.5 for epoch, low in enumerate(lowest, start=1)]
        training = 1 - 0.5 * steps / epochs
        curves = (dict(enumerate(map(float, one), start=1)) for one in (training, losses))
        overfit += LossCurves(*curves, dict(enumerate(errors, start=2))).overfits
    assert overfit <= 0.05 * count
