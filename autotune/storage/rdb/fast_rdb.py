"""Optuna's database storage with fewer statements for what workers read and write most.

Optuna looks for everything before it writes it. A trial that is being made has nothing yet, and
with dozens of parameters the looking is what all workers wait for: trials are made under the
study's lock. And whether a report is a new one, the database can tell by itself.

What must happen as a whole, and Optuna does in steps, is here too: a trial that is requeued fails
and gets its successor in one transaction. :mod:`autotune.storage.rdb.statements` has the
statements.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from autotune import optuna_private
from autotune.optuna_private import OpenRDBStorage, models
from autotune.storage.rdb.sqlite_file import SQLiteFile
from autotune.storage.rdb.statements import (
    END_TRIAL,
    LOCK_STUDY,
    READ_STUDY_ATTRIBUTES,
    REPORTS,
    TRIALS,
    VALUES,
    AttributeModel,
    StoredParam,
    attribute_rows,
    has_uuid,
    lock_running,
    make_trial,
    param_row,
    stored_time,
    value_rows,
    write_attribute,
    write_report,
    write_report_and_attribute,
)
from autotune.storage.rdb.trial_reader import read_trial, read_trials

#: The user attribute that a trial gets last when it is claimed: its parameters are all there.
WORKER = "worker"


@dataclass(frozen=True)
class Failure:
    """The attributes that a failing trial gets, and the trial that takes its place, if any."""

    attributes: Mapping[str, Any] = field(default_factory=dict)
    successor: FrozenTrial | None = None


class FastRDBStorage(OpenRDBStorage):
    """Optuna's database storage, for SQLite and Postgres, with fewer statements.

    Attributes:
        study_uuid: Only the trials of the study with this uuid are written to; ``None`` where it
            has none. SQLite gives the ids of what was deleted to what is made next.
        sqlite_file: The file of an SQLite database, as it was opened.
    """

    study_uuid: str | None = None
    sqlite_file: SQLiteFile | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Trials that ran when they were read, by id, with all of their parameters.
        self._running: dict[int, FrozenTrial] = {}
        self._local = threading.local()
        #: Trials and ends of trials that a study had when they were last counted, by its id.
        self._rows: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a process."""
        state = super().__getstate__()
        del state["_local"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make anew what belongs to a process."""
        super().__setstate__(state)
        self._local = threading.local()

    def check_file(self) -> None:
        """Raise an error if the file of the database is not the one that was opened.

        Raises:
            DatabaseLostError: When it was deleted, moved or replaced; what was stored is saved.
        """
        if self.sqlite_file is not None:
            self.sqlite_file.check(self.engine)

    def check_rows(self, study_id: int) -> None:
        """Raise an error if the file of the database has lost trials of a study.

        Raises:
            DatabaseLostError: When an older file was written over it; what was stored is saved.
        """
        if self.sqlite_file is not None:
            known = self._rows.get(study_id, 0)
            self._rows[study_id] = self.sqlite_file.check_rows(self.engine, study_id, known)

    @contextmanager
    def _autocommit(self) -> Iterator[Connection]:
        """Yield a connection for single statements.

        A server commits each of them; a transaction would be two round trips more.
        """
        if self.engine.name == "sqlite":
            with self.engine.begin() as connection:
                yield connection
            return
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def state_changes_only(self) -> Iterator[None]:
        """Of trials last read as running, read only the state again, in this thread.

        Their parameters do not change; their curves are those of the last reading. A claim counts
        the trials that run, and reads them under the study's lock.
        """
        self._local.state_changes_only = True
        try:
            yield
        finally:
            self._local.state_changes_only = False

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value, or replace that of the step; raise as :meth:`set_trial_user_attrs`.

        The row of the trial is locked meanwhile: who fails the trial has seen the value, or it is
        not written.
        """
        report = self._report(trial_id, step, intermediate_value)
        with self._autocommit() as connection:
            written = connection.execute(write_report(self.engine.name), report).rowcount
        if not written:
            self._refuse(trial_id)

    def report_epoch(self, trial_id: int, step: int, value: float, key: str, attr: Any) -> None:
        """Report a value together with a user attribute, both or neither.

        Raises as :meth:`set_trial_user_attrs`. It costs no more than the value alone: a server
        gets one statement, SQLite two in one transaction.
        """
        report, uuid = self._report(trial_id, step, value), self._uuid()
        (attribute,) = attribute_rows(trial_id, {key: attr}, uuid)
        with self._autocommit() as connection:
            if self.engine.name == "sqlite":  # its statements cannot hold another one that writes
                statement = write_attribute("sqlite", models.TrialUserAttributeModel)
                connection.execute(statement, attribute)
                written = connection.execute(write_report("sqlite"), report).rowcount
            else:
                both = write_report_and_attribute(self.engine.name)
                written = connection.execute(both, report | attribute).rowcount
        if not written:
            self._refuse(trial_id)

    def _report(self, trial_id: int, step: int, value: float) -> dict[str, Any]:
        stored, kind = REPORTS.intermediate_value_to_stored_repr(value)
        return {"of": trial_id, "at": step, "value": stored, "kind": kind, "uuid": self._uuid()}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a user attribute as :meth:`set_trial_user_attrs` does."""
        self.set_trial_user_attrs(trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Write user attributes of a live trial, all of them or none.

        Raises:
            KeyError: When there is no such trial.
            UpdateFinishedTrialError: When it has ended, or its study was made anew.
        """
        self._write_attributes(models.TrialUserAttributeModel, trial_id, attributes)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a system attribute as :meth:`set_trial_user_attrs` does."""
        self._write_attributes(models.TrialSystemAttributeModel, trial_id, {key: value})

    def _write_attributes(
        self, model: AttributeModel, trial_id: int, attributes: Mapping[str, Any]
    ) -> None:
        if not attributes:
            return
        rows = attribute_rows(trial_id, attributes, self._uuid())
        with self._autocommit() if len(rows) == 1 else self.engine.begin() as connection:
            statement = write_attribute(self.engine.name, model)  # type: ignore[arg-type]
            written = connection.execute(statement, rows).rowcount
        if not written:
            self._refuse(trial_id)

    def _uuid(self) -> str | None:
        return None if self.study_uuid is None else json.dumps(self.study_uuid)

    def _refuse(self, trial_id: int) -> None:
        """Raise the error that says why nothing was written to a trial."""
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        raise UpdateFinishedTrialError(f"trial id {trial_id} is that of another study now")

    def fill_trial(
        self, trial_id: int, params: Mapping[str, StoredParam], attributes: Mapping[str, Any]
    ) -> None:
        """Give a running trial parameters that it lacks and user attributes, in one transaction.

        Raises:
            UpdateFinishedTrialError: When it does not run, or is of another study.
        """
        with self.engine.begin() as connection:
            if not self._lock_running(connection, trial_id):
                raise UpdateFinishedTrialError(f"trial id {trial_id} does not run any more")
            if params:
                rows = [param_row(trial_id, name, param) for name, param in params.items()]
                connection.execute(sqlalchemy.insert(models.TrialParamModel), rows)
            self._attach(connection, trial_id, attributes)

    def end_trial(
        self,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
    ) -> bool:
        """End a running trial, in one transaction.

        Returns:
            Whether it was running, and is of this study; if not, nothing has happened.
        """
        with self.engine.begin() as connection:
            if not self._lock_running(connection, trial_id):
                return False
            if values is not None:
                connection.execute(sqlalchemy.insert(VALUES), value_rows(trial_id, values))
            self._end(connection, trial_id, state, attributes)
        return True

    def _lock_running(self, connection: Connection, trial_id: int) -> bool:
        """Lock the row of a trial; tell whether it runs, and is of this study."""
        which = {"of": trial_id, "uuid": self._uuid()}
        return connection.execute(lock_running(), which).first() is not None

    def _attach(
        self, connection: Connection, trial_id: int, attributes: Mapping[str, Any]
    ) -> None:
        """Write user attributes of a trial whose row is locked."""
        if attributes:
            statement = write_attribute(self.engine.name, models.TrialUserAttributeModel)
            connection.execute(statement, attribute_rows(trial_id, attributes, self._uuid()))

    def _end(
        self,
        connection: Connection,
        trial_id: int,
        state: TrialState,
        attributes: Mapping[str, Any],
    ) -> None:
        """End a trial whose row is locked."""
        self._attach(connection, trial_id, attributes)
        ended = {"of": trial_id, "ended": stored_time(datetime.now()), "how": state}
        connection.execute(END_TRIAL, ended)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that the worker of a trial is alive; not for a trial of another study.

        Without a trial, SQLite would keep the heartbeat for the next one of that id.
        """
        if self.study_uuid is not None:
            is_ours = has_uuid(TRIALS.study_id, json.dumps(self.study_uuid))
            query = sqlalchemy.select(TRIALS.trial_id).where(TRIALS.trial_id == trial_id, is_ours)
            with self._autocommit() as connection:
                if connection.scalar(query) is None:
                    return
        super().record_heartbeat(trial_id)

    def fail_trial(self, trial_id: int, decide: Callable[[FrozenTrial], Failure]) -> bool:
        """Fail a running trial, and make its successor, in one transaction.

        ``decide`` gets the trial with all that its worker has reported; nothing more can be
        reported.

        Returns:
            Whether it was running, and is of this study; if not, nothing has happened.

        Raises:
            KeyError: When there is no such trial.
        """
        query = sqlalchemy.select(TRIALS.study_id).where(TRIALS.trial_id == trial_id)
        with self.engine.begin() as connection:
            study_id = connection.scalar(query)
            if study_id is None:
                raise KeyError(f"there is no trial id {trial_id}")
            # First the study's row, as where a trial is made: the other order could deadlock.
            connection.execute(LOCK_STUDY, {"study": study_id})
            if not self._lock_running(connection, trial_id):
                return False
            current = read_trial(connection, trial_id)
            assert current is not None, "its row is locked"
            failure = decide(current)
            self._end(connection, trial_id, TrialState.FAIL, failure.attributes)
            if failure.successor is not None:
                make_trial(connection, study_id, failure.successor)
        return True

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the user attributes of a study, in one statement if it has any."""
        with self._autocommit() as connection:
            rows = connection.execute(READ_STUDY_ATTRIBUTES, {"study": study_id}).all()
        if not rows:  # there may be no such study
            return super().get_study_user_attrs(study_id)
        return {key: json.loads(text) for key, text in rows}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial."""
        with self._autocommit() as connection:
            trial = read_trial(connection, trial_id)
        # Optuna says why there is none.
        return super().get_trial(trial_id) if trial is None else trial

    def fetch_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read what Optuna's cache asks for: trials with these ids, and those after another."""
        known = self._running if getattr(self._local, "state_changes_only", False) else {}
        with self._autocommit() as connection:
            trials = read_trials(
                connection, study_id, included_trial_ids, trial_id_greater_than, known
            )
        for trial in trials:
            trial_id = optuna_private.trial_id(trial)
            if trial.state == TrialState.RUNNING and WORKER in trial.user_attrs:
                self._running[trial_id] = trial
            else:
                self._running.pop(trial_id, None)
        if not trials:
            self.get_study_name_from_id(study_id)  # there may be no such study
        return [trial for trial in trials if states is None or trial.state in states]

    def insert_trial(self, study_id: int, template: FrozenTrial | None = None) -> FrozenTrial:
        """Write a new trial; a copy of a template in statements of our own."""
        if template is None:
            return super().insert_trial(study_id, template)
        with self.engine.begin() as connection:
            # Numbers are counted: one trial is made at a time.
            if connection.execute(LOCK_STUDY, {"study": study_id}).first() is None:
                raise KeyError(f"there is no study id {study_id}")
            trial_id, number = make_trial(connection, study_id, template)
        return optuna_private.numbered(template, trial_id, number)
