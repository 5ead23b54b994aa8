"""The events of studies that are run, as their loggers get them."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from optuna.trial import TrialState

import autotune
from autotune import events, optuna_private
from autotune.config.schema import StudyConfig
from autotune.events import EpochEnded, Event, StudyEnded, StudyStarted, TrialEnded, TrialStarted
from autotune.loggers.background import Loggers
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.engine.launcher import run_study
from autotune.study.engine.study_log import StudyLog, how_ended
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import PATIENCE, STOPPED, StopReason
from tests.support.commands.inline import workers_inline
from tests.support.pages.doc_commands import ROOT
from tests.support.study.small import backbones_analyzed_once, small_config
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("idle_machine", "closed_connections")
PAGE = (ROOT / "docs/loggers.md").read_text()


def run(config: StudyConfig, *loggers: Any) -> tuple[list[Event], list[dict[str, Any]]]:
    """Run a study with one worker; return what a logger and what the display get."""
    typed: list[Event] = []
    shown: list[dict[str, Any]] = []
    with workers_inline(), backbones_analyzed_once():
        run_study(config, workers=1, loggers=[typed.append, *loggers], on_event=shown.append)
    return typed, shown


def test_a_run_and_its_continuation(tmp_path: Path) -> None:
    config = small_config(tmp_path, search__trials=2, search__pruner="none")
    typed, shown = run(config, lambda event: 1 / 0)
    begin, *middle, end = typed
    assert isinstance(begin, StudyStarted) and begin.objective == "accuracy"
    assert begin.study == "small" and begin.files == StudyPaths.from_url(config.storage).root
    kinds = [type(event).__name__ for event in middle]
    assert kinds == ["TrialStarted", "EpochEnded", "EpochEnded", "TrialEnded"] * 2
    baseline, first, second, done = middle[:4]
    assert isinstance(baseline, TrialStarted) and baseline.is_baseline and baseline.params
    assert isinstance(second, EpochEnded) and (second.epoch, second.epochs) == (2, 2)
    assert second.training_loss and second.validation_loss and second.learning_rate is not None
    assert isinstance(first, EpochEnded) and first.seconds and first.seconds > 0
    assert isinstance(done, TrialEnded) and done.value == second.value
    assert isinstance(end, StudyEnded) and end.state == "finished"
    assert end.best and end.baseline and end.baseline.trial == 0
    assert end.trials == {"complete": 2, "pruned": 0, "infeasible": 0, "failed": 0}
    warnings = [event["text"] for event in shown if event["event"] == "warning"]
    assert len(warnings) == 2 and "ZeroDivisionError" in warnings[0]

    longer = small_config(tmp_path, search__trials=3, search__pruner="none")
    typed, _ = run(longer)
    assert isinstance(typed[0], StudyStarted) and typed[0].uuid == begin.uuid
    assert [event.trial for event in typed if isinstance(event, TrialEnded)] == [2]
    typed, _ = run(longer)
    assert [type(event).__name__ for event in typed] == ["StudyStarted", "StudyEnded"]


@pytest.fixture
def made(tmp_path: Path) -> OpenStudy:
    """A study of which two trials run."""
    url = f"sqlite:///{tmp_path}/autotune.db"
    storage = open_storage(url, create=True)
    study = make_study("made", trials=5, running=2, storage=storage)
    return OpenStudy(study, storage, url, StudyPaths.from_url(url))


def test_a_worker_that_dies_ends_its_trial(made: OpenStudy) -> None:
    seen: list[Event] = []
    loggers = Loggers([("it", seen.append)])
    log = StudyLog(made, loggers, lambda event: None)
    first, second = (
        trial for trial in made.study.get_trials() if trial.state == TrialState.RUNNING
    )
    log.start()
    for worker, trial in enumerate((first, second)):
        log({"event": "start", "worker": worker, "trial": trial.number, "plan": "it"})
    log({"event": "start", "worker": 0, "trial": first.number, "plan": "it"})  # with less memory
    made.trial_queue().requeue(first.number, "its worker was lost")
    log({"event": "exit", "worker": 0, "code": -9, "lines": []})
    successor = made.study.get_trials()[-1]
    id_ = optuna_private.trial_id(successor)
    made.storage.set_trial_state_values(id_, TrialState.RUNNING)
    log({"event": "start", "worker": 2, "trial": successor.number, "plan": "it"})
    log({"event": "end", "worker": 2, "trial": successor.number, "state": "lost", "value": None})
    with pytest.raises(autotune.UserError), log.run():
        raise autotune.UserError("the disk is full\nfree some space")
    assert [event.trial for event in seen if isinstance(event, TrialStarted)] == [
        *(first.number, second.number, successor.number)
    ]
    ended = [event for event in seen if isinstance(event, TrialEnded)]
    assert [(event.trial, event.first, event.state) for event in ended] == [
        (first.number, first.number, "requeued"),
        (successor.number, first.number, "requeued"),
        (second.number, second.number, "requeued"),
    ]
    assert ended[0].reason == "its worker was lost"
    assert isinstance(seen[-1], StudyEnded)
    assert (seen[-1].state, seen[-1].reason) == ("failed", "the disk is full")


def test_an_event_that_cannot_be_told_is_a_warning(made: OpenStudy) -> None:
    seen: list[Event] = []
    shown: list[dict[str, Any]] = []
    log = StudyLog(made, Loggers([("it", seen.append)]), shown.append)
    log.start()
    for _ in range(2):
        log({"event": "start", "worker": 0, "trial": 99, "plan": "deleted meanwhile"})
    log.end("finished", "enough")
    assert [event["event"] for event in shown] == ["start", "warning", "start", "closing_loggers"]
    assert isinstance(seen[-1], StudyEnded) and seen[-1].state == "unfinished"  # others run


@pytest.mark.parametrize(
    ("ended", "is_interrupted", "state"),
    [
        (StopReason(PATIENCE, "enough"), False, "finished"),
        (StopReason(STOPPED, "by autotune stop"), False, "interrupted"),
        (None, True, "interrupted"),
        (None, False, "unfinished"),
    ],
)
def test_how_a_run_leaves_its_study(
    ended: StopReason | None, is_interrupted: bool, state: str
) -> None:
    assert how_ended(ended, is_interrupted)[0] == state


def test_a_study_remembers_its_loggers_for_workers_elsewhere(tmp_path: Path) -> None:
    config = small_config(tmp_path, search__trials=1, loggers=["tensorboard"], notify="false")
    pytest.importorskip("tensorboard")
    _, shown = run(config)
    study = autotune.Study.open("small", config.storage)
    stored = study._open_handle()
    assert stored.config().loggers == ["tensorboard"] and stored.config().notify is None
    assert "false" not in str(stored.study.user_attrs.get(attrs.LOGGERS))
    assert list(stored.files.tensorboard("small").glob("trial-0000/events*"))
    assert stored.files.tensorboard("small") in stored.files.owned_by("small")
    texts = [event["text"] for event in shown if event["event"] == "warning"]
    assert texts == ["notify failed at the end of the run: the command false failed (exit code 1)"]


def test_the_page_names_every_event_and_field() -> None:
    table = PAGE[PAGE.index("<!-- events -->") : PAGE.index("<!-- end of events -->")]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    kinds = {kind.__name__: kind for kind in get_args(events.Event)}
    assert rows.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert is_dataclass(kind)
        assert {field.name for field in fields(kind)} <= set(re.findall(r"`(\w+)`", rows[name]))


def test_the_logger_of_the_page(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 14
    small = '"search.trials": 1, "data.image_size": 16, "data.train_per_class": 5, '
    with workers_inline(), backbones_analyzed_once():
        exec(code.replace('"search.trials": 4, ', small), {"__name__": "page"})
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[-1].strip() == "trial 0 is complete"
    assert re.fullmatch(r"trial 0 epoch 3: 0\.\d+", lines[0])  # its head is solved at once
