"""Workers inside of this process: everything of them but the start of a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autotune.results.evaluation import model_card, refit
from autotune.study.engine import launcher, trainings
from autotune.study.engine.pool import Job, worker_name
from autotune.study.engine.worker import run_worker
from autotune.study.engine.worker_process import run_worker_reporting_errors
from autotune.study.setup.opening import OpenStudy
from autotune.study.trial import run as trial_run
from autotune.study.trial.run import EventCallback

Event = dict[str, Any]


@contextmanager
def plots_not_drawn() -> Iterator[None]:
    """Store a dot for each plot: to draw them takes as long as a small training.

    ``test_plots.py`` and one refit of ``results/evaluation/test_refit.py`` draw them.
    """

    def dot(name: str = "") -> Callable[..., Path]:
        def draw(folder: Path, *_: object) -> Path:
            path = folder / name
            Image.new("L", (1, 1)).save(path)
            return path

        return draw

    with pytest.MonkeyPatch.context() as patch:
        for module in (trial_run, refit):
            patch.setattr(module, "draw_curve", dot("learning_curve.png"))
            patch.setattr(module, "draw_confusion", dot("confusion_matrix.png"))
        patch.setattr(model_card, "_draw_reliability", dot())
        yield


def failing(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises an error, whatever it gets."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def job(handle: OpenStudy, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "study": handle.name,
        "storage": handle.url,
        "files": None,
        "worker": "host/1/0",
        "index": 0,
        "workers": 1,
        "threads": 1,
        "log": "here",
    }
    return Job(**{**values, **changes})


def run(
    handle: OpenStudy, until: Callable[[Event], object] = lambda event: None, **changes: Any
) -> list[Event]:
    """Run a worker to the end of its study; return its events.

    Args:
        handle: The study.
        until: Called with every event; a true result stops the worker.
        changes: Changes of its job.
    """
    events: list[Event] = []
    stop = threading.Event()

    def on_event(event: Event) -> None:
        events.append(event)
        if until(event):
            stop.set()

    with plots_not_drawn():
        run_worker(job(handle, **changes), stop, on_event)
    return events


class InlineBackend:
    """Workers as threads, which take turns: one at a time loads its backbone or trains.

    Torch's random numbers and its number of threads belong to the process, so that a value does
    not depend on what another worker computes.
    """

    restarts = False
    threads = 1

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._threads: dict[str, threading.Thread] = {}
        self._stop = threading.Event()
        self._turn = threading.Lock()

    def prepare(self) -> None:
        pass

    check = prepare

    def start(self, slot: int, job: Job, on_event: EventCallback) -> None:
        index = len(self._threads)
        name = worker_name(os.getpid(), index)
        job = replace(job, worker=name, index=index, gpu="")
        thread = threading.Thread(target=self._run, args=(slot, job, on_event), daemon=True)
        self._threads[name] = thread
        thread.start()

    def _run(self, slot: int, job: Job, on_event: EventCallback) -> None:
        has_turn = self._turn.acquire()

        def pass_on(event: dict[str, Any]) -> None:
            nonlocal has_turn
            if event["event"] == "start" and not has_turn:
                has_turn = self._turn.acquire()
            elif event["event"] in ("ready", "end") and has_turn:
                self._turn.release()
                has_turn = False
            on_event({**event, "worker": slot})

        try:
            code = run_worker_reporting_errors(job, self._stop, pass_on)
        finally:
            if has_turn:
                self._turn.release()
        on_event({"event": "exit", "worker": slot, "code": code, "lines": []})

    def is_gone(self, worker: str) -> bool:
        return worker in self._threads and not self._threads[worker].is_alive()

    def stop(self) -> None:
        self._stop.set()

    kill = stop

    def close(self) -> None:
        self.stop()
        for thread in self._threads.values():
            thread.join()


@contextmanager
def inline_backend(
    _devices: Sequence[str], slots: int, _threads: int | None = None
) -> Iterator[InlineBackend]:
    backend = InlineBackend(slots)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def workers_inline() -> Iterator[None]:
    """Run the workers of every study that is launched in this process as threads."""
    with plots_not_drawn(), pytest.MonkeyPatch.context() as patch:
        for module in (launcher, trainings):
            patch.setattr(module, "local_backend", inline_backend)
        yield
