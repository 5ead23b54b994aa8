"""The budget of a study, and when it stops.

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
from autotune.study.state import attrs
from autotune.study.state.patience import impatience
from autotune.text import plural

TRIALS = "trials"
TIMEOUT = "timeout"
DEVICE_HOURS = "device hours"
PATIENCE = "patience"
EXHAUSTED = "exhausted"
STOPPED = "stopped"


@dataclass(frozen=True)
class Budget:
    """Limits of a study; the first that is reached stops it.

    Args:
        trials: Finished trials.
        timeout: Seconds of a run, ``None`` for no limit (as below).
        until: The moment at which those are over, in seconds of the Unix epoch.
        device_hours: Hours for which trials hold a device, over all workers.
        patience: Finished trials without a better one; ``noise``: see :mod:`.patience`.
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
    def from_study(study: Study) -> Budget:
        """Read the budget of a study; a study of another program has none."""
        return Budget.from_attributes(study.user_attrs)

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> Budget:
        """Read the budget from a study's user attributes."""
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
    def from_study(study: Study) -> StopReason | None:
        """Read what stopped a study; ``None`` until something has."""
        return StopReason.from_attributes(study.user_attrs)

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> StopReason | None:
        """Read what stopped a study from its user attributes; ``None`` until something has."""
        stored = attributes.get(attrs.ENDED)
        with reading("the end of the study"):
            return StopReason(**{_FIELDS.get(k, k): stored[k] for k in stored}) if stored else None

    def to_json(self) -> dict[str, str]:
        """Return the reason as plain JSON values."""
        return {"kind": self.kind, "words": self.text}


#: Fields of a :class:`StopReason` that have another name where it is stored.
_FIELDS = {"words": "text"}


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
