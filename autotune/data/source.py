"""What a source of labelled images is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

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
    split: str | None
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

    def fingerprint_of(self, samples: Sequence[Sample]) -> str:
        """Return a hexadecimal digest of the keys and contents of some images.

        That of all samples is the source's own.
        """

    def read(self, sample: Sample, shrink: Shrink | None = None) -> Image.Image:
        """Return an image, upright, in mode RGB.

        Args:
            sample: Which one.
            shrink: Gets the image before it is decoded, and may return a smaller one.

        Raises:
            OSError: When the image cannot be decoded.
        """
