"""How far a download is, at the terminal: a bar, or a line for each step without one."""

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
def download_progress(shown: Console) -> Iterator[ProgressCallback]:
    """Show steps until the block ends.

    Args:
        shown: Where.

    Yields:
        What is to be told of each step: in bytes, or in nothing where only its name counts.
    """
    if not shown.is_terminal:
        yield _Lines(shown)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=shown, transient=True) as bars:
        yield _Bar(bars)


class _Lines:
    """Prints the name of each step once."""

    def __init__(self, shown: Console) -> None:
        self._shown = shown
        self._last = ""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step != self._last:
            self._last = step
            self._shown.print(step, highlight=False, markup=False, soft_wrap=True)


class _Bar:
    """Draws a bar for the step that goes on; notes without bytes are printed above it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None, visible=False)
        self._step = ""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if not done and total is None:
            self._bars.console.print(step, highlight=False, markup=False)
            return
        if step != self._step:
            self._bars.remove_task(self._task)
            self._task, self._step = self._bars.add_task(step, total=total), step
        self._bars.update(self._task, completed=done, total=total)
