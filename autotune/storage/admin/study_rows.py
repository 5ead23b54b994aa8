"""One study as the rows of its tables: read from one database, written to another.

``optuna.copy_study`` writes trial by trial, so that a copy which breaks off leaves half a study;
it numbers trials anew; and it takes times through the local clock, which shows one hour of the
year twice. Rows are written as they are, in one transaction or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
_ATTRIBUTES = models.StudyUserAttributeModel.__tablename__
_OF_SYSTEM = _TABLES[models.StudySystemAttributeModel.__tablename__]
#: What optuna-dashboard keeps of a trial with its study: notes, and files of older versions.
_OF_TRIAL = re.compile(r"(dashboard:(?:artifacts:)?)(\d+)(:.*)", re.DOTALL)


@dataclass(frozen=True)
class StudyRows:
    """A study with everything that a database knows about it, but the heartbeats of its workers.

    Args:
        name: Name of the study.
        trials: Rows of its trials, first one first.
        parts: Rows of all other tables by the table's name, in the order in which they were made.
    """

    name: str
    trials: list[Row]
    parts: dict[str, list[Row]]

    @property
    def running(self) -> int:
        """How many trials are at work."""
        return sum(row["state"] == TrialState.RUNNING for row in self.trials)

    def with_attribute(self, key: str, value: Any) -> StudyRows:
        """Return the same study with another value of a user attribute that it has."""
        rows = [
            {**row, "value_json": json.dumps(value)} if row["key"] == key else row
            for row in self.parts[_ATTRIBUTES]
        ]
        return StudyRows(self.name, self.trials, {**self.parts, _ATTRIBUTES: rows})

    def artifacts(self) -> set[str]:
        """Return the names of the files in the artifact store that belong to the study."""
        found = (
            read_reference(row["key"], row["value_json"])
            for table in (models.StudySystemAttributeModel, models.TrialSystemAttributeModel)
            for row in self.parts[table.__tablename__]
        )
        return {one[0] for one in found if one is not None}


def _parts() -> Iterator[sqlalchemy.Table]:
    """Yield the tables that belong to a study or to a trial."""
    for table in models.BaseModel.metadata.sorted_tables:
        belongs = "study_id" in table.c or "trial_id" in table.c
        if belongs and table not in (_STUDIES, _TRIALS, _HEARTBEATS):
            yield table


def read_study(connection: sqlalchemy.Connection, name: str) -> StudyRows:
    """Read a study.

    Args:
        connection: One that sees the storage at one moment, as ``snapshot.reading`` gives it.
        name: Name of a study that is there.
    """
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

    return StudyRows(name, rows(_TRIALS), {table.name: rows(table) for table in _parts()})


def read_attribute(connection: sqlalchemy.Connection, name: str, key: str) -> Any:
    """Read one user attribute of a study; None where it has none."""
    table = _TABLES[_ATTRIBUTES]
    query = (
        sqlalchemy.select(table.c.value_json)
        .join(_STUDIES)
        .where(_STUDIES.c.study_name == name, table.c.key == key)
    )
    found = connection.scalar(query)
    return None if found is None else json.loads(found)


def write_study(engine: sqlalchemy.Engine, study: StudyRows) -> None:
    """Write a study in one transaction.

    A trial that was running when it was read gets a heartbeat of now: its worker knows nothing of
    this copy, and once the heartbeat is old the trial goes back to the queue.

    Args:
        engine: Engine of a storage with the tables of the installed Optuna.
        study: The study; the storage has none of its name.

    Raises:
        sqlalchemy.exc.IntegrityError: When it has one all the same.
    """
    with engine.begin() as connection:
        new_study = sqlalchemy.insert(_STUDIES).returning(_STUDIES.c.study_id)
        study_id = connection.scalars(new_study, {"study_name": study.name}).one()
        trial_ids = _write_trials(connection, study_id, study.trials)
        for name, rows in study.parts.items():
            table = _TABLES[name]
            kept = _renamed(rows, trial_ids) if table is _OF_SYSTEM else rows
            if moved := [_moved(table, row, study_id, trial_ids) for row in kept]:
                connection.execute(sqlalchemy.insert(table), moved)
        running = [
            {"trial_id": trial_ids[row["trial_id"]]}
            for row in study.trials
            if row["state"] == TrialState.RUNNING
        ]
        if running:
            connection.execute(sqlalchemy.insert(_HEARTBEATS), running)


def _write_trials(
    connection: sqlalchemy.Connection, study_id: int, rows: list[Row]
) -> dict[int, int]:
    """Write the trials, in order; return which id each of them has now."""
    if not rows:
        return {}
    insert = sqlalchemy.insert(_TRIALS).returning(_TRIALS.c.trial_id, sort_by_parameter_order=True)
    new = connection.scalars(insert, [_moved(_TRIALS, row, study_id, {}) for row in rows])
    return {row["trial_id"]: trial_id for row, trial_id in zip(rows, new, strict=True)}


def _renamed(rows: list[Row], trial_ids: Mapping[int, int]) -> Iterator[Row]:
    """Yield system attributes of a study, those named by a trial's id under the new one.

    What is named by the id of no trial is left out: it would be another trial's in the copy.
    """
    for row in rows:
        named = _OF_TRIAL.fullmatch(row["key"])
        if named is None:
            yield row
        elif (trial_id := trial_ids.get(int(named[2]))) is not None:
            yield {**row, "key": f"{named[1]}{trial_id}{named[3]}"}


def _moved(table: sqlalchemy.Table, row: Row, study_id: int, trial_ids: Mapping[int, int]) -> Row:
    """Return a row as another database has it: without its own id, under the new ids of others."""
    moved = {key: value for key, value in row.items() if key not in table.primary_key}
    if "study_id" in moved:
        moved["study_id"] = study_id
    if "trial_id" in moved:
        moved["trial_id"] = trial_ids[moved["trial_id"]]
    return moved
