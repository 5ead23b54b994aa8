from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models.surgery import kept, saved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model."""
    return saved(tmp_path_factory.mktemp("models") / "resnet", kept("test_resnet"))
