"""``autotune stop``: what it says, whom it stops, and that the study goes on afterwards."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from autotune.cli.running import stop
from autotune.storage.rdb.connection import open_storage
from autotune.study.doctor.checks import check_study
from autotune.study.setup.opening import open_existing
from autotune.study.state.budget import StopReason
from autotune.study.state.retries import INTERRUPTED
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, epochs_running, start, trials_of, wait_for
from tests.support.study.broken import claim, silence
from tests.support.study.small import open_small
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/study.db"


def test_a_study_that_runs(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "POLL_S", 0.01)
    opened = open_small(tmp_path, storage=storage)
    claim(opened)
    ended = call("stop", "small", "--wait", "0", cwd=tmp_path, AUTOTUNE_STORAGE=storage)
    assert ended.code == 1
    assert ended.out.splitlines() == [
        "1 trial runs and no other one starts; workers look every 15 s, "
        "and stop after their batch",
        "trial 0 of box/1/0 still runs",
    ]
    assert check_study(opened).findings == ()  # it is about to stop
    requeue = threading.Thread(target=opened.trial_queue().requeue, args=(0, INTERRUPTED))
    requeue.start()
    ended = call("stop", "small", cwd=tmp_path, AUTOTUNE_STORAGE=storage)
    requeue.join()
    text = ended.out.splitlines()[-1].removeprefix("the study 'small' is ")
    assert (ended.code, ended.err) == (0, "")
    assert text.startswith("stopped from ") and text.endswith("; 'autotune run' continues it")
    assert text in call("status", "small", cwd=tmp_path, AUTOTUNE_STORAGE=storage).out


def test_a_lost_worker_is_not_waited_for(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    silence(opened.storage, claim(opened), 100)
    ended = call("stop", "small", "--storage", opened.url, cwd=tmp_path)
    assert ended.code == 0
    assert ended.out.startswith("trial 0 of box/1/0 is lost; 'autotune run' requeues it\n")


@pytest.mark.parametrize("name", ["small", "of two words"])
def test_a_study_that_does_not_run(name: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    make_study(name, trials=3, running=0, budget=3, storage=open_storage(url, create=True))
    ended = call("stop", name, cwd=tmp_path, AUTOTUNE_STORAGE=url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"the study {name!r} has ended already: 4 finished trials\n"
    assert StopReason.from_attributes(open_existing(name, url).study.user_attrs).kind == "trials"  # type: ignore[union-attr]
    ended = call("stop", name[:-1], cwd=tmp_path, AUTOTUNE_STORAGE=url)
    assert ended.code == 2 and f"did you mean {name!r}?" in ended.err


@pytest.mark.slow
def test_a_run_is_stopped_and_continued(tmp_path: Path, warm: str) -> None:
    small = ("digits", *SMALL, "search.trials=2", "--name", "long", "--workers", "1")
    launcher = start("run", *small, "training.epochs=3000", cwd=tmp_path, python=warm)
    wait_for(lambda: epochs_running(trials_of(tmp_path, "long")) > 3)
    began = time.monotonic()
    ended = call("stop", "long", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "") and time.monotonic() - began < 40
    assert launcher.wait(timeout=60) == 130
    assert "Stopped. The trials that were running are queued" in (tmp_path / "out.txt").read_text()
    before = max(trials_of(tmp_path, "long")[-1].intermediate_values)
    launcher = start("run", *small, "training.epochs=3000", cwd=tmp_path, python=warm)
    wait_for(lambda: epochs_running(trials_of(tmp_path, "long")) > before)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
