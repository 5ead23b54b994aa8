"""Claims on trials: the exact budget, giving back, sweeping."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState

from autotune.storage.database import open_storage
from autotune.study import record
from autotune.study.claims import INTERRUPTED, LOST, MAX_RETRIES, Claims, requeue, sweep_stale


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def make_claims(url: str, budget: int) -> Claims:
    storage = open_storage(url, create=True, on_stale_trial=sweep_stale)
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    study.set_user_attr(record.BUDGET, {"trials": budget, "timeout": None})
    return Claims(study, storage, url)


def claim(claims: Claims, worker: str = "host/1/0") -> Trial:
    trial = claims.claim(worker)
    assert trial is not None
    return trial


def finish(claims: Claims, trial: Trial) -> None:
    claims.study.tell(trial, 0.5)


def states(claims: Claims) -> list[str]:
    return [trial.state.name for trial in claims.study.get_trials(deepcopy=False)]


def test_claims_end_at_the_budget(url: str) -> None:
    claims = make_claims(url, budget=2)
    first, second = claim(claims), claim(claims)
    assert claims.claim("host/1/1") is None  # live trials count
    finish(claims, first)
    assert claims.claim("host/1/1") is None
    finish(claims, second)
    assert claims.progress().done
    claims.study.set_user_attr(record.BUDGET, {"trials": 3, "timeout": None})
    assert claim(claims).number == 2  # another launcher has raised it


def test_pruned_and_failed_trials_count(url: str) -> None:
    claims = make_claims(url, budget=2)
    claims.study.tell(claim(claims), state=TrialState.FAIL)
    pruned = claim(claims)
    pruned.report(0.1, 1)
    claims.study.tell(pruned, state=TrialState.PRUNED)
    assert claims.claim("host/1/0") is None
    progress = claims.progress()
    assert (progress.finished, progress.failed, progress.pruned) == (2, 1, 1)


def test_a_claim_is_signed(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims, "host/7/3")
    assert trial.user_attrs[record.WORKER] == "host/7/3"


SCRIPT = """
import sys, optuna
from autotune.storage.database import open_storage
from autotune.study.claims import Claims
url, worker = sys.argv[1:]
storage = open_storage(url)
claims = Claims(optuna.load_study(study_name="s", storage=storage), storage, url)
while (trial := claims.claim(worker)) is not None:
    claims.study.tell(trial, trial.suggest_float("x", 0, 1))
"""


def test_the_budget_is_exact_over_processes(url: str) -> None:
    claims = make_claims(url, budget=25)
    for _ in range(5):
        claims.study.enqueue_trial({"x": 0.5})

    def work(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, url, f"host/{index}/0"]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert [one.returncode for one in results] == [0] * 4, results[0].stderr
    trials = claims.study.get_trials(deepcopy=False)
    assert [one.number for one in trials] == list(range(25))
    assert all(one.state == TrialState.COMPLETE for one in trials)


def test_given_back_trials_come_next_with_all_they_had(url: str) -> None:
    claims = make_claims(url, budget=3)
    trial = claim(claims)
    value = trial.suggest_float("x", 0, 1)
    trial.set_user_attr(record.PLAN, {"depth": 1})
    trial.set_user_attr(record.ROLE, record.BASELINE)
    kept = {
        record.ORIGIN: "known good: the last layer",
        record.STAGE: "layer 2",
        record.COSTS: {"parameters": 10},
        record.SECONDS: 1.5,
    }
    for key, what in {**kept, record.DEVICE: "cpu", record.FAILED_PLAN: True}.items():
        trial.set_user_attr(key, what)
    trial.report(0.3, 1)
    trial.report(0.4, 2)
    assert claims.give_back(trial.number, INTERRUPTED)
    assert states(claims) == ["FAIL", "WAITING"]
    assert claims.progress().finished == 0
    assert claims.progress().retried == 1

    again = claim(claims, "host/1/1")
    assert again.number == 1
    assert again.suggest_float("x", 0, 1) == value
    frozen = claims.study.trials[1]
    assert frozen.intermediate_values == {1: 0.3, 2: 0.4}
    assert frozen.user_attrs[record.PLAN] == {"depth": 1}
    assert record.is_baseline(frozen)
    assert {key: frozen.user_attrs[key] for key in kept} == kept
    assert not {record.DEVICE, record.FAILED_PLAN} & frozen.user_attrs.keys()
    assert record.first_attempt(frozen) == 0
    finish(claims, again)
    assert claims.progress().finished == 1


def test_losses_are_capped_and_stops_are_not(url: str) -> None:
    claims = make_claims(url, budget=1)
    for _ in range(2 * MAX_RETRIES):
        assert claims.give_back(claim(claims).number, INTERRUPTED)
    for _ in range(MAX_RETRIES):
        assert claims.give_back(claim(claims).number, LOST)
    last = claim(claims)
    assert not claims.give_back(last.number, LOST)
    assert claims.study.trials[last.number].user_attrs[record.REASON] == f"{LOST}, too often"
    assert claims.progress().failed == 1
    assert claims.claim("host/1/0") is None


def test_a_trial_has_one_successor(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    frozen = claims.study.trials[trial.number]
    assert requeue(claims.study, frozen) and requeue(claims.study, frozen)
    assert states(claims) == ["RUNNING", "WAITING"]
    # What a sweep does that died between queueing and failing.
    assert claims.give_back(trial.number, LOST)
    assert states(claims) == ["FAIL", "WAITING"]


def test_finished_trials_are_not_given_back(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    finish(claims, trial)
    assert not claims.give_back(trial.number, LOST)
    assert states(claims) == ["COMPLETE"]


def test_a_sweep_finds_the_trials_of_lost_workers(url: str) -> None:
    claims = make_claims(url, budget=4)
    ours, others = claim(claims, "host/1/0"), claim(claims, "host/2/0")
    # Of a worker that was killed between claiming and signing.
    unsigned = claims.storage.create_new_trial(claims.study._study_id)
    assert claims.sweep(lambda worker: worker.startswith("host/1/")) == 2
    trials = claims.study.get_trials(deepcopy=False)
    assert trials[ours.number].state == TrialState.FAIL
    assert trials[ours.number].user_attrs[record.REASON] == LOST
    assert trials[2]._trial_id == unsigned
    assert trials[2].state == TrialState.FAIL
    assert trials[others.number].state == TrialState.RUNNING
    assert claims.progress().waiting == 2
    assert claims.sweep() == 0


def test_a_sweep_finds_silent_workers(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    storage: RDBStorage = claims.storage
    storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
        )
    assert claims.sweep() == 1
    assert states(claims) == ["FAIL", "WAITING"]
    assert record.retries(claims.study.trials[1]) == [0]


def test_partly_suggested_trials_keep_what_they_have(url: str) -> None:
    claims = make_claims(url, budget=1)
    trial = claim(claims)
    first = trial.suggest_float("x", 0, 1)
    claims.give_back(trial.number, LOST)
    again = claim(claims)
    assert again.suggest_float("x", 0, 1) == first
    again.suggest_float("y", 0, 1)
    assert claims.study.trials[1].distributions["y"] == FloatDistribution(0, 1)


def test_a_lowered_budget_leaves_queued_trials_in_the_queue(url: str) -> None:
    claims = make_claims(url, budget=2)
    first, second = claim(claims), claim(claims)
    claims.give_back(second.number, INTERRUPTED)
    finish(claims, first)
    claims.study.set_user_attr(record.BUDGET, {"trials": 1, "timeout": None})
    assert claims.claim("host/1/0") is None
    assert claims.progress().done
    assert claims.progress().waiting == 1
