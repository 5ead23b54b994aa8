"""The workers of a launcher at the terminal, as their events describe them."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from autotune.errors import UserError
from autotune.results.values.objective import Objective

#: The state of a worker whose GPU cannot be used.
_NO_DEVICE = "its GPU cannot be used"


@dataclass
class WorkerState:
    """What a worker does: ``work`` is its trial, or the name of its training."""

    device: str = ""
    work: str = ""
    plan: str = ""
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    state: str = "starting"


@dataclass
class WorkerStates:
    """The workers by their slots; ``noun`` is what they do: a trial, or a training."""

    noun: str = "trial"
    rows: dict[int, WorkerState] = field(default_factory=dict)
    is_stopping: bool = False

    def update(self, event: dict[str, Any]) -> None:
        """Apply one event."""
        match event["event"]:
            case "opened":
                self.rows = {slot: WorkerState() for slot in range(event["workers"])}
            case "error" if event["exit_code"] == UserError.exit_code:
                self.is_stopping = True  # its message is enough
            case "stopping":
                self.is_stopping = True
            case kind if "worker" in event:
                row = self.rows.setdefault(event["worker"], WorkerState())
                self._update_row(row, kind, event)

    def _update_row(self, row: WorkerState, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "ready":
                gpu = str(event.get("gpu", "")).partition(" (")[0]
                row.device = f"{event['device'].removeprefix('NVIDIA ')} {gpu}".strip()
                row.state = "ready"
            case "start":
                row.work, row.plan = str(event.get("training", event.get("trial"))), event["plan"]
                row.epoch, row.value, row.state = 0, None, "training"
            case "epoch":
                row.epoch, row.epochs, row.value = event["epoch"], event["epochs"], event["value"]
            case "end":
                row.state = event["state"]
            case "waiting":
                row.state = f"waiting for the other {self.noun}s"
            case "no_device":
                row.state = _NO_DEVICE
            case "exit" if row.state != _NO_DEVICE:
                row.state = "replaced" if event.get("replaced") else "ended"

    def table(self, objective: Objective | None) -> Table:
        """Return a table with a row per worker; no value is shown before there is an objective."""
        label = objective.label if objective else ""
        table = Table("worker", self.noun, "epoch", label, "plan", box=None)
        for slot, row in self.rows.items():
            text = row.plan if row.state == "training" else row.state
            value = ""
            if objective is not None and row.value is not None:
                value = objective.format_value(row.value)
            table.add_row(
                f"{slot} {row.device}",
                row.work,
                f"{row.epoch}/{row.epochs}" if row.epochs else "",
                value,
                Text(text, overflow="ellipsis", no_wrap=True),
            )
        return table

    def notices(self, event: dict[str, Any]) -> list[str]:
        """Return the lines about an event that stay on the screen."""
        match event["event"]:
            case "worker_unhealthy":
                return [
                    f"worker {event['worker']} fails whatever it runs and is not started again; "
                    f"its log is {event['log']}"
                ]
            case "no_device":
                return [f"worker {event['worker']} is not started again: {event['message']}"]
            case "exit":
                return self._describe_exit(event)
        return []

    def _describe_exit(self, event: dict[str, Any]) -> list[str]:
        """Return how a worker ended and the end of its log; nothing if it was asked to end."""
        code, row = event["code"], self.rows.get(event["worker"])
        is_reported = row is not None and row.state == _NO_DEVICE
        if code == 0 or self.is_stopping or is_reported:
            return []
        if code is None:
            text = "was lost"
        elif code < 0:
            is_named = -code in list(signal.Signals)  # most real-time signals are not
            name = signal.Signals(-code).name if is_named else f"signal {-code}"
            text = f"was killed ({name})"
        else:
            text = f"failed (exit code {code})"
        text = f"worker {event['worker']} {text}"
        if event.get("replaced"):
            text += " and is replaced"
        if lines := event.get("lines"):
            return [f"{text}; its log ends:", *(f"    {line}" for line in lines)]
        return [text]


def ready_line(event: dict[str, Any]) -> str:
    """Return the line about a worker that is ready."""
    device = ", ".join(event[key] for key in ("device", "gpu") if event.get(key))
    return f"worker {event['worker']} is ready on {device}"
