"""``autotune enqueue``: queue a plan that is given by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from autotune.cli.plan_file import read_plan
from autotune.config.loading import parse_overrides
from autotune.display import console
from autotune.errors import UserError

if TYPE_CHECKING:
    from autotune.study.setup.manual_trials import Base, EnqueuedTrial


def enqueue(
    study: console.ExistingArgument,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Values of the plan, such as layers=3 layer.1.kernel=1 head.dropout=0.2 lr=1e-3.",
        ),
    ] = None,
    trial: Annotated[
        str | None,
        typer.Option(help="A trial that has all other values: its number, or 'best'."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="STUDY", help="The study of that trial, where another."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A plan that has them: what 'autotune best' prints."),
    ] = None,
    overrides: console.ModelOverrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Queue a plan of your own, while workers run or not; they train it before they search on.

    Values that are not given are those of the baseline, or of --trial or --plan.
    """
    if plan is not None and (trial is not None or source is not None):
        raise UserError("--plan is a plan of its own: give it without --trial and --from")
    given = parse_overrides(values or ())
    base: Base | None = console.parse_trial(trial, "best")
    if plan is not None:
        base, _ = read_plan(Path(plan))
    opened = console.open_study(study, overrides, name, storage)
    from autotune.results.diagnosis.next_steps import run_commands
    from autotune.results.study_results import StudyResults
    from autotune.study.setup.manual_trials import enqueue_plan
    from autotune.study.setup.opening import open_existing

    other = None
    if source is not None:
        located = console.locate(source, None, None, opened.url)
        other = open_existing(located.name, opened.url)
    queued = enqueue_plan(opened, given, base, other)
    stdout = console.stdout()
    stdout.print(Text(f"trial {queued.number} of {opened.name} is queued: {queued.words}"))
    if queued.filled:
        stdout.print(Text(f"as in {queued.filled_from}: {_join(queued.filled)}"))
    stdout.print(Text(_describe_start(queued)))
    if queued.needs or not queued.is_running:
        results = StudyResults.from_study(opened.study)
        for line in run_commands(results, opened.url, queued.needs).split("\n"):
            stdout.print(Text(f"  {line}"), soft_wrap=True)


def _describe_start(queued: EnqueuedTrial) -> str:
    if queued.needs:
        reason = queued.waits_for or "the trials before it take the rest"
        return f"the budget of the study is used up ({reason}); this makes room for it:"
    if queued.is_running:
        return "the next worker that is free trains it"
    return "no worker runs; this trains it:"


def _join(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )
