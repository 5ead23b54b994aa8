"""What workers read and write most, with fewer statements than Optuna takes.

Optuna looks for everything before it writes it. A trial that is being made has nothing yet, and
with dozens of parameters the looking is what all workers wait for: trials are made under the
study's lock. And whether a report is a new one, the database can tell by itself.

What must happen as a whole, and Optuna does in steps, is here too: a trial that is given back
fails and has its successor in one transaction. This is the one module that writes through Optuna's
private parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from autotune.storage.trials import read_trial, read_trials

_TRIALS = models.TrialModel
_REPORTS = models.TrialIntermediateValueModel
_STUDY_ATTRIBUTES = models.StudyUserAttributeModel
_LIVE = (TrialState.RUNNING, TrialState.WAITING)
#: The user attribute that tells a study from others that had its name, or its id, before.
UUID = "uuid"


@dataclass(frozen=True)
class Failure:
    """What becomes of a running trial that is to fail.

    Args:
        attributes: User attributes that it gets.
        successor: The trial that is to take its place, ``None`` where none is.
    """

    attributes: Mapping[str, Any] = field(default_factory=dict)
    successor: FrozenTrial | None = None


class QuickStorage(RDBStorage):
    """Optuna's database storage, for SQLite and Postgres, without detours.

    Attributes:
        study_uuid: Only the trials of the study with this uuid take anything from here; ``None``
            where it has none. SQLite gives the ids of what was deleted to what is made next.
    """

    study_uuid: str | None = None

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value, in place of an earlier one of that step.

        The row of the trial is locked meanwhile: whoever fails it has seen the value, or it is
        not written.

        Raises:
            KeyError: When there is no such trial.
            UpdateFinishedTrialError: When it has ended, or its study was made anew.
        """
        value, kind = _REPORTS.intermediate_value_to_stored_repr(intermediate_value)
        uuid = None if self.study_uuid is None else json.dumps(self.study_uuid)
        report = {"of": trial_id, "at": step, "value": value, "kind": kind, "uuid": uuid}
        with self.engine.begin() as connection:
            written = connection.execute(_reporting(self.engine.name), report).rowcount
        if not written:
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
            raise _given_again(trial_id)

    def _set_trial_attr_without_commit(
        self,
        session: Session,
        model_cls: type[models.TrialUserAttributeModel | models.TrialSystemAttributeModel],
        trial_id: int,
        key: str,
        value: Any,
    ) -> None:
        """Write an attribute; a worker of a deleted study leaves none with another study's trial.

        Raises:
            KeyError: When there is no such trial.
            UpdateFinishedTrialError: When it has ended, or its study was made anew.
        """
        if self.study_uuid is not None:  # one more statement, for about twenty attributes a trial
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
            ours = sqlalchemy.select(_is_of(trial.study_id, json.dumps(self.study_uuid)))
            if not session.scalar(ours):
                raise _given_again(trial_id)
        super()._set_trial_attr_without_commit(session, model_cls, trial_id, key, value)

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that the worker of a trial is alive; not for a trial of another study.

        Without a trial, SQLite would keep the heartbeat for the next one of that id.
        """
        if self.study_uuid is not None:
            ours = _is_of(_TRIALS.study_id, json.dumps(self.study_uuid))
            with self.engine.begin() as connection:
                known = sqlalchemy.select(_TRIALS.trial_id).where(
                    _TRIALS.trial_id == trial_id, ours
                )
                if connection.scalar(known) is None:
                    return
        super().record_heartbeat(trial_id)

    def fail_trial(self, trial_id: int, decide: Callable[[FrozenTrial], Failure]) -> bool:
        """Fail a running trial, and make its successor, in one transaction.

        Args:
            trial_id: The trial.
            decide: Told the trial as it is now, with all that its worker has reported; nothing
                more can be reported. Says what becomes of it.

        Returns:
            Whether it was running; if not, nothing has happened.

        Raises:
            KeyError: When there is no such trial.
        """
        with _create_scoped_session(self.scoped_session) as session:
            study_id = session.scalar(
                sqlalchemy.select(_TRIALS.study_id).where(_TRIALS.trial_id == trial_id)
            )
            if study_id is None:
                raise KeyError(f"there is no trial id {trial_id}")
            # In the order in which Optuna locks them, where it makes a trial.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            if trial.state != TrialState.RUNNING:
                return False
            current = read_trial(session.connection(), trial_id)
            assert current is not None, "its row is locked"
            failure = decide(current)
            for key, value in failure.attributes.items():
                self._set_trial_attr_without_commit(
                    session, models.TrialUserAttributeModel, trial_id, key, value
                )
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            if failure.successor is not None:
                self._get_prepared_new_trial(study_id, failure.successor, session)
        return True

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the user attributes of a study: one statement, where it has any.

        Raises:
            KeyError: When there is no such study.
        """
        attributes = sqlalchemy.select(_STUDY_ATTRIBUTES.key, _STUDY_ATTRIBUTES.value_json)
        with self.engine.begin() as connection:
            rows = connection.execute(
                attributes.where(_STUDY_ATTRIBUTES.study_id == study_id)
            ).all()
        if not rows:  # there may be no such study
            return super().get_study_user_attrs(study_id)
        return {key: json.loads(text) for key, text in rows}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial.

        Raises:
            KeyError: When there is no such one.
        """
        with self.engine.begin() as connection:
            found = read_trial(connection, trial_id)
        # Optuna says why there is none.
        return super().get_trial(trial_id) if found is None else found

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read what Optuna's cache asks for: trials with these ids, and those after another.

        Raises:
            KeyError: When there is no such study.
        """
        with self.engine.begin() as connection:
            found = read_trials(connection, study_id, included_trial_ids, trial_id_greater_than)
        if not found:
            self.get_study_name_from_id(study_id)  # there may be no such study
        return [one for one in found if states is None or one.state in states]

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        made = template_trial
        if made is None or made.values is not None:
            return super()._get_prepared_new_trial(study_id, made, session)
        trial = models.TrialModel(
            study_id=study_id,
            number=None,
            state=made.state,
            datetime_start=made.datetime_start,
            datetime_complete=made.datetime_complete,
        )
        session.add(trial)
        session.flush()  # gives it its id
        for model, rows in _rows(made, int(trial.trial_id)):
            if rows:
                session.execute(sqlalchemy.insert(model), rows)
        trial.number = trial.count_past_trials(session)
        return trial


def _given_again(trial_id: int) -> UpdateFinishedTrialError:
    return UpdateFinishedTrialError(f"trial id {trial_id} is that of another study now")


def _is_of(study_id: Any, uuid: Any) -> sqlalchemy.Exists:
    """Make the condition that a study has a uuid, as its JSON text."""
    attributes = _STUDY_ATTRIBUTES
    return sqlalchemy.exists().where(
        attributes.study_id == study_id, attributes.key == UUID, attributes.value_json == uuid
    )


@cache
def _reporting(database: str) -> sqlalchemy.Insert:
    """Make the statement that reports a value of a live trial; making it takes as long as it."""
    insert = sqlite.insert if database == "sqlite" else postgresql.insert
    uuid = sqlalchemy.bindparam("uuid", type_=_STUDY_ATTRIBUTES.value_json.type)
    ours = sqlalchemy.or_(uuid.is_(None), _is_of(_TRIALS.study_id, uuid))
    live = sqlalchemy.select(
        _TRIALS.trial_id,
        sqlalchemy.bindparam("at", type_=_REPORTS.step.type),
        sqlalchemy.bindparam("value", type_=_REPORTS.intermediate_value.type),
        sqlalchemy.bindparam("kind", type_=_REPORTS.intermediate_value_type.type),
    ).where(_TRIALS.trial_id == sqlalchemy.bindparam("of"), _TRIALS.state.in_(_LIVE), ours)
    live = live.with_for_update(read=True, of=_TRIALS)  # SQLite has one writer anyway
    columns = ["trial_id", "step", "intermediate_value", "intermediate_value_type"]
    new = insert(_REPORTS).from_select(columns, live)
    new = new.on_conflict_do_update(
        index_elements=["trial_id", "step"],
        set_={name: new.excluded[name] for name in columns[2:]},
    )
    # Else it is read of a cursor that psycopg has closed by then: -1, whatever was written.
    return new.execution_options(preserve_rowcount=True)


def _rows(
    made: FrozenTrial, trial_id: int
) -> Iterator[tuple[type[models.BaseModel], list[dict[str, Any]]]]:
    yield (
        models.TrialParamModel,
        [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": made.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(made.distributions[name]),
            }
            for name, value in made.params.items()
        ],
    )
    for model, attributes in (
        (models.TrialUserAttributeModel, made.user_attrs),
        (models.TrialSystemAttributeModel, made.system_attrs),
    ):
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]
        yield model, rows
    reports = []
    for step, value in made.intermediate_values.items():
        stored, kind = _REPORTS.intermediate_value_to_stored_repr(value)
        reports.append(
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": stored,
                "intermediate_value_type": kind,
            }
        )
    yield _REPORTS, reports
