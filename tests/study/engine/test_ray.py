"""Studies whose workers are tasks of a real Ray cluster: run, killed, stopped, refused."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import UserError
from autotune.storage.rdb.connection import open_storage
from autotune.study.engine import pool
from autotune.study.engine.launcher import run_study
from autotune.study.engine.ray_mailbox import Mailbox
from autotune.study.engine.ray_workers import ResourceRequest, _cpus_per_worker
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.study.engine.test_launcher import BARE
from tests.support.commands.cluster import QUIET, start_cluster, worker_pids
from tests.support.commands.runs import autotune, epochs_running, start, wait_for
from tests.support.study.small import small_config

RUN = ("run", "digits", *BARE, "search.pruner=none", "--name", "tiny")
RAY = ("--engine", "ray", "--workers", "2")
#: A sampler that does something when a worker of Ray imports it.
OWN = """
import os, sys
from optuna.samplers import RandomSampler
if 'ray' in sys.modules:
    {}
def Mine(**_): return RandomSampler()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with start_cluster() as leads_there:
        yield leads_there


@pytest.fixture
def shared(cluster: dict[str, str], postgres_url: str) -> dict[str, str]:
    """The environment of a run: a cluster, and a storage for it, which has its tables."""
    open_storage(postgres_url, create=True).engine.dispose()
    return {**cluster, "AUTOTUNE_STORAGE": postgres_url}


@functools.cache
def storage_of(url: str) -> RDBStorage:
    return open_storage(url)


def trials_in(url: str) -> list[FrozenTrial]:
    storage = storage_of(url)
    if "tiny" not in optuna.get_all_study_names(storage):
        return []
    return optuna.load_study(study_name="tiny", storage=storage).get_trials(deepcopy=False)


def actors(environment: dict[str, str]) -> str:
    """Ask the cluster for the states of the actors that it has had, and its free CPUs."""
    code = (
        "import ray; ray.init(logging_level='ERROR');"
        "from ray._private.state import actors;"
        "print(*{one['State'] for one in actors().values()}, ray.available_resources()['CPU'])"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return asked.stdout.strip()


@pytest.mark.long
def test_a_killed_worker_is_replaced_by_ray_and_the_budget_is_exact(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    url = shared["AUTOTUNE_STORAGE"]
    process = start(*RUN, *RAY, "training.epochs=25", "search.trials=4", cwd=tmp_path, **shared)
    wait_for(lambda: epochs_running(trials_in(url)) >= 3)
    shown = [" ".join(psutil.Process(pid).cmdline()) for pid in worker_pids("tiny")]
    assert {one.strip() for one in shown} == {"ray::autotune tiny 0", "ray::autotune tiny 1"}
    running = [one for one in trials_in(url) if one.state == TrialState.RUNNING]
    reported = next(one for one in running if one.intermediate_values)
    pid = int(reported.user_attrs[attrs.WORKER].split("/")[1])
    assert pid in worker_pids("tiny")
    os.kill(pid, signal.SIGKILL)
    said = tmp_path / "out.txt"
    assert process.wait(timeout=240) == 0, said.read_text()
    trials = trials_in(url)
    progress = attrs.count_progress(trials, 4)
    assert (progress.complete, progress.retried) == (4, 1)
    assert (progress.failed, progress.running, progress.waiting) == (0, 0, 0)
    (lost,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert lost.number == reported.number
    assert lost.user_attrs[attrs.REASON] == "its worker was lost"
    (successor,) = [trial for trial in trials if attrs.earlier_attempts(trial) == [lost.number]]
    assert sorted(successor.intermediate_values) == list(range(1, 26))
    # Not always that of the replacement: it may start when the other worker has done all.
    assert successor.user_attrs[attrs.WORKER] != lost.user_attrs[attrs.WORKER]
    text = said.read_text()
    assert "was lost and is replaced" in text
    assert "raylet" not in text
    assert worker_pids("tiny") == []
    assert actors(shared) == "DEAD 2.0"


@pytest.mark.long
def test_ctrl_c_gives_trials_back_and_a_second_one_kills(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    url = shared["AUTOTUNE_STORAGE"]
    long = (*RUN, *RAY, "training.epochs=400", "search.trials=2")
    process = start(*long, cwd=tmp_path, **shared)
    wait_for(lambda: sum(bool(one.intermediate_values) for one in trials_in(url)) == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    said = (tmp_path / "out.txt").read_text()
    assert "Stopped. The trials that were running are queued" in said
    assert "Traceback" not in said
    states = [one.state for one in trials_in(url)]
    assert states.count(TrialState.WAITING) == 2 and TrialState.RUNNING not in states
    reasons = {one.user_attrs.get(attrs.REASON) for one in trials_in(url)[:2]}
    assert reasons == {"interrupted"}
    assert worker_pids("tiny") == []

    process = start(*long, cwd=tmp_path, **shared)
    wait_for(lambda: len(worker_pids("tiny")) == 2)
    wait_for(lambda: [one.state for one in trials_in(url)].count(TrialState.RUNNING) == 2)
    for pid in worker_pids("tiny"):
        os.kill(pid, signal.SIGSTOP)  # workers that cannot react
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert TrialState.RUNNING not in [one.state for one in trials_in(url)]
    wait_for(lambda: worker_pids("tiny") == [])
    assert actors(shared) == "DEAD 2.0"


@pytest.mark.long
def test_a_worker_whose_machine_goes_hands_its_trial_back_and_starts_elsewhere(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    url = shared["AUTOTUNE_STORAGE"]
    one = ("--engine", "ray", "--workers", "1", "training.epochs=40", "search.trials=1")
    process = start(*RUN, *one, cwd=tmp_path, **shared)
    wait_for(lambda: epochs_running(trials_in(url)) >= 3)
    os.kill(worker_pids("tiny")[0], signal.SIGTERM)
    assert process.wait(timeout=120) == 0, (tmp_path / "out.txt").read_text()
    trials = trials_in(url)
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs[attrs.REASON] == "interrupted"
    assert sorted(trials[1].intermediate_values) == list(range(1, 41))


@pytest.mark.long
def test_a_mistake_that_only_a_worker_meets_is_one_message(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    (tmp_path / "own.py").write_text(OWN.format("raise OSError('not on this machine')"))
    ended = autotune(*RUN, *RAY, "search.sampler=own.py:Mine", cwd=tmp_path, **shared)
    assert ended.returncode == 2
    assert ended.stderr.count("error:") == 1
    assert "raises OSError: not on this machine" in ended.stderr
    assert "Traceback" not in ended.stderr
    trials = trials_in(shared["AUTOTUNE_STORAGE"])
    assert [trial.state for trial in trials] == [TrialState.WAITING]
    assert actors(shared) == "DEAD 2.0"


@pytest.mark.long
def test_workers_that_die_at_everything_are_given_up(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    die = "print('no such device', flush=True); os._exit(9)"
    (tmp_path / "own.py").write_text(OWN.format(die))
    run = (*RUN, "--engine", "ray", "--workers", "1", "search.sampler=own.py:Mine")
    ended = autotune(*run, cwd=tmp_path, **shared)
    assert ended.returncode == 1
    assert ended.stdout.count("was lost and is replaced") == pool.MAX_RESTARTS
    assert "worker 0 fails whatever it runs and is not started again" in ended.stdout
    assert "workers keep crashing; the last lines of" in ended.stderr
    assert "no such device" in ended.stderr
    assert actors(shared) == "DEAD 2.0"


@pytest.mark.long
def test_a_ray_of_its_own_takes_sqlite_and_leaves_nothing(tmp_path: Path) -> None:
    extra = {**QUIET, "RAY_ADDRESS": "local", "TMPDIR": "/tmp"}
    before = {path.name for path in Path("/tmp").glob("ray-*")}
    ended = autotune(*RUN, *RAY, "search.trials=3", cwd=tmp_path, **extra)
    assert (ended.returncode, ended.stderr) == (0, "")
    study = open_existing("tiny", f"sqlite:///{tmp_path}/storage/autotune.db")
    assert [trial.state.is_finished() for trial in study.study.trials] == [True] * 3
    assert {path.name for path in Path("/tmp").glob("ray-*")} <= before
    wait_for(lambda: worker_pids("tiny") == [])
    no_gpu = autotune(*RUN, *RAY, "--gpus-per-worker", "1", cwd=tmp_path, **extra)
    assert no_gpu.returncode == 2
    assert "--gpus-per-worker 1: Ray has no GPU here; --gpus-per-worker 0" in no_gpu.stderr


@pytest.mark.long
def test_sqlite_is_refused_on_a_cluster(tmp_path: Path, cluster: dict[str, str]) -> None:
    ended = autotune(*RUN, *RAY, cwd=tmp_path, **cluster)
    assert ended.returncode == 2
    assert "sqlite:///storage/autotune.db serves one machine" in ended.stderr
    assert "give a Postgres URL with --storage, or RAY_ADDRESS=local" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "Ray at '127.0.0.1:1' cannot be reached: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:10001", "it must be host:port of a cluster that this machine belongs"),
        ("head", "Ray at 'head' cannot be reached: it must be host:port"),
    ],
)
def test_a_cluster_that_is_not_there(
    address: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused:
        run_study(small_config(tmp_path), engine="ray")
    assert said in str(refused.value)
    assert "RAY_ADDRESS=local for a Ray of this run's own" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package ray: pip install 'autotune\[ray\]'"):
        run_study(small_config(tmp_path), engine="ray")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "ray", "gpus": "0,1"}, "--gpus 0,1: not with --engine ray; Ray chooses"),
        ({"engine": "ray", "workers_per_gpu": 2}, "--workers-per-gpu 2: not with --engine ray; "),
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker 0.5: not with --engine local; on this mach"),
        ({"cpus_per_worker": 2}, "--cpus-per-worker 2: not with --engine local; on this machine"),
        ({"engine": "slurm"}, "--engine: must be one of local, ray, but got 'slurm'"),
        ({"engine": "ray", "workers": 0}, "--workers: must be at least 1, but got 0"),
        ({"engine": "ray", "cpus_per_worker": -1}, "--cpus-per-worker: must be at least 1, but g"),
        ({"engine": "ray", "gpus_per_worker": 2.0}, "--gpus-per-worker: must be from 0 to 1 (a w"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        run_study(small_config(tmp_path), **options)  # type: ignore[arg-type]
    assert str(refused.value).startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_has_its_share_of_the_cpus_per_worker_its_gpu() -> None:
    nodes = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 12.0, "GPU": 2.0}, {"CPU": 96.0}]
    assert _cpus_per_worker(nodes, 1) == 6
    assert _cpus_per_worker(nodes, 0.5) == 3
    assert _cpus_per_worker(nodes, 0.1) == 1
    assert _cpus_per_worker(nodes, 0) == 1
    assert _cpus_per_worker([{"CPU": 4.0}], 1) == 1
    assert ResourceRequest(gpus=0.5) == ResourceRequest(None, 0.5, None)


def test_the_mailbox_keeps_the_order_and_drops_what_was_read() -> None:
    async def visit() -> None:
        mailbox = Mailbox()
        assert [await mailbox.register(), await mailbox.register()] == [0, 1]
        stopped = asyncio.create_task(mailbox.wait_for_stop())
        await mailbox.put({"event": "a"})
        await mailbox.put({"event": "b"})
        assert [event["event"] for event in await mailbox.drain()] == ["a", "b"]
        assert await mailbox.drain() == []
        assert not stopped.done()
        await mailbox.stop()
        await stopped
        await mailbox.wait_for_stop()

    asyncio.run(visit())
