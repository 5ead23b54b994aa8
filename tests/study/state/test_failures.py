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
from autotune.study.state.failures import FailureKind, classify, device_responds, first_line
from tests.support.backbones import CPU
from tests.support.cuda import OUT_OF_MEMORY, accelerator_error

LOADER = "Caught {} in DataLoader worker process 0.\nOriginal Traceback ...\n{}"
OPERATIONAL = sqlalchemy.exc.OperationalError(
    "UPDATE trials", {}, sqlite3.OperationalError("database or disk is full")
)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TrialInterruptedError("stopped"), FailureKind.INTERRUPTED),
        (UpdateFinishedTrialError(), FailureKind.REASSIGNED),
        (DiskFullError("no space"), FailureKind.USER),
        (StudyError("changed"), FailureKind.USER),
        (DivergedError("nan"), FailureKind.BAD_PLAN),
        (PlanError("no such layer"), FailureKind.BAD_PLAN),
        (DeviceBusyError("others"), FailureKind.TRANSIENT),
        (
            caused_by(StorageInternalError("an error of the storage"), OPERATIONAL),
            FailureKind.STORAGE,
        ),
        (
            caused_by(StorageInternalError("an error of ours"), KeyError("x")),
            FailureKind.UNEXPECTED,
        ),
        (OPERATIONAL, FailureKind.STORAGE),
        (torch.cuda.OutOfMemoryError(OUT_OF_MEMORY), FailureKind.MEMORY),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; ...)"),
            FailureKind.MEMORY,
        ),
        (accelerator_error("out of memory", "cudaErrorMemoryAllocation"), FailureKind.MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), FailureKind.MEMORY),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            FailureKind.MEMORY,
        ),
        (accelerator_error("device-side assert triggered"), FailureKind.DEVICE_LOST),
        (accelerator_error("an illegal memory access was encountered"), FailureKind.DEVICE_LOST),
        (accelerator_error("unspecified launch failure"), FailureKind.DEVICE_LOST),
        (accelerator_error("uncorrectable ECC error encountered"), FailureKind.DEVICE_LOST),
        (RuntimeError("CUDA error: driver shutting down"), FailureKind.DEVICE_LOST),
        (
            RuntimeError("CUDA error: the launch timed out and was terminated"),
            FailureKind.DEVICE_LOST,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), FailureKind.TRANSIENT),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"),
            FailureKind.TRANSIENT,
        ),
        (
            accelerator_error("CUDA-capable device(s) is/are busy or unavailable"),
            FailureKind.TRANSIENT,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), FailureKind.UNEXPECTED),
        (accelerator_error("invalid configuration argument"), FailureKind.UNEXPECTED),
        (OSError(errno.EIO, "Input/output error"), FailureKind.TRANSIENT),
        (OSError(errno.ESTALE, "Stale file handle"), FailureKind.TRANSIENT),
        (
            OSError(LOADER.format("OSError", "[Errno 116] Stale file handle")),
            FailureKind.TRANSIENT,
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"),
            FailureKind.TRANSIENT,
        ),
        (
            RuntimeError("DataLoader worker (pid 4) is killed by signal: Killed."),
            FailureKind.TRANSIENT,
        ),
        (OSError(errno.ENOSPC, "No space left on device"), FailureKind.DISK_FULL),
        (FileNotFoundError(errno.ENOENT, "No such file"), FailureKind.UNEXPECTED),
        (RuntimeError("shape mismatch: a unspecified launch failure"), FailureKind.UNEXPECTED),
        (KeyError("CUDA error"), FailureKind.UNEXPECTED),
    ],
    ids=lambda one: (
        one.name if isinstance(one, FailureKind) else f"{type(one).__name__}: {one}"[:50]
    ),
)
def test_the_kind_of_a_failure(error: BaseException, kind: FailureKind) -> None:
    assert classify(error, CPU) == kind


@pytest.mark.parametrize(
    "device", [CPU, torch.device("cuda", 0)], ids=lambda device: str(device.type)
)
def test_host_memory_is_the_plan_s_matter_on_the_cpu_alone(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    expected = FailureKind.MEMORY if device.type == "cpu" else FailureKind.TRANSIENT
    assert classify(caught.value, device) == expected
    assert classify(MemoryError(), device) == expected


def test_the_cpu_always_answers() -> None:
    assert device_responds(CPU)


def test_the_first_line_is_short_and_without_passwords() -> None:
    text = "no way to postgresql://me:secret@host/db\nmore"
    assert first_line(RuntimeError(text)) == "no way to postgresql://me:***@host/db"
    assert len(first_line(RuntimeError("x" * 9000))) == 400
    assert first_line(RuntimeError()) == ""
