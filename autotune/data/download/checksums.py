"""Checksums of files, in the form of ``sha256sum``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autotune.errors import DatasetError

_CHUNK_BYTES = 1 << 20
_THREADS = 4


def sha256_of(path: Path, on_progress: Callable[[int], None] = lambda done: None) -> str:
    """Return the SHA-256 of a file, hexadecimal; report the bytes read so far."""
    return digest_of("sha256", path, on_progress)


def digest_of(
    algorithm: str, path: Path, on_progress: Callable[[int], None] = lambda done: None
) -> str:
    """Return a digest of a file, such as its ``md5``, hexadecimal; report the bytes read so far.

    An MD5 tells a damaged file from a whole one. It would not stop a forger.
    """
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    return digest.hexdigest()


def write_sums(folder: Path, sums: Path) -> None:
    """Write the checksums of all files of a folder into one more file of it."""
    paths = _files(folder, sums)
    with ThreadPoolExecutor(_THREADS) as pool, open(sums, "wb") as stream:
        for path, digest in zip(paths, pool.map(sha256_of, paths), strict=True):
            name = os.fsencode(path.relative_to(folder).as_posix())
            stream.write(digest.encode() + b"  " + name + b"\n")


def read_sums(sums: Path) -> dict[str, str]:
    """Return file name -> SHA-256.

    Raises:
        DatasetError: When a line has another form.
    """
    digests = {}
    for number, line in enumerate(sums.read_bytes().splitlines(), 1):
        digest, _, name = line.partition(b"  ")
        if not name or len(digest) != 64 or digest.strip(b"0123456789abcdefABCDEF"):
            raise DatasetError(
                f"every line of {sums} must be a SHA-256, two spaces and a file name, as "
                f"'sha256sum' writes it, but line {number} is not; write it anew"
            )
        digests[os.fsdecode(name)] = digest.decode().lower()
    return digests


def differences(
    folder: Path, sums: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Compare the files of a folder with their checksums; report the bytes and their total.

    Returns:
        A line for each missing, changed and unknown file.
    """
    expected = read_sums(sums)

    def compare(name: str) -> str:
        try:
            return "" if sha256_of(folder / name) == expected[name] else f"{name} has changed"
        except OSError as error:
            return f"{name}: {error.strerror}"

    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder, sums)
    }
    total, done, problems = sum(sizes.values()), 0, []
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, problem in zip(expected, pool.map(compare, expected), strict=True):
            done += sizes.get(name, 0)
            on_progress(done, total)
            if problem:
                problems.append(problem)
    return problems + [f"{name} does not belong to it" for name in sizes if name not in expected]


def _files(folder: Path, without: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if not path.is_dir() and path != without]
