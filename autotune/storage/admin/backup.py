"""Backup of a storage into one SQLite file, and the way back.

The file is the same whether the studies were in SQLite or in Postgres, and no program of the
server is needed. It holds the studies; their files (artifacts, checkpoints, models) are not in it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import RDBStorage
from sqlalchemy.engine import URL

from autotune.errors import DiskFullError, StorageError, disk_full_as_user_error
from autotune.storage.admin.copy_study import add_study, check_names_free, writing
from autotune.storage.admin.read_only import (
    check_schema,
    known_schemas,
    list_studies,
    reading,
    schema_version,
)
from autotune.storage.admin.schema import upgrade_tables
from autotune.storage.admin.study_rows import read_attribute, read_study, write_study
from autotune.storage.paths import ATTRIBUTE
from autotune.storage.rdb.connection import BUSY_TIMEOUT_S, check_database_exists, storage_errors
from autotune.storage.url import database_path, is_sqlite


@dataclass(frozen=True)
class Restored:
    """A study that was restored.

    Args:
        name: Its name.
        trials: How many trials it has.
        folder: Where it looks for its files; None for a study that knows no files.
    """

    name: str
    trials: int
    folder: Path | None


def backup(url: str, target: Path) -> list[str]:
    """Write all studies of a storage, as they are at one moment, to a new file.

    Workers may go on meanwhile.

    Args:
        url: Storage URL.
        target: The file; it appears when it is whole.

    Returns:
        The names of the studies in it.

    Raises:
        StorageError: When the file exists, or the storage cannot be read.
        DiskFullError: When the disk of the file is full.
    """
    refuse_existing_file(target)
    with (
        storage_errors(url),
        disk_full_as_user_error(target),
        tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backup-") as folder,
    ):
        part = Path(folder) / target.name
        if is_sqlite(url):
            _copy_database(database_path(url), part)
        else:
            _copy_server(url, part)
        with reading(file_url(part)) as connection:
            names = list_studies(connection)
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(target)
    return names


def refuse_existing_file(target: Path) -> None:
    """Refuse to write over a file.

    Raises:
        StorageError: When it is there.
    """
    if target.exists():
        raise StorageError(f"the file {target} exists and is not overwritten; name another one")


def file_url(path: Path) -> str:
    """Return the URL of an SQLite file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def _copy_database(origin: Path, copy: Path) -> None:
    """Copy a database in use by SQLite's own means."""
    check_database_exists(origin)
    source = f"{origin.as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(source, BUSY_TIMEOUT_S, uri=True)) as read,
        closing(sqlite3.connect(copy)) as write,
    ):
        try:
            read.backup(write)
            write.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        except sqlite3.OperationalError as error:
            if "disk is full" not in str(error):
                raise
            raise DiskFullError(f"no space left on the disk of {copy.parent.parent}") from error


def _copy_server(url: str, copy: Path) -> None:
    """Copy the studies of a server into a new SQLite file, all of one moment."""
    with reading(url) as connection:
        check_schema(connection, url)
        engine = RDBStorage(file_url(copy)).engine
        try:
            for name in list_studies(connection):
                study = read_study(connection, name)
                with storage_errors(file_url(copy)):
                    write_study(engine, study)
        finally:
            engine.dispose()


def check_integrity(path: Path) -> None:
    """Refuse a file that is no sound database.

    Raises:
        StorageError: With what SQLite says about it.
    """
    problems = integrity(path)
    if problems:
        raise StorageError(f"{path} is damaged: {problems[0]}; take another backup")


def integrity(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a database file, at most ten things."""
    with closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)
    ) as connection:
        said = [row[0] for row in connection.execute("PRAGMA integrity_check(10)")]
        loose = connection.execute("PRAGMA foreign_key_check").fetchmany(10)
    found = [str(one) for one in said if one != "ok"]
    return [*found, *(f"a row of {row[0]} belongs to no row of {row[2]}" for row in loose)]


def restore(
    file: Path,
    url: str,
    files: str | None = None,
    tell: Callable[[Restored], None] = lambda restored: None,
) -> None:
    """Put the studies of a backup into a storage; studies that are there stay as they are.

    Args:
        file: The backup, or any SQLite database of studies; it is only read.
        url: URL of the storage, made where there is none.
        files: Where the files of the studies are now, if not where the studies remember.
        tell: Told every study once it is there.

    Raises:
        StorageError: When the file is no sound backup, or the storage cannot be used.
        StudyError: With all studies that the storage has already.
    """
    if not file.is_file():
        raise StorageError(f"there is no backup {file}")
    with storage_errors(file_url(file)):
        check_database_exists(file.absolute())
        check_integrity(file)
    folder = Path(files).expanduser().absolute() if files else None
    with _in_the_schema_of_now(file) as current, reading(file_url(current)) as connection:
        names = list_studies(connection)
        if not names:
            raise StorageError(f"the backup {file} has no study")
        check_names_free(url, names)
        with writing(url) as engine:
            for name in names:
                study = read_study(connection, name)
                add_study(engine, url, study, folder)
                there = str(folder) if folder else read_attribute(connection, name, ATTRIBUTE)
                tell(Restored(name, len(study.trials), Path(there) if there else None))


@contextmanager
def _in_the_schema_of_now(file: Path) -> Iterator[Path]:
    """Give a database with the tables of the installed Optuna: the file, or a copy of it."""
    with reading(file_url(file)) as connection:
        version = schema_version(connection)
        old = version in known_schemas()[1:]
        if not old:
            check_schema(connection, file_url(file))
    if not old:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="autotune-restore-") as folder:
        copy = Path(folder) / "backup.db"
        _copy_database(file.absolute(), copy)
        upgrade_tables(file_url(copy))
        yield copy
