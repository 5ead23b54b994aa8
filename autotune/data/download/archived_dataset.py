"""A data set that is published in archives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path

from autotune.data.download.checksums import read_sums
from autotune.data.download.downloadable import Downloadable
from autotune.data.download.extraction import SUFFIXES, extract, remove
from autotune.data.download.http import (
    ArchiveSpec,
    RetryPolicy,
    archive_urls,
    download_archive,
)
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Source
from autotune.errors import DatasetError

#: Where archives are unpacked before their content is moved to its place.
_UNPACKED, _OUTER, _CONTENT = ".archive", "outer", "content"


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
    _: KW_ONLY
    images: int
    classes: int
    read: Callable[[Path, ProgressCallback], Source]
    retry: RetryPolicy = field(default=RetryPolicy())

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
            if (problem := archive.find_problem(path, progress))
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
            elif problem := archive.find_problem(path, progress):
                raise DatasetError(
                    f"{path} {problem}; remove it, and it is downloaded, or get "
                    f"{archive.urls[0] if archive.urls else 'it'} by hand and put it there"
                )
        for archive in archives:
            self._unpack(archive, staging, progress)
        self._check_counts(self.read(staging, no_progress))

    def _unpack(self, archive: ArchiveSpec, staging: Path, progress: ProgressCallback) -> None:
        """Put the content of an archive into its folder; copy a file that is none."""
        path, target = self.paths.archive(archive.file), staging / archive.folder
        target.mkdir(parents=True, exist_ok=True)
        if not path.name.endswith(SUFFIXES):
            shutil.copyfile(path, target / path.name)
            return
        unpacked = staging / _UNPACKED
        if archive.inner is not None:
            extract(path, unpacked / _OUTER)
            path = unpacked / _OUTER / archive.inner
        extract(path, unpacked / _CONTENT, partial(progress, f"unpacking {archive.file}"))
        for entry in (unpacked / _CONTENT).iterdir():
            entry.rename(target / entry.name)
        remove(unpacked)

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
        return [
            replace(spec, sha256=sums[spec.file], md5=None, size=None) for spec in self.archives
        ]

    def _check_counts(self, source: Source) -> None:
        images, classes = len(source.samples), len(source.classes)
        replaced = self.paths.replaced_sums.exists()
        if not replaced and (images, classes) != (self.images, self.classes):
            raise DatasetError(
                f"{self.title} has {self.images} images of {self.classes} classes, but the "
                f"archives in {self.paths.root} have {images} of {classes}; remove them, and they "
                "are downloaded again"
            )
