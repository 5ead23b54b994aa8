"""Samplers of the static space, by name.

Optuna's TPE and GP are used as they are; :class:`CanonicalSampler` stands between them and the
study so that they see every trial of the static space in canonical form, and every parameter is
modelled jointly with all others from the first trial after start-up.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.config import SAMPLERS
from autotune.search.own import load_own_sampler
from autotune.search.space import Space

#: Random trials before a model takes over, baseline included (Optuna's own default).
STARTUP_TRIALS = 10


class CanonicalSampler(BaseSampler):
    """Sample the whole static space at once and store it in canonical form.

    Args:
        space: The static space of the study.
        base: The sampler that does the modelling.
        show_pruned: Show pruned trials to the base sampler as complete ones.
    """

    def __init__(self, space: Space, base: BaseSampler, show_pruned: bool = False) -> None:
        self._space = space
        self._base = base
        self._show_pruned = show_pruned

    def exhausted(self, study: Study) -> str:
        """Say why no further plan can be drawn; empty while one can."""
        return ""

    def reseed_rng(self) -> None:
        """Reseed the base sampler."""
        self._base.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the static space, whatever the study has seen so far."""
        return dict(self._space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample all parameters and bring them into canonical form.

        A trial that brings its parameters along (queued, or the retry of a lost one) needs none.
        """
        known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if search_space.keys() <= known.keys():
            return {}
        view: Any = _StudyView(study, set(search_space), self._show_pruned)
        params = dict(self._base.sample_relative(view, trial, search_space))
        for name, distribution in search_space.items():
            if name not in params:  # start-up: the base sampler leaves them to be drawn one by one
                params[name] = self._base.sample_independent(view, trial, name, distribution)
        return self._space.canonical(params)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample a parameter that is not of the space (none, in a study of ours)."""
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on to the base sampler."""
        self._base.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Pass on to the base sampler."""
        self._base.after_trial(study, trial, state, values)


class _StudyView:
    """A study as a base sampler should see it.

    Trials without the parameters of the space are left out: the baseline may lie outside the
    space and then has none, but the GP takes it for granted that all trials have them all.
    Where asked for, pruned trials are shown as complete ones with the last value they reported:
    the GP looks at complete trials only and would sample at random for as long as most trials
    are pruned. The last value understates what the trial would have reached, which errs on the
    side of the pruner.
    """

    def __init__(self, study: Study, names: set[str], show_pruned: bool) -> None:
        self._study = study
        self._names = names
        self._show_pruned = show_pruned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Any = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        wanted = states
        if self._show_pruned and states and TrialState.COMPLETE in states:
            wanted = (*states, TrialState.PRUNED)
        return [
            _as_complete(trial)
            if trial.state == TrialState.PRUNED and wanted is not states
            else trial
            for trial in self._study._get_trials(deepcopy, wanted, use_cache)
            if self._names <= trial.params.keys() or not trial.state.is_finished()
            if trial.state != TrialState.PRUNED or _last_value(trial) is not None
        ]


def _last_value(trial: FrozenTrial) -> float | None:
    """Return the last finite value that a trial reported; a model cannot learn from others."""
    finite = {step: one for step, one in trial.intermediate_values.items() if math.isfinite(one)}
    return finite[max(finite)] if finite else None


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.values = [_last_value(trial)]
    return shown


def make_sampler(name: str, space: Space, seed: int) -> CanonicalSampler:
    """Make the sampler of one worker.

    Args:
        name: ``tpe``, ``gp``, ``random`` or ``my_file.py:MySampler``.
        space: The static space of the study.
        seed: Seed of this worker; workers with equal seeds would draw equal trials.

    Raises:
        KeyError: When there is no such sampler; the study file has been checked before.
    """
    if ":" in name:
        return CanonicalSampler(space, load_own_sampler(name, space, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        bases: dict[str, BaseSampler] = {
            "tpe": TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
            "gp": GPSampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
            ),
            "random": RandomSampler(seed=seed),
        }
    assert set(bases) == set(SAMPLERS)
    return CanonicalSampler(space, bases[name], show_pruned=name == "gp")
