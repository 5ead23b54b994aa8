"""The curves of a training, epoch by epoch, as they are stored with a trial and in checkpoints.

Lists have an entry for each epoch, ``null`` where nothing is known: studies of earlier versions
have only the metric of each epoch. Six significant digits are more than a training loss in single
precision has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.training.metrics import Metrics

TRAINING_LOSS, VALIDATION_LOSS = "training_loss", "validation_loss"
#: Standard error of the difference between the validation loss and the lowest one before.
LOSS_ERROR = "validation_loss_error"
LEARNING_RATE, SECONDS = "learning_rate", "seconds"
#: What is stored of each epoch, in the order of the columns of a table.
SERIES = (TRAINING_LOSS, VALIDATION_LOSS, LOSS_ERROR, LEARNING_RATE, SECONDS)
#: Layer -> its learning rate as a share of that of the head, where they differ.
_LAYERS = "layer_rates"
#: The last epoch in which the head alone trained, where the layers have rates of their own.
_HEAD_EPOCHS = "head_epochs"

#: Name of the curves in a checkpoint. Those of earlier versions lack it.
CHECKPOINT_KEY = "curves"

Stored = Mapping[str, Any]


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Args:
        epoch: Counted from 1.
        loss: Mean training loss per image: the cross-entropy with the labels of the policy
            (smoothed, mixed), without weight decay or L2-SP.
        metrics: Scores on the validation split, ``None`` without one (the refit).
        seconds: Wall time of the epoch, validation included.
        learning_rates: Mean learning rate of the steps by layer, the head (layer 0) first; 0 where
            a layer does not train yet. The head alone where the rates of all layers are equal.
        loss_error: Standard error of the difference between the validation loss and the lowest
            one before, see :class:`.metrics.LowestLoss`; ``None`` in the first epoch.
    """

    epoch: int
    loss: float
    metrics: Metrics | None
    seconds: float
    learning_rates: Mapping[int, float]
    loss_error: float | None = None

    @property
    def validation_loss(self) -> float | None:
        """Mean validation loss per image, in nats; ``None`` without a validation split."""
        return None if self.metrics is None else self.metrics.log_loss


def epoch_values(result: EpochResult) -> dict[str, float | None]:
    """Return what an epoch has brought, by the names of :data:`SERIES`."""
    rate = result.learning_rates[0]
    values = (result.loss, result.validation_loss, result.loss_error, rate, result.seconds)
    return dict(zip(SERIES, values, strict=True))


def add_epoch(stored: Stored, result: EpochResult) -> dict[str, Any]:
    """Return stored curves, empty before the first epoch, with those of another epoch."""
    curves = dict(stored)
    for name, value in epoch_values(result).items():
        values = list(stored.get(name, ()))
        values += [None] * (result.epoch - len(values))
        values[result.epoch - 1] = None if value is None else float(f"{value:.6g}")
        curves[name] = values
    head, *layers = result.learning_rates.items()
    rates = {str(layer): float(f"{rate / head[1]:.6g}") for layer, rate in layers if rate}
    if rates:
        curves[_LAYERS] = rates
    elif layers:
        curves[_HEAD_EPOCHS] = result.epoch
    return curves


def save_curves(stored: Stored) -> dict[str, str]:
    """Return what a checkpoint keeps of curves."""
    return {CHECKPOINT_KEY: json.dumps(stored)}


def load_curves(state: Mapping[str, Any]) -> Stored:
    """Return the curves in the state of a checkpoint; empty if it has none."""
    curves: Stored = json.loads(state.get(CHECKPOINT_KEY, "{}"))
    return curves


def has_epoch(stored: Stored, epoch: int) -> bool:
    """Tell whether an epoch is among stored curves."""
    return epoch in series(stored, TRAINING_LOSS)


def series(stored: Stored, name: str) -> dict[int, float]:
    """Return the known values of a curve by epoch, in order."""
    values = enumerate(stored.get(name, ()), start=1)
    return {epoch: float(value) for epoch, value in values if value is not None}


def layer_rates(stored: Stored) -> dict[str, dict[int, float]]:
    """Return the learning rates of the layers by epoch, where they differ from the head's."""
    head_epochs = int(stored.get(_HEAD_EPOCHS, 0))
    return {
        layer: {
            epoch: 0.0 if epoch <= head_epochs else float(f"{rate * share:.6g}")
            for epoch, rate in series(stored, LEARNING_RATE).items()
        }
        for layer, share in stored.get(_LAYERS, {}).items()
    }
