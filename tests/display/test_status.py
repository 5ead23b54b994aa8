"""What a long job says where its output is no terminal."""

from __future__ import annotations

import re
import time
from io import StringIO

import pytest

from autotune.display import status as status_module
from autotune.display.console import VisibleConsole


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "LINE_INTERVAL_S", 0.05)


def wait_for_line(capsys: pytest.CaptureFixture[str], pattern: str) -> str:
    text, deadline = "", time.monotonic() + 20
    while not re.search(pattern, text):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
        text += capsys.readouterr().err
    return text


def test_lines_tell_what_is_done_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    out = StringIO()
    with VisibleConsole(file=out, force_terminal=False).status("opening the study") as status:
        wait_for_line(capsys, r"(?m)^0:00 opening the study$")  # though nothing is reported
        status.begin()
        status.progress("baseline: epoch 0 of 8", 0, 8)
        wait_for_line(capsys, r"baseline: epoch 0 of 8, time left \?\n")
        time.sleep(0.3)
        status.progress("baseline: epoch 2 of 8", 2, 6)
        wait_for_line(capsys, r"baseline: epoch 2 of 8, time left 0:0\d\n")
        status.update("bad\x1b[2J\nname")
        wait_for_line(capsys, r"(?m)bad\\x1b.*\\nname$")
    capsys.readouterr()
    time.sleep(0.2)
    assert (capsys.readouterr().err, out.getvalue()) == ("", "")


@pytest.mark.parametrize("options", [{"force_terminal": True}, {"quiet": True}])
def test_a_terminal_and_a_quiet_console_get_no_lines(
    options: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    with VisibleConsole(file=StringIO(), **options).status("opening the study"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
