"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.small import backbones_analyzed_once


@pytest.fixture(scope="session", autouse=True)
def analyzed_once() -> Iterator[None]:
    """Analyze each backbone once: half of the time of most studies here."""
    with backbones_analyzed_once():
        yield


@pytest.fixture
def no_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store no plots and weights with a trial: they are half of the time of a small one."""
    from autotune.study.trial import run

    monkeypatch.setattr(run, "store_artifacts", lambda *_: None)
