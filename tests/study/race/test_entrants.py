"""Which backbones take part in a race by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.config.backbones import LARGE, SMALL
from autotune.study.race.entrants import suitable_list
from tests.support.cuda import list_gpus

#: A machine with a large GPU and a small one for its screen.
NVIDIA_SMI = """#!/bin/sh
echo "0, GPU-aaaa-1, 143771"
echo "1, GPU-bbbb-2, 4096"
"""


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, None, SMALL),
        (None, "all", SMALL),
        (None, "0", LARGE),
        (None, "1", SMALL),
        (None, "none", SMALL),
        ("0", None, LARGE),
        ("GPU-aaaa", None, LARGE),
        ("1,0", "1", LARGE),
    ],
)
def test_the_memory_of_the_gpus_that_train_decides(
    visible: str | None,
    gpus: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    list_gpus(monkeypatch, "GPU-aaaa", "GPU-bbbb")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert suitable_list(gpus) == expected
    assert suitable_list(gpus, 1.0) == LARGE
