"""The stored curves of a training: one entry an epoch, whatever was stored before."""

from __future__ import annotations

import json

from autotune.training import curves
from autotune.training.curves import EpochResult
from autotune.training.metrics import Metrics


def result(epoch: int, rates: dict[int, float] | None = None, judged: bool = True) -> EpochResult:
    metrics = Metrics(0.5, 0.5, 0.5, 0.25 * epoch) if judged else None
    error = 0.01 if judged and epoch > 1 else None
    return EpochResult(epoch, 1 / (2 + epoch), metrics, 1.5, rates or {0: 0.01 / epoch}, error)


def test_every_epoch_has_an_entry() -> None:
    stored: curves.Stored = {}
    for epoch in (1, 2):
        assert not curves.has_epoch(stored, epoch)
        stored = json.loads(json.dumps(curves.add_epoch(stored, result(epoch))))
    assert stored == {
        "training_loss": [0.333333, 0.25],
        "validation_loss": [0.25, 0.5],
        "validation_loss_error": [None, 0.01],
        "learning_rate": [0.01, 0.005],
        "seconds": [1.5, 1.5],
    }
    assert curves.add_epoch(stored, result(2)) == stored


def test_epochs_of_an_earlier_version_are_unknown() -> None:
    stored = curves.add_epoch({}, result(3))
    assert curves.series(stored, curves.TRAINING_LOSS) == {3: 0.2}
    assert [curves.has_epoch(stored, epoch) for epoch in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        False,
    ]
    later = curves.add_epoch(stored, result(1))  # trained again
    assert curves.series(later, curves.TRAINING_LOSS) == {1: 0.333333, 3: 0.2}
    assert curves.series({}, curves.SECONDS) == {}


def test_a_refit_has_no_validation() -> None:
    stored = curves.add_epoch({}, result(1, judged=False))
    assert curves.series(stored, curves.VALIDATION_LOSS) == {}
    assert curves.has_epoch(stored, 1)


def test_layers_with_rates_of_their_own() -> None:
    stored: curves.Stored = {}
    for epoch, layers in ((1, (0.0, 0.0)), (2, (0.5, 0.25)), (3, (0.5, 0.25))):
        head = 0.1 / epoch
        rates = {0: head, 1: layers[0] * head, 2: layers[1] * head}
        stored = curves.add_epoch(stored, result(epoch, rates))
    assert curves.layer_rates(json.loads(json.dumps(stored))) == {
        "1": {1: 0.0, 2: 0.025, 3: 0.0166667},
        "2": {1: 0.0, 2: 0.0125, 3: 0.00833333},
    }
    assert curves.layer_rates(curves.add_epoch({}, result(1))) == {}
