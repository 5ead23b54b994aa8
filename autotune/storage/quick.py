"""What workers write most, with fewer statements than Optuna takes.

Optuna looks for everything before it writes it. A trial that is being made has nothing yet, and
with dozens of parameters the looking is what all workers wait for: trials are made under the
study's lock. And whether a report is a new one, the database can tell by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

_TRIALS = models.TrialModel
_REPORTS = models.TrialIntermediateValueModel
_LIVE = (TrialState.RUNNING, TrialState.WAITING)


class QuickStorage(RDBStorage):
    """Optuna's database storage, for SQLite and Postgres, which writes without looking first."""

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Report a value, in place of an earlier one of that step.

        Raises:
            KeyError: When there is no such trial.
            UpdateFinishedTrialError: When it has ended.
        """
        value, kind = _REPORTS.intermediate_value_to_stored_repr(intermediate_value)
        insert = sqlite.insert if self.engine.name == "sqlite" else postgresql.insert
        live = sqlalchemy.select(
            _TRIALS.trial_id,
            *(
                sqlalchemy.literal(one, type_)
                for one, type_ in (
                    (step, _REPORTS.step.type),
                    (value, _REPORTS.intermediate_value.type),
                    (kind, _REPORTS.intermediate_value_type.type),
                )
            ),
        ).where(_TRIALS.trial_id == trial_id, _TRIALS.state.in_(_LIVE))
        columns = ["trial_id", "step", "intermediate_value", "intermediate_value_type"]
        new = insert(_REPORTS).from_select(columns, live)
        report = new.on_conflict_do_update(
            index_elements=["trial_id", "step"],
            set_={name: new.excluded[name] for name in columns[2:]},
        )
        with self.engine.begin() as connection:
            written = connection.execute(report).rowcount
        if not written:  # Optuna says why
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

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
        session.add_all(_rows(made, trial))
        trial.number = trial.count_past_trials(session)
        return trial


def _rows(made: FrozenTrial, trial: models.TrialModel) -> Iterator[models.BaseModel]:
    for name, value in made.params.items():
        distribution = made.distributions[name]
        yield models.TrialParamModel(
            trial_id=trial.trial_id,
            param_name=name,
            param_value=distribution.to_internal_repr(value),
            distribution_json=distribution_to_json(distribution),
        )
    for model, attributes in (
        (models.TrialUserAttributeModel, made.user_attrs),
        (models.TrialSystemAttributeModel, made.system_attrs),
    ):
        for key, value in attributes.items():
            yield model(trial_id=trial.trial_id, key=key, value_json=json.dumps(value))
