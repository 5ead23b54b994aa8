"""Ctrl-C before a study is there."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.inside import contents
from tests.support.runs import SMALL, start, wait_for


def test_ctrl_c_while_checking_leaves_nothing(tmp_path: Path) -> None:
    process = start("run", "digits", *SMALL, cwd=tmp_path)
    output = tmp_path / "out.txt"
    wait_for(lambda: "checking" in output.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in output.read_text()
    assert list(contents(tmp_path)) == ["out.txt"]
