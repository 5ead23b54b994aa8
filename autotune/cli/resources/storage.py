"""``autotune storage``: copy, back up, restore, upgrade and check where studies are kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from autotune.config.schema import StudyConfig
from autotune.display.console import StorageOption, check_folder, check_writable, console, in_lines

if TYPE_CHECKING:
    from autotune.storage.admin.backup import Restored
    from autotune.storage.admin.copy_study import Copied

app = typer.Typer(
    help="Copy, back up, restore, upgrade or check a storage of studies.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FilesOption = Annotated[
    str | None, typer.Option(help="Folder for the files of the studies there.")
]


def _url(storage: str | None) -> str:
    return storage or str(StudyConfig.model_fields["storage"].default)


def _say(text: str) -> None:
    console().print(in_lines(text), highlight=False)


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


@app.command("copy")
def copy(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            envvar="AUTOTUNE_STORAGE_FROM",
            show_envvar=True,
            help="URL of the storage that has the studies; it stays as it is.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            envvar="AUTOTUNE_STORAGE_TO",
            show_envvar=True,
            help="URL of the storage that is to have them.",
        ),
    ],
    study: Annotated[
        list[str] | None, typer.Option(help="A study to copy, may be repeated; default: all.")
    ] = None,
    files: FilesOption = None,
) -> None:
    """Copy studies with their files to another storage, such as from SQLite to Postgres."""
    from autotune.storage.admin.copy_study import copy_studies
    from autotune.storage.url import redact

    if files is not None:
        check_folder(Path(files).expanduser())
    copy_studies(source, target, study, files, _tell_copied)
    _say(f"go on with --storage {redact(target)}; {redact(source)} keeps what it has")


def _tell_copied(copied: Copied) -> None:
    said = f"copied {copied.name!r}: {_many(copied.trials, 'trial')}"
    taken = copied.files
    if taken.count:
        size = f"{taken.size_bytes / 2**20:.1f} MiB"
        said += f" and {_many(taken.count, 'file')} ({size}) to {taken.folder}"
    elif taken.folder is not None:
        said += f"; its files are in {taken.folder}"
    _say(said)
    if taken.missing:
        _say(f"  without {_many(taken.missing, 'artifact')} that could not be found")
    if copied.running:
        _say(
            f"  {_many(copied.running, 'trial was', 'trials were')} running: the next 'autotune "
            "run' there starts them again; stop the workers of the old storage"
        )


@app.command("backup")
def backup(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    storage: StorageOption = None,
) -> None:
    """Write all studies to one SQLite file, while workers go on."""
    from autotune.storage.admin import backup as backups

    check_writable(str(output))
    names = backups.backup(_url(storage), output)
    size = output.stat().st_size / 2**20
    studies = _many(len(names), "study", "studies")
    _say(f"{output}: {studies}, {size:.1f} MiB; their files (artifacts, models) are not in it")


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="A file that 'autotune storage backup' wrote.")],
    storage: StorageOption = None,
    files: Annotated[
        str | None, typer.Option(help="Folder in which the files of the studies are now.")
    ] = None,
) -> None:
    """Put the studies of a backup into a storage; none is overwritten."""
    from autotune.storage.admin import backup as backups

    backups.restore(file, _url(storage), files, _tell_restored)


def _tell_restored(restored: Restored) -> None:
    _say(f"restored {restored.name!r}: {_many(restored.trials, 'trial')}")
    if restored.folder is not None and not restored.folder.is_dir():
        _say(f"  its files are to be in {restored.folder}, which is not there")


@app.command("upgrade")
def upgrade(storage: StorageOption = None) -> None:
    """Bring tables of an older Optuna up to date; stop the workers before."""
    from autotune.storage.admin.backup import backup as back_up
    from autotune.storage.admin.schema import pending_upgrade, upgrade_tables
    from autotune.storage.url import database_path, is_sqlite, redact

    url = _url(storage)
    pending = pending_upgrade(url)
    if pending is None:
        _say(f"{redact(url)} is up to date")
        return
    before, after = pending
    if is_sqlite(url):
        path = database_path(url)
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        saved = path.with_name(f"{path.stem}.{before}.{now}.db")
        check_writable(str(saved))
        back_up(url, saved)
        _say(f"backup of before: {saved}")
    upgrade_tables(url)
    _say(f"{redact(url)}: upgraded from {before} to {after}")


@app.command("check")
def check(storage: StorageOption = None) -> None:
    """Check that a storage is fit for studies; exit code 1 where it is not."""
    from autotune.storage.admin import check as checks
    from autotune.storage.url import redact

    url = _url(storage)
    findings = list(checks.check(url))
    _say(redact(url))
    table = Table("what", "", "found", box=None)
    for one in findings:
        verdict = Text("problem", "bold red") if one.problem else Text("ok", "green")
        table.add_row(one.what, verdict, Text(one.said))
    console().print(table)
    if any(one.problem for one in findings):
        raise typer.Exit(1)


@app.command("local")
def local(
    folder: Annotated[Path, typer.Option(help="Folder of its data.")] = Path("storage/postgres"),
    stop: Annotated[bool, typer.Option("--stop", help="Stop it; its studies stay.")] = False,
) -> None:
    """Start a Postgres server for this machine alone, without Docker or root; it goes on."""
    from autotune.storage.admin import local_postgres as server

    if stop:
        was = server.stop(folder)
        _say(f"the Postgres server in {folder} {'is stopped' if was else 'was not running'}")
        return
    check_folder(folder)
    url = server.start(folder)
    _say(f"a Postgres server runs in {folder}; its storage is\n\n    {url}\n")
    _say(f"make study STORAGE='{url}'\nmake postgres-local-down stops it, its studies stay")
