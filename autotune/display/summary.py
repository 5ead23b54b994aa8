"""The summary of a study at the terminal."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autotune.config.schema import StudyConfig
from autotune.display.console import lines_of_text
from autotune.display.worker_table import failures_line, workers_table
from autotune.results.diagnosis.headline import describe_confirmation, describe_saved_epochs
from autotune.results.figures.greedy_stages import StageRow, stage_rows
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.trial_table import failures
from autotune.results.report.workers import failures_by_reason, worker_rows
from autotune.results.study_results import StudyResults, describe_excess
from autotune.search import ranking
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact
from autotune.study.doctor.collect import take_snapshot
from autotune.study.state import attrs

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy

#: Trials of a Pareto front that the terminal lists.
MAX_FRONT_LINES = 10


def print_summary(console: Console, opened: OpenStudy, *, trained: bool) -> None:
    """Print baseline against best, the picture of the layers, the counts and what to do next.

    Args:
        console: Where to.
        opened: The study.
        trained: Whether there was anything left to train.
    """
    results = StudyResults.from_study(opened.study)
    best, closest = results.best, results.closest_to_feasible
    console.print()
    if not trained and results.stop_reason is not None:
        console.print(
            f"The study {opened.name!r} is over ({results.stop_reason.text}); nothing was "
            "trained.",
            highlight=False,
            markup=False,
        )
    console.print(_table(results))
    if best is not None and (plan := attrs.trial_plan(best)) is not None:
        console.print(lines_of_text(as_text(layer_rows(results.layers_of(best), plan))))
        console.print()
    if stages := stage_rows(results):
        console.print(_stages_table(stages))
    if len(results.front) > 1:
        console.print(_front(results))
    console.print(f"trials: {results.describe_progress()}", highlight=False)
    ended = f"ended: {results.stop_reason.text}" if results.stop_reason else ""
    for line in (ended, describe_saved_epochs(results)):
        if line:
            console.print(Text(line))
    for failure in failures(results):
        if failure.state == "failed":
            console.print(Text(f"  {len(failure.numbers)} failed: {failure.reason}"))
    if best is None and closest is not None:
        console.print(
            Text(
                f"No trial is within the limits; the nearest is trial {closest.number}: "
                f"{describe_excess(closest)}. Other limits make another study; a space with "
                "smaller plans does too."
            )
        )
    if best is not None:
        console.print(
            Text(
                describe_confirmation(results)
                or "The best value of a search is optimistic; 'autotune confirm' trains it under "
                "other seeds, 'autotune refit' measures it on the test split."
            )
        )
    _print_next(console, opened, results)


def _table(results: StudyResults) -> Table:
    table = Table(title=f"study {results.name}", title_justify="left")
    table.add_column("")
    table.add_column("trial", justify="right")
    table.add_column(f"validation {results.objective.label}", justify="right")
    table.add_column("plan")
    missing = "none within the limits yet" if results.closest_to_feasible else "not finished yet"
    for title, trial in (("baseline", results.baseline), ("best", results.best)):
        if trial is None:
            table.add_row(title, "–", "–", missing if title == "best" else "not finished yet")
        else:
            beyond = f" ({describe_excess(trial)})" if ranking.is_infeasible(trial) else ""
            plan = Text(_describe_plan(results, trial) + beyond)
            table.add_row(title, str(trial.number), results.format_values(trial), plan)
    if results.difference:
        table.add_row("difference", "", results.difference, "")
    return table


def _stages_table(stages: tuple[StageRow, ...]) -> Table:
    table = Table(title="stage by stage", title_justify="left")
    for name in ("stage", "searched", "trials", "best", "gain", "outcome"):
        table.add_column(name, justify="right" if name in ("trials", "best", "gain") else "left")
    for one in stages:
        table.add_row(one.name, one.searched, one.trials, one.best, one.gain, one.verdict)
    return table


def _front(results: StudyResults) -> Table:
    """List the Pareto front, from the best metric to the lowest cost."""
    cost = results.cost or results.objective
    table = Table("trial", results.objective.label, cost.label, "plan", box=None)
    for trial in results.front[:MAX_FRONT_LINES]:
        values = (
            results.objective.format_value(trial.values[0]),
            cost.format_value(trial.values[1]),
        )
        table.add_row(str(trial.number), *values, Text(_describe_plan(results, trial)))
    table.title = f"Pareto front, {len(results.front)} trials"
    table.title_justify = "left"
    if len(results.front) > MAX_FRONT_LINES:
        more = len(results.front) - MAX_FRONT_LINES
        table.caption = f"and {more} cheaper ones; the report shows them all"
        table.caption_justify = "left"
    return table


def _describe_plan(results: StudyResults, trial: FrozenTrial) -> str:
    origin = attrs.trial_origin(trial)
    return results.describe_plan(trial) + (f" ({origin})" if origin else "")


def _report_of(opened: OpenStudy, results: StudyResults) -> Path | None:
    """Find the report of a study; not that of an earlier study of its name, which was deleted."""
    report = opened.files.report(opened.name)
    try:
        written_s = report.stat().st_mtime
    except OSError:
        return None
    starts = (start for trial in results.trials if (start := attrs.started_at(trial)))
    begun_s = min(starts, default=math.inf)
    return report if written_s >= begun_s else None


def _print_next(console: Console, opened: OpenStudy, results: StudyResults) -> None:
    """Print where the report lies and what to call next, in words that can be pasted."""
    lines = []
    if report := _report_of(opened, results):
        lines.append(("report", relative_path(report)))
    call = f"{command()} {{}} {opened.name}{_storage_option(opened)}"
    lines.append(("look around", call.format("dashboard")))
    if results.best is not None:
        lines += [("winning plan", call.format("best")), ("over seeds", call.format("confirm"))]
        lines += [("final model", call.format("refit"))]
    console.print()
    for title, text in lines:
        # Never wrapped: a command that was broken into two lines cannot be pasted.
        console.print(Text(f"{title:<14} {text}"), soft_wrap=True)
    if "***" in call:
        console.print(Text(f"{'':<14} (write the password in place of ***)"))


def command() -> str:
    """Return how this program was called, as one would type it."""
    program = Path(sys.argv[0])
    if program.suffix == ".py":  # python -m autotune.cli.main
        return "autotune"
    return program.name if shutil.which(program.name) == str(program) else relative_path(program)


def relative_path(path: Path) -> str:
    """Write a path relative to the working directory where it lies below it."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _storage_option(opened: OpenStudy) -> str:
    default = StudyConfig.model_fields["storage"].default
    if opened.url == absolute_url(default):
        return ""
    if is_sqlite(opened.url):
        url = f"sqlite:///{relative_path(database_path(opened.url))}"
    else:
        url = redact(opened.url)
    return f" --storage {shlex.quote(url)}"


def print_workers(console: Console, opened: OpenStudy) -> None:
    """Print what workers are at, and why attempts at trials failed."""
    results = StudyResults.from_study(opened.study)
    if rows := worker_rows(results, take_snapshot(opened)):
        console.print(workers_table(rows, results.objective, one_line=False))
    if failed := failures_line(failures_by_reason(results)):
        console.print(Text(failed))
