"""Classification of failures; :mod:`autotune.study.engine.claimed_trial` acts on it."""

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
    """What a failure in the middle of a trial means."""

    INTERRUPTED = "a stop was requested"
    REASSIGNED = "another worker has the trial"
    USER = "the user must fix something before any trial can continue"
    DISK_FULL = "the same: no space is left on a disk"
    DENIED = "the same: a file or folder may not be used, or is not what it should be"
    STORAGE = "the storage stayed unavailable, or refuses permanently"
    BAD_PLAN = "the plan is bad, on every device and at any time"
    MEMORY = "the plan does not fit into the memory of its device"
    TRANSIENT = "it may pass in a moment"
    DEVICE_LOST = "the process can no longer use its GPU; another process can"
    UNEXPECTED = "an error in autotune or in a library"


#: Kinds of errors by their types, the first that fits.
_BY_TYPE: dict[FailureKind, type[Exception] | tuple[type[Exception], ...]] = {
    FailureKind.INTERRUPTED: TrialInterruptedError,
    FailureKind.REASSIGNED: UpdateFinishedTrialError,
    FailureKind.USER: UserError,
    FailureKind.BAD_PLAN: TrialError,
    FailureKind.TRANSIENT: (DeviceBusyError, CacheError),
}
#: Errors for a folder that may not be written, or a file in the place of a folder or vice versa.
_DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
)
#: Errors after which every further call of the process to the GPU fails.
_DEVICE_LOST = (
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
#: Errors of CUDA, cuDNN or cuBLAS that the same plan meets again.
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
#: torch re-raises an error of a loading process with its text only.
_ERRNO = re.compile(r"\[Errno (\d+)\]")


def classify(error: BaseException, device: torch.device) -> FailureKind:
    """Return the kind of failure of an error that a trial raised.

    Args:
        error: The error.
        device: Where it trained. For an error of CUDA that is not known to be the end of the
            process, the device is asked for something simple.
    """
    for kind, types in _BY_TYPE.items():
        if isinstance(error, types):
            return kind
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if is_transient(error) or isinstance(cause, OperationalError | InterfaceError):
        return FailureKind.STORAGE
    if is_out_of_host_memory(error):
        # On a GPU the machine has too little memory; the plan does not want too much.
        return FailureKind.MEMORY if device.type == "cpu" else FailureKind.TRANSIENT
    if isinstance(error, OSError):
        return _classify_os_error(error)
    if isinstance(error, RuntimeError):
        return _classify_runtime_error(error, device)
    return FailureKind.UNEXPECTED


def _classify_os_error(error: OSError) -> FailureKind:
    if error.errno is None:
        match = _ERRNO.search(str(error))
        error = OSError(int(match.group(1)), "") if match else error
    if is_disk_full(error):
        return FailureKind.DISK_FULL
    if error.errno in _DENIED:
        return FailureKind.DENIED
    return FailureKind.TRANSIENT if is_transient_os_error(error) else FailureKind.UNEXPECTED


def _classify_runtime_error(error: RuntimeError, device: torch.device) -> FailureKind:
    if is_out_of_memory(error):
        return FailureKind.MEMORY
    from_gpu = is_gpu_error(error)
    if from_gpu and _mentions(error, _DEVICE_LOST):
        return FailureKind.DEVICE_LOST
    if from_gpu and not _mentions(error, _DETERMINISTIC):
        return FailureKind.TRANSIENT if device_responds(device) else FailureKind.DEVICE_LOST
    return FailureKind.TRANSIENT if _LOADER_DIED.search(str(error)) else FailureKind.UNEXPECTED


def _mentions(error: BaseException, texts: tuple[str, ...]) -> bool:
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
    """Return the first line of an error, short enough for an attribute, without passwords."""
    lines = hide_passwords(str(error)).splitlines() or [""]
    return lines[0][:400]
