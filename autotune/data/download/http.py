"""One file from the first address that has it, going on where a transfer was cut."""

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

from autotune.data.download.checksums import sha256_of
from autotune.data.download.paths import DATA_VARIABLE, DatasetPaths
from autotune.data.download.spec import ArchiveSpec
from autotune.data.progress import Progress
from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError, is_disk_full

#: Answers after which the same address may have it in a moment.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Between two tries.
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class RetryPolicy:
    """For how long an address is asked.

    Args:
        tries: Tries that bring nothing new, after which the next address is asked.
        pause_s: Before the next one; it doubles with each that brought nothing.
        timeout_s: For an answer, and between two pieces of it.
    """

    tries: int = 4
    pause_s: float = 1.0
    timeout_s: float = 60.0


class _Interrupted(Exception):
    """A transfer ended early; the address may go on with it."""


class _SourceFailed(Exception):
    """An address does not have the file."""


def download_archive(
    archive: ArchiveSpec,
    urls: Sequence[str],
    place: DatasetPaths,
    progress: Progress,
    patience: RetryPolicy | None = None,
) -> None:
    """Get a file, from the first address that has it.

    What has come stays when the transfer is cut or the process killed, and the next call goes on
    with it, from another address too: the checksum decides in the end. A file without checksum is
    continued only from the same address and unchanged.

    Args:
        archive: The file. Where its checksum is known, another content is refused.
        urls: Where to ask, in this order.
        place: Where it goes.
        progress: Told of the bytes that are there.
        patience: For how long an address is asked.

    Raises:
        DatasetError: When no address has it: with the reason of each, and how to go on by hand.
        InsufficientSpaceError: When the disk has less space than the file needs.
        DiskFullError: When the disk fills up meanwhile; what has come stays.
    """
    reasons = []
    with httpx2.Client(
        follow_redirects=True,
        timeout=httpx2.Timeout((patience or RetryPolicy()).timeout_s, connect=15.0),
        headers={"User-Agent": "autotune", "Accept-Encoding": "identity"},
    ) as client:
        for url in urls:
            one = _Transfer(client, archive, url, place, progress, patience or RetryPolicy())
            try:
                one.run()
            except _SourceFailed as error:
                reasons.append(f"{_host(url)}: {error}")
                progress(f"{archive.file}: {reasons[-1]}", 0, None)
            except OSError as error:
                raise _cannot_write(error, place) from error
            else:
                return
    raise DatasetError(
        f"{archive.file} cannot be had: {'; '.join(reasons) or 'it has no address'}; what has "
        f"come is kept, so try again later, or get {archive.urls[0] if archive.urls else 'it'} "
        f"by hand and put it into {place.root}"
    )


@dataclass
class _Transfer:
    """A file from one address."""

    client: httpx2.Client
    archive: ArchiveSpec
    url: str
    paths: DatasetPaths
    progress: Progress
    patience: RetryPolicy

    @property
    def part(self) -> Path:
        return self.paths.partial(self.archive.file)

    def run(self) -> None:
        if self.archive.sha256 is None and self._origin().get("url") != self.url:
            self._start_over()  # nothing would tell what was put together of two files
        begun_before = self._have() > 0
        self._get_all()
        if self._is_right():
            self._finish()
            return
        self._start_over()
        if begun_before:  # what was there was of another file, or damaged
            self._get_all()
            if self._is_right():
                self._finish()
                return
            self._start_over()
        raise _SourceFailed("what it sends has not the published checksum")

    def _get_all(self) -> None:
        fruitless = 0
        while True:
            before = self._have()
            try:
                self._get_more()
                return
            except (_Interrupted, httpx2.TransportError) as error:
                fruitless = 0 if self._have() > before else fruitless + 1
                most = min(2, self.patience.tries) if _is_nowhere(error) else self.patience.tries
                if fruitless >= most:
                    raise _SourceFailed(_reason(error)) from error
                self.progress(f"{self.archive.file}: {_reason(error)}, trying again", 0, None)
                time.sleep(min(self.patience.pause_s * 2**fruitless, _LONGEST_PAUSE_S))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise _SourceFailed(_reason(error)) from error

    def _get_more(self) -> None:
        """Ask once, for what is missing, and take what comes."""
        have, size = self._have(), self.archive.size
        if size is not None and have > size:
            have = self._start_over()
        if size is not None and have == size:
            return
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            origin = self._origin()
            if origin.get("url") == self.url and origin.get("validator"):
                headers["If-Range"] = origin["validator"]
        with self.client.stream("GET", self.url, headers=headers) as answer:
            if answer.status_code == 416:
                if _total(answer) == have:
                    return
                self._start_over()
                raise _Interrupted("it is shorter than what has come")
            if answer.status_code in _PASSING:
                raise _Interrupted(_status(answer))
            if answer.status_code not in (200, 206):
                raise _SourceFailed(_status(answer))
            start = have if answer.status_code == 206 else 0
            if answer.status_code == 206 and _start(answer) != have:
                self._start_over()
                raise _Interrupted("it sends another part than was asked for")
            self._take(answer, start)

    def _take(self, answer: httpx2.Response, start: int) -> None:
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        size = self.archive.size
        if size is not None and total is not None and total != size:
            raise _SourceFailed(f"its file has {total} bytes and the published one {size}")
        if total is not None:
            self._check_room(total - start)
        self._note_origin(answer)
        done = start
        with open(self.part, "r+b" if start else "wb") as stream:
            stream.seek(start)
            self.progress(f"fetching {self.archive.file}", done, size or total)
            for chunk in answer.iter_raw():
                stream.write(chunk)
                done += len(chunk)
                if size is not None and done > size:
                    raise _SourceFailed(f"it sends more than the {size} bytes that are published")
                self.progress(f"fetching {self.archive.file}", done, size or total)
        if total is not None and done != total:
            raise _Interrupted("the transfer was cut")

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self.paths.root).free
        if missing > free:
            raise InsufficientSpaceError(
                f"{self.archive.file} needs {missing / 1e9:.1f} GB more, but the disk of "
                f"{self.paths.root} has {free / 1e9:.1f} GB left; free some space, or name a "
                f"folder on another disk with {DATA_VARIABLE}"
            )

    def _is_right(self) -> bool:
        size, expected = self._have(), self.archive.sha256
        if self.archive.size is not None and size != self.archive.size:
            return False
        if expected is None:
            return True
        step = f"checking {self.archive.file}"
        return sha256_of(self.part, lambda done: self.progress(step, done, size)) == expected

    def _finish(self) -> None:
        os.replace(self.part, self.paths.archive(self.archive.file))
        self.paths.origin(self.archive.file).unlink(missing_ok=True)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _start_over(self) -> int:
        self.part.unlink(missing_ok=True)
        self.paths.origin(self.archive.file).unlink(missing_ok=True)
        return 0

    def _origin(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self.paths.origin(self.archive.file).read_text("utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _note_origin(self, answer: httpx2.Response) -> None:
        """Remember what tells a server whether its file is still the same (RFC 9110, 13.1.5)."""
        tag = answer.headers.get("ETag", "")
        validator = tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")
        text = json.dumps({"url": self.url, "validator": validator})
        self.paths.origin(self.archive.file).write_text(text, "utf-8")


def _cannot_write(error: OSError, place: DatasetPaths) -> Exception:
    if is_disk_full(error):
        return DiskFullError(
            f"no space left on the disk of {place.root}; what has come is kept: free some space "
            f"and go on, or name a folder on another disk with {DATA_VARIABLE}"
        )
    return DatasetError(
        f"{place.root} must be a folder that can be written ({error.strerror}); name another one "
        f"with {DATA_VARIABLE}"
    )


def _is_nowhere(error: Exception) -> bool:
    """Tell whether nobody answers at all, which seldom changes while one waits."""
    return isinstance(error, httpx2.ConnectError)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url


def _status(answer: httpx2.Response) -> str:
    return f"HTTP {answer.status_code} {answer.reason_phrase}".strip()


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer in time"
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _start(answer: httpx2.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total(answer: httpx2.Response) -> int | None:
    found = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else None
