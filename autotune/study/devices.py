"""The devices of a machine: which GPUs there are for this process, and whether one can be used.

Two things tell of GPUs, and they can disagree: the driver's NVML lists them
(``torch.cuda.device_count``), CUDA computes on them. Whoever is told to use a GPU, or finds one
listed, uses it or fails with the reason; a study whose workers fell back to the CPU would mix
trials of very different speed, and nobody would notice.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch

from autotune.errors import DeviceError, NoDeviceError
from autotune.runtime import set_gpu_defaults
from autotune.study.state import failures

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: The GPUs that SLURM has given a step or a job, by the machine's numbers.
_ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_INDEX, _GPU, _MIG = "index", "GPU", "MIG"
_NAMES = {_INDEX: r"\d+", _GPU: "GPU-.+", _MIG: "MIG-.+"}
#: A name with its UUID, of which the first part tells the devices of a machine apart.
_UUID = re.compile(r"^((?:MIG-)?(?:GPU-)?[0-9a-fA-F]{8})[0-9a-fA-F-]+")
#: What to do about what torch or CUDA say when a GPU cannot be used.
_WAYS_OUT = (
    ("driver on your system is too old", "update the driver, or install a torch for this one"),
    (
        "no NVIDIA driver",
        "install the driver, or start the container with its GPUs (docker --gpus all)",
    ),
    ("not compiled with CUDA", "install a torch with CUDA"),
    ("No CUDA GPUs are available|no CUDA-capable device", f"see what {VISIBLE} names"),
    ("invalid device ordinal", f"see what {VISIBLE} names"),
    (
        "busy or unavailable",
        "another process has it for itself (nvidia-smi -q -d COMPUTE): give it one worker, or "
        "set its compute mode to DEFAULT",
    ),
    (
        "not permitted|OS call failed|insufficient permission",
        "give this user access to /dev/nvidia*",
    ),
    ("system not yet initialized", "start the fabric manager of the machine"),
    (
        "no kernel image is available",
        "it is too old or too new for this torch; install one that supports it",
    ),
    (
        "forward compatibility|display driver / cuda driver|PTX",
        "install a driver and a torch that fit each other",
    ),
    (
        "operation not supported",
        "where it is a virtual GPU, set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False",
    ),
)
#: What torch says where there is no GPU.
_NONE_HERE = "no NVIDIA driver|No CUDA GPUs are available"
_WAY_OUT = "see what nvidia-smi says of it"
_USE_CPU = f'--gpus none or {VISIBLE}="" trains on the CPU'


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it.

    As in CUDA, the list ends before the first entry that is no GPU of this machine, such as -1.
    Two things differ, because each worker is given one device alone: every MIG instance counts,
    of which CUDA shows a process only one, and a GPU that is named twice counts once, where CUDA
    would show none.

    Returns:
        Indices, UUIDs or parts of them, and names of MIG instances; indices where the environment
        does not name any.
    """
    named = _named()
    if named is None:
        count = torch.cuda.device_count()
        allocated = _allocated(count)
        return allocated or tuple(str(index) for index in range(count))
    found: list[str] = []
    for kind, group in groupby(named, _kind_of_name):
        names = list(group)
        there = names if kind == _MIG else names[: _count(names)]
        found += there
        if len(there) < len(names):
            if found:
                logger.warning(
                    "%s=%s: there is no GPU %s here; those before it are used alone",
                    *(VISIBLE, os.environ[VISIBLE], names[len(there)]),
                )
            break
    return tuple(found)


def find_device(gpu: str | None = None) -> torch.device:
    """Return the device that this process trains on, and make sure that it can be used.

    Args:
        gpu: The GPU that the process was given, as ``CUDA_VISIBLE_DEVICES`` names it; empty for
            the CPU, ``None`` where nobody has said.

    Returns:
        The CPU, or the first GPU that the process sees, with its index: parts of ``torch.cuda``
        refuse a device without one, such as ``get_per_process_memory_fraction``.

    Raises:
        NoDeviceError: When there is to be a GPU, and it cannot be used; with the reason.
        DeviceError: When others hold all of its memory.
    """
    named, count = _named(), torch.cuda.device_count()
    if gpu == "" or (gpu is None and named == ()):
        return CPU
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        set_gpu_defaults(os.environ)
        if visible := named or _allocated(count):
            os.environ[VISIBLE] = ",".join(visible)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        device = torch.device("cuda", torch.cuda.current_device())
        # One kernel: only that shows whether torch has any for this kind of GPU.
        torch.ones((), device=device).add(1).item()
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        if gpu is None and named is None and not count and _says_there_is_none(error):
            return CPU
        raise _refusal(error, gpu) from error
    return device


def gpu_name(device: torch.device) -> str:
    """Name which GPU of its machine a device is, in a few words; empty for the CPU.

    Returns:
        ``GPU 2 (8932f937)``, with the beginning of its UUID, which is another one in each of
        several containers that all have a GPU 0; or ``MIG-8932f937``.
    """
    if device.type != "cuda":
        return ""
    named = _named() or ()
    name = named[device.index] if device.index < len(named) else str(device.index)
    if _kind_of_name(name) != _INDEX:
        return _UUID.sub(r"\1", name)
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return f"GPU {name} ({uuid[:8]})" if uuid else f"GPU {name}"


def _named() -> tuple[str, ...] | None:
    """Return the GPUs that the environment names, each once; ``None`` where it says nothing.

    What is no name ends the list: -1, nothing, SLURM's ``NoDevFiles``.
    """
    value = os.environ.get(VISIBLE)
    if value is None:
        return None
    names: list[str] = []
    for entry in value.split(","):
        name = entry.strip()
        kind = _kind_of_name(name)
        if not kind:
            break
        names.append(str(int(name)) if kind == _INDEX else name)
    return tuple(dict.fromkeys(names))


def _kind_of_name(name: str) -> str:
    return next((kind for kind, pattern in _NAMES.items() if re.fullmatch(pattern, name)), "")


def _allocated(count: int) -> tuple[str, ...]:
    """Return the GPUs that SLURM has given, where this process sees more than those.

    SLURM says so with ``CUDA_VISIBLE_DEVICES`` too; what it has hidden is not counted by NVML, and
    the rest is numbered anew.
    """
    for variable in _ALLOCATED:
        given = [name for name in os.environ.get(variable, "").split(",") if name.isdigit()]
        if given:
            return tuple(given) if len(given) < count else ()
    return ()


def _count(names: list[str]) -> int:
    """Count the GPUs that there are of these names, from the first to one that is not there."""
    with _visible(",".join(names)):
        return torch.cuda.device_count()  # looks at the environment until CUDA is in use


@contextmanager
def _visible(value: str) -> Iterator[None]:
    before = os.environ[VISIBLE]
    os.environ[VISIBLE] = value
    try:
        yield
    finally:
        os.environ[VISIBLE] = before


def _says_there_is_none(error: Exception) -> bool:
    """Tell whether an error means that a machine has no GPU, and not that it has a broken one."""
    return isinstance(error, AssertionError) or re.search(_NONE_HERE, str(error)) is not None


def _refusal(error: Exception, gpu: str | None) -> DeviceError:
    """Say why a GPU cannot be used, and what to do about it."""
    reason = failures.first_line(error)
    who = f"the GPU {gpu}" if gpu else "the GPU of this machine"
    if gpu is None and _named():
        who = f"the GPU of {VISIBLE}={os.environ[VISIBLE]}"
    if failures.classify(error, CPU) == failures.FailureKind.MEMORY:
        return DeviceError(
            f"{who} has no memory left for this process ({reason}); stop what else is on it "
            "(nvidia-smi shows it), or start fewer workers"
        )
    way_out = next((way for said, way in _WAYS_OUT if re.search(said, reason)), _WAY_OUT)
    return NoDeviceError(f"{who} cannot be used: {reason}; {way_out}; {_USE_CPU}")
