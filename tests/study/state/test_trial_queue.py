"""Claims on trials: exact budgets, endings, giving back, sweeping."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.config.schema import SpaceConfig
from autotune.errors import FormatError
from autotune.plan import TrialPlan
from autotune.search.samplers import CanonicalSampler
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason, trials_since_best
from autotune.study.state.trial_queue import (
    INTERRUPTED,
    MAX_RETRIES,
    WORKER_LOST,
    Claim,
    TrialQueue,
    Wait,
    make_retry,
)
from tests.support.runs import wait_for

SPACE = Space.from_config(
    "resnet18",
    SpaceConfig.model_validate(
        {"depth": {"low": 0, "high": 5}, "training": {"lr": {"low": 1e-4, "high": 1.0}}}
    ),
    "weights",
    (),
)


class Sampler(CanonicalSampler):
    """Samples at random, and is exhausted when it is told so."""

    def __init__(self) -> None:
        super().__init__(SPACE, RandomSampler(seed=0), SPACE.nearest(SPACE.baseline()))
        self.words = ""

    def exhausted_reason(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> str:
        return self.words


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def make_claims(url: str, budget: int = 100, **limits: Any) -> TrialQueue:
    storage = open_storage(url, create=True)
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=Sampler(), direction="maximize"
    )
    study.set_user_attr(attrs.SPACE, SPACE.to_json())
    claims = TrialQueue(study, storage, url, SPACE)
    claims.set_budget(Budget(budget, **limits))
    return claims


def exhaust(claims: TrialQueue, words: str = "every plan of the space has been tried") -> None:
    assert isinstance(claims.study.sampler, Sampler)
    claims.study.sampler.words = words


def claim(claims: TrialQueue, worker: str = "host/1/0") -> Trial:
    claimed = claims.claim(worker)
    assert isinstance(claimed, Claim)
    return claimed.trial


def over(claims: TrialQueue) -> str:
    """Ask for a trial where there is none to be had; return the kind of the ending."""
    ended = claims.claim("host/1/9")
    assert isinstance(ended, StopReason)
    return ended.kind


def finish(claims: TrialQueue, trial: Trial, value: float = 0.5) -> None:
    claims.study.tell(trial, value)


def frozen(claims: TrialQueue, number: int) -> FrozenTrial:
    return claims.study.get_trials(deepcopy=False)[number]


def states(claims: TrialQueue) -> list[str]:
    return [trial.state.name for trial in claims.study.get_trials(deepcopy=False)]


def test_claims_end_at_the_budget(url: str) -> None:
    claims = make_claims(url, budget=2)
    first, second = claim(claims), claim(claims)
    assert over(claims) == "trials"  # live trials count
    finish(claims, first)
    assert claims.claim("host/1/1") == StopReason("trials", "2 trials, of which 1 still running")
    assert StopReason.from_study(claims.study) is None
    finish(claims, second)
    assert claims.claim("host/1/1") == StopReason("trials", "2 finished trials")
    assert (
        StopReason.from_study(claims.study)
        == claims.finalize()
        == StopReason("trials", "2 finished trials")
    )
    claims.set_budget(Budget(3))  # another launcher has raised it
    assert claims.finalize() is None
    assert claim(claims).number == 2


def test_pruned_and_failed_trials_count(url: str) -> None:
    claims = make_claims(url, budget=2)
    claims.study.tell(claim(claims), state=TrialState.FAIL)
    pruned = claim(claims)
    pruned.report(0.1, 1)
    claims.study.tell(pruned, state=TrialState.PRUNED)
    assert over(claims) == "trials"
    progress = claims.progress()
    assert (progress.finished, progress.failed, progress.pruned) == (2, 1, 1)


def test_a_claim_has_all_that_there_is_to_know(url: str) -> None:
    claims = make_claims(url, budget=4)
    before = time.time()
    claimed = claims.claim("host/7/3")
    assert isinstance(claimed, Claim)
    trial = frozen(claims, 0)
    assert trial.state == TrialState.RUNNING
    assert trial.user_attrs[attrs.WORKER] == "host/7/3"
    assert before <= trial.user_attrs[attrs.CLAIMED_AT] == claimed.since <= time.time()
    assert trial.distributions == SPACE.distributions
    assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
    assert claimed.workers == 1
    for worker, workers in (("host/7/4", 2), ("other/9/0", 3), ("host/7/3", 3)):
        more = claims.claim(worker)
        assert isinstance(more, Claim) and more.workers == workers


def test_a_queued_plan_outside_of_the_space_is_kept(url: str) -> None:
    claims = make_claims(url)
    outside = json.loads(json.dumps(TrialPlan("resnet34", depth=0).to_json()))
    claims.study.enqueue_trial({}, user_attrs={attrs.PLAN: outside})
    trial = frozen(claims, claim(claims).number)
    assert trial.user_attrs[attrs.PLAN] == outside
    assert trial.params == {}


def test_a_worker_that_dies_in_the_middle_of_a_claim(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = make_claims(url, budget=2)
    claims.study.enqueue_trial({"depth": 3})
    claims.study.sampler.writes_trials = True  # type: ignore[attr-defined]  # a sampler of one's own

    def killed(trial: Trial, *_: Any) -> None:
        trial.suggest_int("depth", 0, 5)
        trial.set_user_attr(attrs.STAGE, "layer 1")
        raise KeyboardInterrupt  # as abrupt as a kill

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("autotune.study.state.trial_queue.draw_missing_params", killed)
            claims.claim("host/1/0")
    assert states(claims) == ["RUNNING", "RUNNING"]
    assert claims.reclaim_stale() == 2
    assert claims.progress().waiting == 2
    queued, drawn = (frozen(claims, claim(claims).number) for _ in range(2))
    assert (attrs.earlier_attempts(queued), attrs.earlier_attempts(drawn)) == ([0], [1])
    assert queued.params["depth"] == 3  # as it was queued
    for trial in (queued, drawn):
        # Drawn as a whole: one half of one plan and one of another would be neither.
        assert trial.params == SPACE.canonical(trial.params)
        assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
        assert attrs.STAGE not in trial.user_attrs  # it belongs to what was drawn in it


def test_a_new_trial_is_there_as_a_whole_or_not_at_all(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = make_claims(url, budget=2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("autotune.storage.rdb.fast_rdb._rows", killed)
        claims.claim("host/1/0")
    assert states(claims) == []
    claim(claims)
    (trial,) = claims.study.trials
    assert trial.state == TrialState.RUNNING and trial.user_attrs[attrs.WORKER] == "host/1/0"
    assert attrs.trial_plan(trial) == SPACE.plan(trial.params)
    assert list(trial.params) == list(SPACE.distributions)


# Endings


def test_after_the_moment_nothing_starts(url: str) -> None:
    claims = make_claims(url, timeout=60.0, until=time.time() + 60)
    first, second = claim(claims), claim(claims)
    claims.requeue(first.number, WORKER_LOST)
    claims.study.set_user_attr(attrs.BUDGET, Budget(100, 60.0, time.time()).to_json())
    assert over(claims) == "timeout"
    assert claims.count_startable() == 0
    assert StopReason.from_study(claims.study) is None  # one runs
    finish(claims, second)
    assert claims.claim("host/1/0") == StopReason("timeout", "the 60 s of the run are over")
    assert claims.finalize() == StopReason("timeout", "the 60 s of the run are over")
    assert claims.progress().waiting == 1
    claims.set_budget(Budget(100))  # the next run has no limit of time, and goes on with the retry
    assert StopReason.from_study(claims.study) is None
    assert attrs.earlier_attempts(frozen(claims, claim(claims).number)) == [0]


def test_device_hours_end_a_study(url: str) -> None:
    claims = make_claims(url, device_hours=1.0)
    for hours, worker in ((0.5, "host/1/0"), (0.3, "host/1/1")):
        trial = claim(claims, worker)
        trial.set_user_attr(attrs.DEVICE_SECONDS, 3600 * hours)
        finish(claims, trial)
    running = claim(claims)
    assert claims.count_startable() == 97
    running.set_user_attr(attrs.CLAIMED_AT, time.time() - 0.21 * 3600)
    assert claims.claim("host/1/1") == StopReason("device hours", "1.01 of 1 device-hours used")
    assert claims.count_startable() == 0
    assert claims.finalize() is None
    # Its worker was gone long before anyone saw: what it held counts, not the time since.
    running.set_user_attr(attrs.DEVICE_SECONDS, 60.0)
    claims.requeue(running.number, WORKER_LOST)
    assert attrs.earlier_attempts(frozen(claims, claim(claims).number)) == [2]


def test_patience_waits_for_what_runs(url: str) -> None:
    claims = make_claims(url, patience=2)
    trials = [claim(claims, f"host/1/{worker}") for worker in range(4)]
    finish(claims, trials[0], 0.5)
    finish(claims, trials[1], 0.4)
    finish(claims, trials[2], 0.5)  # as good is not better
    assert claims.claim("host/1/0") == Wait()
    assert claims.count_startable() == 0
    finish(claims, trials[3], 0.6)  # and the search goes on
    fifth, sixth = claim(claims), claim(claims)
    claims.study.tell(fifth, state=TrialState.FAIL)
    claims.study.tell(sixth, state=TrialState.FAIL)
    assert claims.claim("host/1/0") == StopReason("patience", "no better trial in the last 2")
    assert claims.finalize() == StopReason("patience", "no better trial in the last 2")
    claims.set_budget(Budget(100, patience=3))
    assert claim(claims).number == 6
    assert StopReason.from_study(claims.study) is None


def test_patience_runs_retries_and_leaves_what_else_is_queued(url: str) -> None:
    claims = make_claims(url, patience=1)
    first, second, third = (claim(claims, f"host/1/{worker}") for worker in range(3))
    claims.study.enqueue_trial({"depth": 1, "training.lr": 0.5})
    finish(claims, first, 0.5)
    finish(claims, second, 0.4)
    claims.requeue(third.number, WORKER_LOST)
    assert claims.count_startable() == 1
    assert claims.finalize() is None
    retry = claim(claims)
    assert attrs.earlier_attempts(frozen(claims, retry.number)) == [third.number]
    assert claims.claim("host/1/1") == Wait()
    finish(claims, retry, 0.4)
    assert over(claims) == "patience"
    assert claims.progress().waiting == 1


def test_an_exhausted_space_ends_a_study_when_nothing_runs(url: str) -> None:
    claims = make_claims(url)
    running = claim(claims)
    claims.study.enqueue_trial({"depth": 1, "training.lr": 0.5})
    exhaust(claims)
    queued = claim(claims, "host/1/1")  # what is queued is known to be a plan
    assert frozen(claims, queued.number).params["depth"] == 1
    assert claims.claim("host/1/2") == Wait()
    finish(claims, running)
    exhaust(claims, "")  # the last trial of a stage came in, say
    third = claim(claims)
    exhaust(claims)
    claims.requeue(third.number, WORKER_LOST)
    assert attrs.earlier_attempts(frozen(claims, claim(claims).number)) == [third.number]
    finish(claims, queued)
    assert claims.claim("host/1/2") == Wait()
    claims.study.tell(3, 0.4)
    words = "every plan of the space has been tried"
    assert claims.claim("host/1/2") == StopReason("exhausted", words)
    assert claims.count_startable() == 0
    assert claims.finalize() == StopReason("exhausted", words)
    claims.set_budget(Budget(200))
    assert StopReason.from_study(claims.study) is None and claims.finalize() is None


def test_a_queued_trial_without_a_plan_needs_one(url: str) -> None:
    claims = make_claims(url)
    claims.storage.create_new_trial(claims.study._study_id)  # lost between asking and drawing
    claims.reclaim_stale()
    exhaust(claims)
    assert over(claims) == "exhausted"
    assert claims.finalize() is not None
    exhaust(claims, "")
    assert claim(claims).number == 1


def test_retries_come_first(url: str) -> None:
    claims = make_claims(url, budget=2)
    first = claim(claims)
    claims.study.enqueue_trial({"depth": 1, "training.lr": 0.5})
    claims.requeue(first.number, WORKER_LOST)
    assert attrs.earlier_attempts(frozen(claims, claim(claims).number)) == [first.number]
    assert frozen(claims, claim(claims).number).params["depth"] == 1


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
claims = TrialQueue(study, storage, url, space)
while not hasattr(claim := claims.claim(worker), "words"):
    if claim == Wait():
        time.sleep(0.05)
        continue
    time.sleep(float(seconds))
    with study_lock(storage, url, "s"):
        for one in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            assert len(one.params) == len(space.distributions), one
            assert {attrs.PLAN, attrs.CLAIMED_AT, attrs.WORKER} <= one.user_attrs.keys(), one
    claims.finish(claim, optuna.trial.TrialState.COMPLETE, claim.trial.params["training.lr"])
print(json.dumps(claim.to_json()))
"""


def run_processes(url: str, count: int, seconds: float) -> list[str]:
    """Have processes run trials to the end; return the kinds of endings that they were told."""

    def work(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, url, f"h/1/{index}", str(seconds)]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(work, range(count)))
    assert [one.returncode for one in results] == [0] * count, [one.stderr for one in results]
    return [json.loads(one.stdout)["kind"] for one in results]


def test_the_number_of_trials_is_exact_over_processes(url: str) -> None:
    claims = make_claims(url, budget=25)
    for _ in range(5):
        claims.study.enqueue_trial({"depth": 2})
    assert run_processes(url, 4, 0.0) == ["trials"] * 4
    trials = claims.study.get_trials(deepcopy=False)
    assert [one.number for one in trials] == list(range(25))
    assert all(one.state == TrialState.COMPLETE for one in trials)
    assert StopReason.from_study(claims.study) == StopReason("trials", "25 finished trials")


def test_patience_is_exact_over_processes(url: str) -> None:
    claims = make_claims(url, patience=6)
    assert run_processes(url, 3, 0.02) == ["patience"] * 3
    trials = claims.study.get_trials(deepcopy=False)
    assert all(one.state == TrialState.COMPLETE for one in trials)
    since = trials_since_best(trials, StudyDirection.MAXIMIZE)
    assert StopReason.from_study(claims.study) == StopReason(
        "patience", f"no better trial in the last {since}"
    )
    # Two others ran when the sixth in a row came in without a better one.
    assert 6 <= since <= 8
    ended = sorted(trials, key=attrs.ended_at)
    for trial in trials:
        before = [one for one in ended if attrs.ended_at(one) < trial.user_attrs[attrs.CLAIMED_AT]]
        assert trials_since_best(before, StudyDirection.MAXIMIZE) < 6


def test_device_hours_are_exact_over_processes(url: str) -> None:
    claims = make_claims(url, device_hours=1.5 / 3600)
    assert run_processes(url, 3, 0.3) == ["device hours"] * 3
    trials = claims.study.get_trials(deepcopy=False)
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


def test_the_moment_holds_for_every_process(url: str) -> None:
    claims = make_claims(url)
    with ThreadPoolExecutor(1) as pool:
        kinds = pool.submit(run_processes, url, 2, 0.2)
        wait_for(lambda: len(states(claims)) > 2)
        claims.set_budget(Budget(100, 1.0, time.time() + 1))
        assert kinds.result() == ["timeout"] * 2
    until = claims.budget().until
    trials = claims.study.get_trials(deepcopy=False)
    assert until is not None
    assert all(one.user_attrs[attrs.CLAIMED_AT] <= until for one in trials)
    assert StopReason.from_study(claims.study) == StopReason(
        "timeout", "the 1 s of the run are over"
    )


# Giving back and sweeping


def test_given_back_trials_come_next_with_all_they_had(url: str) -> None:
    claims = make_claims(url, budget=3)
    trial = claim(claims)
    params, plan = trial.params, frozen(claims, 0).user_attrs[attrs.PLAN]
    trial.set_user_attr(attrs.ROLE, attrs.BASELINE)
    kept = {
        attrs.ORIGIN: "known good: the last layer",
        attrs.STAGE: "layer 2",
        attrs.COSTS: {"parameters": 10},
        attrs.SECONDS: 1.5,
        attrs.CACHES: {"decoded": "once", "computed": 300, "seconds": 0.5},
    }
    for key, what in {**kept, attrs.DEVICE: "cpu", attrs.FAILED_PLAN: True}.items():
        trial.set_user_attr(key, what)
    trial.report(0.3, 1)
    trial.report(0.4, 2)
    assert claims.requeue(trial.number, INTERRUPTED)
    assert states(claims) == ["FAIL", "WAITING"]
    assert claims.progress().finished == 0
    assert claims.progress().retried == 1

    again = claim(claims, "host/1/1")
    assert again.number == 1
    successor = frozen(claims, 1)
    assert successor.params == params
    assert successor.intermediate_values == {1: 0.3, 2: 0.4}
    assert successor.user_attrs[attrs.PLAN] == plan
    assert attrs.is_baseline(successor)
    assert {key: successor.user_attrs[key] for key in kept} == kept
    assert not {attrs.DEVICE, attrs.FAILED_PLAN} & successor.user_attrs.keys()
    assert attrs.first_attempt(successor) == 0
    finish(claims, again)
    assert claims.progress().finished == 1


def test_losses_are_capped_and_stops_are_not(url: str) -> None:
    claims = make_claims(url, budget=1)
    for _ in range(2 * MAX_RETRIES):
        assert claims.requeue(claim(claims).number, INTERRUPTED)
    for _ in range(MAX_RETRIES):
        assert claims.requeue(claim(claims).number, WORKER_LOST)
    last = claim(claims)
    assert not claims.requeue(last.number, WORKER_LOST)
    assert claims.study.trials[last.number].user_attrs[attrs.REASON] == f"{WORKER_LOST}, too often"
    assert claims.progress().failed == 1
    assert over(claims) == "trials"


def test_a_trial_that_gets_further_every_time_is_never_given_up(url: str) -> None:
    claims = make_claims(url, budget=1)
    for epoch in range(1, 2 * MAX_RETRIES):
        trial = claim(claims)
        trial.report(0.5, epoch)
        assert claims.requeue(trial.number, WORKER_LOST)
    for _ in range(MAX_RETRIES - 1):  # the last one above was the first of these
        assert claims.requeue(claim(claims).number, WORKER_LOST)
    assert not claims.requeue(claim(claims).number, WORKER_LOST)


def test_a_trial_has_one_successor(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    lost = claims.study.trials[trial.number]
    # What an earlier version left that died between queueing and failing.
    claims.study.add_trial(make_retry(lost))  # type: ignore[arg-type]
    assert states(claims) == ["RUNNING", "WAITING"]
    assert claims.requeue(trial.number, WORKER_LOST)
    assert states(claims) == ["FAIL", "WAITING"]


def test_finished_trials_are_not_given_back(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    finish(claims, trial)
    assert not claims.requeue(trial.number, WORKER_LOST)
    assert states(claims) == ["COMPLETE"]


def test_a_sweep_finds_the_trials_of_lost_workers(url: str) -> None:
    claims = make_claims(url, budget=4)
    ours, others = claim(claims, "host/1/0"), claim(claims, "host/2/0")
    # Of a worker that was killed between claiming and signing.
    unsigned = claims.storage.create_new_trial(claims.study._study_id)
    assert claims.reclaim_stale(lambda worker: worker.startswith("host/1/")) == 2
    trials = claims.study.get_trials(deepcopy=False)
    assert trials[ours.number].state == TrialState.FAIL
    assert trials[ours.number].user_attrs[attrs.REASON] == WORKER_LOST
    assert trials[2]._trial_id == unsigned
    assert trials[2].state == TrialState.FAIL
    assert trials[others.number].state == TrialState.RUNNING
    assert claims.progress().waiting == 2
    assert claims.reclaim_stale() == 0


def test_a_sweep_finds_silent_workers(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    storage: RDBStorage = claims.storage
    storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
        )
    assert claims.reclaim_stale() == 1
    assert states(claims) == ["FAIL", "WAITING"]
    assert attrs.earlier_attempts(claims.study.trials[1]) == [0]


def test_a_lowered_budget_leaves_queued_trials_in_the_queue(url: str) -> None:
    claims = make_claims(url, budget=2)
    first, second = claim(claims), claim(claims)
    claims.requeue(second.number, INTERRUPTED)
    finish(claims, first)
    claims.set_budget(Budget(1))
    assert over(claims) == "trials"
    assert claims.finalize() is not None
    assert claims.progress().waiting == 1


def test_a_queued_plan_of_a_later_version_stays_in_the_queue(url: str) -> None:
    claims = make_claims(url)
    plan = {**SPACE.baseline().to_json(), "attention": 3}
    claims.study.enqueue_trial({}, user_attrs={attrs.PLAN: plan})
    with pytest.raises(FormatError, match="the plan of trial 0 was written by another version"):
        claims.claim("w/1/0")
    assert [one.state for one in claims.study.get_trials()] == [TrialState.WAITING]
