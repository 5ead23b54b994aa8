"""The trial queue: exact budgets, reasons to stop, requeueing, reclaiming."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.config.schema import SpaceConfig
from autotune.search.samplers import CanonicalSampler
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason, trials_since_best
from autotune.study.state.retries import INTERRUPTED, WORKER_LOST
from autotune.study.state.trial_queue import Claim, TrialQueue, Wait
from tests.support.commands.runs import wait_for

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)

SPACE = Space.from_config(
    "resnet18",
    SpaceConfig.model_validate(
        {"trainable_layers": {"low": 0, "high": 5}, "training": {"lr": {"low": 1e-4, "high": 1.0}}}
    ),
    "weights",
    (),
)
EXHAUSTED = "every plan of the space has been tried"


class Sampler(CanonicalSampler):
    """Samples at random, and is exhausted when it is told so."""

    def __init__(self) -> None:
        super().__init__(SPACE, RandomSampler(seed=0), SPACE.nearest(SPACE.baseline()))
        self.text = ""

    def exhausted_reason(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> str:
        return self.text


def make_queue(url: str, budget: int = 100, **limits: Any) -> TrialQueue:
    storage = open_storage(url, create=True)
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=Sampler(), direction="maximize"
    )
    study.set_user_attr(attrs.SPACE, SPACE.to_json())
    queue = TrialQueue(study, storage, url, SPACE)
    queue.set_budget(Budget(budget, **limits))
    return queue


def exhaust(queue: TrialQueue, text: str = EXHAUSTED) -> None:
    assert isinstance(queue.study.sampler, Sampler)
    queue.study.sampler.text = text


def claim(queue: TrialQueue, worker: str = "host/1/0") -> Trial:
    claimed = queue.claim(worker)
    assert isinstance(claimed, Claim)
    return claimed.trial


def stopped(queue: TrialQueue) -> StopReason:
    """Ask for a trial where there is none; return the reason."""
    reason = queue.claim("host/1/9")
    assert isinstance(reason, StopReason)
    return reason


def stored(queue: TrialQueue) -> StopReason | None:
    return StopReason.from_attributes(queue.study.user_attrs)


def finish(queue: TrialQueue, trial: Trial, value: float = 0.5) -> None:
    queue.study.tell(trial, value)


def frozen(queue: TrialQueue, number: int) -> FrozenTrial:
    return queue.study.get_trials(deepcopy=False)[number]


def states(queue: TrialQueue) -> list[str]:
    return [trial.state.name for trial in queue.study.get_trials(deepcopy=False)]


def retried_next(queue: TrialQueue) -> list[int]:
    """Claim a trial; return its earlier attempts."""
    return attrs.earlier_attempts(frozen(queue, claim(queue).number))


def killed(*_: Any) -> None:
    raise KeyboardInterrupt  # as abrupt as a kill


def test_claims_end_at_the_budget(url: str) -> None:
    queue = make_queue(url, budget=2)
    first, second = claim(queue), claim(queue)
    assert stopped(queue).kind == "trials"  # live trials count
    finish(queue, first)
    assert stopped(queue) == StopReason("trials", "2 trials, of which 1 still running")
    assert stored(queue) is None
    finish(queue, second)
    assert stopped(queue) == StopReason("trials", "2 finished trials") == stored(queue)
    assert queue.finalize() == stored(queue)
    queue.set_budget(Budget(3))  # another launcher has raised it
    assert queue.finalize() is None
    assert claim(queue).number == 2


def test_a_request_to_stop_holds_until_the_next_run(url: str) -> None:
    queue = make_queue(url, budget=2)
    first = claim(queue)
    request = StopReason("stopped", "stopped from here")
    assert queue.request_stop(request.text) == stopped(queue) == stored(queue) == request
    assert queue.is_stop_requested() and queue.finalize() is None  # a trial runs
    assert queue.requeue(first.number, INTERRUPTED)
    assert stopped(queue) == queue.finalize() == request and queue.count_startable() == 0
    queue.set_budget(Budget(2))
    assert not queue.is_stop_requested() and retried_next(queue) == [0]
    queue.request_stop(request.text)
    for trial in (frozen(queue, 1), claim_after_run(queue)):
        queue.study.tell(trial.number, 0.5)
    queue.request_stop(request.text)  # too late
    assert queue.finalize() == stored(queue) == StopReason("trials", "2 finished trials")


def claim_after_run(queue: TrialQueue) -> Trial:
    queue.set_budget(Budget(2))
    return claim(queue)


# Reasons to stop


def test_after_the_moment_nothing_starts(url: str) -> None:
    queue = make_queue(url, timeout=60.0, until=time.time() + 60)
    first, second = claim(queue), claim(queue)
    queue.requeue(first.number, WORKER_LOST)
    queue.study.set_user_attr(attrs.BUDGET, Budget(100, 60.0, time.time()).to_json())
    assert stopped(queue).kind == "timeout"
    assert queue.count_startable() == 0
    assert stored(queue) is None  # one runs
    finish(queue, second)
    assert stopped(queue) == StopReason("timeout", "the 60 s of the run are over")
    assert queue.finalize() == stored(queue) == StopReason("timeout", stopped(queue).text)
    assert queue.progress().waiting == 1
    queue.set_budget(Budget(100))  # the next run has no limit of time, and starts with the retry
    assert stored(queue) is None
    assert retried_next(queue) == [0]


def test_device_hours_end_a_study(url: str) -> None:
    queue = make_queue(url, device_hours=1.0)
    for hours, worker in ((0.5, "host/1/0"), (0.3, "host/1/1")):
        trial = claim(queue, worker)
        trial.set_user_attr(attrs.DEVICE_SECONDS, 3600 * hours)
        finish(queue, trial)
    running = claim(queue)
    assert queue.count_startable() == 97
    running.set_user_attr(attrs.CLAIMED_AT, time.time() - 0.21 * 3600)
    assert stopped(queue) == StopReason("device hours", "1.01 of 1 device-hours used")
    assert queue.count_startable() == 0
    assert queue.finalize() is None
    # Its worker was gone long before anyone saw: what it held counts, not the time since.
    running.set_user_attr(attrs.DEVICE_SECONDS, 60.0)
    queue.requeue(running.number, WORKER_LOST)
    assert retried_next(queue) == [2]


def test_patience_waits_for_what_runs(url: str) -> None:
    queue = make_queue(url, patience=2)
    trials = [claim(queue, f"host/1/{worker}") for worker in range(4)]
    for trial, value in zip(trials, (0.5, 0.4, 0.5), strict=False):  # as good is not better
        finish(queue, trial, value)
    assert queue.claim("host/1/0") == Wait()
    assert queue.count_startable() == 0
    finish(queue, trials[3], 0.6)  # and the search continues
    for trial in (claim(queue), claim(queue)):
        queue.study.tell(trial, state=TrialState.FAIL)
    assert stopped(queue) == StopReason("patience", "no better trial in the last 2")
    assert queue.finalize() == StopReason("patience", "no better trial in the last 2")
    queue.set_budget(Budget(100, patience=3))
    assert claim(queue).number == 6
    assert stored(queue) is None


def test_patience_runs_retries_and_leaves_what_else_is_queued(url: str) -> None:
    queue = make_queue(url, patience=1)
    first, second, third = (claim(queue, f"host/1/{worker}") for worker in range(3))
    queue.study.enqueue_trial({"depth": 1, "training.lr": 0.5})
    finish(queue, first, 0.5)
    finish(queue, second, 0.4)
    queue.requeue(third.number, WORKER_LOST)
    assert queue.count_startable() == 1
    assert queue.finalize() is None
    retry = claim(queue)
    assert attrs.earlier_attempts(frozen(queue, retry.number)) == [third.number]
    assert queue.claim("host/1/1") == Wait()
    finish(queue, retry, 0.4)
    assert stopped(queue).kind == "patience"
    assert queue.progress().waiting == 1


def test_an_exhausted_space_ends_a_study_when_nothing_runs(url: str) -> None:
    queue = make_queue(url)
    running = claim(queue)
    queue.study.enqueue_trial({"depth": 1, "training.lr": 0.5})
    exhaust(queue)
    queued = claim(queue, "host/1/1")  # what is queued is known to be a plan
    assert frozen(queue, queued.number).params["depth"] == 1
    assert queue.claim("host/1/2") == Wait()
    finish(queue, running)
    exhaust(queue, "")  # the last trial of a stage came in, say
    third = claim(queue)
    exhaust(queue)
    queue.requeue(third.number, WORKER_LOST)
    assert retried_next(queue) == [third.number]
    finish(queue, queued)
    assert queue.claim("host/1/2") == Wait()
    queue.study.tell(3, 0.4)
    assert stopped(queue) == StopReason("exhausted", EXHAUSTED)
    assert queue.count_startable() == 0
    assert queue.finalize() == StopReason("exhausted", EXHAUSTED)
    queue.set_budget(Budget(200))
    assert stored(queue) is None and queue.finalize() is None


# Real processes

SCRIPT = """
import json, sys, time, optuna
from autotune.search.samplers import CanonicalSampler
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.state import attrs
from autotune.study.state.trial_queue import TrialQueue, Wait
url, worker, seconds = sys.argv[1:]
storage = open_storage(url)
study = optuna.load_study(study_name="s", storage=storage)
space = Space.from_json(study.user_attrs[attrs.SPACE])
random, start = optuna.samplers.RandomSampler(int(worker[-1])), space.nearest(space.baseline())
study.sampler = CanonicalSampler(space, random, start)
queue = TrialQueue(study, storage, url, space)
while not hasattr(claim := queue.claim(worker), "text"):
    if claim == Wait():
        time.sleep(0.05)
        continue
    time.sleep(float(seconds))
    with study_lock(storage, url, "s"):
        for one in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            assert len(one.params) == len(space.distributions), one
            assert {attrs.PLAN, attrs.CLAIMED_AT, attrs.WORKER} <= one.user_attrs.keys(), one
    queue.finish(claim, optuna.trial.TrialState.COMPLETE, claim.trial.params["training.lr"])
print(json.dumps(claim.to_json()))
"""


def run_processes(url: str, count: int, seconds: float) -> list[str]:
    """Have processes run trials to the end; return the kinds of their reasons to stop."""

    def work(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, url, f"h/1/{index}", str(seconds)]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(work, range(count)))
    assert [one.returncode for one in results] == [0] * count, [one.stderr for one in results]
    return [json.loads(one.stdout)["kind"] for one in results]


@pytest.mark.slow
def test_the_number_of_trials_is_exact_over_processes(url: str) -> None:
    queue = make_queue(url, budget=25)
    for _ in range(5):
        queue.study.enqueue_trial({"depth": 2})
    assert run_processes(url, 4, 0.0) == ["trials"] * 4
    assert [one.number for one in queue.study.get_trials(deepcopy=False)] == list(range(25))
    assert states(queue) == ["COMPLETE"] * 25
    assert stored(queue) == StopReason("trials", "25 finished trials")


@pytest.mark.slow
def test_patience_is_exact_over_processes(url: str) -> None:
    queue = make_queue(url, patience=6)
    assert run_processes(url, 3, 0.02) == ["patience"] * 3
    assert set(states(queue)) == {"COMPLETE"}
    trials = queue.study.get_trials(deepcopy=False)
    since = trials_since_best(trials, StudyDirection.MAXIMIZE)
    assert stored(queue) == StopReason("patience", f"no better trial in the last {since}")
    # Two others ran when the sixth in a row came in without a better one.
    assert 6 <= since <= 8
    ended = sorted(trials, key=attrs.ended_at)
    for trial in trials:
        before = [one for one in ended if attrs.ended_at(one) < trial.user_attrs[attrs.CLAIMED_AT]]
        assert trials_since_best(before, StudyDirection.MAXIMIZE) < 6


@pytest.mark.slow
def test_device_hours_are_exact_over_processes(url: str) -> None:
    queue = make_queue(url, device_hours=1.5 / 3600)
    assert run_processes(url, 3, 0.3) == ["device hours"] * 3
    trials = queue.study.get_trials(deepcopy=False)
    held = [one.user_attrs[attrs.DEVICE_SECONDS] for one in trials]
    assert all(0.3 <= one < 2 for one in held)
    assert sum(held) >= 1.5
    for trial in trials:  # none started when the limit was reached
        start = trial.user_attrs[attrs.CLAIMED_AT]
        used = sum(
            min(attrs.ended_at(one), start) - one.user_attrs[attrs.CLAIMED_AT]
            for one in trials
            if one.user_attrs[attrs.CLAIMED_AT] < start
        )
        assert used < 1.5


@pytest.mark.slow
def test_the_moment_holds_for_every_process(url: str) -> None:
    queue = make_queue(url)
    with ThreadPoolExecutor(1) as pool:
        kinds = pool.submit(run_processes, url, 2, 0.2)
        wait_for(lambda: len(states(queue)) > 2)
        queue.set_budget(Budget(100, 1.0, time.time() + 1))
        assert kinds.result() == ["timeout"] * 2
    until = queue.budget().until
    assert until is not None
    trials = queue.study.get_trials(deepcopy=False)
    assert all(one.user_attrs[attrs.CLAIMED_AT] <= until for one in trials)
    assert stored(queue) == StopReason("timeout", "the 1 s of the run are over")


# Requeueing and reclaiming
