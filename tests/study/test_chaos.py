"""A study comes out right while workers are killed and its database is locked or restarted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--storage", "sqlite", "--kills", "8", "--locks", "1"),
        ("--storage", "postgres", "--kills", "8", "--restarts", "2"),
    ],
    ids=lambda arguments: arguments[1],
)
def test_nothing_is_lost(arguments: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--trials", "16", "--workers", "4"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 x kill" in ended.stdout
    assert "no fault found" in ended.stdout
