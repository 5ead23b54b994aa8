"""Starting a trial under the study's lock: one that is queued, or a new one.

A started trial has all of its parameters and its plan before the lock is released: whoever claims
next knows what is being tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autotune import optuna_private
from autotune.errors import StudyError
from autotune.format_versions import reading
from autotune.plan import TrialPlan
from autotune.search.deduplication import canonical_key, seen_keys
from autotune.search.parameters.dimensions import suggest
from autotune.search.samplers import CanonicalSampler, Draw, Proposal
from autotune.search.space import Params, Space
from autotune.storage.rdb.retry import LockLostError, RetryingStorage
from autotune.storage.rdb.statements import StoredParam
from autotune.study.state import attrs
from autotune.study.state.budget import EXHAUSTED, StopReason


@dataclass(frozen=True)
class TrialStarter:
    """Starts the trials of a study for a caller that holds the study's lock."""

    study: Study
    storage: RetryingStorage
    space: Space

    @property
    def own_sampler(self) -> CanonicalSampler | None:
        """The sampler if it is autotune's own."""
        sampler = self.study.sampler
        return sampler if isinstance(sampler, CanonicalSampler) else None

    @property
    def drawing_sampler(self) -> CanonicalSampler | None:
        """The same if it can draw for a trial that is not there yet."""
        sampler = self.own_sampler
        return None if sampler and sampler.writes_trials else sampler

    def exhausted(self, trials: Sequence[FrozenTrial]) -> StopReason | None:
        """Ask the sampler whether there is a further plan (a launcher has none to ask)."""
        if not self.space.distributions:
            # To the sampler, a baseline outside of a space without parameters is its only plan.
            only = self.space.plan({})
            if all(attrs.trial_plan(trial) != only for trial in trials):
                return None
        sampler = self.own_sampler
        text = sampler.exhausted_reason(self.study, trials) if sampler else ""
        return StopReason(EXHAUSTED, text) if text else None

    def start(
        self,
        queued: FrozenTrial | None,
        trials: Sequence[FrozenTrial],
        worker: str,
        since: float,
        proposal: Proposal | None,
        *,
        last: bool,
    ) -> Trial | int | None:
        """Start a trial: a queued one, which is returned, or a new one, whose id is returned.

        What only reads comes after the lock.
        """
        sampler = self.drawing_sampler
        # A trial that waits without a plan is drawn like a new one, and ``ask`` takes it.
        new = queued is None and all(trial.state != TrialState.WAITING for trial in trials)
        if new and sampler is not None:
            upcoming = create_trial(state=TrialState.RUNNING)
            upcoming.number = len(trials)
            drawn: Draw | None = None
            if proposal is not None:
                drawn = sampler.accept(self.study, upcoming, trials, proposal, last=last)
            elif last:
                drawn = sampler.draw(self.study, upcoming, trials)
            return None if drawn is None else self._create(drawn, worker, since)
        if queued is not None:
            attrs.trial_plan(queued)  # one of a later version stays in the queue
        trial = self._ask() if queued is None else self._pop(queued)
        params, plan = draw_missing_params(trial, self.space)
        # Last: a trial without them was interrupted above, and who holds the lock can see that.
        attributes = {**plan, attrs.CLAIMED_AT: since, attrs.WORKER: worker}
        self.storage.fill_trial(optuna_private.trial_id(trial), params, attributes)
        optuna_private.update_user_attrs(trial, attributes)
        return trial

    def _create(self, drawn: Draw, worker: str, since: float) -> int:
        """Write a whole trial in one transaction, and return its id."""
        stage = {} if drawn.stage is None else {attrs.STAGE: drawn.stage}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=drawn.params,
            distributions=dict(self.space.distributions),
            user_attrs={
                **stage,
                attrs.PLAN: self.space.plan(drawn.params).to_json(),
                attrs.CLAIMED_AT: since,
                attrs.WORKER: worker,
            },
        )
        storage = optuna_private.storage(self.study)
        return storage.create_new_trial(optuna_private.study_id(self.study), trial)

    def _ask(self) -> Trial:
        with warnings.catch_warnings():
            # Optuna expects heartbeats from ``optimize`` only; ours come from Heartbeat.
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self.study.ask()

    def _pop(self, queued: FrozenTrial) -> Trial:
        """Take a certain trial out of the queue; ``Study.ask`` takes the lowest number."""
        trial_id = optuna_private.trial_id(queued)
        if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            raise LockLostError(f"another process has taken trial {queued.number}")
        optuna_private.forget_trials(self.study)
        return Trial(self.study, trial_id)


def refuse_repeated(space: Space, trials: Sequence[FrozenTrial], params: Params) -> None:
    """Refuse parameters whose plan a trial has: under the study's seed it would tell no more.

    Raises:
        StudyError: With that trial and how it ended.
    """
    key, plan = canonical_key(space, params), space.plan(params)
    retried = attrs.retried_numbers(trials)
    for trial in trials:
        is_same = key in seen_keys(space, [trial]) or attrs.trial_plan(trial) == plan
        if trial.number in retried or not is_same:
            continue
        how = {TrialState.WAITING: "waits with", TrialState.RUNNING: "is training"}
        text = f"trial {trial.number} {how.get(trial.state, 'has tried')} this plan"
        if trial.state == TrialState.COMPLETE:
            text += f": {attrs.metric_value(trial):.4g}"
        elif trial.state in (TrialState.PRUNED, TrialState.FAIL):
            reason = trial.user_attrs.get(attrs.REASON, "others were better after as many epochs")
            text += f" and was not completed: {reason}"
        raise StudyError(f"{text}; all trials of a study have one seed, so it would do the same")


class _ParamRecorder(optuna_private.StorageProxy):
    """The storage of a trial that suggests its parameters, which are collected and not written.

    Optuna writes one after the other, in a transaction each, and looks around in each of them:
    a hundred round trips to a server for twenty parameters, under the study's lock.
    """

    def __init__(self, storage: BaseStorage) -> None:
        super().__init__(storage)
        self.params: dict[str, StoredParam] = {}

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        """Collect a parameter."""
        self.params[name] = StoredParam(value, distribution)


def draw_missing_params(
    trial: Trial, space: Space
) -> tuple[dict[str, StoredParam], dict[str, Any]]:
    """Suggest the parameters of a trial that has none yet, and work out its plan.

    Returns:
        What to write: its parameters, and the attribute of its plan. A trial from the queue may
        have both.
    """
    stored = trial.user_attrs.get(attrs.PLAN)
    if stored is not None:
        with reading(f"the plan of trial {trial.number}"):
            if space.params(TrialPlan.from_json(stored)) is None:
                return {}, {}
    storage = trial.storage
    recorder = _ParamRecorder(storage)
    trial.storage = cast(BaseStorage, recorder)
    try:
        params = {
            name: suggest(trial, name, distribution)
            for name, distribution in space.distributions.items()
        }
    finally:
        trial.storage = storage
    plan = {} if stored is not None else {attrs.PLAN: space.plan(params).to_json()}
    return recorder.params, plan
