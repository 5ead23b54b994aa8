from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.search.study_view import (
    DEVICE_MEMORY,
    DEVICE_MEMORY_MB,
    FAILED_PLAN,
    MAX_TRIALS,
    PEAK_MEMORY_MB,
    Curve,
    FinalValuePredictor,
    StudyView,
    last_value,
)

X = {"x": FloatDistribution(0, 1)}


def study_of(*trials: Mapping[str, Any], direction: str = "maximize") -> Study:
    study = optuna.create_study(direction=direction)
    for values in trials:
        study.add_trial(create_trial(**{"params": {"x": 0.5}, "distributions": X, **values}))
    return study


def shown(study: Study, impute: bool = True, names: Any = ("x",), **matches: Any) -> list[Any]:
    view = StudyView(study, names, impute, **matches)
    return [(trial.number, trial.state.name, trial.value) for trial in view._get_trials()]


def complete(curve: Mapping[int, float], **values: Any) -> dict[str, Any]:
    return {"value": curve[max(curve)], "intermediate_values": dict(curve), **values}


def pruned(curve: Mapping[int, float], **values: Any) -> dict[str, Any]:
    return {"state": TrialState.PRUNED, "intermediate_values": dict(curve), **values}


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1.0), ("minimize", -1.0)])
def test_pruned_trials_are_shown_with_what_they_promise(direction: str, sign: float) -> None:
    study = study_of(
        complete({1: sign * 0.5, 2: sign * 0.9}),
        pruned({1: sign * 0.3}),
        pruned({}),
        direction=direction,
    )
    value = pytest.approx(sign * 0.7)
    middle = pytest.approx(sign * 0.8)
    assert shown(study) == [
        (0, "COMPLETE", sign * 0.9),
        (1, "COMPLETE", value),
        (2, "COMPLETE", middle),  # never trained: beyond a constraint
    ]
    assert [one[1] for one in shown(study, impute=False)] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]


def test_constraints_stay_with_a_plan_that_was_not_trained() -> None:
    study = study_of(
        complete({1: 0.9}, constraints={"latency_ms": -0.5}),
        pruned({}, constraints={"latency_ms": 2.0}),
    )
    last = StudyView(study, ["x"], True)._get_trials()[-1]
    assert (last.value, last.constraints) == (0.9, {"latency_ms": 2.0})


@pytest.mark.parametrize("impute", [True, False])
@pytest.mark.parametrize(("direction", "worst"), [("maximize", 0.2), ("minimize", 0.9)])
def test_a_plan_that_failed_is_as_bad_as_the_worst(
    direction: str, worst: float, impute: bool
) -> None:
    failed = {"state": TrialState.FAIL, "user_attrs": {FAILED_PLAN: True}}
    lost = {"state": TrialState.FAIL}
    study = study_of(
        failed, complete({1: 0.9}), lost, complete({1: 0.2}), failed, direction=direction
    )
    assert shown(study, impute) == [
        (0, "COMPLETE", worst),
        (1, "COMPLETE", 0.9),
        (3, "COMPLETE", 0.2),
        (4, "COMPLETE", worst),
    ]
    assert shown(study_of(failed, lost), impute) == []


def test_only_trials_with_the_parameters_that_match_are_shown() -> None:
    study = study_of(
        complete({1: 0.1}, params={"x": 0.1}),
        complete({1: 0.2}, params={}, distributions={}),
        complete({1: 0.3}, params={"x": 0.3}),
        {"state": TrialState.RUNNING},
        {"state": TrialState.WAITING},
    )
    assert [one[0] for one in shown(study)] == [0, 2, 3, 4]
    assert [one[0] for one in shown(study, matches=lambda params: params["x"] > 0.2)] == [2, 3, 4]
    view = StudyView(study, ["x"], True)
    running = view._get_trials(states=(TrialState.RUNNING,))
    assert [one.number for one in running] == [3]
    assert view.direction == study.direction


def test_a_gp_sees_the_best_and_the_newest_of_many() -> None:
    values = [0.001 * (i % 500) for i in range(3 * MAX_TRIALS)]
    study = study_of(*(complete({1: value}) for value in values), {"state": TrialState.RUNNING})
    numbers = [one[0] for one in shown(study)]
    assert len(numbers) == MAX_TRIALS + 1
    best = sorted(range(len(values)), key=lambda i: -values[i])[: MAX_TRIALS // 2]
    assert set(best) <= set(numbers)
    assert set(range(len(values) - MAX_TRIALS // 2, len(values) + 1)) <= set(numbers)
    assert len(shown(study, impute=False)) == len(values) + 1


def constraints(study: Study, impute: bool = True) -> list[dict[str, float]]:
    view = StudyView(study, ["x"], impute)
    return [trial.constraints for trial in view._get_trials()]


@pytest.mark.parametrize("impute", [True, False])
def test_from_the_first_plan_that_did_not_fit_all_trials_tell_of_memory(impute: bool) -> None:
    def used(peak: float) -> dict[str, Any]:
        return {"user_attrs": {PEAK_MEMORY_MB: peak, DEVICE_MEMORY_MB: 100.0}}

    trials = [
        complete({1: 0.9}, constraints={"latency_ms": -0.5}, **used(80.0)),
        complete({1: 0.8}, constraints={"latency_ms": -0.3}, **used(60.0)),
        complete({1: 0.7}, constraints={"latency_ms": -0.4}),  # it says nothing of its memory
        {"state": TrialState.RUNNING},
    ]
    study = study_of(*trials)
    assert constraints(study, impute) == [trial.get("constraints", {}) for trial in trials]
    # It did not fit before its latency was measured.
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params={"x": 0.1},
            distributions=X,
            constraints={DEVICE_MEMORY: 0.25},
        )
    )
    found = constraints(study, impute)
    assert found == [
        {DEVICE_MEMORY: pytest.approx(-0.2), "latency_ms": -0.5},
        {DEVICE_MEMORY: pytest.approx(-0.4), "latency_ms": -0.3},
        {DEVICE_MEMORY: pytest.approx(-0.3), "latency_ms": -0.4},
        {},
        {DEVICE_MEMORY: 0.25, "latency_ms": -0.4},
    ]
    assert len({tuple(one) for one in found if one}) == 1  # in one order
    assert study.trials[0].constraints == {"latency_ms": -0.5}


def test_where_no_trial_tells_of_its_memory_half_of_it_is_taken() -> None:
    study = study_of(complete({1: 0.9}), pruned({}, constraints={DEVICE_MEMORY: 0.25}))
    assert constraints(study) == [{DEVICE_MEMORY: -0.5}, {DEVICE_MEMORY: 0.25}]


def test_of_two_objectives_a_plan_that_did_not_fit_has_the_medians() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    point = {"params": {"x": 0.1}, "distributions": X}
    given = [[0.5, 3.0], [0.6, 4.0], [0.7, 9.0]]
    for values in given:
        study.add_trial(create_trial(values=values, **point))
    for name in (DEVICE_MEMORY, "latency_ms"):
        study.add_trial(create_trial(**pruned({}, constraints={name: 0.5}, **point)))
    study.add_trial(create_trial(state=TrialState.FAIL, **point))
    for impute, more in ((True, [[0.6, 4.0]]), (False, [])):
        shown = StudyView(study, ["x"], impute)._get_trials()
        complete = [one.values for one in shown if one.state == TrialState.COMPLETE]
        assert complete == given + more
        assert all(one.state != TrialState.FAIL for one in shown)


# What a pruned trial promises.

FEW = [({1: 0.5, 2: 0.6, 3: 0.9}, 0.9), ({1: 0.2, 2: 0.3, 3: 0.8}, 0.8), ({2: 0.5}, 0.5)]
#: Who is behind gains more: half of what was missing at the first step is made good.
LINE = [({1: at}, 0.5 + at / 2) for at in (0.2, 0.4, 0.6, 0.8)]
ODD = [({1: 0.5, 2: math.nan}, 0.9), ({1: 0.5, 2: 0.7}, 0.9), ({2: 0.1}, math.inf)]


def finals(*values: float) -> list[tuple[Curve, float]]:
    return [({1: at}, end) for at, end in zip((0.1, 0.2, 0.3, 0.4), values, strict=True)]


def test_the_last_finite_value() -> None:
    assert last_value({3: 0.3, 1: 0.1, 4: math.inf}) == (3, 0.3)
    assert last_value({1: math.nan}) is last_value({}) is None


@pytest.mark.parametrize(
    ("complete", "curve", "predicted"),
    [
        (FEW, {1: 0.4, 2: 0.4}, 0.4 + 0.3),  # few trials: the median gain, of 0.3, 0.5 and 0
        (FEW, {1: 0.4}, 0.4 + 0.5),  # of 0.4 and 0.6
        (FEW, {1: 0.4, 3: 0.4}, 0.4),
        (FEW, {7: 0.4}, 0.4),  # no other has come there
        ([], {1: 0.4}, 0.4),
        (LINE, {1: 0.3}, 0.65),
        (LINE, {1: 0.1}, 0.55),
        (finals(0.9, 0.8, 0.7, 0.6), {1: 0.1}, 0.75),  # the order turned round: it says nothing
        (finals(0.2, 0.5, 0.8, 1.1), {1: 0.1}, 0.65 + (0.1 - 0.25)),  # a lead does not grow
        ([({1: 0.5}, end) for end in (0.6, 0.7, 0.8, 0.9)], {1: 0.4}, 0.65),  # no line
        (ODD, {1: 0.1, 2: 0.3, 3: math.nan}, 0.3 + 0.2),
        (ODD, {1: math.nan, 2: math.inf}, None),
        (ODD, {}, None),
    ],
)
def test_the_prediction(
    complete: list[tuple[Curve, float]], curve: Curve, predicted: float | None
) -> None:
    expected = predicted if predicted is None else pytest.approx(predicted)
    assert FinalValuePredictor(complete).predict(curve) == expected


def test_what_pruning_left_out_does_not_bend_the_line() -> None:
    rng = random.Random(0)
    curves = [
        ({1: at}, 0.6 + 0.4 * at + rng.gauss(0, 0.02)) for at in [rng.random() for _ in range(400)]
    ]
    survivors = [curve for curve in curves if curve[0][1] > 0.5]
    assert FinalValuePredictor(survivors).predict({1: 0.2}) == pytest.approx(0.68, abs=0.02)
    gained = sorted(final - curve[1] for curve, final in survivors)[len(survivors) // 2]
    assert abs(0.2 + gained - 0.68) > 0.1  # the gain of the survivors is another one
