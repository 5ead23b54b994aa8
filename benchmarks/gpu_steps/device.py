"""The GPU of a step, real or simulated, and what a training does there.

On a real GPU torch's profiler is asked, on the simulated one its record of waits and copies.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from autotune.training.compute.amp import AmpPolicy
from gpu_steps.trace import STEP, Traffic, read_trace

if TYPE_CHECKING:
    from tests.support.simulated_gpu import SimulatedGpu

CUDA = torch.device("cuda", 0)


@contextmanager
def gpu_of_step(dry: bool) -> Iterator[SimulatedGpu | None]:
    """Give a step its GPU; a dry run's is simulated.

    Raises:
        SystemExit: When there is no GPU, with the reason.
    """
    if dry:
        from tests.support.simulated_gpu import simulated_gpu

        with simulated_gpu(graphs=True) as gpu:
            yield gpu
        return
    try:
        torch.zeros(1, device=CUDA)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"CUDA cannot be used: {error}") from error
    yield None


@contextmanager
def gpu_for_processes(folder: Path, dry: bool) -> Iterator[None]:
    """Let the processes of autotune that are started meanwhile have the GPU of the step."""
    if not dry:
        yield
        return
    from tests.support.simulated_gpu.process import faults_of, simulated_environment

    with patch.dict(os.environ, simulated_environment(folder)):
        yield
    faults = faults_of(folder)
    if faults:
        raise RuntimeError(f"the simulated device has found faults: {faults}")


def mode_of(amp: AmpPolicy) -> str:
    """Name the mixed precision in force: ``off``, or its dtype."""
    return "off" if amp.dtype is None else str(amp.dtype).removeprefix("torch.")


@dataclass
class Watch:
    """Tells what happens from step to step of a training.

    Args:
        gpu: The simulated device of a dry run.
    """

    gpu: SimulatedGpu | None
    steps: int = 0
    traffic: Traffic | None = None
    _watching: bool = False
    _from: int = 0
    _to: int = 0

    def mark(self) -> bool:
        """Note that a step begins; asked by a training whether it is to stop, it says no."""
        if self._watching:
            self.steps += 1
            if self.gpu is None:
                with torch.profiler.record_function(STEP):
                    pass
            else:
                self._to = len(self.gpu.traffic.records)
                self._from = self._to if self.steps == 1 else self._from
        return False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the steps in this context; ``traffic`` is what was seen."""
        self._watching, self.steps = True, 0
        try:
            if self.gpu is None:
                activities = [
                    torch.profiler.ProfilerActivity.CPU,
                    torch.profiler.ProfilerActivity.CUDA,
                ]
                with torch.profiler.profile(activities=activities) as profile:
                    yield
                    torch.cuda.synchronize()
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "trace.json"
                    profile.export_chrome_trace(str(file))
                    self.traffic = read_trace(json.loads(file.read_text(encoding="utf-8")))
            else:
                yield
                self.traffic = self._simulated()
        finally:
            self._watching = False

    def _simulated(self) -> Traffic:
        from tests.support.simulated_gpu import Kind

        assert self.gpu is not None
        records = self.gpu.traffic.records[self._from : self._to]
        all_waits = [record for record in records if record.kind is Kind.WAIT]
        waits = [wait for wait in all_waits if wait.in_main_thread]
        pageable = [record for record in records if record.kind is Kind.PAGEABLE_TO_DEVICE]
        return Traffic(
            steps=self.steps - 1,
            busy_share=None,
            kernels=None,
            waits=len(waits),
            waits_elsewhere=len(all_waits) - len(waits),
            pageable=len(pageable),
            lines=tuple(sorted({one.line for one in [*waits, *pageable]})),
        )
