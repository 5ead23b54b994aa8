"""``autotune status``: how far a study is."""

from __future__ import annotations

from autotune.cli.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    locate,
)


def status(
    study: ExistingArgument = "digits",
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
) -> None:
    """Show how far a study is, what runs, and what is best."""
    located = locate(study, overrides, name, storage)
    from autotune.cli.summary import print_running, print_summary
    from autotune.study.opening import open_existing

    shown = console()
    opened = open_existing(located.name, located.storage, located.files)
    print_running(shown, opened)
    print_summary(shown, opened, trained=True)
