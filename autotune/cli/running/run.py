"""``autotune run``: run a study until its budget is used up."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Literal

import typer

from autotune.display import console
from autotune.errors import ChangedStudyError, StudyError, UserError, hide_passwords


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
    name: console.NameOption = None,
    storage: console.StorageOption = None,
) -> None:
    """Run a study until its budget is used up; run again to continue it.

    Exit code 1: the study has ended, and no trial has a result.
    """
    config = console.load_checked(study, overrides, name, storage)
    from autotune.display.run_display import make_view

    stdout = console.stdout()
    console.print_plugins(stdout, config)
    with make_view(stdout, config) as view:
        # Within the view, because this imports torch, which takes seconds.
        from autotune.study.engine.launcher import run_study

        try:
            result = run_study(
                config,
                engine=engine,
                workers=workers,
                gpus=gpus,
                workers_per_gpu=workers_per_gpu,
                gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker,
                on_event=view,
            )
        except ChangedStudyError as error:
            raise StudyError(f"{error}\n  {_changed_command(error.changes)}") from None
    from autotune.display.summary import print_summary
    from autotune.results.report.formats import write_predictions, write_report

    problem: UserError | None = None
    try:
        write_report(result.handle)
        write_predictions(result.handle)
    except UserError as error:  # the summary is worth more
        problem = error
    has_result = print_summary(stdout, result.handle, trained=result.trained)
    if problem is not None:
        raise problem
    if result.interrupted:
        stdout.print(
            "Stopped. The trials that were running are queued; the same command continues them."
        )
        raise typer.Exit(130)
    if not has_result:
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
