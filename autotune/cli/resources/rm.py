"""``autotune rm``: remove studies with their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from autotune.display import console
from autotune.text import format_bytes, plural

if TYPE_CHECKING:
    from autotune.study.upkeep.removal import Removal


def rm(
    study: console.StudiesArgument,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    files: console.FilesOption = None,
    results: Annotated[
        bool, typer.Option("--all", help="Also the fitted model and the reports.")
    ] = False,
    yes: console.YesOption = False,
) -> None:
    """Remove studies that do not run: trials, artifacts, checkpoints and logs.

    What would go is shown first. Fitted models and reports stay, unless --all is given.
    """
    located = console.locate_all(study, name, storage)
    from autotune.study.setup.opening import open_existing
    from autotune.study.upkeep.removal import plan_removal, remove_study
    from autotune.study.upkeep.stored_studies import check_at_rest

    stdout = console.stdout()
    studies = [
        open_existing(each.name, each.storage, files or each.files, whole=False)
        for each in located
    ]
    for opened in studies:
        check_at_rest(opened)
    for opened in studies:
        trials = plural(len(opened.study.get_trials(deepcopy=False)), "trial")
        stdout.print(f"study {opened.name}: {trials}; its files are in {opened.files.root}")
        removal = plan_removal(opened, results=results)
        if not removal.study.is_here:
            stdout.print("  they stay: the folder is not on this machine (name it with --files)")
        elif removal.removed or removal.kept:
            stdout.print(_table(removal))
    names = ", ".join(repr(opened.name) for opened in studies)
    console.ask(f"remove {names}?", yes)
    for opened in studies:
        for problem in remove_study(opened, results=results):
            stdout.print(problem)
        stdout.print(f"removed the study {opened.name!r}")


def _table(removal: Removal) -> Table:
    from autotune.study.upkeep.stored_studies import size_of

    table = Table("files", "size", "", box=None, padding=(0, 1, 0, 2))
    for outcome, folders in (
        ("goes", removal.removed),
        ("stays (--all removes it)", removal.kept),
    ):
        for folder, paths in folders.items():
            table.add_row(folder, format_bytes(size_of(paths)), Text(outcome))
    return table
