"""Recognize errors of torch that concern a device or its memory, not what was computed there.

torch and its libraries say most of it only in the text of a ``RuntimeError``. The texts are those
of the CUDA runtime (https://docs.nvidia.com/cuda/cuda-runtime-api/, ``cudaError``), of cuDNN and
of cuBLAS.
"""

from __future__ import annotations

import re

import torch

#: Texts of errors when the memory of a GPU does not suffice.
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
_GPU_ERROR = re.compile(r"CUDA (driver )?error|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS")
#: Class of the CUDA runtime's errors; torch 2.7 has none and raises ``RuntimeError``.
_CUDA_ERROR_CLASS: type[Exception] | None = getattr(torch, "AcceleratorError", None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a GPU did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def is_out_of_host_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of the machine did not suffice."""
    text = "DefaultCPUAllocator: can't allocate memory"
    return isinstance(error, MemoryError) or text in str(error)


def is_gpu_error(error: BaseException) -> bool:
    """Return whether an error is one of CUDA, cuDNN or cuBLAS."""
    if _CUDA_ERROR_CLASS is not None and isinstance(error, _CUDA_ERROR_CLASS):
        return True
    return isinstance(error, RuntimeError) and bool(_GPU_ERROR.search(str(error)))


def is_device_error(error: BaseException) -> bool:
    """Return whether an error is due to a device or its memory: it may not occur elsewhere.

    Code that takes errors for a property of a network must let these pass.
    """
    return is_out_of_memory(error) or is_out_of_host_memory(error) or is_gpu_error(error)
