"""Caltech-101 and Caltech-256: photographs of objects, without an official split.

Li, Andreeto, Ranzato, Perona: Caltech 101 (1.0), doi:10.22002/D1.20086. Griffin, Holub, Perona:
Caltech 256 (1.0), doi:10.22002/D1.20087. Each has one more class of other pictures, to be
rejected, which results usually leave out.
"""

from __future__ import annotations

import os
from pathlib import Path

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.spec import ArchiveSpec
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.errors import DatasetError

BACKGROUND = "BACKGROUND_Google"
CLUTTER = "257.clutter"
_RECORDS = "https://data.caltech.edu"
_TERMS = "Creative Commons Attribution 4.0 (CC BY 4.0), as CaltechDATA states it"


def read_caltech101(
    root: Path, progress: ProgressCallback = no_progress, *, background: bool = True
) -> FileSource:
    """Open the unpacked Caltech-101, with or without its class of other pictures."""
    name = "caltech101-background" if background else "caltech101"
    folder = root / "images" / "101_ObjectCategories"
    return _read(name, folder, progress, "" if background else BACKGROUND)


def read_caltech256(
    root: Path, progress: ProgressCallback = no_progress, *, clutter: bool = True
) -> FileSource:
    """Open the unpacked Caltech-256, with or without its class of other pictures."""
    name = "caltech256-clutter" if clutter else "caltech256"
    folder = root / "images" / "256_ObjectCategories"
    return _read(name, folder, progress, "" if clutter else CLUTTER)


def _read(name: str, folder: Path, progress: ProgressCallback, left_out: str) -> FileSource:
    """Open the images of class folders such as ``accordion`` or ``001.ak47``.

    Folders within a class, and files without ``.jpg``, are remains that are no part of the set.

    Raises:
        DatasetError: When the layout is not the published one.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder} must be the folder of classes, but it is not there; remove "
            f"{folder.parent.parent} and the archive, and they are downloaded again"
        )
    files = [
        ImageFile(f"{label}/{image}", str(path), label.partition(".")[2] or label, None)
        for label in sorted(os.listdir(folder))
        if label != left_out and (folder / label).is_dir()
        for image in sorted(os.listdir(folder / label))
        if image.endswith(".jpg") and (path := folder / label / image).is_file()
    ]
    return FileSource(name, files, progress=progress)


# Size and checksum: tensorflow/datasets, datasets/caltech101/checksums.tsv (commit 46e70c8).
CALTECH101 = ArchivedDataset(
    name="caltech101",
    title="Caltech-101",
    page=f"{_RECORDS}/records/mzrjq-6wc02",
    terms=_TERMS,
    archives=(
        ArchiveSpec(
            "caltech-101.zip",
            (
                f"{_RECORDS}/records/mzrjq-6wc02/files/caltech-101.zip?download=1",
                f"{_RECORDS}/api/records/mzrjq-6wc02/files/caltech-101.zip/content",
                "https://huggingface.co/datasets/HuggingFaceM4/Caltech-101/resolve/main/"
                "caltech-101.zip",
            ),
            "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            137_414_764,
            "images",
            inner="caltech-101/101_ObjectCategories.tar.gz",
        ),
    ),
    images=9_144,
    classes=102,
    read=read_caltech101,
)

# Checksum: pytorch/vision, prototype/datasets/_builtin/caltech.py. No source states the size.
CALTECH256 = ArchivedDataset(
    name="caltech256",
    title="Caltech-256",
    page=f"{_RECORDS}/records/nyy15-4j048",
    terms=_TERMS,
    archives=(
        ArchiveSpec(
            "256_ObjectCategories.tar",
            (
                f"{_RECORDS}/records/nyy15-4j048/files/256_ObjectCategories.tar?download=1",
                f"{_RECORDS}/api/records/nyy15-4j048/files/256_ObjectCategories.tar/content",
            ),
            "08ff01b03c65566014ae88eb0490dbe4419fc7ac4de726ee1163e39fd809543e",
            None,
            "images",
        ),
    ),
    images=30_607,
    classes=257,
    read=read_caltech256,
)
