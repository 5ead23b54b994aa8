"""The archives of a published data set, and their download over HTTP, with resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from autotune.data.download.checksums import digest_of
from autotune.data.download.paths import DATA_VARIABLE, DatasetPaths
from autotune.data.progress import ProgressCallback
from autotune.errors import DatasetError, InsufficientSpaceError, UserError
from autotune.text import first_line, format_bytes

#: The environment variable with addresses that are tried before the publisher's.
MIRROR_VARIABLE = "AUTOTUNE_MIRROR"
#: Status codes after which the same source may have the file in a moment.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
#: Limits the pause between two tries.
_MAX_PAUSE_S = 30.0


@dataclass(frozen=True)
class ArchiveSpec:
    """One archive as published, or another file, which is copied.

    Args:
        file: Its name.
        urls: Its addresses, the publisher's first.
        sha256: Its checksum, hexadecimal; ``None`` where no source states one.
        size: In bytes; ``None`` where no source states it.
        folder: Where its content goes in the unpacked data set.
        inner: The archive inside it that holds the images, if any.
        md5: Its checksum where no source states the SHA-256, hexadecimal.
    """

    file: str
    urls: tuple[str, ...]
    sha256: str | None
    size: int | None
    folder: str
    inner: str | None = None
    md5: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """The name of a digest and the published value of it, hexadecimal."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)

    def find_problem(self, path: Path, progress: ProgressCallback) -> str:
        """Return what is wrong with the archive on this disk; empty for nothing."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"has {size} bytes, but the published file has {self.size}"
        if self.checksum is not None:
            algorithm, published = self.checksum
            step = f"checking {self.file}"
            digest = digest_of(algorithm, path, lambda done: progress(step, done, size))
            if digest != published:
                name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
                return f"is not the published file ({name} {digest}, published {published})"
        return ""


def archive_urls(name: str, archive: ArchiveSpec) -> tuple[str, ...]:
    """Return the addresses of an archive of a data set, those of mirrors first.

    Raises:
        UserError: When a mirror is no HTTP address.
    """
    mirrors = os.environ.get(MIRROR_VARIABLE, "").split()
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise UserError(
                f"{MIRROR_VARIABLE} must be addresses that start with http:// or https://, "
                f"separated by spaces, but got {mirror!r}; a folder of archives is what "
                f"{DATA_VARIABLE} names"
            )
    mirrored = (f"{mirror.rstrip('/')}/{name}/{archive.file}" for mirror in mirrors)
    return (*mirrored, *archive.urls)


@dataclass(frozen=True)
class RetryPolicy:
    """When a source is tried again.

    Args:
        tries: Tries without new bytes, after which the next source is asked.
        pause_s: Pause before the second try; it doubles with each try without new bytes.
        timeout_s: Limits the wait for an answer, and between two pieces of it.
    """

    tries: int = 4
    pause_s: float = 1.0
    timeout_s: float = 60.0


class _Interrupted(Exception):
    """A transfer ended early; the same source may continue it."""


class _SourceFailed(Exception):
    """A source does not have the file."""


def download_archive(
    archive: ArchiveSpec,
    urls: Sequence[str],
    paths: DatasetPaths,
    progress: ProgressCallback,
    retry: RetryPolicy,
) -> None:
    """Download an archive from the first source that has it.

    An interrupted download is kept, and the next call resumes it, also from another source: the
    checksum decides in the end. Without a checksum, it is resumed only from the same source, and
    only while the file there is unchanged.

    Raises:
        DatasetError: When no source has it, with the reason of each.
        InsufficientSpaceError: When the disk has less space than the file needs.
        OSError: When the file cannot be written; what was downloaded stays.
    """
    reasons = []
    with httpx2.Client(
        follow_redirects=True,
        timeout=httpx2.Timeout(retry.timeout_s, connect=15.0),
        headers={"User-Agent": "autotune", "Accept-Encoding": "identity"},
    ) as client:
        for url in urls:
            try:
                return _Download(client, archive, url, paths, progress, retry).run()
            except _SourceFailed as error:
                reasons.append(f"{urlsplit(url).netloc.rpartition('@')[2] or url}: {error}")
                progress(f"{archive.file}: {reasons[-1]}", 0, None)
    raise DatasetError(
        f"{archive.file} cannot be downloaded: {'; '.join(reasons) or 'it has no address'}; what "
        "has been downloaded is kept, so try again later, or get "
        f"{archive.urls[0] if archive.urls else 'it'} by hand and put it into {paths.root}"
    )


@dataclass
class _Download:
    """The download of a file from one source."""

    client: httpx2.Client
    archive: ArchiveSpec
    url: str
    paths: DatasetPaths
    progress: ProgressCallback
    retry: RetryPolicy

    @property
    def partial(self) -> Path:
        return self.paths.partial(self.archive.file)

    @property
    def origin(self) -> Path:
        return self.paths.origin(self.archive.file)

    def run(self) -> None:
        if self.archive.checksum is None and self._read_origin().get("url") != self.url:
            self._restart()  # no checksum would reveal a mixture of two files
        is_resumed = self._size() > 0
        for _ in range(1 + is_resumed):  # what was there may be damaged, or of another file
            self._get_all()
            if not self.archive.find_problem(self.partial, self.progress):
                os.replace(self.partial, self.paths.archive(self.archive.file))
                self.origin.unlink(missing_ok=True)
                return
            self._restart()
        raise _SourceFailed("what it sends has not the published checksum")

    def _get_all(self) -> None:
        failures = 0
        while True:
            before = self._size()
            try:
                return self._get_more()
            except (_Interrupted, httpx2.TransportError) as error:
                failures = 0 if self._size() > before else failures + 1
                # a host without any answer seldom changes while one waits
                is_down = isinstance(error, httpx2.ConnectError)
                if failures >= (min(2, self.retry.tries) if is_down else self.retry.tries):
                    raise _SourceFailed(_reason(error)) from error
                self.progress(f"{self.archive.file}: {_reason(error)}, trying again", 0, None)
                time.sleep(min(self.retry.pause_s * 2**failures, _MAX_PAUSE_S))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise _SourceFailed(_reason(error)) from error

    def _get_more(self) -> None:
        """Request the missing bytes once."""
        start, size = self._size(), self.archive.size
        if size is not None and start > size:
            start = self._restart()
        if start == size:
            return
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            origin = self._read_origin()
            if origin.get("url") == self.url and origin.get("validator"):
                headers["If-Range"] = origin["validator"]
        with self.client.stream("GET", self.url, headers=headers) as response:
            status = f"HTTP {response.status_code} {response.reason_phrase}".strip()
            content_range = response.headers.get("Content-Range", "")
            if response.status_code == 416:
                if content_range == f"bytes */{start}":
                    return
                self._restart()
                raise _Interrupted("it is shorter than what was downloaded")
            if response.status_code in _TRANSIENT:
                raise _Interrupted(status)
            if response.status_code not in (200, 206):
                raise _SourceFailed(status)
            if response.status_code == 200:
                start = 0
            elif not re.match(rf"bytes {start}-", content_range):
                self._restart()
                raise _Interrupted("it sends another range than requested")
            self._receive(response, start)

    def _receive(self, response: httpx2.Response, start: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        size = self.archive.size
        if size is not None and total is not None and total != size:
            raise _SourceFailed(f"its file has {total} bytes and the published one {size}")
        free = shutil.disk_usage(self.paths.root).free
        if total is not None and total - start > free:
            raise InsufficientSpaceError(
                f"{self.archive.file} needs {format_bytes(total - start)} more, but the disk of "
                f"{self.paths.root} has {format_bytes(free)} left; free some space, or name a "
                f"folder on another disk with {DATA_VARIABLE}"
            )
        self._write_origin(response)
        done, step = start, f"fetching {self.archive.file}"
        with open(self.partial, "r+b" if start else "wb") as stream:
            stream.seek(start)
            self.progress(step, done, size or total)
            for chunk in response.iter_raw():
                stream.write(chunk)
                done += len(chunk)
                if size is not None and done > size:
                    raise _SourceFailed(f"it sends more than the {size} bytes that are published")
                self.progress(step, done, size or total)
        if total is not None and done != total:
            raise _Interrupted("the transfer was cut")

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _restart(self) -> int:
        self.partial.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)
        return 0

    def _read_origin(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            origin = json.loads(self.origin.read_text("utf-8"))
            if isinstance(origin, dict):
                return origin
        return {}

    def _write_origin(self, response: httpx2.Response) -> None:
        """Store the validator of the file on the server (RFC 9110, 13.1.5)."""
        tag = response.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
        self.origin.write_text(json.dumps({"url": self.url, "validator": validator}), "utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer in time"
    return first_line(error) if str(error) else type(error).__name__
