"""What workers read and write most, with fewer statements than Optuna takes.

Optuna looks for everything before it writes it. A trial that is being made has nothing yet, and
with dozens of parameters the looking is what all workers wait for: trials are made under the
study's lock. And whether a report is a new one, the database can tell by itself.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from functools import cache
from typing import Any

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from autotune.storage.trials import read_trial, read_trials

_TRIALS = models.TrialModel
_REPORTS = models.TrialIntermediateValueModel
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


class QuickStorage(RDBStorage):
    """Optuna's database storage, for SQLite and Postgres, without detours."""

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value, in place of an earlier one of that step.

        Raises:
            KeyError: When there is no such trial.
            UpdateFinishedTrialError: When it has ended.
        """
        value, kind = _REPORTS.intermediate_value_to_stored_repr(intermediate_value)
        report = {"of": trial_id, "at": step, "value": value, "kind": kind}
        with self.engine.begin() as connection:
            written = connection.execute(_reporting(self.engine.name), report).rowcount
        if not written:  # Optuna says why
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

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
        if made is None or made.values is not None or made.intermediate_values:
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


@cache
def _reporting(database: str) -> sqlalchemy.Insert:
    """Make the statement that reports a value of a live trial; making it takes as long as it."""
    insert = sqlite.insert if database == "sqlite" else postgresql.insert
    live = sqlalchemy.select(
        _TRIALS.trial_id,
        sqlalchemy.bindparam("at", type_=_REPORTS.step.type),
        sqlalchemy.bindparam("value", type_=_REPORTS.intermediate_value.type),
        sqlalchemy.bindparam("kind", type_=_REPORTS.intermediate_value_type.type),
    ).where(_TRIALS.trial_id == sqlalchemy.bindparam("of"), _TRIALS.state.in_(_LIVE))
    columns = ["trial_id", "step", "intermediate_value", "intermediate_value_type"]
    new = insert(_REPORTS).from_select(columns, live)
    return new.on_conflict_do_update(
        index_elements=["trial_id", "step"],
        set_={name: new.excluded[name] for name in columns[2:]},
    )


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
