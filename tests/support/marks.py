"""Marks of parameters."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Return the values of one case of a test that runs with the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow)
