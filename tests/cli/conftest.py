"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL
from tests.support.pages.browser import browser
from tests.support.study.databases import connections_closed

__all__ = ["browser"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``autotune run`` has run the study ``tiny``; its output is out.txt."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ("run", "digits", *SMALL, "search.trials=3", "--name", "tiny", "--workers", "1")
    with connections_closed():  # or SQLite writes to the file when a test closes the last one
        ended = call(*arguments, cwd=folder)
    assert (ended.code, ended.err) == (0, "")
    (folder / "out.txt").write_text(ended.out, encoding="utf-8")
    return folder
