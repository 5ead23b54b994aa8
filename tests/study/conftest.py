"""Fixtures of this room."""

from __future__ import annotations

import pytest


@pytest.fixture
def no_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store no plots and weights with a trial: they are half of the time of a small one."""
    from autotune.study.trial import run

    monkeypatch.setattr(run, "store_artifacts", lambda *_: None)
