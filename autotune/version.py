"""The version of the package, as it was installed, and the commit of its code."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

try:
    __version__ = version("autotune")
except PackageNotFoundError:  # run from a folder without being installed
    __version__ = "0+unknown"

#: Name of the commit among the versions of packages.
COMMIT = "autotune commit"


def installed_version(name: str) -> str:
    """Return the version of a package, of ``python`` or of :data:`COMMIT`; empty if unknown."""
    if name == "python":
        return platform.python_version()
    if name == COMMIT:
        return commit()
    try:
        return version(name)
    except ModuleNotFoundError:  # PackageNotFoundError is one
        return ""


@cache
def commit() -> str:
    """Return the git commit of the code, with ``-dirty`` where files differ; empty if unknown.

    A checkout asks git; a package that pip has installed from git recorded the commit (PEP 610).
    """
    folder = Path(__file__).parents[1]
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            result = subprocess.run(
                [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):  # no git here
            return ""
        return result.stdout.strip()
    try:
        recorded = json.loads(distribution("autotune").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(recorded.get("vcs_info", {}).get("commit_id", ""))[:12]


def describe_version() -> str:
    """Return version and commit: ``autotune 0.1.0 (commit 1a2b3c4d5e6f)``."""
    return f"autotune {__version__}" + (f" (commit {commit()})" if commit() else "")
