"""Errors of torch that tell of a device and its memory, and not of what was computed there.

torch and its libraries say most of it in the text of a ``RuntimeError`` alone. The texts are those
of the CUDA runtime (https://docs.nvidia.com/cuda/cuda-runtime-api/, ``cudaError``), of cuDNN and
of cuBLAS.
"""

from __future__ import annotations

import re

import torch

#: What is said where the memory of a GPU does not suffice.
_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA ran out of memory",
    "STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    # cuDNN has no room for the workspace of any of its kernels.
    "unable to find an engine to execute this computation",
)
#: What is said where the memory of the machine does not suffice.
_OUT_OF_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory",)
_OF_A_GPU = re.compile(r"CUDA (driver )?error|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS")
#: The class of errors of the CUDA runtime; torch 2.7 has none, and raises ``RuntimeError``.
_ERROR_OF_CUDA: type[Exception] | None = getattr(torch, "AcceleratorError", None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of a GPU did not suffice."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _says(error, _OUT_OF_MEMORY)


def is_out_of_host_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of the machine did not suffice."""
    return isinstance(error, MemoryError) or _says(error, _OUT_OF_HOST_MEMORY)


def is_gpu_error(error: BaseException) -> bool:
    """Tell whether an error is one of CUDA, cuDNN or cuBLAS."""
    if _ERROR_OF_CUDA is not None and isinstance(error, _ERROR_OF_CUDA):
        return True
    return isinstance(error, RuntimeError) and bool(_OF_A_GPU.search(str(error)))


def is_device_error(error: BaseException) -> bool:
    """Tell whether an error is one of a device or its memory: elsewhere, or later, there is none.

    Whoever takes errors for a verdict on a network lets these pass.
    """
    return is_out_of_memory(error) or is_out_of_host_memory(error) or is_gpu_error(error)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)
