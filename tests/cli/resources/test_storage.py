"""``autotune storage``: what people see, and that a study goes on where it was taken."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from autotune.storage import filesystem
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.support.commands.inside import Ended, call, contents
from tests.support.commands.runs import SMALL
from tests.support.study.databases import Server, downgrade
from tests.support.study.rows import everything, rich_study
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


def done(ended: Ended) -> list[str]:
    assert (ended.code, ended.err) == (0, ""), ended
    return ended.out.splitlines()


def refused(*arguments: str, cwd: Path, **extra: str) -> str:
    before = contents(cwd)
    ended = call("storage", *arguments, cwd=cwd, **extra)
    assert ended.code == 2 and ended.err.startswith("error: ") and not ended.out, ended
    assert contents(cwd) == before
    return " ".join(ended.err.split())


def default(folder: Path) -> str:
    return f"sqlite:///{folder}/storage/autotune.db"


@pytest.mark.slow
def test_a_study_moves_to_postgres_and_goes_on_there(
    finished: Path, postgres: Server, tmp_path: Path
) -> None:
    source = default(finished)
    target = postgres.require_password("fritz", "hunter2")
    said = done(
        call(
            *("storage", "copy", "--study", "tiny"),
            cwd=tmp_path,
            AUTOTUNE_STORAGE_FROM=source,
            AUTOTUNE_STORAGE_TO=target,
        )
    )
    (folder,) = (tmp_path / "storage").iterdir()
    found = re.fullmatch(r"copied 'tiny': 4 trials and (\d+) files \(.* [kM]B\) to (.*)", said[0])
    assert found is not None and found[2] == str(folder) and int(found[1]) >= 8
    assert said[1].startswith("continue with --storage postgresql+psycopg://fritz:***@")
    assert said[1].endswith(f"; {source} is unchanged") and len(said) == 2
    assert "hunter2" not in " ".join(said)

    # What the dashboard shows with the trials is there.
    old, new = open_existing("tiny", source), open_existing("tiny", target)
    assert [one.params for one in new.study.trials] == [one.params for one in old.study.trials]
    for trial in new.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        known = get_all_artifact_meta(trial, storage=new.storage)
        assert len(known) >= 2
        for one in known:
            with new.artifacts.open_reader(one.artifact_id) as copied:
                assert copied.read() == (old.files.artifacts / one.artifact_id).read_bytes()

    # The same study file, the same folder to work in, another storage.
    arguments = ("run", "digits", *SMALL, "search.trials=4", "--name", "tiny", "--workers", "1")
    ended = call(*arguments, cwd=tmp_path, AUTOTUNE_STORAGE=target)
    assert (ended.code, ended.err) == (0, "")
    states = [trial.state for trial in open_existing("tiny", target).study.trials]
    assert states.count(TrialState.WAITING) == 0 and len(states) == 4
    assert [trial.state for trial in old.study.trials].count(TrialState.WAITING) == 1
    last = new.study.trials[-1]
    assert all(
        (folder / "artifacts" / one.artifact_id).exists()
        for one in get_all_artifact_meta(last, storage=new.storage)
    )


def test_what_a_copy_says_of_running_trials_and_missing_files(tmp_path: Path) -> None:
    rich_study(default(tmp_path))
    said = done(
        call(
            *("storage", "copy", "--from", default(tmp_path), "--to", "sqlite:///other.db"),
            *("--files", "files"),
            cwd=tmp_path,
        )
    )
    assert said[0].startswith("copied 'rich': ")
    assert said[1] == "  without 1 artifact that could not be found"
    assert said[2].startswith("  2 trials were running: to continue there, stop the workers of")
    opened = open_existing("rich", f"sqlite:///{tmp_path}/other.db")
    assert opened.study.user_attrs[attrs.FILES] == str(tmp_path / "files")


def test_a_backup_is_a_copy_and_so_is_the_way_back(tmp_path: Path) -> None:
    rich_study(default(tmp_path))
    before = everything(default(tmp_path))
    done(call("storage", "copy", "--to", "sqlite:///saved.db", cwd=tmp_path))
    new = f"sqlite:///{tmp_path}/new/b.db"
    done(call("storage", "copy", "--from", "sqlite:///saved.db", "--to", new, cwd=tmp_path))
    assert everything(f"sqlite:///{tmp_path}/saved.db") == everything(new) == before


def test_the_old_names_of_the_verbs(tmp_path: Path) -> None:
    rich_study(default(tmp_path))
    before = everything(default(tmp_path))
    new = f"sqlite:///{tmp_path}/new/b.db"
    for arguments, warning, storage in (
        (
            ("backup", "-o", "a.db"),
            "'storage backup' is now: autotune storage copy --to sqlite",
            "",
        ),
        (
            ("restore", "a.db"),
            "'storage restore' is now: autotune storage copy --from sqlite",
            new,
        ),
        (("local", "--stop"), "'storage local' is now: autotune storage postgres stop", ""),
    ):
        extra = {"AUTOTUNE_STORAGE": storage} if storage else {}
        ended = call("storage", *arguments, cwd=tmp_path, **extra)
        assert ended.code == 0 and ended.err.startswith(f"warning: {warning}")
    assert everything(new) == before
    assert [ended.out.strip()] == done(call("storage", "postgres", "stop", cwd=tmp_path))


def test_upgrade(tmp_path: Path) -> None:
    rich_study(default(tmp_path))
    before = everything(default(tmp_path))
    shown = "sqlite:///storage/autotune.db"
    assert done(call("storage", "upgrade", cwd=tmp_path)) == [f"{shown} is up to date"]
    downgrade(default(tmp_path))
    said = refused_by("status", "rich", cwd=tmp_path)
    assert said.endswith("'autotune storage upgrade' brings it up to date")
    saved, upgraded = done(call("storage", "upgrade", cwd=tmp_path))
    assert upgraded == f"{shown}: upgraded from v3.0.0.d to v3.2.0.a"
    file = Path(saved.removeprefix("backup of the old tables: "))
    assert file.parent == tmp_path / "storage" and ".v3.0.0.d." in file.name
    assert everything(default(tmp_path)) == before == everything(f"sqlite:///{file}")
    assert optuna.get_all_study_names(open_storage(default(tmp_path))) == ["rich"]


def refused_by(*arguments: str, cwd: Path) -> str:
    ended = call(*arguments, cwd=cwd)
    assert ended.code == 2
    return " ".join(ended.err.split())


def test_upgrade_of_a_server(tmp_path: Path, postgres_url: str) -> None:
    rich_study(postgres_url)
    downgrade(postgres_url)
    (said,) = done(call("storage", "upgrade", cwd=tmp_path, AUTOTUNE_STORAGE=postgres_url))
    assert said.endswith(": upgraded from v3.0.0.d to v3.2.0.a")
    assert list(tmp_path.iterdir()) == []


def test_check(tmp_path: Path, postgres_url: str) -> None:
    rich_study(default(tmp_path))
    shown = done(call("storage", "check", cwd=tmp_path))
    assert shown[0] == "sqlite:///storage/autotune.db"
    assert sum(" ok " in line for line in shown) == 9
    shown = done(call("storage", "check", cwd=tmp_path, AUTOTUNE_STORAGE=postgres_url))
    assert sum(" ok " in line for line in shown) == 9


def test_check_finds_problems(tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:9/db"
    ended = call("storage", "check", cwd=tmp_path, AUTOTUNE_STORAGE=url)
    assert (ended.code, ended.err) == (1, "")
    assert re.search(r"reachable +problem +postgresql://me:\*\*\*@", ended.out)
    assert "hunter2" not in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("copy", "--from", "sqlite:///text", "--to", "sqlite:///b.db"), "file is not a database"),
        (("upgrade",), "there is no database "),
        (("check", "--storage", "autotune.db"), "'autotune.db' is no storage URL; allowed are"),
        (
            ("copy", "--from", "sqlite:///a.db", "--to", "sqlite:///a.db"),
            "a copy needs two storages, but both are sqlite:///a.db",
        ),
        (
            ("copy", "--from", "sqlite:///a.db", "--to", "mysql://me@h/d"),
            "mysql://me@h/d",
        ),
        (("copy", "--from", "sqlite:///a.db", "--to", "sqlite:///b.db"), "there is no database "),
        (
            ("copy", "--from", "sqlite:///a.db", "--to", "sqlite:///b.db", "--files", "text"),
            "text must be a folder that can be written",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    (tmp_path / "text").write_text("This is a text, and a long one. " * 100)
    message = refused(*arguments, cwd=tmp_path)
    assert said in message and "hunter2" not in message


def test_a_run_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "mounts").write_text(f"1 0 0:1 / {work} rw - nfs4 server:/team rw\n")
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "mounts")
    ended = call("run", "digits", cwd=work)
    assert ended.code == 2
    assert f"lie on a network file system (nfs4 at {work})" in ended.err
    assert "or use Postgres: --storage postgresql://" in ended.err
    assert list(work.iterdir()) == []


def test_studies_of_the_target_stay(tmp_path: Path) -> None:
    for name in ("a", "b"):
        url = f"sqlite:///{tmp_path}/{name}.db"
        make_study("same", trials=2, running=0, storage=open_storage(url, create=True))
    said = refused("copy", "--from", "sqlite:///a.db", "--to", "sqlite:///b.db", cwd=tmp_path)
    assert "the storage sqlite:///b.db has a study 'same' already, and no study is over" in said
