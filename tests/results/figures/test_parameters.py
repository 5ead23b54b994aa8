"""The figures of the searched parameters."""

from __future__ import annotations

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.results.figures.parameters import (
    MIN_ACTIVE,
    importances,
    importances_figure,
    slice_figure,
)
from autotune.results.study_results import StudyResults
from autotune.results.values.parameter_words import parameter_words
from tests.support.pages.page import add, some, traces
from tests.support.study.studies import ONE_PARAMETER, make_results, make_study


@pytest.fixture(scope="module")
def results() -> StudyResults:
    return make_results()


def complete(results: StudyResults) -> list[FrozenTrial]:
    return [trial for trial in results.trials if trial.state == TrialState.COMPLETE]


def drawn_numbers(results: StudyResults, parameter: str) -> set[int]:
    figure = some(slice_figure(results, parameter))
    return {data[0] for trace in figure.data for data in trace.customdata}


def test_importances_need_values_that_differ() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER)
    for depth in (1, 2, 3):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, 0.5)
    assert importances(StudyResults.from_study(study)) == {}
    assert importances_figure({}) is None


def test_importances_name_every_parameter(results: StudyResults) -> None:
    bars = some(importances_figure(importances(results))).data[0]
    assert set(bars.y) == {parameter_words(name) for name in results.parameter_names}
    assert "learning rate (training.lr)" in bars.customdata
    assert sum(bars.x) == pytest.approx(1.0)


def test_importances_leave_out_what_had_hardly_an_effect() -> None:
    results = make_results(trials=8)
    active = {
        name: sum(results.is_active(trial, name) for trial in complete(results))
        for name in results.parameter_names
    }
    measured = importances(results)
    assert set(measured) == {name for name, count in active.items() if count >= MIN_ACTIVE}
    assert set(measured) < set(active)
    assert sum(measured.values()) == pytest.approx(1)


def test_slices(results: StudyResults) -> None:
    figure = some(slice_figure(results, "training.lr"))
    assert results.best is not None
    assert list(traces(figure)["best"].x) == [results.best.params["training.lr"]]
    assert figure.layout.xaxis.type == "log"
    pools = some(slice_figure(results, "head.pool")).layout.xaxis
    assert list(pools.categoryarray) == ["avg", "max", "avgmax"]


def test_slice_of_one_parameter() -> None:
    results = make_results(space=ONE_PARAMETER)
    assert results.parameter_names == ("depth",)
    figure = some(slice_figure(results, "depth"))
    assert figure.layout.xaxis.title.text == "trainable layers<br><sub>depth</sub>"
    assert "baseline" in traces(figure)


def test_slices_show_the_trials_in_which_a_parameter_is_active() -> None:
    training = {
        "optimizer": ["sgd", "adamw"],
        "momentum": {"low": 0.0, "high": 0.95},
        "head_epochs": {"low": 0, "high": 4},
        "l2_sp": {"low": 1e-4, "high": 1.0, "log": True},
        "mixup": [0.0, 0.2],
    }
    layers = {"kernel": ["keep", 1, 5], "last": 2}
    results = make_results(space={**ONE_PARAMETER, "training": training, "layers": layers})
    trials = complete(results)
    every = {trial.number for trial in trials}
    trained = {trial.number for trial in trials if trial.params["depth"] > 0}
    assert drawn_numbers(results, "layer.2.kernel") == {
        trial.number for trial in trials if trial.params["depth"] >= 2
    }
    assert "layer.3.kernel" not in results.parameter_names
    sgd = {trial.number for trial in trials if trial.params["training.optimizer"] == "sgd"}
    assert every - trained and every - sgd
    expected = {"momentum": sgd, "head_epochs": trained, "l2_sp": trained, "mixup": every}
    for name, numbers in expected.items():
        assert drawn_numbers(results, f"training.{name}") == numbers, name
        axis = some(slice_figure(results, f"training.{name}")).layout.xaxis
        assert f"training.{name}" in axis.title.text
        assert (axis.type == "log") == (name == "l2_sp")
        assert (axis.dtick == 1) == (name == "head_epochs" or axis.type == "log")
