"""What torch says of a GPU, word for word."""

from __future__ import annotations

import torch

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
