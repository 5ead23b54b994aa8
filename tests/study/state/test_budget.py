"""When a study is over, as its trials say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.config.schema import SearchConfig
from autotune.study.state import attrs
from autotune.study.state.budget import (
    Budget,
    StopReason,
    count_startable,
    device_hours_used,
    startable_queue,
    stop_reason,
)
from autotune.study.state.budget import trials_since_best as count_since

NOW = 1_800_000_000.0
MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def a_trial(
    state: TrialState, value: float = 0.5, claimed: float = 0.0, held: float = 0.0, **more: Any
) -> FrozenTrial:
    """Make a trial; ``claimed`` and ``held`` are seconds, the former since a while ago."""
    times = {
        attrs.CLAIMED_AT: NOW - 1000 + claimed,
        attrs.DEVICE_SECONDS: held,
        attrs.WORKER: "h/1/0",
    }
    attributes = {attrs.PLAN: {}, **({} if state == WAITING else times), **more}
    return create_trial(
        state=state, value=value if state == COMPLETE else None, user_attrs=attributes
    )


def study_of(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def why(trials: Sequence[FrozenTrial], budget: Budget, now: float = NOW) -> StopReason | None:
    return stop_reason(trials, budget, MAXIMIZE, now)


def test_a_budget_is_json_and_back() -> None:
    search = SearchConfig(trials=3, timeout=60, device_hours=1.5, patience=4)
    budget = Budget.from_config(search, NOW)
    assert budget == Budget(3, 60.0, NOW + 60, 1.5, 4)
    assert Budget.from_attributes({attrs.BUDGET: budget.to_json()}) == budget
    older = {"trials": 3, "timeout": None}
    assert Budget.from_attributes({attrs.BUDGET: older}) == Budget(3)
    assert Budget.from_config(SearchConfig(trials=3), NOW).until is None


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(4), None),
        (Budget(3), StopReason("trials", "3 finished trials")),
        (Budget(9, 60.0, NOW + 1), None),
        (Budget(9, 60.0, NOW), StopReason("timeout", "the 60 s of the run are over")),
        (Budget(9, device_hours=0.06), None),
        (
            Budget(9, device_hours=0.05),
            StopReason("device hours", "0.05 of 0.05 device-hours used"),
        ),
        (Budget(9, patience=3), None),
        (Budget(9, patience=2), StopReason("patience", "no better trial in the last 2")),
        # The first of all counts.
        (Budget(3, 1.0, NOW, 0.01, 1), StopReason("trials", "3 finished trials")),
    ],
)
def test_each_budget_ends_a_study(budget: Budget, expected: StopReason | None) -> None:
    trials = study_of(
        a_trial(COMPLETE, 0.9, 0, 60), a_trial(PRUNED, 0, 60, 60), a_trial(FAIL, 0, 120, 60)
    )
    assert why(trials, budget) == expected


def test_device_hours_count_every_attempt_once() -> None:
    trials = study_of(
        a_trial(FAIL, held=100, **{attrs.SECONDS: 100.0}),
        # SECONDS of a retry are those of its earlier attempts too.
        a_trial(COMPLETE, held=50, **{attrs.SECONDS: 150.0, attrs.RETRIES: [0]}),
        a_trial(RUNNING, claimed=700, held=15),  # its worker wrote 15 s at its last heartbeat
        a_trial(WAITING),
    )
    assert device_hours_used(trials, NOW) * 3600 == pytest.approx(100 + 50 + 300)
    # A clock that is behind.
    assert device_hours_used(trials, NOW - 9999) * 3600 == pytest.approx(150)


def test_the_time_after_a_loss_is_not_held() -> None:
    lost = a_trial(FAIL, held=40)
    lost.datetime_start = datetime(2026, 1, 1)
    lost.datetime_complete = lost.datetime_start + timedelta(days=7)  # found by the next run
    at_once = a_trial(FAIL)
    del at_once.user_attrs[attrs.DEVICE_SECONDS]
    unsigned = create_trial(state=FAIL)
    older = create_trial(state=FAIL, user_attrs={attrs.WORKER: "h/1/0"})
    older.datetime_start = datetime(2026, 1, 1)
    older.datetime_complete = older.datetime_start + timedelta(seconds=7)
    held = [attrs.device_seconds(one, NOW) for one in study_of(lost, at_once, unsigned, older)]
    assert held == [40, 0, 0, 7]


def test_patience_counts_in_the_order_of_the_ends() -> None:
    trials = study_of(
        a_trial(COMPLETE, 0.5, claimed=0, held=500),  # the last to end, and not better
        a_trial(COMPLETE, 0.7, claimed=0, held=100),
        a_trial(COMPLETE, 0.9, claimed=0, held=300),
        a_trial(COMPLETE, 0.9, claimed=0, held=200),  # as good and earlier
        a_trial(FAIL, claimed=250, held=1),
        a_trial(FAIL, claimed=250, held=2),  # has a successor
        a_trial(RUNNING, **{attrs.RETRIES: [5]}),
        a_trial(WAITING),
    )
    assert count_since(trials, MAXIMIZE) == 3  # 4, 2, 0
    assert count_since(trials, MINIMIZE) == 0
    assert count_since(trials[1:2], MAXIMIZE) == 0
    assert count_since(study_of(a_trial(FAIL), a_trial(PRUNED)), MAXIMIZE) == 0


def test_what_is_beyond_the_limits_is_never_the_best_and_counts_like_the_others() -> None:
    def limited(
        state: TrialState, claimed: float, beyond: float, value: float = 0.5
    ) -> FrozenTrial:
        made = a_trial(state, value, claimed=claimed)
        made.set_constraint("max_parameters", beyond)
        return made

    baseline = limited(COMPLETE, 0, 0.5, 0.9)
    trials = study_of(baseline, limited(PRUNED, 1, 2.0), limited(COMPLETE, 2, -0.1, 0.7))
    assert count_since(trials[:2], MAXIMIZE) == 0
    assert count_since(trials, MAXIMIZE) == 0
    trials = study_of(*trials, limited(PRUNED, 3, 0.1), limited(PRUNED, 4, -0.1))
    assert count_since(trials, MAXIMIZE) == 2
    assert why(trials, Budget(9, patience=2)) == StopReason(
        "patience", "no better trial in the last 2"
    )
    assert why(trials, Budget(5)) == StopReason("trials", "5 finished trials")


def test_what_may_start_of_the_queue() -> None:
    known = a_trial(WAITING)
    enqueued = create_trial(state=WAITING, system_attrs={"fixed_params": {"depth": 1}})
    blank = create_trial(state=WAITING, user_attrs={attrs.RETRIES: [0]})
    retry = a_trial(WAITING, **{attrs.RETRIES: [1]})
    trials = study_of(a_trial(FAIL), a_trial(FAIL), known, enqueued, blank, retry)
    assert [one.number for one in startable_queue(trials, None)] == [5, 2, 3]
    budget = Budget(9)
    assert count_startable(trials, budget, None) == 9
    for kind, expected in {"patience": [5], "exhausted": [5], "timeout": [], "trials": []}.items():
        ended = StopReason(kind, "")
        assert [one.number for one in startable_queue(trials, ended)] == expected
        assert count_startable(trials, budget, ended) == len(expected)
    assert startable_queue(trials, StopReason("device hours", "")) == []


@st.composite
def studies(draw: st.DrawFn) -> list[FrozenTrial]:
    """Draw trials in any state; some failed ones have one successor."""
    states = draw(st.lists(st.sampled_from(list(TrialState)), max_size=12))
    trials: list[FrozenTrial] = []
    free: list[int] = []
    for number, state in enumerate(states):
        attributes: dict[str, Any] = {}
        if free and draw(st.booleans()):
            attributes[attrs.RETRIES] = [free.pop()]
        value = draw(st.integers(0, 4)) / 4
        claimed, held = draw(st.integers(0, 500)), draw(st.integers(0, 500))
        trials.append(a_trial(state, value, claimed, held, **attributes))
        if state == FAIL:
            free.append(number)
    return study_of(*trials)


LIMITS = st.builds(
    Budget,
    trials=st.integers(1, 12),
    timeout=st.just(60.0),
    until=st.none() | st.integers(-9, 9).map(lambda seconds: NOW + seconds),
    device_hours=st.none() | st.integers(1, 3000).map(lambda seconds: seconds / 3600),
    patience=st.none() | st.integers(1, 6),
)
DIRECTIONS = st.sampled_from([MAXIMIZE, MINIMIZE])


def improvements(trials: Sequence[FrozenTrial], direction: StudyDirection) -> int:
    """Count the finished trials since the best one, one after the other."""
    successors = {number for trial in trials for number in trial.user_attrs.get(attrs.RETRIES, ())}
    ended = [trial for trial in trials if trial.state.is_finished()]
    ended = [one for one in ended if one.number not in successors]
    ended.sort(key=lambda one: (one.user_attrs["claimed"] + one.user_attrs["held"], one.number))
    best, since = None, 0
    for one in ended:
        sign = 1 if direction == MAXIMIZE else -1
        if one.state == COMPLETE and (best is None or sign * one.value > best):
            best, since = sign * one.value, 0
        elif best is not None:
            since += 1
    return since


@given(studies(), LIMITS, DIRECTIONS)
def test_a_study_is_over_when_one_budget_is_used_up(
    trials: list[FrozenTrial], budget: Budget, direction: StudyDirection
) -> None:
    progress = attrs.count_progress(trials, budget.trials)
    seconds = sum(
        NOW - trial.user_attrs["claimed"] if trial.state == RUNNING else trial.user_attrs["held"]
        for trial in trials
        if trial.state != WAITING
    )
    used_up = {
        "trials": progress.finished + progress.running >= budget.trials,
        "timeout": budget.until is not None and budget.until <= NOW,
        "device hours": budget.device_hours is not None and seconds / 3600 >= budget.device_hours,
        "patience": budget.patience is not None
        and improvements(trials, direction) >= budget.patience,
    }
    found = stop_reason(trials, budget, direction, NOW)
    assert (found.kind if found else None) == next(
        (kind for kind, reached in used_up.items() if reached), None
    )
    # In whatever order the storage gives them.
    assert stop_reason(trials[::-1], budget, direction, NOW) == found
    startable = count_startable(trials, budget, found)
    assert (startable > 0) >= (found is None)
    if found is not None:
        assert startable == len(startable_queue(trials, found))
        assert all(attrs.earlier_attempts(one) for one in startable_queue(trials, found))


@given(studies(), LIMITS, DIRECTIONS)
def test_more_of_a_budget_never_ends_a_study(
    trials: list[FrozenTrial], budget: Budget, direction: StudyDirection
) -> None:
    """Nor does a trial that starts: what ended it before it started still does."""
    if stop_reason(trials, budget, direction, NOW) is None:
        double = Budget(
            2 * budget.trials,
            budget.timeout,
            budget.until and budget.until + 60,
            budget.device_hours and 2 * budget.device_hours,
            budget.patience and 2 * budget.patience,
        )
        assert stop_reason(trials, double, direction, NOW) is None
    else:
        started = study_of(*trials, a_trial(RUNNING, claimed=1000))
        assert stop_reason(started, budget, direction, NOW) is not None
