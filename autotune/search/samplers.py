"""Samplers of the static space, by name.

Optuna's TPE and GP are used as they are; :class:`CanonicalSampler` stands between them and the
study so that they see every trial of the static space in canonical form, and every parameter is
modelled jointly with all others from the first trial after start-up.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune import optuna_private
from autotune.config.fields import is_plugin_ref
from autotune.config.schema import StudyConfig
from autotune.search.deduplication import Key, canonical_key, nearest_unseen, seen_keys
from autotune.search.greedy import STAGE, GreedyState, greedy_state
from autotune.search.plugins import load_sampler_plugin
from autotune.search.space import Params, Space
from autotune.search.study_view import StudyView

#: Random trials before a model takes over, baseline included (Optuna's own default).
STARTUP_TRIALS = 10
#: The same for each stage of a greedy search (the paper's code draws 5 at random a stage).
STARTUP_TRIALS_PER_STAGE = 5
#: How often a sampler is asked for a plan that has not been drawn before.
ATTEMPTS = 3


@dataclass(frozen=True)
class _Focus:
    """The part of the space that is sampled at present.

    Args:
        free: The parameters that vary.
        start: Values of all parameters; those that do not vary have these.
        stage: Name of the stage of a greedy search.
    """

    free: tuple[str, ...]
    start: Params
    stage: str | None = None


@dataclass(frozen=True)
class Draw:
    """What a sampler has chosen for a trial.

    Args:
        params: A value for every parameter of the space, in canonical form.
        stage: Name of the stage of a greedy search; ``None`` without one.
    """

    params: Params
    stage: str | None


@dataclass(frozen=True)
class Proposal:
    """Parameters that were drawn ahead, without the study's lock.

    Args:
        draw: The parameters, and the stage.
        focus: The part of the space that they vary.
        trials: How many trials the study had.
    """

    draw: Draw
    focus: _Focus
    trials: int


class _GP(GPSampler):
    """Optuna's GP, for studies that get a further constraint on the way.

    It starts the fit for each constraint from the last one's, by position, and would look for one
    that was not there.
    """

    def _get_constraints_acqf_args(
        self, constraint_vals: np.ndarray, *others: Any
    ) -> tuple[list[Any], list[float]]:
        fitted = self._constraints_gprs_cache_list
        if fitted is not None and len(fitted) != constraint_vals.shape[1]:
            self._constraints_gprs_cache_list = None
        return super()._get_constraints_acqf_args(constraint_vals, *others)


class CanonicalSampler(BaseSampler):
    """Sample the whole static space at once, in canonical form, and no plan twice.

    Args:
        space: The static space of the study.
        base: The sampler that does the modelling.
        start: Parameters of some plan, the baseline or what is nearest to it.
        seed: Of the choice among plans when the base sampler has nothing new to offer.
        impute: Show pruned trials to the base sampler as complete ones.
        where: Works out from a study and its trials where a greedy search stands; ``None``
            samples all parameters together.
        writes: Whether the base sampler may want more of the trial that it samples for than its
            number, and to write its parameters to it.
        sees_running: Whether the base sampler keeps away from the plans of running trials.
        ahead: Whether drawing takes so long that it is worth drawing before the study's lock is
            taken.
    """

    def __init__(
        self,
        space: Space,
        base: BaseSampler,
        start: Params,
        *,
        seed: int = 0,
        impute: bool = False,
        where: Callable[[Study, Sequence[FrozenTrial]], GreedyState] | None = None,
        writes: bool = False,
        sees_running: bool = False,
        ahead: bool = True,
    ) -> None:
        self._space = space
        self._base = base
        self._start = start
        self._seed = seed
        self._keys: dict[int, Key] = {}
        self._impute = impute
        self._where = where
        self.writes = writes
        self._sees_running = sees_running
        self.ahead = ahead and not writes

    def exhausted(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> str:
        """Say why no further plan can be drawn; empty while one can.

        While trials run, the answer may change with what they bring.

        Args:
            study: The study.
            trials: Its trials, where they are at hand.
        """
        trials = study.get_trials(deepcopy=False) if trials is None else trials
        focus = self._focus(study, trials)
        if focus is None:
            return "the greedy search has gone through all of its stages"
        seen = seen_keys(self._space, trials, self._keys)
        if nearest_unseen(self._space, focus.start, seen, random.Random(0), focus.free) is None:
            return "every plan of the space has been tried"
        return ""

    def _focus(self, study: Study, trials: Sequence[FrozenTrial]) -> _Focus | None:
        """Return what is sampled at present; ``None`` when a greedy search is at its end."""
        if self._where is None:
            names = tuple(self._space.distributions)
            return _Focus(names, self._start)
        found = self._where(study, trials)
        if found.current is None:
            return None
        start = self._space.canonical(found.current.start(found.incumbent))
        return _Focus(found.current.free, start, found.current.name)

    def reseed_rng(self) -> None:
        """Reseed the base sampler."""
        self._base.reseed_rng()
        self._seed = random.randrange(2**31)

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
        found = self.draw(study, trial, study.get_trials(deepcopy=False))
        if found.stage is not None:
            optuna_private.storage(study).set_trial_user_attr(
                optuna_private.trial_id(trial), STAGE, found.stage
            )
        return found.params

    def draw(self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> Draw:
        """Sample all parameters.

        Args:
            study: The study.
            trial: The trial that is to have them. Unless the base sampler :attr:`writes`, its
                number alone counts, and the study need not have it yet.
            trials: The trials of the study.
        """
        return self._draw(study, trial, trials, self._focus_or_all(study, trials))

    def propose(self, study: Study, trials: Sequence[FrozenTrial]) -> Proposal:
        """Sample all parameters of the next trial ahead.

        This takes what a sampler takes, seconds for a GP, and needs no lock: what has changed in
        between, :meth:`settle` finds out.

        Args:
            study: The study.
            trials: Its trials.
        """
        upcoming = create_trial(state=TrialState.RUNNING)
        upcoming.number = len(trials)
        focus = self._focus_or_all(study, trials)
        return Proposal(self._draw(study, upcoming, trials, focus), focus, len(trials))

    def settle(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        proposal: Proposal,
        *,
        last: bool,
    ) -> Draw | None:
        """Take a proposal if it still holds; the caller has the study's lock.

        It does not hold when the search has gone on to another stage, when another worker has
        taken the plan, and, where the sampler keeps away from plans that others train, when there
        is a further trial. Trials that have ended in between are no reason: the next proposal
        learns from them.

        Args:
            study: The study.
            trial: The trial that is to have the parameters.
            trials: The trials of the study now.
            proposal: What was proposed.
            last: Whether this is not to be tried again. A plan that another worker has taken is
                then replaced by the nearest one that is left, and further trials count no more,
                as with Optuna, whose workers do not see what is drawn at the same time.

        Returns:
            The parameters, or ``None`` when they should be proposed anew.
        """
        focus = self._focus_or_all(study, trials)
        if focus != proposal.focus:
            return self._draw(study, trial, trials, focus) if last else None
        if self._sees_running and len(trials) > proposal.trials and not last:
            return None
        seen = seen_keys(self._space, trials, self._keys)
        if canonical_key(self._space, proposal.draw.params) not in seen:
            return proposal.draw
        if not last:
            return None
        return self._nearest_left(trial, proposal.draw.params, seen, focus)

    def _focus_or_all(self, study: Study, trials: Sequence[FrozenTrial]) -> _Focus:
        """Return what is sampled; everything when nothing is left and nobody asked whether."""
        focus = self._focus(study, trials)
        return focus or _Focus(tuple(self._space.distributions), self._start)

    def _draw(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        focus: _Focus,
    ) -> Draw:
        others = [one for one in trials if one.number != trial.number]
        seen = seen_keys(self._space, others, self._keys)
        view = self._view(study, trials, focus)
        params: Params = {}
        for _ in range(ATTEMPTS):
            params = self._sample(view, trial, focus)
            if canonical_key(self._space, params) not in seen:
                return Draw(params, focus.stage)
        return self._nearest_left(trial, params, seen, focus)

    def _nearest_left(
        self, trial: FrozenTrial, params: Params, seen: set[Key], focus: _Focus
    ) -> Draw:
        """Return the plan nearest to one that has been drawn, or that one if none is left."""
        # A seed of the trial's own: workers of one seed must not make the same choices.
        rng = random.Random(f"{self._seed} {trial.number}")
        left = nearest_unseen(self._space, params, seen, rng, focus.free)
        return Draw(params if left is None else left, focus.stage)

    def _view(self, study: Study, trials: Sequence[FrozenTrial], focus: _Focus) -> Any:
        """Show the base sampler the trials that differ in what it samples alone."""
        names = self._space.distributions.keys()
        fixed = {name: focus.start[name] for name in names if name not in focus.free}

        def matches(params: Mapping[str, Any]) -> bool:
            return all(params[name] == value for name, value in fixed.items())

        return StudyView(study, names, self._impute, matches, trials)

    def _sample(self, view: Any, trial: FrozenTrial, focus: _Focus) -> Params:
        """Have the base sampler choose the parameters that vary."""
        space = {name: self._space.distributions[name] for name in focus.free}
        params = dict(self._base.sample_relative(view, trial, space))
        for name, distribution in space.items():
            if name not in params:  # start-up: the base sampler leaves them to be drawn one by one
                params[name] = self._base.sample_independent(view, trial, name, distribution)
        return self._space.canonical({**focus.start, **params})

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


def make_sampler(
    config: StudyConfig,
    space: Space,
    seed: int,
    budget: Callable[[Study], int] | None = None,
) -> CanonicalSampler:
    """Make the sampler of one worker.

    Args:
        config: The study file.
        space: The static space of the study.
        seed: Seed of this worker; workers with equal seeds would draw equal trials.
        budget: Reads how many finished trials a study is to have, which a later run may have
            raised; by default what the study file says.

    Raises:
        KeyError: When there is no such sampler; the study file has been checked before.
    """
    search = config.search
    greedy = search.strategy == "greedy"
    startup = STARTUP_TRIALS_PER_STAGE if greedy else STARTUP_TRIALS
    start = space.nearest(space.baseline(config.baseline))

    def where(study: Study, trials: Sequence[FrozenTrial]) -> GreedyState:
        wanted = search.trials if budget is None else budget(study)
        return greedy_state(space, trials, study.direction, search.greedy, wanted, start)

    return CanonicalSampler(
        space,
        _base(search.sampler, space, startup, seed),
        start,
        seed=seed,
        impute=search.sampler == "gp",
        where=where if greedy else None,
        writes=is_plugin_ref(search.sampler),
        sees_running=search.sampler == "gp",
        ahead=search.sampler != "random",
    )


def _base(name: str, space: Space, startup: int, seed: int) -> BaseSampler:
    """Make the sampler that does the modelling."""
    if is_plugin_ref(name):
        return load_sampler_plugin(name, space, seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup)
    if name == "gp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _GP(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    raise KeyError(name)
