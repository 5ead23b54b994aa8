"""Studies run by real worker processes, which are stopped and killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import UserError
from autotune.runtime import available_cpus
from autotune.storage.rdb.connection import GRACE_PERIOD_S
from autotune.study.engine.launcher import count_slots, resolve_gpus, run_study
from autotune.study.state import attrs
from autotune.study.state.budget import device_hours_used, trials_since_best
from tests.support.commands.inside import call
from tests.support.commands.runs import (
    SMALL,
    environment,
    epochs_running,
    start,
    trials_of,
    wait_for,
)
from tests.support.study.small import small_config

#: Nothing but the baseline is in the queue at first.
BARE = (*SMALL, "search.default_plans=false")
#: Long enough to be caught in the middle.
LONG = (*BARE, "training.epochs=400", "search.pruner=none")


def worker_pids(folder: Path) -> list[int]:
    """Find the worker processes of a study by the log they have open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            log = os.readlink(process / "fd/2")
        except OSError:
            continue
        if log.startswith(str(folder)) and "/logs/" in log:
            found.append(int(process.name))
    return found


def by_state(folder: Path, study: str, state: TrialState) -> list[int]:
    return [one.number for one in trials_of(folder, study) if one.state == state]


def trials_running(folder: Path) -> int:
    """Count the trials that have reported and still run."""
    running = [one for one in trials_of(folder, "tiny") if one.state == TrialState.RUNNING]
    return sum(bool(one.intermediate_values) for one in running)


@pytest.mark.slow
def test_budget_is_exact_and_a_second_run_trains_nothing(tmp_path: Path) -> None:
    arguments = ("run", "digits", *BARE, "search.pruner=none", "--name", "tiny")
    first = call(*arguments, "--workers", "2", "search.trials=4", cwd=tmp_path)
    assert first.code == 0, first.err
    trials = trials_of(tmp_path, "tiny")
    assert [one.state.is_finished() for one in trials] == [True] * 4
    assert attrs.is_baseline(trials[0])
    assert trials[0].params["depth"] == 0
    assert len({one.user_attrs[attrs.WORKER] for one in trials}) > 1

    again = call(*arguments, "search.trials=4", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "nothing was trained" in again.out
    assert len(trials_of(tmp_path, "tiny")) == 4

    more = call(*arguments, "--workers", "1", "search.trials=6", cwd=tmp_path)
    assert more.code == 0, more.err
    assert len(trials_of(tmp_path, "tiny")) == 6


@pytest.mark.slow
def test_ctrl_c_gives_trials_back_and_the_next_run_resumes_them(tmp_path: Path) -> None:
    """The next run is ended by a second Ctrl-C, with workers that do not react to the first."""
    arguments = ("run", "digits", *LONG, "search.trials=2", "--name", "tiny", "--workers", "2")
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: trials_running(tmp_path) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Stopped" in (tmp_path / "out.txt").read_text()
    assert worker_pids(tmp_path) == []
    assert by_state(tmp_path, "tiny", TrialState.RUNNING) == []
    waiting = by_state(tmp_path, "tiny", TrialState.WAITING)
    trials = trials_of(tmp_path, "tiny")
    assert sorted(attrs.first_attempt(trials[number]) for number in waiting) == [0, 1]
    assert all(trials[number].intermediate_values for number in waiting)
    assert attrs.count_progress(trials, 2).failed == 0

    reached = {
        attrs.first_attempt(trials[number]): max(trials[number].intermediate_values)
        for number in waiting
    }
    process = start(*arguments, cwd=tmp_path)
    wait_for(
        lambda: any(
            max(one.intermediate_values, default=0) > reached.get(attrs.first_attempt(one), 0)
            for one in trials_of(tmp_path, "tiny")
            if one.state == TrialState.RUNNING
        )
    )
    resumed = [one for one in trials_of(tmp_path, "tiny") if one.state == TrialState.RUNNING]
    # Not one epoch twice: those that were reported before are not reported again, later ones are.
    for trial in resumed:
        steps = sorted(trial.intermediate_values)
        assert steps == list(range(1, len(steps) + 1))

    for pid in worker_pids(tmp_path):
        os.kill(pid, signal.SIGSTOP)  # workers that cannot react
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert worker_pids(tmp_path) == []
    assert by_state(tmp_path, "tiny", TrialState.RUNNING) == []
    assert by_state(tmp_path, "tiny", TrialState.WAITING) != []


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_goes_on(tmp_path: Path) -> None:
    config = small_config(tmp_path, search__trials=2, search__pruner="none", training__epochs=30)
    pids = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 3 and not pids:
            pids.extend(worker_pids(tmp_path))
            os.kill(pids[0], signal.SIGKILL)

    result = run_study(config, workers=1, on_event=kill)
    assert len(pids) == 1
    trials = result.handle.study.trials
    progress = result.progress
    assert (progress.finished, progress.retried) == (2, 1)
    assert (progress.failed, progress.running, progress.waiting) == (0, 0, 0)
    (lost,) = [one for one in trials if one.state == TrialState.FAIL]
    assert lost.user_attrs[attrs.REASON] == "its worker was lost"
    (successor,) = [one for one in trials if attrs.earlier_attempts(one) == [lost.number]]
    assert successor.state == TrialState.COMPLETE
    assert successor.params == lost.params
    assert result.handle.files.log("small", "worker-0").exists() and worker_pids(tmp_path) == []
    assert sorted(successor.intermediate_values) == list(range(1, 31))
    for epoch, value in lost.intermediate_values.items():
        assert successor.intermediate_values[epoch] == value
    assert list(result.handle.files.root.glob("checkpoints/*/*.pt")) == []


@pytest.mark.slow
def test_workers_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    arguments = ("run", "digits", *LONG, "--name", "tiny", "--workers", "1")
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: epochs_running(trials_of(tmp_path, "tiny")) >= 2)
    process.kill()
    process.wait()
    wait_for(lambda: worker_pids(tmp_path) == [], timeout=60)
    assert by_state(tmp_path, "tiny", TrialState.RUNNING) == []
    assert by_state(tmp_path, "tiny", TrialState.WAITING) != []


@pytest.mark.slow
def test_a_timeout_ends_the_study_between_trials(tmp_path: Path) -> None:
    arguments = ("run", "digits", *BARE, "search.trials=2", "--name", "tiny", "--workers", "1")
    result = call(*arguments, "search.timeout=0.001", cwd=tmp_path)
    assert result.code == 1, result.err
    over = "The study 'tiny' is over (the 0.001 s of the run are over); nothing was trained."
    assert over in result.out
    assert by_state(tmp_path, "tiny", TrialState.WAITING) == [0]

    more = call(*arguments, cwd=tmp_path)
    assert more.code == 0, more.err
    assert "ended: 2 finished trials" in more.out
    assert [one.state.is_finished() for one in trials_of(tmp_path, "tiny")] == [True] * 2


@pytest.mark.slow
def test_the_end_of_the_time_holds_for_a_worker_that_joins(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, search__timeout=1e9, search__pruner="none", training__epochs=30
    )
    studies = []

    def end(event: dict[str, Any]) -> None:
        if event["event"] == "opened":
            studies.append(event["opened"].study)
        if event["event"] == "epoch" and event["epoch"] == 1:
            budget = studies[0].user_attrs[attrs.BUDGET]
            over = {**budget, "until": 1.0, "timeout": 5.0}  # long ago
            studies[0].set_user_attr(attrs.BUDGET, over)

    result = run_study(config, workers=1, on_event=end)
    words = "the 5 s of the run are over"
    assert result.ended is not None and result.ended.text == words
    (trial,) = result.handle.study.trials
    assert trial.state == TrialState.COMPLETE  # what runs is finished
    assert len(trial.intermediate_values) == 30
    joined = call("worker", "small", "--storage", config.storage, cwd=tmp_path)
    assert joined.code == 0, joined.err
    assert joined.out.splitlines()[-1] == (
        f"0 trials finished here; the study 'small' has no more to do: {words}"
    )


@pytest.mark.slow
def test_patience_ends_a_study_of_two_workers(tmp_path: Path) -> None:
    arguments = ("run", "digits", *SMALL, "--name", "tiny", "--workers", "2")
    ended = call(*arguments, "search.trials=60", "search.patience=2", cwd=tmp_path)
    assert ended.code == 0, ended.err
    trials = trials_of(tmp_path, "tiny")
    assert all(one.state.is_finished() for one in trials)
    assert 3 <= len(trials) < 60
    since = trials_since_best(trials, StudyDirection.MAXIMIZE)
    assert 2 <= since <= 3  # one more may have run
    words = f"no better trial in the last {since}"
    assert f"ended: {words}" in ended.out
    assert f"{since}/2 without a better one | time left 0:00" in ended.out
    report = tmp_path / "storage/autotune.files/reports/tiny.html"
    assert words in report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_device_hours_end_a_study_of_two_workers(tmp_path: Path) -> None:
    limit = 2 / 3600
    arguments = ("run", "digits", *SMALL, "--name", "tiny", "--workers", "2")
    arguments += ("search.trials=60", f"search.device_hours={limit}")
    ended = call(*arguments, cwd=tmp_path, processes=True)
    assert ended.code == 0, ended.err
    assert re.search(r"ended: \S+ of \S+ device-hours used", ended.out)
    trials = trials_of(tmp_path, "tiny")
    assert len(trials) < 60
    assert all(one.state != TrialState.RUNNING for one in trials)
    assert device_hours_used(trials, 0.0) >= limit
    for trial in (one for one in trials if one.state != TrialState.WAITING):
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
        assert attrs.device_seconds(trial, 0.0) == pytest.approx(seconds, abs=2)
    again = call(*arguments, cwd=tmp_path)
    assert "device-hours used); nothing was trained." in again.out
    assert len(trials_of(tmp_path, "tiny")) == len(trials)


@pytest.mark.slow
def test_a_plan_that_wants_more_than_the_machine_has_is_infeasible(tmp_path: Path) -> None:
    """Two hidden layers of 65,536 units want 17 GB; the system refuses, for real."""
    arguments = ("run", "digits", *SMALL, "search.default_plans=false", "training.epochs=1")
    arguments += ("space.head.hidden_layers=2", "space.head.units=65536", "search.trials=3")
    command = f"ulimit -v {14 << 20}; exec {sys.executable} -m autotune"
    ended = subprocess.run(
        ["bash", "-c", f'{command} "$@"', "bash", *arguments, "--name", "tiny", "--workers", "1"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "3 of 3 finished: 1 complete, 0 pruned, 2 infeasible, 0 failed" in ended.stdout
    for trial in trials_of(tmp_path, "tiny")[1:]:
        assert re.match(
            r"infeasible: memory: it wanted at least [12]\d,\d{3} MiB, the device has 14,336 MiB",
            trial.user_attrs[attrs.REASON],
        )


@pytest.mark.long
def test_a_full_disk_of_the_database_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        arguments = ("run", "digits", *LONG, "search.trials=2", "--name", "tiny")
        arguments += ("--workers", "1", f"storage=sqlite:///{disk}/a.db", "files=files")
        process = start(*arguments, cwd=tmp_path)
        url = f"sqlite:///{disk}/a.db"

        def trials() -> list[FrozenTrial]:
            return optuna.load_study(study_name="tiny", storage=url).get_trials(deepcopy=False)

        wait_for(
            lambda: (disk / "a.db").exists() and "ready" in (tmp_path / "out.txt").read_text()
        )
        wait_for(lambda: epochs_running(trials()) >= 3)
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        assert process.wait(timeout=120) == 2
        said = (tmp_path / "out.txt").read_text()
        assert "Traceback" not in said and "died" not in said
        assert said.splitlines()[-1].startswith("error: no space left on the disk of the storage")
        (disk / "filler").unlink()
        time.sleep(GRACE_PERIOD_S)  # nobody could write down that the trial was requeued
        process = start(*arguments, cwd=tmp_path)
        wait_for(lambda: any(attrs.earlier_attempts(one) for one in trials()), timeout=180)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_workers_are_counted() -> None:
    assert count_slots(0, None, None) == min(2, available_cpus())
    assert count_slots(4, None, None) == 4
    assert count_slots(4, 3, None) == 3
    assert count_slots(2, None, 3) == 6
    with pytest.raises(UserError, match="--workers: must be at least 1, but got 0"):
        count_slots(1, 0, None)
    with pytest.raises(UserError, match="--workers-per-gpu: must be at least 1, but got -1"):
        count_slots(1, None, -1)
    with pytest.raises(
        UserError, match="--workers 4 and --workers-per-gpu 2 contradict each other"
    ):
        count_slots(1, 4, 2)
    with pytest.raises(UserError, match="--workers-per-gpu 2: no GPU is used; give --workers"):
        count_slots(0, None, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_gpus_are_checked() -> None:
    with pytest.raises(UserError, match="--gpus all: this machine has no CUDA device"):
        resolve_gpus("all")
    for index in ("1", "²"):  # both are digits for Python, and the second is no number
        with pytest.raises(UserError, match=f"'none' or indices below 0, but got '{index}'"):
            resolve_gpus(index)
