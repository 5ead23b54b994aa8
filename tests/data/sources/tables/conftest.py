from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data.images import photo


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs in a folder beside the table."""
    (tmp_path / "photos").mkdir()
    for index in range(4):
        photo(8, 6, seed=index).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path
