"""The file of an SQLite database in use: is it still the one that was opened?

A process that has a file open goes on using it after somebody has deleted, moved or replaced it:
no statement fails, and everything that is written is lost with the last process that has it open.
So device and inode of the file are compared before every new connection and under every lock of a
study. As long as a connection is open, what it has written can be saved.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

from autotune.atomic import atomic_file
from autotune.errors import DatabaseLostError, UserError
from autotune.storage.url import sqlite_url
from autotune.text import shell_quote

#: The files that this process has open, as Linux lists them; other systems have no such folder.
_OPEN_FILES = Path("/proc/self/fd")
#: Seconds to wait for a writer.
_TIMEOUT_S = 60.0
#: What can go wrong where something is saved.
_FAILURES = (UserError, OSError, sqlite3.Error, sqlalchemy.exc.SQLAlchemyError)


@dataclass(frozen=True)
class SQLiteFile:
    """The file of a database, by its path and by what the path named when it was opened."""

    path: Path
    device: int
    inode: int

    @staticmethod
    def at(path: Path) -> SQLiteFile:
        """Return the file that a path names now."""
        stat = path.stat()
        return SQLiteFile(path, stat.st_dev, stat.st_ino)

    def is_in_place(self) -> bool:
        """Tell whether the path still names the file."""
        try:
            return self == SQLiteFile.at(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def check(self, engine: sqlalchemy.Engine | None = None) -> None:
        """Raise an error if the file was deleted, moved or replaced.

        Args:
            engine: Where given, what its connections have written is saved, once.

        Raises:
            DatabaseLostError: With where the studies are now.
        """
        if self.is_in_place():
            return
        moved = self._find()
        if moved is not None:
            # Its log may have stayed behind.
            with suppress(*_FAILURES):
                if engine is not None:
                    with engine.connect() as connection:
                        _driver(connection).execute("PRAGMA wal_checkpoint(FULL)")
            raise DatabaseLostError(
                f"storage: the database {self.path} was moved to {moved} while it was in use; "
                "what was stored until then is there: move it back, or continue with --storage "
                f"{shell_quote(sqlite_url(moved))}"
            )
        how = "replaced by another file" if self.path.exists() else "deleted"
        raise self.lost(how, engine)

    def check_rows(self, engine: sqlalchemy.Engine, study_id: int, trials: int) -> int:
        """Count the trials of a study in the file itself, and refuse one that has lost some.

        A backup that is copied over a file (``cp``) keeps its inode, and connections that are
        open go on with the pages that they know.

        Args:
            engine: Its connections have the trials that are missing in the file.
            study_id: Optuna's id of the study.
            trials: How many trials and ends of trials there were before.

        Raises:
            DatabaseLostError: When there are fewer, or the file cannot be read any more.
        """
        query = (
            "SELECT count(*) + sum(state NOT IN ('RUNNING', 'WAITING')) FROM trials "
            "WHERE study_id = ?"
        )
        try:
            uri = f"{self.path.as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, _TIMEOUT_S, uri=True)) as connection:
                count = int(connection.execute(query, (study_id,)).fetchone()[0] or 0)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # busy, or out of reach
                return trials
            raise self.lost("overwritten or damaged", engine) from None
        if count < trials:
            raise self.lost("overwritten by an older one", engine)
        return count

    def lost(self, how: str, engine: sqlalchemy.Engine | None) -> DatabaseLostError:
        """Save what can be saved, and return the error that says so."""
        saved = None if engine is None else self._save(engine)
        if saved is None:
            rest = (
                "what was stored is lost, except for the files beside it (logs, checkpoints, "
                "artifacts); bring a backup back, or start the study again"
            )
        else:
            paths = " ".join(shell_quote(str(path)) for path in (saved, self.path))
            rest = (
                f"what was stored until then is saved in {saved}; stop all processes that use the "
                f"storage, then 'mv {paths}' brings it back"
            )
        return DatabaseLostError(
            f"storage: the database {self.path} was {how} while it was in use; {rest}"
        )

    def _find(self) -> Path | None:
        """Return where the file is now, if it was moved and the system can tell."""
        with suppress(OSError):
            for link in _OPEN_FILES.iterdir():
                with suppress(OSError):
                    stat = link.stat()
                    path = Path(os.readlink(link))
                    if (stat.st_dev, stat.st_ino) == (self.device, self.inode) and path.exists():
                        return path if os.path.samestat(path.stat(), stat) else None
        return None

    def _save(self, engine: sqlalchemy.Engine) -> Path | None:
        """Write what the open connections see to a file beside, unless another process has."""
        target = self.path.with_name(f"{self.path.stem}.saved-{self.inode}.db")
        if target.exists():
            return target
        try:
            with (
                engine.connect() as connection,
                atomic_file(target) as temporary,
                closing(sqlite3.connect(temporary)) as copy,
            ):
                _driver(connection).backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file
                if copy.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("it is damaged")
        except _FAILURES:
            return None
        return target


def _driver(connection: sqlalchemy.Connection) -> sqlite3.Connection:
    """Return the connection of the driver, without a transaction."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
