"""``autotune run``: run a study until its budget is used up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from autotune.config.schema import StudyConfig
from autotune.display import console
from autotune.errors import ChangedStudyError, StudyError, UserError, hide_passwords

if TYPE_CHECKING:
    from autotune.study.engine.launcher import RunResult

STOPPED_RACE = "Stopped in the race. The same command continues it."
STOPPED = "Stopped. The trials that were running are queued; the same command continues them."


def run(
    study: console.StudyArgument = "digits",
    overrides: console.Overrides = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where workers run: on this machine, or in a Ray cluster."),
    ] = "local",
    workers: console.WorkersOption = None,
    gpus: console.GpusOption = None,
    workers_per_gpu: console.WorkersPerGpuOption = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="With Ray: 0, 1, or a fraction. Default: 1 if the cluster has any."),
    ] = None,
    cpus_per_worker: Annotated[
        int | None,
        typer.Option(help="With Ray; default: its share of those beside its GPU, or 1."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Studies NAME-seed0, NAME-seed1, ...: one after the other, and a table."
        ),
    ] = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Run a study until its budget is used up; run again to continue it.

    With --seeds it runs that many studies, each with all workers. More seeds add to them.

    Exit code 1: the study has ended, and no trial has a result.
    """
    with_options = partial(
        _run,
        engine=engine,
        workers=workers,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        gpus_per_worker=gpus_per_worker,
        cpus_per_worker=cpus_per_worker,
    )
    stdout = console.stdout()
    if seeds is not None:
        configs = console.load_seeds(study, overrides, name, storage, seeds)
        _run_seeds(stdout, configs, with_options)
        return
    config = console.load_checked(study, overrides, name, storage)
    try:
        result, problem = with_options(stdout, config)
    except ChangedStudyError as error:
        raise StudyError(f"{error}\n  {_changed_command(error.changes)}") from None
    from autotune.display.summary import print_summary

    has_result = print_summary(stdout, result.handle, trained=result.trained)
    if problem is not None:
        raise problem
    if result.interrupted:
        stdout.print(STOPPED)
        raise typer.Exit(130)
    if not has_result:
        raise typer.Exit(1)


def _run(
    stdout: Console, config: StudyConfig, **options: Any
) -> tuple[RunResult, UserError | None]:
    """Run a study and write its report; return why the report could not be written, too."""
    from autotune.display.run_display import make_view

    console.print_plugins(stdout, config)
    with make_view(stdout, config) as view:
        # Within the view, because this imports torch, which takes seconds.
        from autotune.study.race.running import run_study_with_race

        result = run_study_with_race(config, on_event=view, **options)
    if result.handle.name != config.name:  # a round of a race was interrupted
        stdout.print(STOPPED_RACE)
        raise typer.Exit(130)
    from autotune.results.report.formats import write_predictions, write_report

    try:
        write_report(result.handle)
        write_predictions(result.handle)
    except UserError as error:  # the summary is worth more
        return result, error
    return result, None


def _run_seeds(
    stdout: Console,
    configs: Sequence[StudyConfig],
    run_one: Callable[[Console, StudyConfig], tuple[RunResult, UserError | None]],
) -> None:
    """Run studies one after the other, and print what they have found over the seeds."""
    from autotune.display.comparison import print_seeds
    from autotune.results.study_results import StudyResults

    results: list[StudyResults] = []
    problems: list[UserError] = []
    is_interrupted = False
    for config in configs:
        if results and config.race is not None:  # the race of the first study is that of all
            config = config.with_backbones(tuple(results[0].backbones))
        result, problem = run_one(stdout, config)
        results.append(StudyResults.from_study(result.handle.study))
        problems += [problem] if problem is not None else []
        is_interrupted = result.interrupted
        if is_interrupted:
            break
    print_seeds(stdout, results, configs[0].storage)
    if problems:
        raise problems[0]
    if is_interrupted:
        stdout.print(STOPPED)
        raise typer.Exit(130)
    if any(each.no_result is not None for each in results):
        raise typer.Exit(1)


def _changed_command(changes: Mapping[str, str]) -> str:
    """Return the command that was called, with other overrides and another name."""
    from autotune.storage.commands import program
    from autotune.text import shell_quote

    arguments = sys.argv[1:]
    if "--name" in arguments:
        del arguments[(at := arguments.index("--name")) : at + 2]
    kept = [word for word in arguments if word.partition("=")[0] not in changes]
    overrides = [f"{key}={value}" for key, value in changes.items() if key != "--name"]
    words = [*kept, *overrides, "--name", changes["--name"]]
    return " ".join([program(), *(shell_quote(hide_passwords(word)) for word in words)])
