"""The devices of a machine: which GPUs this process may use, and whether they work.

NVML lists GPUs (``torch.cuda.device_count``) and CUDA computes on them; the two can disagree. A
process that was given a GPU, or finds one listed, uses it or fails with the reason: workers that
silently used the CPU instead would mix trials of very different speed.
"""

from __future__ import annotations

import logging
import os
import re
from itertools import groupby

import torch

from autotune.errors import DeviceError, NoDeviceError
from autotune.runtime import set_gpu_defaults
from autotune.study.state import failures

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: The GPUs that SLURM allocated to a step or a job, by their numbers on the machine.
_ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_INDEX, _GPU, _MIG = "index", "GPU", "MIG"
_NAMES = {_INDEX: r"\d+", _GPU: "GPU-.+", _MIG: "MIG-.+"}
#: A name with its UUID; the first part of that is different for each device of a machine.
_UUID = re.compile(r"^((?:MIG-)?(?:GPU-)?[0-9a-fA-F]{8})[0-9a-fA-F-]+")
#: Parts of the errors of torch or CUDA when a GPU cannot be used, and what to do.
_REMEDIES = (
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
#: Errors of torch on a machine without a GPU, where none is broken; a torch without CUDA raises an
#: AssertionError.
_NO_GPU = "no NVIDIA driver|No CUDA GPUs are available"
_REMEDY = "see what nvidia-smi says of it"
_USE_CPU = f'--gpus none or {VISIBLE}="" trains on the CPU'


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs that this process may use, each as ``CUDA_VISIBLE_DEVICES`` names it.

    As in CUDA, the list ends before the first entry that is no GPU of this machine, such as -1.
    Two things differ, because each worker gets one device: every MIG instance counts, although
    CUDA shows a process only one, and a GPU that is named twice counts once, although CUDA would
    show none.

    Returns:
        Indices, UUIDs or parts of them, and names of MIG instances; indices if the environment
        names none.

    Raises:
        NoDeviceError: When the environment names what cannot be a GPU.
    """
    named = _named()
    if named is None:
        count = torch.cuda.device_count()
        allocated = _allocated(count)
        return allocated or tuple(str(index) for index in range(count))
    visible: list[str] = []
    for kind, group in groupby(named, _kind_of_name):
        names = list(group)
        existing = names if kind == _MIG else names[: _count(names)]
        visible += existing
        if len(existing) < len(names):
            if visible:
                logger.warning(
                    "%s=%s: there is no GPU %s here; those before it are used alone",
                    *(VISIBLE, os.environ[VISIBLE], names[len(existing)]),
                )
            break
    return tuple(visible)


def find_device(gpu: str | None = None) -> torch.device:
    """Return the device that this process trains on, after a first computation on it.

    Args:
        gpu: The GPU that the process was given, as ``CUDA_VISIBLE_DEVICES`` names it; empty for
            the CPU, ``None`` to choose.

    Returns:
        The CPU, or the first GPU that the process sees, with its index: parts of ``torch.cuda``
        refuse a device without one, such as ``get_per_process_memory_fraction``.

    Raises:
        NoDeviceError: When a GPU is required and cannot be used; with the reason.
        DeviceError: When other processes hold all of its memory.
    """
    if gpu == "":
        return CPU
    named, count = _named(), torch.cuda.device_count()
    if gpu is None and named == ():
        return CPU
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        set_gpu_defaults(os.environ)
        if names := named or _allocated(count):
            os.environ[VISIBLE] = ",".join(names)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        device = torch.device("cuda", torch.cuda.current_device())
        # Only a kernel shows whether torch has any for this kind of GPU.
        torch.ones((), device=device).add(1).item()
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        is_none = isinstance(error, AssertionError) or re.search(_NO_GPU, str(error))
        if gpu is None and named is None and not count and is_none:
            return CPU
        raise _device_error(error, gpu) from error
    return device


def gpu_name(device: torch.device) -> str:
    """Return a short name of a GPU that is unique on its machine; empty for the CPU.

    Returns:
        ``GPU 2 (8932f937)`` with the start of its UUID, because every container may have a GPU 0;
        or ``MIG-8932f937``.
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
    """Return the GPUs that the environment names, each once; ``None`` if it is not set.

    An entry that is no name ends the list: -1, nothing, SLURM's ``NoDevFiles``.

    Raises:
        NoDeviceError: When an entry begins as a number and is none, such as ``0-3``.
    """
    value = os.environ.get(VISIBLE)
    if value is None:
        return None
    names: list[str] = []
    for entry in value.split(","):
        name = entry.strip()
        kind = _kind_of_name(name)
        if not kind and name[:1].isdecimal():
            raise NoDeviceError(f"{VISIBLE}={value}: {name!r} is no GPU; separate them by commas")
        if not kind:
            break
        names.append(str(int(name)) if kind == _INDEX else name)
    return tuple(dict.fromkeys(names))


def _kind_of_name(name: str) -> str:
    return next((kind for kind, pattern in _NAMES.items() if re.fullmatch(pattern, name)), "")


def _allocated(count: int) -> tuple[str, ...]:
    """Return the GPUs that SLURM allocated, if this process sees more than those.

    SLURM usually sets ``CUDA_VISIBLE_DEVICES`` too. NVML does not count GPUs that it has hidden,
    and numbers the others from 0.
    """
    for variable in _ALLOCATED:
        given = [name for name in os.environ.get(variable, "").split(",") if name.isdigit()]
        if given:
            return tuple(given) if len(given) < count else ()
    return ()


def _count(names: list[str]) -> int:
    """Count the existing GPUs among some names, up to the first that does not exist."""
    before = os.environ[VISIBLE]
    os.environ[VISIBLE] = ",".join(names)
    try:
        return torch.cuda.device_count()  # reads the environment until CUDA is initialized
    finally:
        os.environ[VISIBLE] = before


def _device_error(error: Exception, gpu: str | None) -> DeviceError:
    """Return an error that says why a GPU cannot be used, and what to do."""
    reason = failures.first_line(error)
    who = f"the GPU {gpu}" if gpu else "the GPU of this machine"
    if gpu is None and _named():
        who = f"the GPU of {VISIBLE}={os.environ[VISIBLE]}"
    if failures.classify(error, CPU) == failures.FailureKind.MEMORY:
        return DeviceError(
            f"{who} has no memory left for this process ({reason}); stop what else is on it "
            "(nvidia-smi shows it), or start fewer workers"
        )
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, reason)), _REMEDY)
    return NoDeviceError(f"{who} cannot be used: {reason}; {remedy}; {_USE_CPU}")
