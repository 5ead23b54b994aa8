"""What ``autotune run`` shows while a study runs: a live view, or lines without a terminal."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.config.schema import StudyConfig
from autotune.data.progress import COUNTED_STEPS
from autotune.display.console import describe_image_progress, lines_of_text
from autotune.errors import UserError
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, device_hours_used, stop_reason, trials_since_best
from autotune.text import format_clock

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


#: Without a terminal, how often a line says how far a long step before the study is.
IMAGES_SHOWN_S = 10.0
#: Events that tell of the end of a worker.
_ENDS = ("exit", "worker_unhealthy", "no_device")
#: The state of a worker whose GPU cannot be used.
_NO_DEVICE = "its GPU cannot be used"


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


@dataclass(frozen=True)
class BudgetLeft:
    """What is left of a budget.

    Args:
        budget: The budget.
        device_hours: Device-hours that are used.
        since_best: Trials that ended after the best one.
        running: Trials that run.
        over: Whether the study is.
        moment: When this was so, in seconds of the Unix epoch.
    """

    budget: Budget
    device_hours: float
    since_best: int
    running: int
    over: bool
    moment: float

    @staticmethod
    def from_results(results: StudyResults, now: float) -> BudgetLeft:
        """Return what is left of the budget of a study."""
        trials, budget, direction = results.trials, results.budget, results.direction
        running = results.progress.running
        return BudgetLeft(
            budget,
            device_hours_used(trials, now),
            trials_since_best(trials, direction) if budget.patience else 0,
            running,
            not running and stop_reason(trials, budget, direction, now) is not None,
            now,
        )

    def share_used(self, finished: int, now: float) -> float:
        """Return the largest share of a budget that is used; patience starts over again."""
        if self.over:
            return 1.0
        budget = self.budget
        shares = [finished / max(1, budget.trials)]
        if budget.until is not None and budget.timeout:
            shares.append(1 - (budget.until - now) / budget.timeout)
        if budget.device_hours is not None:
            shares.append(self.device_hours / budget.device_hours)
        return min(1.0, max(shares))

    def seconds(self, now: float) -> float | None:
        """Return after how many seconds time or device-hours are used up, if they limit."""
        budget = self.budget
        ends = [] if budget.until is None else [budget.until]
        if budget.device_hours is not None and self.running:
            unused = 3600 * (budget.device_hours - self.device_hours)
            ends.append(self.moment + unused / self.running)
        return max(0.0, min(ends) - now) if ends else None


@dataclass
class RunState:
    """What has happened so far; both views draw from it."""

    config: StudyConfig
    step: str = "checking the study file, the images and the backbone"
    opened: OpenStudy | None = None
    results: StudyResults | None = None
    progress: attrs.Progress | None = None
    left: BudgetLeft | None = None
    finished_before: int = 0
    stopping: bool = False
    workers: dict[int, _Worker] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def update(self, event: dict[str, Any]) -> None:
        """Take in one event."""
        kind = event["event"]
        if kind == "images":
            self.step = describe_image_progress(event["step"], event["done"], event["total"])
        elif kind == "decoding":
            self.step = f"decoding images: {event['done']} of {event['total']}"
        elif kind == "opened":
            self.opened, self.progress = event["opened"], event["progress"]
            self.finished_before = event["progress"].finished
            self.started = time.monotonic()
            self.step = "starting workers"
            self.workers = {index: _Worker() for index in range(event["workers"])}
            self._read_scores()
        elif kind == "error" and event["exit_code"] == UserError.exit_code:
            self.stopping = True  # the message says it all
        elif kind == "stopping":
            self.stopping = True
            self.step = "killing the workers" if event["now"] else "stopping after this batch"
        elif kind == "pending":
            workers = f"{event['count']} workers wait" if event["count"] > 1 else "1 worker waits"
            takes = f"{event['cpus']} CPU" + (f", {event['gpus']:g} GPU" if event["gpus"] else "")
            self.step = f"{workers} for room in the Ray cluster: {takes} each"
        elif "worker" in event:
            self._update_worker(self.workers.setdefault(event["worker"], _Worker()), event)

    def _update_worker(self, worker: _Worker, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "ready":
            worker.device, worker.state = _device(event), "ready"
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
        elif kind == "waiting":
            worker.state = "waiting for the other trials"
        elif kind == "no_device":
            worker.state = _NO_DEVICE
        elif kind == "exit" and worker.state != _NO_DEVICE:
            worker.state = "replaced" if event.get("replaced") else "ended"

    def _read_scores(self) -> None:
        assert self.opened is not None
        self.results = StudyResults.from_study(self.opened.study)
        self.left = BudgetLeft.from_results(self.results, time.time())
        self.progress = self.results.progress

    def time_left_s(self) -> float | None:
        """Estimate the time left from the trials of this run, and from its limits of time."""
        if self.progress is None or self.left is None:
            return None
        if self.left.over:
            return 0.0
        estimates = [self.left.seconds(time.time())]
        done = self.progress.finished - self.finished_before
        if done > 0:
            left = self.progress.budget - self.progress.finished
            estimates.append((time.monotonic() - self.started) / done * left)
        return min((one for one in estimates if one is not None), default=None)

    def share_used(self) -> float:
        """Return how much of the budget is used, from 0 to 1."""
        if self.progress is None or self.left is None:
            return 0.0
        return self.left.share_used(self.progress.finished, time.time())

    def scores(self) -> str:
        """Say what is best, against the baseline."""
        results = self.results
        best = results.best if results is not None else None
        baseline = results.baseline if results is not None else None
        beyond = self.progress is not None and self.progress.infeasible > 0
        if results is None or not (best or baseline or beyond):
            return "no trial finished yet"
        text = "none within limits"
        if best is not None:
            text = f"best {results.format_values(best)} (trial {best.number})"
        return f"{text}, baseline {results.format_values(baseline)}" if baseline else text

    def show(self, value: float | None) -> str:
        """Write a value of the objective; empty while there is none."""
        if value is None or self.results is None:
            return ""
        return self.results.objective.format_value(value)

    def obituary(self, event: dict[str, Any]) -> str:
        """Say how a worker died, and what its log says; nothing when it was told to end."""
        if event["event"] == "worker_unhealthy":
            return (
                f"worker {event['worker']} dies at everything and is not started again; its log "
                f"is {event['log']}"
            )
        if event["event"] == "no_device":
            return f"worker {event['worker']} is not started again: {event['message']}"
        code = event["code"]
        told = event["worker"] in self.workers and (
            self.workers[event["worker"]].state == _NO_DEVICE
        )
        if code == 0 or self.stopping or told:
            return ""
        if code is None:
            how = "was lost"
        elif code < 0:
            how = f"was killed ({signal.Signals(-code).name})"
        else:
            how = f"died (exit code {code})"
        replaced = " and is replaced" if event.get("replaced") else ""
        lines = [f"    {line}" for line in event.get("lines", ())]
        if lines:
            return "\n".join([f"worker {event['worker']} {how}{replaced}; its log ends:", *lines])
        return f"worker {event['worker']} {how}{replaced}"

    def start(self, event: dict[str, Any]) -> list[str]:
        """Say once, before the first trial, what is taken from other studies, and of images."""
        before, study = event["progress"], event["opened"].study
        if before.finished or before.retried or before.running:
            return []
        return [*attrs.describe_warm_start(study), *attrs.image_warnings(study.user_attrs)]

    def left_out(self, event: dict[str, Any]) -> str:
        """Say that a data set has grown since its study was made."""
        count = event["count"]
        came = "1 image has" if count == 1 else f"{count:,} images have"
        return f"{came} come since the study was made and {'is' if count == 1 else 'are'} left out"

    def counts(self) -> str:
        """Say how many trials ended how."""
        progress = self.progress
        if progress is None:
            return ""
        text = (
            f"{progress.finished}/{progress.budget} finished, {progress.pruned} pruned, "
            + (f"{progress.infeasible} infeasible, " if progress.infeasible else "")
            + f"{progress.failed} failed"
        )
        if self.left is not None and self.left.budget.patience:
            text += f", {self.left.since_best}/{self.left.budget.patience} without a better one"
        return text


def _device(event: dict[str, Any]) -> str:
    """Name the device of a worker as short as tells it from the others."""
    gpu = str(event.get("gpu", "")).partition(" (")[0]
    return f"{event['device'].removeprefix('NVIDIA ')} {gpu}".strip()


class LiveView:
    """Redraws one picture of the study in place."""

    def __init__(self, state: RunState, live: Live) -> None:
        self._state = state
        self._live = live

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event and redraw."""
        self._state.update(event)
        if event["event"] in _ENDS and (line := self._state.obituary(event)):
            self._live.console.print(lines_of_text(line), highlight=False)
        if event["event"] == "images_skipped":
            self._live.console.print(Text(self._state.left_out(event)))
        if event["event"] == "opened":
            for line in self._state.start(event):
                self._live.console.print(Text(line))
        self._live.update(draw(self._state), refresh=True)


def draw(state: RunState) -> RenderableType:
    """Draw the study: a bar, the scores, a row per worker."""
    objective = state.results.objective.label if state.results else ""
    parts: list[RenderableType] = [Text(f"study {state.config.name}", style="bold")]
    if state.progress is not None:
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(1.0, state.share_used(), width=18),
            Text(state.counts()),
            Text(f"time left {format_clock(state.time_left_s())}"),
        )
        parts += [bar, Text(f"validation {objective}: {state.scores()}")]
    if state.step:
        parts.append(Text(state.step, style="dim"))
    if state.workers:
        table = Table("worker", "trial", "epoch", objective, "plan", box=None)
        for index, worker in state.workers.items():
            busy = worker.state == "training"
            table.add_row(
                f"{index} {worker.device}",
                "" if worker.trial is None else str(worker.trial),
                f"{worker.epoch}/{worker.epochs}" if worker.epochs else "",
                state.show(worker.value),
                Text(worker.plan if busy else worker.state, overflow="ellipsis", no_wrap=True),
            )
        # An empty line for the ^C that a terminal writes: a full line that it made longer would
        # be two, and the next picture would not cover them.
        parts += [table, Text()]
    return Group(*parts)


class PlainView:
    """Prints a line when something is worth one."""

    def __init__(self, state: RunState, console: Console) -> None:
        self._state = state
        self._console = console
        self._told = 0.0
        self._images_step = ""
        self._images_shown = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Take in one event and print what is worth a line."""
        self._state.update(event)
        line = self._line(event)
        if line:
            self._console.print(lines_of_text(line))

    def _line(self, event: dict[str, Any]) -> str:
        state = self._state
        kind = event["event"]
        if kind == "images":
            return self._images_line(event["step"])
        if kind == "decoding":
            share = event["done"] / max(1, event["total"])
            if share - self._told < 0.25:
                return ""
            self._told = share
            return state.step
        if kind == "images_skipped":
            return state.left_out(event)
        if kind == "opened":
            line = f"study {state.config.name}: {state.counts()}; {state.scores()}"
            return "\n".join([line, *state.start(event)])
        if kind == "ready":
            on = ", ".join(event[key] for key in ("device", "gpu") if event.get(key))
            return f"worker {event['worker']} is ready on {on}"
        if kind == "end":
            worker = state.workers[event["worker"]]
            ended = f"{event['state']} {state.show(event['value'])}".strip()
            return (
                f"trial {event['trial']}: {ended} | {worker.plan} | {state.scores()} | "
                f"{state.counts()} | time left {format_clock(state.time_left_s())}"
            )
        if kind in _ENDS:
            return state.obituary(event)
        return state.step if kind in ("stopping", "pending") else ""

    def _images_line(self, step: str) -> str:
        """Say what begins, unless it is mostly over at once, and now and then how far it is."""
        now = time.monotonic()
        if step != self._images_step:
            self._images_step, self._images_shown = step, now
            return "" if step in COUNTED_STEPS else step
        if now - self._images_shown <= IMAGES_SHOWN_S:
            return ""
        self._images_shown = now
        return self._state.step


@contextmanager
def make_view(console: Console, config: StudyConfig) -> Iterator[View]:
    """Make the view that fits the console."""
    state = RunState(config)
    if not console.is_terminal:
        console.print(Text(f"study {config.name}: {state.step}"))
        yield PlainView(state, console)
        return
    with Live(draw(state), console=console, auto_refresh=False, transient=True) as live:
        yield LiveView(state, live)
