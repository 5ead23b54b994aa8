"""A study of a version before there were formats: it is read, and goes on.

``stored/format-1.db.gz`` is the SQLite file of ``autotune run digits search.trials=4
training.epochs=2`` of such a version, interrupted after two trials, without the attribute
``files``; the other file is the artifact that holds its split.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.commands.inside import call
from tests.support.commands.runs import autotune
from tests.support.study.databases import connections_closed

STORED = Path(__file__).parent / "stored"
SPLIT = "ae71e052-17cc-44c5-8ba3-b7484a69048c"
URL = "sqlite:///storage/autotune.db"


@pytest.fixture
def folder(tmp_path: Path, closed_connections: None) -> Path:
    artifacts = tmp_path / "storage/autotune.files/artifacts"
    artifacts.mkdir(parents=True)
    shutil.copy(STORED / SPLIT, artifacts / SPLIT)
    stored = gzip.decompress((STORED / "format-1.db.gz").read_bytes())
    (tmp_path / "storage/autotune.db").write_bytes(stored)
    return tmp_path


def test_it_is_read(folder: Path) -> None:
    ended = call("status", "digits", cwd=folder)
    assert ended.code == 0 and "2 of 4 finished" in " ".join(ended.out.split()), ended
    ended = call("best", "digits", cwd=folder)
    assert ended.code == 0 and "trial: 1" in ended.out, ended
    for form in ("md", "csv", "json", "html"):
        assert call("report", "digits", "-o", f"report.{form}", cwd=folder).code == 0
    assert json.loads((folder / "report.json").read_text())["study"]
    ended = call("layers", "--study", "digits", "--plan", "1", cwd=folder)
    assert ended.code == 0, ended
    copied = ("storage", "copy", "--from", URL, "--to", "sqlite:///copy.db")
    assert call(*copied, cwd=folder).code == 0
    assert call("status", "digits", "--storage", "sqlite:///copy.db", cwd=folder).code == 0


@pytest.mark.slow
def test_it_goes_on(folder: Path) -> None:
    # The baseline of the preset was trained then.
    changed = ("search.trials=4", "training.epochs=2", "baseline.head_start=null")
    ended = call("run", "digits", *changed, cwd=folder)
    assert ended.code == 0, ended
    with connections_closed():
        study = attrs.load_study("digits", open_storage(f"sqlite:///{folder}/storage/autotune.db"))
        trials = study.get_trials()
        assert sum(one.state == TrialState.COMPLETE for one in trials) == 4
        assert study.user_attrs[attrs.FORMAT]["format"] > 1
    ended = autotune("reproduce", "digits", "0", cwd=folder)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr  # 1: of another machine
    # The pictures of its first trials are not among what is stored here.
    ended = call("doctor", "digits", cwd=folder)
    assert "1 finding" in ended.out and "missing artifacts" in ended.out, ended
