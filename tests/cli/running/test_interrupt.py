"""Ctrl-C before a study is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands.inside import contents
from tests.support.commands.runs import SMALL, start, wait_for


@pytest.mark.slow
def test_ctrl_c_while_checking_leaves_nothing(tmp_path: Path) -> None:
    process = start("run", "digits", *SMALL, cwd=tmp_path)
    output = tmp_path / "out.txt"
    wait_for(lambda: "checking" in output.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in output.read_text()
    assert list(contents(tmp_path)) == ["out.txt"]


def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "try:\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    print('whole', flush=True)\n"
        "except BaseException:\n"
        "    print('broken off', flush=True)\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from autotune.cli.sigint import interrupt_between_imports\n"
            "interrupt_between_imports()\n"
            f"sys.path.insert(0, {str(tmp_path)!r})\n"
            "try:\n"
            "    import slow\n"
            "    time.sleep(30)\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted')\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert (first + rest).split("\n")[:-1] == ["begun", "whole", "interrupted"]
