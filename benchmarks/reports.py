"""What the scripts share: the first line of a report, where it goes, and lines of JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune.runtime import available_cpus

RESULTS = Path(__file__).parent / "results"


def date_and_machine(*packages: str) -> str:
    """Write date, machine and versions; no GPU is used."""
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d}. Machine: {available_cpus()} cores, "
        f"{platform.machine()}, no GPU used. Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + "."
    )


def write_report(text: str, name: str, output: Path | None = None) -> Path:
    """Write a report to a file, by default a dated one below ``results/``."""
    path = output or RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Write mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def read_lines(path: Path) -> list[Any]:
    """Read lines of JSON; half a line, of a machine that went down, is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def append_line(path: Path, row: Any) -> None:
    """Add a line of JSON to a file at once: what is there survives a process that is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
