"""Storage URLs: what they may say, what they mean, and how they may be shown."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from autotune.errors import StorageError, hide_passwords, join_sentences


def parse_url(url: str) -> URL:
    """Parse a storage URL and settle its driver; ``~`` is the home folder.

    Raises:
        StorageError: When it is no URL, or one of a database that studies cannot use.
    """
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter for a port that is no number
        encoded = "the characters @ : / ? # % of a password are written %40 %3A %2F %3F %23 %25"
        raise StorageError(
            join_sentences(
                f"storage: {redact(url)!r} is no storage URL",
                "allowed are sqlite:///path/to/file.db and postgresql://user:password@host/database",
                encoded if "@" in url else "",
            )
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend in ("postgresql", "postgres"):
        return _parse_postgres(url, parsed)
    if backend == "grpc":
        raise StorageError(
            f"storage: autotune has no proxy any more, but got {redact(url)}; give the URL of the "
            "database, postgresql://user:password@host/database, and where very many workers need "
            "more connections than it has, that of a PgBouncer in session mode before it "
            "(docs/storage.md)"
        )
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(
            f"storage: studies live in sqlite or postgresql, but got {parsed.drivername!r} in "
            f"{redact(url)}; give sqlite:///path/to/file.db or "
            "postgresql://user:password@host/database"
        )
    database = parsed.database or ":memory:"
    if database == ":memory:" or database.startswith("file:"):
        raise StorageError(
            "storage: workers are processes of their own and need a database file, but got "
            f"{url}; give sqlite:///path/to/file.db"
        )
    if parsed.query:
        raise StorageError(f"storage: an SQLite URL has no options after ?, but got {url}")
    if parsed.host or database.endswith("/") or Path(database).is_dir():
        raise StorageError(
            f"storage: {redact(url)} must name a file; a path has three slashes "
            "(sqlite:///path/to/file.db), an absolute one four (sqlite:////path/to/file.db)"
        )
    try:
        return parsed.set(database=str(Path(database).expanduser()))
    except RuntimeError as error:
        raise StorageError(f"storage: {url}: {error}") from None


def _parse_postgres(url: str, parsed: URL) -> URL:
    if parsed.host and "@" in parsed.host:
        raise StorageError(
            f"storage: an @ in the user or the password must be written as %40, in {redact(url)}"
        )
    return parsed.set(drivername="postgresql+psycopg")


def is_sqlite(url: str) -> bool:
    """Tell whether a URL is that of an SQLite file."""
    return parse_url(url).drivername.startswith("sqlite")


def redact(url: str) -> str:
    """Return a storage URL that may be shown: without its password, even where it is no URL."""
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is None or (parsed.host and "@" in parsed.host):
        front, at, host = url.rpartition("@")
        shown = f"{_scheme(front)}***@{host}" if at else url
    else:
        shown = parsed.render_as_string(hide_password=True)
    return hide_passwords(shown)


def _scheme(url: str) -> str:
    found = re.match(r"[\w+.-]*:/*", url)
    return found.group() if found and "/" in found.group() else ""


def database_path(url: str) -> Path:
    """Return the absolute path of an SQLite database."""
    database = parse_url(url).database
    assert database is not None
    return Path(database).absolute()


def absolute_url(url: str) -> str:
    """Return a URL that means the same from every working directory."""
    parsed = parse_url(url)
    if is_sqlite(url):
        parsed = parsed.set(database=str(database_path(url)))
    return parsed.render_as_string(hide_password=False)


def template_of(url: URL) -> str:
    """Return a URL as Optuna wants it: as a template, though a password may have braces."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
