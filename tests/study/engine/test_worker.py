"""A worker in this process: trials, their records, and how they fail."""

from __future__ import annotations

import errno
import json
import math
import re
import socket
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from safetensors.torch import load_file

from autotune.errors import (
    DeviceBusyError,
    DeviceError,
    DiskFullError,
    DivergedError,
    PlanError,
    StudyError,
    UserError,
    WorkerError,
)
from autotune.models.network import Network, build_network
from autotune.plan import TrialPlan
from autotune.search import ranking
from autotune.search.study_view import DEVICE_MEMORY
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.engine import worker as worker_module
from autotune.study.engine.worker import Job, build_context, run_worker, worker_name
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs, oom
from autotune.study.state.budget import StopReason
from autotune.study.state.trial_queue import MAX_RETRIES, Claim
from autotune.study.trial import build
from autotune.study.trial import run as trial_module
from autotune.study.trial.build import build_trainer
from autotune.training.inputs.batches import Inputs
from autotune.training.metrics import Metrics
from autotune.training.trainer import Trainer
from tests.support.cuda import accelerator_error
from tests.support.runs import wait_for
from tests.support.small import open_small

pytestmark = pytest.mark.usefixtures("idle_machine")


def job(handle: OpenStudy, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "study": handle.name,
        "storage": handle.url,
        "files": None,
        "worker": "host/1/0",
        "index": 0,
        "workers": 1,
        "threads": 1,
        "log": "here",
    }
    return Job(**{**values, **changes})


def run(handle: OpenStudy, stop: threading.Event | None = None) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    run_worker(job(handle), stop or threading.Event(), events.append)
    return events


def picture(handle: OpenStudy, name: str, number: int = 0) -> bytes:
    """Read the file of that name which goes with a trial."""
    trial = handle.study.get_trials()[number]
    (found,) = [
        one for one in get_all_artifact_meta(trial, storage=handle.storage) if one.filename == name
    ]
    return (handle.files.artifacts / found.artifact_id).read_bytes()


def test_no_two_workers_have_one_name() -> None:
    """Containers share a host's name and have the same process numbers."""
    names = {worker_name(7, 0) for _ in range(10)}
    assert len(names) == 10
    for name in names:
        host, process, place = name.rsplit("/", 2)
        assert (host, process, place.partition("-")[0]) == (socket.gethostname(), "7", "0")


def test_a_study_from_start_to_end(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    events = run(handle)
    assert [one["trial"] for one in events if one["event"] == "end"] == [0, 1, 2]
    epochs = [(one["trial"], one["epoch"]) for one in events if one["event"] == "epoch"]
    assert epochs[:2] == [(0, 1), (0, 2)]

    trials = handle.study.get_trials()
    assert [one.state for one in trials] == [TrialState.COMPLETE] * 3
    space = set(trials[1].params)
    for trial in trials:
        attributes = trial.user_attrs
        assert set(trial.params) == space
        assert trial.value == attributes[attrs.METRICS]["accuracy"]
        assert trial.value == trial.intermediate_values[2]
        assert attributes[attrs.EPOCHS] == 2
        assert attributes[attrs.SECONDS] > 0
        assert attributes[attrs.DEVICE] == "cpu"
        names = [one.filename for one in get_all_artifact_meta(trial, storage=handle.storage)]
        pictures = {"learning_curve.png", "confusion_matrix.png", "worst_images.jpg"}
        assert pictures <= set(names)
        # Short attributes: the dashboard reads them all.
        assert len(json.dumps(attributes)) < 2000
    assert trials[0].user_attrs[attrs.TRAINABLE_PARAMETERS] == 970
    files = StudyPaths.from_url(handle.url)
    assert not list(files.root.glob("checkpoints/*/*.pt"))


def test_weights_of_the_best_can_be_loaded_into_its_network(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    run(handle)
    best = ranking.best_trial(handle.study.get_trials(), handle.study.direction)
    assert best is not None
    (weights,) = [
        one
        for one in get_all_artifact_meta(best, storage=handle.storage)
        if one.filename == "weights.safetensors"
    ]
    ctx = build_context(handle)
    plan = attrs.trial_plan(best)
    assert plan is not None
    backbone = ctx.resources.of(plan.backbone).backbone
    network = build_network(backbone, plan, 10, seed=99)
    network.load_trainable_state(load_file(handle.files.artifacts / weights.artifact_id))
    training = build_trainer(plan, ctx)
    training.network.load_state_dict(network.state_dict())
    assert training.validate().accuracy == best.value


def test_equal_plans_have_equal_values(tmp_path: Path) -> None:
    """Rerun (contract 9): on the CPU, bit by bit."""
    handle = open_small(tmp_path)
    run(handle)
    trial = handle.study.get_trials()[2]
    plan = attrs.trial_plan(trial)
    assert plan is not None
    training = build_trainer(plan, build_context(handle))
    values = {result.epoch: result.metrics.accuracy for result in training.run() if result.metrics}
    assert values == trial.intermediate_values
    assert training.metrics is not None
    assert training.metrics.to_json() == trial.user_attrs[attrs.METRICS]


def test_images_that_there_is_no_room_for_give_the_same_values(tmp_path: Path) -> None:
    plenty = open_small(tmp_path / "plenty", cache__features="off", search__trials=1)
    little = {"disk_gb": 5e-5, "memory_gb": 0, "features": "off"}
    values, pictures = [], []
    for handle in (plenty, open_small(tmp_path / "little", cache=little, search__trials=1)):
        run(handle)
        (trial,) = handle.study.trials
        values.append((trial.intermediate_values, trial.user_attrs[attrs.METRICS]))
        pictures.append(picture(handle, "worst_images.jpg"))
    assert values[0] == values[1]
    assert pictures[0] == pictures[1]
    ctx = build_context(handle)
    material = ctx.resources.of(ctx.space.backbone)
    assert not isinstance(material.task.store.images, np.ndarray)
    assert material.cache_bytes == 0


def test_the_test_part_is_not_decoded(tmp_path: Path) -> None:
    """Test once (contract 8): no image of the test part is in the store of a worker."""
    ctx = build_context(open_small(tmp_path))
    task = ctx.resources.of(ctx.space.backbone).task
    info = task.info
    assert info.test == 898
    assert len(task.store.indices) == info.train + info.validation


def test_a_diverged_trial_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path, space__training__lr=100.0, training__clip_grad_norm=None,
        space__trainable_layers=5, space__training__optimizer="sgd", space__layers={},
        baseline__lr=0.01,
    )  # fmt: skip
    run(handle)
    trials = handle.study.get_trials()
    assert len(trials) == 3
    failed = [one for one in trials if one.state == TrialState.FAIL]
    assert len(failed) == 2
    for trial in failed:
        assert trial.user_attrs[attrs.REASON].startswith("diverged: ")
        assert trial.user_attrs[attrs.FAILED_PLAN] is True
        assert attrs.PLAN in trial.user_attrs
        assert all(math.isfinite(one) for one in trial.intermediate_values.values())
    assert ranking.best_trial(trials, handle.study.direction) is trials[0]
    assert attrs.pruned_epochs(trials, 2) == 0
    assert handle.progress().finished == 3


def test_a_value_that_is_no_number_fails_the_trial_and_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, training__objective="log_loss")
    objective = Metrics.objective

    def broken(metrics: Metrics, name: str) -> float:
        return objective(metrics, name) if len(handle.study.get_trials()) < 2 else math.inf

    monkeypatch.setattr(Metrics, "objective", broken)
    run(handle)
    trials = handle.study.get_trials()
    assert [one.state for one in trials] == [TrialState.COMPLETE] + [TrialState.FAIL] * 2
    for trial in trials[1:]:
        assert trial.user_attrs[attrs.REASON] == "diverged: the log_loss is inf in epoch 1"
        assert trial.intermediate_values == {}
    assert ranking.best_trial(trials, handle.study.direction) == trials[0]


def test_time_on_the_device_is_that_of_each_attempt(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            stop.set()

    run_worker(job(handle), stop, on_event)
    run(handle)
    first, second = handle.study.get_trials()
    for trial in (first, second):
        assert trial.duration is not None
        seconds = trial.duration.total_seconds()
        assert attrs.device_seconds(trial, 0.0) == pytest.approx(seconds, abs=0.5)
    assert second.user_attrs[attrs.SECONDS] > first.user_attrs[attrs.SECONDS]
    assert StopReason.from_study(handle.study) == StopReason("trials", "1 finished trial")


def test_a_worker_waits_for_what_others_bring(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=9, search__patience=1, training__epochs=1)
    claims = handle.trial_queue()
    baseline, other = claims.claim("other/1/0"), claims.claim("other/1/1")
    assert isinstance(baseline, Claim) and isinstance(other, Claim)
    claims.finish(baseline, TrialState.COMPLETE, 1.0)  # nothing is better, whatever is drawn
    third = claims.claim("other/1/0")
    assert isinstance(third, Claim)
    claims.finish(third, TrialState.PRUNED)
    events: list[dict[str, Any]] = []
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run_worker, job(handle), stop, events.append)
        try:
            wait_for(lambda: {"event": "waiting"} in events)
            # Its worker goes silent: the one that waits finds that out, and runs the retry.
            trial = other.trial._trial_id
            handle.storage.record_heartbeat(trial)
            with handle.storage.engine.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour') "
                    f"WHERE trial_id = {trial}"
                )
            ended = result.result(timeout=120)
        finally:
            stop.set()
    assert ended == StopReason.from_study(handle.study)
    assert ended is not None and ended.kind == "patience"
    assert [one["trial"] for one in events if one["event"] == "start"] == [3]
    trials = handle.study.get_trials()
    assert attrs.earlier_attempts(trials[3]) == [other.trial.number]
    assert trials[3].state == TrialState.COMPLETE
    assert events.count({"event": "waiting"}) == 1


def test_the_pruner_follows_the_workers_of_all_launchers(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        search__trials=8,
        search__pruner="median",
        training__epochs=5,
        space__training__head_only_epochs=[0, 2],
    )
    claims = handle.trial_queue()
    others = [claims.claim(f"other/1/{worker}") for worker in range(5)]
    asked: list[tuple[Any, ...]] = []
    run_original, make_original = worker_module.run_trial, worker_module.make_pruner

    def make(*given: Any) -> Any:
        asked.append(given)
        return make_original(*given)

    def end_others(trial: Any, ctx: Any, *rest: Any) -> Any:
        for other in others:
            assert isinstance(other, Claim)
            claims.finish(other, TrialState.FAIL)
        others.clear()
        return run_original(trial, ctx, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "run_trial", end_others)
        patch.setattr(worker_module, "make_pruner", make)
        run_worker(job(handle, workers=2), threading.Event(), lambda event: None)
    # Epochs, workers, the epochs of the head alone.
    assert asked == [("median", 5, 6, 2), ("median", 5, 2, 2)]


def test_a_stop_gives_the_trial_back_and_another_worker_resumes_it(tmp_path: Path) -> None:
    undisturbed = open_small(tmp_path / "a", search__trials=1, training__epochs=4)
    run(undisturbed)
    handle = open_small(tmp_path / "b", search__trials=1, training__epochs=4)
    stop = threading.Event()
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "epoch" and event["epoch"] == 2:
            stop.set()

    run_worker(job(handle), stop, on_event)
    assert events[-1]["state"] == "interrupted"
    assert handle.progress().waiting == 1
    resumed = run(handle)
    assert [one["epoch"] for one in resumed if one["event"] == "epoch"] == [3, 4]
    (expected,) = undisturbed.study.get_trials()
    trials = handle.study.get_trials()
    assert trials[1].state == TrialState.COMPLETE
    assert trials[1].value == expected.value
    assert trials[1].intermediate_values == expected.intermediate_values
    assert trials[1].user_attrs[attrs.METRICS] == expected.user_attrs[attrs.METRICS]
    assert trials[1].user_attrs[attrs.SECONDS] > trials[0].user_attrs[attrs.SECONDS]


def test_a_trial_lost_after_its_last_epoch_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as abrupt as a kill: nothing is told

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trial_module, "store_artifacts", killed)
        run(handle)
    ctx = build_context(handle)
    assert handle.trial_queue().reclaim_stale(lambda worker: True) == 1
    events = run(handle)
    assert [one["event"] for one in events] == ["ready", "start", "end"]
    done = handle.study.get_trials()[1]
    assert done.state == TrialState.COMPLETE
    plan = attrs.trial_plan(done)
    assert plan == TrialPlan.from_json(done.user_attrs[attrs.PLAN])
    assert plan == ctx.space.baseline(ctx.config.baseline)
    assert done.value == done.intermediate_values[2]


@pytest.mark.parametrize("error", [RuntimeError, PlanError])
def test_a_trial_that_fails_after_it_was_given_away_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    handle = open_small(tmp_path, search__trials=2)
    claims = handle.trial_queue()
    original = build.build_network
    checkpoints = []

    def hang(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(build, "build_network", original)
        checkpoint = handle.files.checkpoint(handle.name, 0)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_bytes(b"")  # the successor's by now
        checkpoints.append(checkpoint)
        assert claims.reclaim_stale(lambda worker: True) == 1
        with checkpoint.open():
            raise error("too late")

    monkeypatch.setattr(build, "build_network", hang)
    kept: list[bool] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event.get("state") == "lost":
            kept.append(checkpoints[0].exists())
            checkpoints[0].unlink()

    events: list[dict[str, Any]] = []
    run_worker(job(handle), threading.Event(), on_event)
    ends = [(one["trial"], one["state"]) for one in events if one["event"] == "end"]
    assert ends == [(0, "lost"), (1, "complete"), (2, "complete")]
    assert kept == [True]
    trials = handle.study.get_trials()
    assert attrs.earlier_attempts(trials[1]) == [0]
    assert attrs.FAILED_PLAN not in trials[0].user_attrs


def test_what_a_worker_wrote_after_its_trial_was_finished_elsewhere_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that was frozen between its report and its checkpoint."""
    handle = open_small(tmp_path, search__trials=1)
    original = build.build_network

    def freeze(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(build, "build_network", original)
        assert handle.trial_queue().reclaim_stale(lambda worker: True) == 1
        run(handle)
        checkpoint = handle.files.checkpoint(handle.name, 0)
        assert not checkpoint.exists()
        checkpoint.write_bytes(b"")
        raise PlanError("too late")

    monkeypatch.setattr(build, "build_network", freeze)
    events = run(handle)
    assert [one["state"] for one in events if one["event"] == "end"] == ["lost"]
    assert handle.study.trials[1].state == TrialState.COMPLETE
    assert not handle.files.checkpoint(handle.name, 0).exists()


def test_bad_trials_prune(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=12, training__epochs=6, search__sampler="random")
    run(handle)
    pruned = [one for one in handle.study.get_trials() if one.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert max(trial.intermediate_values) < 6
        assert trial.user_attrs[attrs.EPOCHS] == max(trial.intermediate_values)
        names = [one.filename for one in get_all_artifact_meta(trial, storage=handle.storage)]
        assert names == ["learning_curve.png"]


def test_a_worker_that_fails_at_everything_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=10)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(build, "build_network", broken)
    with pytest.raises(WorkerError, match="3 trials in a row failed; the log says why: here"):
        run(handle)
    trials = handle.study.get_trials()
    assert [one.state for one in trials] == [TrialState.FAIL] * 3
    assert trials[0].user_attrs[attrs.REASON] == "RuntimeError: the device is on fire"
    # Nothing that a sampler should hold against their plans.
    assert not any(attrs.FAILED_PLAN in one.user_attrs for one in trials)


#: More than any machine has.
HUGE = "CUDA out of memory. Tried to allocate 90000.00 GiB."


def on_the_device(plan: TrialPlan | None) -> bool:
    return plan is not None and plan.depth > 0


@pytest.mark.parametrize("where", ["building", "measuring", "training", "validating"])
def test_a_plan_that_does_not_fit_is_infeasible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Wherever the memory gives out, in a study with limits too."""
    handle = open_small(
        tmp_path,
        constraints={"max_parameters": 10**9},
        space__trainable_layers=1,
        search__trials=2 if where != "training" else 3,
        training__batch_size=4,
    )
    name, owner = {
        "building": ("build_network", build),
        "measuring": ("measure_costs", trial_module),
        "training": ("_step", Trainer),
        "validating": ("predict", Trainer),
    }[where]
    original = getattr(owner, name)

    def hungry(*arguments: Any, **named: Any) -> Any:
        trial = handle.study.trials[-1]
        late = where != "validating" or bool(trial.intermediate_values)
        if on_the_device(attrs.trial_plan(trial)) and late:
            raise torch.cuda.OutOfMemoryError(HUGE)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, hungry)
    events = run(handle)
    trials = handle.study.trials
    plans = [attrs.trial_plan(one) for one in trials]
    hungry_ones = [one for one, plan in zip(trials, plans, strict=True) if on_the_device(plan)]
    for trial in hungry_ones:
        assert trial.state == TrialState.PRUNED and attrs.ended_infeasible(trial)
        assert trial.constraints[DEVICE_MEMORY] > 100
        wanted = float(trial.user_attrs[attrs.PEAK_MEMORY_MB])
        there = float(trial.user_attrs[attrs.DEVICE_MEMORY_MB])
        assert wanted > 90_000 * 1024 > there
        said = re.fullmatch(
            r"infeasible: memory: it wanted at least ([\d,]+) MiB, the device has ([\d,]+) MiB",
            trial.user_attrs[attrs.REASON],
        )
        assert said is not None
        numbers = [float(one.replace(",", "")) for one in said.groups()]
        assert numbers == pytest.approx([wanted, there], abs=0.6)  # of two roundings
        assert trial.user_attrs[attrs.MICRO_BATCH] == oom.MIN_MICRO_BATCH
        assert trial.user_attrs[attrs.EPOCHS] == len(trial.intermediate_values)
        assert trial.user_attrs[attrs.SECONDS] > 0
        assert attrs.FAILED_PLAN not in trial.user_attrs
    ends = {one["trial"]: one["state"] for one in events if one["event"] == "end"}
    assert {ends[one.number] for one in hungry_ones} == {"infeasible"}
    progress = handle.progress()
    assert (progress.infeasible, progress.complete) == (len(trials) - 1, 1)
    assert progress.finished == progress.budget
    assert len(set(plans)) == len(plans)  # none is tried again
    assert not list(handle.files.root.glob("checkpoints/*/*.pt"))
    fitting = [one for one in trials if one not in hungry_ones]
    assert all(DEVICE_MEMORY not in one.constraints for one in fitting)


def test_a_baseline_that_does_not_fit_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__batch_size=4)

    def hungry(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError(HUGE)

    monkeypatch.setattr(build, "build_network", hungry)
    with pytest.raises(UserError, match="the baseline does not fit into memory: even with 2"):
        run(handle)
    progress = handle.progress()
    assert (progress.finished, progress.running, progress.waiting) == (0, 0, 1)
    monkeypatch.undo()  # a larger device
    run(handle)
    baseline = next(one for one in handle.study.trials if one.state == TrialState.COMPLETE)
    assert attrs.is_baseline(baseline)
    # In whole batches again.
    assert baseline.user_attrs[attrs.MICRO_BATCH] == 4


CROWDED = oom.MemoryShortage(4 * oom.MIB, 2 * oom.MIB, 10 * oom.MIB)
ALONE = oom.MemoryShortage(12 * oom.MIB, 10 * oom.MIB, 10 * oom.MIB)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (0.0, 0.0))


def short_of_memory(
    monkeypatch: pytest.MonkeyPatch, needs: list[oom.MemoryShortage]
) -> list[tuple[int, int]]:
    """Let a training fail for want of memory in its third epoch, once for each need.

    Returns:
        The epochs that it begins, as it does, and in which parts.
    """
    begun: list[tuple[int, int]] = []
    coming = iter(needs)
    met: list[oom.MemoryShortage] = []
    original = Trainer._train_epoch

    def fail(self: Trainer) -> float:
        begun.append((self.epoch, self.micro_batch_size))
        need = next(coming, None) if self.epoch == 2 else None
        if need is not None:
            met.append(need)
            raise torch.cuda.OutOfMemoryError(HUGE)
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: met[-1])
    return begun


@pytest.mark.usefixtures("no_waits")
def test_beside_a_neighbor_a_trial_goes_on_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole batches are tried twice more before they are halved, from the checkpoint."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    begun = short_of_memory(monkeypatch, [CROWDED, CROWDED])
    run(handle)
    assert begun == [(0, 16), (1, 16), (2, 16), (2, 16), (2, 16), (3, 16)]
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE and attrs.MICRO_BATCH not in trial.user_attrs


@pytest.mark.usefixtures("no_waits")
def test_a_size_that_a_neighbor_forces_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    begun = short_of_memory(monkeypatch, [CROWDED] * 3)
    run(handle)
    assert begun[-2:] == [(2, 8), (3, 8)]
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE and attrs.MICRO_BATCH not in trial.user_attrs


@pytest.mark.usefixtures("no_waits")
def test_a_size_of_the_plan_itself_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else was there before."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    begun = short_of_memory(monkeypatch, [ALONE, *[CROWDED] * 3, ALONE])
    run(handle)
    assert [part for epoch, part in begun if epoch == 2] == [16, 8, 8, 8, 4, 2]
    (trial,) = handle.study.trials
    assert trial.user_attrs[attrs.MICRO_BATCH] == 2


@pytest.mark.usefixtures("no_waits", "no_pauses")
def test_nothing_is_infeasible_because_of_a_neighbor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where two images do not fit, and the baseline does not end the study."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=4)
    short_of_memory(monkeypatch, [CROWDED] * 6)
    run(handle)
    first, second = handle.study.trials
    assert first.state == TrialState.FAIL and second.state == TrialState.COMPLETE
    assert first.user_attrs[attrs.REASON].startswith("DeviceBusyError: others hold the memory")
    assert DEVICE_MEMORY not in first.constraints
    assert attrs.MICRO_BATCH not in second.user_attrs and attrs.is_baseline(second)


def test_a_stop_is_heard_while_a_trial_waits_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    monkeypatch.setattr(oom, "SHARED_WAITS_S", (600.0,))
    begun = short_of_memory(monkeypatch, [CROWDED])
    monkeypatch.setattr(oom, "_room", lambda device: stop.set() or 0)
    stop = threading.Event()
    run_worker(job(handle), stop, lambda event: None)
    assert begun[-1][0] == 2
    assert handle.progress().waiting == 1


def test_what_a_trial_held_is_free_when_it_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the error is handled, which keeps the frames that held it."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=1)
    networks: list[weakref.ref[Network]] = []
    left: list[bool] = []

    def fail(self: Trainer) -> float:
        networks.append(weakref.ref(self.network))
        raise DivergedError("the loss is nan")

    def look(device: torch.device, collect: bool = False) -> None:
        left.extend(one() is not None for one in networks)

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    monkeypatch.setattr(oom, "release_memory", look)
    run(handle)
    assert left == [False]


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(worker_module, "POLL_S", 0.01)


def failing_once(
    handle: OpenStudy, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> list[int]:
    """Let a training fail in its third epoch, once; return the epochs it begins, as it does."""
    begun: list[int] = []
    original = Trainer._train_epoch

    def fail(self: Trainer) -> float:
        begun.append(self.epoch)
        if self.epoch == 2 and begun.count(2) == 1:
            raise error
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", fail)
    return begun


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        DeviceBusyError("others hold the memory of the device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_passing_failure_is_tried_again_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    begun = failing_once(handle, monkeypatch, error)
    events = run(handle)
    assert begun == [0, 1, 2, 2, 3]
    first, second = handle.study.trials
    assert first.state == TrialState.FAIL and second.state == TrialState.COMPLETE
    assert first.user_attrs[attrs.REASON].startswith(f"{type(error).__name__}: ")
    assert attrs.FAILED_PLAN not in first.user_attrs
    assert attrs.earlier_attempts(second) == [0]
    assert sorted(second.intermediate_values) == [1, 2, 3, 4]
    assert "queued again" in [one.get("state") for one in events]
    assert (handle.progress().finished, handle.progress().failed) == (1, 0)


@pytest.mark.usefixtures("no_pauses")
def test_a_failure_that_does_not_pass_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial, and not the worker, where the next trial is sound."""
    handle = open_small(tmp_path, search__trials=3, training__epochs=1)
    original = build.build_network

    def stale(*arguments: Any, **named: Any) -> Any:
        if attrs.first_attempt(handle.study.trials[-1]) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return original(*arguments, **named)

    monkeypatch.setattr(build, "build_network", stale)
    run(handle)
    progress = handle.progress()
    assert (progress.complete, progress.failed, progress.retried) == (2, 1, MAX_RETRIES)
    last = handle.study.trials[1 + MAX_RETRIES]
    assert last.user_attrs[attrs.REASON] == ("OSError: [Errno 116] Stale file handle, too often")


@pytest.mark.usefixtures("no_pauses")
def test_a_worker_for_which_nothing_passes_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=9)

    def away(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(build, "build_network", away)
    with pytest.raises(WorkerError, match=f"{MAX_RETRIES + 2} trials in a row failed"):
        run(handle)
    assert handle.progress().running == 0


def test_a_worker_that_pauses_heeds_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    failing_once(handle, monkeypatch, OSError(errno.EIO, "Input/output error"))
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        if event.get("state") == "queued again":
            stop.set()

    start = time.monotonic()
    run_worker(job(handle), stop, on_event)
    assert time.monotonic() - start < 5.0 + worker_module.FIRST_PAUSE_S
    assert handle.progress().waiting == 1


def test_a_process_that_lost_its_gpu_gives_its_trial_back_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    begun = failing_once(handle, monkeypatch, accelerator_error("device-side assert triggered"))
    with pytest.raises(DeviceError, match="the GPU does not answer this process any more") as end:
        run(handle)
    assert end.value.exit_code == 75
    assert (handle.progress().running, handle.progress().waiting) == (0, 1)
    (first, second) = handle.study.trials
    assert first.user_attrs[attrs.REASON] == (
        "its worker was lost: AcceleratorError: CUDA error: device-side assert triggered"
    )
    assert second.user_attrs[attrs.LOST_ATTEMPTS] == 1
    run(handle)  # another process
    assert begun == [0, 1, 2, 2, 3]
    assert handle.study.trials[1].state == TrialState.COMPLETE


def test_a_disk_that_is_full_anywhere_ends_the_worker_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    full = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_4711")
    failing_once(handle, monkeypatch, full)
    with pytest.raises(DiskFullError, match=r"No space left on device: '/dev/shm/torch_4711'"):
        run(handle)
    assert (handle.progress().running, handle.progress().waiting) == (0, 1)


def test_a_batch_that_does_not_fit_goes_through_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch: the trial goes on from its checkpoint, and so does its successor."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4, training__batch_size=16)
    forward = Network.forward
    seen: list[int] = []

    def limited(self: Network, inputs: Inputs) -> torch.Tensor:
        epochs = handle.study.get_trials()[-1].intermediate_values
        if self.training and epochs:
            count = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
            seen.append(count)
            if count > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return forward(self, inputs)

    monkeypatch.setattr(Network, "forward", limited)
    stop = threading.Event()
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "epoch" and event["epoch"] == 3:
            stop.set()

    run_worker(job(handle), stop, on_event)
    epochs = [one["epoch"] for one in events if one["event"] == "epoch"]
    assert epochs == [1, 2, 3]
    assert max(seen[2:]) <= 4 and seen[:2] == [16, 8]
    run(handle)
    first, second = handle.study.get_trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.user_attrs[attrs.MICRO_BATCH] == second.user_attrs[attrs.MICRO_BATCH] == 4
    assert sorted(second.intermediate_values) == [1, 2, 3, 4]


def test_a_failed_plan_is_marked_before_its_trial_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler that sees the failure must see the mark with it."""
    handle = open_small(tmp_path, search__trials=1)
    marks: list[object] = []
    end = RetryingStorage.end_trial

    def ended(self: RetryingStorage, trial_id: int, *arguments: Any, **named: Any) -> Any:
        marks.append(self.get_trial(trial_id).user_attrs.get(attrs.FAILED_PLAN))
        return end(self, trial_id, *arguments, **named)

    def unfit(*_: object, **__: object) -> None:
        raise PlanError("no such layer")

    monkeypatch.setattr(build, "build_network", unfit)
    monkeypatch.setattr(RetryingStorage, "end_trial", ended)
    run(handle)
    assert marks == [True]


def test_a_full_disk_stops_the_worker_and_keeps_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise DiskFullError("no space left on the disk of here")

    monkeypatch.setattr(trial_module, "store_artifacts", full)
    with pytest.raises(DiskFullError):
        run(handle)
    progress = handle.progress()
    assert (progress.failed, progress.running, progress.waiting) == (0, 0, 1)
    monkeypatch.undo()
    run(handle)
    assert handle.progress().complete == 3


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST])
def test_a_folder_that_cannot_be_written_stops_the_worker_and_keeps_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    handle = open_small(tmp_path, search__trials=1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "is refused", "/here")

    monkeypatch.setattr(trial_module, "store_artifacts", refuse)
    with pytest.raises(UserError, match="is refused: '/here'; put that right, or move"):
        run(handle)
    progress = handle.progress()
    assert (progress.failed, progress.running, progress.waiting) == (0, 0, 1)


def test_a_file_in_the_place_of_the_checkpoints_keeps_the_trial(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1)
    folder = handle.files.checkpoints(handle.name)
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"")
    with pytest.raises(UserError, match="a trial needs its files and folders, but"):
        run(handle)
    assert handle.progress().waiting == 1
    folder.unlink()
    run(handle)
    assert handle.progress().complete == 1


@pytest.mark.parametrize("when", ["start", "epoch"])
@pytest.mark.parametrize("anew", [True, False], ids=["made anew", "gone"])
def test_a_study_that_is_deleted_while_a_worker_trains(
    when: str, anew: bool, tmp_path: Path
) -> None:
    handle = open_small(tmp_path, search__trials=2)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == when and event.get("epoch", 1) == 1:
            other = open_existing(handle.name, handle.url)
            optuna.delete_study(study_name=handle.name, storage=other.storage)
            if anew:
                open_small(tmp_path, search__trials=2, baseline__lr=0.5)

    with pytest.raises(StudyError, match="the study 'small' was deleted while it ran"):
        run_worker(job(handle), threading.Event(), on_event)


def test_a_retry_that_begins_again_is_not_pruned_for_later_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its curve is known, its checkpoint is gone: a pruner would judge the curve's end."""
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    asked: list[int] = []

    def prune(pruner: object, study: Study, trial: FrozenTrial) -> bool:
        asked.append(trial.last_step or 0)
        return False

    monkeypatch.setattr(optuna.pruners.NopPruner, "prune", prune)
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        if event.get("epoch") == 3:
            stop.set()

    monkeypatch.setattr(worker_module, "make_pruner", lambda *_: optuna.pruners.NopPruner())
    run_worker(job(handle), stop, on_event)
    assert asked == [1, 2, 3]
    handle.files.checkpoint(handle.name, 0).unlink()
    asked.clear()
    events = run(handle)
    assert [one["epoch"] for one in events if one["event"] == "epoch"] == [1, 2, 3, 4]
    assert asked == [3]


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    ((name, remembered),) = handle.study.user_attrs[attrs.BACKBONES].items()
    changed = {name: {**remembered, "weights_hash": "0" * 32}}
    handle.study.set_user_attr(attrs.BACKBONES, changed)
    with pytest.raises(
        StudyError, match=r"the weights 'hub' of 'test_resnet.letters' have changed"
    ):
        run(handle)


def test_a_space_with_nothing_to_search_still_runs(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        space={"trainable_layers": 1, "head": {}, "training": {"lr": 0.003}},
        search__trials=9,
    )
    run(handle)
    trials = handle.study.get_trials()
    assert [one.state for one in trials] == [TrialState.COMPLETE] * 2
    plans = [attrs.trial_plan(one) for one in trials]
    assert [plan.depth for plan in plans if plan] == [0, 1]
    assert StopReason.from_study(handle.study) == StopReason(
        "exhausted", "every plan of the space has been tried"
    )


def test_a_greedy_search_ends_with_its_last_stage(tmp_path: Path) -> None:
    handle = open_small(
        tmp_path,
        space={
            "trainable_layers": {"low": 0, "high": 1},
            "head": {},
            "training": {"lr": [0.01, 0.003]},
        },
        search__trials=9,
        search__strategy="greedy",
        search__default_plans=False,
        training__epochs=1,
    )
    run(handle)
    stages = [one.user_attrs.get(attrs.STAGE) for one in handle.study.trials]
    assert stages[:2] == [None, "layer 1"] and len(stages) < 5
    ended = StopReason.from_study(handle.study)
    assert ended is not None and ended.kind == "exhausted"
    assert "all of its stages" in ended.text


@pytest.mark.parametrize("sampler", ["tpe", "gp", pytest.param("random", marks=pytest.mark.slow)])
def test_samplers_run_a_study_past_their_start(tmp_path: Path, sampler: str) -> None:
    handle = open_small(tmp_path, search__sampler=sampler, search__trials=13, training__epochs=1)
    run(handle)
    assert handle.progress().finished == 13


OWN = """
from optuna.samplers import RandomSampler
def Mine(space, seed): return RandomSampler(seed)
"""


def test_changed_files_of_ones_own_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    handle = open_small(tmp_path, search__sampler=f"{path}:Mine", search__trials=2)
    path.write_text(OWN + "# changed")
    with pytest.raises(StudyError, match=r"search.sampler: the file \S+/mine.py has changed"):
        run(handle)
    path.unlink()
    with pytest.raises(UserError, match=r"there is no file \S+/mine.py"):
        run(handle)
    path.write_text(OWN)
    run(handle)
    assert handle.progress().complete == 2
