"""Making what is wrong with a study: workers that fell silent, attributes of trials that ended."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialHeartbeatModel, TrialModel, TrialUserAttributeModel
from optuna.trial import FrozenTrial
from sqlalchemy import delete, func, insert, select, update

from autotune.study.setup.opening import OpenStudy
from autotune.study.state.trial_queue import Claim


def claim(opened: OpenStudy, worker: str = "box/1/0", *, beat: bool = True) -> FrozenTrial:
    """Claim a trial as a worker does, with its first heartbeat."""
    claimed = opened.trial_queue().claim(worker)
    assert isinstance(claimed, Claim)
    if beat:
        opened.storage.record_heartbeat(claimed.trial._trial_id)
        opened.trial_queue().record_device_time(claimed)
    return trials_of(opened)[claimed.trial.number]


def trials_of(opened: OpenStudy) -> list[FrozenTrial]:
    return opened.study.get_trials(deepcopy=False)


def silence(storage: RDBStorage, trial: FrozenTrial, seconds: float) -> None:
    """Let the last heartbeat of a trial be some seconds ago."""
    with storage.engine.begin() as connection:
        now = connection.execute(select(func.now())).scalar_one().replace(tzinfo=None)
        changed = connection.execute(
            update(TrialHeartbeatModel)
            .where(TrialHeartbeatModel.trial_id == trial._trial_id)
            .values(heartbeat=now - timedelta(seconds=seconds))
        )
        assert changed.rowcount == 1


def set_attribute(opened: OpenStudy, number: int, key: str, value: Any) -> None:
    """Set a user attribute of a trial, which Optuna refuses once it has ended."""
    trial_id = trials_of(opened)[number]._trial_id
    model = TrialUserAttributeModel
    with opened.storage.engine.begin() as connection:
        connection.execute(delete(model).where(model.trial_id == trial_id, model.key == key))
        values = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        connection.execute(insert(model).values(**values))


def renumber(opened: OpenStudy, number: int, other: int) -> None:
    """Give a trial another number, as no part of autotune or Optuna would."""
    trial_id = trials_of(opened)[number]._trial_id
    with opened.storage.engine.begin() as connection:
        connection.execute(
            update(TrialModel).where(TrialModel.trial_id == trial_id).values(number=other)
        )
