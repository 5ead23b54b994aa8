"""What the doctor finds in studies that were broken on purpose, and what --fix makes of them."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import upload_artifact
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState
from optuna_dashboard import save_note

from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.doctor import checks, file_checks
from autotune.study.doctor.checks import StudyCheck, check_study, repair
from autotune.study.doctor.collect import gather, take_snapshot
from autotune.study.doctor.finding import Finding, FindingKind
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.retries import WORKER_LOST
from tests.support.commands.inside import contents
from tests.support.study.broken import claim, renumber, set_attribute, silence, trials_of
from tests.support.study.small import open_small

pytestmark = pytest.mark.usefixtures("closed_connections")

HOUR = 3600.0


@pytest.fixture
def handle(url: str, tmp_path: Path) -> OpenStudy:
    """A study of which nothing has run."""
    return open_small(tmp_path, storage=url, files=str(tmp_path / "files"), search__trials=6)


@pytest.fixture
def local(tmp_path: Path) -> OpenStudy:
    """The same on SQLite alone, for what does not depend on the database."""
    return open_small(tmp_path, files=str(tmp_path / "files"), search__trials=6)


def fresh(handle: OpenStudy) -> OpenStudy:
    """Open a study anew: Optuna keeps what it has read of trials that ended."""
    return open_existing(handle.name, handle.url)


def findings(handle: OpenStudy) -> tuple[Finding, ...]:
    return check_study(fresh(handle)).findings


def kinds(handle: OpenStudy) -> list[str]:
    return [one.kind for one in findings(handle)]


def only(handle: OpenStudy, kind: FindingKind, *, fixable: bool = False) -> Finding:
    """Return the one finding, which is of this kind."""
    (found,) = findings(handle)
    assert (found.kind, found.is_fixable) == (kind, fixable)
    return found


def finish(handle: OpenStudy, number: int, value: float = 0.5) -> None:
    handle.study.tell(number, value)


def write(path: Path, *, age_s: float, text: str = "x" * 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


# Healthy studies


def test_nothing_is_wrong_with_a_study_at_any_healthy_stage(handle: OpenStudy) -> None:
    assert kinds(handle) == []
    first, second = claim(handle), claim(handle, "box/1/1")
    write(handle.files.checkpoint(handle.name, first.number), age_s=5 * HOUR)  # long epochs
    assert kinds(handle) == []
    finish(handle, first.number)
    handle.files.checkpoint(handle.name, first.number).unlink()
    handle.trial_queue().requeue(second.number, WORKER_LOST)
    write(handle.files.checkpoint(handle.name, second.number), age_s=5 * HOUR)  # of the retry
    assert kinds(handle) == []
    retry = claim(handle)
    assert attrs.earlier_attempts(retry) == [second.number]
    assert kinds(handle) == []
    handle.trial_queue().set_budget(Budget(1))
    finish(handle, retry.number, 0.4)
    handle.files.checkpoint(handle.name, second.number).unlink()
    handle.trial_queue().set_budget(Budget(2))
    handle.study.enqueue_trial({})  # waits for a larger budget
    assert isinstance(handle.trial_queue().claim("box/1/0"), StopReason)
    assert kinds(handle) == []


def test_looking_changes_nothing(handle: OpenStudy, tmp_path: Path) -> None:
    silence(handle.storage, claim(handle), 1000)
    write(handle.files.artifacts / "nobody", age_s=5 * HOUR)
    before, trials = contents(tmp_path), trials_of(handle)
    assert len(findings(handle)) == 2
    assert contents(tmp_path) == before
    assert [one.state for one in trials_of(fresh(handle))] == [one.state for one in trials]


# Workers that are gone


def test_a_silent_worker_s_trial_is_given_back(handle: OpenStudy) -> None:
    trial, other = claim(handle), claim(handle, "box/1/1")
    silence(handle.storage, trial, 300)
    found = only(handle, FindingKind.ZOMBIE, fixable=True)
    assert found.trial == 0
    assert re.search(r"its worker box/1/0 has been silent for 30\d s", found.message)
    assert repair(fresh(handle), [found]) == ["trial 0 was requeued"]
    assert kinds(handle) == []
    states = [one.state for one in trials_of(fresh(handle))]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert attrs.earlier_attempts(trials_of(fresh(handle))[2]) == [0]
    assert other.number == 1


def test_a_worker_that_died_before_its_first_heartbeat(handle: OpenStudy) -> None:
    trial = claim(handle, beat=False)
    assert kinds(handle) == []  # it may be about to write it
    set_attribute(handle, trial.number, attrs.CLAIMED_AT, time.time() - 200)
    found = only(handle, FindingKind.ZOMBIE, fixable=True)
    assert re.search(r"its worker box/1/0 never gave a sign of life in 20\d s", found.message)
    repair(fresh(handle), [found])
    assert kinds(handle) == []
    first, retry = trials_of(fresh(handle))
    assert (first.state, first.user_attrs[attrs.REASON]) == (TrialState.FAIL, WORKER_LOST)
    assert (retry.state, attrs.earlier_attempts(retry)) == (TrialState.WAITING, [0])


def test_a_claim_that_broke_off(handle: OpenStudy) -> None:
    handle.storage.create_new_trial(handle.study._study_id)
    found = only(handle, FindingKind.ZOMBIE, fixable=True)
    assert "has no worker" in found.message
    repair(fresh(handle), [found])
    assert kinds(handle) == []


def test_a_worker_that_comes_back_keeps_its_trial(handle: OpenStudy) -> None:
    trial = claim(handle)
    silence(handle.storage, trial, 300)
    found = findings(handle)
    handle.storage.record_heartbeat(trial._trial_id)
    assert repair(fresh(handle), found) == ["trial 0 runs again: its worker came back"]
    assert kinds(handle) == []


def test_a_trial_that_was_lost_too_often_is_failed_for_good(local: OpenStudy) -> None:
    for _ in range(4):
        silence(local.storage, claim(local), 300)
        repair(fresh(local), findings(local))
    assert kinds(local) == []
    states = [one.state for one in trials_of(fresh(local))]
    assert states == [TrialState.FAIL] * 4


# Studies that have ended


def test_what_waits_after_the_end_of_a_study_that_could_go_on(local: OpenStudy) -> None:
    trial = claim(local)
    local.trial_queue().requeue(trial.number, WORKER_LOST)
    local.study.set_user_attr(attrs.ENDED, StopReason("patience", "no better trial").to_json())
    found = only(local, FindingKind.ENDED, fixable=True)
    repair(fresh(local), [found])
    assert kinds(local) == []
    assert StopReason.from_attributes(fresh(local).study.user_attrs) is None


def test_what_runs_after_the_end(local: OpenStudy) -> None:
    trial = claim(local)
    local.study.set_user_attr(attrs.ENDED, StopReason("trials", "6 finished trials").to_json())
    found = only(local, FindingKind.ENDED)
    silence(local.storage, trial, 1000)
    found = only(local, FindingKind.ZOMBIE, fixable=True)
    repair(fresh(local), [found])
    assert kinds(local) == []


# Trials that contradict each other


def test_trials_that_share_a_number_or_are_missing(local: OpenStudy) -> None:
    for worker in ("box/1/0", "box/1/1", "box/1/2"):
        finish(local, claim(local, worker).number)
    renumber(local, 2, 1)
    only(local, FindingKind.NUMBERS)
    renumber(local, 1, 5)
    only(local, FindingKind.NUMBERS)


def test_a_plan_that_was_trained_twice(local: OpenStudy) -> None:
    first, second, third = (claim(local, f"box/1/{worker}") for worker in range(3))
    set_attribute(local, third.number, attrs.PLAN, second.user_attrs[attrs.PLAN])
    for trial in (first, second, third):
        finish(local, trial.number)
    assert "trials 1, 2 have" in only(local, FindingKind.TWICE).message


def test_retries_that_are_broken(local: OpenStudy) -> None:
    for number, state in enumerate((TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL)):
        trial = claim(local, f"box/1/{number}")
        done = state == TrialState.COMPLETE
        local.study.tell(trial.number, 0.5 if done else None, state=state)
    claim(local)
    for retries, said in (
        ({3: [9]}, "trial 3 continues trial 9, which does not exist"),
        ({3: [1]}, "trial 3 continues trial 1, which is COMPLETE and not failed"),
        ({2: [0], 3: [0]}, "trials 2, 3 all continue trial 0"),
        ({2: [0], 3: [2]}, "trial 3 names the earlier attempts 2, but trial 2"),
    ):
        for number, earlier in retries.items():
            set_attribute(local, number, attrs.RETRIES, earlier)
        assert said in only(local, FindingKind.CHAIN).message


def test_finished_trials_beyond_the_budget(local: OpenStudy) -> None:
    for worker in range(3):
        finish(local, claim(local, f"box/1/{worker}").number)
    local.trial_queue().set_budget(Budget(2))
    assert "search.trials=3" in only(local, FindingKind.BUDGET).message
    local.trial_queue().set_budget(Budget(3))
    assert kinds(local) == []


# Files


def uploaded(
    handle: OpenStudy, tmp_path: Path, whose: Any, storage: BaseStorage | None = None
) -> Path:
    source = tmp_path / "picture.png"
    source.write_text("picture")
    artifact = upload_artifact(
        artifact_store=handle.artifacts,
        file_path=str(source),
        study_or_trial=whose,
        storage=handle.storage if storage is None else storage,
    )
    path = handle.files.artifacts / artifact
    os.utime(path, (1, 1))
    return path


def test_orphans_are_removed_and_nothing_else(handle: OpenStudy, tmp_path: Path) -> None:
    # Whoever works at one study does not write to another.
    storage = open_storage(handle.url)
    other = optuna.create_study(study_name="other", storage=storage)
    trial = claim(handle)
    elsewhere = Trial(other, storage.create_new_trial(other._study_id))
    kept = [
        *(uploaded(handle, tmp_path, one) for one in (trial, handle.study)),
        *(uploaded(handle, tmp_path, one, storage) for one in (other, elsewhere)),
    ]
    finish(handle, trial.number)
    young = write(handle.files.artifacts / "young", age_s=HOUR / 2)
    old = write(handle.files.artifacts / "old", age_s=2 * HOUR)
    ended = write(handle.files.checkpoint(handle.name, 0), age_s=2 * HOUR)
    half = write(handle.files.checkpoints(handle.name) / "1.pt.new", age_s=2 * HOUR)
    running = claim(handle)
    live = write(handle.files.checkpoint(handle.name, running.number), age_s=2 * HOUR)
    foreign = write(handle.files.checkpoint("other", 0), age_s=2 * HOUR)
    artifacts, checkpoints = findings(handle)
    assert (artifacts.kind, checkpoints.kind) == (FindingKind.ORPHANS, FindingKind.CHECKPOINTS)
    assert {one.path for one in artifacts.files} == {old}
    assert {one.path for one in checkpoints.files} == {ended, half}
    assert repair(fresh(handle), (artifacts, checkpoints)) == [
        "orphaned artifacts: 1 removed",
        "orphaned checkpoints: 2 removed",
    ]
    assert kinds(handle) == []
    assert not old.exists() and not ended.exists() and not half.exists()
    assert all(path.exists() for path in (*kept, young, live, foreign))


def test_artifacts_of_another_storage_in_the_same_folder_are_left_alone(
    local: OpenStudy, tmp_path: Path
) -> None:
    other = open_small(
        tmp_path, storage=f"sqlite:///{tmp_path}/2.db", files=str(local.files.root), name="second"
    )
    theirs = uploaded(other, tmp_path, claim(other))
    write(other.files.log("second", "worker-0"), age_s=0)
    found = only(local, FindingKind.ORPHANS)
    assert "second" in found.message
    repair(fresh(local), [found])
    assert theirs.exists()
    other.files.log("second", "worker-0").unlink()
    other.files.log("second", "worker-0").parent.rmdir()
    assert findings(local)[0].is_fixable


def test_an_artifact_that_is_somebody_s_by_now_stays(local: OpenStudy, tmp_path: Path) -> None:
    path = write(local.files.artifacts / "late", age_s=2 * HOUR)
    found = findings(local)
    local.storage.set_trial_system_attr(
        claim(local)._trial_id, "artifacts:late", '{"artifact_id": "late", "filename": "x"}'
    )
    assert repair(fresh(local), found) == ["orphaned artifacts: 0 removed"]
    assert path.exists()


def test_missing_artifacts(handle: OpenStudy, tmp_path: Path) -> None:
    trial = claim(handle)
    path = uploaded(handle, tmp_path, trial)
    path.unlink()
    assert kinds(handle) == []  # a running trial may be about to write it
    finish(handle, trial.number)
    found = only(handle, FindingKind.MISSING)
    assert "1 artifacts (picture.png) of trials 0" in found.message


def test_what_the_dashboard_has_deleted_is_not_missing(local: OpenStudy, tmp_path: Path) -> None:
    trial = claim(local)
    path = uploaded(local, tmp_path, trial)
    local.storage.set_trial_system_attr(trial._trial_id, f"artifacts:{path.name}", "null")
    path.unlink()
    finish(local, trial.number)
    assert kinds(local) == []


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_somebody_has_written_in_the_dashboard_is_right(local: OpenStudy) -> None:
    save_note(local.study, "look at trial 0")
    save_note(Trial(local.study, local.study.trials[0]._trial_id), "long " * 1000)
    before = local.storage.get_study_system_attrs(local.study._study_id)
    assert kinds(local) == []
    assert repair(fresh(local), findings(local)) == []
    assert local.storage.get_study_system_attrs(local.study._study_id) == before


def test_a_folder_that_is_on_other_machines_alone(postgres_url: str, tmp_path: Path) -> None:
    files = tmp_path / "files"
    handle = open_small(tmp_path, storage=postgres_url, files=str(files))
    trial = claim(handle)
    uploaded(handle, tmp_path, trial)
    finish(handle, trial.number)
    files.rename(tmp_path / "elsewhere")
    diagnosis = check_study(fresh(handle))
    assert diagnosis.findings == ()
    assert diagnosis.evidence is not None and diagnosis.evidence.root is None
    moved = open_existing(handle.name, handle.url, str(tmp_path / "elsewhere"))
    assert check_study(moved).findings == ()


# What surrounds a study


def test_what_this_version_cannot_read(local: OpenStudy) -> None:
    attributes = local.study.user_attrs
    definition = {**attributes[attrs.DEFINITION], "invented": {"later": 1}}
    local.study.set_user_attr(attrs.DEFINITION, definition)
    local.study.set_user_attr(attrs.SPACE, {"version": 99})
    set_attribute(local, 0, attrs.PLAN, {"depth": 1})
    found = findings(local)
    assert [one.kind for one in found] == [FindingKind.DEFINITION] * 3
    for one, what in zip(
        found, ("its definition", "its space", "the plans of trials 0"), strict=True
    ):
        assert what in one.message and not one.is_fixable


def test_a_lock_that_somebody_sits_on(handle: OpenStudy) -> None:
    with study_lock(handle.storage, handle.url, handle.name):
        elsewhere = fresh(handle)
        diagnosis = diagnose_in_thread(elsewhere)
    assert diagnosis.evidence is None
    (found,) = diagnosis.findings
    assert found.kind == FindingKind.LOCK and "for more than 0.3 s" in found.message
    assert kinds(handle) == []  # and the connection that waited is as good as new


def diagnose_in_thread(handle: OpenStudy) -> StudyCheck:
    """A file lock is taken by a thread, and would let this one in."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(check_study, handle, 0.3).result()


def test_the_clock_of_a_worker(handle: OpenStudy) -> None:
    trial = claim(handle)
    ahead = checks.worker_ahead_s(take_snapshot(handle), trial)
    assert ahead is not None and abs(ahead) < 3
    set_attribute(handle, trial.number, attrs.CLAIMED_AT, time.time() + 120)
    assert re.search(
        r"clock of box/1/0 is 1[12]\d s ahead of", only(handle, FindingKind.CLOCK).message
    )


def test_the_clock_of_this_machine(handle: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr("autotune.storage.rdb.heartbeat.time.time", lambda: now() - 60)
        evidence = gather(fresh(handle))
    found = list(checks.skewed_clocks(evidence.snapshot))
    if handle.url.startswith("sqlite"):
        assert found == []
    else:
        assert "this machine is 60 s behind" in found[0].message


def test_a_disk_that_is_nearly_full(local: OpenStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    free = check_study(local).evidence
    assert free is not None and sum(one.free_bytes for one in free.disks) > 0
    monkeypatch.setattr(file_checks, "FREE_BYTES", 1 << 60)
    assert "files of the study and database" in only(local, FindingKind.DISK).message
