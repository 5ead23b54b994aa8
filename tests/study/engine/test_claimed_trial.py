"""What a worker does when a trial fails: it fails the trial, queues it again, or ends itself."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import (
    DeviceError,
    DiskFullError,
    PlanError,
    StudyError,
    UserError,
    WorkerError,
)
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.engine import worker as worker_module
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.retries import MAX_RETRIES
from autotune.study.trial import build
from autotune.study.trial import run as trial_module
from autotune.training.trainer import Trainer
from tests.support.commands.inline import Event, failing, run
from tests.support.cuda import accelerator_error
from tests.support.study.small import open_small as open_with_features

pytestmark = pytest.mark.usefixtures("idle_machine", "no_artifacts")


def open_small(folder: Path, **overrides: Any) -> OpenStudy:
    """Open a small study that caches no features: here they change nothing but the time."""
    return open_with_features(folder, **{"cache__features": "off", **overrides})


def test_a_worker_that_fails_at_everything_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=10)
    monkeypatch.setattr(build, "build_network", failing(RuntimeError("the device is on fire")))
    with pytest.raises(WorkerError, match="3 trials in a row failed; the log says why: here"):
        run(handle)
    trials = handle.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert trials[0].user_attrs[attrs.REASON] == "RuntimeError: the device is on fire"
    # Nothing that a sampler should hold against their plans.
    assert not any(attrs.FAILED_PLAN in trial.user_attrs for trial in trials)


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
def test_a_passing_failure_is_tried_again_from_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    begun = failing_once(handle, monkeypatch, OSError(errno.EIO, "Input/output error"))
    events = run(handle)
    assert begun == [0, 1, 2, 2, 3]
    first, second = handle.study.trials
    assert first.state == TrialState.FAIL and second.state == TrialState.COMPLETE
    assert first.user_attrs[attrs.REASON].startswith("OSError: ")
    assert attrs.FAILED_PLAN not in first.user_attrs
    assert attrs.earlier_attempts(second) == [0]
    assert sorted(second.intermediate_values) == [1, 2, 3, 4]
    assert "queued again" in [event.get("state") for event in events]
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
    monkeypatch.setattr(build, "build_network", failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(WorkerError, match=f"{MAX_RETRIES + 2} trials in a row failed"):
        run(handle)
    assert handle.progress().running == 0


def test_a_worker_that_pauses_heeds_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    failing_once(handle, monkeypatch, OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(worker_module, "FIRST_PAUSE_S", 3600.0)  # else the test times out
    monkeypatch.setattr(worker_module, "LONGEST_PAUSE_S", 3600.0)
    run(handle, until=lambda event: event.get("state") == "queued again")
    assert handle.progress().waiting == 1


def test_a_process_that_lost_its_gpu_gives_its_trial_back_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = open_small(tmp_path, search__trials=1, training__epochs=4)
    begun = failing_once(handle, monkeypatch, accelerator_error("device-side assert triggered"))
    with pytest.raises(DeviceError, match="this process can no longer use the GPU") as end:
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

    monkeypatch.setattr(build, "build_network", failing(PlanError("no such layer")))
    monkeypatch.setattr(RetryingStorage, "end_trial", ended)
    run(handle)
    assert marks == [True]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DiskFullError("no space left on the disk of here"), "no space left on the disk of here"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/dev/shm/torch_4711"),
            "No space left on device: '/dev/shm/torch_4711'; free some space",
        ),
        *(
            (OSError(number, "is refused", "/here"), "is refused: '/here'; fix that, or move")
            for number in (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST)
        ),
    ],
)
def test_a_disk_that_cannot_be_written_stops_the_worker_and_keeps_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    handle = open_small(tmp_path, search__trials=1)
    monkeypatch.setattr(trial_module, "store_artifacts", failing(error))
    with pytest.raises(UserError, match=message):
        run(handle)
    progress = handle.progress()
    assert (progress.failed, progress.running, progress.waiting) == (0, 0, 1)
    monkeypatch.undo()
    run(handle)
    assert handle.progress().complete == 1


def test_a_file_in_the_place_of_the_checkpoints_keeps_the_trial(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__trials=1)
    folder = handle.files.checkpoints(handle.name)
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"")
    with pytest.raises(UserError, match="a trial cannot use its files or folders"):
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

    def delete(event: Event) -> None:
        if event["event"] == when and event.get("epoch", 1) == 1:
            other = open_existing(handle.name, handle.url)
            optuna.delete_study(study_name=handle.name, storage=other.storage)
            if anew:
                open_small(tmp_path, search__trials=2, baseline__lr=0.5)

    with pytest.raises(StudyError, match="the study 'small' was deleted while it ran"):
        run(handle, until=delete)


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
    monkeypatch.setattr(worker_module, "make_pruner", lambda *_: optuna.pruners.NopPruner())
    run(handle, until=lambda event: event.get("epoch") == 3)
    assert asked == [1, 2, 3]
    handle.files.checkpoint(handle.name, 0).unlink()
    asked.clear()
    events = run(handle)
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3, 4]
    assert asked == [3]
