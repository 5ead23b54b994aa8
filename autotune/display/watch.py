"""``autotune status --watch``: a running study, from any machine that reaches its storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autotune.display.console import open_live
from autotune.display.run_display import BudgetLeft, budget_bar
from autotune.display.worker_table import WorkersTable, format_failures, format_speed
from autotune.errors import StorageError, StudyError
from autotune.results.report.workers import WorkerRow, failures_by_reason, worker_rows
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import no_retry
from autotune.study.doctor.collect import Snapshot, take_snapshot
from autotune.study.setup.opening import OpenStudy
from autotune.text import format_clock

#: Seconds between two reads of a study: on a terminal, and where each is printed below the last.
INTERVAL_S = 2.0
PLAIN_INTERVAL_S = 30.0


@dataclass(frozen=True)
class StudyView:
    """A study at one moment.

    Args:
        trouble: Why the study cannot be read now; empty if it can.
    """

    results: StudyResults
    snapshot: Snapshot
    trouble: str = ""

    def render(self, *, one_line: bool) -> RenderableType:
        """Return the budget, the best trial, the failures and a row for each worker."""
        return Group(*self._lines(one_line), Text())

    def _lines(self, one_line: bool) -> Iterator[RenderableType]:
        results, snapshot = self.results, self.snapshot
        rows = worker_rows(results, snapshot)
        time_of_day = f"{datetime.fromtimestamp(snapshot.moment):%H:%M:%S}"
        yield Text.assemble((f"study {results.name}", "bold"), f"  {time_of_day}")
        yield self._budget()
        scores = ", ".join(
            f"{name} {results.format_values(trial)} (trial {trial.number})"
            for name, trial in (("best", results.best), ("baseline", results.baseline))
            if trial is not None
        )
        yield Text(f"validation {results.objective.label}: {scores or 'no trial is complete yet'}")
        if failures := format_failures(failures_by_reason(results)):
            yield Text(failures)
        if rows:
            yield WorkersTable(rows, results.objective, one_line=one_line)
            if total := _total_speed(rows):
                yield Text(total)
        elif snapshot.ended is None:
            yield Text("no worker runs a trial", style="yellow")
        if snapshot.ended is not None:
            is_request = snapshot.ended.is_request
            yield Text(f"{'' if is_request else 'ended: '}{snapshot.ended.text}")
        if self.trouble:
            age = format_clock(time.time() - snapshot.moment)
            yield Text(f"not read for {age}: {self.trouble}", style="bold red")

    def _budget(self) -> RenderableType:
        snapshot, budget = self.snapshot, self.snapshot.budget
        left = BudgetLeft.from_results(self.results, snapshot.moment)
        text = self.results.describe_progress()
        if budget.patience_trials:
            text += f"; {left.since_best} of {budget.patience_trials} without a better one"
        if budget.device_hours:
            text += f"; {left.device_hours:.3g} of {budget.device_hours:g} device-hours"
        share = left.share_used(snapshot.progress.finished, snapshot.moment)
        seconds = left.seconds(snapshot.moment)
        return budget_bar(
            share, text, "" if seconds is None else f"time left {format_clock(seconds)}"
        )


def watch(
    console: Console,
    opened: OpenStudy,
    interval_s: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a study until it ends; while its storage is unavailable, retry.

    A terminal is redrawn; elsewhere every state is printed below the last one.

    Raises:
        StudyError: When the study is deleted.
    """
    interval_s = interval_s or (INTERVAL_S if console.is_terminal else PLAIN_INTERVAL_S)
    snapshot = poll(opened)
    view = StudyView(StudyResults.from_study(opened.study), snapshot)
    with open_live(console) as live:
        while True:
            drawing = view.render(one_line=live is not None)
            if live is None:
                console.print(drawing)
            else:
                live.update(drawing, refresh=True)
            if view.snapshot.ended is not None and not view.snapshot.running:
                return
            sleep(interval_s)
            try:
                snapshot = poll(opened)
            except StorageError as error:
                view = replace(view, trouble=str(error))
                continue
            trials, attributes = snapshot.trials, snapshot.attributes
            results = replace(view.results, trials=trials, attributes=attributes)
            view = StudyView(results, snapshot)


def poll(opened: OpenStudy) -> Snapshot:
    """Read a study again.

    Raises:
        StorageError: When its storage is unavailable.
        StudyError: When the study was deleted.
    """
    file = opened.storage.sqlite_file
    if file is not None and not file.is_in_place():
        state = "was replaced; start again to see it" if file.path.exists() else "is not there"
        raise StorageError(f"storage: the database {file.path} {state}")
    with storage_errors(opened.url), no_retry():
        try:
            return take_snapshot(opened)
        except KeyError:  # Optuna's, of an unknown id
            raise StudyError(f"the study {opened.name!r} was deleted") from None


def _total_speed(rows: Sequence[WorkerRow]) -> str:
    active = [row for row in rows if not row.is_silent and row.epochs_per_s is not None]
    if len(active) < 2:
        return ""
    images = [row.images_per_s for row in active if row.images_per_s is not None]
    epochs = sum(row.epochs_per_s or 0.0 for row in active)
    return f"{len(active)} workers: {format_speed(epochs, sum(images) if images else None)}"
