"""Trainings outside of the search: which results and states belong to one, and who has it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.config.schema import RefitConfig, StudyConfig
from autotune.plan import HeadPlan, TrialPlan
from autotune.storage.paths import StudyPaths
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial import trainings
from autotune.study.trial.trainings import Training, TrainingFiles
from tests.support.study.studies import make_study

BACKBONE = "test_resnet.r160_in1k"
CONFIRMED = Training("trial 1, seed 2", TrialPlan(BACKBONE), 2)
REFITTED = Training("best plan", TrialPlan(BACKBONE), refit=RefitConfig())


def opened(folder: Path) -> OpenStudy:
    study = make_study(trials=1, running=0, failed=0, retried=0)
    return OpenStudy(study, study._storage, "sqlite:///study.db", StudyPaths(folder))  # type: ignore[arg-type]


def config_of(handle: OpenStudy, **changes: Any) -> StudyConfig:
    values = {**handle.study.user_attrs[attrs.DEFINITION], "name": "digits"}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**(values.get(section) or {}), name: value}
    return StudyConfig.model_validate(values)


def changed_dataset(handle: OpenStudy, **values: Any) -> None:
    handle.study.set_user_attr(attrs.DATASET, {**handle.study.user_attrs[attrs.DATASET], **values})


#: What may be different from the training whose state or result was left.
OTHERS: dict[str, Any] = {
    "plan": lambda one, handle: replace(one, plan=TrialPlan(BACKBONE, head=HeadPlan(pool="max"))),
    "seed": lambda one, handle: replace(one, seed=3),
    "epochs": {"training__epochs": 7},
    "precision": {"training__precision": "off"},
    "image size": {"data__image_size": 32},
    "folds": {"data__folds": 3},
    "seed of the study": {"search__seed": 5},
    "images": lambda one, handle: changed_dataset(handle, fingerprint="1e" * 16),
    "weights": lambda one, handle: handle.study.set_user_attr(
        attrs.BACKBONES, {BACKBONE: {"weights_hash": "cd" * 8}}
    ),
    "autotune": "0.0.1",
    "torch": "1.0",
    "timm": "0.9",
    "kind": lambda one, handle: replace(one, refit=None if one.refit else RefitConfig()),
}
#: What is different for a refit alone.
OF_A_REFIT: dict[str, Any] = {
    "start": lambda one, handle: replace(one, same_start=True),
    "teacher": lambda one, handle: replace(one, teacher=((1, REFITTED),)),
    "views": lambda one, handle: replace(one, refit=RefitConfig(views="online")),
    "average": lambda one, handle: replace(one, refit=RefitConfig(ema=0.5)),
    "test images": lambda one, handle: changed_dataset(handle, test_fingerprint="2e" * 16),
}


@pytest.mark.parametrize(
    ("training", "what"),
    [
        *((CONFIRMED, what) for what in OTHERS),
        *((REFITTED, what) for what in (*OTHERS, *OF_A_REFIT)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_state_of_another_training_is_never_used(
    training: Training, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, change = opened(tmp_path), {**OTHERS, **OF_A_REFIT}[what]
    state = {"epoch": 1, "weight": torch.zeros(2)}
    before = TrainingFiles.of(training, handle, config_of(handle))
    before.checkpoint.save(state, 1)
    assert before.checkpoint.load(state) is not None
    config = config_of(handle, **change) if isinstance(change, dict) else config_of(handle)
    if isinstance(change, str):
        versions = trainings.installed_version
        monkeypatch.setattr(
            trainings, "installed_version", lambda name: change if name == what else versions(name)
        )
    elif not isinstance(change, dict):
        training = change(training, handle) or training
    after = TrainingFiles.of(training, handle, config)
    assert after.checkpoint.load(state) is None
    # A result of another version of a package is one, whoever made it.
    assert (after.result == before.result) == isinstance(change, str)


def test_limits_and_the_way_to_train_are_no_other_training(tmp_path: Path) -> None:
    handle = opened(tmp_path)
    files = TrainingFiles.of(CONFIRMED, handle, config_of(handle))
    config = config_of(handle, search__trials=99, data__max_unreadable_share=0.5)
    same = replace(CONFIRMED, name="another", micro_batch_size=4)
    assert TrainingFiles.of(same, handle, config) == files


def test_a_worker_is_told_a_training_as_json() -> None:
    taught = replace(REFITTED, teacher=((2, REFITTED), (1, replace(REFITTED, same_start=True))))
    for training in (CONFIRMED, replace(REFITTED, micro_batch_size=8), taught):
        assert Training.from_json(json.loads(json.dumps(training.to_json()))) == training


def test_a_training_is_had_once(tmp_path: Path) -> None:
    handle = opened(tmp_path)
    first, second = (TrainingFiles.of(CONFIRMED, handle, config_of(handle)) for _ in range(2))
    with pytest.raises(ZeroDivisionError), first.claim() as is_mine:
        assert is_mine
        with second.claim() as is_ours:
            assert not is_ours
        1 / 0  # noqa: B018
    assert list(first.folder.iterdir()) == []
    (first.folder / f"{first.key}.lock").touch()  # left by a process that was killed
    with second.claim() as is_mine:
        assert is_mine


def test_files_of_a_training_that_a_process_has_are_kept(tmp_path: Path) -> None:
    handle = opened(tmp_path)
    files = TrainingFiles.of(CONFIRMED, handle, config_of(handle))
    with files.claim():
        files.checkpoint.save({}, 1)
        assert trainings.idle_files(files.folder, 0.0) == ()
    assert trainings.idle_files(files.folder, 0.0) == (files.checkpoint.path,)
    assert trainings.idle_files(files.folder, 3600.0) == ()
