from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import StorageError
from autotune.storage.paths import StudyPaths


def test_the_files_of_sqlite_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        StudyPaths.from_url("sqlite:///storage/autotune.db").root
        == tmp_path / "storage/autotune.files"
    )
    assert StudyPaths.from_url("sqlite:////data/a.db").root == Path("/data/a.files")
    assert StudyPaths.from_url("sqlite:///~/a.db").root == Path("/home/me/a.files")


def test_two_databases_never_share_their_files() -> None:
    names = ("a.db", "a.sqlite", "exp.1", "exp.2")
    assert len({StudyPaths.from_url(f"sqlite:////data/{name}").root for name in names}) == len(
        names
    )


def test_the_files_of_a_server_lie_under_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "storage"
    assert StudyPaths.from_url("postgresql://u:secret@host/team").root == root / "team.files"
    assert StudyPaths.from_url("postgresql://host").root == root / "autotune.files"


def test_an_explicit_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for url in ("sqlite:///a.db", "postgresql://host/team"):
        assert StudyPaths.from_url(url, "/shared/x").root == Path("/shared/x")
        assert StudyPaths.from_url(url, "x").root == tmp_path / "x"
        assert StudyPaths.from_url(url, "~/x").root == Path("/home/me/x")


def test_what_lies_where() -> None:
    files = StudyPaths(Path("/f"))
    assert files.artifacts == Path("/f/artifacts")
    assert files.cache == Path("/f/cache")
    assert files.checkpoint("s", 3) == Path("/f/checkpoints/s/3.pt")
    assert files.confirmed("s") == Path("/f/confirmed/s")
    assert files.log("s", "w") == Path("/f/logs/s/w.log")
    assert files.model("s") == Path("/f/models/s")
    assert files.report("s") == Path("/f/reports/s.html")
    assert files.report("s", "md") == Path("/f/reports/s.md")


def test_the_files_of_a_study_are_found_by_its_name(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path)
    for name in ("s", "v1.2", "notes.md"):
        for path in files.owned_by(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert files.studies() == {"s", "v1.2", "notes.md"}


def test_no_url() -> None:
    with pytest.raises(StorageError, match="is no storage URL"):
        StudyPaths.from_url("storage/autotune.db")
