"""``autotune du``: what studies take on disk."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from autotune.display import console
from autotune.text import format_bytes, relative_path


def du(storage: console.StorageOption = None, as_json: console.JsonOption = False) -> None:
    """Show what the studies of a storage take on disk by kind of file, and what they share."""
    url = console.storage_url(storage)
    values = _measure(url)
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    stdout = console.stdout()
    table = Table("study", box=None)
    kinds = dict.fromkeys(kind for study in values["studies"] for kind in study["bytes"] or ())
    for kind in (*kinds, "all"):
        table.add_column(kind, justify="right")
    for study in values["studies"]:
        sizes = study["bytes"]
        if sizes is None:
            cells = ["not on this machine", *[""] * len(kinds)]
        else:
            numbers = [*(sizes.get(kind, 0) for kind in kinds), sum(sizes.values())]
            cells = [format_bytes(number) if number else "–" for number in numbers]
        table.add_row(Text(study["name"]), *cells)
    if values["studies"]:
        stdout.print(table)
        stdout.print()
    table = Table("shared", "size", "where", box=None)
    for part in values["shared"]:
        table.add_row(part["what"], format_bytes(part["bytes"]), Text(part["where"]))
    stdout.print(table)
    stdout.print()
    stdout.print("'autotune gc' shows and removes what is of no more use")


def _measure(url: str) -> dict[str, Any]:
    """Return the bytes of studies and of what they share, as JSON values."""
    from autotune.data.download.paths import data_folder
    from autotune.storage.paths import StudyPaths
    from autotune.storage.rdb.connection import open_storage
    from autotune.storage.url import redact
    from autotune.study.doctor.collect import database_bytes
    from autotune.study.upkeep.stored_studies import size_of, stored_studies

    storage = open_storage(url)
    studies = stored_studies(storage, url)
    shared = [("database", redact(url), database_bytes(storage, url))]
    roots = {StudyPaths.from_url(url), *(study.files for study in studies)}
    folders = [("cache", files.cache) for files in sorted(roots, key=lambda files: files.root)]
    for what, folder in (*folders, ("downloaded data sets", data_folder())):
        if folder.is_dir():
            shared.append((what, relative_path(folder), size_of([folder])))
    return {
        "studies": [
            {
                "name": study.name,
                "folder": str(study.files.root),
                "bytes": study.sizes() if study.is_here else None,
            }
            for study in studies
        ],
        "shared": [{"what": what, "where": where, "bytes": size} for what, where, size in shared],
    }
