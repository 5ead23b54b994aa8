"""One suite over all storages, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from autotune.storage.rdb.connection import open_storage, storage_errors
from autotune.storage.rdb.heartbeat import Heartbeat
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.rdb.study_lock import study_lock
from tests.support.commands.runs import wait_for

#: What every child process starts with; the URL and the folder come as arguments.
PROLOGUE = """
import sys, time, warnings
from pathlib import Path
import optuna
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.study_lock import study_lock
url, folder = sys.argv[1], Path(sys.argv[2])
"""
POP = """
warnings.filterwarnings("ignore", message="Heartbeat of storage")
study = optuna.load_study(study_name="s", storage=open_storage(url))
print("ready", flush=True)
sys.stdin.readline()
taken = []
while True:
    trial = study.ask()
    if "queued" not in trial.user_attrs:
        break
    taken.append(trial.user_attrs["queued"])
    study.tell(trial, 1.0)
print(taken, flush=True)
"""
CREATE = """
print("ready", flush=True)
sys.stdin.readline()
storage = open_storage(url, create=True)
optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
print([], flush=True)
"""
COUNT = """
storage = open_storage(url)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    with study_lock(storage, url, "s"):
        count = int((folder / "count").read_text())
        time.sleep(0.002)
        (folder / "count").write_text(str(count + 1))
print([], flush=True)
"""
HOLD = """
storage = open_storage(url)
with study_lock(storage, url, sys.argv[3]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, closed_connections: None
) -> str:
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def storage(url: str) -> RetryingStorage:
    return open_storage(url, create=True)


@pytest.fixture
def engine(url: str, storage: RetryingStorage) -> sqlalchemy.Engine:
    """What reads and changes the database behind the back of the storage."""
    return open_storage(url).engine


def spawn(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run_together(code: str, count: int, *arguments: str) -> list[list[int]]:
    """Run processes that start their work at the same moment; return what they print."""
    processes = [spawn(code, *arguments) for _ in range(count)]
    try:
        assert [line_of(process) for process in processes] == ["ready"] * count
        for one in processes:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        answers = [json.loads(line_of(process) or "null") for process in processes]
        assert [process.wait(60) for process in processes] == [0] * count
        return answers
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def new_study(storage: RetryingStorage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=storage, direction="maximize")


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def ask() -> Any:
    def ask(study: optuna.Study) -> optuna.Trial:
        with pytest.warns(UserWarning, match="Heartbeat of storage"):
            return study.ask()

    return ask


def test_a_study_is_there_when_it_is_opened_again(
    url: str, storage: RetryingStorage, ask: Any
) -> None:
    study = new_study(storage)
    trial = ask(study)
    trial.suggest_float("lr", 0, 1)
    study.tell(trial, 0.5)
    study.set_user_attr("definition", {"a": [1, 0.0, None, "é"]})
    for create in (False, True):
        again = optuna.load_study(study_name="s", storage=open_storage(url, create=create))
        assert again.user_attrs == study.user_attrs
        assert again.best_trial == study.best_trial


@pytest.mark.slow
def test_several_processes_make_the_same_study(url: str, tmp_path: Path) -> None:
    run_together(CREATE, 4, url, str(tmp_path))
    assert optuna.get_all_study_names(open_storage(url)) == ["s"]


def test_no_queued_trial_is_run_twice(url: str, storage: RetryingStorage, tmp_path: Path) -> None:
    study = new_study(storage)
    for number in range(30):
        study.enqueue_trial({}, user_attrs={"queued": number})
    taken = run_together(POP, 2, url, str(tmp_path))
    assert Counter(number for one in taken for number in one) == Counter(range(30))


def test_the_study_lock_lets_one_in_at_a_time(
    url: str, storage: RetryingStorage, tmp_path: Path
) -> None:
    (tmp_path / "count").write_text("0")
    run_together(COUNT, 2, url, str(tmp_path))
    assert (tmp_path / "count").read_text() == "40"


def in_time(action: threading.Thread, seconds: float) -> bool:
    action.start()
    action.join(seconds)
    return not action.is_alive()


def take(storage: RetryingStorage, url: str, study: str) -> threading.Thread:
    def run() -> None:
        with study_lock(storage, url, study):
            pass

    return threading.Thread(target=run, daemon=True)


def test_the_study_lock_goes_with_a_holder_that_is_killed(
    url: str, storage: RetryingStorage, tmp_path: Path
) -> None:
    holder = spawn(HOLD, url, str(tmp_path), "s")
    try:
        assert line_of(holder) == "held"
        waiting = take(storage, url, "s")
        assert not in_time(waiting, 0.5)
        os.kill(holder.pid, signal.SIGKILL)
        waiting.join(20)
        assert not waiting.is_alive()
    finally:
        holder.kill()
        holder.communicate()


def test_the_study_lock_is_free_after_an_error(url: str, storage: RetryingStorage) -> None:
    with pytest.raises(ValueError, match="inside"), study_lock(storage, url, "s"):
        raise ValueError("inside")
    assert in_time(take(storage, url, "s"), 20)


# Heartbeat


def beats(engine: sqlalchemy.Engine, trial_id: int) -> Any:
    with engine.connect() as connection:
        return connection.execute(
            sqlalchemy.text("SELECT heartbeat FROM trial_heartbeats WHERE trial_id = :id"),
            {"id": trial_id},
        ).scalar()


def test_a_heartbeat_is_written_from_the_first_moment(
    storage: RetryingStorage, engine: sqlalchemy.Engine, ask: Any
) -> None:
    trial = ask(new_study(storage))
    assert beats(engine, trial._trial_id) is None
    with Heartbeat(storage, trial._trial_id):
        wait_for(lambda: beats(engine, trial._trial_id) is not None)


def test_a_heartbeat_outlives_a_write_that_fails(
    storage: RetryingStorage, engine: sqlalchemy.Engine, ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trial = ask(new_study(storage))
    broken = threading.Event()
    broken.set()

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        ours = threading.current_thread().name == "heartbeat"  # not the reading of this test
        if ours and broken.is_set() and "trial_heartbeats" in statement:
            broken.clear()
            raise sqlalchemy.exc.OperationalError(statement, {}, Exception("server went away"))

    sqlalchemy.event.listen(storage.engine, "before_cursor_execute", fail)
    with Heartbeat(storage, trial._trial_id, interval_s=0.05):
        wait_for(lambda: beats(engine, trial._trial_id) is not None)
    assert not broken.is_set()
    assert f"heartbeat of trial id {trial._trial_id}" in caplog.text
    assert "server went away" in caplog.text


# Errors


def test_other_errors_pass(url: str) -> None:
    with pytest.raises(RuntimeError, match="of another kind"), storage_errors(url):
        raise RuntimeError("of another kind")
    with pytest.raises(optuna.exceptions.DuplicatedStudyError), storage_errors(url):
        raise optuna.exceptions.DuplicatedStudyError
