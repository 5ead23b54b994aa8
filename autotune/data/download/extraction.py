"""Extraction of archives of unknown origin into a folder that is complete or absent.

All members are checked before the first is written.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock

from autotune.data.download.members import (
    CHUNK_BYTES,
    Member,
    RefusedError,
    TooLargeError,
    UnsupportedError,
    max_bytes,
    open_members,
    ratio_problem,
)
from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError, is_disk_full
from autotune.file_kinds import DAMAGE, archive_format, file_kind
from autotune.text import first_line, format_bytes

#: Names of archives that can be unpacked; whether a file is one is told by its content.
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
#: Limits the members: each is a value in memory, folders too, and most become files.
MAX_MEMBERS = 2_000_000
#: Disk space of a file beside its content, on average.
_BLOCK_BYTES = 4096


def is_archive(path: Path) -> bool:
    """Tell whether a file is an archive that can be unpacked: by its first bytes, not its name.

    A damaged file that is nothing else, and whose name ends with ``.zip``, is one, so that a
    message can call it damaged.
    """
    with suppress(OSError):
        if path.is_file():
            return bool(archive_format(path)) or (
                path.name.lower().endswith(SUFFIXES)
                and ((kind := file_kind(path)).use == "broken" or not kind.name)
            )
    return False


def extract(
    archive: Path, into: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Unpack an archive into a new folder, which appears when it is complete.

    Args:
        archive: A zip or tar file; a tar file may be compressed with gzip, bzip2 or xz.
        into: The folder to make; nothing is done if it exists. Until it is complete it is called
            ``.<name>.part``. One process makes it while others wait.
        on_progress: Called with the bytes written and their total.

    Raises:
        DatasetError: When the archive is damaged; when a member would be written outside of the
            folder, over another one, or as anything but a file or a folder; when the archive
            exceeds :data:`MAX_RATIO` or :data:`MAX_MEMBERS`.
        InsufficientSpaceError: When the disk has less space than the archive needs.
        DiskFullError: When the disk fills up meanwhile.
    """
    if into.is_dir():
        return
    staging = into.with_name(f".{into.name}.part")
    with _user_errors(archive, into):
        into.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(into.with_name(f".{into.name}.lock")):
            if into.is_dir():
                return
            remove(staging)  # of a process that was killed
            try:
                with open_members(archive) as members:
                    _write(members, archive, staging, on_progress)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(staging, into)
            except BaseException:
                remove(staging)
                raise


def remove(folder: Path) -> None:
    """Remove a folder, if it exists; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def _write(
    members: Iterator[Member],
    archive: Path,
    staging: Path,
    on_progress: Callable[[int, int], None],
) -> None:
    files, total = _checked(members, max_bytes(archive))
    needed = total + _BLOCK_BYTES * len(files)
    free = shutil.disk_usage(staging.parent).free
    if needed > free:
        raise InsufficientSpaceError(
            f"{archive} takes {format_bytes(needed)} when it is unpacked, but the disk of "
            f"{staging.parent} has {format_bytes(free)} left; free some space"
        )
    staging.mkdir()
    done = 0
    for file in files:
        target = staging / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = file.open() if file.open else None
        if source is None:
            raise tarfile.ReadError(f"{file.name} has no content")
        with source, open(target, "xb") as stream:
            written = 0
            while chunk := source.read(CHUNK_BYTES):  # a zip file's checksum is at its end
                stream.write(chunk)
                written += len(chunk)
                on_progress(done + written, total)
        if written != file.size:
            raise EOFError(f"{file.name} ends too early")
        done += written


def _checked(members: Iterator[Member], limit: int) -> tuple[Sequence[Member], int]:
    """Return the files among members, and their bytes, when all may be written."""
    files: list[Member] = []
    names: dict[PurePosixPath, str] = {}
    total = 0
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise TooLargeError(f"it has more than {MAX_MEMBERS:,} files and folders")
        total += member.size
        if total > limit:
            raise TooLargeError(ratio_problem(limit))
        if member.open is None:
            continue
        if not member.path.parts or member.path in names:
            raise RefusedError(member.name, "would be written over another one")
        names[member.path] = member.name
        files.append(member)
    for file in files:
        for parent in file.path.parents:
            if parent in names:
                raise RefusedError(names[parent], f"is a file and the folder of {file.name!r}")
    return files, total


@contextmanager
def _user_errors(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise DatasetError(
            f"an archive has files and folders alone, each inside of it and once, but of "
            f"{archive} {error}; nothing was unpacked. If you trust it, unpack it yourself and "
            "name the folder"
        ) from error
    except TooLargeError as error:
        raise DatasetError(
            f"{archive} is not unpacked: {error}. If you trust it, unpack it yourself and name "
            "the folder"
        ) from error
    except UnsupportedError as error:
        raise DatasetError(f"{archive} {error}") from error
    except (OSError, *DAMAGE) as error:
        if not isinstance(error, OSError) or isinstance(error, DAMAGE) or error.errno is None:
            reason = first_line(error) if str(error) else type(error).__name__
            raise DatasetError(
                f"{archive} must be a whole zip or tar file, but it is damaged ({reason}); copy "
                "or download it again"
            ) from error
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {into.parent} while {archive} was unpacked; free "
                "some space, what was written has been removed"
            ) from error
        raise DatasetError(
            f"{archive} could not be unpacked into {into}: {error.strerror}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error
