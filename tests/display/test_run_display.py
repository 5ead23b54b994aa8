"""What a run shows while it runs, drawn from the events of a study."""

from __future__ import annotations

import re
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from autotune.config.schema import StudyConfig
from autotune.data.progress import COMPARING, INDEXING, READING
from autotune.display import run_display
from autotune.display.run_display import BudgetLeft, RunState, draw, make_view
from autotune.search import ranking
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from tests.support.study.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture
def opened(tmp_path: Path) -> OpenStudy:
    """A study with a baseline, better trials, and two that run."""
    url = f"sqlite:///{tmp_path}/autotune.db"
    storage = open_storage(url, create=True)
    study = make_study("made", trials=11, running=2, failed=1, storage=storage)
    return OpenStudy(study, storage, url, StudyPaths.from_url(url))


def config_of(opened: OpenStudy) -> StudyConfig:
    values = opened.study.user_attrs[attrs.DEFINITION]
    return StudyConfig.model_validate(
        {**values, "name": "made", "search": {**values["search"], "trials": 40}}
    )


def events(opened: OpenStudy) -> list[dict[str, Any]]:
    before = attrs.count_progress(opened.study.get_trials(deepcopy=False)[:1], 40)
    plan = "last 3 layers trainable, adamw lr 0.01"
    return [
        *({"event": "decoding", "done": done, "total": 8} for done in range(1, 9)),
        {"event": "opened", "opened": opened, "workers": 2, "progress": before},
        {"event": "ready", "worker": 0, "device": "cuda"},
        {"event": "start", "worker": 0, "trial": 12, "plan": plan},
        {"event": "epoch", "worker": 0, "trial": 12, "epoch": 1, "epochs": 10, "value": 0.5},
        {"event": "epoch", "worker": 0, "trial": 12, "epoch": 2, "epochs": 10, "value": 0.834},
        {"event": "tick"},
        {"event": "end", "worker": 0, "trial": 12, "state": "complete", "value": 0.917},
        {"event": "start", "worker": 0, "trial": 13, "plan": plan},
        {"event": "epoch", "worker": 0, "trial": 13, "epoch": 3, "epochs": 10, "value": 0.9},
    ]


def drawn(state: RunState, width: int = 110) -> str:
    console = Console(force_terminal=True, record=True, width=width, file=StringIO())
    console.print(draw(state))
    return console.export_text()


def test_the_live_view_shows_all_there_is(opened: OpenStudy) -> None:
    state = RunState(config_of(opened))
    for event in events(opened):
        state.update(event)
    text = drawn(state)
    trials = opened.study.get_trials(deepcopy=False)
    progress = attrs.count_progress(trials, 40)
    best = ranking.best_trial(trials, opened.study.direction)
    assert best is not None and best.value is not None
    assert text.startswith("study made\n")
    bar = re.search(r"^([━╸╺]{18})  (\S.*\S)  time left (\S+)$", text.splitlines()[1].rstrip())
    assert bar is not None
    assert bar[2] == (
        f"{progress.finished}/40 finished, {progress.pruned} pruned, {progress.failed} failed"
    )
    assert bar[3] != "?"
    assert (
        f"validation accuracy: best {100 * best.value:.1f} % (trial {best.number}), "
        "baseline 84.2 %\n" in text
    )
    assert re.search(r"worker +trial +epoch +accuracy +plan", text)
    assert re.search(r"0 cuda +13 +3/10 +90\.0 % +last 3 layers trainable, adamw lr 0\.01", text)
    assert re.search(r"1 +starting", text)


def test_the_live_view_fits_a_narrow_terminal(opened: OpenStudy) -> None:
    state = RunState(config_of(opened))
    for event in events(opened):
        state.update(event)
    lines = drawn(state, width=80).splitlines()
    assert len(lines) == 7
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1] == ""  # where a terminal writes ^C


@pytest.mark.parametrize(
    ("limits", "share", "seconds"),
    [
        ({}, 0.25, None),
        ({"timeout": 100.0, "until": 1040.0}, 0.6, 40.0),
        # Two trials run and use up two hours an hour.
        ({"device_hours": 2.0}, 0.75, 900.0),
        ({"device_hours": 2.0, "timeout": 100.0, "until": 1040.0}, 0.75, 40.0),
    ],
)
def test_the_bar_follows_the_budget_that_is_used_up_first(
    limits: dict[str, float], share: float, seconds: float | None
) -> None:
    left = BudgetLeft(Budget(40, **limits), 1.5, 0, 2, False, 1000.0)
    assert left.share_used(10, 1000.0) == pytest.approx(share)
    assert left.seconds(1000.0) == seconds


def test_the_live_view_of_a_study_that_is_over(opened: OpenStudy) -> None:
    for trial in opened.study.get_trials(states=(TrialState.RUNNING,)):
        opened.study.tell(trial.number, state=TrialState.FAIL)
    opened.study.set_user_attr(attrs.BUDGET, Budget(40, patience=1).to_json())
    state = RunState(config_of(opened))
    for event in events(opened)[8:11]:
        state.update(event)
    text = drawn(state)
    assert re.search(r"^━{18}  .* [1-9]\d*/1 without a better one +time left 0:00", text, re.M)
    state.update({"event": "waiting", "worker": 0})
    assert re.search(r"0 cuda .* waiting for the other trials", drawn(state))


def test_a_budget_that_was_lowered_meanwhile_is_no_negative_time(opened: OpenStudy) -> None:
    state = RunState(config_of(opened))
    state.update(events(opened)[8])
    opened.study.set_user_attr(attrs.BUDGET, Budget(5).to_json())
    state.started -= 600.0
    state.update(events(opened)[14])  # the end of a trial
    assert state.format_time_left() == "time left 0:00"


def test_the_live_view_before_there_is_a_study(opened: OpenStudy) -> None:
    state = RunState(config_of(opened))
    assert "checking the study file, the images and the backbone" in drawn(state)
    for step, done, total, shown in (
        ("fetching a.tar", 0, None, "fetching a.tar"),
        ("fetching a.tar", 1_500_000, None, "fetching a.tar: 2 MB"),
        ("unpacking the images", 1_500_000, 3_400_000_000, "unpacking the images: 2 of 3,400 MB"),
        (INDEXING, 50_000, None, "indexing the images: 50,000"),
        (READING, 1_500, 200_000, "reading the images: 1,500 of 200,000"),
    ):
        state.update({"event": "images", "step": step, "done": done, "total": total})
        assert f"{shown}\n" in f"{drawn(state).rstrip()}\n".replace(" \n", "\n")
    state.update({"event": "decoding", "done": 3, "total": 8})
    assert "decoding images: 3 of 8" in drawn(state)
    state.update(events(opened)[8])
    assert "starting workers" in drawn(state)
    state.update({"event": "stopping", "now": False})
    assert "stopping after this batch" in drawn(state)
    state.update({"event": "stopping", "now": True})
    assert "killing the workers" in drawn(state)


def test_the_live_view_leaves_the_terminal_clean(opened: OpenStudy) -> None:
    output = StringIO()
    console = Console(force_terminal=True, file=output, width=100)
    with make_view(console, config_of(opened)) as view:
        for event in events(opened):
            view(event)
        view({"event": "exit", "worker": 0, "code": -9, "replaced": True})
        view({"event": "exit", "worker": 1, "code": 3})
    text = output.getvalue()
    assert "worker 1 failed (exit code 3)" in text
    assert "worker 0 was killed (SIGKILL) and is replaced" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_without_a_terminal_there_are_plain_lines(opened: OpenStudy) -> None:
    output = StringIO()
    with make_view(Console(file=output, width=300), config_of(opened)) as view:
        for event in events(opened):
            view(event)
        view({"event": "exit", "worker": 0, "code": 0})
    text = output.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    lines = text.splitlines()
    assert lines[0] == "study made: checking the study file, the images and the backbone"
    assert lines[1:5] == [f"decoding images: {done} of 8" for done in (2, 4, 6, 8)]
    assert lines[5].startswith("study made: ") and "baseline 84.2 %" in lines[5]
    assert lines[6] == "worker 0 is ready on cuda"
    assert lines[7].startswith("trial 12: complete 91.7 % | last 3 layers trainable")
    assert len(lines) == 8


def test_without_a_terminal_a_long_opening_is_told_now_and_then(
    opened: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = StringIO()
    monkeypatch.setattr(run_display, "IMAGES_INTERVAL_S", 0.1)
    with make_view(Console(file=output), config_of(opened)) as view:
        for step, per_event in (("fetching a.tar", 1_000_000), (INDEXING, 1000)):
            told = {"event": "images", "step": step, "total": None}
            for number in range(100):
                view({**told, "done": number * per_event})
            time.sleep(0.15)
            for number in (100, 101):
                view({**told, "done": number * per_event})
    assert output.getvalue().splitlines()[1:] == [
        "fetching a.tar",
        "fetching a.tar: 100 MB",
        "indexing the images: 100,000",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warm_start_is_told_before_the_first_trial(opened: OpenStudy, terminal: bool) -> None:
    known = {"taken": ["warm start: trial 3 of study dogs"], "dropped": [["trial 5", "too deep"]]}
    opened.study.set_user_attr(attrs.WARM_START, known)
    for begun in (False, True):
        output = StringIO()
        trials = opened.study.get_trials(deepcopy=False)[: int(begun)]
        event = {"event": "opened", "opened": opened, "workers": 1}
        console = Console(file=output, width=100, force_terminal=terminal)
        with make_view(console, config_of(opened)) as view:
            view({**event, "progress": attrs.count_progress(trials, 40)})
        told = "warm start: trial 3 of study dogs is queued" in output.getvalue()
        assert told is not begun
        assert ("trial 5 is dropped: too deep" in output.getvalue()) is not begun


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"code": 0}, ""),
        ({"code": 1}, "worker 2 failed (exit code 1)"),
        ({"code": -9}, "worker 2 was killed (SIGKILL)"),
        ({"code": -37}, "worker 2 was killed (signal 37)"),
        ({"code": 1, "replaced": True}, "worker 2 failed (exit code 1) and is replaced"),
        (
            {"code": 1, "lines": ["Traceback", "MemoryError"]},
            "worker 2 failed (exit code 1); its log ends:\n    Traceback\n    MemoryError",
        ),
        (
            {"event": "worker_unhealthy", "log": "logs/2.log"},
            "worker 2 fails whatever it runs and is not started again; its log is logs/2.log",
        ),
    ],
)
def test_how_a_worker_ended(event: dict[str, Any], text: str, opened: OpenStudy) -> None:
    state = RunState(config_of(opened))
    assert state.notices({"event": "exit", "worker": 2, **event}) == text.splitlines()
    for end in ({"event": "stopping", "now": False}, {"event": "error", "exit_code": 2}):
        state = RunState(config_of(opened))
        state.update(end)
        if event.get("event") != "worker_unhealthy":
            assert state.notices({"event": "exit", "worker": 2, **event}) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_odd_about_the_images_is_told_before_the_first_trial(
    opened: OpenStudy, terminal: bool
) -> None:
    opened.study.set_user_attr(attrs.SURVEY, {"largest": ["ant", 99], "smallest": ["bee", 9]})
    output = StringIO()
    console = Console(force_terminal=terminal, width=200, file=output)
    with make_view(console, config_of(opened)) as view:
        for done in range(1, 9):
            view({"event": "images", "step": COMPARING, "done": done, "total": 8})
        view({"event": "images_skipped", "count": 1})
        view({"event": "images_skipped", "count": 1200})
        nothing = attrs.count_progress([], 40)
        view({"event": "opened", "opened": opened, "workers": 2, "progress": nothing})
    text = output.getvalue()
    assert ("comparing the images: 8 of 8" in text) == terminal  # a line only after a while
    assert "1 image was added after the study was made and will not be used" in text
    assert "1,200 images were added after the study was made and will not be used" in text
    assert "The classes are uneven: 'ant' has 99 training images, 'bee' 9. See training." in text
