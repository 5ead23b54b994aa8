"""The budget of a study, and when it stops.

Everything here follows from the trials of the study, its budget and the time, so that all workers
come to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import SearchConfig
from autotune.format_versions import reading
from autotune.search import ranking
from autotune.study.state import attrs
from autotune.study.state.predictions import paired_error
from autotune.text import plural

TRIALS = "trials"
TIMEOUT = "timeout"
DEVICE_HOURS = "device hours"
PATIENCE = "patience"
EXHAUSTED = "exhausted"
STOPPED = "stopped"

#: Fewest finished trials that ``patience: noise`` judges.
MIN_TRIALS = 20
#: Most trials whose differences to the best one tell the error of a comparison.
RIVALS = 10


@dataclass(frozen=True)
class Budget:
    """Limits of a study; the first that is reached stops it.

    Args:
        trials: Finished trials.
        timeout: Seconds of a run, ``None`` for no limit (as below).
        until: The moment at which those are over, in seconds of the Unix epoch.
        device_hours: Hours for which trials hold a device, over all workers.
        patience: Finished trials without a better one; ``noise``: see :func:`impatience`.
    """

    trials: int
    timeout: float | None = None
    until: float | None = None
    device_hours: float | None = None
    patience: int | str | None = None

    @staticmethod
    def from_config(search: SearchConfig, now: float) -> Budget:
        """Return the budget of a run that starts now."""
        until = None if search.timeout is None else now + search.timeout
        return Budget(search.trials, search.timeout, until, search.device_hours, search.patience)

    @property
    def patience_trials(self) -> int | None:
        """The patience where it is a number of trials."""
        return self.patience if isinstance(self.patience, int) else None

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> Budget:
        """Read the budget from a study's user attributes; that of another program has none."""
        with reading("the budget of the study"):
            return replace(Budget(0), **attributes.get(attrs.BUDGET, {}))

    def to_json(self) -> dict[str, Any]:
        """Return the budget as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StopReason:
    """Why no new trial starts.

    ``kind`` is the budget that is used up, ``exhausted`` where there is no further plan, or
    ``stopped`` where somebody asked for it. ``text`` says the same to the user.
    """

    kind: str
    text: str

    @property
    def is_provisional(self) -> bool:
        """Whether the result of a running trial can make the search continue."""
        return self.kind in (PATIENCE, EXHAUSTED)

    @property
    def is_request(self) -> bool:
        """Whether somebody asked the study to stop, which the next run forgets."""
        return self.kind == STOPPED

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> StopReason | None:
        """Read what stopped a study from its user attributes; ``None`` until something has."""
        stored = attributes.get(attrs.ENDED)
        if not stored:
            return None
        with reading("the end of the study"):
            values = dict(stored)
            return StopReason(text=values.pop("words"), **values)

    def to_json(self) -> dict[str, str]:
        """Return the reason as plain JSON values."""
        return {"kind": self.kind, "words": self.text}


def stop_reason(
    trials: Sequence[FrozenTrial], budget: Budget, direction: StudyDirection, now: float
) -> StopReason | None:
    """Return why no new trial of a study may start; ``None`` while one may.

    ``now`` is in seconds of the Unix epoch.
    """
    progress = attrs.count_progress(trials, budget.trials)
    if progress.finished >= budget.trials:
        return StopReason(TRIALS, plural(progress.finished, "finished trial"))
    if progress.finished + progress.running >= budget.trials:
        started = plural(progress.finished + progress.running, "trial")
        return StopReason(TRIALS, f"{started}, of which {progress.running} still running")
    if budget.until is not None and now >= budget.until:
        return StopReason(TIMEOUT, f"the {budget.timeout:g} s of the run are over")
    if budget.device_hours is not None:
        used = device_hours_used(trials, now)
        if used >= budget.device_hours:
            text = f"{used:.3g} of {budget.device_hours:g} device-hours used"
            return StopReason(DEVICE_HOURS, text)
    if budget.patience is not None:
        text = impatience(trials, direction, budget.patience)
        return StopReason(PATIENCE, text) if text else None
    return None


def device_hours_used(trials: Iterable[FrozenTrial], now: float) -> float:
    """Return the hours for which all attempts at trials have held a device."""
    return sum(attrs.device_seconds(trial, now) for trial in trials) / 3600


def startable_queue(trials: Iterable[FrozenTrial], reason: StopReason | None) -> list[FrozenTrial]:
    """Return the queued trials that may start, retries first, in the order to start them.

    When no new trial may start because nothing better is to be expected, a trial that was started
    before still gets its retry. When the trials or the time are used up, nothing starts.
    """
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING and _has_plan(trial)]
    retries = [trial for trial in waiting if attrs.earlier_attempts(trial)]
    if reason is None:
        return [*retries, *(trial for trial in waiting if not attrs.earlier_attempts(trial))]
    return retries if reason.is_provisional else []


def count_startable(
    trials: Sequence[FrozenTrial], budget: Budget, reason: StopReason | None
) -> int:
    """Count the trials that could start now."""
    if reason is not None:
        return len(startable_queue(trials, reason))
    progress = attrs.count_progress(trials, budget.trials)
    return budget.trials - progress.finished - progress.running


def _has_plan(trial: FrozenTrial) -> bool:
    """Tell whether a queued trial has something to train; if not, it is like a new one."""
    return attrs.PLAN in trial.user_attrs or bool(trial.system_attrs.get("fixed_params"))


def impatience(
    trials: Sequence[FrozenTrial], direction: StudyDirection, patience: int | str
) -> str:
    """Return why a study has used up its patience; empty while it has not.

    Args:
        trials: The trials of the study.
        direction: Of its metric.
        patience: Finished trials without a better one, or ``noise``: the study ends when as many
            trials again would gain less than the error with which two of them are compared.
    """
    if isinstance(patience, int):
        since = trials_since_best(trials, direction)
        return f"no better trial in the last {since}" if since >= patience else ""
    ended = _ended(trials)
    if len(ended) < MIN_TRIALS:  # before scores are decoded, at each claim
        return ""
    error = comparison_error(ended, direction)
    if error is None or (gain := gain_of_doubling(ended, direction)) >= error:
        return ""
    return (
        f"as many trials again would gain about {gain:.2g}, less than the standard error of a "
        f"comparison, {error:.2g}"
    )


def trials_since_best(trials: Sequence[FrozenTrial], direction: StudyDirection) -> int:
    """Count the trials that ended after the best one, in the order in which they ended.

    Among equals the first one is the best. Before a trial is complete, none is counted.
    """
    ended = _ended(trials)
    best = ranking.best_trial(ended, direction)
    if best is None:
        return 0
    first = next(
        index
        for index, trial in enumerate(ended)
        if trial.value == best.value and ranking.best_trial([trial], direction) is not None
    )
    return len(ended) - 1 - first


def gain_of_doubling(ended: Sequence[FrozenTrial], direction: StudyDirection) -> float:
    """Return how much the best value gains on average when the number of trials doubles.

    That is the best value of all trials less the mean best value of all halves of them. Trials
    without a value of their own are in no half the best.
    """
    values = [trial.values[0] for trial in ranking.rank_trials(ended, direction)]
    count, half = len(ended), len(ended) // 2
    halves = math.comb(count, half)
    # The share of the halves whose best trial is the one at this rank.
    shares = [math.comb(count - 1 - rank, half - 1) / halves for rank in range(len(values))]
    mean = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    return float(abs(values[0] - mean))


def comparison_error(ended: Sequence[FrozenTrial], direction: StudyDirection) -> float | None:
    """Return the usual standard error of the difference of the best trial to those behind it.

    ``None`` where the trials have no scores of single images.
    """
    ranked = ranking.rank_trials(ended, direction)
    is_share = direction == StudyDirection.MAXIMIZE
    errors = [paired_error(ranked[0], rival, is_share) for rival in ranked[1 : 1 + RIVALS]]
    known = [error for error in errors if error is not None]
    return median(known) if known else None


def _ended(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that have ended for good, in the order in which they ended."""
    retried = attrs.retried_numbers(trials)
    return sorted(
        (trial for trial in trials if trial.state.is_finished() and trial.number not in retried),
        key=lambda trial: (attrs.ended_at(trial), trial.number),
    )
