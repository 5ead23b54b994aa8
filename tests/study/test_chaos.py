"""A study comes out right while workers die, disks fill, and its database is locked or away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("storage", "things"),
    [
        ("sqlite", {"kill": 8, "lock": 1, "fill": 1}),
        ("postgres", {"kill": 8, "restart": 2, "freeze": 1}),
    ],
    ids=["sqlite", "postgres"],
)
def test_nothing_is_lost(storage: str, things: dict[str, int]) -> None:
    options = [f"--{name.replace(' ', '-')}s={count}" for name, count in things.items()]
    options += ["--trials=24", "--workers=4", "--pause=2"]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), f"--storage={storage}", *options],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if "this machine lets this user mount none" in ended.stdout:
        del things["fill"]
    done = ended.stdout.partition("trials: ")[2].splitlines()[0]
    assert sorted(done.split(", ")) == sorted(f"{n} x {name}" for name, n in things.items())
    assert "no fault found" in ended.stdout
