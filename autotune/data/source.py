"""The interface of a source of labeled images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from autotune.data.image_files import Shrink


@dataclass(frozen=True, slots=True)
class Sample:
    """One labeled image of a source.

    Args:
        key: Stable name: a path relative to the folder, or e.g. ``digits/0017``.
        label: Index into the source's classes.
        split: ``train``, ``validation`` or ``test`` when the source is already split.
        group: Images of one group, e.g. of one person, go to the same split.
    """

    key: str
    label: int
    split: str | None
    group: str | None = None


class Source(ABC):
    """Labeled images that can be read one by one, from any thread.

    Attributes:
        name: The data set as the user named it.
        classes: Names of the classes; a label is an index into them.
        samples: All images, sorted by key.
        passed_over: Kind and ending of the files among them that are no images -> their number.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    passed_over: Mapping[str, Mapping[str, int]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all keys and contents."""
        return self.fingerprint_of(self.samples)

    @abstractmethod
    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the keys and contents of some images."""

    def changed_since(self, moment: float) -> tuple[str, ...]:
        """Return the keys of files that were changed after a moment, or cannot be read.

        A moment is in seconds of the Unix epoch. Sources that are no files have none.
        """
        return ()

    @abstractmethod
    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return an image, upright, in mode RGB.

        Raises:
            OSError: When the image cannot be decoded.
        """
