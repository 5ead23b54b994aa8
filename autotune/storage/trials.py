"""Trials as they are read: one statement a table, and every distribution parsed once.

Workers read the trials that run before each of theirs, under the study's lock. Through Optuna's
mapped classes, most of that time goes into making an object of every row and into parsing the
distributions of every parameter anew.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import BindParameter, Connection, Select, bindparam, select

#: Trials of which one statement asks for the parts: databases limit the values of a statement.
CHUNK = 500

_TABLES = models.BaseModel.metadata.tables
_TRIALS = _TABLES[models.TrialModel.__tablename__]
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_OF_STUDY = select(_TRIALS).where(_TRIALS.c.study_id == bindparam("study"))
# Making a statement takes as long as running it.
_LATER = _OF_STUDY.where(_TRIALS.c.trial_id > bindparam("after"))
_KNOWN = _OF_STUDY.where(_TRIALS.c.trial_id.in_(_IDS))
_ONE = select(_TRIALS).where(_TRIALS.c.trial_id == bindparam("id"))
#: Of each of the other tables the rows of some trials, in the order in which they were written.
_OF_TRIALS = [
    select(table).where(table.c.trial_id.in_(_IDS)).order_by(next(iter(table.primary_key)))
    for table in (
        _TABLES[model.__tablename__]
        for model in (
            models.TrialParamModel,
            models.TrialValueModel,
            models.TrialUserAttributeModel,
            models.TrialSystemAttributeModel,
            models.TrialIntermediateValueModel,
        )
    )
]

_value_of = models.TrialValueModel.stored_repr_to_value
_report_of = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value


def read_trials(
    connection: Connection, study_id: int, known: Collection[int] = (), after: int = -1
) -> list[FrozenTrial]:
    """Read trials of a study.

    Args:
        connection: A connection to the database, in a transaction.
        study_id: Id of the study.
        known: Ids of trials to read besides those ``after``.
        after: Trials with a higher id are read; -1 reads all.

    Returns:
        The trials, by id. Their distributions are shared: they are not to be changed.
    """
    rows = list(connection.execute(_LATER, {"study": study_id, "after": after}))
    for ids in _chunks([one for one in known if one <= after]):
        rows += connection.execute(_KNOWN, {"study": study_id, "ids": ids})
    return _with_parts(connection, sorted(rows, key=lambda row: row.trial_id))


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Read one trial; ``None`` when there is no such one."""
    rows = list(connection.execute(_ONE, {"id": trial_id}))
    return next(iter(_with_parts(connection, rows)), None)


def _with_parts(connection: Connection, rows: Sequence[Any]) -> list[FrozenTrial]:
    parts = _Parts(connection, [row.trial_id for row in rows])
    return [
        FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=parts.values(row.trial_id),
            datetime_start=_local(row.datetime_start),
            datetime_complete=_local(row.datetime_complete),
            params={
                one.param_name: _distribution(one.distribution_json).to_external_repr(
                    one.param_value
                )
                for one in parts.params[row.trial_id]
            },
            distributions={
                one.param_name: _distribution(one.distribution_json)
                for one in parts.params[row.trial_id]
            },
            user_attrs=_attributes(parts.user_attrs[row.trial_id]),
            system_attrs=_attributes(parts.system_attrs[row.trial_id]),
            intermediate_values={
                one.step: _report_of(one.intermediate_value, one.intermediate_value_type)
                for one in parts.reports[row.trial_id]
            },
            trial_id=row.trial_id,
        )
        for row in rows
    ]


class _Parts:
    """What the other tables know of some trials: their rows by the trial's id."""

    def __init__(self, connection: Connection, ids: Sequence[int]) -> None:
        self.params, self._values, self.user_attrs, self.system_attrs, self.reports = (
            _by_trial(connection, statement, ids) for statement in _OF_TRIALS
        )

    def values(self, trial_id: int) -> list[float] | None:
        """Return the values of a trial, an objective each."""
        rows = sorted(self._values[trial_id], key=lambda row: row.objective)
        return [_value_of(row.value, row.value_type) for row in rows] or None


def _local(stored: datetime | None) -> datetime | None:
    """Return a stored time, which is UTC, as Optuna has it: local, without a zone."""
    if stored is None:
        return None
    return stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _by_trial(
    connection: Connection, statement: Select[Any], ids: Sequence[int]
) -> defaultdict[int, list[Any]]:
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for some in _chunks(ids):
        for row in connection.execute(statement, {"ids": some}):
            found[row.trial_id].append(row)
    return found


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _attributes(rows: Sequence[Any]) -> dict[str, Any]:
    return {row.key: json.loads(row.value_json) for row in rows}


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)
