"""``autotune status --watch``: a study as it runs, from any machine that reaches its storage."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.display.run_display import BudgetLeft
from autotune.display.worker_table import failures_line, format_speed, workers_table
from autotune.errors import StorageError, StudyError
from autotune.results.report.workers import WorkerRow, failures_by_reason, worker_rows
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import no_retry
from autotune.storage.url import database_path, is_sqlite
from autotune.study.doctor.collect import Snapshot, take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.text import format_clock

#: Seconds between two looks: on a terminal, and where every look is printed below the last one.
EVERY_S = 2.0
EVERY_PLAIN_S = 30.0


@dataclass(frozen=True)
class WatchScreen:
    """What the watch shows.

    Args:
        results: Its results when it was last seen.
        snapshot: The study when it was last seen.
        trouble: Why it cannot be seen now; empty while it can.
    """

    results: StudyResults
    snapshot: Snapshot
    trouble: str = ""

    def updated(self, snapshot: Snapshot) -> WatchScreen:
        """Return what is shown of a later moment."""
        trials, attributes = snapshot.trials, snapshot.attributes
        results = replace(self.results, trials=trials, attributes=attributes)
        return WatchScreen(results, snapshot)

    def draw(self, *, one_line: bool) -> RenderableType:
        """Draw the study: its budget, what is best, why trials failed, a row for each worker."""
        snapshot = self.snapshot
        rows = worker_rows(self.results, snapshot)
        seen = f"{datetime.fromtimestamp(snapshot.moment):%H:%M:%S}"
        parts: list[RenderableType] = [
            Text.assemble((f"study {self.results.name}", "bold"), f"  {seen}"),
            self._budget(),
            Text(f"validation {self.results.objective.label}: {self._scores()}"),
        ]
        if failed := failures_line(failures_by_reason(self.results)):
            parts.append(Text(failed))
        if rows:
            parts.append(workers_table(rows, self.results.objective, one_line=one_line))
            parts += [Text(total)] if (total := _total(rows)) else []
        elif snapshot.ended is None:
            parts.append(Text("no worker runs a trial", style="yellow"))
        if snapshot.ended is not None:
            parts.append(Text(f"ended: {snapshot.ended.text}"))
        if self.trouble:
            away = format_clock(time.time() - snapshot.moment)
            parts.append(Text(f"not seen for {away}: {self.trouble}", style="bold red"))
        return Group(*parts, Text())

    def _budget(self) -> RenderableType:
        snapshot, progress = self.snapshot, self.snapshot.progress
        left = BudgetLeft.from_results(self.results, snapshot.moment)
        words = self.results.describe_progress()
        if snapshot.budget.patience:
            words += f"; {left.since_best} of {snapshot.budget.patience} without a better one"
        if snapshot.budget.device_hours:
            words += f"; {left.device_hours:.3g} of {snapshot.budget.device_hours:g} device-hours"
        seconds = left.seconds(snapshot.moment)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(1.0, left.share_used(progress.finished, snapshot.moment), width=18),
            Text(words),
            Text("" if seconds is None else f"time left {format_clock(seconds)}"),
        )
        return bar

    def _scores(self) -> str:
        results = self.results
        shown = [
            f"{name} {results.format_values(trial)} (trial {trial.number})"
            for name, trial in (("best", results.best), ("baseline", results.baseline))
            if trial is not None
        ]
        return ", ".join(shown) or "no trial is complete yet"


def watch(
    console: Console,
    opened: OpenStudy,
    every_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a study until it ends; while its storage is unavailable, retry.

    Args:
        console: Where to; what is no terminal gets one picture below the other.
        opened: The study.
        every_s: Seconds between two looks.
        sleep: Waits for them.

    Raises:
        StudyError: When the study is deleted meanwhile.
    """
    terminal = console.is_terminal
    pause = every_s or (EVERY_S if terminal else EVERY_PLAIN_S)
    first = poll(opened)
    picture = WatchScreen(StudyResults.from_study(opened.study), first)
    live = Live(console=console, auto_refresh=False) if terminal else None
    context: AbstractContextManager[object] = live or nullcontext()
    with context:
        while True:
            drawn = picture.draw(one_line=terminal)
            if live is not None:
                live.update(drawn, refresh=True)
            else:
                console.print(drawn)
            if picture.snapshot.ended is not None and not picture.snapshot.running:
                return
            sleep(pause)
            try:
                picture = picture.updated(poll(opened))
            except StorageError as error:
                picture = replace(picture, trouble=str(error))


def poll(opened: OpenStudy) -> Snapshot:
    """Look at a study once more.

    Raises:
        StorageError: When its storage is unavailable.
        StudyError: When the storage has the study no more.
    """
    if is_sqlite(opened.url) and not database_path(opened.url).exists():
        # Connecting would make an empty one.
        raise StorageError(f"storage: there is no database {database_path(opened.url)}")
    with storage_errors(opened.url), no_retry():
        try:
            return take_snapshot(opened)
        except KeyError:  # Optuna's, of an id that there is no more
            raise StudyError(f"the study {opened.name!r} was deleted") from None


def _total(rows: tuple[WorkerRow, ...]) -> str:
    """Add up what all workers do."""
    live = [row for row in rows if not row.is_silent and row.epochs_per_s is not None]
    if len(live) < 2:
        return ""
    images = [row.images_per_s for row in live if row.images_per_s is not None]
    epochs = sum(row.epochs_per_s or 0.0 for row in live)
    return f"{len(live)} workers: {format_speed(epochs, sum(images) if images else None)}"
