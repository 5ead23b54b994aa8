from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autotune.errors import StorageError, StudyError
from autotune.storage.admin.backup import Restored, backup, restore
from autotune.storage.rdb.connection import open_storage
from tests.storage.conftest import NewUrl
from tests.support.postgres import Server
from tests.support.rows import everything, rich_study
from tests.support.schema import downgrade
from tests.support.studies import make_study

BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


def put_back(file: Path, url: str, files: str | None = None) -> list[Restored]:
    told: list[Restored] = []
    restore(file, url, files, told.append)
    return told


@pytest.mark.parametrize("to", ["sqlite", "postgres"])
@BOTH
def test_there_and_back(kind: str, to: str, new_url: NewUrl, tmp_path: Path) -> None:
    old, new, file = new_url(kind), new_url(to), tmp_path / "backup.db"
    storage = rich_study(old)
    make_study("other", trials=3, storage=storage)
    before = {name: everything(old, name) for name in ("rich", "other")}
    assert backup(old, file) == ["rich", "other"]
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["backup.db"]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    content = file.read_bytes()
    told = put_back(file, new)
    assert [one.name for one in told] == ["rich", "other"]
    assert told[0].folder == Path("/data/digits-files")
    assert {name: everything(new, name) for name in ("rich", "other")} == before
    assert file.read_bytes() == content


@BOTH
def test_workers_go_on_meanwhile(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    url = new_url(kind)
    storage = open_storage(url, create=True)
    study = make_study("s", trials=2, running=0, retried=0, failed=0, storage=storage)
    stop, wrote = threading.Event(), [0]

    def work() -> None:
        while not stop.is_set():
            study.add_trial(optuna.trial.create_trial(value=0.5, intermediate_values={1: 0.5}))
            wrote[0] += 1

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        counts = []
        for number in range(4):
            before = wrote[0]
            backup(url, tmp_path / f"{number}.db")
            again = open_storage(f"sqlite:///{tmp_path}/{number}.db")
            trials = optuna.load_study(study_name="s", storage=again).get_trials(deepcopy=False)
            assert [one.number for one in trials] == list(range(len(trials)))
            added = trials[2:]
            assert len(added) >= before
            assert all(one.state == TrialState.COMPLETE for one in added)
            assert all(one.value == one.intermediate_values[1] == 0.5 for one in added)
            counts.append(len(added))
    finally:
        stop.set()
        worker.join(60)
    assert counts == sorted(counts) and counts[-1] > counts[0]


@BOTH
def test_no_file_is_overwritten(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    url, file = new_url(kind), tmp_path / "mine.db"
    rich_study(url)
    file.write_text("mine")
    with pytest.raises(StorageError, match=r"the file .*mine.db exists and is not overwritten"):
        backup(url, file)
    assert file.read_text() == "mine"


@BOTH
def test_a_backup_that_fails_leaves_nothing(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    url = new_url(kind)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(StorageError, match=r"there is no database|holds no studies"):
        backup(url, target / "a.db")
    assert list(target.iterdir()) == []


@BOTH
def test_no_study_is_overwritten(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    old, new, file = new_url("sqlite"), new_url(kind), tmp_path / "backup.db"
    storage, other = open_storage(old, create=True), open_storage(new, create=True)
    for name in ("a", "b", "c"):
        make_study(name, trials=2, running=0, storage=storage)
    for name in ("a", "c"):
        make_study(name, trials=3, running=0, storage=other)
    backup(old, file)
    before = {name: everything(new, name) for name in ("a", "c")}
    with pytest.raises(StudyError, match="has studies 'a', 'c' already, and no study is overwr"):
        put_back(file, new)
    assert optuna.get_all_study_names(other) == ["a", "c"]
    assert {name: everything(new, name) for name in ("a", "c")} == before


def damaged(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = os.urandom(4096)
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def text(file: Path) -> None:
    file.write_text("This is a text, and a long one. " * 100)


def loose_rows(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM trials WHERE number = 3")


def no_study(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM trials")
        connection.execute("DELETE FROM studies")
        for table in ("study_directions", "study_user_attributes", "study_system_attributes"):
            connection.execute(f"DELETE FROM {table}")
        for table in ("values", "params", "user_attributes", "system_attributes", "heartbeats"):
            connection.execute(f"DELETE FROM trial_{table}")
        connection.execute("DELETE FROM trial_intermediate_values")


def gone(file: Path) -> None:
    file.unlink()


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, r"is damaged: |malformed"),
        (cut_short, r"is damaged: |malformed"),
        (text, "file is not a database"),
        (loose_rows, "is damaged: a row of trial_.* belongs to no row of trials"),
        (no_study, "the backup .* has no study"),
        (gone, "there is no backup "),
        (newer, "are of version v99.0.0.a, and those of the installed Optuna of v.*; update"),
    ],
)
def test_a_file_that_is_no_sound_backup(
    spoil: object, said: str, new_url: NewUrl, tmp_path: Path
) -> None:
    assert callable(spoil)
    old, new, file = new_url("sqlite"), new_url("sqlite"), tmp_path / "backup.db"
    rich_study(old)
    backup(old, file)
    spoil(file)
    with pytest.raises(StorageError, match=said):
        put_back(file, new)
    assert not Path(new.removeprefix("sqlite:///")).parent.exists()


@BOTH
def test_a_backup_of_an_older_optuna(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    old, new, file = new_url("sqlite"), new_url(kind), tmp_path / "backup.db"
    rich_study(old)
    before = everything(old)
    downgrade(old)
    backup(old, file)
    content = file.read_bytes()
    put_back(file, new)
    assert everything(new) == before
    assert file.read_bytes() == content


def test_files_that_are_elsewhere_now(new_url: NewUrl, tmp_path: Path) -> None:
    old, new, file = new_url("sqlite"), new_url("sqlite"), tmp_path / "backup.db"
    rich_study(old)
    backup(old, file)
    (told,) = put_back(file, new, str(tmp_path / "files"))
    study = optuna.load_study(study_name="rich", storage=open_storage(new))
    assert study.user_attrs["files"] == str(told.folder) == str(tmp_path / "files")


def test_the_password_is_not_in_the_backup(
    new_url: NewUrl, postgres: Server, tmp_path: Path
) -> None:
    url = postgres.require_password("clara", "sec{re}t")
    rich_study(url)
    backup(url, tmp_path / "backup.db")
    assert b"sec{re}t" not in (tmp_path / "backup.db").read_bytes()
