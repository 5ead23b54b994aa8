"""A lost trial has one successor, which has all that its worker reported."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb.models import (
    TrialHeartbeatModel,
    TrialIntermediateValueModel,
    TrialModel,
)
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import func, select

from autotune.errors import StudyError
from autotune.storage.rdb.connection import GRACE_PERIOD_S
from autotune.storage.rdb.fast_rdb import Failure
from autotune.storage.rdb.heartbeat import read_heartbeat_ages
from autotune.storage.rdb.statements import write_report
from autotune.study.doctor.checks import check_study, repair
from autotune.study.doctor.finding import FindingKind
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.retries import INTERRUPTED, MAX_RETRIES, WORKER_LOST, make_retry
from autotune.study.state.trial_queue import Claim, TrialQueue
from tests.study.state.test_trial_queue import (
    claim,
    finish,
    frozen,
    killed,
    make_queue,
    states,
    stopped,
)
from tests.support.commands.runs import wait_for
from tests.support.study.broken import silence
from tests.support.study.small import open_small

FINITE = TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


def opened_anew(queue: TrialQueue) -> TrialQueue:
    """Open the study as another process does."""
    storage = optuna.storages.get_storage(queue.storage.engine.url.render_as_string(False))
    study = optuna.load_study(study_name="s", storage=storage)
    return TrialQueue(study, queue.storage, queue.url, queue.space)


# The curve


def test_a_worker_that_reports_while_another_trial_is_given_back(url: str) -> None:
    """It was alive when the running trials were read, and is gone when it is asked for."""
    queue = make_queue(url)
    first, second = claim(queue, "host/1/0"), claim(queue, "host/1/1")
    first.report(0.1, 1)
    second.report(0.2, 1)

    def is_gone(worker: str) -> bool:
        if worker == "host/1/1":
            second.report(0.3, 2)
        return True

    assert queue.reclaim_stale(is_gone) == 2
    successors = {attrs.earlier_attempts(one)[0]: one for one in queue.study.trials[2:]}
    assert successors[0].intermediate_values == {1: 0.1}
    assert successors[1].intermediate_values == {1: 0.2, 2: 0.3}
    assert successors[1].user_attrs[attrs.RESUMED] == 2


def test_nothing_is_reported_while_a_trial_is_given_back(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that comes in the middle of it is refused, or is in the successor's curve."""
    queue = make_queue(url)
    trial = claim(queue)
    trial.report(0.1, 1)
    refused: list[bool] = []

    def report() -> None:
        try:
            trial.report(0.2, 2)
            refused.append(False)
        except UpdateFinishedTrialError:
            refused.append(True)

    reporting = threading.Thread(target=report)
    original = queue.storage.fail_trial

    def fail_trial(trial_id: int, decide: Any) -> bool:
        def late(current: FrozenTrial) -> Failure:
            reporting.start()
            if not url.startswith("sqlite"):  # there nobody else writes now
                wait_for(lambda: waits_for_a_lock(queue))
            return decide(current)  # type: ignore[no-any-return]

        return original(trial_id, late)

    monkeypatch.setattr(queue.storage, "fail_trial", fail_trial)
    assert queue.requeue(trial.number, WORKER_LOST)
    reporting.join(60)
    assert refused == [True]
    assert frozen(queue, 0).intermediate_values == {1: 0.1}
    assert frozen(queue, 1).intermediate_values == {1: 0.1}


def test_an_epoch_is_stored_with_its_value_or_not_at_all(url: str) -> None:
    queue = make_queue(url)
    trial, statements = claim(queue), list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sqlalchemy.event.listen(queue.storage.engine, "before_cursor_execute", note)
    for epoch in (1, 2):
        curves = {"training_loss": [0.5] * epoch}
        queue.storage.report_epoch(trial._trial_id, epoch, 0.1 * epoch, attrs.CURVES, curves)
    sqlalchemy.event.remove(queue.storage.engine, "before_cursor_execute", note)
    # A transaction of two statements in a file; one statement for a server.
    assert len(statements) == (2 * 3 if url.startswith("sqlite") else 2)
    assert queue.requeue(trial.number, WORKER_LOST)
    for one in (frozen(queue, 0), frozen(queue, 1)):
        assert one.intermediate_values == {1: 0.1, 2: 0.2}
        assert one.user_attrs[attrs.CURVES] == {"training_loss": [0.5, 0.5]}
    with pytest.raises(UpdateFinishedTrialError):
        queue.storage.report_epoch(trial._trial_id, 3, 0.3, attrs.CURVES, {})
    assert frozen(queue, 0).intermediate_values == {1: 0.1, 2: 0.2}
    assert frozen(queue, 0).user_attrs[attrs.CURVES] == {"training_loss": [0.5, 0.5]}


def waits_for_a_lock(queue: TrialQueue) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    engine = sqlalchemy.create_engine(queue.storage.engine.url)
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(sqlalchemy.text(query)))
    finally:
        engine.dispose()


def test_a_report_that_is_being_written_is_waited_for(postgres_url: str) -> None:
    """Postgres shows the rows of before to whoever does not lock them."""
    queue = make_queue(postgres_url)
    trial = claim(queue)
    written: list[bool] = []
    giving = threading.Thread(
        target=lambda: written.append(opened_anew(queue).requeue(trial.number, WORKER_LOST))
    )
    report = {"of": trial._trial_id, "at": 1, "value": 0.5, "kind": FINITE, "uuid": None}
    with queue.storage.engine.begin() as connection:
        connection.execute(write_report("postgresql"), report)
        giving.start()
        wait_for(lambda: waits_for_a_lock(queue))
    giving.join(60)
    assert written == [True]
    assert frozen(queue, 1).intermediate_values == {1: 0.5}


# One transaction


def test_a_kill_between_failing_and_queueing_loses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(url, budget=2)
    silent, gone = claim(queue, "host/1/0"), claim(queue, "host/2/0")
    silent.report(0.4, 1)
    queue.storage.record_heartbeat(silent._trial_id)
    silence(queue.storage, frozen(queue, 0), GRACE_PERIOD_S + 5)

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("autotune.storage.rdb.statements._part_rows", killed)
            queue.reclaim_stale(lambda worker: worker == "host/2/0")
        assert states(queue) == ["RUNNING", "RUNNING"]
        assert attrs.REASON not in frozen(queue, 0).user_attrs
    assert queue.reclaim_stale(lambda worker: worker == "host/2/0") == 2
    assert states(queue) == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert [attrs.earlier_attempts(frozen(queue, one)) for one in (2, 3)] == [[0], [1]]
    assert {frozen(queue, one).user_attrs[attrs.REASON] for one in (0, 1)} == {WORKER_LOST}
    assert frozen(queue, 2).intermediate_values == {1: 0.4}
    assert gone.number == 1 and queue.progress().retried == 2


def test_two_who_give_back_make_one_successor(url: str) -> None:
    queue = make_queue(url)
    trial = claim(queue)
    others = [opened_anew(queue) for _ in range(3)]
    threads = [
        threading.Thread(target=one.requeue, args=(trial.number, WORKER_LOST)) for one in others
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert states(queue) == ["FAIL", "WAITING"]


# What earlier versions left


def fail_as_earlier_versions(queue: TrialQueue, trial: Trial, held_s: float = 30.0) -> None:
    """Do what Optuna's sweep does first; the process is killed before the rest."""
    queue.storage.set_trial_user_attr(trial._trial_id, attrs.DEVICE_SECONDS, held_s)
    queue.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    with queue.storage.engine.begin() as connection:
        ended = datetime.utcfromtimestamp(  # as Optuna stores it
            trial.user_attrs[attrs.CLAIMED_AT]
        ) + timedelta(seconds=30 + GRACE_PERIOD_S)
        connection.execute(
            sqlalchemy.update(TrialModel)
            .where(TrialModel.trial_id == trial._trial_id)
            .values({"_datetime_complete_utc": ended})
        )


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcfromtimestamp")
def test_a_trial_that_was_lost_is_found_and_queued(url: str) -> None:
    queue = make_queue(url, budget=4)
    lost = claim(queue)
    lost.report(0.3, 1)
    fail_as_earlier_versions(queue, lost)
    by_hand = claim(queue)
    fail_as_earlier_versions(queue, by_hand, held_s=30 + GRACE_PERIOD_S - 5)
    own = claim(queue)
    own.set_user_attr(attrs.REASON, "diverged: the loss is nan in epoch 1")
    fail_as_earlier_versions(queue, own)
    tired = claim(queue)
    tired.set_user_attr(attrs.LOST_ATTEMPTS, MAX_RETRIES)
    fail_as_earlier_versions(queue, tired)
    assert queue.progress().failed == 4
    assert queue.reclaim_stale() == 0
    assert states(queue) == ["FAIL"] * 4 + ["WAITING"]
    successor = frozen(queue, 4)
    assert attrs.earlier_attempts(successor) == [0]
    assert successor.intermediate_values == {1: 0.3}
    assert queue.reclaim_stale() == 0 and len(states(queue)) == 5
    assert queue.progress().failed == 3


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcfromtimestamp")
def test_the_doctor_finds_a_lost_trial(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    queue = handle.trial_queue()
    fail_as_earlier_versions(queue, claim(queue))
    found = check_study(handle).findings
    assert [one.kind for one in found] == [FindingKind.LOST]
    assert repair(handle, found) == ["trial 0 was requeued"]
    assert states(queue)[-1] == "WAITING" and check_study(handle).findings == ()


def test_the_doctor_finds_gaps_in_curves(tmp_path: Path) -> None:
    handle = open_small(tmp_path, training__epochs=4, search__trials=8)
    complete, pruned = TrialState.COMPLETE, TrialState.PRUNED
    cases = (
        ([1, 2, 3, 4], complete, 4, ""),
        ([1, 2], pruned, 2, ""),
        ([1, 2, 4], complete, 4, "3"),
        ([1, 2, 3], complete, 3, "4"),
        ([2], pruned, 2, "1"),
        ([4], complete, 4, "1, 2, 3"),
        ([], complete, 0, "1, 2, 3, 4"),
        ([1, 2], pruned, 3, "3"),
    )
    expected = []
    for epochs, state, trained, missing in cases:
        trial = claim(handle.trial_queue())
        for epoch in epochs:
            trial.report(0.5, epoch)
        trial.set_user_attr(attrs.EPOCHS, trained)
        handle.study.tell(trial, 0.5 if state == complete else None, state=state)
        if missing:
            expected.append(f"the curve of trial {trial.number} lacks the epochs {missing}")
    found = [one for one in check_study(handle).findings if one.kind == FindingKind.CURVE]
    assert [one.message.partition(":")[0] for one in found] == expected


@pytest.mark.parametrize("epochs", [(4,), ()])
def test_the_doctor_expects_one_epoch_of_a_solved_head(
    epochs: tuple[int, ...], tmp_path: Path
) -> None:
    handle = open_small(tmp_path, training__epochs=4, baseline__head_start="solved")
    trial = claim(handle.trial_queue())
    for epoch in epochs:
        trial.report(0.5, epoch)
    trial.set_user_attr(attrs.EPOCHS, max(epochs, default=0))
    handle.study.tell(trial, 0.5)
    found = [one for one in check_study(handle).findings if one.kind == FindingKind.CURVE]
    missing = [] if epochs else ["the curve of trial 0 lacks the epochs 4"]
    assert [one.message.partition(":")[0] for one in found] == missing


# A study that is deleted while somebody works at it


def deleted(handle: OpenStudy) -> OpenStudy:
    """Delete a study behind its worker, as ``optuna delete-study`` and the dashboard do."""
    other = open_existing(handle.name, handle.url)
    optuna.delete_study(study_name=handle.name, storage=other.storage)
    return other


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("again", [True, False], ids=["made anew", "gone"])
def test_a_worker_of_a_deleted_study_writes_nothing_into_the_next(
    kind: str, again: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = {}
    if kind == "postgres":
        place = {"storage": request.getfixturevalue("postgres_url"), "files": str(tmp_path)}
    handle = open_small(tmp_path, **place)
    queue = handle.trial_queue()
    before = queue.claim("host/1/0")
    assert isinstance(before, Claim)
    before.trial.report(0.1, 1)
    trial_id = before.trial._trial_id
    deleted(handle)
    if again:
        anew = open_small(tmp_path, baseline__lr=0.5, **place)
        running = claim(anew.trial_queue(), "host/2/0")
        if kind == "sqlite":  # gives the ids of what was deleted again
            assert running._trial_id == before.trial._trial_id
    for writing in (
        lambda: before.trial.report(0.2, 2),
        lambda: before.trial.set_user_attr(attrs.COSTS, {"latency": 7.0}),
        lambda: handle.storage.set_trial_system_attr(trial_id, "constraints", [1.0]),
        lambda: queue.record_device_time(before),
        lambda: handle.storage.record_heartbeat(trial_id),
    ):
        with suppress(UpdateFinishedTrialError, KeyError):
            writing()
    for writing in (
        lambda: queue.finish(before, TrialState.COMPLETE, 0.9),
        lambda: queue.requeue(0, WORKER_LOST),
        lambda: queue.claim("host/1/0"),
        lambda: queue.reclaim_stale(lambda worker: True),
    ):
        with pytest.raises(StudyError, match="the study 'small' was deleted while it ran"):
            writing()
    if again:
        (trial,) = [one for one in anew.study.get_trials() if one.number == running.number]
        assert trial.state == TrialState.RUNNING and trial.intermediate_values == {}
        assert not {attrs.COSTS, attrs.DEVICE_SECONDS} & trial.user_attrs.keys()
        assert "constraints" not in trial.system_attrs
        assert read_heartbeat_ages(anew.storage, [trial._trial_id]).age_s == {}
    with handle.storage.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(TrialHeartbeatModel)) == 0
    if again:
        running.report(0.3, 1)


def test_a_worker_of_a_deleted_study_writes_nothing_into_one_that_is_not_ours(
    tmp_path: Path,
) -> None:
    """A plain study has no uuid; SQLite gives it the ids of the deleted one all the same."""
    handle = open_small(tmp_path)
    before = handle.trial_queue().claim("host/1/0")
    assert isinstance(before, Claim)
    other = deleted(handle)
    plain = optuna.create_study(study_name="plain", storage=other.storage)
    with pytest.warns(UserWarning, match="Heartbeat of storage"):
        theirs = plain.ask()
    assert theirs._trial_id == before.trial._trial_id
    with pytest.raises(UpdateFinishedTrialError, match="is that of another study now"):
        before.trial.report(0.2, 1)
    with pytest.raises(UpdateFinishedTrialError, match="is that of another study now"):
        before.trial.set_user_attr(attrs.COSTS, {"latency": 7.0})
    (trial,) = plain.get_trials()
    assert not trial.intermediate_values and not trial.user_attrs


def test_requeued_trials_come_next_with_all_they_had(url: str) -> None:
    queue = make_queue(url, budget=3)
    trial = claim(queue)
    params, plan = trial.params, frozen(queue, 0).user_attrs[attrs.PLAN]
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
    assert queue.requeue(trial.number, INTERRUPTED)
    assert states(queue) == ["FAIL", "WAITING"]
    assert (queue.progress().finished, queue.progress().retried) == (0, 1)

    again = claim(queue, "host/1/1")
    assert again.number == 1
    successor = frozen(queue, 1)
    assert successor.params == params
    assert successor.intermediate_values == {1: 0.3, 2: 0.4}
    assert successor.user_attrs[attrs.PLAN] == plan
    assert attrs.is_baseline(successor)
    assert {key: successor.user_attrs[key] for key in kept} == kept
    assert not {attrs.DEVICE, attrs.FAILED_PLAN} & successor.user_attrs.keys()
    assert attrs.first_attempt(successor) == 0
    finish(queue, again)
    assert queue.progress().finished == 1


def test_losses_are_capped_and_stops_are_not(url: str) -> None:
    queue = make_queue(url, budget=1)
    for reason in [INTERRUPTED] * 2 * MAX_RETRIES + [WORKER_LOST] * MAX_RETRIES:
        assert queue.requeue(claim(queue).number, reason)
    last = claim(queue)
    assert not queue.requeue(last.number, WORKER_LOST)
    assert queue.study.trials[last.number].user_attrs[attrs.REASON] == f"{WORKER_LOST}, too often"
    assert queue.progress().failed == 1
    assert stopped(queue).kind == "trials"


def test_a_trial_that_gets_further_every_time_is_never_given_up(url: str) -> None:
    queue = make_queue(url, budget=1)
    for epoch in range(1, 2 * MAX_RETRIES):
        trial = claim(queue)
        trial.report(0.5, epoch)
        assert queue.requeue(trial.number, WORKER_LOST)
    for _ in range(MAX_RETRIES - 1):  # the last one above was the first of these
        assert queue.requeue(claim(queue).number, WORKER_LOST)
    assert not queue.requeue(claim(queue).number, WORKER_LOST)


def test_a_trial_has_one_successor(url: str) -> None:
    queue = make_queue(url, budget=1)
    trial = claim(queue)
    # What an earlier version left that died between queueing and failing.
    queue.study.add_trial(make_retry(queue.study.trials[trial.number]))  # type: ignore[arg-type]
    assert states(queue) == ["RUNNING", "WAITING"]
    assert queue.requeue(trial.number, WORKER_LOST)
    assert states(queue) == ["FAIL", "WAITING"]


def test_finished_trials_are_not_requeued(url: str) -> None:
    queue = make_queue(url, budget=1)
    trial = claim(queue)
    finish(queue, trial)
    assert not queue.requeue(trial.number, WORKER_LOST)
    assert states(queue) == ["COMPLETE"]


def test_the_trials_of_lost_workers_are_reclaimed(url: str) -> None:
    queue = make_queue(url, budget=4)
    claim(queue, "host/1/0")
    claim(queue, "host/2/0")
    # Of a worker that was killed in its claim.
    queue.storage.create_new_trial(queue.study._study_id)
    assert queue.reclaim_stale(lambda worker: worker.startswith("host/1/")) == 2
    assert states(queue) == ["FAIL", "RUNNING", "FAIL", "WAITING", "WAITING"]
    assert frozen(queue, 0).user_attrs[attrs.REASON] == WORKER_LOST
    assert queue.reclaim_stale() == 0
