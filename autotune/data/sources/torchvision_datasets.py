"""Data sets that torchvision knows how to get and to read.

Addresses, checksums and layouts are torchvision's. What is added here: nothing of a data set is
there before all of it is, one process fetches it, and its images are numbered and named as those
of any other source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autotune.data.download.archived_dataset import (
    can_write,
    check_there,
    locked,
    not_downloaded_error,
)
from autotune.data.download.checksums import differences, write_sums
from autotune.data.download.extraction import SUFFIXES, remove
from autotune.data.download.paths import DatasetPaths
from autotune.data.progress import Progress, no_progress
from autotune.data.source import Sample, Shrink, Source
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.errors import DatasetError, DiskFullError, is_disk_full

_WATCHED_EVERY_S = 0.5
#: Part -> what a loader has to be asked for it; ``None`` is all images.
_Parts = Mapping[str | None, Mapping[str, Any]]


@dataclass(frozen=True)
class TorchvisionDataset:
    """A data set that torchvision has a loader for.

    Args:
        name: What study files call it.
        title: Its full name.
        page: Where it is described.
        loader: The loader's name in ``torchvision.datasets``.
        parts: Part -> what the loader has to be asked for it; ``None`` is all images.
        folder: Where the loader looks for archives, relative to its root.
        images: How many images there are.
        in_memory: Whether the loader holds the images themselves, and no files of them.
        megabytes: About how much there is to fetch.
    """

    name: str
    title: str
    page: str
    loader: str
    parts: _Parts
    folder: str = field(kw_only=True)
    images: int = field(kw_only=True)
    in_memory: bool = field(default=False, kw_only=True)
    megabytes: int = field(kw_only=True)

    @property
    def description(self) -> str:
        """What it is, and where it is described."""
        return f"{self.title}, {self.page}, through torchvision"

    @property
    def paths(self) -> DatasetPaths:
        """Where it lies."""
        return DatasetPaths.from_name(self.name)

    @property
    def is_downloaded(self) -> bool:
        """Whether it is here, whole."""
        return self.paths.final.is_dir()

    @property
    def size(self) -> int:
        """About how many bytes there are to fetch."""
        return self.megabytes * 1_000_000

    def open(self, progress: Progress = no_progress) -> Source:
        """Open it.

        Args:
            progress: Told of the files read for the fingerprint.

        Raises:
            DatasetError: When it is not here, or files of it are gone.
        """
        if not self.is_downloaded:
            raise not_downloaded_error(self.name, self.size)
        check_there(self.name, self.paths)
        return self._read(self.paths.final, progress)

    def fetch(self, progress: Progress = no_progress) -> None:
        """Bring it here, if it is not; one process does it, others wait.

        Archives that were put into its folder by hand are not fetched.

        Args:
            progress: Told of the bytes that are there.

        Raises:
            DatasetError: When it cannot be had.
            DiskFullError: When there is no room for it.
        """
        place = self.paths
        if self.is_downloaded:
            return
        with can_write(place), locked(place, self.name, progress):
            if self.is_downloaded:
                return
            remove(place.staging)  # of a process that died
            try:
                self._take_what_is_there()
                self._download(progress)
                self._count()
                for path in list(place.staging.rglob("*")):
                    if path.name.endswith(SUFFIXES):  # unpacked, and as large again
                        path.unlink()
                write_sums(place.staging, place.staging / place.sums.name)
                os.sync()  # or after a power cut the folder could be there without its files
                os.rename(place.staging, place.final)
            except BaseException:
                remove(place.staging)
                raise

    def verify(self, progress: Progress = no_progress) -> list[str]:
        """Compare what is here with the checksums of the day when it was fetched.

        Returns:
            What is wrong, a line each.

        Raises:
            DatasetError: When it is not here.
        """
        if not self.is_downloaded:
            raise not_downloaded_error(self.name, self.size)

        def told(done: int, total: int) -> None:
            progress("checking files", done, total)

        place = self.paths
        return [f"{place.final}/{line}" for line in differences(place.final, place.sums, told)]

    def _take_what_is_there(self) -> None:
        target = self.paths.staging / self.folder
        target.mkdir(parents=True)
        for path in self.paths.root.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, target / path.name)

    def _download(self, progress: Progress) -> None:
        try:
            with _watched(self.paths.staging, f"fetching {self.name}", progress):
                for options in self.parts.values():
                    self._load(self.paths.staging, options, download=True)
        except Exception as error:  # of a loader, its HTTP client, and readers of archives
            if isinstance(error, OSError) and is_disk_full(error):
                raise DiskFullError(
                    f"no space left on the disk of {self.paths.root} while {self.name} was "
                    "fetched; what was written has been removed"
                ) from error
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DatasetError(
                f"torchvision cannot get {self.title} ({type(error).__name__}: {reason}); try "
                f"again later, or get its archives from {self.page} by hand and put them into "
                f"{self.paths.root}"
            ) from error

    def _count(self) -> None:
        found = len(self._read(self.paths.staging).samples)
        if found != self.images:
            raise DatasetError(
                f"{self.title} has {self.images} images, but torchvision's loader finds {found}; "
                f"get its archives from {self.page} by hand and put them into {self.paths.root}"
            )

    def _load(self, root: Path, options: Mapping[str, Any], download: bool = False) -> Any:
        from torchvision import datasets

        loader = getattr(datasets, self.loader)
        if not self.in_memory and self.loader != "OxfordIIITPet":
            options = {**options, "loader": os.fspath}  # the path, in place of the image
        return loader(root, download=download, **options)

    def _read(self, root: Path, progress: Progress = no_progress) -> Source:
        loaded = {part: self._load(root, options) for part, options in self.parts.items()}
        classes = list(next(iter(loaded.values())).classes)
        if self.in_memory:
            return ArraySource(self.name, classes, loaded)
        files = []
        for part, dataset in loaded.items():
            for path, label in _paths(dataset):
                key = Path(path).relative_to(root).as_posix()
                if not os.path.exists(path):
                    raise DatasetError(f"{self.title} needs {path}, but it is not there")
                files.append(ImageFile(key, path, classes[label], part))
        files.sort(key=lambda file: file.key)
        return FileSource(self.name, files, labelled=True, progress=progress)


class ArraySource:
    """Images that a loader holds in memory.

    Args:
        name: What the user calls them.
        classes: Names of the classes, in the loader's order.
        loaded: Part -> loader.
    """

    def __init__(
        self, name: str, classes: Sequence[str], loaded: Mapping[str | None, Any]
    ) -> None:
        self.name = name
        order = sorted(range(len(classes)), key=lambda index: classes[index])
        labels = {old: new for new, old in enumerate(order)}
        self.classes = tuple(classes[index] for index in order)
        self._images: dict[str, np.ndarray] = {}
        samples = []
        for part, dataset in loaded.items():
            given = dataset.labels if hasattr(dataset, "labels") else dataset.targets
            for index, label in enumerate(given):
                key = f"{part}/{index:06d}"
                image = dataset.data[index]
                # (3, H, W) of STL-10, (H, W, 3) of CIFAR
                self._images[key] = image.transpose(1, 2, 0) if image.shape[0] == 3 else image
                samples.append(Sample(key, labels[int(label)], part))
        self.samples = tuple(sorted(samples, key=lambda sample: sample.key))

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the pixels, labels and parts."""
        return self.fingerprint_of(self.samples)

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the pixels, labels and parts of some images."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in samples:
            digest.update(f"{sample.key} {self.classes[sample.label]}\0".encode())
            digest.update(np.ascontiguousarray(self._images[sample.key]).data)
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, in mode RGB."""
        return Image.fromarray(np.ascontiguousarray(self._images[sample.key]))


def _paths(dataset: Any) -> Iterator[tuple[str, int]]:
    """Yield path and label of every image of a loader that holds no images."""
    if hasattr(dataset, "loader"):
        yield from (dataset[index] for index in range(len(dataset)))
    else:  # OxfordIIITPet, which opens its images itself
        pairs = zip(dataset._images, dataset._labels, strict=True)
        yield from ((os.fspath(path), label) for path, label in pairs)


@contextmanager
def _watched(folder: Path, step: str, progress: Progress) -> Iterator[None]:
    """Tell how much there is in a folder until the block ends; torchvision's own bar is hidden."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCHED_EVERY_S):
            sizes = []
            for path in list(folder.rglob("*")):
                try:
                    sizes.append(path.stat().st_size)
                except OSError:  # it has been renamed or removed
                    continue
            progress(step, sum(sizes), None)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with open(os.devnull, "w") as nothing, redirect_stderr(nothing):
            yield
    finally:
        over.set()
        thread.join()


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SPLITS: _Parts = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLITS_AND_VALIDATION: _Parts = {**_SPLITS, "validation": {"split": "val"}}
_TRAIN_OR_NOT: _Parts = {"train": {"train": True}, "test": {"train": False}}

#: The data sets of torchvision that are known by name.
TORCHVISION_DATASETS = (
    TorchvisionDataset(
        "flowers102",
        "Oxford 102 Flowers",
        f"{_OXFORD}/flowers/102/",
        "Flowers102",
        _SPLITS_AND_VALIDATION,
        folder="flowers-102",
        images=8_189,
        megabytes=345,
    ),
    TorchvisionDataset(
        "pets",
        "Oxford-IIIT Pet",
        f"{_OXFORD}/pets/",
        "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        folder="oxford-iiit-pet",
        images=7_349,
        megabytes=811,
    ),
    TorchvisionDataset(
        "food101",
        "Food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "Food101",
        _SPLITS,
        folder="",
        images=101_000,
        megabytes=4_997,
    ),
    TorchvisionDataset(
        "dtd",
        "Describable Textures",
        f"{_OXFORD}/dtd/",
        "DTD",
        _SPLITS_AND_VALIDATION,
        folder="dtd",
        images=5_640,
        megabytes=625,
    ),
    TorchvisionDataset(
        "eurosat",
        "EuroSAT (RGB)",
        "https://github.com/phelber/EuroSAT",
        "EuroSAT",
        {None: {}},
        folder="eurosat",
        images=27_000,
        megabytes=94,
    ),
    TorchvisionDataset(
        "cifar10",
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR10",
        _TRAIN_OR_NOT,
        folder="",
        images=60_000,
        in_memory=True,
        megabytes=170,
    ),
    TorchvisionDataset(
        "cifar100",
        "CIFAR-100",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR100",
        _TRAIN_OR_NOT,
        folder="",
        images=60_000,
        in_memory=True,
        megabytes=169,
    ),
    TorchvisionDataset(
        "aircraft",
        "FGVC-Aircraft (variants)",
        f"{_OXFORD}/fgvc-aircraft/",
        "FGVCAircraft",
        _SPLITS_AND_VALIDATION,
        folder="",
        images=10_000,
        megabytes=2_753,
    ),
    TorchvisionDataset(
        "stl10",
        "STL-10 (its labelled images)",
        "https://cs.stanford.edu/~acoates/stl10/",
        "STL10",
        _SPLITS,
        folder="",
        images=13_000,
        in_memory=True,
        megabytes=2_640,
    ),
)
