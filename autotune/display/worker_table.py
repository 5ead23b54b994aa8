"""The workers of a study at the terminal, and why trials failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from autotune.results.report.workers import WorkerRow
    from autotune.results.values.objective import Objective


#: Least width of the column of plans, in which the longest ones are cut; below it they get lines
#: of their own.
MIN_PLAN = 40


@dataclass(frozen=True)
class WorkersTable:
    """A table with a row for each worker, readable at any width.

    Args:
        rows: The workers.
        objective: What their trials are measured by.
        one_line: Whether a long text is cut, so that the table keeps its height.
    """

    rows: Sequence[WorkerRow]
    objective: Objective
    one_line: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        texts = [_describe_work(row) for row in self.rows]
        table = self._table()
        natural = console.measure(table, options=options.update(width=1000)).maximum
        left = options.max_width - natural - 1
        if left >= min(MIN_PLAN, max(map(len, texts))):
            table.add_column("plan")
            table.columns[-1]._cells = [self._cut(text) for text in texts]
            yield table
            return
        yield table
        for row, text in zip(self.rows, texts, strict=True):
            name = f"worker {row.place}" if row.trial is None else f"trial {row.trial}"
            yield self._cut(f"{name}: {text}")

    def _table(self) -> Table:
        """Return the table without plans; names give way before numbers do."""
        table = Table(box=None, padding=(0, 1, 0, 0))
        for name in ("host", "worker", "device"):
            table.add_column(name)
        for name in ("trial", "epoch", self.objective.label, "heartbeat", "speed"):
            table.add_column(name, justify="right", no_wrap=name != self.objective.label)
        values = [
            "" if row.value is None else self.objective.format_value(row.value)
            for row in self.rows
        ]
        table.columns[5].min_width = max(map(len, values))
        for row, value in zip(self.rows, values, strict=True):
            is_busy = row.trial is not None
            epoch = f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)
            table.add_row(
                *map(self._cut, (row.host, row.place, row.device)),
                str(row.trial) if is_busy else "–",
                epoch if is_busy else "",
                Text(value, no_wrap=True),
                _heartbeat(row) if is_busy else "",
                format_speed(row.epochs_per_s, row.images_per_s),
            )
        return table

    def _cut(self, text: str) -> Text:
        return Text(text, no_wrap=self.one_line, overflow="ellipsis" if self.one_line else "fold")


def _describe_work(row: WorkerRow) -> str:
    return row.plan if row.trial is not None else f"between trials for {row.silent_s or 0:.0f} s"


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
