"""Storage URLs: what is allowed, what they mean, and how to show them without a password."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import URL, make_url

from autotune.errors import StorageError, hide_passwords, join_sentences

_EXAMPLES = "sqlite:///path/to/file.db or postgresql://user:password@host/database"


def parse_url(url: str) -> URL:
    """Parse a storage URL and choose its driver; ``~`` is the home folder.

    Raises:
        StorageError: When it is no URL, or that of a database that studies cannot use.
    """
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter for a port that is no number
        encoded = "the characters @ : / ? # % of a password are written %40 %3A %2F %3F %23 %25"
        raise StorageError(
            join_sentences(
                f"storage: {redact(url)!r} is no storage URL",
                f"allowed are {_EXAMPLES.replace(' or ', ' and ')}",
                encoded if "@" in url else "",
            )
        ) from None
    if parsed.drivername.partition("+")[0] in ("postgresql", "postgres"):
        if parsed.host and "@" in parsed.host:
            raise StorageError(
                "storage: an @ in the user or the password must be written as %40, in "
                f"{redact(url)}"
            )
        return parsed.set(drivername="postgresql+psycopg")
    return _parse_sqlite(url, parsed)


def _parse_sqlite(url: str, parsed: URL) -> URL:
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(
            f"storage: studies live in sqlite or postgresql, but got {parsed.drivername!r} in "
            f"{redact(url)}; give {_EXAMPLES}"
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


def is_sqlite(url: str) -> bool:
    """Tell whether a URL is that of an SQLite file."""
    return parse_url(url).drivername.startswith("sqlite")


def redact(url: str) -> str:
    """Return a storage URL without its password, even where it is no URL."""
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is not None and "@" not in (parsed.host or ""):
        return hide_passwords(parsed.render_as_string(hide_password=True))
    front, at, host = url.rpartition("@")
    scheme = re.match(r"[\w+.-]*:/+|", front)
    assert scheme is not None
    return hide_passwords(f"{scheme.group()}***@{host}" if at else url)


def database_path(url: str) -> Path:
    """Return the absolute path of an SQLite database; that of the file itself where it is a link.

    Its lock and its files lie beside it, and are the same by whatever path it is opened.
    """
    database = parse_url(url).database
    assert database is not None
    path = Path(database).absolute()
    return path.resolve() if path.is_symlink() else path


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def absolute_url(url: str) -> str:
    """Return a URL that means the same from every working directory."""
    parsed = parse_url(url)
    if is_sqlite(url):
        parsed = parsed.set(database=str(database_path(url)))
    return parsed.render_as_string(hide_password=False)


def template_of(url: URL) -> str:
    """Return a URL as Optuna wants it: as a template, though a password may have braces."""
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
