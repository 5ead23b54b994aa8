"""The database is restarted while workers are at their trials: nothing is lost or run twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import Trial, TrialState

from autotune.errors import DatabaseLostError, StorageError
from autotune.storage.rdb import retry
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.starting import TrialStarter
from autotune.study.state.trial_queue import Claim
from tests.support.commands.inline import Event, run
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, start, trials_of, wait_for
from tests.support.study.databases import Server, start_server
from tests.support.study.small import open_small

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with start_server() as server:
        yield server


def open_on(server: Server, folder: Path, **overrides: Any) -> OpenStudy:
    """Open a study on a server, with its files in a folder."""
    return open_small(folder, storage=server.fresh_database(), files=str(folder), **overrides)


def outcome(handle: OpenStudy) -> list[Any]:
    """Everything of the trials that an undisturbed run would have as well."""
    return [
        (one.number, one.state, one.value, one.intermediate_values, one.params)
        for one in handle.study.get_trials()
    ]


@pytest.mark.slow
def test_a_study_outlives_restarts_of_its_database(tmp_path: Path, own_server: Server) -> None:
    undisturbed = open_small(tmp_path / "a", search__trials=4, training__epochs=3)
    run(undisturbed)
    handle = open_on(own_server, tmp_path / "b", search__trials=4, training__epochs=3)
    restarts = []

    def restart(event: Event) -> None:
        at = event["event"], event.get("trial"), event.get("epoch")
        if at in (("epoch", 0, 2), ("start", 2, None), ("end", 2, None)):
            own_server.stop()
            threading.Timer(0.5, own_server.start).start()
            restarts.append(at)

    run(handle, until=restart, files=str(tmp_path / "b"))
    assert len(restarts) == 3
    assert outcome(handle) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("queued", [True, False])
def test_a_claim_whose_lock_was_lost_is_made_anew(
    tmp_path: Path, own_server: Server, monkeypatch: pytest.MonkeyPatch, queued: bool
) -> None:
    handle = open_on(own_server, tmp_path, search__trials=2)
    claims = handle.trial_queue()
    if not queued:
        first = claims.claim("host/1/0")
        assert isinstance(first, Claim)
        claims.finish(first, TrialState.FAIL)
    original = TrialStarter.start
    drops = []

    def drop_and_start(self: Any, *given: Any, **named: Any) -> Any:
        started = original(self, *given, **named)
        if not drops:
            trial_id = started._trial_id if isinstance(started, Trial) else started
            drops.append(self.storage.get_trial(trial_id).number)
            own_server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            )
        return started

    monkeypatch.setattr(TrialStarter, "start", drop_and_start)
    claim = claims.claim("host/1/1")
    assert isinstance(claim, Claim)
    (broken,) = drops
    trials = handle.study.get_trials()
    assert trials[broken].state == TrialState.FAIL
    assert attrs.earlier_attempts(trials[claim.trial.number]) == [broken]
    assert trials[claim.trial.number].params == trials[broken].params
    assert trials[claim.trial.number].user_attrs[attrs.LOST_ATTEMPTS] == 0
    # The budget is as it was: what broke off does not count.
    progress = claims.progress()
    assert (progress.running, progress.waiting, progress.retried) == (1, 0, 1)


def test_a_trial_that_somebody_else_has_taken_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=2)
    claims = handle.trial_queue()
    taken = []
    original = TrialStarter._pop

    def take_first(self: Any, queued: Any) -> Any:
        if not taken:
            taken.append(queued.number)
            self.storage.set_trial_state_values(queued._trial_id, TrialState.RUNNING)
            self.storage.set_trial_user_attr(queued._trial_id, attrs.WORKER, "other/1/0")
        return original(self, queued)

    monkeypatch.setattr(TrialStarter, "_pop", take_first)
    claim = claims.claim("host/1/0")
    assert isinstance(claim, Claim)
    assert taken == [0]
    assert claim.trial.number == 1
    running = handle.study.get_trials(states=(TrialState.RUNNING,))
    assert [one.user_attrs[attrs.WORKER] for one in running] == ["other/1/0", "host/1/0"]


@pytest.mark.slow
def test_a_worker_that_starts_meanwhile_waits(tmp_path: Path, own_server: Server) -> None:
    handle = open_on(own_server, tmp_path, search__trials=1)
    handle.storage.engine.dispose()
    own_server.stop()
    threading.Timer(1.0, own_server.start).start()
    run(handle, files=str(tmp_path))
    assert [one.state for one in handle.study.get_trials()] == [TrialState.COMPLETE]


@pytest.mark.slow
def test_a_database_that_stays_away_ends_the_run_with_one_message(
    tmp_path: Path, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_on(own_server, tmp_path, search__trials=1)
    monkeypatch.setattr(retry, "RETRY_FOR_S", 0.5)

    def stop(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] == 1:
            own_server.stop()

    with pytest.raises(StorageError, match="cannot be used"):
        run(handle, until=stop, files=str(tmp_path))
    own_server.start()
    monkeypatch.undo()
    study: Study = handle.study
    assert study.get_trials()[0].state == TrialState.RUNNING
    assert handle.trial_queue().reclaim_stale(lambda worker: True) == 1
    run(handle, files=str(tmp_path))
    assert [one.state for one in study.get_trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_worker_stops_when_its_database_is_deleted(tmp_path: Path) -> None:
    """The trial that runs is not finished, and the one before it is saved."""
    handle = open_small(tmp_path, search__trials=3, training__epochs=1)

    def delete(event: Event) -> None:
        if (event["event"], event.get("trial")) == ("start", 1):
            (tmp_path / "study.db").unlink()

    with pytest.raises(DatabaseLostError, match="was deleted while it was in use"):
        run(handle, until=delete)
    (saved,) = tmp_path.glob("study.saved-*.db")
    saved.rename(tmp_path / "study.db")
    trials = open_existing(handle.name, handle.url).study.get_trials()
    assert [trial.state for trial in trials[:2]] == [TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "replaced", "moved"])
def test_a_run_whose_database_is_lost_is_no_success(how: str, tmp_path: Path, warm: str) -> None:
    workers = "1" if how == "moved" else "2"
    options = ("digits", *SMALL, "search.trials=6", "--name", "it", "--workers", workers)
    process = start("run", *options, cwd=tmp_path, python=warm)
    folder = tmp_path / "storage"
    wait_for(lambda: any(one.state.is_finished() for one in trials_of(tmp_path, "it")))
    if how == "moved":
        folder.rename(tmp_path / "elsewhere")
    elif how == "deleted":
        (folder / "autotune.db").unlink()
    else:
        with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
            connection.execute("CREATE TABLE other (x)")
        (tmp_path / "other.db").replace(folder / "autotune.db")
    assert process.wait(120) == 2
    said = (tmp_path / "out.txt").read_text()
    assert "6/6 finished" not in said and said.count("while it was in use") == 1
    for log in tmp_path.glob("*/autotune.files/logs/it/*.log"):
        assert log.read_text().count(" ERROR ") == 1
    where = "elsewhere/autotune.db" if how == "moved" else "storage/autotune.saved-*.db"
    (saved,) = tmp_path.glob(where)
    assert call("status", "it", "--storage", f"sqlite:///{saved}", cwd=tmp_path).code == 0
