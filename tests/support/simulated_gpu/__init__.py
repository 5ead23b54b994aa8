"""A simulated CUDA device for machines without one: real values under CUDA's device rules.

A tensor on the device is a subclass of ``torch.Tensor`` around memory of the CPU. Python sees
``cuda:0``; C++ sees a CPU tensor, so that kernels compute real values and autograd works.
Others do not suffice: a tensor whose C++ device is CUDA cannot go backward without a driver
(autograd asks for its context), and ``FakeTensorMode`` has no values.

What it shows:

- operands of two devices raise CUDA's own error text;
- waits of the host, and copies between host and device, are counted with the lines of the
  product that asked for them, pageable and pinned memory apart;
- ``torch.cuda`` keeps its own Python, so arguments are checked as on a GPU: a device without
  an index is refused where CUDA refuses it; ``torch._C._cuda_*`` below it is replaced;
- memory: allocated, reserved and peak bytes, a limit, out of memory at chosen places, and a
  neighbor that holds a part of the device for a while;
- pinned memory that is written to before a copy from it was waited for;
- a card without bfloat16; a driver that lists a card which CUDA cannot use;
- CUDA graphs: refused, or recorded and replayed, so that a value that was baked into a captured
  step shows.

What it cannot see: kernels (their rounding, algorithms, workspaces, and which of them are
missing), the order of work on several streams, errors that a kernel reports later, speed, and
C++ code that asks a tensor for its device. Random numbers come from the generator of the CPU.
``autocast("cuda")`` becomes that of the CPU, whose lists of operations are nearly the same.
cuDNN is not met: C++ chooses it for CUDA tensors alone. There is one device.

Everything is installed by a context manager in the process that runs the test, because all of it
can be undone: each replaced attribute is put back, and the modes of ``torch.utils`` leave the
stack. Tests of other processes install it there, see :mod:`tests.support.simulated_gpu.process`.
"""

from __future__ import annotations

from tests.support.simulated_gpu.memory import OutOfMemory
from tests.support.simulated_gpu.simulation import SimulatedGpu, simulated_gpu
from tests.support.simulated_gpu.tensor import GpuTensor
from tests.support.simulated_gpu.traffic import Kind, Record, Traffic

__all__ = [
    "GpuTensor",
    "Kind",
    "OutOfMemory",
    "Record",
    "SimulatedGpu",
    "Traffic",
    "simulated_gpu",
]
