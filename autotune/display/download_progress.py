"""The progress of a download: a bar on a terminal, elsewhere a line for each step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from autotune.data.progress import ProgressCallback


@contextmanager
def download_progress(console: Console) -> Iterator[ProgressCallback]:
    """Show the progress of a download until the block ends.

    Yields:
        A callback for steps counted in bytes; a step without bytes is printed as a line.
    """
    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    last_step = ""

    def on_progress(step: str, done: int, total: int | None) -> None:
        nonlocal last_step
        is_new, last_step = step != last_step, step
        if bars.disable or (not done and total is None):
            if is_new:
                console.print(step, highlight=False, markup=False, soft_wrap=True)
            return
        if is_new or not bars.task_ids:
            for task in bars.task_ids:
                bars.remove_task(task)
            bars.add_task(step, total=total)
        bars.update(bars.task_ids[0], completed=done, total=total)

    with bars:
        yield on_progress
