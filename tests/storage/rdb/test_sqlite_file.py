"""What happens to the file of an SQLite database while a study has it open."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autotune.errors import DatabaseLostError
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.study_lock import study_lock

pytestmark = pytest.mark.usefixtures("closed_connections")


def back_up(file: Path) -> Path:
    """Copy a database as one file, as it is now."""
    target = file.parent.parent / "backup.db"
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    return target


def count_trials(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])


def remake(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE other (number)")


def overwrite(file: Path, backup: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copyfile(backup, file)


#: What is done to a database and its older backup -> what the message says, and where the trials
#: are in the end; ``*`` where they were saved.
LOSSES: dict[str, tuple[Callable[[Path, Path], object], str, str]] = {
    "deleted": (lambda file, _: file.unlink(), "was deleted", "*"),
    "its folder deleted": (lambda file, _: shutil.rmtree(file.parent), "was deleted", "*"),
    "replaced": (lambda file, _: remake(file), "was replaced by another file", "*"),
    "restored": (lambda file, backup: backup.replace(file), "was replaced by another file", "*"),
    "moved": (
        lambda file, _: file.rename(file.parent.parent / "other.db"),
        "was moved to",
        "other.db",
    ),
    "its folder moved": (
        lambda file, _: file.parent.rename(file.parent.parent / "moved"),
        "was moved to",
        "moved/study.db",
    ),
    "its folder moved and made anew": (
        lambda file, backup: (
            file.parent.rename(file.parent.parent / "moved"),
            file.parent.mkdir(),
            shutil.copy(backup, file),
        ),
        "was moved to",
        "moved/study.db",
    ),
    "overwritten": (overwrite, "was overwritten", ""),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_file_that_is_lost_is_noticed_and_what_can_be_is_saved(how: str, tmp_path: Path) -> None:
    lose, message, place = LOSSES[how]
    file = tmp_path / "storage" / "study.db"
    url = f"sqlite:///{file}"
    storage = open_storage(url, create=True)
    study = optuna.create_study(study_name="it", storage=storage)
    backup = back_up(file)
    for value in range(50):
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=value))
    storage.check_rows(0)
    storage.check_rows(study._study_id)
    lose(file, backup)
    with pytest.raises(DatabaseLostError) as caught, study_lock(storage, url, "it"):
        storage.check_rows(study._study_id)
    assert message in str(caught.value) and str(file) in str(caught.value)
    if place == "*":
        (saved,) = file.parent.glob("study.saved-*.db")
        assert str(saved) in str(caught.value)
    if place:
        assert count_trials(saved if place == "*" else tmp_path / place) == 50
    storage.engine.dispose()
    with pytest.raises(DatabaseLostError):  # and no empty database is made
        storage.check_file()
        storage.get_all_studies()
        storage.check_rows(study._study_id)


def test_a_link_to_the_database_that_is_turned_to_another_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        optuna.create_study(
            study_name=name, storage=open_storage(f"sqlite:///{tmp_path}/{name}.db", create=True)
        )
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "a.db")
    storage = open_storage(f"sqlite:///{link}")
    storage.check_file()
    link.unlink()
    link.symlink_to(tmp_path / "b.db")
    with pytest.raises(DatabaseLostError, match="was moved to"):
        storage.check_file()
