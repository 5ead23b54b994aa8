"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.commands.inline import plots_not_drawn


@pytest.fixture(scope="module", autouse=True)
def plots_drawn_nowhere(analyzed_once: None) -> Iterator[None]:
    """Analyze each backbone once and draw no plots: half of the time of most studies here."""
    with plots_not_drawn():
        yield


@pytest.fixture
def no_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store no plots and weights with a trial: they are half of the time of a small one."""
    from autotune.study.trial import run

    monkeypatch.setattr(run, "store_artifacts", lambda *_: None)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait after a transient failure."""
    from autotune.study.engine import worker

    monkeypatch.setattr(worker, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(worker, "POLL_S", 0.01)
