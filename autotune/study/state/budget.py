"""When a study is over: its budget, and what it says of the trials that there are.

Everything here follows from the trials of the study, its budget and the time, so that all workers
come to the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.config.schema import SearchConfig
from autotune.format_versions import reading
from autotune.search import ranking
from autotune.study.state import attrs

TRIALS = "trials"
TIMEOUT = "timeout"
DEVICE_HOURS = "device hours"
PATIENCE = "patience"
EXHAUSTED = "exhausted"


@dataclass(frozen=True)
class Budget:
    """What a study may cost; the first that is used up ends it.

    Args:
        trials: Finished trials.
        timeout: Seconds of a run, ``None`` for no limit (as below).
        until: The moment at which those are over, in seconds of the Unix epoch.
        device_hours: Hours for which trials hold a device, over all workers.
        patience: Finished trials without a better one.
    """

    trials: int
    timeout: float | None = None
    until: float | None = None
    device_hours: float | None = None
    patience: int | None = None

    @staticmethod
    def from_config(search: SearchConfig, now: float) -> Budget:
        """Return the budget of a run that starts now."""
        until = None if search.timeout is None else now + search.timeout
        return Budget(search.trials, search.timeout, until, search.device_hours, search.patience)

    @staticmethod
    def from_study(study: Study) -> Budget:
        """Read the budget of a study; a study of others has none."""
        return Budget.from_attributes(study.user_attrs)

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> Budget:
        """Find the budget in a study's user attributes."""
        return Budget.from_json(attributes.get(attrs.BUDGET, {}))

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Budget:
        """Build a budget from what :meth:`to_json` returned."""
        with reading("the budget of the study"):
            return replace(Budget(0), **values)

    def to_json(self) -> dict[str, Any]:
        """Return the budget as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StopReason:
    """Why no new trial starts.

    Args:
        kind: Which budget is used up, or ``exhausted``: there is no further plan.
        words: The same for the user.
    """

    kind: str
    words: str

    @property
    def is_provisional(self) -> bool:
        """Whether a trial that runs can bring what makes the search go on."""
        return self.kind in (PATIENCE, EXHAUSTED)

    @staticmethod
    def from_study(study: Study) -> StopReason | None:
        """Read what ended a study; ``None`` while it goes on."""
        return StopReason.from_attributes(study.user_attrs)

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> StopReason | None:
        """Find in a study's user attributes what ended it; ``None`` while it goes on."""
        stored = attributes.get(attrs.ENDED)
        with reading("the end of the study"):
            return StopReason(**stored) if stored else None

    def to_json(self) -> dict[str, str]:
        """Return the ending as plain JSON values."""
        return asdict(self)


def stop_reason(
    trials: Sequence[FrozenTrial], budget: Budget, direction: StudyDirection, now: float
) -> StopReason | None:
    """Say why no new trial may start; ``None`` while one may.

    Args:
        trials: All trials of the study.
        budget: Its budget.
        direction: Whether more or less of the objective is better.
        now: In seconds of the Unix epoch.
    """
    progress = attrs.count_progress(trials, budget.trials)
    if progress.finished >= budget.trials:
        return StopReason(TRIALS, _count(progress.finished, "finished trial"))
    if progress.finished + progress.running >= budget.trials:
        started = _count(progress.finished + progress.running, "trial")
        return StopReason(TRIALS, f"{started}, of which {progress.running} still running")
    if budget.until is not None and now >= budget.until:
        return StopReason(TIMEOUT, f"the {budget.timeout:g} s of the run are over")
    if budget.device_hours is not None:
        used = device_hours_used(trials, now)
        if used >= budget.device_hours:
            return StopReason(
                DEVICE_HOURS, f"{used:.3g} of {budget.device_hours:g} device-hours used"
            )
    if budget.patience is not None:
        since = trials_since_best(trials, direction)
        if since >= budget.patience:
            return StopReason(PATIENCE, f"no better trial in the last {since}")
    return None


def device_hours_used(trials: Iterable[FrozenTrial], now: float) -> float:
    """Add up the hours for which trials have held a device, all attempts at them included."""
    return sum(attrs.device_seconds(one, now) for one in trials) / 3600


def trials_since_best(trials: Sequence[FrozenTrial], direction: StudyDirection) -> int:
    """Count the trials that ended after the best one, in the order in which they did.

    Among equals the first one is the best. Before a trial is complete, there is nothing to
    improve upon and nothing is counted.
    """
    replaced = attrs.retried_numbers(trials)
    ended = sorted(
        (one for one in trials if one.state.is_finished() and one.number not in replaced),
        key=lambda one: (attrs.ended_at(one), one.number),
    )
    best = ranking.best_trial(ended, direction)
    if best is None:
        return 0
    first = next(
        at
        for at, one in enumerate(ended)
        if one.value == best.value and ranking.best_trial([one], direction) is not None
    )
    return len(ended) - 1 - first


def startable_queue(trials: Iterable[FrozenTrial], ended: StopReason | None) -> list[FrozenTrial]:
    """Return the queued trials that may start, in their order: first retries of earlier trials.

    When no new trial may start because nothing better is to be expected, a trial that was started
    before still gets its retry. When the trials or the time are used up, nothing starts.

    Args:
        trials: All trials of the study.
        ended: What :func:`ending` says of them.
    """
    waiting = [one for one in trials if one.state == TrialState.WAITING and _has_plan(one)]
    retries = [one for one in waiting if attrs.earlier_attempts(one)]
    if ended is None:
        return [*retries, *(one for one in waiting if not attrs.earlier_attempts(one))]
    return retries if ended.is_provisional else []


def count_startable(
    trials: Sequence[FrozenTrial], budget: Budget, ended: StopReason | None
) -> int:
    """Count the trials that could start now."""
    if ended is not None:
        return len(startable_queue(trials, ended))
    progress = attrs.count_progress(trials, budget.trials)
    return budget.trials - progress.finished - progress.running


def _has_plan(waiting: FrozenTrial) -> bool:
    """Tell whether a queued trial knows what to train; else it is as good as a new one."""
    return attrs.PLAN in waiting.user_attrs or bool(waiting.system_attrs.get("fixed_params"))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
