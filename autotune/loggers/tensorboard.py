"""Trials as runs of TensorBoard, with their curves and their hyper-parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.events import EpochEnded, Event, StudyEnded, StudyStarted, TrialEnded, TrialStarted
from autotune.loggers.packages import import_extra
from autotune.storage.paths import StudyPaths


class TensorBoard:
    """Writes a folder for each trial, which ``tensorboard --logdir`` shows.

    Every attempt at a trial continues the folder of the first one.

    Args:
        folder: Folder of the studies; default: ``tensorboard`` among the files of the study.

    Raises:
        UserError: When the package is missing.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        import_extra("tensorboard", "tensorboard")
        self._torch = import_extra("torch.utils.tensorboard", "tensorboard")
        self._summary = import_extra("torch.utils.tensorboard.summary", "tensorboard")
        self._root = None if folder is None else Path(folder)
        self._folder = Path()
        self._objective = ""
        self._trials: dict[int, TrialStarted] = {}
        self._writers: dict[int, Any] = {}

    def __call__(self, event: Event) -> None:
        """Write one event."""
        match event:
            case StudyStarted():
                folder = StudyPaths(event.files).tensorboard(event.study)
                self._folder = self._root / folder.name if self._root else folder
                self._objective = event.objective
            case TrialStarted():
                self._close(event.first)
                self._trials[event.first] = event
            case EpochEnded():
                writer = self._writer(event.first, event.epoch)
                for name, value in event.metrics(self._objective).items():
                    writer.add_scalar(name, value, event.epoch)
                self._flush(event.first)
            case TrialEnded() if event.state != "requeued" and event.first in self._trials:
                self._end(event, self._trials[event.first])
            case TrialEnded():
                self._close(event.first)
            case StudyEnded():
                for first in list(self._writers):
                    self._close(first)

    def _writer(self, first: int, epoch: int | None = None) -> Any:
        """Return the writer of a trial.

        A new one replaces what an earlier attempt has written from the given epoch on: without
        its checkpoint the trial repeats epochs, and the curve would run back.
        """
        if first not in self._writers:
            folder = self._folder / f"trial-{first:04d}"
            purge_step = epoch if folder.exists() else None
            writer = self._torch.SummaryWriter(str(folder), purge_step=purge_step)
            self._writers[first] = writer
            if trial := self._trials.get(first):
                writer.add_text("plan", trial.plan)
        return self._writers[first]

    def _end(self, event: TrialEnded, trial: TrialStarted) -> None:
        writer = self._writer(event.first)
        params = {**trial.params, "state": event.state}
        # Its metrics are the last values of its curves. Nothing describes all trials together:
        # TensorBoard would show the parameters of the first one alone, and others have more.
        _, start, end = self._summary.hparams(params, {})
        writer.file_writer.add_summary(start)
        writer.file_writer.add_summary(end)
        self._flush(event.first)
        self._close(event.first)

    def _flush(self, first: int) -> None:
        """Write to disk what a writer has; drop a writer that cannot."""
        try:
            self._writers[first].flush()
        except BaseException:
            del self._writers[first]
            raise

    def _close(self, first: int) -> None:
        if writer := self._writers.pop(first, None):
            writer.close()
