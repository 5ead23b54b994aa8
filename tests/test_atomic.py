"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune import atomic
from autotune.atomic import atomic_file, write_bytes, write_text
from autotune.errors import DiskFullError


def test_a_file_replaces_the_old_one_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    assert write_bytes(path, b"old") == path
    assert write_text(path, "n\u00e9w") == path
    with atomic_file(path, sync=True) as temporary:
        temporary.write_text("newest")
        assert path.read_text("utf-8") == "n\u00e9w"
    assert path.read_text() == "newest"
    assert os.listdir(path.parent) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it, too


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "full")
    (tmp_path / f".file.{os.getpid()}-full").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no space left"):
        write_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []
