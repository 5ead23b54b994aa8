"""A data set that is published in archives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from autotune.data.download.checksums import read_sums, sha256_of
from autotune.data.download.downloadable import Downloadable
from autotune.data.download.extraction import extract, remove
from autotune.data.download.http import RetryPolicy, download_archive
from autotune.data.download.spec import ArchiveSpec, archive_urls
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Source
from autotune.errors import DatasetError

_OUTER = "outer"


@dataclass(frozen=True)
class ArchivedDataset(Downloadable):
    """A data set that is published in archives.

    Args:
        terms: What its publisher allows, in a sentence.
        archives: Its archives.
        images: Number of images.
        classes: Number of classes.
        read: Opens the unpacked data set: all published images, in all classes.
        retry: When an address is tried again.
    """

    terms: str
    archives: tuple[ArchiveSpec, ...]
    images: int = field(kw_only=True)
    classes: int = field(kw_only=True)
    read: Callable[[Path, ProgressCallback], Source] = field(kw_only=True)
    retry: RetryPolicy = field(default=RetryPolicy(), kw_only=True)

    @property
    def description(self) -> str:
        """What the data set is, where it is described, and what its publisher allows."""
        return f"{self.title}, {self.page}; terms: {self.terms}"

    @property
    def size(self) -> int | None:
        """Bytes to download; ``None`` where they are unknown."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def verify(self, progress: ProgressCallback = no_progress) -> list[str]:
        """Compare the archives and the unpacked files with their checksums.

        Returns:
            A line for each problem.

        Raises:
            DatasetError: When neither archives nor unpacked files are there.
        """
        present = [
            (path, archive)
            for archive in self._expected()
            if (path := self.paths.archive(archive.file)).exists()
        ]
        problems = [
            f"{path} {problem}"
            for path, archive in present
            if (problem := _archive_problem(path, archive, progress))
        ]
        if present and not self.is_downloaded:
            return problems
        return problems + super().verify(progress)

    def _fill(self, staging: Path, progress: ProgressCallback) -> None:
        archives = self._expected()
        for archive in archives:
            path = self.paths.archive(archive.file)
            if not path.exists():
                urls = archive_urls(self.name, archive)
                download_archive(archive, urls, self.paths, progress, self.retry)
            elif problem := _archive_problem(path, archive, progress):
                raise DatasetError(
                    f"{path} {problem}; remove it, and it is downloaded, or get "
                    f"{archive.urls[0] if archive.urls else 'it'} by hand and put it there"
                )
        for archive in archives:
            path, target = self.paths.archive(archive.file), staging / archive.folder
            if archive.inner is not None:
                extract(path, staging / _OUTER)
                path = staging / _OUTER / archive.inner
            extract(path, target, partial(progress, f"unpacking {archive.file}"))
            remove(staging / _OUTER)
        for lock in staging.glob(".*.lock"):
            lock.unlink()
        self._check_counts(self.read(staging, no_progress))

    def _expected(self) -> list[ArchiveSpec]:
        """Return the archives with the checksums that they must have on this disk."""
        replaced = self.paths.replaced_sums
        if not replaced.exists():
            return list(self.archives)
        sums = read_sums(replaced)
        missing = [archive.file for archive in self.archives if archive.file not in sums]
        if missing:
            raise DatasetError(
                f"{replaced} must have a line for every archive, but has none for "
                f"{', '.join(missing)}; add it, or remove the file for the published checksums"
            )
        return [replace(spec, sha256=sums[spec.file], size=None) for spec in self.archives]

    def _check_counts(self, source: Source) -> None:
        images, classes = len(source.samples), len(source.classes)
        replaced = self.paths.replaced_sums.exists()
        if not replaced and (images, classes) != (self.images, self.classes):
            raise DatasetError(
                f"{self.title} has {self.images} images of {self.classes} classes, but the "
                f"archives in {self.paths.root} have {images} of {classes}; remove them, and they "
                "are downloaded again"
            )


def _archive_problem(path: Path, archive: ArchiveSpec, progress: ProgressCallback) -> str:
    """Describe what is wrong with an archive on this disk; empty for nothing."""
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        return f"has {size} bytes, but the published file has {archive.size}"
    if archive.sha256 is not None:
        digest = sha256_of(path, lambda done: progress(f"checking {archive.file}", done, size))
        if digest != archive.sha256:
            return f"is not the published file (SHA-256 {digest}, published {archive.sha256})"
    return ""
