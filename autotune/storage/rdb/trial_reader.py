"""Reading trials with one statement a table, parsing every distribution once.

Workers read the running trials before they claim one, under the study's lock, and the report and
the dashboard read all trials. Through Optuna's mapped classes, most of that time goes into making
an object of every row and into parsing the distributions of every parameter anew. Here rows stay
tuples: a study of 5,000 trials has a quarter of a million of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import BindParameter, Connection, Select, Table, bindparam, select, text

from autotune import optuna_private
from autotune.optuna_private import models
from autotune.runtime import gc_paused

#: Most trials that a statement names one by one: databases limit the values of a statement.
CHUNK = 500

_TABLES = models.BaseModel.metadata.tables
_TRIALS = _TABLES[models.TrialModel.__tablename__]
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_OF_STUDY = select(_TRIALS).where(_TRIALS.c.study_id == bindparam("study"))
# Making a statement takes as long as running it.
_LATER = _OF_STUDY.where(_TRIALS.c.trial_id > bindparam("after"))
_BY_ID = _OF_STUDY.where(_TRIALS.c.trial_id.in_(_IDS))
_ONE = select(_TRIALS).where(_TRIALS.c.trial_id == bindparam("id"))
_FINITE = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE

Row = Sequence[Any]
#: Rows by the id of their trial, in the order in which they were written.
_Parts = defaultdict[int, list[Row]]


class _PartTable:
    """A table whose rows belong to trials.

    A row is read as its own id, which tells in which order rows were written, the trial's id, and
    the columns that are named.
    """

    def __init__(self, model: type[models.BaseModel], *names: str) -> None:
        table: Table = _TABLES[model.__tablename__]
        columns = [
            next(iter(table.primary_key)),
            *(table.c[name] for name in ("trial_id", *names)),
        ]
        self._by_id = select(*columns).where(table.c.trial_id.in_(_IDS))
        between = _TRIALS.c.trial_id.between(bindparam("first"), bindparam("last"))
        self._between: Select[Any] = (
            select(*columns)
            .join(_TRIALS, _TRIALS.c.trial_id == table.c.trial_id)
            .where(_TRIALS.c.study_id == bindparam("study"), between)
        )

    def read(self, connection: Connection, study_id: int, ids: Sequence[int]) -> _Parts:
        """Read the rows of trials, given in order, in one statement."""
        rows: Sequence[Row]
        if len(ids) <= CHUNK:
            rows = connection.execute(self._by_id, {"ids": ids}).all()
        else:
            # Rows of other trials between the first and the last are read as well, and not used.
            limits = {"study": study_id, "first": ids[0], "last": ids[-1]}
            rows = connection.execute(self._between, limits).all()
        parts: _Parts = defaultdict(list)
        for row in sorted(rows, key=itemgetter(0)):
            parts[row[1]].append(row)
        return parts


_PARAMS = _PartTable(models.TrialParamModel, "param_name", "param_value", "distribution_json")
_VALUES = _PartTable(models.TrialValueModel, "objective", "value", "value_type")
_USER_ATTRS = _PartTable(models.TrialUserAttributeModel, "key", "value_json")
_SYSTEM_ATTRS = _PartTable(models.TrialSystemAttributeModel, "key", "value_json")
_REPORTS = _PartTable(
    models.TrialIntermediateValueModel, "step", "intermediate_value", "intermediate_value_type"
)

#: Everything that belongs to trials, in one statement instead of five. A column that a table lacks
#: is null. Postgres finds the rows by the list, however long it is.
_PARTS = text(
    """
    SELECT 0, param_id, trial_id, param_name, NULL::int, param_value, NULL, distribution_json
    FROM trial_params WHERE trial_id = ANY(CAST(:ids AS int[]))
    UNION ALL
    SELECT 1, trial_value_id, trial_id, NULL, objective, value, value_type::text, NULL
    FROM trial_values WHERE trial_id = ANY(CAST(:ids AS int[]))
    UNION ALL
    SELECT 2, trial_user_attribute_id, trial_id, key, NULL, NULL, NULL, value_json
    FROM trial_user_attributes WHERE trial_id = ANY(CAST(:ids AS int[]))
    UNION ALL
    SELECT 3, trial_system_attribute_id, trial_id, key, NULL, NULL, NULL, value_json
    FROM trial_system_attributes WHERE trial_id = ANY(CAST(:ids AS int[]))
    UNION ALL
    SELECT 4, trial_intermediate_value_id, trial_id, NULL, step, intermediate_value,
           intermediate_value_type::text, NULL
    FROM trial_intermediate_values WHERE trial_id = ANY(CAST(:ids AS int[]))
    """
)
_VALUE_KINDS = models.TrialValueModel.TrialValueType.__members__
_REPORT_KINDS = models.TrialIntermediateValueModel.TrialIntermediateValueType.__members__


def _read_parts(connection: Connection, study_id: int, ids: Sequence[int]) -> list[_Parts]:
    """Read parameters, values, user and system attributes and reports of trials, by trial id."""
    if connection.dialect.name != "postgresql" or len(ids) > CHUNK:
        tables = (_PARAMS, _VALUES, _USER_ATTRS, _SYSTEM_ATTRS, _REPORTS)
        return [table.read(connection, study_id, ids) for table in tables]
    parts: list[_Parts] = [defaultdict(list) for _ in range(5)]
    rows = connection.execute(_PARTS, {"ids": list(ids)}).all()
    for which, own_id, trial_id, name, step, value, kind, words in sorted(
        rows, key=itemgetter(0, 1)
    ):
        row: Row
        if which == 0:
            row = (own_id, trial_id, name, value, words)
        elif which == 1:
            row = (own_id, trial_id, step, value, _VALUE_KINDS[kind])
        elif which == 4:
            row = (own_id, trial_id, step, value, _REPORT_KINDS[kind])
        else:
            row = (own_id, trial_id, name, words)
        parts[which][trial_id].append(row)
    return parts


_value_of = models.TrialValueModel.stored_repr_to_value
_report_of = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value


def read_trials(
    connection: Connection,
    study_id: int,
    known: Collection[int] = (),
    after: int = -1,
    running: Mapping[int, FrozenTrial] = MappingProxyType({}),
) -> list[FrozenTrial]:
    """Read trials of a study, sorted by id; their distributions are shared, do not change them.

    Args:
        connection: A connection in a transaction.
        study_id: Id of the study.
        known: Ids of trials to read in addition to those ``after``.
        after: Trials with a higher id are read; -1 reads all.
        running: Trials by id that need not be read again if they still run.
    """
    rows = list(connection.execute(_LATER, {"study": study_id, "after": after}))
    for ids in _chunks([trial_id for trial_id in known if trial_id <= after]):
        rows += connection.execute(_BY_ID, {"study": study_id, "ids": ids})
    rows.sort(key=lambda row: int(row.trial_id))
    same = {row.trial_id: running[row.trial_id] for row in rows if _still_runs(row, running)}
    rows = [row for row in rows if row.trial_id not in same]
    with gc_paused() if len(rows) > CHUNK else nullcontext():
        trials = _with_parts(connection, study_id, rows)
    return sorted([*trials, *same.values()], key=optuna_private.trial_id) if same else trials


def _still_runs(row: Any, running: Mapping[int, FrozenTrial]) -> bool:
    trial = running.get(row.trial_id)
    return (
        trial is not None
        and row.state == TrialState.RUNNING
        and (trial.number, trial.datetime_start) == (row.number, _local(row.datetime_start))
    )


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial | None:
    """Read one trial; ``None`` when there is no such trial."""
    rows = list(connection.execute(_ONE, {"id": trial_id}))
    return next(iter(_with_parts(connection, rows[0].study_id, rows)), None) if rows else None


def _with_parts(connection: Connection, study_id: int, rows: Sequence[Any]) -> list[FrozenTrial]:
    ids = [row.trial_id for row in rows]
    if not ids:
        return []
    params, values, user_attrs, system_attrs, reports = _read_parts(connection, study_id, ids)
    trials = []
    for row in rows:
        trial_id = row.trial_id
        distributions = {name: _distribution(text) for _, _, name, _, text in params[trial_id]}
        in_order = sorted(values[trial_id], key=lambda part: int(part[2]))
        trials.append(
            FrozenTrial(
                number=row.number,
                state=row.state,
                value=None,
                values=[_value_of(value, kind) for _, _, _, value, kind in in_order] or None,
                datetime_start=_local(row.datetime_start),
                datetime_complete=_local(row.datetime_complete),
                params={
                    name: distributions[name].to_external_repr(value)
                    for _, _, name, value, _ in params[trial_id]
                },
                distributions=distributions,
                user_attrs=_attributes(user_attrs[trial_id]),
                system_attrs=_attributes(system_attrs[trial_id]),
                intermediate_values={
                    step: value if kind is _FINITE else _report_of(value, kind)
                    for _, _, step, value, kind in reports[trial_id]
                },
                trial_id=trial_id,
            )
        )
    return trials


def _local(stored: datetime | None) -> datetime | None:
    """Return a stored time, which is UTC, as Optuna has it: local, without a zone."""
    if stored is None:
        return None
    return stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _attributes(rows: Sequence[Row]) -> dict[str, Any]:
    return {key: json.loads(text) for _, _, key, text in rows}


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)
