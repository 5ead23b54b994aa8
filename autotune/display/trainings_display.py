"""The display of trainings outside of the search: redrawn on a terminal, elsewhere lines."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autotune.display.run_display import budget_bar
from autotune.display.status import PlainStatus
from autotune.display.worker_states import WorkerStates, ready_line
from autotune.results.values.objective import Objective
from autotune.text import format_clock


@dataclass
class TrainingsState:
    """The state of trainings, updated from their events."""

    objective: Objective
    workers: WorkerStates = field(default_factory=lambda: WorkerStates("training"))
    epochs: int = 0
    total: int = 0
    done: int = 0
    cached: int = 0
    trained_epochs: int = 0
    started: float = field(default_factory=time.monotonic)
    _epoch: dict[str, int] = field(default_factory=dict)  # of those in training

    def update(self, event: dict[str, Any]) -> None:
        """Apply one event; see :func:`autotune.study.engine.trainings.announce`."""
        self.workers.update(event)
        match event["event"]:
            case "trainings":
                self.epochs, self.total = event["epochs"], len(event["names"])
            case "result":
                self.done = event["done"]
                self.cached += event["is_cached"]
                self._epoch.pop(event["training"], None)
            case "start":
                if not self._epoch and not self.trained_epochs:
                    self.started = time.monotonic()
                self._epoch[event["training"]] = 0
            case "epoch":
                self._epoch[event["training"]] = event["epoch"]
                self.trained_epochs += 1

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time left from the epochs of this call; ``None`` before the first."""
        epochs_left = (self.total - self.done) * self.epochs - sum(self._epoch.values())
        if epochs_left <= 0:
            return 0.0
        if not self.trained_epochs:
            return None
        return (time.monotonic() - self.started) / self.trained_epochs * epochs_left

    def describe_counts(self) -> str:
        """Return how many trainings have ended."""
        earlier = f", {self.cached} of them earlier" if self.cached else ""
        return f"{self.done}/{self.total} trained{earlier}"

    def describe_work(self) -> str:
        """Return what is in training, and the time left, as a line."""
        rows = [row for row in self.workers.rows.values() if row.state == "training"]
        work = [f"{row.work}: epoch {row.epoch} of {self.epochs}" for row in rows]
        return f"{'; '.join(work) or 'starting workers'}, {self.format_time_left()}"

    def format_time_left(self) -> str:
        """Write the time left."""
        return f"time left {format_clock(self.seconds_left)}"

    def describe_result(self, event: dict[str, Any]) -> str:
        """Return the line about a training that has ended."""
        result = event.get("failed") or f"trained for {self.epochs} epochs"
        if event.get("value") is not None:
            result = self.objective.format_value(event["value"])
        line = f"{event['done']} of {self.total}: {event['training']}: {result}"
        if event["is_cached"]:
            return f"{line} (cached)"
        return f"{line}, {self.format_time_left()}" if self.done < self.total else line


def draw(state: TrainingsState) -> RenderableType:
    """Draw trainings: a bar and a row per worker."""
    share = state.done / max(1, state.total)
    bar = budget_bar(share, state.describe_counts(), state.format_time_left())
    # An empty line for the ^C that a terminal writes, as in the display of a run.
    return Group(bar, state.workers.table(state.objective), Text())


class TrainingsView:
    """Shows the events of trainings.

    Args:
        objective: What they are measured by.
        status: What is shown until the first of them, and redrawn.
        console: Where lines are printed that stay.
    """

    def __init__(self, objective: Objective, status: PlainStatus, console: Console) -> None:
        self._state = TrainingsState(objective)
        self._status = status
        self._console = console

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        state = self._state
        state.update(event)
        for line in [*self._lines(event), *state.workers.notices(event)]:
            self._console.print(Text(line))
        if state.workers.rows:
            self._status.update(draw(state), line=state.describe_work())

    def _lines(self, event: dict[str, Any]) -> list[str]:
        match event["event"]:
            case "result":
                return [self._state.describe_result(event)]
            case "stopping":
                return ["killing the workers" if event["now"] else "stopping after this batch"]
            case "ready" if not self._console.is_terminal:
                return [ready_line(event)]
        return []
