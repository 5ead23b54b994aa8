"""The first line of every report: when, on what, with which versions."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

from autotune.runtime import available_cpus


def date_and_machine(*packages: str) -> str:
    """Write date, machine and versions; no GPU is used."""
    return (
        f"Date: {datetime.now(UTC):%Y-%m-%d}. Machine: {available_cpus()} cores, "
        f"{platform.machine()}, no GPU used. Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + "."
    )
