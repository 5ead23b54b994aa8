"""Fixtures of this room."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

NewUrl = Callable[[str], str]


@pytest.fixture
def new_url(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    closed_connections: None,
) -> NewUrl:
    """Return what gives URLs of storages that are not there yet, of ``sqlite`` or ``postgres``."""
    monkeypatch.chdir(tmp_path)  # where the files of studies in Postgres go
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    numbers = itertools.count()

    def new(kind: str) -> str:
        if kind == "postgres":
            return str(request.getfixturevalue("postgres").fresh_database())
        return f"sqlite:///{tmp_path}/{next(numbers)}/study.db"

    return new
