"""What the losses of a training say: whether it overfits, and whether it still learned at its end.

Overfitting shows in two curves: the training loss still falls, and the validation loss rises from
its lowest point by more than chance. Underfitting is the contrary: both still fall at the end.

Chance has two parts here. Other validation images would give another difference between two
epochs: its standard error is that of paired differences, recorded with every epoch. And a curve
jumps from epoch to epoch: by how much, its second differences tell, which a smooth trend does not
touch (Gasser, Sroka and Jennen-Steinmetz 1986, "Residual variance and residual pattern in
nonlinear regression"). The lowest of many epochs is partly luck of these jumps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from optuna.trial import FrozenTrial

from autotune.study.state import attrs
from autotune.training import curves

#: Fewest epochs whose losses are judged: three second differences tell how far a curve jumps.
MIN_EPOCHS = 5
#: Standard errors of a difference that is no chance; more of them from the lowest of all epochs,
#: which was chosen. Of 2,000 simulated trainings without a trend, at most 5 % then overfit.
_ERRORS, _ERRORS_FROM_LOWEST = 2.0, 2.5
#: Median of the absolute value of a normal variable, in standard deviations.
_MEDIAN = 0.6745
#: Share of the epochs at the end of a training that tell whether it still learned.
END = 0.2
#: Share of the loss that must fall in these epochs for more of them to be worth their time: the
#: rate, half a cosine, has 1.3 % of its sum there.
_WORTH = 0.02


@dataclass(frozen=True)
class Change:
    """By how much a loss has changed, in nats, and by how much it can by chance."""

    value: float
    chance: float

    @property
    def is_real(self) -> bool:
        """Whether it has risen by more than chance."""
        return self.value > self.chance


@dataclass(frozen=True)
class LossCurves:
    """The losses of a training by epoch.

    Args:
        training: Training loss.
        validation: Validation loss.
        errors: Standard error of the difference of a validation loss to the lowest one before.
    """

    training: Mapping[int, float]
    validation: Mapping[int, float]
    errors: Mapping[int, float]

    @staticmethod
    def from_trial(trial: FrozenTrial) -> LossCurves | None:
        """Read the losses of a trial; ``None`` where those of some epoch are not known."""
        stored = trial.user_attrs.get(attrs.CURVES, {})
        training, validation, errors = (
            curves.series(stored, name)
            for name in (curves.TRAINING_LOSS, curves.VALIDATION_LOSS, curves.LOSS_ERROR)
        )
        epochs = list(range(1, max(trial.intermediate_values, default=0) + 1))
        if not epochs or list(training) != epochs or list(validation) != epochs:
            return None
        return LossCurves(training, validation, errors)

    @property
    def last(self) -> int:
        """The last epoch."""
        return max(self.validation)

    @property
    def lowest(self) -> int:
        """The epoch with the lowest validation loss, the first among equals."""
        return min(self.validation, key=lambda epoch: self.validation[epoch])

    @property
    def end(self) -> int:
        """The epoch before the last fifth of the training."""
        return self.last - max(1, round(END * self.last))

    @property
    def rise(self) -> Change:
        """By how much the validation loss has risen from its lowest point to the end."""
        value = self.validation[self.last] - self.validation[self.lowest]
        jump = _jump(self.validation)
        luck = jump * math.sqrt(2 * math.log(self.last))  # of the lowest of these epochs
        error = math.hypot(self.errors.get(self.last, math.inf), jump)
        return Change(value, luck + _ERRORS_FROM_LOWEST * error)

    @property
    def training_fall(self) -> Change:
        """By how much the training loss has fallen since the lowest validation loss."""
        return self._fall_of_training(self.lowest)

    @property
    def overfits(self) -> bool:
        """Whether the validation loss has risen while the training loss fell."""
        return self.rise.is_real and self.training_fall.is_real

    @property
    def training_fall_at_end(self) -> Change:
        """By how much the training loss has fallen in the last fifth of the training."""
        return self._fall_of_training(self.end)

    @property
    def fall_at_end(self) -> Change:
        """By how much the validation loss has fallen in the last fifth, from the lowest before."""
        # From each lowest loss to the next, as far as errors are known: together they are at most
        # the sum.
        epoch, error = self.last, 0.0
        while epoch > self.end:
            error += self.errors.get(epoch, math.inf)
            epoch = min(range(1, epoch), key=lambda one: self.validation[one], default=0)
        before = min(loss for one, loss in self.validation.items() if one <= self.end)
        jump = _jump(self.validation)
        return Change(before - self.validation[self.last], _ERRORS * math.hypot(error, jump))

    @property
    def still_learns(self) -> bool:
        """Whether both losses still fell at the end, the validation loss by what is worth it."""
        if self.last < MIN_EPOCHS:
            return False
        fall, worth = self.fall_at_end, _WORTH * self.validation[self.end]
        return self.training_fall_at_end.is_real and fall.is_real and fall.value > worth

    def _fall_of_training(self, start: int) -> Change:
        value = self.training[start] - self.training[self.last]
        return Change(value, _ERRORS * _jump(self.training) * math.sqrt(2))


def describe_losses(trial: FrozenTrial) -> str:
    """Say in a sentence what the losses of a trial tell; empty where they are not known."""
    if attrs.is_solved(trial):
        return "The head was solved, not trained over epochs: one loss, and no curve."
    losses = LossCurves.from_trial(trial)
    if losses is None:
        return ""
    if losses.last < MIN_EPOCHS:
        return f"Cannot tell: {MIN_EPOCHS} epochs are needed, and it has {losses.last}."
    if losses.overfits:
        return f"Overfits: the validation loss was lowest after epoch {losses.lowest}."
    if losses.still_learns:
        return "Still learns at its end: both losses fall."
    if losses.rise.is_real:
        return "Got worse: the validation loss has risen, and the training loss has not fallen."
    if losses.rise.value > losses.rise.chance / 2:
        return "Cannot tell: the validation loss has risen, by no more than chance explains."
    return "Neither overfits nor still learns, beyond chance."


def _jump(curve: Mapping[int, float]) -> float:
    """Estimate the standard deviation of the jumps of a curve around its trend.

    The second half of the bends counts, three at least: where a curve falls steeply, in its first
    epochs, it bends without jumping.
    """
    steps = [later - earlier for earlier, later in pairwise(curve.values())]
    bends = [abs(later - earlier) for earlier, later in pairwise(steps)]
    late = bends[min(len(bends) // 2, max(0, len(bends) - 3)) :]
    return median(late) / _MEDIAN / math.sqrt(6) if late else math.inf
