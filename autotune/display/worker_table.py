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
    """Return a table with a row for each worker; with ``one_line``, long plans are cut."""
    table = Table(box=None)
    for name in ("host", "worker", "device"):
        table.add_column(name, overflow="fold", no_wrap=one_line)
    for name in ("trial", "epoch", objective.label, "heartbeat", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan", overflow="ellipsis" if one_line else "fold", no_wrap=one_line)
    for row in rows:
        is_busy = row.trial is not None
        epoch = f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)
        table.add_row(
            Text(row.host),
            Text(row.place),
            Text(row.device),
            str(row.trial) if is_busy else "–",
            epoch if is_busy else "",
            "" if row.value is None else objective.format_value(row.value),
            _heartbeat(row) if is_busy else "",
            format_speed(row.epochs_per_s, row.images_per_s),
            Text(row.plan if is_busy else f"between trials for {row.silent_s or 0:.0f} s"),
        )
    return table


def format_speed(epochs_per_s: float | None, images_per_s: float | None) -> str:
    """Write a speed in images per second, or in epochs per minute if the images are unknown."""
    if images_per_s is not None:
        return f"{images_per_s:,.0f} images/s"
    return "" if epochs_per_s is None else f"{60 * epochs_per_s:.3g} epochs/min"


def format_failures(failures: Sequence[tuple[str, int]]) -> str:
    """Write how many attempts failed for which reason; empty if none failed."""
    counts = ", ".join(f"{count} {reason}" for reason, count in failures)
    return f"failed attempts: {counts}" if counts else ""


def _heartbeat(row: WorkerRow) -> Text:
    """Write the time since the last heartbeat; in words too, for readers who see no colors."""
    if row.silent_s is None:
        return Text("none", style="red")
    duration = f"{row.silent_s:.0f} s"
    if row.is_silent:
        return Text(f"silent {duration}", style="bold red")
    return Text(f"late {duration}", style="yellow") if row.is_late else Text(f"{duration} ago")
