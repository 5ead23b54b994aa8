"""Rows of workers and failures by reason, from what a study records."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from autotune.results.report.workers import WorkerRow, failures_by_reason, worker_rows
from autotune.results.study_results import StudyResults
from autotune.study.doctor.collect import take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.retries import INTERRUPTED, WORKER_LOST
from tests.support.study.broken import claim, set_attribute, silence, trials_of
from tests.support.study.small import open_small

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture
def opened(url: str, tmp_path: Path) -> OpenStudy:
    return open_small(tmp_path, storage=url, training__epochs=20, search__trials=40)


def rows_of(opened: OpenStudy) -> tuple[WorkerRow, ...]:
    return worker_rows(StudyResults.from_study(opened.study), take_snapshot(opened))


def report(opened: OpenStudy, number: int, *epochs: int) -> None:
    trial_id = trials_of(opened)[number]._trial_id
    for epoch in epochs:
        opened.storage.set_trial_intermediate_value(trial_id, epoch, epoch / 100)


def test_a_worker_s_row(opened: OpenStudy) -> None:
    trial = claim(opened, "gpu-box/41/10")
    report(opened, trial.number, 1, 2, 3)
    set_attribute(opened, trial.number, attrs.DEVICE_SECONDS, 50.0)
    set_attribute(opened, trial.number, attrs.DEVICE, "NVIDIA H200")
    silence(opened.storage, trial, 10)
    (row,) = rows_of(opened)
    assert (row.host, row.place, row.device) == ("gpu-box", "41/10", "NVIDIA H200")
    assert (row.trial, row.epoch, row.epochs, row.value) == (0, 3, 20, 0.03)
    assert row.plan == "backbone frozen, linear head, adamw lr 0.03"
    assert row.silent_s is not None and 9 <= row.silent_s <= 15
    assert row.epochs_per_s == pytest.approx(3 / 60, rel=0.1)
    assert row.images_per_s == pytest.approx(50 * 3 / 60, rel=0.1)  # 50 training images
    assert not row.is_late and not row.is_silent


def test_late_and_silent_workers(opened: OpenStudy) -> None:
    for worker, seconds in (("box/1/0", 60), ("box/1/1", 200)):
        silence(opened.storage, claim(opened, worker), seconds)
    late, silent = rows_of(opened)
    assert (late.is_late, late.is_silent) == (True, False)
    assert (silent.is_late, silent.is_silent) == (True, True)


def test_the_speed_of_a_retry_is_that_of_its_own_epochs(opened: OpenStudy) -> None:
    first = claim(opened)
    report(opened, first.number, *range(1, 11))
    opened.trial_queue().requeue(first.number, WORKER_LOST)
    retry = claim(opened)
    (row,) = rows_of(opened)
    assert (row.epoch, row.epochs_per_s) == (10, None)
    report(opened, retry.number, 11, 12)
    set_attribute(opened, retry.number, attrs.DEVICE_SECONDS, 20.0)
    (row,) = rows_of(opened)
    assert row.epochs_per_s == pytest.approx(0.1, rel=0.2)


def test_names_with_a_random_part_and_without(opened: OpenStudy) -> None:
    """Older studies have workers without; where two are at the same place, both are shown."""
    names = ("box/1/10-0000ff", "box/1/9-ffffff", "box/1/9", "box/1/10-0000aa", "a/b-c/7/0-123456")
    for name in names:
        claim(opened, name)
    rows = rows_of(opened)
    assert [row.worker for row in rows] == [
        *("a/b-c/7/0-123456", "box/1/9", "box/1/9-ffffff"),
        *("box/1/10-0000aa", "box/1/10-0000ff"),
    ]
    assert (rows[1].host, rows[1].place) == ("box", "1/9")


def test_which_gpu_a_worker_has(opened: OpenStudy) -> None:
    for place, (device, gpu) in enumerate(
        [("NVIDIA H200", "GPU 0 (8932f937)"), ("NVIDIA A100 MIG 1g.5gb", "MIG-8a32f937")]
    ):
        trial = claim(opened, f"box/1/{place}")
        set_attribute(opened, trial.number, attrs.DEVICE, device)
        set_attribute(opened, trial.number, attrs.GPU, gpu)
    first, second = rows_of(opened)
    assert first.device == "NVIDIA H200, GPU 0 (8932f937)"
    assert second.device == "NVIDIA A100 MIG 1g.5gb, MIG-8a32f937"


def test_workers_between_two_trials_are_shown_for_a_while(opened: OpenStudy) -> None:
    for worker in ("box/1/10", "box/1/9"):
        opened.study.tell(claim(opened, worker).number, 0.5)
    busy = claim(opened, "box/1/10")
    nine, ten = rows_of(opened)
    assert (nine.worker, nine.trial) == ("box/1/9", None)
    assert (ten.worker, ten.trial) == ("box/1/10", busy.number)
    opened.study.tell(busy.number, 0.5)
    opened.study.set_user_attr(attrs.ENDED, StopReason("trials", "3 finished trials").to_json())
    assert rows_of(opened) == ()


def test_failures_by_reason(opened: OpenStudy) -> None:
    reasons = (
        "diverged: the loss is nan in epoch 2",
        "diverged: the accuracy is nan in epoch 1",
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB",
        "RuntimeError: something",
        f"{WORKER_LOST}, too often",
    )
    for reason in reasons:
        trial = claim(opened)
        set_attribute(opened, trial.number, attrs.REASON, reason)
        opened.study.tell(trial.number, state=TrialState.FAIL)
    opened.trial_queue().requeue(claim(opened).number, INTERRUPTED)
    silence(opened.storage, claim(opened), 1000)
    opened.trial_queue().reclaim_stale()  # Optuna's sweep gives no reason
    opened.study.tell(claim(opened).number, state=TrialState.FAIL)
    found = failures_by_reason(StudyResults.from_study(opened.study))
    assert dict(found) == {
        "diverged": 2,
        "lost": 2,
        "out of memory": 1,
        "RuntimeError": 1,
        "interrupted": 1,
        "unknown": 1,
    }
    assert found[0][1] == 2
