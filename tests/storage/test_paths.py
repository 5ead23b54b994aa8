from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.data.download.paths import DATA_VARIABLE, data_folder
from autotune.errors import DatasetError, StorageError
from autotune.storage.paths import StudyPaths, remembered_root


@pytest.mark.parametrize(
    ("url", "root", "expected"),
    [
        ("sqlite:///storage/autotune.db", None, "storage/autotune.files"),
        ("sqlite:////data/a.db", None, "/data/a.files"),
        ("sqlite:///~/a.db", None, "/home/me/a.files"),
        # Two databases never share their files.
        ("sqlite:////data/a.sqlite", None, "/data/a.sqlite.files"),
        ("sqlite:////data/exp.1", None, "/data/exp.1.files"),
        # Those of a server are under the working directory.
        ("postgresql://u:secret@host/team", None, "storage/team.files"),
        ("postgresql://host", None, "storage/autotune.files"),
        ("sqlite:///a.db", "/shared/x", "/shared/x"),
        ("postgresql://host/team", "x", "x"),
        ("postgresql://host/team", "~/x", "/home/me/x"),
    ],
)
def test_the_folder_of_the_files(
    url: str, root: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert StudyPaths.from_url(url, root).root == tmp_path / expected


def test_the_home_folder_of_an_unknown_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="files: ~nobody-here/x: Could not determine"):
        StudyPaths.from_url("sqlite:///a.db", "~nobody-here/x")
    monkeypatch.setenv(DATA_VARIABLE, "~nobody-here/x")
    with pytest.raises(DatasetError, match="AUTOTUNE_DATA: ~nobody-here/x: Could not determine"):
        data_folder()


def test_the_files_in_it() -> None:
    files = StudyPaths(Path("/f"))
    assert files.artifacts == Path("/f/artifacts")
    assert files.cache == Path("/f/cache")
    assert files.checkpoint("s", 3) == Path("/f/checkpoints/s/3.pt")
    assert files.confirmed("s") == Path("/f/confirmed/s")
    assert files.log("s", "w") == Path("/f/logs/s/w.log")
    assert files.model("s") == Path("/f/models/s")
    assert files.report("s") == Path("/f/reports/s.html")
    assert files.report("s", "md") == Path("/f/reports/s.md")
    assert files.report("s", "epochs") == Path("/f/reports/epochs/s.csv")
    assert files.report("s", "confirmed-epochs") == Path("/f/reports/confirmed-epochs/s.csv")


def test_the_files_of_a_study_are_found_by_its_name(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path)
    for name in ("s", "v1.2", "notes.md"):
        for path in files.owned_by(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert files.studies() == {"s", "v1.2", "notes.md"}
    for name in ("", ".", "..", "a/../../b"):  # as another program may name a study
        assert files.owned_by(name) == ()


def project(folder: Path, database: str = "autotune.db") -> str:
    """Make a database with its files, and return its URL."""
    path = folder / "storage" / database
    (path.parent / "autotune.files").mkdir(parents=True)
    path.touch()
    return f"sqlite:///{path}"


#: What happens to the project ``a`` -> where its database is afterwards.
MOVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda at: None, "a/storage/autotune.db"),
    "moved": (lambda at: (at / "a").rename(at / "b"), "b/storage/autotune.db"),
    "copied": (lambda at: shutil.copytree(at / "a", at / "b"), "b/storage/autotune.db"),
    "moved, and another one made there": (
        lambda at: ((at / "a").rename(at / "b"), project(at / "a")),
        "b/storage/autotune.db",
    ),
    "moved, and written to by an older version": (
        lambda at: (
            (at / "a").rename(at / "b"),
            (at / "a/storage/autotune.files/reports").mkdir(parents=True),
        ),
        "b/storage/autotune.db",
    ),
    "folder renamed": (
        lambda at: (at / "a/storage").rename(at / "a/studies"),
        "a/studies/autotune.db",
    ),
    "database copied under another name": (
        lambda at: shutil.copy(at / "a/storage/autotune.db", at / "a/storage/copy.db"),
        "a/storage/copy.db",
    ),
    "a link to the folder": (
        lambda at: (at / "b").symlink_to(at / "a"),
        "b/storage/autotune.db",
    ),
    "a link to the database": (
        lambda at: (at / "link.db").symlink_to(at / "a/storage/autotune.db"),
        "link.db",
    ),
}


@pytest.mark.parametrize("is_older", [True, False])
@pytest.mark.parametrize("how", MOVES)
def test_files_lie_beside_a_database_that_was_moved_or_copied(
    how: str, is_older: bool, tmp_path: Path
) -> None:
    move, database = MOVES[how]
    files = StudyPaths.from_url(project(tmp_path / "a"))
    url = f"sqlite:///{tmp_path / database}"
    remembered = str(files.root) if is_older else remembered_root(url, StudyPaths.from_url(url))
    move(tmp_path)
    found = StudyPaths.from_study(url, remembered).root
    assert found.resolve() == (tmp_path / database).resolve().with_suffix(".files")


@pytest.mark.parametrize("name", ["photos", "autotune.files"])
@pytest.mark.parametrize("is_older", [True, False])
def test_a_folder_that_somebody_chose_is_remembered(
    name: str, is_older: bool, tmp_path: Path
) -> None:
    chosen = StudyPaths(tmp_path / "shared" / name)
    url = project(tmp_path / "a")
    remembered = str(chosen.root) if is_older else remembered_root(url, chosen)
    if is_older:
        chosen.root.mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b/storage/autotune.files").rmdir()
    url = f"sqlite:///{tmp_path}/b/storage/autotune.db"
    assert StudyPaths.from_study(url, remembered) == chosen
    assert StudyPaths.from_study(url, remembered, "/x") == StudyPaths(Path("/x"))


def test_the_default_of_a_server_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "postgresql://host/team"
    files = StudyPaths.from_url(url)
    files.root.mkdir(parents=True)
    remembered = remembered_root(url, files)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert StudyPaths.from_study(url, remembered) == StudyPaths.for_run(url, remembered) == files
    files.root.rmdir()  # as on another machine
    assert StudyPaths.for_run(url, remembered).root == tmp_path / "elsewhere/storage/team.files"
