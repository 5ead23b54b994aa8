"""One study on a Postgres server: a launcher, a worker that joins, one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.state.attrs import count_progress
from tests.support.commands.runs import SMALL, command, environment, start, wait_for

FEW = ("run", "digits", *SMALL, "training.epochs=30", "search.trials=4", "search.pruner=none")


def trials(storage: RDBStorage) -> list[FrozenTrial]:
    if "tiny" not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name="tiny", storage=storage).get_trials(deepcopy=False)


def workers(storage: RDBStorage) -> set[str]:
    """Return the workers of all trials that have reported; a queued retry has none."""
    reported = [trial for trial in trials(storage) if trial.intermediate_values]
    return {one.user_attrs[attrs.WORKER] for one in reported if attrs.WORKER in one.user_attrs}


@pytest.mark.slow
def test_workers_share_a_study_and_one_is_killed(tmp_path: Path, postgres_url: str) -> None:
    url = postgres_url
    extra = {"AUTOTUNE_STORAGE": url}
    storage = open_storage(url, create=True)  # looking while a launcher makes them would race
    launcher = start(*FEW, "--name", "tiny", "--workers", "1", cwd=tmp_path, **extra)
    wait_for(lambda: len(workers(storage)) == 1)
    (name,) = workers(storage)
    host, pid, _ = name.rsplit("/", 2)
    assert (host, int(pid)) == (socket.gethostname(), launcher.pid)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGSTOP)  # so that it leaves something to do

    with (tmp_path / "joined.txt").open("w") as output:
        joined = subprocess.Popen(
            command("worker", "tiny", "--files", str(tmp_path / "storage/postgres.files")),
            cwd=tmp_path,
            env=environment(**extra),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    wait_for(lambda: len(workers(storage)) == 2)
    joined.send_signal(signal.SIGSTOP)
    os.kill(int(children[0]), signal.SIGKILL)
    wait_for(lambda: len(workers(storage)) == 3)  # it is replaced
    joined.send_signal(signal.SIGCONT)

    assert launcher.wait(timeout=240) == 0, (tmp_path / "out.txt").read_text()
    assert joined.wait(timeout=60) == 0, (tmp_path / "joined.txt").read_text()
    found = trials(storage)
    progress = count_progress(found, 4)
    assert (progress.complete, progress.failed) == (4, 0)
    assert (progress.running, progress.waiting) == (0, 0)
    assert progress.retried == 1
    assert len({one.user_attrs[attrs.WORKER] for one in found}) == 3
    for trial in found:
        if trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == list(range(1, 31))
    assert open_existing("tiny", url).study.user_attrs[attrs.BUDGET]["trials"] == 4
