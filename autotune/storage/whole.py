"""A new trial with all of its parameters, written with one statement a table.

Optuna looks for every parameter and attribute before it writes it. A trial that is being made has
none yet, and with dozens of parameters the looking is what all workers wait for: trials are made
under the study's lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy.orm import Session


class WholeTrialStorage(RDBStorage):
    """Optuna's database storage, which writes a new trial at once."""

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
