"""The only module that uses private parts of Optuna.

``tests/test_optuna_private.py`` names the parts that a new release of Optuna has moved.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.pruners import _filter_study as filter_study
from optuna.samplers import GPSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, Trial, TrialState

__all__ = ["BaseHeartbeat", "OpenRDBStorage", "StorageProxy", "StudyProxy"]
__all__ += ["filter_study", "models"]


def trial_id(trial: Trial | FrozenTrial) -> int:
    """Return the id of a trial, which is unique in its storage."""
    return trial._trial_id


def study_id(study: Study | FrozenStudy) -> int:
    """Return the id of a study, which is unique in its storage."""
    return study._study_id


def storage(study: Study) -> BaseStorage:
    """Return the storage of a study, with Optuna's cache of finished trials around it."""
    return study._storage


def with_storage(study: Study, proxy: StorageProxy) -> Study:
    """Copy a study with another storage."""
    copied = copy.copy(study)
    copied._storage = proxy  # type: ignore[assignment]
    return copied


def forget_trials(study: Study) -> None:
    """Drop the trials that this thread has read, as ``Study.ask`` and ``Study.tell`` do."""
    study._thread_local.cached_all_trials = None


def update_user_attrs(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Add user attributes of the storage to a trial that was read before."""
    trial._cached_frozen_trial.user_attrs.update(attributes)


def update_reports(trial: Trial, step: int, value: float) -> None:
    """Add a value that the storage has to a trial that was read before; pruners look there."""
    trial._cached_frozen_trial.intermediate_values[step] = value


def numbered(trial: FrozenTrial, id_: int, number: int) -> FrozenTrial:
    """Copy a trial under the id and the number that its storage gave it."""
    copied = copy.copy(trial)
    copied._trial_id, copied.number = id_, number
    copied.user_attrs = dict(trial.user_attrs)
    copied.system_attrs = dict(trial.system_attrs)
    copied.intermediate_values = dict(trial.intermediate_values)
    return copied


def without_constraints(trial: FrozenTrial) -> FrozenTrial:
    """Copy a trial without its constraints."""
    copied = copy.copy(trial)
    copied._system_attrs = {
        key: value
        for key, value in trial._system_attrs.items()
        if not key.startswith(f"{_CONSTRAINTS_KEY}:")
    }
    return copied


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Tell whether a distribution can take a value."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:  # 0 on a logarithmic range, or no choice
        return False


class ConstraintAwareGPSampler(GPSampler):
    """Optuna's GP sampler, for studies that gain a constraint while they run.

    Optuna starts the fit of each constraint from the last fit at the same position, and fails for
    a new constraint.
    """

    def _get_constraints_acqf_args(
        self, constraint_vals: np.ndarray, *others: Any
    ) -> tuple[list[Any], list[float]]:
        fitted = self._constraints_gprs_cache_list
        if fitted is not None and len(fitted) != constraint_vals.shape[1]:
            self._constraints_gprs_cache_list = None
        return super()._get_constraints_acqf_args(constraint_vals, *others)

    def _sample_relative_impl(self, *arguments: Any) -> dict[str, Any]:
        """Propose the same without the detour through Python that Optuna's device context adds.

        It costs a quarter of the time. Here the default device is the CPU as well.
        """
        import torch

        with torch._C.DisableTorchFunction():
            return super()._sample_relative_impl(*arguments)


class StorageProxy:
    """A storage that forwards everything that a subclass does not override."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


class StudyProxy(ABC):
    """A study that presents other trials to a sampler or a pruner, and forwards all else."""

    def __init__(self, study: Study, storage: StorageProxy | None = None) -> None:
        self._study = study
        self._storage = storage or study._storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @abstractmethod
    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials to present."""

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        return self.get_trials(deepcopy, states)


class OpenRDBStorage(RDBStorage):
    """Optuna's database storage, with public names for the private methods to override."""

    def fetch_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read the trials with these ids, and those with ids after another."""
        return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)

    def insert_trial(self, study_id: int, template: FrozenTrial | None = None) -> FrozenTrial:
        """Write a new trial, or a copy of the template."""
        return super()._create_new_trial(study_id, template)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        return self.fetch_trials(study_id, states, included_trial_ids, trial_id_greater_than)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        return self.insert_trial(study_id, template_trial)
