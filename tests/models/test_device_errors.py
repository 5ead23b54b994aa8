"""Errors of a device are told by their types and by the texts that torch really uses."""

from __future__ import annotations

import importlib

import pytest
import torch

from autotune.models import device_errors
from tests.support.cuda import OUT_OF_MEMORY, accelerator_error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        accelerator_error("an illegal memory access was encountered"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_errors_of_a_device(error: Exception) -> None:
    assert device_errors.is_device_error(error)


def test_a_torch_without_a_class_for_errors_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.7 has none: to ask for it would raise instead of what has gone wrong."""
    lost = RuntimeError(str(accelerator_error("an illegal memory access was encountered")))
    monkeypatch.delattr(torch, "AcceleratorError")
    importlib.reload(device_errors)
    try:
        assert device_errors.is_gpu_error(lost) and device_errors.is_device_error(lost)
        assert device_errors.is_out_of_memory(torch.OutOfMemoryError(OUT_OF_MEMORY))
        assert not device_errors.is_device_error(ValueError("no matter of a device"))
    finally:
        monkeypatch.undo()
        importlib.reload(device_errors)
