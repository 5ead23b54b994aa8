"""A data set that is downloaded once and kept for all studies."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.data.download.checksums import differences, read_sums, write_sums
from autotune.data.download.extraction import remove
from autotune.data.download.paths import DATA_VARIABLE, DatasetPaths, data_folder
from autotune.data.progress import ProgressCallback, no_progress
from autotune.errors import DatasetError, DiskFullError, is_disk_full
from autotune.text import format_bytes, plural


@dataclass(frozen=True)
class Downloadable(ABC):
    """A data set that is downloaded once and kept for all studies.

    ``name`` is its name in study files, ``page`` the address of its description.
    """

    name: str
    title: str
    page: str

    @property
    @abstractmethod
    def description(self) -> str:
        """What the data set is, and where it is described."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Bytes to download; ``None`` where they are unknown."""

    @abstractmethod
    def _fill(self, staging: Path, progress: ProgressCallback) -> None:
        """Download the data set, unpack it into a new folder and check its counts."""

    @property
    def paths(self) -> DatasetPaths:
        """Its paths."""
        return DatasetPaths(data_folder() / self.name)

    @property
    def is_downloaded(self) -> bool:
        """Whether the data set is on this disk, complete."""
        return self.paths.final.is_dir()

    def fetch(self, progress: ProgressCallback = no_progress) -> None:
        """Download, verify and unpack the data set if that is not done yet.

        One process does it while others wait. The unpacked folder appears when it is complete.

        Raises:
            DatasetError: When a download fails, or its content is not what was published.
            DiskFullError: When the disk has no room for it.
        """
        paths = self.paths
        if self.is_downloaded:
            return
        with _writable(paths.root), _locked(paths.lock, self.name, progress):
            if self.is_downloaded:
                return
            remove(paths.staging)  # of a process that was killed
            try:
                self._fill(paths.staging, progress)
                write_sums(paths.staging, paths.staging / paths.sums.name)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(paths.staging, paths.final)
            except BaseException:
                remove(paths.staging)
                raise

    def folder(self) -> Path:
        """Return the folder of the unpacked data set.

        Raises:
            DatasetError: When it is not downloaded yet, or files of it are missing.
        """
        final = self._check_downloaded()
        inside = len(os.path.join(final, ""))
        present = {
            os.path.join(folder, file)[inside:]
            for folder, _, files in os.walk(final)
            for file in files
        }
        missing = [file for file in read_sums(self.paths.sums) if file not in present]
        if missing:
            raise DatasetError(
                f"{plural(len(missing), 'file is', 'files are')} missing in {final}, such as "
                f"{missing[0]}; remove the folder, and 'autotune data fetch {self.name}' makes it "
                "again"
            )
        return final

    def verify(self, progress: ProgressCallback = no_progress) -> list[str]:
        """Compare the unpacked files with the checksums of the day when they were unpacked.

        Returns:
            A line for each problem.

        Raises:
            DatasetError: When the data set is not downloaded yet.
        """
        final = self._check_downloaded()
        lines = differences(final, self.paths.sums, partial(progress, "checking files"))
        return [f"{final}/{line}" for line in lines]

    def _check_downloaded(self) -> Path:
        if not self.is_downloaded:
            size = "" if self.size is None else f" ({format_bytes(self.size)})"
            raise DatasetError(
                f"the dataset {self.name!r} is not downloaded yet; 'autotune data fetch "
                f"{self.name}' downloads it{size} into {self.paths.root}, and so does 'autotune "
                "run'"
            )
        return self.paths.final


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Make a folder, and turn errors of writing into messages."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"no space left on the disk of {root}; free some space and try again, or name a "
                f"folder on another disk with {DATA_VARIABLE}"
            ) from error
        raise DatasetError(
            f"{root} must be a folder that can be written ({error.strerror}); name another one "
            f"with {DATA_VARIABLE}"
        ) from error


@contextmanager
def _locked(path: Path, name: str, progress: ProgressCallback) -> Iterator[None]:
    """Hold the lock of a data set, and report when another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for the process that fetches {name}", 0, None)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
