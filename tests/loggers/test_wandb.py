"""What W&B gets: the exact calls, and files of the real one, offline, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autotune.errors import UserError
from autotune.loggers import WandB
from tests.support.study.events import ODD, first_run, second_run


class _Run:
    def __init__(self, **settings: Any) -> None:
        self.settings, self.logged, self.summary = settings, list[Any](), dict[str, Any]()
        self.exit_code: int | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        assert self.exit_code is None
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[_Run]:
    """The runs of a package that records its calls; nobody has logged in."""
    made: list[_Run] = []
    package = ModuleType("wandb")

    def init(**settings: Any) -> _Run:
        made.append(_Run(**settings))
        return made[-1]

    vars(package).update(
        init=init, Settings=dict, setup=lambda settings: None, login=lambda **options: False
    )
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return made


def log_both(folder: Path) -> None:
    for events in (first_run(folder), second_run(folder)):
        logger = WandB()
        for event in events:
            logger(event)


def test_every_attempt_continues_the_run_of_its_trial(runs: list[_Run], tmp_path: Path) -> None:
    log_both(tmp_path)
    ids = [run.settings["id"] for run in runs]
    assert ids == ["c0ffee-0", "c0ffee-1", "c0ffee-1", "c0ffee-3"]
    assert [run.exit_code for run in runs] == [0, 1, 0, 0]
    baseline, interrupted, continued, infeasible = runs
    assert baseline.settings["group"] == ODD and baseline.settings["project"] == "autotune"
    assert baseline.settings["resume"] == "allow" and baseline.settings["name"] == "trial 0"
    assert baseline.settings["config"]["training.lr"] == 0.01
    assert [(step, values["accuracy"]) for step, values in baseline.logged] == [(1, 0.5), (2, 0.7)]
    assert baseline.summary["value"] == 0.7 and "value" not in interrupted.summary
    assert continued.logged[0][0] == 2 and continued.summary["state"] == "pruned"
    assert infeasible.summary["reason"].startswith("infeasible")
    private = {"x_disable_meta": True, "save_code": False, "disable_git": True, "console": "off"}
    assert private.items() <= baseline.settings["settings"].items()


@pytest.mark.parametrize("mode", ["online", None])
def test_nobody_is_asked_for_a_key(
    mode: str | None, runs: list[_Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is None:
        monkeypatch.delenv("WANDB_MODE")
    else:
        monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(UserError, match="wandb has no API key: log in with 'wandb login'"):
        WandB()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_one_writes_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["autotune", "--storage", "postgresql://me:c0ffee@host/db"])
    log_both(tmp_path)
    stored = {path.stem for path in (tmp_path / "wandb").glob("*/*.wandb")}
    assert stored == {"run-c0ffee-0", "run-c0ffee-1", "run-c0ffee-3"}
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert not [path for path in files if b"c0ffee@host" in path.read_bytes()]
