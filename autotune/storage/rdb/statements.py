"""Statements for Optuna's private tables, and the rows that they write.

Making a statement takes as long as executing it: each is made once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, bindparam
from sqlalchemy.dialects import postgresql, sqlite

from autotune.optuna_private import models

#: The user attribute that tells a study from others that had its name, or its id, before.
UUID = "uuid"

_STUDIES = models.StudyModel
TRIALS = models.TrialModel
VALUES = models.TrialValueModel
REPORTS = models.TrialIntermediateValueModel
_STUDY_ATTRIBUTES = models.StudyUserAttributeModel
AttributeModel = type[models.TrialUserAttributeModel | models.TrialSystemAttributeModel]


@dataclass(frozen=True)
class StoredParam:
    """A parameter, with its value as the distribution stores it."""

    value: float
    distribution: BaseDistribution


READ_STUDY_ATTRIBUTES = sqlalchemy.select(
    _STUDY_ATTRIBUTES.key, _STUDY_ATTRIBUTES.value_json
).where(_STUDY_ATTRIBUTES.study_id == bindparam("study"))
LOCK_STUDY = (
    sqlalchemy.select(_STUDIES.study_id)
    .where(_STUDIES.study_id == bindparam("study"))
    .with_for_update()
)
_TABLE = models.BaseModel.metadata.tables[TRIALS.__tablename__]
_COUNT = (
    sqlalchemy.select(sqlalchemy.func.count())
    .select_from(_TABLE)
    .where(_TABLE.c.study_id == bindparam("of_study"))
)
_NEW_TRIAL = (
    sqlalchemy.insert(_TABLE)
    .values(number=_COUNT.scalar_subquery())
    .returning(_TABLE.c.trial_id, _TABLE.c.number)
)
END_TRIAL = (
    sqlalchemy.update(_TABLE)
    .where(_TABLE.c.trial_id == bindparam("of"))
    .values(
        state=bindparam("how", type_=_TABLE.c.state.type),
        datetime_complete=bindparam("ended", type_=_TABLE.c.datetime_complete.type),
    )
)


def stored_time(moment: datetime | None) -> datetime | None:
    """Return a local time as Optuna stores it: in UTC, without a zone."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def make_trial(connection: Connection, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
    """Write a trial; return its id and its number.

    The caller has locked the row of the study.
    """
    row = {
        "of_study": study_id,
        "study_id": study_id,
        "state": trial.state,
        "datetime_start": stored_time(trial.datetime_start),
        "datetime_complete": stored_time(trial.datetime_complete),
    }
    trial_id, number = connection.execute(_NEW_TRIAL, row).one()
    for model, rows in _part_rows(trial, trial_id).items():
        if rows:
            connection.execute(sqlalchemy.insert(model), rows)
    return trial_id, number


def has_uuid(study_id: Any, uuid: Any) -> sqlalchemy.Exists:
    """Make the condition that a study has a uuid, given as JSON text."""
    attributes = _STUDY_ATTRIBUTES
    return sqlalchemy.exists().where(
        attributes.study_id == study_id, attributes.key == UUID, attributes.value_json == uuid
    )


def _select_trial(
    states: Sequence[TrialState], *columns: sqlalchemy.ColumnElement[Any]
) -> sqlalchemy.Select[Any]:
    """Make a statement that finds a trial of this study in one of these states."""
    uuid = bindparam("uuid", type_=_STUDY_ATTRIBUTES.value_json.type)
    is_ours = sqlalchemy.or_(uuid.is_(None), has_uuid(TRIALS.study_id, uuid))
    # Not "in", which a statement that is executed for many rows may not have.
    in_state = sqlalchemy.or_(*(TRIALS.state == state for state in states))
    selected = sqlalchemy.select(TRIALS.trial_id, *columns)
    return selected.where(TRIALS.trial_id == bindparam("of"), in_state, is_ours)


@cache
def lock_running() -> sqlalchemy.Select[Any]:
    """Make the statement that locks the row of a running trial."""
    return _select_trial([TrialState.RUNNING]).with_for_update(of=TRIALS)


@cache
def write_report(database: str) -> sqlalchemy.Insert:
    """Make the statement that reports a value of a live trial."""
    return _upsert(
        database,
        REPORTS,
        ["trial_id", "step", "intermediate_value", "intermediate_value_type"],
        bindparam("at", type_=REPORTS.step.type),
        bindparam("value", type_=REPORTS.intermediate_value.type),
        bindparam("kind", type_=REPORTS.intermediate_value_type.type),
    )


@cache
def write_attribute(database: str, model: AttributeModel) -> sqlalchemy.Insert:
    """Make the statement that writes an attribute of a live trial."""
    return _upsert(
        database,
        model,
        ["trial_id", "key", "value_json"],
        bindparam("name", type_=model.key.type),
        bindparam("text", type_=model.value_json.type),
    )


@cache
def write_report_and_attribute(database: str) -> sqlalchemy.Insert:
    """Make the statement that reports a value of a live trial and writes an attribute of it."""
    attribute = write_attribute(database, models.TrialUserAttributeModel)
    return write_report(database).add_cte(attribute.cte("attribute"))


def _upsert(
    database: str,
    model: type[models.BaseModel],
    columns: Sequence[str],
    *values: sqlalchemy.ColumnElement[Any],
) -> sqlalchemy.Insert:
    """Make the statement that writes a row of a live trial, whose own row stays locked.

    The first two columns are the key of the table.
    """
    insert = sqlite.insert if database == "sqlite" else postgresql.insert
    live = _select_trial((TrialState.RUNNING, TrialState.WAITING), *values)
    live = live.with_for_update(read=True, of=TRIALS)  # SQLite has one writer anyway
    new = insert(model).from_select(columns, live)
    new = new.on_conflict_do_update(
        index_elements=columns[:2],
        set_={name: new.excluded[name] for name in columns[2:]},
    )
    # Else it is read of a cursor that psycopg has closed by then: -1, whatever was written.
    return new.execution_options(preserve_rowcount=True)


def attribute_rows(
    trial_id: int, attributes: Mapping[str, Any], uuid: str | None
) -> list[dict[str, Any]]:
    """Return the rows of attributes, for :func:`write_attribute`."""
    return [
        {"of": trial_id, "name": key, "text": json.dumps(value), "uuid": uuid}
        for key, value in attributes.items()
    ]


def param_row(trial_id: int, name: str, param: StoredParam) -> dict[str, Any]:
    """Return the row of a parameter."""
    return {
        "trial_id": trial_id,
        "param_name": name,
        "param_value": param.value,
        "distribution_json": distribution_to_json(param.distribution),
    }


def value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    """Return the rows of a trial's values."""
    return [
        {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        for objective, (stored, kind) in enumerate(map(VALUES.value_to_stored_repr, values))
    ]


def _part_rows(
    trial: FrozenTrial, trial_id: int
) -> dict[type[models.BaseModel], list[dict[str, Any]]]:
    """Return the rows of a trial's values, parameters, attributes and curve, by table."""

    def rows_of(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for key, value in attributes.items()
        ]

    params = []
    for name, value in trial.params.items():
        own = trial.distributions[name]
        params.append(param_row(trial_id, name, StoredParam(own.to_internal_repr(value), own)))
    reports = []
    for step, value in trial.intermediate_values.items():
        stored, kind = REPORTS.intermediate_value_to_stored_repr(value)
        row = {"intermediate_value": stored, "intermediate_value_type": kind}
        reports.append({"trial_id": trial_id, "step": step, **row})
    return {
        VALUES: value_rows(trial_id, trial.values or ()),
        models.TrialParamModel: params,
        REPORTS: reports,
        models.TrialUserAttributeModel: rows_of(trial.user_attrs),
        models.TrialSystemAttributeModel: rows_of(trial.system_attrs),
    }
