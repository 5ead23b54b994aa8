"""Data sets that torchvision reads; some of them it downloads as well.

Addresses, checksums and layouts are torchvision's. Added here: a data set appears when it is
complete, one process downloads it, and its images have keys as those of any other source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.downloadable import Downloadable
from autotune.data.download.extraction import SUFFIXES
from autotune.data.download.http import ArchiveSpec
from autotune.data.image_files import Shrink
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Sample, Source
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.errors import DatasetError, is_disk_full
from autotune.text import first_line

#: Seconds between two counts of the downloaded bytes.
_PROGRESS_S = 0.5
#: Split -> options of the loader; the split ``None`` is all images.
Splits = Mapping[str | None, Mapping[str, Any]]


@dataclass(frozen=True)
class TorchvisionReader:
    """Reads a data set by a loader of torchvision.

    Args:
        name: Its name in study files.
        title: Its name in messages.
        loader: The loader's name in ``torchvision.datasets``.
        splits: Split -> options of the loader; the split ``None`` is all images.
        in_memory: Whether the loader holds the images themselves, and no files of them.
    """

    name: str
    title: str
    loader: str
    splits: Splits
    in_memory: bool = False

    def load(self, root: Path, options: Mapping[str, Any], download: bool = False) -> Any:
        """Make the loader of a split."""
        from torchvision import datasets

        loader = getattr(datasets, self.loader)
        if not download:  # what it would compare with checksums has been compared
            loader = type(self.loader, (loader,), {"_check_integrity": lambda self: True})
        if not self.in_memory and self.loader != "OxfordIIITPet":
            options = {**options, "loader": os.fspath}  # the path, instead of the image
        return loader(root, download=download, **options)

    def __call__(self, root: Path, progress: ProgressCallback = no_progress) -> Source:
        """Open the unpacked data set.

        Raises:
            DatasetError: When its layout is not the published one.
        """
        try:
            loaded = {split: self.load(root, options) for split, options in self.splits.items()}
        except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
            raise DatasetError(
                f"torchvision cannot read {self.title} in {root} ({type(error).__name__}: "
                f"{first_line(error)}); remove the folder and the archives beside it, and they "
                "are downloaded again"
            ) from error
        classes = list(next(iter(loaded.values())).classes)
        if self.in_memory:
            return ArraySource(self.name, classes, loaded)
        files = []
        for split, dataset in loaded.items():
            for path, label in _labeled_paths(dataset):
                if not os.path.exists(path):
                    raise DatasetError(f"{self.title} needs {path}, but it is not there")
                key = Path(path).relative_to(root).as_posix()
                files.append(ImageFile(key, os.fspath(path), classes[label], split))
        files.sort(key=lambda file: file.key)
        return FileSource(self.name, files, labeled=True, progress=progress)


@dataclass(frozen=True)
class TorchvisionDataset(Downloadable):
    """A data set that a loader of torchvision downloads and reads.

    Args:
        loader: The loader's name in ``torchvision.datasets``.
        splits: Split -> options of the loader; the split ``None`` is all images.
        images: Number of images.
        megabytes: About how much there is to download.
        folder_name: Where the loader looks for archives, relative to its root.
        in_memory: Whether the loader holds the images themselves, and no files of them.
    """

    loader: str
    splits: Splits
    _: KW_ONLY
    images: int
    megabytes: int
    folder_name: str = ""
    in_memory: bool = False

    @property
    def description(self) -> str:
        """What the data set is, and where it is described."""
        return f"{self.title}, {self.page}, through torchvision"

    @property
    def size(self) -> int:
        """About how many bytes there are to download."""
        return self.megabytes * 1_000_000

    def open(self, progress: ProgressCallback = no_progress) -> Source:
        """Open the downloaded data set."""
        return self._reader(self.folder(), progress)

    @property
    def _reader(self) -> TorchvisionReader:
        return TorchvisionReader(self.name, self.title, self.loader, self.splits, self.in_memory)

    def _fill(self, staging: Path, progress: ProgressCallback) -> None:
        target = staging / self.folder_name
        target.mkdir(parents=True)
        for path in self.paths.root.iterdir():  # archives that the user put there by hand
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, target / path.name)
        try:
            with _watched(staging, f"fetching {self.name}", progress):
                for options in self.splits.values():
                    self._reader.load(staging, options, download=True)
        except Exception as error:  # of a loader, its HTTP client, and readers of archives
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            raise DatasetError(
                f"torchvision cannot get {self.title} ({type(error).__name__}: "
                f"{first_line(error)}); try again later, or get its archives from {self.page} by "
                f"hand and put them into {self.paths.root}"
            ) from error
        count = len(self._reader(staging).samples)
        if count != self.images:
            raise DatasetError(
                f"{self.title} has {self.images} images, but torchvision's loader finds {count}; "
                f"get its archives from {self.page} by hand and put them into {self.paths.root}"
            )
        for path in list(staging.rglob("*")):
            if path.name.endswith(SUFFIXES):  # unpacked, and as large again
                path.unlink()


class ArraySource(Source):
    """Images that loaders hold in memory; ``classes`` are in the loader's order."""

    def __init__(
        self, name: str, classes: Sequence[str], loaded: Mapping[str | None, Any]
    ) -> None:
        self.name = name
        self.classes = tuple(sorted(classes))
        self._images: dict[str, np.ndarray] = {}
        samples = []
        for split, dataset in loaded.items():
            labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
            for index, label in enumerate(labels):
                key = f"{split}/{index:06d}"
                image = dataset.data[index]
                # (3, H, W) of STL-10, (H, W, 3) of CIFAR
                self._images[key] = image.transpose(1, 2, 0) if image.shape[0] == 3 else image
                samples.append(Sample(key, self.classes.index(classes[int(label)]), split))
        self.samples = tuple(sorted(samples, key=lambda sample: sample.key))

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the pixels, labels and splits of some images."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in samples:
            digest.update(f"{sample.key} {self.classes[sample.label]}\0".encode())
            digest.update(np.ascontiguousarray(self._images[sample.key]).data)
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, in mode RGB."""
        return Image.fromarray(np.ascontiguousarray(self._images[sample.key]))


def _labeled_paths(dataset: Any) -> Iterator[tuple[str, int]]:
    """Yield path and label of every image of a loader that holds no images."""
    if hasattr(dataset, "loader"):
        yield from (dataset[index] for index in range(len(dataset)))
    else:  # OxfordIIITPet, which opens its images itself
        pairs = zip(dataset._images, dataset._labels, strict=True)
        yield from ((os.fspath(path), label) for path, label in pairs)


@contextmanager
def _watched(folder: Path, step: str, progress: ProgressCallback) -> Iterator[None]:
    """Report the bytes in a folder until the block ends; hide torchvision's own bar."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_PROGRESS_S):
            size = 0
            for path in list(folder.rglob("*")):
                with suppress(OSError):  # renamed or removed meanwhile
                    size += path.stat().st_size
            progress(step, size, None)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with open(os.devnull, "w") as nothing, redirect_stderr(nothing):
            yield
    finally:
        ended.set()
        thread.join()


_SPLITS: Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_OR_NOT: Splits = {"train": {"train": True}, "test": {"train": False}}

#: The data sets that torchvision downloads.
TORCHVISION_DATASETS = (
    TorchvisionDataset(
        "food101",
        "Food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "Food101",
        _SPLITS,
        images=101_000,
        megabytes=4_997,
    ),
    TorchvisionDataset(
        "eurosat",
        "EuroSAT (RGB)",
        "https://github.com/phelber/EuroSAT",
        "EuroSAT",
        {None: {}},
        folder_name="eurosat",
        images=27_000,
        megabytes=94,
    ),
    TorchvisionDataset(
        "cifar10",
        "CIFAR-10",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR10",
        _TRAIN_OR_NOT,
        images=60_000,
        megabytes=170,
        in_memory=True,
    ),
    TorchvisionDataset(
        "cifar100",
        "CIFAR-100",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "CIFAR100",
        _TRAIN_OR_NOT,
        images=60_000,
        megabytes=169,
        in_memory=True,
    ),
    TorchvisionDataset(
        "stl10",
        "STL-10 (its labeled images)",
        "https://cs.stanford.edu/~acoates/stl10/",
        "STL10",
        _SPLITS,
        images=13_000,
        megabytes=2_640,
        in_memory=True,
    ),
)

_PAGES = "https://www.robots.ox.ac.uk/~vgg/data"
_SPLITS_AND_VALIDATION: Splits = {**_SPLITS, "validation": {"split": "val"}}
#: Those without an official validation split.
_TRAIN_AND_TEST: Splits = {"train": {"split": "trainval"}, "test": {"split": "test"}}


def _archive(
    path: str, folder: str, size: int, sha256: str | None, md5: str | None = None
) -> ArchiveSpec:
    """Return the archive at an address below the pages."""
    return ArchiveSpec(
        path.rpartition("/")[2], (f"{_PAGES}/{path}",), sha256, size, folder, md5=md5
    )


# Sizes and SHA-256: tensorflow/datasets, url_checksums/oxford_flowers102.txt (commit 24211da),
# oxford_iiit_pet.txt and dtd.txt (333639b). FGVC-Aircraft: the MD5 that many programs compare.
#: Those of the Visual Geometry Group at Oxford, downloaded here: Nilsback and Zisserman 2008
#: (flowers), Parkhi et al. 2012 (pets), Cimpoi et al. 2014 (textures, partition 1 of ten),
#: Maji et al. 2013 (aircraft).
OXFORD_DATASETS = (
    ArchivedDataset(
        name="flowers102",
        title="Oxford 102 Flowers",
        page=f"{_PAGES}/flowers/102/",
        terms="its page states none",
        archives=(
            _archive(
                "flowers/102/102flowers.tgz",
                "flowers-102",
                344_862_509,
                "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            ),
            _archive(
                "flowers/102/imagelabels.mat",
                "flowers-102",
                502,
                "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            ),
            _archive(
                "flowers/102/setid.mat",
                "flowers-102",
                14_989,
                "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
            ),
        ),
        images=8_189,
        classes=102,
        read=TorchvisionReader(
            "flowers102", "Oxford 102 Flowers", "Flowers102", _SPLITS_AND_VALIDATION
        ),
    ),
    ArchivedDataset(
        name="pets",
        title="Oxford-IIIT Pet",
        page=f"{_PAGES}/pets/",
        terms="Creative Commons Attribution-ShareAlike 4.0 (CC BY-SA 4.0)",
        archives=(
            _archive(
                "pets/data/images.tar.gz",
                "oxford-iiit-pet",
                791_918_971,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            ),
            _archive(
                "pets/data/annotations.tar.gz",
                "oxford-iiit-pet",
                19_173_078,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            ),
        ),
        images=7_349,
        classes=37,
        read=TorchvisionReader("pets", "Oxford-IIIT Pet", "OxfordIIITPet", _TRAIN_AND_TEST),
    ),
    ArchivedDataset(
        name="dtd",
        title="Describable Textures",
        page=f"{_PAGES}/dtd/",
        terms="for research",
        archives=(
            _archive(
                "dtd/download/dtd-r1.0.1.tar.gz",
                "dtd",
                625_239_812,
                "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            ),
        ),
        images=5_640,
        classes=47,
        read=TorchvisionReader("dtd", "Describable Textures", "DTD", _SPLITS_AND_VALIDATION),
    ),
    ArchivedDataset(
        name="aircraft",
        title="FGVC-Aircraft (variants)",
        page=f"{_PAGES}/fgvc-aircraft/",
        terms="for non-commercial research",
        archives=(
            _archive(
                "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                ".",
                2_753_340_328,
                None,
                "d4acdd33327262359767eeaa97a4f732",
            ),
        ),
        images=10_000,
        classes=100,
        read=TorchvisionReader(
            "aircraft", "FGVC-Aircraft (variants)", "FGVCAircraft", _SPLITS_AND_VALIDATION
        ),
    ),
)
