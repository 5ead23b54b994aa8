"""Which device a process trains on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autotune.study import devices
from autotune.study.memory import device_bytes
from autotune.study.worker import prepare
from tests.support.driver import TOTAL_BYTES, pretend_gpus
from tests.support.small import open_small


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    assert devices.find_device() == torch.device("cpu")


def test_a_gpu_has_an_index_for_whatever_torch_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``get_per_process_memory_fraction`` refuses a device without one, after every trial."""
    opened = open_small(tmp_path)
    pretend_gpus(monkeypatch, "NVIDIA H200")
    device = prepare(opened).device
    assert device == torch.device("cuda", 0)
    assert device_bytes(device) == TOTAL_BYTES
