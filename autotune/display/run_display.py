"""The display of ``autotune run``: redrawn on a terminal, elsewhere lines of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.config.schema import StudyConfig
from autotune.data.progress import COUNTED_STEPS
from autotune.display.console import lines_of_text, open_live
from autotune.display.status import describe_image_progress
from autotune.display.worker_states import WorkerStates, ready_line
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, device_hours_used, stop_reason, trials_since_best
from autotune.text import format_clock, plural

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


#: Limits how often a line is printed about a long step before the study, without a terminal.
IMAGES_INTERVAL_S = 10.0


@dataclass(frozen=True)
class BudgetLeft:
    """What is left of a budget.

    Args:
        device_hours: Device-hours that are used.
        since_best: Trials that ended after the best one.
        running: Trials that run.
        is_over: Whether the study is over.
        moment: When this was so, in seconds of the Unix epoch.
    """

    budget: Budget
    device_hours: float
    since_best: int
    running: int
    is_over: bool
    moment: float

    @staticmethod
    def from_results(results: StudyResults, now: float) -> BudgetLeft:
        """Return what is left of the budget of a study."""
        trials, budget, direction = results.trials, results.budget, results.direction
        running = results.progress.running
        return BudgetLeft(
            budget,
            device_hours_used(trials, now),
            trials_since_best(trials, direction) if budget.patience_trials else 0,
            running,
            not running and stop_reason(trials, budget, direction, now) is not None,
            now,
        )

    def share_used(self, finished: int, now: float) -> float:
        """Return the largest used share of a limit; not of patience, which can start again."""
        if self.is_over:
            return 1.0
        budget = self.budget
        shares = [finished / max(1, budget.trials)]
        if budget.until is not None and budget.timeout:
            shares.append(1 - (budget.until - now) / budget.timeout)
        if budget.device_hours is not None:
            shares.append(self.device_hours / budget.device_hours)
        return min(1.0, max(shares))

    def seconds(self, now: float) -> float | None:
        """Return in how many seconds time or device-hours are used up, if they are limited."""
        budget = self.budget
        ends = [] if budget.until is None else [budget.until]
        if budget.device_hours is not None and self.running:
            unused = 3600 * (budget.device_hours - self.device_hours)
            ends.append(self.moment + unused / self.running)
        return max(0.0, min(ends) - now) if ends else None


def budget_bar(share: float, *texts: str) -> Table:
    """Return a line with a bar of the used share of a budget, and texts."""
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(1.0, share, width=18), *map(Text, texts))
    return line


@dataclass
class RunState:
    """The state of a run, updated from its events."""

    config: StudyConfig
    step: str = "checking the study file, the images and the backbone"
    opened: OpenStudy | None = None
    results: StudyResults | None = None
    progress: attrs.Progress | None = None
    left: BudgetLeft | None = None
    finished_before: int = 0
    workers: WorkerStates = field(default_factory=WorkerStates)
    started: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Name of the study, or of the round of a race before it."""
        return self.opened.name if self.opened is not None else str(self.config.name)

    def update(self, event: dict[str, Any]) -> None:
        """Apply one event."""
        self.workers.update(event)
        match event["event"]:
            case "images":
                self.step = describe_image_progress(event["step"], event["done"], event["total"])
            case "decoding":
                self.step = f"decoding images: {event['done']} of {event['total']}"
            case "opened":
                self.opened, self.progress = event["opened"], event["progress"]
                self.finished_before = event["progress"].finished
                self.started = time.monotonic()
                self.step = "starting workers"
                self._read_results()
            case "stopping":
                self.step = "killing the workers" if event["now"] else "stopping after this batch"
            case "pending":
                workers = plural(event["count"], "worker waits", "workers wait")
                gpus = f", {event['gpus']:g} GPU" if event["gpus"] else ""
                self.step = (
                    f"{workers} for room in the Ray cluster: {event['cpus']} CPU{gpus} each"
                )
            case "race_step":
                self.step = event["text"]
            case "closing_loggers":
                self.step = f"waiting for the loggers: {', '.join(event['names'])}"
            case "ready":
                self.step = ""
            case "end":
                self._read_results()

    def _read_results(self) -> None:
        assert self.opened is not None
        self.results = StudyResults.from_study(self.opened.study)
        self.left = BudgetLeft.from_results(self.results, time.time())
        self.progress = self.results.progress

    def format_time_left(self) -> str:
        """Estimate the time left from the trials of this run and its limits of time."""
        seconds = None
        if self.progress is not None and self.left is not None:
            estimates = [self.left.seconds(time.time())]
            if (done := self.progress.finished - self.finished_before) > 0:
                left = max(0, self.progress.budget - self.progress.finished)  # it was lowered
                estimates.append((time.monotonic() - self.started) / done * left)
            seconds = min((value for value in estimates if value is not None), default=None)
            if self.left.is_over:
                seconds = 0.0
        return f"time left {format_clock(seconds)}"

    def share_used(self) -> float:
        """Return how much of the budget is used, from 0 to 1."""
        if self.progress is None or self.left is None:
            return 0.0
        return self.left.share_used(self.progress.finished, time.time())

    def describe_scores(self) -> str:
        """Return the best value and that of the baseline."""
        results = self.results
        has_infeasible = self.progress is not None and self.progress.infeasible > 0
        if results is None or not (results.best or results.baseline or has_infeasible):
            return "no trial finished yet"
        text = "none within limits"
        if best := results.best:
            text = f"best {results.format_values(best)} (trial {best.number})"
        baseline = results.baseline
        return f"{text}, baseline {results.format_values(baseline)}" if baseline else text

    def format_value(self, value: float | None) -> str:
        """Write a value of the objective; empty if there is none."""
        if value is None or self.results is None:
            return ""
        return self.results.objective.format_value(value)

    def describe_counts(self) -> str:
        """Return how many trials finished, were pruned and failed."""
        progress = self.progress
        if progress is None:
            return ""
        infeasible = f"{progress.infeasible} infeasible, " if progress.infeasible else ""
        # A budget that was lowered later is no whole.
        whole = f"/{progress.budget}" if progress.budget >= progress.finished else ""
        text = (
            f"{progress.finished}{whole} finished, {progress.pruned} pruned, "
            f"{infeasible}{progress.failed} failed"
        )
        if self.left is not None and (patience := self.left.budget.patience_trials):
            text += f", {self.left.since_best}/{patience} without a better one"
        return text

    def notices(self, event: dict[str, Any]) -> list[str]:
        """Return the lines about an event that stay on the screen."""
        match event["event"]:
            case "notes":
                return list(event["notes"])
            case "warning":
                return [f"warning: {event['text']}"]
            case "images_skipped":
                return [
                    f"{plural(event['count'], 'image was', 'images were')} added after the study "
                    "was made and will not be used"
                ]
            case "race":
                return list(event["lines"])
            case "opened":
                before, study = event["progress"], event["opened"].study
                is_old = before.finished or before.retried or before.running
                if is_old or event.get("is_round"):  # of a race: the study says it
                    return []
                texts = attrs.image_counts(study.user_attrs)
                texts += attrs.image_warnings(study.user_attrs)
                return [*attrs.describe_warm_start(study), *dict.fromkeys(texts)]
        return self.workers.notices(event)


def draw(state: RunState) -> RenderableType:
    """Draw the study: a bar, the scores, a row per worker."""
    objective = state.results.objective if state.results else None
    parts: list[RenderableType] = [Text(f"study {state.name}", style="bold")]
    if state.progress is not None:
        parts += [
            budget_bar(state.share_used(), state.describe_counts(), state.format_time_left()),
            Text(f"validation {objective.label if objective else ''}: {state.describe_scores()}"),
        ]
    if state.step:
        parts.append(Text(state.step, style="dim"))
    if state.workers.rows:
        # An empty line for the ^C that a terminal writes: it would make a full line two lines,
        # and the next drawing would not cover them.
        parts += [state.workers.table(objective), Text()]
    return Group(*parts)


class _RunDisplay:
    """Shows events: redraws on a terminal, elsewhere prints lines about them."""

    def __init__(self, state: RunState, console: Console, live: Live | None) -> None:
        self._state = state
        self._console = console
        self._live = live
        self._decoded_share = 0.0
        self._images_step = ""
        self._images_shown = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        state = self._state
        state.update(event)
        lines = state.notices(event)
        if self._live is None and (line := self._plain_line(event)):
            lines.insert(0, line)
        if lines:
            self._console.print(lines_of_text("\n".join(lines)), highlight=False)
        if self._live is not None:
            self._live.update(draw(state), refresh=True)

    def _plain_line(self, event: dict[str, Any]) -> str:
        state = self._state
        match event["event"]:
            case "images":
                return self._images_line(event["step"])
            case "decoding":
                share = event["done"] / max(1, event["total"])
                if share - self._decoded_share < 0.25:
                    return ""
                self._decoded_share = share
                return state.step
            case "opened":
                counts = state.describe_counts()
                return f"study {state.name}: {counts}; {state.describe_scores()}"
            case "ready":
                return ready_line(event)
            case "end":
                value = state.format_value(event["value"])
                return " | ".join(
                    (
                        f"trial {event['trial']}: {event['state']} {value}".rstrip(),
                        state.workers.rows[event["worker"]].plan,
                        state.describe_scores(),
                        state.describe_counts(),
                        state.format_time_left(),
                    )
                )
            case "stopping" | "pending":
                return state.step
        return ""

    def _images_line(self, step: str) -> str:
        """Return the name of a new step, unless it is short, and its progress at intervals."""
        now = time.monotonic()
        if step != self._images_step:
            self._images_step, self._images_shown = step, now
            return "" if step in COUNTED_STEPS else step
        if now - self._images_shown <= IMAGES_INTERVAL_S:
            return ""
        self._images_shown = now
        return self._state.step


@contextmanager
def make_view(console: Console, config: StudyConfig) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield the callback that shows the events of a run."""
    state = RunState(config)
    if not console.is_terminal:
        console.print(Text(f"study {config.name}: {state.step}"))
    with open_live(console, renderable=draw(state), transient=True) as live:
        yield _RunDisplay(state, console, live)
