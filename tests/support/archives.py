"""Archives made in memory, well-formed and not."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping


def tar_bytes(files: Mapping[str, bytes], *others: tarfile.TarInfo, pad: bool = True) -> bytes:
    """Make a tar file.

    Args:
        files: Name -> content.
        others: Members that are no files, or have a name that is taken.
        pad: Fill the file up to a full record, as tar does; the two blocks of zeros at its end
            are there in any case.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    return file.getvalue() if pad else file.getvalue()[:end]


def zip_bytes(files: Mapping[str, bytes], mode: int = 0o100644) -> bytes:
    """Make a zip file whose members all have a Unix mode, which says what they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: ZipInfo cleans it
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return file.getvalue()
