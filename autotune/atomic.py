"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from autotune.errors import disk_full_as_user_error


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name and rename it.

    Args:
        path: The file; folders above it are made, and one that is there is replaced.
        content: What it is to hold.

    Returns:
        The path.

    Raises:
        DiskFullError: When the content does not fit on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with disk_full_as_user_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path
