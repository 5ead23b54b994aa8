"""Caltech-101 and Caltech-256: photographs of objects, without an official split.

Li, Andreeto, Ranzato, Perona: Caltech 101 (1.0), doi:10.22002/D1.20086. Griffin, Holub, Perona:
Caltech 256 (1.0), doi:10.22002/D1.20087. Each has one more class of other pictures, to be
rejected, which results usually leave out.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.http import ArchiveSpec
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.errors import DatasetError

_RECORDS = "https://data.caltech.edu"
_TERMS = "Creative Commons Attribution 4.0 (CC BY 4.0), as CaltechDATA states it"


def read_caltech(
    root: Path,
    progress: ProgressCallback = no_progress,
    *,
    name: str,
    categories: str,
    left_out: str = "",
) -> FileSource:
    """Open the images of class folders such as ``accordion`` or ``001.ak47``.

    Folders within a class, and files without ``.jpg``, are remains that are no part of the set.

    Args:
        root: The folder of the unpacked data set.
        progress: Called while the files are read.
        name: The data set, as a study file names it.
        categories: The folder of all classes.
        left_out: The class of other pictures, if it is to be left out.

    Raises:
        DatasetError: When the layout is not the published one.
    """
    folder = root / "images" / categories
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
    read=partial(read_caltech, name="caltech101-background", categories="101_ObjectCategories"),
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
    read=partial(read_caltech, name="caltech256-clutter", categories="256_ObjectCategories"),
)
