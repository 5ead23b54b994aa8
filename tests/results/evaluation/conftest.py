"""Fixtures of this room."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def backbones_analyzed_once(analyzed_once: None) -> None:
    """Analyze each backbone once: a third of the time of these tests."""
