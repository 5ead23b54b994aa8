"""Checkpoints of a trial in progress: one file, replaced atomically after every epoch.

The file says whose state it holds and has a checksum::

    autotune checkpoint 2
    1c291ca3                                       CRC-32 of all that follows
    {"epoch": 7, "identity": {...}}                one line of JSON
    ...                                            the state, as torch.save writes it

What is not to be trusted, or belongs to another training, is removed, and the training starts
afresh: that costs time, and never a wrong value.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shutil
import uuid
import zlib
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autotune.errors import disk_full_as_user_error, is_transient_os_error

logger = logging.getLogger(__name__)

#: The first line of a file. The number is raised when states of before cannot be used any more.
_MAGIC = b"autotune checkpoint 2\n"
_CHUNK_BYTES = 1 << 22


class _UnusableError(Exception):
    """A file is no checkpoint of this training, or a damaged one."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state.

    Args:
        path: The file.
        identity: Everything that decides about the state, as JSON values. A file with another
            identity is that of another training.
        reported: The epochs whose values are known, ``None`` for all. A state after an epoch of
            which, or before which, a value is missing is not used: its curve would have a gap.
    """

    path: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    reported: Container[int] | None = None

    def save(self, state: Mapping[str, Any], epoch: int) -> None:
        """Write a state so that a reader finds the old one or the new one, never half of it.

        Args:
            state: What :meth:`load` is to return.
            epoch: The last finished epoch, counted from 1.

        Raises:
            DiskFullError: When there is no space left; the old state stays.
        """
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the process: machines that share the folder count theirs alike.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with disk_full_as_user_error(path.parent), temporary.open("wb") as file:
                _write(file, {"epoch": epoch, "identity": dict(self.identity)}, state)
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir():  # nothing of ours, and a file cannot replace it
                _remove(path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, current: Mapping[str, Any]) -> dict[str, Any] | None:
        """Read the state, or return ``None`` when there is none that can be used.

        A file that cannot be used is removed, with a line in the log.

        Args:
            current: The state of the training that is to go on, as it is before.

        Raises:
            OSError: When the disk may have it in a moment.
        """
        path = self.path
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):  # by one killed while saving
            _remove(left)
        try:
            with path.open("rb") as file:
                return self._read(file, current)
        except FileNotFoundError:
            return None
        except OSError as error:
            if is_transient_os_error(error):
                raise
            reason = str(error)
        except _UnusableError as error:
            reason = str(error)
        logger.warning("the checkpoint %s is not used: %s; starting afresh", path, reason)
        _remove(path)
        return None

    def _read(self, file: BinaryIO, current: Mapping[str, Any]) -> dict[str, Any]:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _UnusableError("it is not of this version, or no checkpoint at all")
        about, state = file.read(_CRC_LENGTH), file.tell()
        crc = 0
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
        if about != _line_of(crc):
            raise _UnusableError("its checksum is wrong, so it is damaged")
        file.seek(state)
        try:
            self._check(json.loads(file.readline()))
        except (ValueError, KeyError, TypeError) as error:
            raise _UnusableError(f"it does not say whose it is ({error})") from error
        try:
            # To the CPU: what loads it copies it to where it belongs, and a full or broken GPU
            # must not look like a damaged file.
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch says of what it does not read
            if isinstance(error, OSError):
                raise
            raise _UnusableError(f"it cannot be read ({error})") from error
        if where := _difference(found, current):
            raise _UnusableError(f"it has another structure at {where}")
        # A training that went on from there would diverge, and its plan would be to blame.
        if not all(_is_finite(one) for one in tree_leaves(found)):
            raise _UnusableError("some of its numbers are not finite")
        return dict(found)

    def _check(self, about: Mapping[str, Any]) -> None:
        theirs, epoch = about["identity"], about["epoch"]
        others = [key for key in self.identity if theirs.get(key) != self.identity[key]]
        others += [key for key in theirs if key not in self.identity]
        if others:
            raise _UnusableError(f"it is that of another training ({', '.join(others)})")
        if self.reported is not None:
            missing = [one for one in range(1, epoch + 1) if one not in self.reported]
            if missing:
                raise _UnusableError(
                    f"it is that of epoch {epoch}, but no value is known of epoch {missing[0]}"
                )


def _remove(path: Path) -> None:
    """Remove what is in the way; where that cannot be, the next save replaces it or says why."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _Summed:
    """A file that is written from start to end, and summed up on the way.

    CRC-32 finds every flipped bit and every gap, and costs a tenth of a cryptographic digest,
    which would protect from nobody: who can write the file can write its digest.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.crc = 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _line_of(crc: int) -> bytes:
    return f"{crc:08x}\n".encode()


_CRC_LENGTH = len(_line_of(0))


def _write(file: BinaryIO, about: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    file.write(_MAGIC)
    place = file.tell()
    file.write(_line_of(0))
    summed = _Summed(file)
    summed.write(json.dumps(about, sort_keys=True).encode() + b"\n")
    try:
        torch.save(dict(state), summed)  # type: ignore[arg-type]  # it writes and flushes
    except RuntimeError as error:  # torch's zip writer hides the system's reason
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    file.seek(place)
    file.write(_line_of(summed.crc))


def _difference(found: Any, current: Any, where: str = "state") -> str:
    """Say where a state differs in structure from the one of now; empty where it does not.

    An optimizer has a state for each parameter once it has taken a step: what is empty now may
    be filled.
    """
    if isinstance(current, Tensor) or isinstance(found, Tensor):
        same = (
            isinstance(current, Tensor)
            and isinstance(found, Tensor)
            and (current.shape, current.dtype) == (found.shape, found.dtype)
        )
        return "" if same else where
    if isinstance(current, Mapping):
        if not isinstance(found, Mapping):
            return where
        if not current and where.endswith(".optimizer.state"):
            return ""
        if found.keys() != current.keys():
            return where
        names = list(current)
    elif isinstance(current, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(current):
            return where
        names = list(range(len(current)))
    else:
        return "" if _is_alike(found, current) else where
    wrong = (_difference(found[name], current[name], f"{where}.{name}") for name in names)
    return next((one for one in wrong if one), "")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


def _is_alike(found: Any, current: Any) -> bool:
    """Tell whether a value can take the place of another one; what is None may be set later."""
    for kind in (bool, int | float, str):
        if isinstance(current, kind):
            return isinstance(found, kind) and isinstance(found, bool) == isinstance(current, bool)
    return True
