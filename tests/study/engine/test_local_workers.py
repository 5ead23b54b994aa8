"""The processes of a machine's workers: jobs, GPUs that are lost, memory that kills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from optuna.trial import TrialState

from autotune.study.engine import pool
from autotune.study.engine.launcher import run_study
from autotune.study.engine.local_workers import LocalWorkers, local_backend
from autotune.study.engine.pool import Job
from autotune.study.state import attrs
from tests.study.engine.test_launcher import BARE, by_state
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, in_workers, trials_of, with_site
from tests.support.study.small import small_config


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_run_with_their_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_RESTARTS", 1)
    result = call(
        *("run", "digits", *SMALL, "--name", "tiny", "--workers", "1"),
        cwd=tmp_path,
        processes=True,
        **with_site(tmp_path, in_workers("raise SystemExit(9)")),
    )
    assert result.code == 1
    assert "workers keep crashing; the last lines of" in result.err
    assert by_state(tmp_path, "tiny", TrialState.RUNNING) == []


def test_a_worker_that_dies_before_it_reads_its_job_ends_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    told: SimpleQueue[dict[str, Any]] = SimpleQueue()
    backend = LocalWorkers((), 1)
    # More than a pipe holds: the launcher still writes when the process is gone.
    job = Job("s" * 200_000, "sqlite:///a.db", None, "", 0, 1, 1, str(tmp_path / "worker.log"))
    backend.start(0, job, told.put)
    assert told.get(timeout=60) == {"event": "exit", "worker": 0, "code": 1, "lines": []}
    backend.close()


@pytest.mark.slow
def test_processes_wait_for_their_jobs(tmp_path: Path) -> None:
    """They begin without a study; one that died meanwhile is replaced; none is left behind."""
    told: SimpleQueue[dict[str, Any]] = SimpleQueue()
    with local_backend((), 3) as backend:
        assert not backend._idle
        backend.prepare()
        early = dict(backend._idle)
        assert sorted(early) == [0, 1, 2]
        early[1].kill()
        early[1].wait()
        url = f"sqlite:///{tmp_path}/none.db"
        for place in (0, 1):
            job = Job("none", url, None, "", 0, 2, 1, str(tmp_path / f"worker-{place}.log"))
            backend.start(place, job, told.put)
        started = list(backend._started.values())
        assert started[0] is early[0]
        assert started[1] is not early[1]
        ends = [told.get(timeout=60) for _ in range(4)]  # each says what is wrong, and ends
        assert sorted((one["event"], one["worker"]) for one in ends) == [
            *(("error", 0), ("error", 1)),
            *(("exit", 0), ("exit", 1)),
        ]
        assert early[2].poll() is None
    assert all(popen.poll() is not None for popen in (*early.values(), *started))


@pytest.mark.slow
def test_a_process_whose_launcher_ends_without_a_job_for_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autotune.study.engine.worker_main"]
    ended = subprocess.run(command, input="", capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


#: The loss fails once as it does on a GPU that is lost.
LOST_GPU = """
import pathlib, torch
from tests.support.cuda import accelerator_error
calls, forward = 0, torch.nn.CrossEntropyLoss.forward
def lost(self, *given):
    global calls
    calls += 1
    once = pathlib.Path(__file__).with_name('lost')
    if calls > 20 and not once.exists():
        once.touch()
        raise accelerator_error('device-side assert triggered')
    return forward(self, *given)
torch.nn.CrossEntropyLoss.forward = lost
"""


@pytest.mark.slow
def test_a_process_that_lost_its_gpu_is_replaced_and_its_trial_goes_on(tmp_path: Path) -> None:
    ended = call(
        *("run", "digits", *BARE, "training.epochs=15", "training.batch_size=16"),
        *("search.trials=1", "--name", "tiny", "--workers", "1"),
        cwd=tmp_path,
        processes=True,
        **with_site(tmp_path, in_workers(LOST_GPU)),
    )
    assert ended.code == 0, ended.err + ended.out
    assert ended.out.count("worker 0 failed (exit code 75) and is replaced") == 1
    assert "device-side assert triggered" in ended.out  # the end of its log
    first, second = trials_of(tmp_path, "tiny")
    reason = first.user_attrs[attrs.REASON]
    assert reason.startswith("its worker was lost: AcceleratorError: CUDA error: device-side")
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert attrs.earlier_attempts(second) == [0]
    assert sorted(second.intermediate_values) == list(range(1, 16))
    assert first.intermediate_values.items() <= second.intermediate_values.items()


#: The worker that comes first lives, every other one dies and leaves a line in its log.
DEADLY = r"""
import os, pathlib
here = pathlib.Path(__file__).parent
try:
    (here / 'taken').touch(exist_ok=False)
except FileExistsError:
    logs = here.parent / 'study.files/logs/small'
    logs.mkdir(parents=True, exist_ok=True)
    for place in (0, 1):  # it cannot know which one is its own
        (logs / f'worker-{place}.log').write_text('one line\nno such device\n')
    os._exit(7)
"""


@pytest.mark.slow
def test_a_place_that_kills_its_workers_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = with_site(tmp_path, in_workers(DEADLY))
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(pool, "MAX_RESTARTS", 1)
    events: list[dict[str, Any]] = []
    config = small_config(tmp_path, search__trials=4)
    result = run_study(config, workers=2, gpus="none", on_event=events.append)
    assert result.progress.complete == 4
    (place,) = {one["worker"] for one in events if one["event"] == "exit" and one["code"] == 7}
    exits = [one for one in events if one["event"] == "exit" and one["worker"] == place]
    assert [(one["code"], one.get("replaced", False)) for one in exits] == [(7, True), (7, False)]
    assert exits[0]["lines"] == ["one line", "no such device"]
    (sick,) = [one for one in events if one["event"] == "worker_unhealthy"]
    assert sick["worker"] == place
    assert Path(sick["log"]).name == f"worker-{place}.log"
