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
from autotune.display.console import in_lines
from autotune.display.worker_table import failures_line, workers_table
from autotune.results.diagnosis.headline import describe_confirmation
from autotune.results.figures.greedy_stages import StageRow, stage_rows
from autotune.results.figures.layer_diagram import as_text
from autotune.results.report.summary import Summary, summarise
from autotune.results.report.workers import failures_by_reason, worker_rows
from autotune.results.values.objective import Objective, format_values
from autotune.results.values.pareto_front import MAX_FRONT_LINES, describe_excess
from autotune.search import ranking
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact
from autotune.study.doctor.collect import take_snapshot
from autotune.study.state import attrs

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


def print_summary(console: Console, opened: OpenStudy, *, trained: bool) -> None:
    """Print baseline against best, the picture of the layers, the counts and what to do next.

    Args:
        console: Where to.
        opened: The study.
        trained: Whether there was anything left to train.
    """
    found = summarise(opened)
    progress = found.progress
    console.print()
    if not trained and found.ended is not None:
        console.print(
            f"The study {opened.name!r} is over ({found.ended.text}); nothing was trained.",
            highlight=False,
            markup=False,
        )
    console.print(_table(found, opened.name))
    if found.picture:
        console.print(in_lines(as_text(found.picture)))
        console.print()
    if stages := stage_rows(opened.study):
        console.print(_stages_table(stages))
    if len(found.front) > 1:
        console.print(_front(found))
    infeasible = f", {progress.infeasible} infeasible" if progress.infeasible else ""
    retried = f", {progress.retried} interrupted and retried" if progress.retried else ""
    running = f", {progress.running} running" if progress.running else ""
    queued = f", {progress.waiting} queued" if progress.waiting else ""
    console.print(
        f"trials: {progress.finished} of {progress.budget} finished: {progress.complete} "
        f"complete, {progress.pruned} pruned{infeasible}, {progress.failed} failed"
        f"{retried}{running}{queued}",
        highlight=False,
    )
    for line in (f"ended: {found.ended.text}" if found.ended else "", found.saved):
        if line:
            console.print(Text(line))
    for reason, count in found.reasons:
        console.print(Text(f"  {count} failed: {reason}"))
    if found.best is None and found.closest_to_feasible is not None:
        console.print(
            Text(
                "No trial is within the limits; the nearest is trial "
                f"{found.closest_to_feasible.number}: "
                f"{describe_excess(found.closest_to_feasible)}. Other limits make another "
                "study; a space with smaller plans does too."
            )
        )
    if found.best is not None:
        console.print(
            Text(
                describe_confirmation(opened.study, found.best)
                or "The best of a search is a lucky draw; 'autotune confirm' trains it under "
                "other seeds, 'autotune refit' measures it on the test part."
            )
        )
    _print_next(console, opened, has_best=found.best is not None)


def _table(found: Summary, name: str) -> Table:
    table = Table(title=f"study {name}", title_justify="left")
    table.add_column("")
    table.add_column("trial", justify="right")
    table.add_column(f"validation {found.objective.label}", justify="right")
    table.add_column("plan")
    missing = (
        "not finished yet" if found.closest_to_feasible is None else "none within the limits yet"
    )
    for title, trial in (("baseline", found.baseline), ("best", found.best)):
        if trial is None:
            reason = missing if title == "best" else "not finished yet"
            table.add_row(title, "–", "–", reason)
        else:
            value = format_values(trial, found.objective, found.cost)
            beyond = f" ({describe_excess(trial)})" if ranking.is_infeasible(trial) else ""
            words = _words(trial, found.several) + beyond
            table.add_row(title, str(trial.number), value, Text(words))
    if found.difference:
        table.add_row("difference", "", found.difference, "")
    return table


def _stages_table(stages: tuple[StageRow, ...]) -> Table:
    table = Table(title="stage by stage", title_justify="left")
    for name in ("stage", "searched", "trials", "best", "gain", "outcome"):
        table.add_column(name, justify="right" if name in ("trials", "best", "gain") else "left")
    for one in stages:
        table.add_row(one.name, one.searched, one.trials, one.best, one.gain, one.verdict)
    return table


def _front(found: Summary) -> Table:
    """List the Pareto front, from the best metric to the lowest cost."""
    assert found.cost is not None
    table = Table("trial", found.objective.label, found.cost.label, "plan", box=None)
    for trial in found.front[:MAX_FRONT_LINES]:
        metric, cost = trial.values
        shown = found.objective.format_value(metric), found.cost.format_value(cost)
        table.add_row(str(trial.number), *shown, Text(_words(trial, found.several)))
    table.title = f"Pareto front, {len(found.front)} trials"
    table.title_justify = "left"
    if len(found.front) > MAX_FRONT_LINES:
        left = len(found.front) - MAX_FRONT_LINES
        table.caption = f"and {left} cheaper ones; the report shows them all"
        table.caption_justify = "left"
    return table


def _words(trial: FrozenTrial, named: bool) -> str:
    plan = attrs.trial_plan(trial)
    origin = attrs.trial_origin(trial)
    return (plan.describe(named) if plan else "") + (f" ({origin})" if origin else "")


def _report_of(opened: OpenStudy) -> Path | None:
    """Find the report of a study; not that of an earlier study of its name, which was deleted."""
    report = opened.files.report(opened.name)
    try:
        written_s = report.stat().st_mtime
    except OSError:
        return None
    trials = opened.study.get_trials(deepcopy=False)
    begun_s = min((start for one in trials if (start := attrs.started_at(one))), default=math.inf)
    return report if written_s >= begun_s else None


def _print_next(console: Console, opened: OpenStudy, *, has_best: bool) -> None:
    """Print where the report lies and what to call next, in words that can be pasted."""
    lines = []
    if report := _report_of(opened):
        lines.append(("report", shorten(report)))
    call = f"{command()} {{}} {opened.name}{_storage_option(opened)}"
    lines.append(("look around", call.format("dashboard")))
    if has_best:
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
    return program.name if shutil.which(program.name) == str(program) else shorten(program)


def shorten(path: Path) -> str:
    """Write a path relative to the working directory where it lies below it."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def _storage_option(opened: OpenStudy) -> str:
    default = StudyConfig.model_fields["storage"].default
    if opened.url == absolute_url(default):
        return ""
    if is_sqlite(opened.url):
        url = f"sqlite:///{shorten(database_path(opened.url))}"
    else:
        url = redact(opened.url)
    return f" --storage {shlex.quote(url)}"


def print_workers(console: Console, opened: OpenStudy) -> None:
    """Print what workers are at, and why attempts at trials failed."""
    snapshot = take_snapshot(opened)
    if rows := worker_rows(snapshot):
        console.print(workers_table(rows, Objective.from_study(opened.study), one_line=False))
    if failed := failures_line(failures_by_reason(snapshot.trials)):
        console.print(Text(failed))
