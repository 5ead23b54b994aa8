"""``autotune status --watch``: a study that is watched while things happen to it."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from rich.console import Console

from autotune.display.watch import watch
from autotune.errors import StudyError
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.state.retries import WORKER_LOST
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, start, wait_for
from tests.support.commands.runs import trials_of as trials_of_run
from tests.support.study.broken import claim, set_attribute, silence, trials_of
from tests.support.study.databases import Server
from tests.support.study.small import open_small
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture
def opened(tmp_path: Path) -> OpenStudy:
    return open_small(tmp_path, training__epochs=20, search__trials=40)


def end(opened: OpenStudy) -> None:
    for trial in trials_of(opened):
        if trial.state.name == "RUNNING":
            opened.study.tell(trial.number, 0.5)
    opened.study.set_user_attr(attrs.ENDED, StopReason("trials", "40 finished trials").to_json())


def watched(opened: OpenStudy, *steps: Callable[[], object], terminal: bool = False) -> list[str]:
    """Watch a study, do one thing after every look, and end it; return what every look showed."""
    out = StringIO()
    console = Console(file=out, width=200, force_terminal=terminal, soft_wrap=not terminal)
    left = [*steps, lambda: end(opened)]
    marks = []

    def sleep(_seconds: float) -> None:
        marks.append(out.tell())
        left.pop(0)()

    watch(console, opened, 0.5, sleep)
    text = out.getvalue()
    return [text[a:b] for a, b in zip([0, *marks], [*marks, len(text)], strict=True)]


def test_looks_are_printed_one_below_the_other(opened: OpenStudy) -> None:
    trial = claim(opened, "gpu-box/41/0")
    set_attribute(opened, trial.number, attrs.DEVICE, "NVIDIA H200")

    def report() -> None:
        for epoch in (1, 2):
            opened.storage.set_trial_intermediate_value(trial._trial_id, epoch, 0.25 * epoch)
        set_attribute(opened, trial.number, attrs.DEVICE_SECONDS, 10.0)

    first, second, third, last = watched(
        opened,
        report,
        lambda: silence(opened.storage, trial, 100),
    )
    lines = first.splitlines()
    assert re.fullmatch(r"study small  \d\d:\d\d:\d\d", lines[0].strip())
    assert "0 of 40 finished: 0 complete, 0 pruned, 0 failed, 1 running" in lines[1]
    assert lines[2].strip() == "validation accuracy: no trial is complete yet"
    assert lines[3].split() == (
        ["host", "worker", "device", "trial", "epoch", "accuracy", "heartbeat", "speed", "plan"]
    )
    row = "backbone frozen, linear head, adamw lr 0.03"
    assert re.search(rf"gpu-box +41/0 +NVIDIA H200 +0 +0/20 +\d s ago +{row}", first)
    assert re.search(rf" 2/20 +50.0 % +\d s ago +\d+ images/s +{row}", second)
    assert re.search(r" 2/20 +50.0 % +silent 10\d s ", third)
    assert "ended: 40 finished trials" in last
    assert "best 50.0 % (trial 0), baseline 50.0 % (trial 0)" in last
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", "".join((first, second, third, last)))


def test_a_terminal_is_redrawn(opened: OpenStudy) -> None:
    claim(opened, "gpu-box/41/0")
    first, second = watched(opened, terminal=True)
    assert "gpu-box" in first and "\x1b[2K" in second  # lines are erased and written anew


def test_workers_add_up(opened: OpenStudy) -> None:
    for worker in ("box/1/0", "box/1/1"):
        trial = claim(opened, worker)
        opened.storage.set_trial_intermediate_value(trial._trial_id, 4, 0.5)
        set_attribute(opened, trial.number, attrs.DEVICE_SECONDS, 10.0)
    first, _ = watched(opened)
    found = re.search(r"2 workers: (\d+) images/s", first)
    assert found and 25 <= int(found.group(1)) <= 40  # 2 x 4 epochs of 50 images in 10 s


def test_failures_and_a_study_at_rest(opened: OpenStudy) -> None:
    opened.trial_queue().requeue(claim(opened).number, WORKER_LOST)
    first, _ = watched(opened)
    assert "failed attempts: 1 lost" in first
    assert "no worker runs a trial" in first
    assert "1 waiting" in first


@contextmanager
def away(postgres: Server, opened: OpenStudy) -> Iterator[None]:
    """Let a database be away: no connection lives, and none can be made."""
    name = sqlalchemy.make_url(opened.url).database
    postgres.run(
        f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        yield
    finally:
        postgres.run(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")


def test_a_server_that_is_away_is_waited_for(
    postgres: Server, postgres_url: str, tmp_path: Path
) -> None:
    opened = open_small(tmp_path, storage=postgres_url, search__trials=40)
    claim(opened, "gpu-box/41/0")
    gone = away(postgres, opened)
    looks = watched(opened, gone.__enter__, lambda: None, lambda: gone.__exit__(None, None, None))
    trouble = [re.search(r"not read for 0:\d\d: storage: .* cannot be used", one) for one in looks]
    assert [one is not None for one in trouble] == [False, True, True, False, False]
    assert all("gpu-box" in one for one in looks[:4])  # what was seen last stays
    assert "ended: " in looks[-1]


def test_a_database_file_that_is_away_is_waited_for(opened: OpenStudy, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "study.db", tmp_path / "away"
    looks = watched(
        opened,
        lambda: shutil.move(path, elsewhere),
        lambda: shutil.move(elsewhere, path),
    )
    assert ["is not there" in one for one in looks] == [False, True, False, False]


def test_a_study_that_is_deleted(opened: OpenStudy) -> None:
    with pytest.raises(StudyError, match="the study 'small' was deleted"):
        watched(opened, lambda: optuna.delete_study(study_name="small", storage=opened.storage))


# The command


@pytest.mark.slow
def test_a_run_is_watched_to_its_end(tmp_path: Path) -> None:
    arguments = ("digits", *SMALL, "search.trials=2", "training.epochs=80", "--name", "tiny")
    launcher = start("run", *arguments, "--workers", "1", cwd=tmp_path)
    wait_for(lambda: bool(trials_of_run(tmp_path, "tiny")))
    ended = call("status", "tiny", "--watch", "--every", "0.5", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert launcher.wait(timeout=60) == 0
    looks = ended.out.split("study tiny  ")[1:]
    assert len(looks) > 1
    assert any(f"/{launcher.pid}/0"[1:] in one for one in looks)
    assert "2 of 2 finished" in looks[-1]


@pytest.mark.slow
def test_ctrl_c_ends_a_watch(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    watching = start(
        "status", "small", "--watch", "--every", "0.5", "--storage", opened.url, cwd=tmp_path
    )
    wait_for(lambda: (tmp_path / "out.txt").read_text().count("study small") > 1)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--every", "5"), "--every goes with --watch"),
        (("--watch", "--every", "0.1"), "Invalid value for '--every'"),
        (("--watch", "--storage", "sqlite:///none.db"), "there is no database"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ended = call("status", "tiny", *arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []


def test_it_waits_for_a_study_that_is_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotune.study.setup import opening

    url = f"sqlite:///{tmp_path}/storage/autotune.db"
    (tmp_path / "storage/autotune.files/cache").mkdir(parents=True)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            make_study("another", trials=1, running=0, storage=url)
        if len(waits) == 2:
            study = make_study("made", trials=2, running=0, storage=url)
            study.set_user_attr(attrs.ENDED, {"kind": "trials", "words": "2 finished trials"})

    monkeypatch.setattr("autotune.cli.running.status.time.sleep", wait)
    ended = call("status", "made", "--watch", cwd=tmp_path)
    assert ended.code == 0 and waits == [opening.POLL_S] * 2
    assert ended.err.count("waiting, Ctrl-C ends it: ") == 1
    assert "ended: 2 finished trials" in ended.out
