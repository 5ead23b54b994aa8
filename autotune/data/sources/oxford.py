"""Data sets of the Visual Geometry Group at Oxford, with official splits.

Nilsback and Zisserman 2008 (flowers), Parkhi et al. 2012 (pets), Cimpoi et al. 2014 (textures; its
first of ten partitions), Maji et al. 2013 (aircraft). torchvision reads them; they are downloaded
here, so that a download is resumed, mirrors are asked and archives can be put there by hand.
"""

from __future__ import annotations

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.spec import ArchiveSpec
from autotune.data.sources.torchvision_datasets import Splits, TorchvisionReader

_PAGES = "https://www.robots.ox.ac.uk/~vgg/data"
_SPLITS: Splits = {
    "train": {"split": "train"},
    "validation": {"split": "val"},
    "test": {"split": "test"},
}
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
        read=TorchvisionReader("flowers102", "Oxford 102 Flowers", "Flowers102", _SPLITS),
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
        read=TorchvisionReader("dtd", "Describable Textures", "DTD", _SPLITS),
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
        read=TorchvisionReader("aircraft", "FGVC-Aircraft (variants)", "FGVCAircraft", _SPLITS),
    ),
)
