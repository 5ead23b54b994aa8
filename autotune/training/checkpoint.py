"""Checkpoints of a trial in progress: one file, replaced atomically after every epoch.

The file says whose state it holds and has a checksum::

    autotune checkpoint 2
    1c291ca3                                       CRC-32 of all that follows
    {"epoch": 7, "identity": {...}}                one line of JSON
    ...                                            the state, as torch.save writes it

A damaged file, or that of another training, is removed, and the training starts over: that costs
time, and never a wrong value.
"""

from __future__ import annotations

import glob
import json
import logging
import shutil
import zlib
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autotune.atomic import atomic_file
from autotune.errors import is_transient_os_error
from autotune.training.curves import CHECKPOINT_KEY
from autotune.training.metrics import LOWEST_LOSS

logger = logging.getLogger(__name__)

#: The first line of a file. The number is raised when earlier states cannot be used any more.
_MAGIC = b"autotune checkpoint 2\n"
_CHUNK_BYTES = 1 << 22


class _UnusableError(Exception):
    """A file is no checkpoint of this training, or a damaged one."""


@dataclass(frozen=True)
class Checkpoint:
    """The file with the state of a training.

    Args:
        path: The file.
        identity: Everything that determines the state, as JSON values. A file with another
            identity belongs to another training.
        reported: The epochs whose values are stored, ``None`` for all. A state is not used if a
            value is missing of its epoch or an earlier one: its curve would have a gap.
    """

    path: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    reported: Container[int] | None = None

    def save(self, state: Mapping[str, Any], epoch: int) -> None:
        """Write a state so that a reader finds the old one or the new one, never half of it.

        Raises:
            DiskFullError: When there is no space left; the old state stays.
        """
        with atomic_file(self.path, sync=True) as temporary:
            with temporary.open("wb") as file:
                _write(file, {"epoch": epoch, "identity": dict(self.identity)}, state)
            if self.path.is_dir():  # not one of ours, and a file cannot replace it
                _remove(self.path)

    def load(self, current: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Read the state, or return ``None`` if there is none that can be used.

        A file that cannot be used is removed, with a line in the log.

        Args:
            current: The state of the training that would resume; ``None`` where no training does.

        Raises:
            OSError: When the error may be gone in a moment.
        """
        path = self.path
        # Left by a process that was killed while saving.
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
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

    def _read(self, file: BinaryIO, current: Mapping[str, Any] | None) -> dict[str, Any]:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _UnusableError("it is not of this version, or no checkpoint at all")
        checksum, start, crc = file.read(_CRC_LENGTH), file.tell(), 0
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
        if checksum != _crc_line(crc):
            raise _UnusableError("its checksum is wrong, so it is damaged")
        file.seek(start)
        try:
            self._check(json.loads(file.readline()))
        except (ValueError, KeyError, TypeError) as error:
            raise _UnusableError(f"it does not say whose it is ({error})") from error
        try:
            # To the CPU: the training copies it to its device, and a full or broken GPU must not
            # look like a damaged file.
            state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch raises many kinds for a file that it cannot read
            raise _UnusableError(f"it cannot be read ({error})") from error
        if current is not None and (where := _difference(state, current)):
            raise _UnusableError(f"it has another structure at {where}")
        # A training that resumed from it would diverge, and its plan would be blamed.
        if not all(
            leaf.isfinite().all() for leaf in tree_leaves(state) if isinstance(leaf, Tensor)
        ):
            raise _UnusableError("some of its numbers are not finite")
        return dict(state)

    def _check(self, header: Mapping[str, Any]) -> None:
        identity, epoch = header["identity"], header["epoch"]
        others = [key for key in self.identity if identity.get(key) != self.identity[key]]
        others += [key for key in identity if key not in self.identity]
        if others:
            raise _UnusableError(f"it is that of another training ({', '.join(others)})")
        reported = range(1, epoch + 1) if self.reported is None else self.reported
        missing = next((number for number in range(1, epoch + 1) if number not in reported), None)
        if missing is not None:
            raise _UnusableError(
                f"it is that of epoch {epoch}, but no value is known of epoch {missing}"
            )


def _remove(path: Path) -> None:
    """Remove a file or folder; if that fails, the next save replaces it or says why."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _ChecksummedFile:
    """A file that is written from start to end, with its checksum.

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


def _crc_line(crc: int) -> bytes:
    return f"{crc:08x}\n".encode()


_CRC_LENGTH = len(_crc_line(0))


def _write(file: BinaryIO, header: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    file.write(_MAGIC)
    place = file.tell()
    file.write(_crc_line(0))
    checksummed = _ChecksummedFile(file)
    checksummed.write(json.dumps(header, sort_keys=True).encode() + b"\n")
    try:
        torch.save(dict(state), checksummed)  # type: ignore[arg-type]  # it writes and flushes
    except RuntimeError as error:  # torch's zip writer hides the system's reason
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    file.seek(place)
    file.write(_crc_line(checksummed.crc))


def _difference(state: Any, current: Any, where: str = "state") -> str:
    """Return where a state differs in structure from the current one; empty if nowhere.

    An optimizer has a state for each parameter once it has taken a step: what is empty now may
    be filled. There is a lowest loss once there was a validation, and there are no curves in those
    of earlier versions.
    """
    names: list[Any]
    if isinstance(current, Tensor) and isinstance(state, Tensor):
        return "" if (current.shape, current.dtype) == (state.shape, state.dtype) else where
    if isinstance(current, Mapping) and isinstance(state, Mapping):
        if not current and where.endswith(".optimizer.state"):
            return ""
        if (state.keys() ^ current.keys()) - {LOWEST_LOSS, CHECKPOINT_KEY}:
            return where
        names = [name for name in current if name in state]
    elif isinstance(current, list | tuple) and isinstance(state, list | tuple):
        if len(state) != len(current):
            return where
        names = list(range(len(current)))
    elif isinstance(current, Tensor | Mapping | list | tuple) or isinstance(state, Tensor):
        return where
    else:
        return "" if _is_alike(state, current) else where
    differences = (_difference(state[name], current[name], f"{where}.{name}") for name in names)
    return next(filter(None, differences), "")


def _is_alike(value: Any, current: Any) -> bool:
    """Tell whether a value can replace another one; what is None may be set later."""
    for kind in (bool, int | float, str):
        if isinstance(current, kind):
            return isinstance(value, kind) and isinstance(value, bool) == isinstance(current, bool)
    return True
