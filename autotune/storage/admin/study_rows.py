"""One study as the rows of its tables: read from one database, written to another.

``optuna.copy_study`` writes trial by trial, so that an interrupted copy leaves half a study; it
numbers trials anew; and it takes times through the local clock, which shows one hour of the year
twice. Rows are written as they are, in one transaction or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy
from optuna.trial import TrialState

from autotune.optuna_private import models
from autotune.storage.artifacts import read_reference

Row = dict[str, Any]
_TABLES: Mapping[str, sqlalchemy.Table] = models.BaseModel.metadata.tables
_STUDIES = _TABLES[models.StudyModel.__tablename__]
_TRIALS = _TABLES[models.TrialModel.__tablename__]
_HEARTBEATS = _TABLES[models.TrialHeartbeatModel.__tablename__]
_USER_ATTRIBUTES = _TABLES[models.StudyUserAttributeModel.__tablename__]
_SYSTEM_ATTRIBUTES = _TABLES[models.StudySystemAttributeModel.__tablename__]
#: The tables of what belongs to a study or to a trial.
_PARTS = tuple(
    table
    for table in models.BaseModel.metadata.sorted_tables
    if {"study_id", "trial_id"} & set(table.c.keys())
    and table not in (_STUDIES, _TRIALS, _HEARTBEATS)
)
#: What optuna-dashboard keeps of a trial with its study: notes, and files of older versions.
_KEY_OF_TRIAL = re.compile(r"(dashboard:(?:artifacts:)?)(\d+)(:.*)", re.DOTALL)


@dataclass(frozen=True)
class StudyRows:
    """A study with everything that a database has of it, except the heartbeats of its workers.

    ``parts`` has the rows of all tables but that of the trials, by the table's name.
    """

    name: str
    trials: list[Row]
    parts: dict[str, list[Row]]

    @property
    def running(self) -> int:
        """Number of trials that run."""
        return sum(row["state"] == TrialState.RUNNING for row in self.trials)

    def with_attribute(self, key: str, value: Any) -> StudyRows:
        """Return the same study with another value of a user attribute that it has."""
        rows = [
            {**row, "value_json": json.dumps(value)} if row["key"] == key else row
            for row in self.parts[_USER_ATTRIBUTES.name]
        ]
        return replace(self, parts={**self.parts, _USER_ATTRIBUTES.name: rows})

    def artifacts(self) -> set[str]:
        """Return the names of the files in the artifact store that belong to the study."""
        references = (
            read_reference(row["key"], row["value_json"])
            for table in (models.StudySystemAttributeModel, models.TrialSystemAttributeModel)
            for row in self.parts[table.__tablename__]
        )
        return {reference[0] for reference in references if reference is not None}


def read_study(connection: sqlalchemy.Connection, name: str) -> StudyRows:
    """Read a study that is there, from a connection that sees the storage at one moment."""
    study = sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name)
    study_id = connection.scalars(study).one()
    trials = sqlalchemy.select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)

    def rows(table: sqlalchemy.Table) -> list[Row]:
        if "study_id" in table.c:
            owned = table.c.study_id == study_id
        else:
            owned = table.c.trial_id.in_(trials)
        query = sqlalchemy.select(table).where(owned).order_by(*table.primary_key)
        return [dict(row) for row in connection.execute(query).mappings()]

    return StudyRows(name, rows(_TRIALS), {table.name: rows(table) for table in _PARTS})


def read_attributes(connection: sqlalchemy.Connection, name: str) -> dict[str, Any]:
    """Read the user attributes of a study."""
    query = (
        sqlalchemy.select(_USER_ATTRIBUTES.c.key, _USER_ATTRIBUTES.c.value_json)
        .join(_STUDIES)
        .where(_STUDIES.c.study_name == name)
    )
    return {key: json.loads(value_json) for key, value_json in connection.execute(query)}


def write_study(engine: sqlalchemy.Engine, study: StudyRows) -> None:
    """Write a study in one transaction.

    A trial that was running when it was read gets a heartbeat of now: its worker knows nothing of
    this copy, and once the heartbeat is old the trial is requeued.

    Raises:
        sqlalchemy.exc.IntegrityError: When the storage has a study of its name.
    """
    with engine.begin() as connection:
        insert = sqlalchemy.insert(_STUDIES).returning(_STUDIES.c.study_id)
        study_id = connection.scalars(insert, {"study_name": study.name}).one()
        trial_ids = _write_trials(connection, study_id, study.trials)
        for name, rows in study.parts.items():
            table = _TABLES[name]
            kept = _with_new_keys(rows, trial_ids) if table is _SYSTEM_ATTRIBUTES else rows
            if new := [_with_new_ids(table, row, study_id, trial_ids) for row in kept]:
                connection.execute(sqlalchemy.insert(table), new)
        running = [
            {"trial_id": trial_ids[row["trial_id"]]}
            for row in study.trials
            if row["state"] == TrialState.RUNNING
        ]
        if running:
            connection.execute(sqlalchemy.insert(_HEARTBEATS), running)


def rename_study_row(engine: sqlalchemy.Engine, old: str, new: str) -> None:
    """Give a study another name.

    Raises:
        sqlalchemy.exc.IntegrityError: When the storage has a study of that name.
    """
    with engine.begin() as connection:
        named = sqlalchemy.update(_STUDIES).where(_STUDIES.c.study_name == old)
        connection.execute(named.values(study_name=new))


def _write_trials(
    connection: sqlalchemy.Connection, study_id: int, rows: list[Row]
) -> dict[int, int]:
    """Write the trials, in order; return their new ids by their old ones."""
    if not rows:
        return {}
    insert = sqlalchemy.insert(_TRIALS).returning(_TRIALS.c.trial_id, sort_by_parameter_order=True)
    new = connection.scalars(insert, [_with_new_ids(_TRIALS, row, study_id, {}) for row in rows])
    return {row["trial_id"]: trial_id for row, trial_id in zip(rows, new, strict=True)}


def _with_new_keys(rows: list[Row], trial_ids: Mapping[int, int]) -> Iterator[Row]:
    """Yield system attributes of a study, those named by a trial's id under its new id.

    A key with the id of no trial is left out: it would be another trial's in the copy.
    """
    for row in rows:
        key = _KEY_OF_TRIAL.fullmatch(row["key"])
        if key is None:
            yield row
        elif (trial_id := trial_ids.get(int(key[2]))) is not None:
            yield {**row, "key": f"{key[1]}{trial_id}{key[3]}"}


def _with_new_ids(
    table: sqlalchemy.Table, row: Row, study_id: int, trial_ids: Mapping[int, int]
) -> Row:
    """Return a row for another database: without its own id, and with the new ids of others."""
    new = {key: value for key, value in row.items() if key not in table.primary_key}
    if "study_id" in new:
        new["study_id"] = study_id
    if "trial_id" in new:
        new["trial_id"] = trial_ids[new["trial_id"]]
    return new
