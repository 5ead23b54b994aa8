"""How values of the objective are written."""

from __future__ import annotations

import pytest
from optuna.study import StudyDirection

from autotune.results.values.objective import Objective
from autotune.study.state import attrs
from tests.support.studies import make_study


def test_objective_of_a_study() -> None:
    assert Objective.from_study(make_study(trials=1)) == Objective(
        "accuracy", StudyDirection.MAXIMIZE, 1
    )


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
def test_show(name: str, value: float | None, text: str) -> None:
    assert Objective(name, StudyDirection.MAXIMIZE).format_value(value) == text


def test_a_mean_over_folds_is_shown_with_its_deviation() -> None:
    accuracy = Objective("accuracy", StudyDirection.MAXIMIZE)
    assert accuracy.format_value(0.9312, 0.0081) == "93.1 ± 0.8 %"
    assert accuracy.with_name("log_loss").format_value(0.25, 0.0125) == "0.2500 ± 0.0125"
    assert accuracy.format_value(None, 0.1) == "–"


def test_differences_follow_the_metric() -> None:
    accuracy = Objective("accuracy", StudyDirection.MAXIMIZE)
    loss = Objective("log_loss", StudyDirection.MINIMIZE)
    assert accuracy.difference(0.951, 0.842) == "+10.9 points"
    assert accuracy.difference(0.80, 0.842) == "−4.2 points"
    assert loss.difference(0.22, 0.51) == "0.2900 lower"
    assert loss.difference(0.51, 0.22) == "0.2900 higher"
    assert loss.difference(0.5, 0.5) == "no difference"


def test_decimals_are_what_the_validation_part_resolves() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.set_user_attr(attrs.DATASET, {"validation": 5000})
    assert Objective.from_study(study).format_value(0.84164) == "84.16 %"
