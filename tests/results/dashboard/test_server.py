"""What a dashboard opens on: a study, or the list of all."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import optuna
import pytest

from autotune.errors import StorageError
from autotune.results.dashboard.server import Shown, make_dashboard_server
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.support.commands.inside import call
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study


def test_a_study_or_the_list(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with connections_closed():
        for name in ("first", "second"):  # and none is called digits
            study = make_study(name, trials=2, storage=open_storage(url, create=True))
            study.set_user_attr("files", str(tmp_path / "files"))
        assert Shown.study(open_existing("second", url)).path == "/dashboard/studies/2"
        shown = Shown.all_studies(url)
        assert shown.path == "/"
        with make_dashboard_server(shown, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            with urllib.request.urlopen(f"{address}/api/studies", timeout=30) as answer:
                listed = json.load(answer)["study_summaries"]
            with urllib.request.urlopen(f"{address}/", timeout=30) as answer:
                assert b"2 studies" in answer.read()
            server.shutdown()
    assert [one["study_name"] for one in listed] == ["first", "second"]


def test_trials_of_a_deleted_study_are_not_those_of_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with connections_closed():
        storage = open_storage(url, create=True)
        with make_dashboard_server(Shown.all_studies(url), 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/api/studies/1?after=0"
            for seed in (0, 5):
                study = make_study("made", trials=4, seed=seed, running=0, storage=storage)
                study.set_user_attr(attrs.UUID, f"{seed}")
                with urllib.request.urlopen(address, timeout=30) as answer:
                    shown = json.load(answer)["trials"]
                assert study._study_id == 1  # SQLite gives it out again
                assert [one.get("values") for one in shown] == [one.values for one in study.trials]
                optuna.delete_study(study_name="made", storage=storage)
            server.shutdown()


def test_without_a_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no database"):
        Shown.all_studies(f"sqlite:///{tmp_path}/nothing.db")
    ended = call("dashboard", cwd=tmp_path)
    assert ended.code == 2 and "there is no database" in ended.err
    assert not list(tmp_path.iterdir())
