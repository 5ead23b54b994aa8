"""Tells the loggers of a run what happens in its study.

Workers pass on events as dictionaries, which the display draws. Here they become those of
:mod:`autotune.events`, with what the study has stored of a trial. A worker that dies says nothing:
its trial ends for the loggers with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast, get_args

from optuna.trial import FrozenTrial, TrialState

from autotune import events
from autotune.errors import AutotuneError
from autotune.events import EpochEnded, StudyEnded, StudyStarted, TrialEnded, TrialStarted
from autotune.loggers.background import Loggers
from autotune.loggers.packages import describe
from autotune.search import ranking
from autotune.search.space import active_params
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.retries import INTERRUPTED, WORKER_LOST
from autotune.study.trial.run import EventCallback

logger = logging.getLogger(__name__)

_STATES = get_args(events.TrialState)
#: Values of an epoch beside the objective.
_EPOCH = ("training_loss", "validation_loss", "learning_rate", "seconds")


class StudyLog:
    """Passes on the events of a run, to its display as they are and to its loggers typed.

    Args:
        handle: The study.
        loggers: The loggers of this run.
        on_event: Called with every event, and with the warnings about loggers.
    """

    def __init__(self, handle: OpenStudy, loggers: Loggers, on_event: EventCallback) -> None:
        self._handle, self._loggers, self._on_event = handle, loggers, on_event
        self._space = attrs.study_space(handle.study) if loggers.names else None
        self._running: dict[int, TrialStarted] = {}
        self._is_broken = self._has_ended = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Pass on an event of a worker or of the launcher."""
        self._on_event(event)
        if self._loggers.names:
            self._guarded(lambda: self._translate(event))
            self._warn()

    def start(self) -> None:
        """Tell that a run starts."""
        if self._loggers.names:
            self._guarded(lambda: self._loggers.log(self._study_started()))

    def end(self, state: events.StudyState, reason: str) -> None:
        """Tell that the run has ended, and wait for the loggers."""
        if not self._loggers.names or self._has_ended:
            return
        self._has_ended = True
        for worker in list(self._running):
            self._guarded(partial(self._lose, worker))
        self._guarded(lambda: self._loggers.log(self._study_ended(state, reason)))
        self._on_event({"event": "closing_loggers", "names": self._loggers.names})
        try:
            self._loggers.close()
        except KeyboardInterrupt:
            self._on_event(_warning("stopped before the loggers had taken their last events"))
        self._warn()

    @contextmanager
    def run(self) -> Iterator[Callable[[events.StudyState, str], None]]:
        """Tell the start of a run; yield what tells its end, which an error tells as well."""
        self.start()
        try:
            yield self.end
        except BaseException as error:
            is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            text = str(error) if isinstance(error, AutotuneError) else describe(error)
            lines = text.splitlines()
            self.end("interrupted" if is_stopped else "failed", lines[0] if lines else "")
            raise

    def _guarded(self, tell: Callable[[], None]) -> None:
        """Keep errors away from the run, such as those of a storage that cannot be read now."""
        try:
            tell()
        except Exception as error:
            logger.info("an event was not logged", exc_info=True)
            if not self._is_broken:
                self._is_broken = True
                text = f"an event was not logged: {describe(error)}; the trials go on"
                self._on_event(_warning(text))

    def _warn(self) -> None:
        for text in self._loggers.take_warnings():
            self._on_event(_warning(text))

    def _translate(self, event: dict[str, Any]) -> None:
        worker = event.get("worker", 0)
        match event["event"]:
            case "start":
                running = self._running.get(worker)
                # After a lack of memory a trial starts again, and nothing else has changed.
                if running is None or running.trial != event["trial"]:
                    self._running[worker] = self._trial_started(event, worker)
                    self._loggers.log(self._running[worker])
            case "epoch" if worker in self._running:
                self._loggers.log(
                    EpochEnded(
                        trial=event["trial"],
                        first=self._running[worker].first,
                        epoch=event["epoch"],
                        epochs=event["epochs"],
                        value=event["value"],
                        **{name: event.get(name) for name in _EPOCH},
                    )
                )
            case "end" if worker in self._running:
                self._end_trial(worker, event["state"], event["value"])
            case "exit" if worker in self._running:
                self._lose(worker)

    def _trial(self, number: int) -> FrozenTrial:
        return self._handle.study.get_trials(deepcopy=False)[number]

    def _end_trial(self, worker: int, state: str, value: float | None) -> None:
        started = self._running.pop(worker)
        reason = str(self._trial(started.trial).user_attrs.get(attrs.REASON, ""))
        name = cast(events.TrialState, state)
        if state not in _STATES:  # interrupted, lost or queued again
            name, reason = "requeued", reason or INTERRUPTED
        self._loggers.log(TrialEnded(started.trial, started.first, name, value, reason))

    def _lose(self, worker: int) -> None:
        """Tell the end of the trial of a worker that is gone."""
        started = self._running.pop(worker)
        trials = self._handle.study.get_trials(deepcopy=False)
        trial = trials[started.trial]
        is_failed = trial.state == TrialState.FAIL
        is_final = is_failed and started.trial not in attrs.retried_numbers(trials)
        reason = str(trial.user_attrs.get(attrs.REASON, WORKER_LOST))
        state: events.TrialState = "failed" if is_final else "requeued"
        self._loggers.log(TrialEnded(started.trial, started.first, state, None, reason))

    def _study_started(self) -> StudyStarted:
        handle = self._handle
        definition = attrs.definition(handle.study.user_attrs)
        return StudyStarted(
            study=handle.name,
            uuid=handle.uuid or handle.name,
            files=handle.files.root,
            objective=definition["training"]["objective"],
            direction=attrs.metric_direction(handle.study).name.lower(),
            definition=definition,
        )

    def _trial_started(self, event: dict[str, Any], worker: int) -> TrialStarted:
        trial = self._trial(event["trial"])
        plan = attrs.trial_plan(trial)
        return TrialStarted(
            trial=trial.number,
            first=attrs.first_attempt(trial),
            epoch=int(trial.user_attrs.get(attrs.RESUMED, 0)),
            plan=event["plan"],
            backbone=plan.backbone if plan else "",
            params=active_params(self._space, trial.params),
            is_baseline=attrs.is_baseline(trial),
            worker=worker,
        )

    def _study_ended(self, state: events.StudyState, reason: str) -> StudyEnded:
        study = self._handle.study
        trials = study.get_trials(deepcopy=False)
        progress = attrs.count_progress(trials, attrs.trial_budget(study))
        if state == "finished" and progress.running:
            state = "unfinished"
        best = ranking.best_trial(trials, attrs.metric_direction(study))
        names = ("complete", "pruned", "infeasible", "failed")
        return StudyEnded(
            study=self._handle.name,
            state=state,
            reason=reason,
            best=self._result(best),
            baseline=self._result(attrs.find_baseline(trials)),
            trials={name: getattr(progress, name) for name in names},
        )

    def _result(self, trial: FrozenTrial | None) -> events.TrialResult | None:
        plan = None if trial is None else attrs.trial_plan(trial)
        if trial is None or plan is None:
            return None
        named = attrs.has_several_backbones(self._handle.study.user_attrs)
        return events.TrialResult(trial.number, trial.values[0], plan.describe(named))


def how_ended(ended: StopReason | None, is_interrupted: bool) -> tuple[events.StudyState, str]:
    """Return the state in which a run leaves a study, and why.

    Args:
        ended: Why no further trial starts, ``None`` if the study can continue.
        is_interrupted: Whether a signal stopped the run.
    """
    if is_interrupted or (ended is not None and ended.is_request):
        return "interrupted", ended.text if ended is not None else "a signal stopped it"
    if ended is None:
        return "unfinished", "other workers go on with it"
    return "finished", ended.text


def _warning(text: str) -> dict[str, Any]:
    return {"event": "warning", "text": text}
