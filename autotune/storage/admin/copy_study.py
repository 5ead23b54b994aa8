"""Studies copied from one storage to another: SQLite or Postgres, in any direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

from autotune.errors import StorageError, StudyError
from autotune.format_versions import ATTRIBUTE as FORMAT
from autotune.format_versions import STUDY, check_format
from autotune.storage.admin.read_only import (
    check_schema,
    has_tables,
    list_studies,
    reading,
    reading_engine,
    select_studies,
)
from autotune.storage.admin.study_files import (
    CopiedFiles,
    CopyPlan,
    check_no_conflict,
    copied_files,
)
from autotune.storage.admin.study_rows import StudyRows, read_attribute, read_study, write_study
from autotune.storage.filesystem import check_not_network
from autotune.storage.paths import ATTRIBUTE, StudyPaths
from autotune.storage.rdb.connection import open_storage, storage_errors
from autotune.storage.url import absolute_url, database_path, is_sqlite, redact


@dataclass(frozen=True)
class Copied:
    """A study that was copied.

    Args:
        name: Its name.
        trials: How many trials it has.
        running: How many of them were at work when it was read.
        files: What became of its files.
    """

    name: str
    trials: int
    running: int
    files: CopiedFiles


def copy_studies(
    source: str,
    target: str,
    studies: Sequence[str] | None = None,
    files: str | None = None,
    tell: Callable[[Copied], None] = lambda copied: None,
) -> None:
    """Copy studies with everything that belongs to them.

    A study is copied as it is at one moment, in one transaction: wholly or not at all. Its files
    go along from the folder that the source has by default to the one that the target has; a
    folder that somebody chose stays the study's folder.

    Args:
        source: URL of the storage that has them; it is only read.
        target: URL of the storage that is to have them, made where there is none.
        studies: Their names; all studies by default.
        files: Another folder for the files.
        tell: Told every study once it is there.

    Raises:
        StudyError: When the source lacks one of the studies, or the target has one already.
        StorageError: When a storage cannot be used, or files are in the way.
        FormatError: When a later version of autotune has written one of the studies.
    """
    if absolute_url(source) == absolute_url(target):
        raise StorageError(
            f"a copy needs two storages, but both are {redact(source)}; name another one with --to"
        )
    beside, goal = StudyPaths.from_url(source), StudyPaths.from_url(target, files)
    with reading(source) as connection:
        check_schema(connection, source)
        names = select_studies(connection, source, studies)
        check_names_free(target, names)
        routes: dict[str, CopyPlan] = {}
        for name in names:
            # A later version may keep files that this one would leave behind.
            check_format(read_attribute(connection, name, FORMAT), STUDY, f"the study {name!r}")
            remembered = read_attribute(connection, name, ATTRIBUTE)
            routes[name] = CopyPlan.decide(remembered, beside, goal, files is not None)
            if routes[name].goal:
                check_no_conflict(name, goal)
        with writing(target) as engine:
            for name, route in routes.items():
                tell(_copy(read_study(connection, name), route, engine, target))


def _copy(study: StudyRows, route: CopyPlan, engine: sqlalchemy.Engine, target: str) -> Copied:
    stay = nullcontext(CopiedFiles(route.origin.root if route.origin else None))
    go = route.origin and route.goal and copied_files(study, route.origin, route.goal)
    with go or stay as taken:
        add_study(engine, target, study, taken.folder)
    return Copied(study.name, len(study.trials), study.running, taken)


def check_names_free(target: str, names: Sequence[str]) -> None:
    """Refuse to write studies where there are some of the same name; nothing is made.

    Args:
        target: URL of the storage that is to have them, whether it is there or not.
        names: Their names.

    Raises:
        StudyError: With all names that are taken.
        StorageError: When the storage cannot be used.
    """
    if is_sqlite(target):
        path = database_path(target)
        check_not_network(path)
        if not path.exists() or not path.stat().st_size:
            return
    with storage_errors(target), reading_engine(target).connect() as connection:
        there = list_studies(connection) if has_tables(connection) else []
    both = [repr(name) for name in names if name in there]
    if both:
        one = len(both) == 1
        raise StudyError(
            f"the storage {redact(target)} has {'a study' if one else 'studies'} "
            f"{', '.join(both)} already, and no study is overwritten; choose other studies "
            "or another storage"
        )


@contextmanager
def writing(target: str) -> Iterator[sqlalchemy.Engine]:
    """Open a storage for writing studies, making it where there is none.

    An SQLite file that was made goes again when nothing could be written.

    Raises:
        StorageError: When it cannot be used.
    """
    new = is_sqlite(target) and not database_path(target).exists()
    engine = open_storage(target, create=True).engine
    try:
        yield engine
    except BaseException:
        if new:
            with engine.connect() as connection:
                new = not list_studies(connection)
            engine.dispose()
            if new:
                path = database_path(target)
                for made in (path, *(Path(f"{path}{end}") for end in ("-wal", "-shm", ".lock"))):
                    made.unlink(missing_ok=True)
        raise
    finally:
        engine.dispose()


def add_study(
    engine: sqlalchemy.Engine, target: str, study: StudyRows, folder: Path | None = None
) -> None:
    """Write a study to an open storage, wholly or not at all.

    Args:
        engine: Engine of the storage.
        target: Its URL.
        study: The study.
        folder: Where its files are, if not where it remembers.

    Raises:
        StudyError: When another process has just made a study of that name.
        StorageError: When it cannot be written.
    """
    if folder is not None:
        study = study.with_attribute(ATTRIBUTE, str(folder))
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
