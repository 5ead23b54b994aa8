"""A study comes out right while workers die, disks fill, and its database is locked or away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "chaos.py"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("storage", "things"),
    [
        ("sqlite", {"kills": 8, "locks": 1, "fills": 1}),
        ("sqlite", {"remakes": 1, "stales": 1, "triples": 3, "caches": 4, "corruptions": 2}),
        ("postgres", {"kills": 8, "restarts": 2, "freezes": 1}),
        ("postgres", {"pairs": 3, "claims": 4, "crashes": 1, "seconds": 1, "launchers": 1}),
    ],
)
def test_nothing_is_lost(storage: str, things: dict[str, int]) -> None:
    options = [f"--{name}={count}" for name, count in things.items()]
    options += ["--trials=24", "--workers=4", "--pause=2"]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), f"--storage={storage}", *options],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    if "this machine lets this user mount none" in ended.stdout:
        del things["fills"]
    assert "not done before the end" not in ended.stdout
    assert f"{sum(things.values())} faults, 0 violations" in ended.stdout
