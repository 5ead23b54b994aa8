"""One study on a Postgres server: a launcher, a worker that joins, one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotune.storage.database import open_storage
from autotune.study import record
from autotune.study.opening import open_existing
from autotune.study.record import progress_of
from tests.support.runs import SMALL, autotune, command, environment, start, wait_for

FEW = ("run", "digits", *SMALL, "training.epochs=20", "search.trials=6", "search.pruner=none")


def trials(storage: RDBStorage) -> list[FrozenTrial]:
    if "tiny" not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name="tiny", storage=storage).get_trials(deepcopy=False)


def test_workers_share_a_study_and_one_is_killed(tmp_path: Path, postgres_url: str) -> None:
    url = postgres_url
    extra = {"AUTOTUNE_STORAGE": url}
    # Tables are made by the launcher; looking before would race with it.
    autotune("run", "digits", *SMALL, "--name", "first", "search.trials=1", cwd=tmp_path, **extra)
    storage = open_storage(url)
    launcher = start(*FEW, "--name", "tiny", "--workers", "1", cwd=tmp_path, **extra)
    wait_for(lambda: any(one.intermediate_values for one in trials(storage)))
    with (tmp_path / "joined.txt").open("w") as output:
        joined = subprocess.Popen(
            command("worker", "tiny", "--files", str(tmp_path / "storage/postgres.files")),
            cwd=tmp_path,
            env=environment(**extra),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    workers = [one.user_attrs.get(record.WORKER) for one in trials(storage)]
    (name,) = {worker for worker in workers if worker}
    host, pid, _ = name.rsplit("/", 2)
    assert (host, int(pid)) == (socket.gethostname(), launcher.pid)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)

    assert launcher.wait(timeout=240) == 0, (tmp_path / "out.txt").read_text()
    assert joined.wait(timeout=60) == 0, (tmp_path / "joined.txt").read_text()
    found = trials(storage)
    progress = progress_of(found, 6)
    assert (progress.complete, progress.failed) == (6, 0)
    assert (progress.running, progress.waiting) == (0, 0)
    assert progress.retried == 1
    assert len({one.user_attrs[record.WORKER] for one in found}) == 3
    for trial in found:
        if trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == list(range(1, 21))
    assert open_existing("tiny", url).study.user_attrs[record.BUDGET]["trials"] == 6
