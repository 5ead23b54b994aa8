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
from autotune.data.download.http import RetryPolicy, download_archive
from autotune.data.download.paths import DATA_VARIABLE, DatasetPaths
from autotune.data.download.spec import ArchiveSpec, DatasetSpec, archive_urls
from autotune.data.progress import Progress, no_progress
from autotune.data.source import Source
from autotune.errors import DatasetError, DiskFullError, is_disk_full

_OUTER = "outer"


@dataclass(frozen=True)
class ArchivedDataset:
    """A data set that comes in archives.

    Args:
        publication: What is known of it.
        read: Opens the unpacked data set: all images that are published, in all classes.
    """

    spec: DatasetSpec
    read: Callable[[Path, Progress], Source]

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def title(self) -> str:
        """Its full name."""
        return self.spec.title

    @property
    def description(self) -> str:
        """What it is, where it is described, and what its publisher allows."""
        return f"{self.title}, {self.spec.page}; terms: {self.spec.terms}"

    @property
    def paths(self) -> DatasetPaths:
        """Where it lies."""
        return DatasetPaths.from_name(self.name)

    @property
    def is_downloaded(self) -> bool:
        """Whether it is here, whole."""
        return self.paths.final.is_dir()

    @property
    def size(self) -> int | None:
        """Bytes to fetch, where they are known."""
        sizes = [archive.size for archive in self.spec.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def fetch(self, progress: Progress = no_progress, patience: RetryPolicy | None = None) -> None:
        """Bring it here, if it is not; one process does it, others wait.

        Args:
            progress: Told of what is done, in bytes.
            patience: For how long an address is asked.

        Raises:
            DatasetError: When an archive cannot be had, or is not what is published.
            DiskFullError: When there is no room for it.
        """
        place = self.paths
        if self.is_downloaded:
            return
        with can_write(place), locked(place, self.name, progress):
            if self.is_downloaded:
                return
            archives = self._expected()
            for archive in archives:
                self._bring(archive, progress, patience)
            remove(place.staging)  # of a process that died
            try:
                self._unpack(archives, progress)
                self._count()
                write_sums(place.staging, place.staging / place.sums.name)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(place.staging, place.final)
            except BaseException:
                remove(place.staging)
                raise

    def unpacked(self) -> Path:
        """Return the folder of the unpacked data set.

        Raises:
            DatasetError: When it is not here, or files of it are gone.
        """
        if not self.is_downloaded:
            raise not_downloaded_error(self.name, self.size)
        check_there(self.name, self.paths)
        return self.paths.final

    def verify(self, progress: Progress = no_progress) -> list[str]:
        """Compare what is here with its checksums.

        Args:
            progress: Told of what is done.

        Returns:
            What is wrong, a line each.

        Raises:
            DatasetError: When nothing of it is here.
        """
        place, wrong = self.paths, []
        there = [one for one in self._expected() if place.archive(one.file).exists()]
        if not there and not self.is_downloaded:
            raise not_downloaded_error(self.name, self.size)
        for archive in there:
            if problem := self._problem(archive, progress):
                wrong.append(f"{place.archive(archive.file)} {problem}")
        if self.is_downloaded:

            def told(done: int, total: int) -> None:
                progress("checking files", done, total)

            lines = differences(place.final, place.sums, told)
            wrong += [f"{place.final}/{line}" for line in lines]
        return wrong

    def _expected(self) -> list[ArchiveSpec]:
        """Return the archives with the checksums that are to hold here."""
        archives = list(self.spec.archives)
        if not self.paths.replaced_sums.exists():
            return archives
        sums = read_sums(self.paths.replaced_sums)
        missing = [one.file for one in archives if one.file not in sums]
        if missing:
            raise DatasetError(
                f"{self.paths.replaced_sums} must have a line for every archive, but has none for "
                f"{', '.join(missing)}; add it, or remove the file for the published checksums"
            )
        return [replace(one, sha256=sums[one.file], size=None) for one in archives]

    def _bring(
        self, archive: ArchiveSpec, progress: Progress, patience: RetryPolicy | None
    ) -> None:
        path = self.paths.archive(archive.file)
        if not path.exists():
            urls = archive_urls(self.name, archive)
            download_archive(archive, urls, self.paths, progress, patience)
        elif problem := self._problem(archive, progress):
            raise DatasetError(
                f"{path} {problem}; remove it, and it is fetched, or get "
                f"{archive.urls[0] if archive.urls else 'it'} by hand and put it there"
            )

    def _problem(self, archive: ArchiveSpec, progress: Progress) -> str:
        """Say what is wrong with an archive that is there, or nothing."""
        path = self.paths.archive(archive.file)
        size = path.stat().st_size
        if archive.size is not None and size != archive.size:
            return f"has {size} bytes, but the published file has {archive.size}"
        if archive.sha256 is not None:
            step = f"checking {archive.file}"
            found = sha256_of(path, lambda done: progress(step, done, size))
            if found != archive.sha256:
                return f"is not the published file (SHA-256 {found}, published {archive.sha256})"
        return ""

    def _unpack(self, archives: list[ArchiveSpec], progress: Progress) -> None:
        making = self.paths.staging
        for archive in archives:

            def told(done: int, total: int, file: str = archive.file) -> None:
                progress(f"unpacking {file}", done, total)

            path, target = self.paths.archive(archive.file), making / archive.folder
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
        source, expected = self.read(self.paths.staging, no_progress), self.spec
        found = (len(source.samples), len(source.classes))
        if not self.paths.replaced_sums.exists() and found != (expected.images, expected.classes):
            raise DatasetError(
                f"{expected.title} has {expected.images} images of {expected.classes} classes, "
                f"but the archives in {self.paths.root} have {found[0]} of {found[1]}; remove "
                "them, and they are fetched again"
            )


def not_downloaded_error(name: str, size: int | None) -> DatasetError:
    """Say that a data set has to be fetched first, and how.

    Args:
        name: Its name.
        size: Bytes to fetch, where they are known.
    """
    much = "" if size is None else f" ({size / 1e6:.0f} MB)"
    return DatasetError(
        f"the dataset {name!r} is not fetched yet; 'autotune data fetch {name}' gets it{much} "
        f"into {DatasetPaths.from_name(name).root}, and so does 'autotune run'"
    )


def check_there(name: str, place: DatasetPaths) -> None:
    """Look whether all files of an unpacked data set are still there.

    Raises:
        DatasetError: When some are gone.
    """
    inside = len(os.path.join(place.final, ""))
    there = {
        os.path.join(folder, file)[inside:]
        for folder, _, files in os.walk(place.final)
        for file in files
    }
    gone = [file for file in read_sums(place.sums) if file not in there]
    if gone:
        raise DatasetError(
            f"{len(gone)} files of {name!r} are gone from {place.final}, such as {gone[0]}; "
            f"remove the folder, and 'autotune data fetch {name}' makes it again"
        )


@contextmanager
def can_write(place: DatasetPaths) -> Iterator[None]:
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
                f"another disk with {DATA_VARIABLE}"
            ) from error
        raise DatasetError(
            f"{place.root} must be a folder that can be written ({error.strerror}); name another "
            f"one with {DATA_VARIABLE}"
        ) from error


@contextmanager
def locked(place: DatasetPaths, name: str, progress: Progress) -> Iterator[None]:
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
