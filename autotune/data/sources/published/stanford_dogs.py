"""Stanford Dogs: 120 breeds, 20,580 photographs of ImageNet, with official lists.

Khosla, Jayadevaprakash, Yao, Fei-Fei: Novel Dataset for Fine-Grained Image Categorization, FGVC
at CVPR 2011. Its images are ImageNet's: a backbone trained with ImageNet's labels has learned
these breeds from these very images, those of the test list among them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.http import ArchiveSpec
from autotune.data.progress import ProgressCallback, no_progress
from autotune.data.sources.base import FileSource
from autotune.data.sources.folders import ImageFile
from autotune.errors import DatasetError

_BASE = "vision.stanford.edu/aditya86/ImageNetDogs"


def read_dogs(root: Path, progress: ProgressCallback = no_progress) -> FileSource:
    """Open the unpacked archives, with the splits of the official lists.

    Raises:
        DatasetError: When a list cannot be read, or names an image that is not there.
    """
    folder = root / "images" / "Images"
    present = {
        f"{breed.name}/{name}"
        for breed in (folder.iterdir() if folder.is_dir() else ())
        if breed.is_dir()
        for name in os.listdir(breed)
    }
    files = []
    for split in ("train", "test"):
        for key in _listed(root / "lists" / f"{split}_list.mat"):
            if key not in present:
                raise DatasetError(
                    f"every image of Stanford Dogs' lists must be there, but {folder / key} is "
                    f"not; remove {root}, and it is downloaded again"
                )
            # n02085782-Japanese_spaniel/n02085782_1.jpg -> Japanese spaniel
            breed = key.partition("/")[0].partition("-")[2].replace("_", " ")
            files.append(ImageFile(key, str(folder / key), breed, split))
    files.sort(key=lambda file: file.key)
    return FileSource("dogs", files, labeled=True, progress=progress)


def imagenet_overlap_warning(backbone: str) -> str:
    """Return a warning that test scores on Stanford Dogs are too good; empty where they are not.

    Args:
        backbone: timm model name. Its tag tells whether it was trained with ImageNet's labels.
    """
    if not re.search(r"in(1|12|21|22)k", backbone.partition(".")[2]):
        return ""
    return (
        f"Stanford Dogs is a part of ImageNet, with whose labels {backbone} was trained: these "
        "scores are too good for new photographs."
    )


def _listed(path: Path) -> list[str]:
    """Return the images of a list, such as ``n02085620-Chihuahua/n02085620_5927.jpg``."""
    try:
        return [str(cell) for cell in np.atleast_1d(loadmat(path, squeeze_me=True)["file_list"])]
    except (OSError, ValueError, KeyError, TypeError, MatReadError) as error:
        raise DatasetError(
            f"{path} must be a list of Stanford Dogs in MATLAB's format ({error}); remove the "
            "archives and the folder, and they are downloaded again"
        ) from error


# Sizes and checksums: tensorflow/datasets, url_checksums/stanford_dogs.txt (commit 24211da).
STANFORD_DOGS = ArchivedDataset(
    name="dogs",
    title="Stanford Dogs",
    page=f"http://{_BASE}/",
    terms="images of ImageNet, whose terms hold: for non-commercial research and education",
    archives=(
        ArchiveSpec(
            "images.tar",
            (f"http://{_BASE}/images.tar", f"https://{_BASE}/images.tar"),
            "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            793_579_520,
            "images",
        ),
        ArchiveSpec(
            "lists.tar",
            (f"http://{_BASE}/lists.tar", f"https://{_BASE}/lists.tar"),
            "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            481_280,
            "lists",
        ),
    ),
    images=20_580,
    classes=120,
    read=read_dogs,
)
