"""The workers of a study at the terminal, and why trials failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from autotune.results.report.workers import WorkerRow
    from autotune.results.values.objective import Objective


def workers_table(rows: Sequence[WorkerRow], objective: Objective, *, one_line: bool) -> Table:
    """Draw a row for each worker.

    Args:
        rows: The workers.
        objective: How values are written.
        one_line: Whether long plans are cut, so that every worker has one line.
    """
    table = Table(box=None)
    for name in ("host", "worker", "device"):
        table.add_column(name, overflow="fold", no_wrap=one_line)
    for name in ("trial", "epoch", objective.label, "heartbeat", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan", overflow="ellipsis" if one_line else "fold", no_wrap=one_line)
    for row in rows:
        busy = row.trial is not None
        table.add_row(
            Text(row.host),
            Text(row.place),
            Text(row.device),
            str(row.trial) if busy else "–",
            _epoch(row) if busy else "",
            "" if row.value is None else objective.format_value(row.value),
            _heartbeat(row) if busy else "",
            format_speed(row.epochs_per_s, row.images_per_s),
            Text(row.plan if busy else f"between trials for {row.silent_s or 0:.0f} s"),
        )
    return table


def format_speed(epochs_per_s: float | None, images_per_s: float | None) -> str:
    """Write a throughput: images a second, or epochs a minute where images are not known."""
    if images_per_s is not None:
        return f"{images_per_s:,.0f} images/s"
    return "" if epochs_per_s is None else f"{60 * epochs_per_s:.3g} epochs/min"


def failures_line(failures: Sequence[tuple[str, int]]) -> str:
    """Write how many attempts failed why; empty when none did."""
    counted = ", ".join(f"{count} {reason}" for reason, count in failures)
    return f"failed attempts: {counted}" if counted else ""


def _epoch(row: WorkerRow) -> str:
    return f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)


def _heartbeat(row: WorkerRow) -> Text:
    """Write how long ago the last sign of life was; in words too, for those who see no colours."""
    if row.silent_s is None:
        return Text("none", style="red")
    shown = f"{row.silent_s:.0f} s"
    if row.is_silent:
        return Text(f"silent {shown}", style="bold red")
    return Text(f"late {shown}", style="yellow") if row.is_late else Text(f"{shown} ago")
