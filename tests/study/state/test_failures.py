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
from autotune.study.state.failures import Kind, answers, first_line, kind_of
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
        (TrialInterruptedError("stopped"), Kind.INTERRUPTED),
        (UpdateFinishedTrialError(), Kind.GIVEN_AWAY),
        (DiskFullError("no space"), Kind.USER),
        (StudyError("changed"), Kind.USER),
        (DivergedError("nan"), Kind.OWN),
        (PlanError("no such layer"), Kind.OWN),
        (DeviceBusyError("others"), Kind.TRANSIENT),
        (caused_by(StorageInternalError("an error of the storage"), OPERATIONAL), Kind.STORAGE),
        (caused_by(StorageInternalError("an error of ours"), KeyError("x")), Kind.UNEXPECTED),
        (OPERATIONAL, Kind.STORAGE),
        (torch.cuda.OutOfMemoryError(OUT_OF_MEMORY), Kind.MEMORY),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; ...)"),
            Kind.MEMORY,
        ),
        (accelerator_error("out of memory", "cudaErrorMemoryAllocation"), Kind.MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Kind.MEMORY),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            Kind.MEMORY,
        ),
        (accelerator_error("device-side assert triggered"), Kind.POISONED),
        (accelerator_error("an illegal memory access was encountered"), Kind.POISONED),
        (accelerator_error("unspecified launch failure"), Kind.POISONED),
        (accelerator_error("uncorrectable ECC error encountered"), Kind.POISONED),
        (RuntimeError("CUDA error: driver shutting down"), Kind.POISONED),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), Kind.POISONED),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), Kind.TRANSIENT),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"), Kind.TRANSIENT),
        (accelerator_error("CUDA-capable device(s) is/are busy or unavailable"), Kind.TRANSIENT),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), Kind.UNEXPECTED),
        (accelerator_error("invalid configuration argument"), Kind.UNEXPECTED),
        (OSError(errno.EIO, "Input/output error"), Kind.TRANSIENT),
        (OSError(errno.ESTALE, "Stale file handle"), Kind.TRANSIENT),
        (OSError(LOADER.format("OSError", "[Errno 116] Stale file handle")), Kind.TRANSIENT),
        (RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), Kind.TRANSIENT),
        (RuntimeError("DataLoader worker (pid 4) is killed by signal: Killed."), Kind.TRANSIENT),
        (OSError(errno.ENOSPC, "No space left on device"), Kind.DISK_FULL),
        (FileNotFoundError(errno.ENOENT, "No such file"), Kind.UNEXPECTED),
        (RuntimeError("shape mismatch: a unspecified launch failure"), Kind.UNEXPECTED),
        (KeyError("CUDA error"), Kind.UNEXPECTED),
    ],
    ids=lambda one: one.name if isinstance(one, Kind) else f"{type(one).__name__}: {one}"[:50],
)
def test_the_kind_of_a_failure(error: BaseException, kind: Kind) -> None:
    assert kind_of(error, CPU) == kind


@pytest.mark.parametrize(
    "device", [CPU, torch.device("cuda", 0)], ids=lambda device: str(device.type)
)
def test_host_memory_is_the_plan_s_matter_on_the_cpu_alone(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    expected = Kind.MEMORY if device.type == "cpu" else Kind.TRANSIENT
    assert kind_of(caught.value, device) == expected
    assert kind_of(MemoryError(), device) == expected


def test_the_cpu_always_answers() -> None:
    assert answers(CPU)


def test_the_first_line_is_short_and_without_passwords() -> None:
    text = "no way to postgresql://me:secret@host/db\nmore"
    assert first_line(RuntimeError(text)) == "no way to postgresql://me:***@host/db"
    assert len(first_line(RuntimeError("x" * 9000))) == 400
    assert first_line(RuntimeError()) == ""
