"""The exceptions of autotune, as one tree, and helpers for their messages.

::

    AutotuneError                 anything autotune raises on purpose (exit code 1)
    ├── UserError                 the user can correct it (exit code 2, nothing written)
    │   ├── ConfigError           a study file or an override: every mistake at once
    │   ├── DatasetError          the images: not found, too few, unreadable
    │   ├── BackboneError         unknown backbone, or weights of another model
    │   ├── StorageError          the database: unreachable, not writable, wrong password
    │   │   ├── SchemaError       its tables belong to another version of Optuna
    │   │   ├── LockedError       another process holds the lock of a study for too long
    │   │   └── DatabaseLostError its file was deleted, moved or replaced while it was in use
    │   ├── StudyError            no such study, or none that can be used so
    │   │   └── ChangedStudyError it was made with another definition
    │   ├── FormatError           stored by another version of autotune, unreadable here
    │   ├── ModelError            a folder is not a model that this version can use
    │   ├── PlaceError            a file or folder cannot be written, or is in the way
    │   ├── DiskFullError         no space left where autotune has to write
    │   │   └── InsufficientSpaceError   detected before anything was written
    │   └── NoDeviceError         a GPU that cannot be used; also a DeviceError
    ├── TrialError                one trial cannot be finished, the study continues
    │   ├── DivergedError         its loss or its logits are not finite
    │   └── PlanError             its plan does not fit the backbone
    ├── NoResultError             a study has ended, and no trial has a result
    ├── ExportError               a model cannot be written in another format
    ├── SplitError                a network cannot be cut into prefix and tail; all of it runs
    ├── TrialInterruptedError     a stop was requested; the trial is queued again
    ├── DeviceBusyError           other processes use the GPU memory; the trial is queued again
    ├── CacheError                a file of the cache was removed; the trial is queued again
    └── WorkerError               the workers of a study cannot continue
        └── DeviceError           a process can no longer use its GPU, a new one can (75)

Every message states the rule, the value that broke it, and the way out.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

from autotune.text import one_line, plural

#: Error numbers of a failing disk or an unreachable network file system.
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}
_TRANSIENT |= {errno.EBUSY, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN}
_TRANSIENT |= {errno.EHOSTUNREACH, errno.ENOTCONN}
#: Limits the mistakes of a study file that a message lists.
MAX_PROBLEMS = 50


class AutotuneError(Exception):
    """Base class of all errors that autotune raises on purpose."""

    exit_code = 1


class UserError(AutotuneError):
    """The user can correct something; shown as one message, without a traceback."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake of a study file.

    Args:
        key: Dotted key, e.g. ``search.sampler``.
        message: The rule, the value, what is allowed and the nearest valid name.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return one_line(hide_passwords(f"{shorten(self.key)}: {self.message}"))


class ConfigError(UserError):
    """Every mistake of a study file or of its overrides, reported together.

    Args:
        source: Origin of the values, e.g. the path of the study file.
        problems: The mistakes, in the order of the file.
        count: Number of mistakes, if ``problems`` are not all of them.
    """

    def __init__(self, source: str, problems: Iterable[Problem], count: int = 0) -> None:
        self.source = source
        self.problems = tuple(problems)
        self.count = max(count, len(self.problems))
        lines = [f"{one_line(hide_passwords(source))}: {plural(self.count, 'mistake')}"]
        lines += [f"  {problem}" for problem in self.problems[:MAX_PROBLEMS]]
        if self.count >= len(lines):
            lines.append(f"  and {self.count - len(lines) + 1:,} more")
        super().__init__("\n".join(lines))


class DatasetError(UserError):
    """The images cannot be used: not found, too few, unreadable."""


class BackboneError(UserError):
    """The backbone is unknown, or its weights are unavailable or of another model."""


class StorageError(UserError):
    """The storage of the study cannot be reached, read or written."""


class SchemaError(StorageError):
    """The tables of the storage belong to another version of Optuna than the installed one."""


class LockedError(StorageError):
    """Another process holds the lock of a study for longer than the timeout."""

    @staticmethod
    def for_study(study: str, timeout_s: float | None) -> LockedError:
        """Return the error with the name of the study and the seconds of waiting."""
        return LockedError(
            f"storage: another process has held the lock of the study {study!r} for more than "
            f"{timeout_s:g} s, and no trial can start; is a worker stopped or hung?"
        )


class DatabaseLostError(StorageError):
    """The file of the database was deleted, moved or replaced while it was in use."""


class StudyError(UserError):
    """There is no such study, or it has another definition."""


class ChangedStudyError(StudyError):
    """A study is continued with another definition.

    Args:
        message: The differences, and what to do.
        changes: Overrides, by key, with which another study goes on from this one; the key
            ``--name`` has its name.
    """

    def __init__(self, message: str, changes: Mapping[str, str]) -> None:
        super().__init__(message)
        self.changes = changes


class FormatError(UserError):
    """Another version of autotune has stored something that this one cannot read."""


class ModelError(UserError):
    """A folder holds no model, a damaged one, or one of a newer version."""


class DiskFullError(UserError):
    """No space is left where autotune has to write."""


class PlaceError(UserError):
    """A file or folder cannot be written, or something else has its name."""


class InsufficientSpaceError(DiskFullError):
    """A file would be larger than the free space or the limit of the cache."""


class TrialError(AutotuneError):
    """One trial cannot be finished; it is recorded as failed and the study goes on."""


class DivergedError(TrialError):
    """The loss or the logits of a trial are not finite."""


class PlanError(TrialError):
    """A trial plan does not fit its backbone."""


class NoResultError(AutotuneError):
    """A study has ended, and no trial has a result."""


class ExportError(AutotuneError):
    """A model cannot be written in another format, or computes other values there."""


class SplitError(AutotuneError):
    """A network cannot be cut into a prefix and a tail; every trial runs all of it."""


class TrialInterruptedError(AutotuneError):
    """A stop was requested while a trial was running."""


class DeviceBusyError(AutotuneError):
    """Other processes use the memory that a trial needs on its device."""


class CacheError(AutotuneError):
    """A file of the cache was removed while it was needed; it can be made again."""


class WorkerError(AutotuneError):
    """The workers of a study cannot continue."""


class DeviceError(WorkerError):
    """A process can no longer use its GPU; a new process can.

    The exit code is ``EX_TEMPFAIL`` of ``sysexits.h``: try again.
    """

    exit_code = 75


class NoDeviceError(UserError, DeviceError):
    """The GPU that was asked for, or that the machine lists, cannot be used."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the valid names that are most similar to a wrong one.

    Example:
        >>> did_you_mean("digts", ["digits", "dogs"])
        "did you mean 'digits'?"
        >>> did_you_mean("x", ["digits", "dogs"])
        ''
    """
    near = nearest_names(name, names)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that are most similar to a wrong one, the nearest first."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    ratios = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    return [
        match for match, ratio in zip(matches, ratios, strict=True) if ratio > ratios[0] - 0.15
    ]


def format_yaml(value: object) -> str:
    """Write a value as a study file has it: ``true``, ``null``, ``'text'``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 19 digits"  # Python writes none of thousands of digits
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):  # it contains such a number, or itself
        return f"a {type(value).__name__}"


def shorten(text: str, limit: int = 300) -> str:
    """Cut a long text that a message quotes."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs in a text, well-formed or not, by ``***``."""
    text = re.sub(r"(:/+[^\s:/]*:)\S*@", r"\1***@", text)
    return re.sub(r"(password=)[^&\s'\"]+", r"\1***", text)


def join_sentences(*sentences: str) -> str:
    """Join the parts of a message that are not empty."""
    return "; ".join(sentence for sentence in sentences if sentence)


def is_disk_full(error: OSError) -> bool:
    """Tell whether the system has no space or no quota left, or allows no larger file."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


#: Errors for a place that may not be written, or that has a file for a folder or the reverse.
UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
)
#: The number of the system's error in the messages of libraries, such as ``(os error 28)``.
_OS_ERROR = re.compile(r"\[Errno (\d+)\]|os error (\d+)\b")
#: What torch says where a file could not be written to its end.
_CUT_OFF = ("PytorchStreamWriter failed", "inline_container.cc")


def place_error(error: BaseException, where: object = None) -> UserError | None:
    """Return the error of the user behind another one; ``None`` if it is not about a place.

    Args:
        error: What was raised: an OSError, or what a library made of one.
        where: The file or folder that was to be written, if it is known; then a missing folder
            counts too.
    """
    text = str(error)
    if not isinstance(error, OSError) or error.errno is None:
        numbers = _OS_ERROR.search(text)
        number = int(numbers[1] or numbers[2]) if numbers else 0
        if not numbers and where is not None and any(part in text for part in _CUT_OFF):
            number = errno.ENOSPC
        error = OSError(number, os.strerror(number))
    if is_disk_full(error):
        return DiskFullError(
            f"no space left on the disk of {where or error.filename or 'what was to be written'} "
            f"({error.strerror}); free some space, or name another place"
        )
    if error.errno in UNUSABLE or (where is not None and error.errno == errno.ENOENT):
        path = error.filename or where
        named = f"{path} cannot be used" if path else "a file or folder cannot be used"
        to_write = f", to write {where}" if where and str(where) != str(path) else ""
        return PlaceError(
            f"{named}{to_write}: {error.strerror}; remove what is in the way, make it writable, "
            "or name another place"
        )
    return None


@contextmanager
def place_as_user_error(where: object) -> Iterator[None]:
    """Turn the errors of writing a file or a folder into one message.

    Raises:
        DiskFullError: When no space or no quota is left.
        PlaceError: When it cannot be written, or something else has its name.
    """
    try:
        yield
    except AutotuneError:
        raise
    except Exception as error:
        problem = place_error(error, where)
        if problem is None:
            raise
        raise problem from error


def is_transient_os_error(error: OSError) -> bool:
    """Tell whether another try may succeed.

    True for a failing disk and an unreachable network file system; false for a missing file and
    for one without read permission.
    """
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _TRANSIENT


@contextmanager
def disk_full_as_user_error(where: object) -> Iterator[None]:
    """Turn ``ENOSPC`` and ``EDQUOT`` into a message that names the file or folder.

    Raises:
        DiskFullError: When no space or no quota is left.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {where}; free some space, or move the files of "
                "the study with 'storage=' and 'files='"
            ) from error
        raise
