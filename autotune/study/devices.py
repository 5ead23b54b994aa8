"""The device of a process: the CPU, or the GPU that it was given."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def find_device() -> torch.device:
    """Return the device that this process trains on: its first GPU, or the CPU where it has none.

    A GPU has its index: parts of ``torch.cuda`` refuse a device without one, such as
    ``get_per_process_memory_fraction``.
    """
    if not torch.cuda.is_available():
        return CPU
    return torch.device("cuda", torch.cuda.current_device())
