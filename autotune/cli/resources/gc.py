"""``autotune gc``: remove files that are of no more use."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from autotune.display import console
from autotune.text import format_bytes, relative_path


def gc(
    storage: console.StorageOption = None,
    models: Annotated[
        bool, typer.Option("--models", help="Also the fitted models of all studies.")
    ] = False,
    deleted: Annotated[
        bool,
        typer.Option(
            "--deleted",
            help="Also what is left of studies that the storage does not have; not where another "
            "storage shares the folder.",
        ),
    ] = False,
    yes: console.YesOption = False,
) -> None:
    """Remove the cache, artifacts of no study, old checkpoints, and logs of studies that ended.

    What would go is shown first. A cache is computed again where it is needed.
    """
    from autotune.storage.rdb.connection import open_storage
    from autotune.study.upkeep.removal import find_garbage, remove_garbage

    url = console.storage_url(storage)
    garbage = find_garbage(open_storage(url), url, models=models, deleted=deleted)
    stdout = console.stdout()
    if garbage:
        table = Table("files", "size", "where", "", box=None)
        for entry in sorted(garbage, key=lambda entry: bool(entry.why_kept)):
            outcome = f"stays: {entry.why_kept}" if entry.why_kept else "goes"
            where = relative_path(entry.folder)
            table.add_row(entry.kind, format_bytes(entry.size_bytes), Text(where), Text(outcome))
        stdout.print(table)
    goes = [entry for entry in garbage if not entry.why_kept]
    if not goes:
        stdout.print("there is nothing to remove")
        return
    size = format_bytes(sum(entry.size_bytes for entry in goes))
    console.ask(f"remove {size}?", yes)
    for problem in remove_garbage(goes):
        stdout.print(problem)
    stdout.print(f"removed {size}")
