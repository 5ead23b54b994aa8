"""The summary of a study at the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from autotune.display.console import lines_of_text
from autotune.display.worker_table import WorkersTable, format_failures
from autotune.results.cheapest import describe_cheapest
from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.headline import (
    describe_confirmation,
    describe_correction,
    describe_refit,
    describe_saved_epochs,
)
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.figures.greedy_stages import StageRow, stage_rows
from autotune.results.figures.layer_diagram import as_text, layer_rows
from autotune.results.report.race_table import RaceTable, race_table
from autotune.results.report.trial_table import failures
from autotune.results.report.workers import failures_by_reason, worker_rows
from autotune.results.study_results import StudyResults, describe_excess
from autotune.search import ranking
from autotune.storage.commands import study_command
from autotune.study.doctor.collect import take_snapshot
from autotune.study.state import attrs
from autotune.text import relative_path, shell_quote

if TYPE_CHECKING:
    from autotune.study.race.rounds import RaceProgress
    from autotune.study.setup.opening import OpenStudy

#: Trials of a Pareto front that the terminal lists.
MAX_FRONT_LINES = 10


def print_summary(console: Console, opened: OpenStudy, *, trained: bool) -> bool:
    """Print the baseline, the best trial, its layers, the counts and the next commands.

    Without ``trained``, say first that nothing was trained.

    Returns:
        Whether the study has a result, or may still get one.
    """
    results = StudyResults.from_study(opened.study)
    console.print()
    reason = results.stop_reason
    if not trained and reason is not None and not reason.is_request:
        text = f"The study {opened.name!r} is over ({reason.text}); nothing was trained."
        console.print(Text(text))
    console.print(_scores_table(results))
    answer = find_answer(results)
    if answer.trial is not None and (plan := attrs.trial_plan(answer.trial)) is not None:
        if answer.trial is not results.best:  # the plan that was refitted or confirmed
            console.print(
                Text(f"{answer.plan_title}: trial {answer.trial.number}, {plan.describe()}")
            )
        console.print(lines_of_text(as_text(layer_rows(results.layers_of(answer.trial), plan))))
        console.print()
    if race := race_table(results):
        _print_race_table(console, race)
    if stages := stage_rows(results):
        console.print(_stages_table(stages))
    if len(results.front) > 1:
        console.print(_front_table(results))
    for line in _remarks(results):
        console.print(Text(line))
    _print_next(console, opened, results)
    return results.no_result is None


def print_race(console: Console, race: RaceProgress) -> None:
    """Print the round of a race, its workers, and what the rounds before have found."""
    results = StudyResults.from_study(race.opened.study)
    text = race.describe()
    console.print(Text(f"{text[0].upper()}{text[1:]}."))
    print_workers(console, race.opened)
    console.print(Text(f"trials of this round: {results.describe_progress()}"))
    if table := race_table(results):
        _print_race_table(console, table)


def _remarks(results: StudyResults) -> Iterator[str]:
    yield f"trials: {results.describe_progress()}"
    if reason := results.stop_reason:
        yield reason.text if reason.is_request else f"ended: {reason.text}"
    for trial in results.trials:
        if trial.state == TrialState.WAITING and attrs.is_enqueued(trial):
            yield f"queued: trial {trial.number}, {_describe_plan(results, trial)}"
    if results.never_started:
        yield "What was queued and not started is trained first when search.trials is raised."
    if saved := describe_saved_epochs(results):
        yield saved
    for failure in failures(results):
        if failure.state == "failed":
            yield f"  {len(failure.numbers)} failed: {failure.reason}"
    if cheapest := describe_cheapest(results):
        yield cheapest
    if results.best is not None:
        if tested := describe_refit(results):
            yield tested
        corrected = describe_correction(results)
        yield describe_confirmation(results) or (
            f"The best value of a search is optimistic{f' ({corrected})' if corrected else ''}; "
            "'autotune confirm' trains it under other seeds, 'autotune refit' measures it on the "
            "test split."
        )
        return
    closest = results.closest_to_feasible
    nearest = (
        f"the nearest is trial {closest.number}: {describe_excess(closest)}" if closest else ""
    )
    if results.no_result is not None:
        yield f"{results.no_result.describe()}{f' T{nearest[1:]}.' if nearest else ''}"
    elif nearest:
        yield (
            f"No trial is within the limits; {nearest}. Other limits make another study; a space "
            "with smaller plans does too."
        )


def _scores_table(results: StudyResults) -> Table:
    table = Table(title=f"study {results.name}", title_justify="left")
    table.add_column("")
    table.add_column("trial", justify="right")
    table.add_column(f"validation {results.objective.label}", justify="right")
    table.add_column("plan")
    for title, trial in (("baseline", results.baseline), ("best", results.best)):
        if trial is None:
            table.add_row(title, "–", "–", Text(_describe_missing(results, title)))
        else:
            excess = f" ({describe_excess(trial)})" if ranking.is_infeasible(trial) else ""
            plan = Text(_describe_plan(results, trial) + excess)
            table.add_row(title, str(trial.number), results.format_values(trial), plan)
    if results.difference:
        table.add_row("difference", "", results.difference, "")
    return table


def _describe_missing(results: StudyResults, title: str) -> str:
    """Say why there is no baseline, or no best trial."""
    if title == "baseline" and results.baseline_failure:
        return f"failed: {results.baseline_failure}"
    if results.no_result is not None:
        return "no result"
    is_infeasible = title == "best" and results.closest_to_feasible
    return "none within the limits yet" if is_infeasible else "not finished yet"


def _print_race_table(console: Console, race: RaceTable) -> None:
    """Print a race without the licenses, for which a terminal is too narrow."""
    console.print(Text(f"race: {race.text}"))
    table = Table(box=SIMPLE_HEAD)
    shown = [number for number, title in enumerate(race.titles) if title != "license"]
    for number in shown:
        is_text = number in (shown[0], shown[-1])
        justify: JustifyMethod = "left" if is_text else "right"
        table.add_column(race.titles[number], justify=justify, overflow="fold")
    for row in race.rows:
        table.add_row(*(Text(row[number]) for number in shown))
    console.print(table)


def _stages_table(stages: tuple[StageRow, ...]) -> Table:
    table = Table(title="stage by stage", title_justify="left")
    for name in ("stage", "searched", "trials", "best", "gain", "outcome"):
        table.add_column(name, justify="right" if name in ("trials", "best", "gain") else "left")
    for row in stages:
        table.add_row(row.name, row.searched, row.trials, row.best, row.gain, row.verdict)
    return table


def _front_table(results: StudyResults) -> Table:
    """List the Pareto front, from the best metric to the lowest cost."""
    objective, cost = results.objective, results.cost or results.objective
    table = Table("trial", objective.label, cost.label, "plan", box=None)
    table.title, table.title_justify = f"Pareto front, {len(results.front)} trials", "left"
    for trial in results.front[:MAX_FRONT_LINES]:
        table.add_row(
            str(trial.number),
            objective.format_value(trial.values[0]),
            cost.format_value(trial.values[1]),
            Text(_describe_plan(results, trial)),
        )
    if (others := len(results.front) - MAX_FRONT_LINES) > 0:
        table.caption = f"and {others} cheaper ones; the report shows them all"
        table.caption_justify = "left"
    return table


def _describe_plan(results: StudyResults, trial: FrozenTrial) -> str:
    origin = attrs.trial_origin(trial)
    return results.describe_plan(trial) + (f" ({origin})" if origin else "")


def _report_path(opened: OpenStudy, results: StudyResults) -> Path | None:
    """Return the report of a study; not that of a deleted study of the same name."""
    report = opened.files.report(opened.name)
    try:
        written_s = report.stat().st_mtime
    except OSError:
        return None
    starts = (start for trial in results.trials if (start := attrs.started_at(trial)))
    return report if written_s >= min(starts, default=math.inf) else None


def _print_next(console: Console, opened: OpenStudy, results: StudyResults) -> None:
    """Print the path of the report and the next commands, ready to paste."""
    verbs = {"dashboard": "dashboard"}
    if results.best is not None:
        verbs |= {"winning plan": "best", "over seeds": "confirm", "final model": "refit"}
    lines = {title: study_command(verb, opened.name, opened.url) for title, verb in verbs.items()}
    if report := _report_path(opened, results):
        table = opened.files.predictions(opened.name)
        wrong = {"wrong images": shell_quote(relative_path(table))} if table.exists() else {}
        lines = {"report": shell_quote(relative_path(report)), **wrong, **lines}
    if "***" in lines["dashboard"]:
        lines[""] = "(write the password instead of ***)"
    console.print()
    if steps := next_steps(results):
        console.print(Text(f"What next: {steps[0].text}"))
        console.print()
    for title, text in lines.items():
        # Never wrapped: a command on two lines cannot be pasted.
        console.print(Text(f"{title:<14} {text}"), soft_wrap=True)


def print_workers(console: Console, opened: OpenStudy) -> None:
    """Print what every worker does, and why attempts at trials failed."""
    results = StudyResults.from_study(opened.study)
    if rows := worker_rows(results, take_snapshot(opened)):
        console.print(WorkersTable(rows, results.objective, one_line=False))
    if counts := format_failures(failures_by_reason(results)):
        console.print(Text(counts))
