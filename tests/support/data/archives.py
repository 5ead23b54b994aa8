"""Archives made in memory: well-formed and not, and small ones in the layouts of publishers."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.io import savemat

from tests.support.data.images import photo


def tar_bytes(files: Mapping[str, bytes], *others: tarfile.TarInfo, pad: bool = True) -> bytes:
    """Make a tar file.

    Args:
        files: Name -> content.
        others: Members that are no files, or have a name that is taken.
        pad: Fill the file up to a full record, as tar does; the two blocks of zeros at its end
            are there in any case.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    return file.getvalue() if pad else file.getvalue()[:end]


def zip_bytes(files: Mapping[str, bytes], mode: int = 0o100644) -> bytes:
    """Make a zip file whose members all have a Unix mode, which says what they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: ZipInfo cleans it
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return file.getvalue()


def jpeg(seed: int, side: int = 24) -> bytes:
    file = io.BytesIO()
    photo(side, side, seed).save(file, "JPEG")
    return file.getvalue()


def mat(names: Sequence[str]) -> bytes:
    """Make a list of Stanford Dogs: a column of cells, each a string."""
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    labels = np.ones((len(names), 1))
    file = io.BytesIO()
    savemat(file, {"file_list": cells, "annotation_list": cells, "labels": labels})
    return file.getvalue()


def dogs_archives(
    breeds: int = 3, train: int = 3, test: int = 2, side: int = 24
) -> dict[str, bytes]:
    """Make images.tar and lists.tar as Stanford publishes them, of fewer and smaller images."""
    images: dict[str, bytes] = {}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for breed in range(breeds):
        synset = f"n{2085620 + 7 * breed:08d}"
        folder = f"{synset}-{'Chihuahua' if not breed else f'Breed_{breed:03d}'}"
        for number in range(train + test):
            key = f"{folder}/{synset}_{number}.jpg"
            images[f"Images/{key}"] = jpeg(1000 * breed + number, side)
            lists["train" if number < train else "test"].append(key)
    lists["file"] = [*lists["train"], *lists["test"]]
    return {
        "images.tar": tar_bytes(images),
        "lists.tar": tar_bytes({f"{one}_list.mat": mat(names) for one, names in lists.items()}),
    }


def caltech101_archives(counts: Mapping[str, int]) -> dict[str, bytes]:
    """Make caltech-101.zip as CaltechDATA publishes it, with its remains."""
    files = {"101_ObjectCategories/BACKGROUND_Google/tmp": b"remains"}
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            path = f"101_ObjectCategories/{name}/image_{index + 1:04d}.jpg"
            files[path] = jpeg(1000 * number + index)
    inner = {
        "caltech-101/101_ObjectCategories.tar.gz": gzip.compress(tar_bytes(files)),
        "caltech-101/Annotations.tar": tar_bytes({"Annotations/a.mat": b"mat"}),
        "caltech-101/show_annotation.m": b"% MATLAB",
        "__MACOSX/caltech-101/._Annotations.tar": b"remains",
    }
    return {"caltech-101.zip": zip_bytes(inner)}


def caltech256_archives(counts: Mapping[str, int]) -> dict[str, bytes]:
    """Make 256_ObjectCategories.tar as CaltechDATA publishes it, with its remains."""
    files = {
        "256_ObjectCategories/198.spider/RENAME2": b"#!/bin/sh",
        "256_ObjectCategories/056.dog/greg/vision309/readme": b"remains",
        "256_ObjectCategories/056.dog/greg/vision309/1.jpg": jpeg(1),
    }
    for name, count in counts.items():
        number = name.partition(".")[0]
        for index in range(count):
            path = f"256_ObjectCategories/{name}/{number}_{index + 1:04d}.jpg"
            files[path] = jpeg(1000 * int(number) + index)
    return {"256_ObjectCategories.tar": tar_bytes(files)}


def gz(files: Mapping[str, bytes]) -> bytes:
    """Make a tar file that is compressed with gzip."""
    return gzip.compress(tar_bytes(files), compresslevel=1)


def aircraft_archives(*without: str) -> dict[str, bytes]:
    """Make the archive of FGVC-Aircraft, of an image for each part and class."""
    names = ("Boeing 707", "A330")
    files = {"data/variants.txt": "\n".join(names).encode()}
    number = 0
    for part in ("train", "val", "test"):
        lines = []
        for name in names:
            number += 1
            lines.append(f"{number:07d} {name}")
            files[f"data/images/{number:07d}.jpg"] = jpeg(number)
        files[f"data/images_variant_{part}.txt"] = "\n".join(lines).encode()
    inside = {
        f"fgvc-aircraft-2013b/{name}": content
        for name, content in files.items()
        if name not in without
    }
    return {"fgvc-aircraft-2013b.tar.gz": gz(inside)}


def pets_archives() -> dict[str, bytes]:
    """Make the archives of Oxford-IIIT Pet, of an image for each part and class."""
    images, lists = {}, {"annotations/README": b"...", "annotations/trimaps/a.png": b"a mask"}
    for part in ("trainval", "test"):
        lines = []
        for label, breed in enumerate(("Abyssinian", "yorkshire_terrier"), 1):
            name = f"{breed}_{len(images)}"
            images[f"images/{name}.jpg"] = jpeg(len(images))
            lines.append(f"{name} {label} 1 1")
        lists[f"annotations/{part}.txt"] = "\n".join(lines).encode()
    return {"images.tar.gz": gz(images), "annotations.tar.gz": gz(lists)}


def dtd_archives() -> dict[str, bytes]:
    """Make the archive of DTD, of an image for each part and class; partition 2 is another."""
    files = {"dtd/imdb/imdb.mat": b"mat"}
    for place, part in enumerate(("train", "val", "test")):
        keys = [f"{name}/{name}_000{place}.jpg" for name in ("banded", "zigzagged")]
        files |= {f"dtd/images/{key}": jpeg(place) for key in keys}
        files[f"dtd/labels/{part}1.txt"] = "".join(f"{key}\n" for key in keys).encode()
        files[f"dtd/labels/{part}2.txt"] = b"banded/banded_0000.jpg\n"
    return {"dtd-r1.0.1.tar.gz": gz(files)}


def flowers_archives() -> dict[str, bytes]:
    """Make the files of Oxford 102 Flowers, of an image for each part and of three classes."""
    ids = {"trnid": [[2, 5]], "valid": [[1, 4]], "tstid": [[3, 6]]}
    labels, setid = io.BytesIO(), io.BytesIO()
    savemat(labels, {"labels": np.array([[1, 1, 1, 77, 77, 77]], dtype=np.uint8)})
    savemat(setid, {name: np.array(some, dtype=np.uint16) for name, some in ids.items()})
    return {
        "102flowers.tgz": gz(
            {f"jpg/image_{number:05d}.jpg": jpeg(number) for number in range(1, 7)}
        ),
        "imagelabels.mat": labels.getvalue(),
        "setid.mat": setid.getvalue(),
    }


def sums_of(archives: Mapping[str, bytes]) -> str:
    """Write checksums as ``sha256sum`` does."""
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in archives.items()
    )
