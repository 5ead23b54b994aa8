"""A study through a proxy is the study that it would be on the database itself."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from autotune.storage.database import open_database
from autotune.study.opening import OpenStudy, open_existing
from autotune.study.snapshot import take_snapshot
from autotune.study.worker import work
from tests.study.test_worker import job
from tests.support.proxy import Proxy
from tests.support.small import open_small

pytestmark = pytest.mark.usefixtures("closed_connections")


def outcome(opened: OpenStudy) -> list[Any]:
    return [
        (one.number, one.state, one.value, one.intermediate_values, one.params)
        for one in opened.study.get_trials()
    ]


@pytest.mark.slow
def test_a_study_outlives_restarts_of_the_proxy(tmp_path: Path) -> None:
    undisturbed = open_small(tmp_path / "a", search__trials=4, training__epochs=3)
    work(job(undisturbed), threading.Event(), lambda event: None)
    with Proxy(f"sqlite:///{tmp_path}/b.db") as proxy:
        files = str(tmp_path / "b.files")
        opened = open_small(
            tmp_path, search__trials=4, training__epochs=3, storage=proxy.url, files=files
        )
        restarts = []

        def restart(event: dict[str, Any]) -> None:
            at = event["event"], event.get("trial"), event.get("epoch")
            if at in (("epoch", 0, 2), ("start", 2, None), ("end", 2, None)):
                proxy.stop()
                threading.Timer(0.5, proxy.start).start()
                restarts.append(at)

        work(job(opened, files=files), threading.Event(), restart)
        assert len(restarts) == 3
        assert outcome(opened) == outcome(undisturbed)
        assert take_snapshot(opened).progress == take_snapshot(undisturbed).progress
    direct = open_existing("small", f"sqlite:///{tmp_path}/b.db")
    assert outcome(direct) == outcome(undisturbed)


def test_a_run_through_a_proxy(tmp_path: Path) -> None:
    with Proxy(f"sqlite:///{tmp_path}/study.db") as proxy:

        def autotune(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "autotune.cli.main", *arguments, "--storage", proxy.url],
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )

        small = ("training.epochs=2", "training.views=1", "data.image_size=16")
        ran = autotune("run", "digits", "search.trials=2", *small, "--workers", "1")
        assert ran.returncode == 0, ran.stderr
        assert "geheimes" not in ran.stdout + ran.stderr
        told = autotune("status", "digits")
        assert told.returncode == 0, told.stderr
        refused = autotune("doctor", "digits")
        assert refused.returncode == 2
        assert "needs the database itself" in refused.stderr
        assert "fork" not in ran.stderr
    studies = open_database(f"sqlite:///{tmp_path}/study.db").get_all_studies()
    assert [one.study_name for one in studies] == ["digits"]
