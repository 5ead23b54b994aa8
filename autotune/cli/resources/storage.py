"""``autotune storage``: copy, upgrade and check storages of studies, run a Postgres server."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from autotune.display import console
from autotune.text import format_bytes, plural, shell_quote

if TYPE_CHECKING:
    from autotune.storage.admin.copy_study import Copied

app = console.verb_group("Copy, back up, upgrade or check a storage of studies.")

FilesOption = Annotated[
    str | None, typer.Option(help="Folder for the files of the studies there.")
]
FolderOption = Annotated[Path, typer.Option(help="Folder of the server's data.")]
POSTGRES_FOLDER = Path("storage/postgres")


def _print(text: str) -> None:
    console.stdout().print(console.lines_of_text(text))


def _warn_renamed(old: str, new: str) -> None:
    console.stderr().print(f"warning: 'storage {old}' is now: autotune storage {new}")


@app.command("copy")
def copy(
    target: Annotated[
        str,
        typer.Option(
            "--to",
            envvar="AUTOTUNE_STORAGE_TO",
            show_envvar=True,
            help="URL of the storage to copy to; sqlite:///backup.db is a backup.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            envvar=["AUTOTUNE_STORAGE_FROM", "AUTOTUNE_STORAGE"],
            show_envvar=True,
            help="URL of the storage that has the studies; it is not changed.",
        ),
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option(help="A study to copy, may be repeated; default: all.")
    ] = None,
    files: FilesOption = None,
) -> None:
    """Copy studies with their files to another storage; workers may run."""
    from autotune.storage.admin.copy_study import copy_studies
    from autotune.storage.url import redact

    if files is not None:
        console.check_folder(Path(os.path.expanduser(files)))
    url = console.storage_url(source)
    copy_studies(url, target, study, files, _print_copy)
    _print(f"continue with --storage {redact(target)}; {redact(url)} is unchanged")


def _print_copy(copied: Copied) -> None:
    line = f"copied {copied.name!r}: {plural(copied.trials, 'trial')}"
    files = copied.files
    if files.count:
        size = format_bytes(files.size_bytes)
        line += f" and {plural(files.count, 'file')} ({size}) to {files.folder}"
    elif files.folder is not None:
        line += f"; its files are in {files.folder}"
    _print(line)
    if files.missing:
        _print(f"  without {plural(files.missing, 'artifact')} that could not be found")
    if copied.running:
        _print(
            f"  {plural(copied.running, 'trial was', 'trials were')} running: to continue there, "
            "stop the workers of the old storage; the next 'autotune run' there restarts them"
        )


@app.command("backup", hidden=True)
def backup(
    output: Annotated[Path, typer.Option("--output", "-o", help="The SQLite file to write.")],
    storage: console.StorageOption = None,
) -> None:
    """Copy all studies to an SQLite file (old name of ``copy --to``)."""
    from autotune.storage.url import sqlite_url

    _warn_renamed("backup", f"copy --to {shell_quote(f'sqlite:///{output}')}")
    console.check_writable(str(output))
    copy(sqlite_url(output), storage)


@app.command("restore", hidden=True)
def restore(
    file: Annotated[Path, typer.Argument(help="An SQLite file with studies.")],
    storage: console.StorageOption = None,
    files: FilesOption = None,
) -> None:
    """Copy all studies of an SQLite file to a storage (old name of ``copy --from``)."""
    from autotune.storage.url import sqlite_url

    _warn_renamed("restore", f"copy --from {shell_quote(f'sqlite:///{file}')} --to ...")
    copy(console.storage_url(storage), sqlite_url(file), files=files)


@app.command("upgrade")
def upgrade(storage: console.StorageOption = None) -> None:
    """Upgrade the tables of an older Optuna; stop the workers before."""
    from autotune.storage.admin.schema import back_up_sqlite, pending_upgrade, upgrade_tables
    from autotune.storage.url import database_path, is_sqlite, redact

    url = console.storage_url(storage)
    pending = pending_upgrade(url)
    if pending is None:
        _print(f"{redact(url)} is up to date")
        return
    before, after = pending
    if is_sqlite(url):
        path = database_path(url)
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        saved = path.with_name(f"{path.stem}.{before}.{now}.db")
        console.check_writable(str(saved))
        back_up_sqlite(path, saved)
        _print(f"backup of the old tables: {saved}")
    upgrade_tables(url)
    _print(f"{redact(url)}: upgraded from {before} to {after}")


@app.command("check")
def check(storage: console.StorageOption = None) -> None:
    """Check that a storage can be used for studies; exit code 1 where it cannot."""
    from autotune.storage.admin import check as checks
    from autotune.storage.url import redact

    url = console.storage_url(storage)
    results = list(checks.check(url))
    _print(redact(url))
    table = Table("check", "", "result", box=None)
    for result in results:
        verdict = Text("problem", "bold red") if result.is_problem else Text("ok", "green")
        table.add_row(result.what, verdict, Text(result.text))
    console.stdout().print(table)
    if any(result.is_problem for result in results):
        raise typer.Exit(1)


@app.command("postgres")
def postgres(
    action: Annotated[Literal["start", "stop"], typer.Argument(help="The studies stay.")],
    folder: FolderOption = POSTGRES_FOLDER,
) -> None:
    """Start or stop a Postgres server for this machine alone, without Docker or root."""
    from autotune.storage.admin import local_postgres
    from autotune.storage.commands import MAKE, program

    if action == "stop":
        was_running = local_postgres.stop(folder)
        _print(
            f"the Postgres server in {folder} {'is stopped' if was_running else 'was not running'}"
        )
        return
    console.check_folder(folder)
    url = local_postgres.start(folder)
    _print(f"a Postgres server runs in {folder}; its storage is\n\n    {url}\n")
    by_make = folder == POSTGRES_FOLDER and bool(os.environ.get(MAKE))
    run = (
        f"make study STORAGE={shell_quote(url)}"
        if by_make
        else f"autotune run --storage {shell_quote(url)}"
    )
    stop = f"{program()} storage postgres stop --folder {shell_quote(str(folder))}"
    stop = "make postgres-local-down" if by_make else stop
    _print(f"{run}\n{stop}\nthe last one stops it; its studies stay")


@app.command("local", hidden=True)
def local(
    folder: FolderOption = POSTGRES_FOLDER,
    is_stop: Annotated[bool, typer.Option("--stop", help="Stop it; its studies stay.")] = False,
) -> None:
    """Start or stop the server (old name of ``postgres``)."""
    action: Literal["start", "stop"] = "stop" if is_stop else "start"
    _warn_renamed("local", f"postgres {action}")
    postgres(action, folder)
