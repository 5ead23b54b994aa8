"""Sources of images: the digits of scikit-learn, image files, and a subset of another source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from autotune.data.image_files import Shrink, read_image
from autotune.data.image_formats import PassedOver
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.source import Sample, Source
from autotune.data.sources.class_folders import check_class_folders
from autotune.data.sources.folders import ImageFile, digest_files, scan_folder
from autotune.data.sources.layout import find_layout
from autotune.data.sources.names import printable, warn_of_names
from autotune.data.sources.split_names import SplitNames
from autotune.errors import DatasetError


@cache
def _load_digits() -> Any:
    # Imported here, because sklearn is slow to import and few commands read this data set.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

    return load_digits()


class DigitsSource(Source):
    """The 1,797 handwritten digits of scikit-learn, 8x8 gray; they need no download."""

    name = "digits"

    def __init__(self) -> None:
        digits = _load_digits()
        # 17 gray levels, 0..16
        self._images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
        self.classes = tuple(str(name) for name in digits.target_names)
        self.samples = tuple(
            Sample(f"digits/{index:04d}", int(label), None)
            for index, label in enumerate(digits.target)
        )
        self._index = {sample.key: index for index, sample in enumerate(self.samples)}

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the pixels and labels of some images."""
        rows = [self._index[sample.key] for sample in samples]
        digest = hashlib.blake2b(self._images[rows].tobytes(), digest_size=16)
        digest.update(bytes(sample.label for sample in samples))
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the 8x8 image of a sample, in mode RGB."""
        return Image.fromarray(self._images[self._index[sample.key]]).convert("RGB")


class FileSource(Source):
    """Image files, each of a class.

    Args:
        name: The data set as the user named it.
        files: The files, sorted by key.
        labeled: Whether classes, splits and groups do not follow from the keys, so that they are
            part of the fingerprint.
        progress: Called while the files are read for the fingerprint.

    Raises:
        DatasetError: When two files have the same key.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[ImageFile],
        labeled: bool = False,
        progress: ProgressCallback = no_progress,
    ) -> None:
        self.name = name
        names = sorted({file.class_name for file in files})
        labels = {class_name: label for label, class_name in enumerate(names)}
        self.classes = tuple(printable(class_name) for class_name in names)
        warn_of_names(name, names)
        self.samples = tuple(
            Sample(file.key, labels[file.class_name], file.split, file.group) for file in files
        )
        self._paths = {file.key: file.path for file in files}
        if len(self._paths) < len(files):
            keys = [file.key for file in files]
            repeated = next(key for key, after in pairwise(keys) if key == after)
            raise DatasetError(
                f"every image needs its own name, but two of {name!r} are written {repeated!r}; "
                "rename one of them"
            )
        self._labeled = labeled
        self._digests = digest_files(self._paths, progress)

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the keys, sizes and ends of some files."""
        rows = list(range(len(samples)))
        if samples is not self.samples:
            row_of = {sample.key: row for row, sample in enumerate(self.samples)}
            rows = [row_of[sample.key] for sample in samples]
        digest = hashlib.blake2b(self._digests[rows].tobytes(), digest_size=16)
        if not self._labeled:
            return digest.hexdigest()
        digest = hashlib.blake2b(digest.hexdigest().encode(), digest_size=16)
        for row in rows:
            sample = self.samples[row]
            values = [self.classes[sample.label], sample.split, sample.group]
            digest.update(json.dumps(values).encode())
        return digest.hexdigest()

    def changed_since(self, moment: float) -> tuple[str, ...]:
        """Return the keys of files that were changed after a moment, or cannot be read."""

        def is_changed(path: str) -> bool:
            try:
                return os.stat(path).st_mtime > moment or not os.access(path, os.R_OK)
            except OSError:
                return True

        return tuple(sample.key for sample in self.samples if is_changed(self._paths[sample.key]))

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB."""
        return read_image(self._paths[sample.key], shrink)


def open_folder(
    name: str, root: str, progress: ProgressCallback, splits: SplitNames
) -> FileSource:
    """Open the image files of a folder of class folders, already split or not.

    Raises:
        DatasetError: When the folder is not laid out as a data set.
    """
    passed_over = PassedOver()
    layout = find_layout(root, splits, passed_over)
    files = scan_folder(root, layout, progress, passed_over)
    check_class_folders(root, layout, files, splits)
    source = FileSource(name, files, progress=progress)
    source.passed_over = passed_over.by_kind()
    return source


class SubsetSource(Source):
    """Some images of another source, with their own classes, labels and splits."""

    def __init__(
        self, source: Source, classes: tuple[str, ...], samples: tuple[Sample, ...]
    ) -> None:
        self.name = source.name
        self.classes = classes
        self.samples = samples
        self.passed_over = source.passed_over
        self._source = source

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the keys and contents of some images."""
        return self._source.fingerprint_of(samples)

    def changed_since(self, moment: float) -> tuple[str, ...]:
        """Return the keys of files that were changed after a moment, or cannot be read."""
        keys = {sample.key for sample in self.samples}
        return tuple(key for key in self._source.changed_since(moment) if key in keys)

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB."""
        return self._source.read(sample, shrink)
