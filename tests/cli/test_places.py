"""Places that cannot be written: one message, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.atomic import check_folder
from autotune.errors import DiskFullError, PlaceError, UserError, place_error
from autotune.study.state import attrs
from tests.support.commands.inside import call, contents
from tests.support.study.studies import make_study

FILES = "storage/autotune.files"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "storage").mkdir()
    url = f"sqlite:///{tmp_path}/storage/autotune.db"
    make_study("made", trials=3, running=0, storage=url).set_user_attr(attrs.FILES, None)
    return tmp_path


def listing(folder: Path) -> dict[str, str]:
    """List a folder with digests; an SQLite file changes when it is opened."""
    return {
        name: "" if name.endswith("autotune.db") else digest
        for name, digest in contents(folder).items()
    }


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let no file of this process become larger, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def as_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


def as_folder(path: Path) -> None:
    (path / "content").mkdir(parents=True)


#: What is made in the project, as what, and the verb that then has no place.
BLOCKED: list[tuple[str, Callable[[Path], None], tuple[str, ...]]] = [
    (f"{FILES}/reports", as_file, ("report", "made")),
    (FILES, as_file, ("report", "made", "--format", "json")),
    (f"{FILES}/reports/made.md", as_folder, ("report", "made", "--format", "md")),
    (f"{FILES}/models", as_file, ("refit", "made")),
    (f"{FILES}/models/made", as_file, ("refit", "made")),
    (f"{FILES}/confirmed/made", as_file, ("confirm", "made")),
    (f"{FILES}/trainings/made", as_file, ("confirm", "made")),
    (f"{FILES}/trainings", as_file, ("refit", "made")),
    ("out", as_file, ("refit", "made", "-o", "out/model")),
    ("out", as_file, ("report", "made", "-o", "out/page.html")),
    ("out", as_file, ("cp", "digits", "out/my.yaml")),
    ("out", as_file, ("storage", "copy", "--to", "sqlite:///out/b.db")),
    (
        "b.files/logs",
        as_file,
        ("storage", "copy", "--to", "sqlite:///b.db", "--files", "b.files/logs"),
    ),
    ("x", as_file, ("storage", "copy", "--to", "sqlite:////proc/b.db")),
    ("x", as_file, ("report", "made", "-o", "/proc/page.html")),
    ("x", as_file, ("refit", "made", "-o", "/proc/model")),
    ("x", as_file, ("data", "info", "digits", "-o", "x/sheet.png")),
    (f"{FILES}/reports", as_file, ("run", "digits", "--name", "new")),
    (f"{FILES}/logs/new", as_file, ("run", "digits", "--name", "new")),
    (f"{FILES}/reports/new.html", as_folder, ("run", "digits", "--name", "new")),
    ("out", as_file, ("run", "digits", "files=out")),
    ("out", as_file, ("run", "digits", "--storage", "sqlite:///out/a.db")),
]


@pytest.mark.parametrize(
    ("path", "make", "arguments"), BLOCKED, ids=[f"{' '.join(c[2])}, {c[0]}" for c in BLOCKED]
)
def test_a_place_that_is_blocked(
    path: str, make: Callable[[Path], None], arguments: tuple[str, ...], project: Path
) -> None:
    make(project / path)
    before = listing(project)
    ended = call(*arguments, cwd=project)
    assert ended.code == 2, ended.out + ended.err
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert listing(project) == before


def test_a_report_on_a_full_disk(project: Path) -> None:
    call("report", "made", cwd=project)  # a connection, and the libraries
    before = listing(project)
    with largest_file(100_000):
        ended = call("report", "made", "-o", "page.html", cwd=project)
    assert ended.code == 2 and ended.err.startswith("error: no space left on the disk of ")
    assert listing(project) == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device"), DiskFullError),
        (OSError(27, "File too large"), DiskFullError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskFullError),
        (RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos"), DiskFullError),
        (OSError(30, "Read-only file system", "x"), PlaceError),
        (FileExistsError(17, "File exists", "x"), PlaceError),
        (FileNotFoundError(2, "No such file or directory", "x"), PlaceError),
        (RuntimeError("something else"), None),
        (ConnectionResetError(104, "reset"), None),
    ],
)
def test_errors_of_places(error: Exception, expected: type[UserError] | None) -> None:
    found = place_error(error, "model")
    assert type(found) is (expected or type(None))


def test_a_folder_in_which_nobody_may_write() -> None:
    with pytest.raises(UserError, match="must be a folder that can be written"):
        check_folder(Path("/proc/a/b"))
    assert not os.path.exists("/proc/a")
