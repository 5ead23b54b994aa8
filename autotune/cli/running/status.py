"""``autotune status``: the progress of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.display import console
from autotune.errors import UserError


def status(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it until the study ends, or Ctrl-C.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            metavar="SECONDS",
            help="With --watch: seconds between two reads. Default: 2, or 30 without a terminal.",
        ),
    ] = None,
) -> None:
    """Show the progress of a study, its workers, what failed, and the best trial.

    Exit code 1: the study has ended, and no trial has a result.
    """
    if every is not None and not watch:
        raise UserError("--every goes with --watch")
    opened = console.open_study(study, overrides, name, storage)
    from autotune.display.summary import print_summary, print_workers

    stdout = console.stdout()
    if watch:
        from autotune.display.watch import watch as watch_study

        try:
            watch_study(stdout, opened, every)
        except KeyboardInterrupt:
            return
    else:
        print_workers(stdout, opened)
    if not print_summary(stdout, opened, trained=True):
        raise typer.Exit(1)
