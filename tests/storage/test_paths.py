from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import StorageError
from autotune.storage.paths import StudyPaths


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


def test_the_files_of_a_study_are_found_by_its_name(tmp_path: Path) -> None:
    files = StudyPaths(tmp_path)
    for name in ("s", "v1.2", "notes.md"):
        for path in files.owned_by(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert files.studies() == {"s", "v1.2", "notes.md"}


def test_no_url() -> None:
    with pytest.raises(StorageError, match="is no storage URL"):
        StudyPaths.from_url("autotune.db")
