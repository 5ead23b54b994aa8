"""What a source of images is, and some of them: the digits, image files, a folder of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

from autotune.data.folders import ImageFile, fingerprint_files, printable, scan_folder
from autotune.data.progress import Progress, silent
from autotune.data.reading import read_image
from autotune.errors import DatasetError

Shrink = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image of a source.

    Args:
        key: Stable name: a path relative to the folder, or e.g. ``digits/0017``.
        label: Index into the source's classes.
        part: ``train``, ``validation`` or ``test`` when the source is already split.
        group: What the image shows or whom it is of, where the source says: all images of a group
            go to the same part.
    """

    key: str
    label: int
    part: str | None
    group: str | None = None


class Source(Protocol):
    """Labelled images that can be read one by one, from any thread."""

    @property
    def name(self) -> str:
        """The name the source was opened by."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; a label is an index into them."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All images, sorted by key."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all keys and contents."""

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return an image, upright, in mode RGB.

        Args:
            sample: Which one.
            shrink: Gets the image before it is decoded, and may return a smaller one.

        Raises:
            OSError: When the image cannot be decoded.
        """


class DigitsSource:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey; they need no download."""

    name = "digits"

    def __init__(self) -> None:
        digits = load_digits()
        # 17 grey levels, 0..16
        self._images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
        self.classes = tuple(str(name) for name in digits.target_names)
        self.samples = tuple(
            Sample(f"digits/{index:04d}", int(label), None)
            for index, label in enumerate(digits.target)
        )
        self._index = {sample.key: index for index, sample in enumerate(self.samples)}

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the pixels and labels."""
        digest = hashlib.blake2b(self._images.tobytes(), digest_size=16)
        digest.update(bytes(sample.label for sample in self.samples))
        return digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the 8x8 image of a sample, in mode RGB."""
        return Image.fromarray(self._images[self._index[sample.key]]).convert("RGB")


class FileSource:
    """Image files, each of a class.

    Args:
        name: What the user calls them.
        files: The files, sorted by key.
        labelled: Whether something else than their keys says which class, part and group they
            are of.
        progress: Told of the files read for the fingerprint.

    Raises:
        DatasetError: When two files have the same key.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[ImageFile],
        labelled: bool = False,
        progress: Progress = silent,
    ) -> None:
        self.name = name
        names = sorted({file.class_name for file in files})
        labels = {class_name: label for label, class_name in enumerate(names)}
        self.classes = tuple(printable(class_name) for class_name in names)
        self.samples = tuple(
            Sample(file.key, labels[file.class_name], file.part, file.group) for file in files
        )
        self._paths = {file.key: file.path for file in files}
        if len(self._paths) < len(files):
            keys = [file.key for file in files]
            doubled = next(key for key, after in pairwise(keys) if key == after)
            raise DatasetError(
                f"every image needs a name of its own, but two of {name!r} are written "
                f"{doubled!r}; rename one of them"
            )
        self.fingerprint = fingerprint_files(self._paths, progress)
        if labelled:
            digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
            for file in files:
                digest.update(json.dumps([file.class_name, file.part, file.group]).encode())
            self.fingerprint = digest.hexdigest()

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return the image of a sample, upright, in mode RGB.

        Raises:
            OSError: When the file cannot be decoded.
        """
        return read_image(self._paths[sample.key], shrink)


class FolderSource(FileSource):
    """The image files of a folder of class folders, split into parts or not.

    Args:
        name: What the user calls the folder.
        root: Its path.
        progress: Told of the images found, and read for the fingerprint.

    Raises:
        DatasetError: When the folder is not laid out as a dataset.
    """

    def __init__(self, name: str, root: str, progress: Progress = silent) -> None:
        super().__init__(name, scan_folder(root, progress), progress=progress)
