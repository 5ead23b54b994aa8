"""The table of epochs: a row for each, whatever is known of it."""

from __future__ import annotations

import math
import warnings

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.trial import create_trial

from autotune.results.report.epoch_table import epochs_frame
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.study.studies import EPOCHS, curves_of, make_results

COLUMNS = {
    **{"number": "int64", "state": "string", "epoch": "int64", "value": "float64"},
    **{"training_loss": "float64", "validation_loss": "float64"},
    **{"validation_loss_error": "float64", "learning_rate": "float64", "seconds": "float64"},
}


@pytest.mark.parametrize("has_losses", [True, False])
def test_every_epoch_of_every_trial_is_a_row(has_losses: bool) -> None:
    results = make_results(has_losses=has_losses)
    frame = epochs_frame(results)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    expected = [
        (trial.number, epoch, value)
        for trial in results.trials
        for epoch, value in sorted(trial.intermediate_values.items())
    ]
    rows = frame[["number", "epoch", "value"]].itertuples(index=False, name=None)
    assert list(rows) == expected
    assert set(frame["state"]) >= {"complete", "pruned", "failed", "running"}
    assert frame["training_loss"].notna().all() == has_losses
    baseline = frame[frame["number"] == 0]
    assert len(baseline) == EPOCHS
    if has_losses:
        assert (baseline["training_loss"] < baseline["validation_loss"]).all()
        assert baseline["validation_loss_error"].isna().tolist() == [True] + [False] * (EPOCHS - 1)


def test_layers_have_columns_where_their_rates_differ() -> None:
    study = optuna.create_study(direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["accuracy"])
    layered = {**curves_of([0.5, 0.4], [0.6, 0.5]), "head_epochs": 1}
    for rates in ({}, {"layer_rates": {"2": 0.25, "10": 0.5}}):
        values = {1: 0.5, 2: 0.6}
        stored = {attrs.CURVES: {**layered, **rates}}
        study.add_trial(create_trial(value=0.6, intermediate_values=values, user_attrs=stored))
    frame = epochs_frame(StudyResults.from_study(study))
    assert list(frame)[-2:] == ["learning_rate.layer2", "learning_rate.layer10"]
    assert frame["learning_rate.layer2"].isna().tolist() == [True, True, False, False]
    assert frame["learning_rate.layer10"].tolist()[2:] == [0.0, 0.0025]


def test_a_study_without_an_epoch() -> None:
    frame = epochs_frame(make_results(trials=0, running=0, failed=0, retried=0))
    assert frame.empty and list(frame) == list(COLUMNS)


def test_an_epoch_that_an_earlier_version_trained_is_known_in_part() -> None:
    study = optuna.create_study()
    stored = {"training_loss": [None, 0.5], "validation_loss": [None, 0.6]}
    trial = create_trial(
        value=0.6, intermediate_values={1: 0.5, 2: 0.6}, user_attrs={attrs.CURVES: stored}
    )
    study.add_trial(trial)
    first, second = epochs_frame(StudyResults.from_study(study)).to_dict("records")
    assert first["value"] == 0.5 and math.isnan(first["training_loss"])
    assert second["training_loss"] == 0.5
