"""A spinner on a terminal; where there is none, lines of text about a long job."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from autotune.data.progress import COUNTED_STEPS
from autotune.text import format_clock, visible

#: Seconds between two lines without a terminal; a job that is shorter prints none.
LINE_INTERVAL_S = 30.0


class PlainStatus(Status):
    """A spinner whose texts are not markup; rich parses every string.

    Where its console is no terminal, the text is printed to standard error at intervals, also
    while nothing is reported: a log shows that the job is alive, and how long it will take.
    """

    def __init__(self, status: RenderableType, *, console: Console, **options: Any) -> None:
        text = Text(status) if isinstance(status, str) else status
        super().__init__(text, console=console, **options)
        self._text = str(status)
        self._has_lines = not console.is_terminal and not console.quiet
        self._began_s = self._step_began_s = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> PlainStatus:
        self.start()
        return self

    def start(self) -> None:
        """Show it, until :meth:`stop`."""
        super().start()
        if self._has_lines:
            threading.Thread(target=self._print_lines, daemon=True).start()

    def stop(self) -> None:
        """Take it away."""
        self._ended.set()
        super().stop()

    def update(
        self, status: RenderableType | None = None, *, line: str = "", **options: Any
    ) -> None:
        """Show another text, or a drawing with the ``line`` that says the same in words."""
        if status is not None:
            self._text = line or str(status)
        super().update(Text(status) if isinstance(status, str) else status, **options)

    def begin(self) -> None:
        """Let the time of what :meth:`progress` reports begin now."""
        self._step_began_s = time.monotonic()

    def progress(self, text: str, done: float, left: float) -> None:
        """Show a text with the time that is left.

        Args:
            text: What is done.
            done: Work that was done since :meth:`begin`, in any unit.
            left: Work that is left, in the same unit.
        """
        elapsed_s = time.monotonic() - self._step_began_s
        left_s = elapsed_s / done * left if done else None
        self.update(f"{text}, time left {format_clock(left_s)}")

    def on_progress(self, step: str, done: int, total: int | None) -> None:
        """Show the progress of images that are downloaded or opened."""
        self.update(describe_image_progress(step, done, total))

    def _print_lines(self) -> None:
        while not self._ended.wait(LINE_INTERVAL_S):
            spent = format_clock(time.monotonic() - self._began_s)
            text = visible(self._text).replace("\n", "\\n")  # a name cannot begin a line
            sys.stderr.write(f"{spent} {text}\n")
            sys.stderr.flush()


def describe_image_progress(step: str, done: int, total: int | None) -> str:
    """Describe how far images are downloaded or opened.

    Numbers are bytes, or images in the steps of ``COUNTED_STEPS``; 0 names the step alone.
    """
    if not done:
        return step
    scale, unit = (1, "") if step in COUNTED_STEPS else (1e6, " MB")
    counts = " of ".join(f"{n / scale:,.0f}" for n in (done, total) if n is not None)
    return f"{step}: {counts}{unit}"
