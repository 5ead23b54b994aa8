"""``autotune status``: the progress of a study."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.display import console
from autotune.errors import StorageError, StudyError, UserError

if TYPE_CHECKING:
    from autotune.study.race.rounds import RaceProgress
    from autotune.study.setup.opening import OpenStudy

#: Seconds for which ``--watch`` waits for a study: to decode many images takes minutes.
WAIT_S = 600.0


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

    While the race for a study runs, it shows the round.

    Exit code 1: the study has ended, and no trial has a result.
    """
    if every is not None and not watch:
        raise UserError("--every goes with --watch")
    located = console.locate(study, overrides, name, storage)
    from autotune.display.summary import print_race, print_summary, print_workers
    from autotune.study.race.rounds import RaceProgress

    stdout = console.stdout()
    try:
        opened = _open(located, WAIT_S if watch else 0.0)
    except KeyboardInterrupt:
        return
    if isinstance(opened, RaceProgress):
        print_race(stdout, opened)
        return
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


def _open(located: console.Located, wait_s: float) -> OpenStudy | RaceProgress:
    """Open a study, or the round of its race; wait for one that seems to be in the making."""
    from autotune.study.race.rounds import find_race
    from autotune.study.setup.opening import POLL_S, open_existing

    deadline, told = time.monotonic() + wait_s, ""
    while True:
        try:
            return open_existing(located.name, located.storage, located.files)
        except (StudyError, StorageError) as error:
            if not _may_come(located, error):
                raise
            race = find_race(located.name, located.storage, located.files)
            if race is not None and not wait_s:
                return race
            if race is not None:
                deadline = time.monotonic() + wait_s
            elif time.monotonic() >= deadline:
                raise
            reason = str(error) if race is None else race.describe()
            if reason != told and (race is not None or not told):
                console.stderr(soft_wrap=True).print(f"waiting, Ctrl-C ends it: {reason}")
                told = reason
        time.sleep(POLL_S)


def _may_come(located: console.Located, error: UserError) -> bool:
    """Tell whether a run may be making the study: its images are prepared before its database."""
    from autotune.storage.paths import StudyPaths
    from autotune.storage.rdb.connection import has_content
    from autotune.storage.url import database_path, is_sqlite

    if isinstance(error, StudyError):
        return True
    if not is_sqlite(located.storage) or has_content(database_path(located.storage)):
        return False
    return StudyPaths.from_url(located.storage, located.files).root.is_dir()
