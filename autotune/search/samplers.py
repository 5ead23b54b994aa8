"""Samplers of the static space, by name.

Optuna's TPE and GP are used as they are. :class:`CanonicalSampler` stands between them and the
study: they see every trial of the static space in canonical form, and model every parameter
jointly with all others from the first trial after start-up.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
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
#: Random trials at the start of each stage of a greedy search (the paper's code draws 5).
STARTUP_TRIALS_PER_STAGE = 5
#: Attempts to get a new plan from a sampler before the nearest one that is left is taken.
ATTEMPTS = 3


@dataclass(frozen=True)
class _Focus:
    """The part of the space that is sampled at present."""

    free: tuple[str, ...]
    start: Params
    stage: str | None = None


@dataclass(frozen=True)
class Draw:
    """The parameters that a sampler has chosen for a trial."""

    params: Params
    stage: str | None


@dataclass(frozen=True)
class Proposal:
    """Parameters that were drawn ahead, without the study's lock."""

    draw: Draw
    focus: _Focus
    trials: int


class CanonicalSampler(BaseSampler):
    """Samples the whole static space at once, in canonical form, and no plan twice.

    Args:
        space: The static space of the study.
        base: The sampler that models the space.
        start: Parameters of a plan: the baseline, or the plan nearest to it.
        seed: Seed of the choice among plans when the base sampler offers nothing new.
        impute: Whether the base sampler sees pruned trials as complete.
        greedy: Returns the state of a greedy search, from a study and its trials; ``None`` samples
            all parameters jointly.
        writes_trials: Whether the base sampler may need more of a trial than its number, and write
            its parameters to it.
        sees_running: Whether the base sampler avoids the plans of running trials.
        proposes_ahead: Whether drawing takes so long that it is done before the study's lock is
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
        greedy: Callable[[Study, Sequence[FrozenTrial]], GreedyState] | None = None,
        writes_trials: bool = False,
        sees_running: bool = False,
        proposes_ahead: bool = True,
    ) -> None:
        self._space = space
        self._base = base
        self._start = start
        self._seed = seed
        self._keys: dict[int, Key] = {}
        self._impute = impute
        self._greedy = greedy
        self.writes_trials = writes_trials
        self._sees_running = sees_running
        self.proposes_ahead = proposes_ahead and not writes_trials

    def exhausted_reason(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> str:
        """Return why no further plan can be drawn; empty while one can.

        While trials run, the answer may change with their results.
        """
        trials = study.get_trials(deepcopy=False) if trials is None else trials
        focus = self._focus(study, trials)
        if self._greedy is not None and focus.stage is None:
            return "the greedy search has gone through all of its stages"
        seen = seen_keys(self._space, trials, self._keys)
        if nearest_unseen(self._space, focus.start, seen, random.Random(0), focus.free) is None:
            return "every plan of the space has been tried"
        return ""

    def _focus(self, study: Study, trials: Sequence[FrozenTrial]) -> _Focus:
        """Return what is sampled: everything, or a stage while a greedy search has one."""
        state = None if self._greedy is None else self._greedy(study, trials)
        if state is None or state.current is None:
            return _Focus(tuple(self._space.distributions), self._start)
        start = self._space.canonical(state.current.start(state.incumbent))
        return _Focus(state.current.free, start, state.current.name)

    def reseed_rng(self) -> None:
        """Reseed the base sampler."""
        self._base.reseed_rng()
        self._seed = random.randrange(2**31)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the static space, whatever trials the study has."""
        return dict(self._space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample all parameters in canonical form.

        A trial that has its parameters already (queued, or the retry of a lost one) needs none.
        """
        given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if search_space.keys() <= given.keys():
            return {}
        draw = self.draw(study, trial, study.get_trials(deepcopy=False))
        if draw.stage is not None:
            optuna_private.storage(study).set_trial_user_attr(
                optuna_private.trial_id(trial), STAGE, draw.stage
            )
        return draw.params

    def draw(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        focus: _Focus | None = None,
    ) -> Draw:
        """Sample all parameters.

        Args:
            study: The study.
            trial: The trial that gets them. Unless the base sampler :attr:`writes_trials`, only
                its number counts, and the study need not have it yet.
            trials: The trials of the study.
            focus: The part of the space to sample; default: that of these trials.
        """
        focus = focus or self._focus(study, trials)
        others = [other for other in trials if other.number != trial.number]
        seen = seen_keys(self._space, others, self._keys)
        view = self._view(study, trials, focus)
        params: Params = {}
        for _ in range(ATTEMPTS):
            params = self._sample(view, trial, focus)
            if canonical_key(self._space, params) not in seen:
                return Draw(params, focus.stage)
        return self._nearest_left(trial, params, seen, focus)

    def propose(self, study: Study, trials: Sequence[FrozenTrial]) -> Proposal:
        """Sample all parameters of the next trial ahead, without a lock.

        This takes as long as the sampler does, seconds for a GP. :meth:`accept` checks what has
        changed in the meantime.
        """
        upcoming = create_trial(state=TrialState.RUNNING)
        upcoming.number = len(trials)
        focus = self._focus(study, trials)
        return Proposal(self.draw(study, upcoming, trials, focus), focus, len(trials))

    def accept(
        self,
        study: Study,
        trial: FrozenTrial,
        trials: Sequence[FrozenTrial],
        proposal: Proposal,
        *,
        last: bool,
    ) -> Draw | None:
        """Return the parameters of a proposal if it is still valid; the caller has the lock.

        It is not valid if the search is in another stage, if another worker has taken the plan, or
        if the sampler avoids plans of running trials and there is a further trial. Trials that
        have ended in the meantime do not matter: the next proposal learns from them.

        Args:
            study: The study.
            trial: The trial that gets the parameters.
            trials: The trials of the study now.
            proposal: The proposal.
            last: Whether this is the last attempt. A plan that another worker has taken is then
                replaced by the nearest one that is left, and further trials are ignored, as with
                Optuna, whose workers do not see what is drawn at the same time.

        Returns:
            The parameters, or ``None`` if they should be proposed anew.
        """
        focus = self._focus(study, trials)
        if focus != proposal.focus:
            return self.draw(study, trial, trials, focus) if last else None
        if self._sees_running and len(trials) > proposal.trials and not last:
            return None
        seen = seen_keys(self._space, trials, self._keys)
        if canonical_key(self._space, proposal.draw.params) not in seen:
            return proposal.draw
        return self._nearest_left(trial, proposal.draw.params, seen, focus) if last else None

    def _nearest_left(
        self, trial: FrozenTrial, params: Params, seen: set[Key], focus: _Focus
    ) -> Draw:
        """Return the new plan nearest to one that has been drawn, or that one if none is left."""
        # The trial's number is part of the seed: workers of one seed must not choose alike.
        rng = random.Random(f"{self._seed} {trial.number}")
        left = nearest_unseen(self._space, params, seen, rng, focus.free)
        return Draw(params if left is None else left, focus.stage)

    def _view(self, study: Study, trials: Sequence[FrozenTrial], focus: _Focus) -> Any:
        """Show the base sampler the trials that differ only in the parameters that it samples."""
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
            if name not in params:  # at start-up the base sampler draws them one by one
                params[name] = self._base.sample_independent(view, trial, name, distribution)
        return self._space.canonical({**focus.start, **params})

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Sample a parameter that is not part of the space; studies of autotune have none."""
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
            raised; by default the number in the study file.

    Raises:
        KeyError: When there is no such sampler; the study file has been checked before.
    """
    search = config.search
    is_greedy = search.strategy == "greedy"
    startup = STARTUP_TRIALS_PER_STAGE if is_greedy else STARTUP_TRIALS
    start = space.nearest(space.baseline(config.baseline))

    def greedy(study: Study, trials: Sequence[FrozenTrial]) -> GreedyState:
        wanted = search.trials if budget is None else budget(study)
        return greedy_state(space, trials, study.direction, search.greedy, wanted, start)

    return CanonicalSampler(
        space,
        _base_sampler(search.sampler, space, startup, seed),
        start,
        seed=seed,
        impute=search.sampler == "gp",
        greedy=greedy if is_greedy else None,
        writes_trials=is_plugin_ref(search.sampler),
        sees_running=search.sampler == "gp",
        proposes_ahead=search.sampler != "random",
    )


def _base_sampler(name: str, space: Space, startup: int, seed: int) -> BaseSampler:
    if is_plugin_ref(name):
        return load_sampler_plugin(name, space, seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "tpe":
        return TPESampler(seed=seed, n_startup_trials=startup)
    if name == "gp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna_private.ConstraintAwareGPSampler(
                seed=seed, n_startup_trials=startup, warn_independent_sampling=False
            )
    raise KeyError(name)
