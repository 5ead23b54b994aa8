"""Tell which kind a failure is; :mod:`autotune.study.engine.worker` acts on it."""

from __future__ import annotations

import errno
import re
from enum import Enum

import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import InterfaceError, OperationalError

from autotune.errors import (
    CacheError,
    DeviceBusyError,
    TrialError,
    TrialInterruptedError,
    UserError,
    hide_passwords,
    is_disk_full,
    is_transient_os_error,
)
from autotune.models.device_errors import is_gpu_error, is_out_of_host_memory, is_out_of_memory
from autotune.storage.rdb.retry import is_transient


class FailureKind(Enum):
    """What a failure in the middle of a trial means, in a few words."""

    INTERRUPTED = "a stop was asked for"
    REASSIGNED = "another worker has the trial"
    USER = "no trial can go on before the user has put something right"
    DISK_FULL = "the same: no space is left on a disk"
    DENIED = "the same: a file or folder may not be used, or is not what it should be"
    STORAGE = "the storage was waited for in vain, or refuses for good"
    BAD_PLAN = "the plan is bad, on every device and at any time"
    MEMORY = "the plan does not fit into the memory of its device"
    TRANSIENT = "it may be over in a moment"
    DEVICE_LOST = "the process cannot use its GPU any more; another process can"
    UNEXPECTED = "an error in autotune or in a library"


#: A folder that may not be written, and a file in the place of a folder or the other way around.
_DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
#: After these every further call of the process fails.
_POISON = (
    "device-side assert triggered",
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "misaligned address",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "context is destroyed",
    "driver shutting down",
)
#: Errors of CUDA, cuDNN or cuBLAS that come again with the same plan.
_DETERMINISTIC = (
    "invalid configuration argument",
    "invalid argument",
    "too many resources requested",
    "no kernel image is available",
    "NOT_SUPPORTED",
    "BAD_PARAM",
    "INVALID_VALUE",
    "ARCH_MISMATCH",
)
_LOADER_DIED = re.compile(r"DataLoader worker .*(exited unexpectedly|is killed by signal)")
#: torch makes an error of a loading process anew, with its text alone.
_ERRNO = re.compile(r"\[Errno (\d+)\]")


def classify(error: BaseException, device: torch.device) -> FailureKind:
    """Tell what kind of failure an error is.

    Args:
        error: What a trial raised.
        device: Where it trained. An error of CUDA that is not known to be the end of the process
            is told apart by asking the device for something simple.
    """
    if isinstance(error, TrialInterruptedError):
        return FailureKind.INTERRUPTED
    if isinstance(error, UpdateFinishedTrialError):
        return FailureKind.REASSIGNED
    if isinstance(error, UserError):
        return FailureKind.USER
    if isinstance(error, TrialError):
        return FailureKind.BAD_PLAN
    if isinstance(error, DeviceBusyError | CacheError):
        return FailureKind.TRANSIENT
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if is_transient(error) or isinstance(cause, OperationalError | InterfaceError):
        return FailureKind.STORAGE
    if is_out_of_host_memory(error):
        # Beside a GPU it is the machine that has too little, not the plan that wants too much.
        return FailureKind.MEMORY if device.type == "cpu" else FailureKind.TRANSIENT
    if isinstance(error, OSError):
        return _kind_of_system_error(error)
    if isinstance(error, RuntimeError):
        return _kind_of_runtime_error(error, device)
    return FailureKind.UNEXPECTED


def _kind_of_system_error(error: OSError) -> FailureKind:
    if error.errno is None:
        found = _ERRNO.search(str(error))
        error = OSError(int(found.group(1)), "") if found else error
    if is_disk_full(error):
        return FailureKind.DISK_FULL
    if error.errno in _DENIED:
        return FailureKind.DENIED
    return FailureKind.TRANSIENT if is_transient_os_error(error) else FailureKind.UNEXPECTED


def _kind_of_runtime_error(error: RuntimeError, device: torch.device) -> FailureKind:
    if is_out_of_memory(error):
        return FailureKind.MEMORY
    of_gpu = is_gpu_error(error)
    if of_gpu and _says(error, _POISON):
        return FailureKind.DEVICE_LOST
    if of_gpu and not _says(error, _DETERMINISTIC):
        return FailureKind.TRANSIENT if device_responds(device) else FailureKind.DEVICE_LOST
    return FailureKind.TRANSIENT if _LOADER_DIED.search(str(error)) else FailureKind.UNEXPECTED


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def device_responds(device: torch.device) -> bool:
    """Tell whether this process can still use its device."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return int(torch.ones((), device=device)) == 1
    except RuntimeError:
        return False


def first_line(error: BaseException) -> str:
    """Return what an error says first, short enough for a trial's record, without passwords."""
    lines = hide_passwords(str(error)).splitlines() or [""]
    return lines[0][:400]
