"""Fixtures of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.small import backbones_probed_once


@pytest.fixture(scope="session", autouse=True)
def probed_once() -> Iterator[None]:
    """Probe what layers can become once for each backbone: a second of most definitions."""
    with backbones_probed_once():
        yield


@pytest.fixture
def no_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store no plots and weights with a trial: they are half of the time of a small one."""
    from autotune.study.trial import run

    monkeypatch.setattr(run, "store_artifacts", lambda *_: None)
