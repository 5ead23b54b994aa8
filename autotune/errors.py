"""What can go wrong, as one tree.

::

    AutotuneError                 anything autotune raises on purpose (exit code 1)
    ├── UserError                 the user can put it right (exit code 2, nothing written)
    │   ├── ConfigError           a study file or an override: every mistake at once
    │   ├── DatasetError          the images: not found, too few, unreadable
    │   ├── BackboneError         unknown backbone, or weights that do not belong to it
    │   ├── StorageError          the database: unreachable, not writable, wrong password
    │   │   ├── SchemaError       its tables are those of another Optuna
    │   │   └── LockedError       another process holds the lock of a study, and holds it long
    │   ├── StudyError            no such study, or one with another definition
    │   ├── FormatError           stored by another version of autotune, and not to be read here
    │   ├── ModelError            a folder is no model that this version can use
    │   ├── DiskFullError         no space left where autotune has to write
    │   │   └── InsufficientSpaceError   known before anything was written
    │   └── NoDeviceError         a GPU that cannot be used; a DeviceError as well
    ├── TrialError                one trial cannot be finished, the study goes on
    │   ├── DivergedError         its loss or its logits are no numbers any more
    │   └── PlanError             its plan does not fit the backbone
    ├── ExportError               a model cannot be written in another format
    ├── SplitError                a network cannot be cut into prefix and tail; it trains whole
    ├── TrialInterruptedError     a stop was requested; the trial is queued again
    ├── DeviceBusyError           other processes use the GPU memory; the trial is queued again
    ├── CacheError                a file of the cache was removed; the trial is queued again
    └── WorkerError               the workers of a study cannot go on
        └── DeviceError           a process cannot use its GPU any more, another one can (75)

Every message states the rule, the value that broke it, and the way out.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autotune.text import one_line

_PASSING = (
    errno.EIO,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
)


#: Limits the mistakes of a study file that a message lists.
MAX_PROBLEMS = 50


class AutotuneError(Exception):
    """Base class of everything autotune raises on purpose."""

    exit_code = 1


class UserError(AutotuneError):
    """Something the user can put right; shown as one message, without a traceback."""

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
        source: Where the values came from, e.g. the path of the study file.
        problems: The mistakes, in the order of the file.
        count: How many there are, where ``problems`` are not all of them.
    """

    def __init__(self, source: str, problems: Iterable[Problem], count: int = 0) -> None:
        self.source = source
        self.problems = tuple(problems)
        self.count = max(count, len(self.problems))
        shown = self.problems[:MAX_PROBLEMS]
        mistakes = f"{self.count:,} mistake{'s' if self.count != 1 else ''}"
        lines = [
            f"{one_line(hide_passwords(source))}: {mistakes}",
            *(f"  {problem}" for problem in shown),
        ]
        if self.count > len(shown):
            lines.append(f"  and {self.count - len(shown):,} more")
        super().__init__("\n".join(lines))


class DatasetError(UserError):
    """The images cannot be used: not found, too few, unreadable."""


class BackboneError(UserError):
    """The backbone is unknown, or its weights cannot be had or do not belong to it."""


class StorageError(UserError):
    """The storage of the study cannot be reached, read or written."""


class SchemaError(StorageError):
    """The tables of the storage are those of another Optuna than the installed one."""


class LockedError(StorageError):
    """Another process has held the lock of a study for longer than was to be waited."""

    @staticmethod
    def for_study(study: str, timeout_s: float | None) -> LockedError:
        """Name the study that is locked, and the seconds of waiting for it."""
        return LockedError(
            f"storage: another process has held the lock of the study {study!r} for more than "
            f"{timeout_s:g} s, and no trial can start; is a worker stopped or hung?"
        )


class StudyError(UserError):
    """There is no such study, or it has another definition."""


class FormatError(UserError):
    """What another version of autotune has stored, and this one cannot read."""


class ModelError(UserError):
    """A folder holds no model, a damaged one, or one of a newer version."""


class DiskFullError(UserError):
    """No space is left where autotune has to write."""


class InsufficientSpaceError(DiskFullError):
    """What is to be kept on disk is larger than the room that there is or may be taken."""


class TrialError(AutotuneError):
    """One trial cannot be finished; it is recorded as failed and the study goes on."""


class DivergedError(TrialError):
    """The loss or the logits of a trial are not finite."""


class PlanError(TrialError):
    """A trial plan asks for something its backbone does not have."""


class ExportError(AutotuneError):
    """A model cannot be written in another format, or computes something else there."""


class SplitError(AutotuneError):
    """A network cannot be cut into a prefix and a tail; it trains whole."""


class TrialInterruptedError(AutotuneError):
    """A stop was asked for while a trial was running."""


class DeviceBusyError(AutotuneError):
    """Other processes hold the memory that a trial needs on its device."""


class CacheError(AutotuneError):
    """A file of the cache was removed while it was needed; it can be made again."""


class WorkerError(AutotuneError):
    """The workers of a study cannot go on."""


class DeviceError(WorkerError):
    """A process cannot use its GPU any more; a new one in its place can.

    The exit code is that of ``sysexits.h`` for what may be tried again (``EX_TEMPFAIL``).
    """

    exit_code = 75


class NoDeviceError(UserError, DeviceError):
    """The GPU that a process was told to use, or that its machine lists, cannot be used."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the valid names that look most like a wrong one.

    Args:
        name: The name that is not valid.
        names: The valid names.

    Returns:
        A sentence such as ``did you mean 'digits'?``, or an empty string when nothing is near.
    """
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, one, name).ratio() for one in near]
    near = [one for one, like in zip(near, likeness, strict=True) if like > likeness[0] - 0.15]
    return f"did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def format_yaml(value: object) -> str:
    """Show a value of a study file as the file has it: ``true``, ``null``, ``'text'``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 19 digits"  # Python writes none of thousands of digits
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):  # of such a number, or a value in itself, inside
        return f"a {type(value).__name__}"


def shorten(text: str, most: int = 300) -> str:
    """Return a text that is quoted in a message, without the rest of a long one.

    Args:
        text: The text.
        most: Characters that it may have.
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def hide_passwords(text: str) -> str:
    """Return a text in which the passwords of URLs are ``***``.

    Args:
        text: Anything that may quote a storage URL, well-formed or not.
    """
    text = re.sub(r"(:/+[^\s:/]*:)\S*@", r"\1***@", text)
    return re.sub(r"(password=)[^&\s'\"]+", r"\1***", text)


def join_sentences(*sentences: str) -> str:
    """Join the parts of a message, leaving out the empty ones."""
    return "; ".join(sentence for sentence in sentences if sentence)


def is_disk_full(error: OSError) -> bool:
    """Tell whether the system has no space or no quota left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_transient_os_error(error: OSError) -> bool:
    """Tell whether the system may do in a moment what it has just refused.

    True for a failing disk and an unreachable network file system; false for a missing file and
    for one that must not be read.
    """
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _PASSING


@contextmanager
def disk_full_as_user_error(where: object) -> Iterator[None]:
    """Turn ``ENOSPC`` and ``EDQUOT`` into a message that names the folder.

    Args:
        where: The file or folder that is being written.

    Raises:
        DiskFullError: When the system says that no space or no quota is left.
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
