"""Files that are found by name are used by the study that they belong to, and by no other."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from autotune.storage.admin.copy_study import copy_studies
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.trial.trainings import checkpoint_for
from tests.support.commands.inline import Event, run
from tests.support.study.small import open_small

pytestmark = pytest.mark.usefixtures("no_artifacts")
EPOCHS = 4


def open_one(folder: Path, **overrides: Any) -> OpenStudy:
    """Open a study of the baseline alone."""
    few = {"training__epochs": EPOCHS, "search__trials": 1, "cache__features": "off"}
    return open_small(folder, **{**few, **overrides})


def killed_after(handle: OpenStudy, epoch: int) -> None:
    """Run trial 0, and kill its worker as it tells of an epoch: the checkpoint is one behind."""

    def on_event(event: Event) -> None:
        if event.get("epoch") == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(handle, until=on_event)


def finished(handle: OpenStudy) -> tuple[FrozenTrial, list[int]]:
    """Run a study to its end; return its trial and the epochs that were trained for it."""
    handle.trial_queue().reclaim_stale(lambda worker: True)
    events = run(handle)
    (trial,) = [
        one for one in handle.study.get_trials(deepcopy=False) if one.state == TrialState.COMPLETE
    ]
    return trial, [event["epoch"] for event in events if event["event"] == "epoch"]


def checkpoint_file(handle: OpenStudy) -> Path:
    return handle.files.checkpoint(handle.name, 0)


CHANGES: dict[str, dict[str, Any]] = {
    "another rate": {"baseline__lr": 0.5},
    "the same": {},
    "another seed": {"search__seed": 5},
    "other images": {"data__train_per_class": 4},
    "another schedule": {"training__epochs": EPOCHS + 2},
    "another optimizer": {"baseline__optimizer": "sgd", "baseline__lr": 0.1},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FrozenTrial]:
    @functools.cache
    def trial(change: str) -> FrozenTrial:
        return finished(open_one(tmp_path_factory.mktemp("undisturbed"), **CHANGES[change]))[0]

    return trial


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["file put back", "file left"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_study_made_anew_starts_at_its_first_epoch(
    change: str,
    kept: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    undisturbed: Callable[[str], FrozenTrial],
) -> None:
    expected = undisturbed(change)
    handle = open_one(tmp_path)
    killed_after(handle, 3)
    file = checkpoint_file(handle)
    shutil.copy(file, tmp_path / "copy")
    log = handle.files.log(handle.name, "worker-0")
    log.parent.mkdir(parents=True)
    log.write_text("of the study before")
    optuna.delete_study(study_name=handle.name, storage=handle.storage)
    anew = open_one(tmp_path, **CHANGES[change])
    assert not file.exists() and not log.exists()
    if kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "copy", file)
    with caplog.at_level(logging.WARNING):
        trial, epochs = finished(anew)
    assert epochs == list(range(1, anew.config().training.epochs + 1))
    assert trial.intermediate_values == expected.intermediate_values
    assert trial.value == expected.value
    lines = [one.getMessage() for one in caplog.records if "starting afresh" in one.getMessage()]
    assert len(lines) == int(kept)
    assert all("it is that of another training (study" in line for line in lines)


def copied(handle: OpenStudy, folder: Path) -> OpenStudy:
    url = f"sqlite:///{folder}/other.db"
    open_small(folder, storage=url, name="first")  # so that ids differ
    copy_studies(handle.url, url)
    return open_existing(handle.name, url)


def test_a_copy_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    handle = open_one(tmp_path / "a")
    killed_after(handle, 3)
    (tmp_path / "b").mkdir()
    other = copied(handle, tmp_path / "b")
    assert other.study._study_id != handle.study._study_id
    assert other.files.root != handle.files.root
    trial, epochs = finished(other)
    assert epochs == [3, 4]  # the checkpoint has two
    expected, _ = finished(handle)
    assert trial.intermediate_values == expected.intermediate_values


def test_an_older_backup_does_not_go_on_where_it_never_was(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    undisturbed: Callable[[str], FrozenTrial],
) -> None:
    """The checkpoint is ahead of its curve: what the curve lacks would never be known."""
    handle = open_one(tmp_path)
    killed_after(handle, 2)
    saved = f"sqlite:///{tmp_path}/backup.db"
    copy_studies(handle.url, saved, files=str(handle.files.root))
    handle.trial_queue().reclaim_stale(lambda worker: True)
    killed_after(handle, 4)
    optuna.delete_study(study_name=handle.name, storage=handle.storage)
    copy_studies(saved, handle.url)
    with caplog.at_level(logging.WARNING):
        trial, epochs = finished(open_existing(handle.name, handle.url))
    assert "it is that of epoch 3, but no value is known of epoch 3" in caplog.text
    assert epochs == sorted(trial.intermediate_values) == [1, 2, 3, 4]
    expected = undisturbed("the same")
    assert trial.intermediate_values == expected.intermediate_values


def test_a_study_of_before_goes_on_from_its_start(tmp_path: Path) -> None:
    """It has no uuid, and its checkpoints do not say whose they are."""
    handle = open_one(tmp_path)
    killed_after(handle, 3)
    with handle.storage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM study_user_attributes WHERE key = 'uuid'")
    checkpoint_file(handle).write_bytes(b"PK\x03\x04 as torch wrote it")
    again = open_existing(handle.name, handle.url)
    assert again.uuid is None
    assert open_one(tmp_path).uuid is not None
    trial, epochs = finished(open_existing(handle.name, handle.url))
    assert epochs == [1, 2, 3, 4]
    assert trial.state == TrialState.COMPLETE
    assert not checkpoint_file(handle).exists()


def test_a_run_that_goes_on_keeps_its_identity(tmp_path: Path) -> None:
    first = open_one(tmp_path)
    second = open_one(tmp_path, search__trials=2)
    assert first.uuid == second.uuid
    (trial,) = second.study.get_trials()
    identities = [checkpoint_for(one, one.config(), trial).identity for one in (first, second)]
    assert identities[0] == identities[1]
    assert identities[0]["study"] == first.study.user_attrs[attrs.UUID]
