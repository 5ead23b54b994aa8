"""``autotune status``: how far a study is."""

from __future__ import annotations

from typing import Annotated

import typer

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    locate,
)
from autotune.errors import UserError


def status(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it until the study ends, or Ctrl-C.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            metavar="SECONDS",
            help="With --watch: seconds between two looks. Default: 2, or 30 without a terminal.",
        ),
    ] = None,
) -> None:
    """Show how far a study is, what every worker is at, what failed, and what is best."""
    if every is not None and not watch:
        raise UserError("--every goes with --watch")
    located = locate(study, overrides, name, storage)
    from autotune.display.summary import print_summary, print_workers
    from autotune.study.setup.opening import open_existing

    shown = console()
    opened = open_existing(located.name, located.storage, located.files)
    if watch:
        from autotune.display.watch import watch as watch_study

        try:
            watch_study(shown, opened, every)
        except KeyboardInterrupt:
            return
    else:
        print_workers(shown, opened)
    print_summary(shown, opened, trained=True)
