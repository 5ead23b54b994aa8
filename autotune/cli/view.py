"""What ``autotune run`` shows while a study runs: a live view, or lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.cli.summary import score
from autotune.config import StudyConfig
from autotune.study import record
from autotune.study.opening import OpenStudy


class View(Protocol):
    """Listens to a launcher."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event."""


@dataclass
class _Worker:
    device: str = ""
    trial: int | None = None
    plan: str = ""
    epoch: int = 0
    epochs: int = 0
    value: float | None = None
    state: str = "starting"


@dataclass
class State:
    """What has happened so far; both views draw from it."""

    config: StudyConfig
    step: str = "checking the study file, the images and the backbone"
    opened: OpenStudy | None = None
    progress: record.Progress | None = None
    finished_before: int = 0
    baseline: float | None = None
    best: float | None = None
    best_trial: int | None = None
    workers: dict[int, _Worker] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def update(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        kind = event["event"]
        if kind == "decoding":
            self.step = f"decoding images: {event['done']} of {event['total']}"
        elif kind == "opened":
            self.opened, self.progress = event["opened"], event["progress"]
            self.finished_before = event["progress"].finished
            self.started = time.monotonic()
            self.step = "starting workers"
            self.workers = {index: _Worker() for index in range(event["workers"])}
            self._read_scores()
        elif kind == "stopping":
            self.step = "killing the workers" if event["now"] else "stopping after this batch"
        elif "worker" in event:
            self._update_worker(self.workers.setdefault(event["worker"], _Worker()), event)

    def _update_worker(self, worker: _Worker, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            worker.device, worker.state = event["device"], "ready"
            self.step = ""
        elif kind == "start":
            worker.trial, worker.plan = event["trial"], event["plan"]
            worker.epoch, worker.value, worker.state = 0, None, "training"
        elif kind == "epoch":
            worker.epoch, worker.epochs = event["epoch"], event["epochs"]
            worker.value = event["value"]
        elif kind == "end":
            worker.state = event["state"]
            self._read_scores()
        elif kind == "exit":
            worker.state = "replaced" if event.get("replaced") else "ended"

    def _read_scores(self) -> None:
        assert self.opened is not None
        study = self.opened.study
        trials = study.get_trials(deepcopy=False)
        self.progress = record.progress_of(trials, self.config.search.trials)
        baseline = record.baseline_of(trials)
        best = record.best_of(trials, study.direction)
        self.baseline = baseline.value if baseline else None
        self.best, self.best_trial = (best.value, best.number) if best else (None, None)

    def time_left_s(self) -> float | None:
        """Estimate the time left from the trials of this run."""
        if self.progress is None:
            return None
        done = self.progress.finished - self.finished_before
        if done < 1:
            return None
        left = self.progress.budget - self.progress.finished
        return (time.monotonic() - self.started) / done * left

    def scores(self) -> str:
        """Say what is best, against the baseline."""
        if self.best is None:
            return "no trial finished yet"
        text = f"best {score(self.best)} (trial {self.best_trial})"
        return f"{text}, baseline {score(self.baseline)}" if self.baseline is not None else text

    def counts(self) -> str:
        """Say how many trials ended how."""
        progress = self.progress
        if progress is None:
            return ""
        return (
            f"{progress.finished}/{progress.budget} finished, {progress.pruned} pruned, "
            f"{progress.failed} failed"
        )


def duration(seconds: float | None) -> str:
    """Write a duration as minutes and seconds."""
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class LiveView:
    """Redraws one picture of the study in place."""

    def __init__(self, state: State, live: Live) -> None:
        self._state = state
        self._live = live

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event and redraw."""
        self._state.update(event)
        if event["event"] == "exit" and event.get("code"):
            self._live.console.print(f"worker {event['worker']} died (exit code {event['code']})")
        self._live.update(draw(self._state), refresh=True)


def draw(state: State) -> RenderableType:
    """Draw the study: a bar, the scores, a row per worker."""
    objective = state.config.training.objective.replace("_", " ")
    parts: list[RenderableType] = [Text(f"study {state.config.name}", style="bold")]
    if state.progress is not None:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(state.progress.budget, state.progress.finished, width=40),
            Text(state.counts()),
            Text(f"time left {duration(state.time_left_s())}"),
        )
        parts += [bar, Text(f"validation {objective}: {state.scores()}")]
    if state.step:
        parts.append(Text(state.step, style="dim"))
    if state.workers:
        table = Table("worker", "trial", "epoch", "score", "plan", box=None)
        for index, worker in state.workers.items():
            busy = worker.state == "training"
            table.add_row(
                f"{index} {worker.device}",
                "" if worker.trial is None else str(worker.trial),
                f"{worker.epoch}/{worker.epochs}" if worker.epochs else "",
                score(worker.value),
                Text(worker.plan if busy else worker.state, overflow="ellipsis", no_wrap=True),
            )
        parts.append(table)
    return Group(*parts)


class PlainView:
    """Prints a line when something is worth one."""

    def __init__(self, state: State, console: Console) -> None:
        self._state = state
        self._console = console
        self._decoded = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event and print what is worth a line."""
        self._state.update(event)
        line = self._line(event)
        if line:
            self._console.print(Text(line))

    def _line(self, event: dict[str, Any]) -> str:
        state = self._state
        kind = event["event"]
        if kind == "checking":
            return f"study {state.config.name}: {state.step}"
        if kind == "decoding":
            share = event["done"] / max(1, event["total"])
            if share - self._decoded < 0.25:
                return ""
            self._decoded = share
            return state.step
        if kind == "opened":
            return f"study {state.config.name}: {state.counts()}; {state.scores()}"
        if kind == "ready":
            return f"worker {event['worker']} is ready on {event['device']}"
        if kind == "end":
            worker = state.workers[event["worker"]]
            ended = f"{event['state']} {score(event['value'])}".strip()
            return (
                f"trial {event['trial']}: {ended} | {worker.plan} | {state.scores()} | "
                f"{state.counts()} | time left {duration(state.time_left_s())}"
            )
        if kind == "exit" and event["code"]:
            return f"worker {event['worker']} died (exit code {event['code']})"
        if kind == "stopping":
            return state.step
        return ""


@contextmanager
def make_view(console: Console, config: StudyConfig) -> Iterator[View]:
    """Make the view that fits the console."""
    state = State(config)
    if not console.is_terminal:
        yield PlainView(state, console)
        return
    with Live(draw(state), console=console, auto_refresh=False, transient=True) as live:
        yield LiveView(state, live)
