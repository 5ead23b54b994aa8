"""What is tried again while the storage is unavailable, and what is not."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from autotune.errors import StorageError
from autotune.storage.rdb import connection as database
from autotune.storage.rdb import retry
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.retry import (
    LockLostError,
    call_with_retry,
    is_transient,
    was_unavailable,
)
from autotune.storage.rdb.study_lock import study_lock
from tests.support.study.databases import Server, start_server

#: ``ask`` outside of ``optimize``, as in autotune itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),
    pytest.mark.usefixtures("closed_connections"),
]


def operational(error: Exception) -> sqlalchemy.exc.OperationalError:
    return sqlalchemy.exc.OperationalError("SELECT 1", {}, error)


def wrapped(error: Exception) -> StorageInternalError:
    found = StorageInternalError("during the commit")
    found.__cause__ = error
    return found


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (operational(sqlite3.OperationalError("database is locked")), True),
        (wrapped(operational(sqlite3.OperationalError("database is locked"))), True),
        (operational(sqlite3.OperationalError("database or disk is full")), False),
        (operational(sqlite3.OperationalError("no such table: trials")), False),
        (operational(sqlite3.OperationalError("attempt to write a readonly database")), False),
        (operational(psycopg.OperationalError("server closed the connection")), True),
        (operational(psycopg.OperationalError("the database system is starting up")), True),
        (operational(psycopg.OperationalError("password authentication failed")), False),
        (operational(psycopg.OperationalError('database "x" does not exist')), False),
        (operational(psycopg.OperationalError("No space left on device")), False),
        (sqlalchemy.exc.TimeoutError("QueuePool limit"), True),
        (sqlalchemy.exc.ProgrammingError("SELECT", {}, psycopg.ProgrammingError("x")), False),
        (LockLostError("gone"), True),
        (UpdateFinishedTrialError("taken"), False),
        (OSError("the disk is gone"), False),
        (StorageInternalError("no cause"), False),
        (StorageError("there is no database"), False),
    ],
)
def test_what_may_be_over_in_a_moment(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


def test_a_call_is_repeated_while_it_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retry, "_last_unavailable", float("-inf"))
    assert not was_unavailable(within_s=60)
    left = [operational(psycopg.OperationalError("password=geheim closed"))] * 2

    def call(value: int) -> int:
        if left:
            raise left.pop()
        return value

    assert call_with_retry(call, 3) == 3
    assert caplog.text.count("storage unavailable") == 2
    assert "geheim" not in caplog.text
    assert was_unavailable(within_s=60)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_FOR_S", 0.5)
    calls = []

    def call() -> None:
        calls.append(1)
        raise operational(psycopg.OperationalError("closed"))

    with pytest.raises(sqlalchemy.exc.OperationalError):
        call_with_retry(call)
    assert len(calls) > 1


def test_a_write_lock_that_outlasts_the_timeout_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", create=True)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    with sqlite3.connect(tmp_path / "study.db", check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(1.0, other.rollback).start()
        trial.report(0.5, 1)
        trial.set_user_attr("told", "yes")
    assert study.trials[0].intermediate_values == {1: 0.5}
    assert study.trials[0].user_attrs["told"] == "yes"
    other.close()


@pytest.fixture(scope="module")
def own_server() -> Any:
    with start_server() as server:
        yield server


@pytest.mark.slow
def test_a_server_that_restarts_loses_no_report(own_server: Server) -> None:
    storage = open_storage(own_server.fresh_database(), create=True)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial.report(0.1, 1)
    own_server.stop()
    threading.Timer(1.0, own_server.start).start()
    trial.report(0.2, 2)
    assert trial.study.get_trials()[0].intermediate_values == {1: 0.1, 2: 0.2}
    study.tell(trial, 0.2)
    assert study.trials[0].state == TrialState.COMPLETE


def test_nothing_is_repeated_under_a_lock(own_server: Server) -> None:
    """It went with the connection: somebody else may hold it by now."""
    url = own_server.fresh_database()
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage)
    engine = storage.engine
    own_server.run("SELECT 1")

    def drop() -> None:
        own_server.run(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        )

    lost = pytest.raises(LockLostError, match="the lock of 'a' was lost with its connection")
    with lost, study_lock(storage, url, "a"):
        drop()
    # It can be had again, and what broke off inside is told as it was.
    with pytest.raises(ZeroDivisionError), study_lock(storage, url, "a"):
        raise ZeroDivisionError
    seen = []

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "trial_user_attributes" in statement:
            seen.append(statement)
            raise operational(psycopg.OperationalError("server closed the connection"))

    trial = study.ask()
    sqlalchemy.event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(sqlalchemy.exc.OperationalError), study_lock(storage, url, "a"):
        trial.set_user_attr("a", 1)
    assert len(seen) == 1
    sqlalchemy.event.remove(engine, "before_cursor_execute", fail)
    with study_lock(storage, url, "a"):
        trial.set_user_attr("a", 1)
