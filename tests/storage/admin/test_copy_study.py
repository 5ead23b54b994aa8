from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from autotune.errors import StorageError, StudyError
from autotune.storage import filesystem
from autotune.storage.admin.copy_study import Copied, add_study, copy_studies
from autotune.storage.admin.read_only import connect_read_only
from autotune.storage.admin.schema import back_up_sqlite
from autotune.storage.admin.study_rows import read_study
from autotune.storage.paths import CONFIRMED_EPOCHS, EPOCHS, REPORT_FORMATS, StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.heartbeat import read_heartbeat_ages
from tests.storage.conftest import NewUrl
from tests.support.study.databases import Server, downgrade
from tests.support.study.rows import everything, rich_study, trials_of
from tests.support.study.studies import make_study

BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


def copy(source: str, target: str, *studies: str, files: str | None = None) -> list[Copied]:
    told: list[Copied] = []
    copy_studies(source, target, studies, files, told.append)
    return told


def names_in(url: str) -> list[str]:
    return optuna.get_all_study_names(open_storage(url))


@pytest.mark.parametrize("to", ["sqlite", "postgres"])
@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_everything_of_a_study_is_copied_and_goes_on_there(
    source: str, to: str, new_url: NewUrl
) -> None:
    old, new = new_url(source), new_url(to)
    rich_study(old)
    before = everything(old)
    make_study("other", trials=3, storage=open_storage(new, create=True))  # ids are not numbers
    (copied,) = copy(old, new)
    assert everything(new) == before == everything(old)
    assert (copied.name, copied.trials, copied.running) == ("rich", len(trials_of(old)), 2)
    for one, other in zip(trials_of(old), trials_of(new), strict=True):
        other._trial_id = one._trial_id
        # NaN is equal to nothing.
        one.intermediate_values = {k: str(v) for k, v in one.intermediate_values.items()}  # type: ignore[misc]
        other.intermediate_values = {k: str(v) for k, v in other.intermediate_values.items()}  # type: ignore[misc]
        assert one == other
        assert list(one.params) == list(other.params)
    mine, theirs = (
        optuna.load_study(study_name="rich", storage=open_storage(url)) for url in (old, new)
    )
    assert (mine.user_attrs, mine.directions) == (theirs.user_attrs, theirs.directions)
    attributes = [one._storage.get_study_system_attrs(one._study_id) for one in (mine, theirs)]
    assert attributes[0] == attributes[1]
    # A worker may be at work on the old one; once it is silent for long, its trial is reclaimed.
    running = [one._trial_id for one in trials_of(new) if one.state == TrialState.RUNNING]
    ages = read_heartbeat_ages(open_storage(new), running).age_s
    assert len(running) == 2 and all(ages[trial_id] < 60 for trial_id in running)
    theirs.add_trial(optuna.trial.create_trial(value=0.5))
    assert [one.number for one in theirs.trials] == list(range(copied.trials + 1))
    assert len(trials_of(old)) == copied.trials


def test_the_studies_that_are_named_are_copied(new_url: NewUrl) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    storage = open_storage(old, create=True)
    for name in ("a", "b", "c"):
        make_study(name, trials=2, running=0, storage=storage)
    assert [one.name for one in copy(old, new, "c", "a")] == ["a", "c"]
    assert names_in(new) == ["a", "c"]
    assert [one.name for one in copy(old, new, "b")] == ["b"]


@BOTH
def test_a_name_that_is_taken_stops_the_copy_before_it_starts(kind: str, new_url: NewUrl) -> None:
    old, new = new_url("sqlite"), new_url(kind)
    storage, other = open_storage(old, create=True), open_storage(new, create=True)
    for name in ("a", "b", "c"):
        make_study(name, trials=2, running=0, storage=storage)
    for name in ("b", "c"):
        make_study(name, trials=4, running=0, storage=other)
    before = {name: everything(new, name) for name in ("b", "c")}
    with pytest.raises(StudyError) as caught:
        copy(old, new)
    assert "has studies 'b', 'c' already, and no study is overwritten; choose" in str(caught.value)
    assert sorted(names_in(new)) == ["b", "c"]
    assert {name: everything(new, name) for name in ("b", "c")} == before


@BOTH
def test_a_study_that_is_not_there(kind: str, new_url: NewUrl, tmp_path: Path) -> None:
    old = new_url(kind)
    open_storage(old, create=True)
    with pytest.raises(StudyError, match=r"has no study$"):
        copy(old, new_url("sqlite"))
    make_study("alpha", trials=1, running=0, storage=open_storage(old))
    new = new_url("sqlite")
    with pytest.raises(StudyError) as caught:
        copy(old, new, "alpah", "beta", "alpha")
    assert "has no study 'alpah', 'beta'; it has alpha; did you mean 'alpha'?" in str(caught.value)
    assert not Path(new.removeprefix("sqlite:///")).parent.exists()


def test_a_storage_onto_itself(new_url: NewUrl) -> None:
    url = new_url("sqlite")
    rich_study(url)
    with pytest.raises(StorageError, match="a copy needs two storages, but both are sqlite"):
        copy(url, url)


def test_nothing_is_made_where_there_are_no_studies(new_url: NewUrl) -> None:
    url = new_url("postgres")
    with pytest.raises(StorageError, match="holds no studies"):
        copy(url, new_url("sqlite"))
    engine = sqlalchemy.create_engine(url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    with pytest.raises(StorageError, match="there is no database"):
        copy(new_url("sqlite"), url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()


@BOTH
def test_a_name_that_is_taken_meanwhile(kind: str, new_url: NewUrl) -> None:
    old, new = new_url("sqlite"), new_url(kind)
    rich_study(old)
    storage = rich_study(new)
    before = everything(new)
    with connect_read_only(old) as connection:
        study = read_study(connection, "rich")
    with pytest.raises(StudyError, match="has got a study 'rich' meanwhile"):
        add_study(storage.engine, new, study)
    assert everything(new) == before


# Damaged, older and newer


def overwritten(file: Path) -> None:
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


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")


def older(file: Path) -> None:
    downgrade(f"sqlite:///{file}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (overwritten, r"is damaged: |malformed"),
        (cut_short, r"is damaged: |malformed"),
        (text, "file is not a database"),
        (loose_rows, "is damaged: a row of trial_.* belongs to no row of trials"),
        (newer, "have the version v99.0.0.a, and those of the installed Optuna v.*; update"),
        (older, "'autotune storage upgrade' brings them up to date"),
    ],
)
def test_a_file_that_cannot_be_copied(
    spoil: Callable[[Path], None], said: str, new_url: NewUrl, tmp_path: Path
) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old).engine.dispose()
    saved = tmp_path / "saved.db"
    back_up_sqlite(Path(old.removeprefix("sqlite:///")), saved)
    spoil(saved)
    with pytest.raises(StorageError, match=said):
        copy(f"sqlite:///{saved}", new)
    assert not Path(new.removeprefix("sqlite:///")).parent.exists()


# All or nothing


def break_half_way(url: str) -> None:
    """Let the database refuse the last rows of a study that has a parameter ``c``."""
    storage = open_storage(url, create=True)
    statements = {
        "sqlite": [
            "CREATE TRIGGER stop BEFORE INSERT ON trial_params WHEN NEW.param_name = 'c' "
            "BEGIN SELECT RAISE(ABORT, 'stopped half-way'); END"
        ],
        "postgresql": [
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'stopped half-way'; END $$",
            "CREATE TRIGGER stop BEFORE INSERT ON trial_params FOR EACH ROW "
            "WHEN (NEW.param_name = 'c') EXECUTE FUNCTION stop()",
        ],
    }
    with storage.engine.begin() as connection:
        for statement in statements[storage.engine.dialect.name]:
            connection.exec_driver_sql(statement)


@BOTH
def test_a_copy_that_breaks_off_leaves_no_half_study(
    kind: str, new_url: NewUrl, tmp_path: Path
) -> None:
    old, new = new_url("sqlite"), new_url(kind)
    make_study("whole", trials=3, running=0, storage=open_storage(old, create=True))
    rich_study(old)
    fill_files(old, "rich")
    fill_files(old, "whole")
    break_half_way(new)
    told: list[Copied] = []
    target = tmp_path / "target"
    with pytest.raises(StorageError, match="stopped half-way"):
        copy_studies(old, new, files=str(target), on_copied=told.append)
    assert [one.name for one in told] == names_in(new) == ["whole"]
    assert {path.name for path in target.rglob("*") if path.is_file()} == {
        *("whole-artifact", "1.pt", "plan.json", "worker-0.log", "best.safetensors"),
        *("training.json", "curves", "whole.csv"),
        *(f"whole.{form}" for form in REPORT_FORMATS),
    }
    with open_storage(new).engine.connect() as connection:
        for table in ("trials", "trial_params", "study_user_attributes"):
            query = f"SELECT count(*) FROM {table} WHERE {table[:5]}_id NOT IN "
            inner = "SELECT study_id FROM studies" if table[0] == "s" else "SELECT trial_id FROM "
            inner += "" if table[0] == "s" else "trials JOIN studies USING (study_id)"
            assert connection.exec_driver_sql(f"{query}({inner})").scalar() == 0


def test_an_sqlite_file_that_was_made_for_nothing_goes_again(
    new_url: NewUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autotune.storage.admin.copy_study.write_study", fail)
    with pytest.raises(KeyboardInterrupt):
        copy(old, new)
    assert list(Path(new.removeprefix("sqlite:///")).parent.iterdir()) == []


@BOTH
def test_a_copy_is_of_one_moment(kind: str, new_url: NewUrl) -> None:
    """A trial and a count of trials are written in one transaction; no copy sees one alone."""
    old = new_url(kind)
    storage = open_storage(old, create=True)
    study = make_study("s", trials=2, running=0, storage=storage)
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with storage.engine.begin() as connection:
                connection.execute(
                    sqlalchemy.text(
                        "INSERT INTO trials (number, study_id, state) VALUES (:n, :s, 'COMPLETE')"
                    ),
                    {"n": number + 99, "s": study._study_id},
                )
                connection.execute(
                    sqlalchemy.text(
                        "INSERT INTO study_user_attributes (study_id, key, value_json) "
                        "VALUES (:s, :k, '1')"
                    ),
                    {"s": study._study_id, "k": f"count {number}"},
                )

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        counts = []
        for _ in range(5):
            new = new_url("sqlite")
            copy(old, new)
            copied = optuna.load_study(study_name="s", storage=open_storage(new))
            late = sum(one.number > 99 for one in copied.get_trials(deepcopy=False))
            assert late == sum(key.startswith("count ") for key in copied.user_attrs)
            counts.append(late)
    finally:
        stop.set()
        worker.join(60)
    assert counts[-1] > counts[0]


# Files


def fill_files(url: str, name: str, root: Path | None = None) -> StudyPaths:
    """Write the files of a study; by default where its storage has them."""
    files = StudyPaths(root) if root else StudyPaths.from_url(url)
    artifact = f"{name}-artifact"
    own = (
        files.checkpoint(name, 1),
        files.confirmed(name) / "plan.json",
        files.log(name, "worker-0"),
        files.model(name) / "best.safetensors",
        *(files.report(name, form) for form in (*REPORT_FORMATS, EPOCHS, CONFIRMED_EPOCHS)),
        files.trainings(name) / "training.json",
        files.predictions(name),
        files.tensorboard(name) / "curves",
    )
    for path in (files.artifacts / artifact, *own, files.cache / "images"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} of {name}")
    storage = open_storage(url)
    study_id = storage.get_study_id_from_name(name)
    storage.set_study_user_attr(study_id, "files", str(files.root))
    meta = json.dumps({"artifact_id": artifact})
    storage.set_study_system_attr(study_id, f"artifacts:{artifact}", meta)
    # One that the dashboard has deleted is no longer to be there.
    storage.set_study_system_attr(study_id, "artifacts:deleted", json.dumps(None))
    return files


def folder_of(url: str, name: str = "rich") -> str:
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    return str(StudyPaths.from_study(url, study.user_attrs["files"]).root)


@BOTH
def test_files_go_along(
    kind: str, new_url: NewUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = new_url("sqlite"), new_url(kind)
    rich_study(old)
    fill_files(old, "rich")
    (copied,) = copy(old, new)
    goal = StudyPaths.from_url(new)
    assert folder_of(new) == str(goal.root) and folder_of(old) == str(
        StudyPaths.from_url(old).root
    )
    for path in (goal.artifacts / "rich-artifact", *(one for one in goal.owned_by("rich"))):
        assert path.exists()
    assert (goal.artifacts / "rich-artifact").read_text() == "rich-artifact of rich"
    assert not goal.cache.exists()
    assert (copied.files.count, copied.files.folder, copied.files.missing) == (16, goal.root, 1)


def test_artifacts_of_an_earlier_copy_are_left_as_they_are(
    new_url: NewUrl, tmp_path: Path
) -> None:
    old = new_url("sqlite")
    rich_study(old)
    fill_files(old, "rich")
    shared = tmp_path / "shared"
    copy(old, new_url("sqlite"), files=str(shared))
    for path in StudyPaths(shared).owned_by("rich"):
        path.rename(tmp_path / f"{path.name} of {path.parent.name}")
    broken = new_url("sqlite")
    break_half_way(broken)
    with pytest.raises(StorageError, match="stopped half-way"):
        copy(old, broken, files=str(shared))
    assert (shared / "artifacts/rich-artifact").read_text() == "rich-artifact of rich"


@pytest.mark.parametrize("chosen", [None, "other"])
def test_a_folder_that_somebody_chose_stays_until_another_is_chosen(
    chosen: str | None, new_url: NewUrl, tmp_path: Path
) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old)
    fill_files(old, "rich", tmp_path / "shared")
    (copied,) = copy(old, new, files=str(tmp_path / chosen) if chosen else None)
    folder = tmp_path / (chosen or "shared")
    assert folder_of(new) == str(folder)
    count = 10 + len(REPORT_FORMATS) if chosen else 0
    assert (copied.files.count, copied.files.folder) == (count, folder)
    assert (folder / "artifacts/rich-artifact").exists()
    assert not StudyPaths.from_url(new).root.exists()


def test_files_of_a_database_that_was_moved_with_them(new_url: NewUrl, tmp_path: Path) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old)
    files = fill_files(old, "rich")
    files.root.parent.rename(tmp_path / "moved")
    (copied,) = copy(f"sqlite:///{tmp_path}/moved/study.db", new)
    assert (copied.files.count, copied.files.folder) == (
        10 + len(REPORT_FORMATS),
        StudyPaths.from_url(new).root,
    )


def test_files_that_are_in_the_chosen_folder_stay(new_url: NewUrl, tmp_path: Path) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old)
    fill_files(old, "rich", tmp_path / "before").root.rename(tmp_path / "now")
    (copied,) = copy(old, new, files=str(tmp_path / "now"))
    assert (copied.files.count, copied.files.folder) == (0, tmp_path / "now")
    assert folder_of(new) == str(tmp_path / "now")


def test_files_in_the_way_are_not_overwritten(new_url: NewUrl) -> None:
    old, new = new_url("sqlite"), new_url("sqlite")
    rich_study(old)
    fill_files(old, "rich")
    model = StudyPaths.from_url(new).model("rich")
    model.mkdir(parents=True)
    with pytest.raises(StorageError, match=f"{model} exists and is not overwritten; move it"):
        copy(old, new)
    assert not Path(new.removeprefix("sqlite:///")).exists()


# Where SQLite must not be


def test_the_way_out_of_a_network_file_system(
    new_url: NewUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_url("sqlite"), new_url("postgres")
    rich_study(old)
    before = everything(old)
    (tmp_path / "mounts").write_text(f"1 0 0:1 / {Path(old[10:]).parent} rw - nfs4 s:/team rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "mounts")
    with pytest.raises(StorageError, match="a network file system"):
        open_storage(old)
    copy(old, new)
    assert everything(new) == before
    with pytest.raises(StorageError, match="a network file system"):
        copy(new, old)


def test_a_password_is_shown_nowhere_and_stored_nowhere(
    new_url: NewUrl, postgres: Server, tmp_path: Path
) -> None:
    old = new_url("sqlite")
    rich_study(old)
    new = postgres.require_password("berta", "sec{re}t")
    copy(old, new, files=str(tmp_path / "files"))
    with pytest.raises(StudyError) as caught:
        copy(old, new)
    assert "berta:***@" in str(caught.value)
    assert "sec{re}t" not in str(caught.value) + repr(everything(new))
    back = new_url("sqlite")
    copy(new, back)
    assert b"sec{re}t" not in Path(back.removeprefix("sqlite:///")).read_bytes()
