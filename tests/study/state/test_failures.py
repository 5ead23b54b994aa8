"""What kind a failure is, by the types and texts that torch and the system really use."""

from __future__ import annotations

import errno
import sqlite3

import pytest
import sqlalchemy
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from autotune.errors import (
    DeviceBusyError,
    DiskFullError,
    DivergedError,
    PlanError,
    StudyError,
    TrialInterruptedError,
)
from autotune.study.state.failures import FailureKind, classify, first_line
from tests.support.cuda import OUT_OF_MEMORY, accelerator_error
from tests.support.models.backbones import CPU

LOADER = "Caught {} in DataLoader worker process 0.\nOriginal Traceback ...\n{}"
OPERATIONAL = sqlalchemy.exc.OperationalError(
    "UPDATE trials", {}, sqlite3.OperationalError("database or disk is full")
)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ERRORS: dict[FailureKind, tuple[BaseException, ...]] = {
    FailureKind.INTERRUPTED: (TrialInterruptedError("stopped"),),
    FailureKind.REASSIGNED: (UpdateFinishedTrialError(),),
    FailureKind.USER: (DiskFullError("no space"), StudyError("changed")),
    FailureKind.BAD_PLAN: (DivergedError("nan"), PlanError("no such layer")),
    FailureKind.STORAGE: (
        OPERATIONAL,
        caused_by(StorageInternalError("an error of the storage"), OPERATIONAL),
    ),
    FailureKind.DISK_FULL: (OSError(errno.ENOSPC, "No space left on device"),),
    FailureKind.MEMORY: (
        torch.cuda.OutOfMemoryError(OUT_OF_MEMORY),
        RuntimeError("CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; ...)"),
        accelerator_error("out of memory", "cudaErrorMemoryAllocation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ),
    FailureKind.DEVICE_LOST: (
        accelerator_error("device-side assert triggered"),
        accelerator_error("an illegal memory access was encountered"),
        accelerator_error("unspecified launch failure"),
        accelerator_error("uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: driver shutting down"),
        RuntimeError("CUDA error: the launch timed out and was terminated"),
    ),
    FailureKind.TRANSIENT: (
        DeviceBusyError("others"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"),
        accelerator_error("CUDA-capable device(s) is/are busy or unavailable"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(LOADER.format("OSError", "[Errno 116] Stale file handle")),
        RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 4) is killed by signal: Killed."),
    ),
    FailureKind.UNEXPECTED: (
        caused_by(StorageInternalError("an error of ours"), KeyError("x")),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        accelerator_error("invalid configuration argument"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("shape mismatch: a unspecified launch failure"),
        KeyError("CUDA error"),
    ),
}


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: str(kind.name))
def test_the_kind_of_a_failure(kind: FailureKind) -> None:
    assert [classify(error, CPU) for error in ERRORS[kind]] == [kind] * len(ERRORS[kind])


@pytest.mark.parametrize(
    "device", [CPU, torch.device("cuda", 0)], ids=lambda device: str(device.type)
)
def test_host_memory_is_the_plan_s_matter_on_the_cpu_alone(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    expected = FailureKind.MEMORY if device.type == "cpu" else FailureKind.TRANSIENT
    assert classify(caught.value, device) == expected
    assert classify(MemoryError(), device) == expected


def test_the_first_line_is_short_and_without_passwords() -> None:
    text = "no way to postgresql://me:secret@host/db\nmore"
    assert first_line(RuntimeError(text)) == "no way to postgresql://me:***@host/db"
    assert len(first_line(RuntimeError("x" * 9000))) == 400
    assert first_line(RuntimeError()) == ""
