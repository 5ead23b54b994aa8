"""Trials whose worker is lost: when it counts as lost, and the successor that continues a trial.

A successor is queued with the plan and the curve of the attempt before it, and resumes from its
checkpoint; at most ``MAX_RETRIES`` times in a row without a further epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune import optuna_private
from autotune.storage.rdb.connection import GRACE_PERIOD_S
from autotune.storage.rdb.heartbeat import HeartbeatAges
from autotune.study.state import attrs

#: Retries of a trial after its worker was lost, in a row without a new epoch.
MAX_RETRIES = 3
INTERRUPTED = "interrupted"
WORKER_LOST = "its worker was lost"
#: What a successor takes over from the attempt before it.
_INHERITED = (
    *(attrs.PLAN, attrs.ROLE, attrs.ORIGIN, attrs.STAGE),
    *(attrs.SECONDS, attrs.CACHES, attrs.COSTS, attrs.MICRO_BATCH, attrs.CURVES),
)


def seconds_silent(trial: FrozenTrial, heartbeats: HeartbeatAges) -> float | None:
    """Return the seconds since the last sign of life of a running trial's worker.

    Before the first heartbeat, that is its claim; ``None`` where there is neither.
    """
    age = heartbeats.age_s.get(optuna_private.trial_id(trial))
    claimed_at = trial.user_attrs.get(attrs.CLAIMED_AT)
    if age is None and claimed_at is not None:
        age = max(0.0, heartbeats.now - float(claimed_at))
    return age


def is_stale(trial: FrozenTrial, heartbeats: HeartbeatAges) -> bool:
    """Tell whether the worker of a running trial counts as dead."""
    silent = seconds_silent(trial, heartbeats)
    return silent is None or silent > GRACE_PERIOD_S


def lost_without_retry(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Return the missing successors of trials that were lost and never retried, by their number.

    Earlier versions failed a trial whose worker fell silent before they queued its successor, and
    could be killed between the two. Such a trial has no reason, and its last sign of life is the
    grace period before its end; who fails a trial by hand does it while its worker lives.
    """
    retried = attrs.retried_numbers(trials)
    successors = {
        trial.number: make_retry(trial)
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in retried
        and attrs.WORKER in trial.user_attrs
        and not {attrs.REASON, attrs.FAILED_PLAN} & trial.user_attrs.keys()
        and trial.datetime_complete is not None
        and trial.datetime_complete.timestamp() - attrs.last_sign_of_life(trial)
        > GRACE_PERIOD_S / 2
    }
    return {number: trial for number, trial in successors.items() if trial is not None}


def make_retry(trial: FrozenTrial, counted: bool = True) -> FrozenTrial | None:
    """Make the successor of a trial that is about to fail, or has; ``None`` after too many losses.

    It has the trial's parameters, plan and curve, and resumes from its checkpoint. If the trial
    was lost before it had a plan, it has what the queue gave it, and draws the rest. It is
    ``counted`` as one of the ``MAX_RETRIES``, unless a stop was requested.
    """
    # A trial that got further before it was lost is not what its workers die of.
    further = (trial.last_step or 0) > trial.user_attrs.get(attrs.RESUMED, 0)
    lost = (0 if further else trial.user_attrs.get(attrs.LOST_ATTEMPTS, 0)) + int(counted)
    if lost > MAX_RETRIES:
        return None
    planned = attrs.PLAN in trial.user_attrs
    attributes = {
        key: value
        for key, value in trial.user_attrs.items()
        # Without a plan it is drawn again, in the stage of then.
        if key in _INHERITED and (planned or key != attrs.STAGE)
    }
    attributes[attrs.RETRIES] = [*attrs.earlier_attempts(trial), trial.number]
    attributes[attrs.LOST_ATTEMPTS] = lost
    attributes[attrs.RESUMED] = trial.last_step or 0
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params if planned else {},
        distributions=trial.distributions if planned else {},
        user_attrs=attributes,
        system_attrs={k: v for k, v in trial.system_attrs.items() if k == "fixed_params"},
        intermediate_values=trial.intermediate_values,
    )
