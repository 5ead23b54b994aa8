"""``autotune doctor``: what it says, its exit codes, and a study that runs meanwhile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState

from autotune.storage.rdb.connection import open_storage
from autotune.study.doctor.checks import check_study
from autotune.study.setup.opening import open_existing
from autotune.study.state.budget import StopReason
from tests.support.commands.inside import call, contents
from tests.support.commands.runs import SMALL, start, wait_for
from tests.support.study.broken import claim, silence, trials_of
from tests.support.study.small import open_small

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_nothing_is_wrong_while_a_study_runs(
    kind: str, tmp_path: Path, warm: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/storage/autotune.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
    open_storage(url, create=True)  # looking while a launcher makes the tables would race with it
    arguments = ("digits", *SMALL, "training.epochs=6", "search.trials=6", "--name", "live")
    launcher = start(
        *("run", *arguments, "--workers", "2"), cwd=tmp_path, python=warm, AUTOTUNE_STORAGE=url
    )
    wait_for(lambda: call("status", "live", cwd=tmp_path, AUTOTUNE_STORAGE=url).code == 0)
    opened = open_existing("live", url)
    looks, running = 0, set()
    while launcher.poll() is None:
        diagnosis = check_study(opened)
        assert diagnosis.findings == ()
        assert diagnosis.evidence is not None
        running |= {one.number for one in diagnosis.evidence.snapshot.running}
        looks += 1
        time.sleep(0.05)
    assert launcher.returncode == 0, (tmp_path / "out.txt").read_text()
    assert looks > 20 and len(running) > 3
    assert StopReason.from_attributes(opened.study.user_attrs) is not None
    ended = call("doctor", "live", cwd=tmp_path, AUTOTUNE_STORAGE=url)
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == "study live: nothing is wrong"
    assert second.startswith("checked: 6 trials (0 running), a database of ")
    assert call("doctor", "live", "--storage", url, "--fix", cwd=tmp_path).code == 0


def test_a_healthy_study_is_left_as_it_is(finished: Path) -> None:
    before = contents(finished)
    for arguments in ((), ("--fix",)):
        ended = call("doctor", "tiny", *arguments, cwd=finished)
        assert (ended.code, ended.err) == (0, "")
    assert contents(finished) == before


def test_what_is_wrong_is_said_and_then_put_right(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    silence(opened.storage, claim(opened), 300)
    which = ("doctor", "small", "--storage", opened.url)
    for _ in range(2):  # nothing is changed without --fix
        ended = call(*which, cwd=tmp_path)
        assert (ended.code, ended.err) == (1, "")
        lines = ended.out.splitlines()
        assert lines[:2] == ["study small: 1 finding", "zombie"]
        assert "  --fix: fail it and queue its successor" in ended.out
    ended = call(*which, "--fix", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "done: trial 0 was requeued" in ended.out
    assert "study small: nothing is wrong" in ended.out
    states = [trial.state for trial in trials_of(open_existing("small", opened.url))]
    assert states == [TrialState.FAIL, TrialState.WAITING]


def test_what_only_the_user_can_put_right_remains(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    opened.study.tell(claim(opened).number, 0.5)
    opened.study.tell(claim(opened).number, 0.5)
    budget = opened.trial_queue().budget()
    opened.study.set_user_attr("budget", {**budget.to_json(), "trials": 1})
    ended = call("doctor", "small", "--storage", opened.url, "--fix", cwd=tmp_path)
    assert ended.code == 1
    assert ended.out.startswith("study small: 1 finding\nbudget\n  2 trials are finished, and the")


def test_the_tables_of_another_optuna(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    with opened.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'v9.9.9'"))
    ended = call("doctor", "small", "--storage", opened.url, cwd=tmp_path)
    assert (ended.code, ended.err) == (1, "")
    assert ended.out.startswith("study small: 1 finding\nschema\n")
    assert "was made by another Optuna" in ended.out
