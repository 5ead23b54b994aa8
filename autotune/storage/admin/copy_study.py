"""Studies copied from one storage to another: SQLite or Postgres, in any direction.

A copy into an SQLite file is the backup of a storage, and copying it back restores it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

from autotune.errors import StorageError, StudyError
from autotune.format_versions import ATTRIBUTE as FORMAT
from autotune.format_versions import STUDY, check_format
from autotune.storage.admin.read_only import (
    connect_read_only,
    has_tables,
    list_studies,
    reading_engine,
    select_studies,
    sqlite_damage,
)
from autotune.storage.admin.schema import check_schema
from autotune.storage.admin.study_files import (
    CopiedFiles,
    check_no_conflict,
    copied_files,
    plan_copy,
)
from autotune.storage.admin.study_rows import StudyRows, read_attributes, read_study, write_study
from autotune.storage.filesystem import check_not_network
from autotune.storage.paths import ATTRIBUTE, StudyPaths, remembered_root
from autotune.storage.rdb.connection import has_content, open_storage, storage_errors
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact


@dataclass(frozen=True)
class Copied:
    """A study that was copied: the numbers of its trials, and what became of its files."""

    name: str
    trials: int
    running: int
    files: CopiedFiles


def copy_studies(
    source: str,
    target: str,
    studies: Sequence[str] | None = None,
    files: str | None = None,
    on_copied: Callable[[Copied], None] = lambda copied: None,
) -> None:
    """Copy studies with everything that belongs to them; by default all of a storage.

    A study is copied as it is at one moment, in one transaction: wholly or not at all. Its files
    are copied from the default folder of the source to that of the target, or to ``files``; a
    folder that somebody chose stays the study's folder. The target is made if there is none.

    Raises:
        StudyError: When the source lacks one of the studies, or the target has one already.
        StorageError: When a storage cannot be used or is damaged, or files are in the way.
        FormatError: When a later version of autotune has written one of the studies.
    """
    if absolute_url(source) == absolute_url(target):
        raise StorageError(
            f"a copy needs two storages, but both are {redact(source)}; name another one with --to"
        )
    source_files, target_files = StudyPaths.from_url(source), StudyPaths.from_url(target, files)
    with connect_read_only(source) as connection:
        if is_sqlite(source) and (damage := sqlite_damage(database_path(source))):
            raise StorageError(f"{redact(source)} is damaged: {damage[0]}; take a backup of it")
        check_schema(connection, source)
        names = select_studies(connection, source, studies)
        check_names_free(target, names)
        plans: dict[str, tuple[StudyPaths, StudyPaths] | None] = {}
        for name in names:
            # A later version may keep files that this one would leave behind.
            attributes = read_attributes(connection, name)
            check_format(attributes.get(FORMAT), STUDY, f"the study {name!r}")
            plan = None
            if ATTRIBUTE in attributes:  # a study of another program has none
                origin = StudyPaths.from_study(source, attributes[ATTRIBUTE])
                plan = plan_copy(origin, source_files, target_files, files is not None)
            plans[name] = plan
            if plan and plan[0] != plan[1]:
                check_no_conflict(name, target_files)
        with _writing(target) as engine:
            for name, plan in plans.items():
                on_copied(_copy(read_study(connection, name), plan, engine, target))


def _copy(
    study: StudyRows,
    plan: tuple[StudyPaths, StudyPaths] | None,
    engine: sqlalchemy.Engine,
    target: str,
) -> Copied:
    if plan and plan[0] != plan[1]:
        copying: AbstractContextManager[CopiedFiles] = copied_files(study, *plan)
    else:
        copying = nullcontext(CopiedFiles(plan[0].root if plan else None))
    with copying as files:
        add_study(engine, target, study, files.folder)
    return Copied(study.name, len(study.trials), study.running, files)


def check_names_free(target: str, names: Sequence[str]) -> None:
    """Refuse to copy studies to a storage that has some of these names; nothing is made.

    Raises:
        StudyError: With all names that are taken.
    """
    if is_sqlite(target):
        path = database_path(target)
        check_not_network(path)
        if not has_content(path):
            return
    with storage_errors(target), reading_engine(target).connect() as connection:
        existing = list_studies(connection) if has_tables(connection) else []
    taken = [repr(name) for name in names if name in existing]
    if taken:
        raise StudyError(
            f"the storage {redact(target)} has {'studies' if taken[1:] else 'a study'} "
            f"{', '.join(taken)} already, and no study is overwritten; choose other studies "
            "or another storage"
        )


@contextmanager
def _writing(target: str) -> Iterator[sqlalchemy.Engine]:
    """Yield an engine that writes studies; a new SQLite file is removed if nothing was written."""
    new = is_sqlite(target) and not database_path(target).exists()
    engine: sqlalchemy.Engine | None = None
    try:
        engine = open_storage(target, create=True).engine
        yield engine
    except BaseException:
        if new and engine is not None:
            with engine.connect() as connection:
                new = not list_studies(connection)
            engine.dispose()
        if new:
            path = database_path(target)
            for made in (path, *(Path(f"{path}{end}") for end in ("-wal", "-shm", ".lock"))):
                with suppress(OSError):  # it cannot be there
                    made.unlink(missing_ok=True)
        raise
    finally:
        if engine is not None:
            engine.dispose()


def add_study(
    engine: sqlalchemy.Engine, target: str, study: StudyRows, folder: Path | None = None
) -> None:
    """Write a study to an open storage; its files are in ``folder`` now, if one is given.

    Raises:
        StudyError: When another process has just made a study of that name.
        StorageError: When it cannot be written.
    """
    if folder is not None:
        study = study.with_attribute(ATTRIBUTE, remembered_root(target, StudyPaths(folder)))
    with storage_errors(target):
        try:
            write_study(engine, study)
        except sqlalchemy.exc.IntegrityError as error:
            with engine.connect() as connection:
                if study.name not in list_studies(connection):
                    raise
            raise StudyError(
                f"the storage {redact(target)} has got a study {study.name!r} meanwhile, and no "
                "study is overwritten"
            ) from error
