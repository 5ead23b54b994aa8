"""How busy the workers of a study were, and where they waited."""

from __future__ import annotations

from datetime import timedelta

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.results.diagnosis.utilization import measure_utilization
from autotune.study.state import attrs
from tests.support.pages.page import page_of
from tests.support.study.studies import START, make_study


def held(
    number: int, worker: str, begin: float, end: float, *, claimed: bool = True
) -> FrozenTrial:
    """Make a trial that a worker held between two moments, in seconds after the start."""
    times = {attrs.CLAIMED_AT: START.timestamp() + begin, attrs.DEVICE_SECONDS: end - begin}
    attributes = {attrs.WORKER: worker, **(times if claimed else {})}
    trial = create_trial(value=0.5, user_attrs=attributes)
    trial.number = number
    trial.datetime_start = START + timedelta(seconds=begin)
    trial.datetime_complete = START + timedelta(seconds=end)
    return trial


@pytest.mark.parametrize("claimed", [True, False])
def test_shares_and_waits(claimed: bool) -> None:
    spans = [("a/1/0", 0, 40), ("a/1/1", 0, 80), ("a/1/0", 50, 80), ("a/1/0", 82, 100)]
    found = measure_utilization(
        [held(number, *span, claimed=claimed) for number, span in enumerate(spans)]
    )
    assert found is not None
    first, second = found.workers
    assert (first.worker, first.trials, first.busy_s, first.present_s) == ("a/1/0", 3, 88, 100)
    assert (first.longest_s, first.before) == (10, 2)
    assert (second.share, second.before) == (1.0, None)
    # The second worker was absent for the last 20 of 2 x 100 seconds.
    assert found.share == pytest.approx(168 / 200)
    assert (found.places, found.paused_s, found.longest.before) == (2, 0, 2)


def test_a_night_between_two_runs_is_no_waiting() -> None:
    spans = [("a/1/0", 0, 40), ("a/2/0", 36_000, 36_030), ("a/2/0", 36_031, 36_061)]
    found = measure_utilization([held(number, *span) for number, span in enumerate(spans)])
    assert found is not None
    assert found.paused_s == 36_000 - 40
    assert (found.places, len(found.workers)) == (1, 2)
    assert found.share == pytest.approx(100 / 101)


@pytest.mark.parametrize("names", [("a/7/0", "a/8/0"), ("a/7/0-0f0f0f", "a/7/0-1e1e1e")])
def test_two_at_once_are_two_places(names: tuple[str, str]) -> None:
    """Workers that join one by one are the first of their processes; containers share names."""
    found = measure_utilization([held(0, names[0], 0, 40), held(1, names[1], 10, 50)])
    assert found is not None
    assert (found.places, len(found.workers)) == (2, 2)
    after = measure_utilization([held(0, names[0], 0, 40), held(1, names[1], 41, 50)])
    assert after is not None and after.places == 1


def test_a_running_trial_counts_until_the_last_known_moment() -> None:
    running = held(1, "a/1/0", 45, 45)
    running.state, running.datetime_complete = TrialState.RUNNING, None
    found = measure_utilization([held(0, "a/1/0", 0, 40), running, held(2, "a/1/1", 0, 65)])
    assert found is not None
    assert found.workers[0].busy_s == pytest.approx(60)


def test_the_page_has_a_row_for_each_worker() -> None:
    text = page_of(make_study(workers=3)).text
    assert "3 workers held a trial for 9" in text
    assert all(f"gpu-box/{4100 + place}/{place}" in text for place in range(3))


def test_nothing_ran() -> None:
    assert measure_utilization([]) is None
    assert measure_utilization(make_study(trials=0, running=2, failed=0).trials) is None
    assert measure_utilization([create_trial(value=0.5)]) is None  # of no worker
