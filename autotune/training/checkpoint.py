"""Checkpoints of a trial in progress: one file, replaced atomically after every epoch."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path
from typing import Any

import torch

from autotune.errors import disk_full_as_user_error, may_pass

logger = logging.getLogger(__name__)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader finds the old one or the new one, never half of it.

    Raises:
        DiskFullError: When there is no space left; the old checkpoint stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_full_as_user_error(path.parent), temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's zip writer hides the system's reason
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, or return ``None`` when there is none that can be trusted.

    Raises:
        OSError: When the disk may have it in a moment.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):  # by one killed while saving
        left.unlink(missing_ok=True)
    try:
        # To the CPU: what loads it copies it to where it belongs, and a full or broken GPU must
        # not look like a damaged file.
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged by a failing disk: the trial starts afresh
        if isinstance(error, OSError) and may_pass(error):
            raise
        logger.warning("the checkpoint %s cannot be read (%s); starting afresh", path, error)
        return None
    return state
