"""A logger cannot stop or delay a run, whatever it does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from autotune.events import Event
from autotune.loggers import background
from autotune.loggers.background import Loggers
from tests.support.study.events import first_run


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (SystemExit(2), "SystemExit: 2"),
        (
            ValueError("at https://me:pass@host/x\nline"),
            "ValueError: at https://me:***@host/x line",
        ),
        (ValueError(), "ValueError()"),
    ],
)
def test_a_logger_that_fails_warns_once_and_at_the_end(error: BaseException, text: str) -> None:
    events = first_run(Path())
    healthy: list[Event] = []

    def failing(event: Event) -> None:
        raise error

    loggers = Loggers([("bad", failing), ("good", healthy.append)])
    for event in events:
        loggers.log(event)
    loggers.close()
    assert healthy == events
    first, last = loggers.take_warnings()
    assert first == (
        f"bad cannot log: {text}; the trials go on, and later events are logged if it can"
    )
    assert last.endswith("9 of 9 events were not logged there; the study has them all")
    assert loggers.take_warnings() == []


def test_a_logger_that_recovers_loses_one_event() -> None:
    events = first_run(Path())
    seen: list[Event] = []

    def log(event: Event) -> None:
        if event is events[2]:
            raise ConnectionError("down")
        seen.append(event)

    loggers = Loggers([("it", log)])
    for event in events:
        loggers.log(event)
    loggers.close()
    assert seen == [*events[:2], *events[3:]]
    assert "1 of 9 events was not logged" in loggers.take_warnings()[-1]


def test_a_logger_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CLOSE_TIMEOUT_S", 0.05)
    gate = threading.Event()
    loggers = Loggers([("slow", lambda event: gate.wait(30))])
    start = time.monotonic()
    for event in first_run(Path()):
        loggers.log(event)
    loggers.close()
    assert time.monotonic() - start < 10
    (warning,) = loggers.take_warnings()
    assert "slow did not take its last events" in warning and "9 of 9 events" in warning
    gate.set()
