"""A sampler that draws the plans of a list: trial 3 gets the fourth. autotune's side of naive.py.

The list is ``plans.json`` beside this file: values of all parameters of the study's space.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.search.space import Space


class Listed(BaseSampler):
    """Draws the plans of a list, by the number of the trial."""

    def __init__(self, space: Space, seed: int) -> None:
        self._plans = json.loads(Path(__file__).with_name("plans.json").read_text())

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: the list has all parameters."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the plan of a trial."""
        found: dict[str, Any] = self._plans[trial.number]
        return found

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refuse: the list has all parameters."""
        raise KeyError(f"the list has no value of {param_name}")
