"""Files that appear complete or not at all: a temporary name, then a rename."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.errors import UserError, disk_full_as_user_error, is_disk_full


def _temporary(path: Path) -> Path:
    # A random name, because machines that share the folder number their processes alike.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def atomic_file(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path whose file replaces ``path`` when the block ends without an error.

    Args:
        path: The file. Folders above it are made.
        sync: Flush the file to the disk before the rename, so that a power cut cannot leave an
            empty file.

    Raises:
        DiskFullError: When no space is left; the old file stays.
    """
    temporary = _temporary(path)
    with disk_full_as_user_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file and return its path; see :func:`atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a file in UTF-8 and return its path; see :func:`atomic_file`."""
    return write_bytes(path, text.encode())


def check_file(path: str | Path) -> None:
    """Check that a file can be written.

    Raises:
        UserError: When it is a folder, or its folder cannot be written.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} must be a file to write, but it is a folder")
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not _can_write(folder):
        raise UserError(f"the folder {folder} must exist and be writable, to write {path}")


def check_folder(path: Path) -> None:
    """Check that a folder can be made and written.

    Raises:
        UserError: With the path that prevents it.
    """
    absolute = path.absolute()
    existing = next(parent for parent in (absolute, *absolute.parents) if os.path.lexists(parent))
    if not existing.is_dir() or not _can_write(existing):
        raise UserError(f"{existing} must be a folder that can be written, to write {path}")


def _can_write(folder: Path) -> bool:
    """Tell whether files can be made in a folder; root may do so, except where nobody may."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return is_disk_full(error)  # which is said with what needs the space
