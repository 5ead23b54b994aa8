from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.support.simulated_gpu import SimulatedGpu, simulated_gpu


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu]:
    gc.collect()  # copies of images of tests before
    with simulated_gpu() as device:
        yield device
