"""The loggers of a run, each in a thread of its own: none of them can stop or delay a trial."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from autotune.events import Event, StudyEnded
from autotune.loggers.packages import describe
from autotune.text import plural

Logger = Callable[[Event], object]
log = logging.getLogger(__name__)

#: Waiting time for the last events at the end of a run.
CLOSE_TIMEOUT_S = 60.0


class _Thread:
    """Passes events to one logger, one after the other; an error loses one event."""

    def __init__(self, name: str, logger: Logger, warn: Callable[[str], None]) -> None:
        self.name = name
        self._is_ending = self._is_end_lost = False
        self._logger, self._warn = logger, warn
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._put = self._done = self._lost = 0
        self._thread = threading.Thread(target=self._run, name=f"log {name}", daemon=True)

    def put(self, event: Event) -> None:
        if not self._put:  # a run that cannot start leaves no thread behind
            self._thread.start()
        self._put += 1
        self._events.put(event)

    def ask_to_end(self) -> None:
        self._is_ending = True
        self._events.put(None)

    def wait(self, until: float) -> None:
        """Wait for the last event, and tell what was lost."""
        if not self._put:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        lost = self._lost + self._put - self._done
        if lost == 1 and self._is_end_lost:
            return  # which was told
        if self._thread.is_alive():
            text = f"did not take its last events within {CLOSE_TIMEOUT_S:.0f} s"
        elif self._lost:
            text = "has failed"
        else:
            return
        self._warn(
            f"{self.name} {text}: {lost} of {plural(self._put, 'event')} "
            f"{'was' if lost == 1 else 'were'} not logged there; the study has them all"
        )

    def _run(self) -> None:
        failures = 0  # in a row
        while (event := self._events.get()) is not None:
            if self._is_ending and failures > 1:
                return  # each further one would take as long to fail
            try:
                self._logger(event)
                failures = 0
            except (Exception, SystemExit) as error:
                log.info("%s", self.name, exc_info=True)
                self._is_end_lost = isinstance(event, StudyEnded)
                if not self._lost:
                    self._warn(self._describe(error))
                failures += 1
                self._lost += 1
            self._done += 1

    def _describe(self, error: BaseException) -> str:
        if self._is_end_lost:
            return f"{self.name} failed at the end of the run: {describe(error)}"
        return (
            f"{self.name} cannot log: {describe(error)}; the trials go on, and later events are "
            "logged if it can"
        )


class Loggers:
    """The loggers of one run."""

    def __init__(self, loggers: Iterable[tuple[str, Logger]] = ()) -> None:
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [_Thread(name, logger, self._warnings.put) for name, logger in loggers]

    @property
    def names(self) -> list[str]:
        """The names of the loggers."""
        return [thread.name for thread in self._threads]

    def log(self, event: Event) -> None:
        """Hand an event to all loggers; return at once."""
        for thread in self._threads:
            thread.put(event)

    def take_warnings(self) -> list[str]:
        """Return what is to be told to the user since the last call."""
        warnings = []
        while not self._warnings.empty():
            warnings.append(self._warnings.get())
        return warnings

    def close(self) -> None:
        """Wait until all events are logged, for at most :data:`CLOSE_TIMEOUT_S`."""
        until = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.ask_to_end()
        for thread in self._threads:
            thread.wait(until)
