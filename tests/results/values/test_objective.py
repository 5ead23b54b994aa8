"""How values of the objective are written."""

from __future__ import annotations

import pytest
from optuna.study import StudyDirection

from autotune.results.study_results import StudyResults
from autotune.results.values.objective import Objective
from autotune.study.state import attrs
from tests.support.study.studies import make_study

ACCURACY = Objective("accuracy", StudyDirection.MAXIMIZE)
LOSS = Objective("log_loss", StudyDirection.MINIMIZE)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.8416, "84.2 %"),
        ("macro_f1", 1.0, "100.0 %"),
        ("log_loss", 0.51299, "0.5130"),
        ("log_loss", float("inf"), "inf"),
        ("accuracy", float("nan"), "–"),
        ("accuracy", None, "–"),
    ],
)
def test_format_value(name: str, value: float | None, text: str) -> None:
    assert ACCURACY.with_name(name).format_value(value) == text


def test_a_mean_over_folds_is_written_with_its_deviation() -> None:
    assert ACCURACY.format_value(0.9312, 0.0081) == "93.1 ± 0.8 %"
    assert ACCURACY.with_name("log_loss").format_value(0.25, 0.0125) == "0.2500 ± 0.0125"
    assert ACCURACY.format_value(None, 0.1) == "–"


def test_differences_follow_the_metric() -> None:
    assert ACCURACY.format_difference(0.951, 0.842) == "+10.9 points"
    assert ACCURACY.format_difference(0.80, 0.842) == "−4.2 points"
    assert LOSS.format_difference(0.22, 0.51) == "0.2900 lower"
    assert LOSS.format_difference(0.51, 0.22) == "0.2900 higher"
    assert LOSS.format_difference(0.5, 0.5) == "no difference"


@pytest.mark.parametrize(
    ("gain", "text"), [(0.0214, "2.1 points"), (-0.02, "−2.0 points"), (-0.0004, "0.0 points")]
)
def test_format_gain(gain: float, text: str) -> None:
    assert ACCURACY.format_gain(gain) == text


def test_decimals_are_what_the_validation_split_resolves() -> None:
    study = make_study(trials=1, running=0, failed=0)
    assert StudyResults.from_study(study).objective == ACCURACY
    study.set_user_attr(attrs.DATASET, {"validation": 5000})
    assert StudyResults.from_study(study).objective.format_value(0.84164) == "84.16 %"


@pytest.mark.parametrize(
    ("name", "gain"), [("accuracy", 0.1), ("log_loss", -0.1), ("calibration_error", -0.1)]
)
def test_a_gain_is_positive_where_it_is_an_improvement(name: str, gain: float) -> None:
    metric = LOSS.with_name(name)
    assert metric.gain(0.6, 0.5) == pytest.approx(gain)
    difference = {"value": 0.1, "low": 0.05, "high": 0.2}
    value, low, high = metric.gain_interval(difference)
    assert value == pytest.approx(gain) and low < value < high
    assert metric.with_name("log_loss") == LOSS
