from __future__ import annotations

from pathlib import Path

import pytest

from autotune.data.cache.array_cache import ArrayCache


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "files" / "cache", 10**9)
