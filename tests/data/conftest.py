from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all data sets; it does not exist yet."""
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("AUTOTUNE_MIRROR", raising=False)
    return tmp_path / "data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("this machine mounts no small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
