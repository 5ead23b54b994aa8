"""A machine with GPUs, as far as torch asks before it computes, and what torch says of them.

torch's own Python runs, with all its checks of arguments; what it calls below is replaced. Nothing
is computed on such a GPU but a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 1.95 GiB. GPU 0 has a total capacity of 14.57 GiB of "
    "which 1.58 GiB is free. Process 2493055 has 12.02 GiB memory in use. Including non-PyTorch "
    "memory, this process has 966.00 MiB memory in use. Of the allocated memory 734.07 MiB is "
    "allocated by PyTorch, and 33.93 MiB is reserved by PyTorch but unallocated."
)


def accelerator_error(said: str, name: str = "cudaErrorAssert") -> torch.AcceleratorError:
    """Make the error that torch raises when a call of CUDA fails."""
    return torch.AcceleratorError(
        f"CUDA error: {said}\nSearch for `{name}' in https://docs.nvidia.com/cuda/"
        "cuda-runtime-api/group__CUDART__TYPES.html for more information.\nCUDA kernel errors "
        "might be asynchronously reported at some other API call, so the stacktrace below might "
        "be incorrect."
    )


TOTAL_BYTES = 80 << 30
#: What torch 2.15 and CUDA say of GPUs that a process cannot use.
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU "
    "driver by downloading and installing a new version from the URL: "
    "http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to "
    "install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
    "installed a driver from http://www.nvidia.com/Download/index.aspx"
)
NO_GPUS = "No CUDA GPUs are available"
UNKNOWN = (
    "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env "
    "variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."
)
UNEXPECTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error {}"
)


def list_gpus(monkeypatch: pytest.MonkeyPatch, *uuids: str) -> None:
    """Have the driver's NVML list GPUs, from which torch counts those that are visible."""
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: list(uuids))


def refuse_gpus(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have CUDA fail to start."""

    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(torch._C, "_cuda_init", fail, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 0, raising=False)


def pretend_gpus(
    monkeypatch: pytest.MonkeyPatch, *names: str, uuid: str = "", fails: Exception | None = None
) -> None:
    """Have CUDA start with GPUs of these names, the first of them the current one.

    Args:
        monkeypatch: Puts everything back.
        names: What they are called.
        uuid: UUID of each.
        fails: What the first kernel raises.
    """
    ones = torch.ones

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(name=names[index], total_memory=TOTAL_BYTES, uuid=uuid)

    def made(*size: Sequence[int], device: torch.device | None = None, **options: Any) -> Tensor:
        if device is None or device.type != "cuda":
            return ones(*size, device=device, **options)
        if fails is not None:
            raise fails
        return ones(*size, **options)

    monkeypatch.setattr(torch, "ones", made)
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)  # or it stays counted
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
