"""A published data set -> its images on this disk: fetched, checked, unpacked, counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.data.download.checksums import differences, read_sums, sha256_of, write_sums
from autotune.data.download.extraction import extract, remove
from autotune.data.download.http import Patience, transfer
from autotune.data.download.paths import VARIABLE, Place
from autotune.data.download.spec import Archive, Publication, addresses
from autotune.data.progress import Progress, silent
from autotune.data.source import Source
from autotune.errors import DatasetError, DiskFullError, is_disk_full

_OUTER = "outer"


@dataclass(frozen=True)
class Fetched:
    """A data set that comes in archives.

    Args:
        publication: What is known of it.
        read: Opens the unpacked data set: all images that are published, in all classes.
    """

    publication: Publication
    read: Callable[[Path, Progress], Source]

    @property
    def name(self) -> str:
        """Its name."""
        return self.publication.name

    @property
    def title(self) -> str:
        """Its full name."""
        return self.publication.title

    @property
    def about(self) -> str:
        """What it is, where it is described, and what its publisher allows."""
        return f"{self.title}, {self.publication.page}; terms: {self.publication.terms}"

    @property
    def place(self) -> Place:
        """Where it lies."""
        return Place.of(self.name)

    @property
    def ready(self) -> bool:
        """Whether it is here, whole."""
        return self.place.whole.is_dir()

    @property
    def size(self) -> int | None:
        """Bytes to fetch, where they are known."""
        sizes = [archive.size for archive in self.publication.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def fetch(self, progress: Progress = silent, patience: Patience | None = None) -> None:
        """Bring it here, if it is not; one process does it, others wait.

        Args:
            progress: Told of what is done, in bytes.
            patience: For how long an address is asked.

        Raises:
            DatasetError: When an archive cannot be had, or is not what is published.
            DiskFullError: When there is no room for it.
        """
        place = self.place
        if self.ready:
            return
        with can_write(place), locked(place, self.name, progress):
            if self.ready:
                return
            archives = self._expected()
            for archive in archives:
                self._bring(archive, progress, patience)
            remove(place.making)  # of a process that died
            try:
                self._unpack(archives, progress)
                self._count()
                write_sums(place.making, place.making / place.sums.name)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(place.making, place.whole)
            except BaseException:
                remove(place.making)
                raise

    def unpacked(self) -> Path:
        """Return the folder of the unpacked data set.

        Raises:
            DatasetError: When it is not here, or files of it are gone.
        """
        if not self.ready:
            raise not_here(self.name, self.size)
        check_there(self.name, self.place)
        return self.place.whole

    def verify(self, progress: Progress = silent) -> list[str]:
        """Compare what is here with its checksums.

        Args:
            progress: Told of what is done.

        Returns:
            What is wrong, a line each.

        Raises:
            DatasetError: When nothing of it is here.
        """
        place, wrong = self.place, []
        there = [one for one in self._expected() if place.archive(one.file).exists()]
        if not there and not self.ready:
            raise not_here(self.name, self.size)
        for archive in there:
            if problem := self._problem(archive, progress):
                wrong.append(f"{place.archive(archive.file)} {problem}")
        if self.ready:

            def told(done: int, total: int) -> None:
                progress("checking files", done, total)

            lines = differences(place.whole, place.sums, told)
            wrong += [f"{place.whole}/{line}" for line in lines]
        return wrong

    def _expected(self) -> list[Archive]:
        """Return the archives with the checksums that are to hold here."""
        archives = list(self.publication.archives)
        if not self.place.other_sums.exists():
            return archives
        sums = read_sums(self.place.other_sums)
        missing = [one.file for one in archives if one.file not in sums]
        if missing:
            raise DatasetError(
                f"{self.place.other_sums} must have a line for every archive, but has none for "
                f"{', '.join(missing)}; add it, or remove the file for the published checksums"
            )
        return [replace(one, sha256=sums[one.file], size=None) for one in archives]

    def _bring(self, archive: Archive, progress: Progress, patience: Patience | None) -> None:
        path = self.place.archive(archive.file)
        if not path.exists():
            urls = addresses(self.name, archive)
            transfer(archive, urls, self.place, progress, patience)
        elif problem := self._problem(archive, progress):
            raise DatasetError(
                f"{path} {problem}; remove it, and it is fetched, or get "
                f"{archive.urls[0] if archive.urls else 'it'} by hand and put it there"
            )

    def _problem(self, archive: Archive, progress: Progress) -> str:
        """Say what is wrong with an archive that is there, or nothing."""
        path = self.place.archive(archive.file)
        size = path.stat().st_size
        if archive.size is not None and size != archive.size:
            return f"has {size} bytes, but the published file has {archive.size}"
        if archive.sha256 is not None:
            step = f"checking {archive.file}"
            found = sha256_of(path, lambda done: progress(step, done, size))
            if found != archive.sha256:
                return f"is not the published file (SHA-256 {found}, published {archive.sha256})"
        return ""

    def _unpack(self, archives: list[Archive], progress: Progress) -> None:
        making = self.place.making
        for archive in archives:

            def told(done: int, total: int, file: str = archive.file) -> None:
                progress(f"unpacking {file}", done, total)

            path, target = self.place.archive(archive.file), making / archive.folder
            if archive.inner is None:
                extract(path, target, told)
                continue
            extract(path, making / _OUTER)
            extract(making / _OUTER / archive.inner, target, told)
            remove(making / _OUTER)
        for lock in making.glob(".*.lock"):
            lock.unlink()

    def _count(self) -> None:
        """Compare what was unpacked with what is published.

        Raises:
            DatasetError: When it is not laid out as published, or something is missing.
        """
        source, expected = self.read(self.place.making, silent), self.publication
        found = (len(source.samples), len(source.classes))
        if not self.place.other_sums.exists() and found != (expected.images, expected.classes):
            raise DatasetError(
                f"{expected.title} has {expected.images} images of {expected.classes} classes, "
                f"but the archives in {self.place.root} have {found[0]} of {found[1]}; remove "
                "them, and they are fetched again"
            )


def not_here(name: str, size: int | None) -> DatasetError:
    """Say that a data set has to be fetched first, and how.

    Args:
        name: Its name.
        size: Bytes to fetch, where they are known.
    """
    much = "" if size is None else f" ({size / 1e6:.0f} MB)"
    return DatasetError(
        f"the dataset {name!r} is not fetched yet; 'autotune data fetch {name}' gets it{much} "
        f"into {Place.of(name).root}, and so does 'autotune run'"
    )


def check_there(name: str, place: Place) -> None:
    """Look whether all files of an unpacked data set are still there.

    Raises:
        DatasetError: When some are gone.
    """
    inside = len(os.path.join(place.whole, ""))
    there = {
        os.path.join(folder, file)[inside:]
        for folder, _, files in os.walk(place.whole)
        for file in files
    }
    gone = [file for file in read_sums(place.sums) if file not in there]
    if gone:
        raise DatasetError(
            f"{len(gone)} files of {name!r} are gone from {place.whole}, such as {gone[0]}; "
            f"remove the folder, and 'autotune data fetch {name}' makes it again"
        )


@contextmanager
def can_write(place: Place) -> Iterator[None]:
    """Make the folder of a data set, and turn what the system refuses into a message.

    Raises:
        DatasetError: When the folder cannot be written.
        DiskFullError: When there is no space left.
    """
    try:
        place.root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {place.root}; free some space, or name a folder on "
                f"another disk with {VARIABLE}"
            ) from error
        raise DatasetError(
            f"{place.root} must be a folder that can be written ({error.strerror}); name another "
            f"one with {VARIABLE}"
        ) from error


@contextmanager
def locked(place: Place, name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of a data set, and say so when another process holds it."""
    lock = FileLock(place.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for the process that fetches {name}", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
