"""Fixtures of this room."""

from __future__ import annotations

from tests.support.pages.browser import browser

__all__ = ["browser"]
