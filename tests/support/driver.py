"""A machine with GPUs, as far as torch asks before it computes anything: how many, which, whether.

torch's own Python runs, with all its checks of arguments; what it calls below is replaced. Nothing
can be computed on such a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

TOTAL_BYTES = 80 << 30


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have torch find GPUs of these names, the first of them the current one."""

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(name=names[index], total_memory=TOTAL_BYTES)

    monkeypatch.setattr(torch.cuda, "_initialized", True)
    monkeypatch.setattr(torch.cuda, "_get_device_properties", properties, raising=False)
    generators = tuple(torch.Generator() for _ in names)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    below = {
        "_cuda_getDeviceCount": lambda: len(names),
        "_cuda_getDevice": lambda: 0,
        "_cuda_getMemoryFraction": lambda index: 1.0,
    }
    for name, replacement in below.items():
        monkeypatch.setattr(torch._C, name, replacement, raising=False)
