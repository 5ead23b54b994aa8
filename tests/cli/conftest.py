"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.browser import browser
from tests.support.runs import SMALL, autotune

__all__ = ["browser"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``autotune run`` has run the study ``tiny``; its output is out.txt."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ("run", "digits", *SMALL, "search.trials=3", "--name", "tiny", "--workers", "1")
    ended = autotune(*arguments, cwd=folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    (folder / "out.txt").write_text(ended.stdout, encoding="utf-8")
    return folder
