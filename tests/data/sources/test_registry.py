from __future__ import annotations

import hashlib
import os
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from autotune.data.progress import no_progress
from autotune.data.source import Source
from autotune.data.sources.caltech import CALTECH101, CALTECH256
from autotune.data.sources.registry import (
    dataset_names,
    downloadable,
    fetch_source,
    needs_download,
    open_source,
)
from autotune.data.sources.stanford_dogs import STANFORD_DOGS as DOGS
from autotune.data.sources.stanford_dogs import imagenet_overlap_warning
from autotune.data.sources.torchvision_datasets import TORCHVISION_DATASETS, TorchvisionDataset
from autotune.errors import DatasetError
from tests.support.archives import (
    caltech101_archives,
    caltech256_archives,
    dogs_archives,
    jpeg,
    sums_of,
)
from tests.support.serving import Publisher, running_publisher

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    with running_publisher() as running:
        monkeypatch.setenv("AUTOTUNE_MIRROR", running.url)
        yield running


def fetched(name: str, folder: str, archives: dict[str, bytes], mirror: Publisher) -> Source:
    """Fetch a small one from a mirror, and open it."""
    mirror.files.update({f"/{folder}/{file}": content for file, content in archives.items()})
    dataset = downloadable(name)
    assert dataset is not None
    dataset.paths.root.mkdir(parents=True)
    dataset.paths.replaced_sums.write_text(sums_of(archives))
    assert needs_download(name)
    with pytest.raises(DatasetError, match="is not downloaded yet; 'autotune data fetch "):
        open_source(name)
    fetch_source(name, no_progress)
    assert not needs_download(name)
    return open_source(name)


def test_what_is_known() -> None:
    assert {"digits", "dogs", "caltech101", "caltech256", "cifar10"} <= set(dataset_names())
    assert not needs_download("digits")
    assert not needs_download("photos")
    assert [dataset.name for dataset in TORCHVISION_DATASETS] == [
        *("flowers102", "pets", "food101", "dtd", "eurosat"),
        *("cifar10", "cifar100", "aircraft", "stl10"),
    ]


def test_what_is_published_is_complete() -> None:
    """A checksum with a slip would refuse what it should take."""
    for one in (DOGS, CALTECH101, CALTECH256):
        for archive in one.archives:
            assert archive.sha256 is not None
            assert len(bytes.fromhex(archive.sha256)) == 32
            assert all(archive.file in url for url in archive.urls)
            assert len(archive.urls) > 1


def test_dogs(mirror: Publisher) -> None:
    source = fetched("dogs", "dogs", dogs_archives(breeds=4, train=3, test=2), mirror)
    assert source.name == "dogs"
    assert source.classes == ("Breed 001", "Breed 002", "Breed 003", "Chihuahua")
    assert Counter(sample.split for sample in source.samples) == {"train": 12, "test": 8}
    assert source.read(source.samples[0]).mode == "RGB"
    assert source.fingerprint == open_source("dogs").fingerprint


@pytest.mark.parametrize(
    ("backbone", "leaks"),
    [
        ("resnet50.a1_in1k", True),
        ("convnext_tiny.fb_in22k", True),
        ("convnext_nano.in12k_ft_in1k", True),
        ("vit_small_patch14_dinov2.lvd142m", False),
        ("vit_base_patch32_clip_224.laion2b", False),
        ("resnet18", False),
    ],
)
def test_dogs_of_imagenet_leak_through_labels(backbone: str, leaks: bool) -> None:
    assert bool(imagenet_overlap_warning(backbone)) is leaks


def test_caltech101_leaves_the_background_out(mirror: Publisher) -> None:
    counts = {"BACKGROUND_Google": 3, "accordion": 4, "Faces_easy": 2}
    source = fetched("caltech101", "caltech101", caltech101_archives(counts), mirror)
    assert source.classes == ("Faces_easy", "accordion")
    assert Counter(sample.label for sample in source.samples) == {0: 2, 1: 4}
    assert {sample.split for sample in source.samples} == {None}
    assert source.samples[0].key == "Faces_easy/image_0001.jpg"
    whole = open_source("caltech101-background")
    assert whole.classes == ("BACKGROUND_Google", "Faces_easy", "accordion")
    assert len(whole.samples) == 9
    assert (source.name, whole.name) == ("caltech101", "caltech101-background")


def test_caltech256_leaves_the_clutter_out(mirror: Publisher) -> None:
    counts = {"001.ak47": 3, "056.dog": 2, "198.spider": 2, "257.clutter": 4}
    source = fetched("caltech256", "caltech256", caltech256_archives(counts), mirror)
    assert source.classes == ("ak47", "dog", "spider")
    assert Counter(sample.label for sample in source.samples) == {0: 3, 1: 2, 2: 2}
    assert open_source("caltech256-clutter").classes == ("ak47", "clutter", "dog", "spider")


def test_a_zip_without_the_archive_that_is_meant(mirror: Publisher) -> None:
    archives = {"caltech-101.zip": caltech256_archives({})["256_ObjectCategories.tar"]}
    with pytest.raises(DatasetError, match=r"101_ObjectCategories\.tar\.gz could not be unpacked"):
        fetched("caltech101", "caltech101", archives, mirror)


def put(name: str, home: Path, files: dict[str, bytes]) -> None:
    """Put archives of a loader into its folder by hand."""
    (home / name).mkdir(parents=True)
    for file, content in files.items():
        (home / name / file).write_bytes(content)


def small(name: str, images: int) -> TorchvisionDataset:
    """Return a data set of a loader as if it were published with fewer images."""
    (dataset,) = (entry for entry in TORCHVISION_DATASETS if entry.name == name)
    return replace(dataset, images=images)


def gz(files: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return file.getvalue()


def aircraft(*without: str) -> dict[str, bytes]:
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


class TestLoaded:
    """Loaders of torchvision, with small archives in their layouts that were put there by hand."""

    def test_lists_of_three_parts(self, home: Path) -> None:
        put("aircraft", home, aircraft())
        dataset = small("aircraft", 6)
        dataset.fetch()
        source = dataset.open()
        assert source.classes == ("A330", "Boeing 707")
        parts = Counter((sample.split, source.classes[sample.label]) for sample in source.samples)
        assert parts == {
            (part, name): 1 for part in ("train", "validation", "test") for name in source.classes
        }
        assert source.read(source.samples[0]).size == (24, 24)
        assert source.samples[0].key == "fgvc-aircraft-2013b/data/images/0000001.jpg"
        assert dataset.verify() == []
        assert not list((home / "aircraft/unpacked").rglob("*.tar.gz"))
        (home / "aircraft/unpacked" / source.samples[0].key).write_bytes(b"x")
        assert len(dataset.verify()) == 1

    def test_pets_whose_loader_opens_its_images_itself(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, lists = {}, {}
        for part in ("trainval", "test"):
            lines = []
            for label, breed in enumerate(("Abyssinian", "yorkshire_terrier"), 1):
                name = f"{breed}_{len(images)}"
                images[f"images/{name}.jpg"] = jpeg(len(images))
                lines.append(f"{name} {label} 1 1")
            lists[f"annotations/{part}.txt"] = "\n".join(lines).encode()
        files = {"images.tar.gz": gz(images), "annotations.tar.gz": gz(lists)}
        put("pets", home, files)
        dataset = small("pets", 4)
        from torchvision.datasets import OxfordIIITPet

        resources = tuple(
            (url, hashlib.md5(files[url.rsplit("/", 1)[1]]).hexdigest())
            for url, _ in OxfordIIITPet._RESOURCES
        )
        monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
        dataset.fetch()
        source = dataset.open()
        assert source.classes == ("Abyssinian", "Yorkshire Terrier")
        assert Counter(sample.split for sample in source.samples) == {"train": 2, "test": 2}

    def test_images_in_memory(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import CIFAR10

        random = np.random.default_rng(0)
        names = ["truck", "cat", "dog"]
        inside: dict[str, bytes] = {}

        def batch(name: str, count: int) -> list[str]:
            data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = [index % 3 for index in range(count)]
            inside[name] = pickle.dumps({"data": data, "labels": labels})
            return [name, hashlib.md5(inside[name]).hexdigest()]

        monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 6)])
        monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 3)])
        inside["batches.meta"] = pickle.dumps({"label_names": names})
        meta = {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": hashlib.md5(inside["batches.meta"]).hexdigest(),
        }
        monkeypatch.setattr(CIFAR10, "meta", meta)
        content = gz({f"cifar-10-batches-py/{name}": one for name, one in inside.items()})
        with running_publisher() as publisher:
            publisher.files["/cifar-10-python.tar.gz"] = content
            monkeypatch.setattr(CIFAR10, "url", f"{publisher.url}/cifar-10-python.tar.gz")
            monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
            dataset = small("cifar10", 9)
            dataset.fetch()
        source = dataset.open()
        assert source.classes == ("cat", "dog", "truck")
        assert Counter(sample.split for sample in source.samples) == {"train": 6, "test": 3}
        first = next(sample for sample in source.samples if sample.key == "train/000000")
        assert source.classes[first.label] == "truck"
        expected = pickle.loads(inside["data_batch_1"])["data"][0].reshape(3, 32, 32)
        assert np.array_equal(np.asarray(source.read(first)), expected.transpose(1, 2, 0))
        assert source.fingerprint == dataset.open().fingerprint
        assert len(source.fingerprint) == 32

    def test_class_folders(self) -> None:
        dataset = small("eurosat", 4)
        folder = dataset.paths.staging / "eurosat/2750"
        for number in range(4):
            path = folder / ("River" if number % 2 else "Forest") / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
        os.rename(dataset.paths.staging, dataset.paths.final)
        dataset.paths.sums.touch()
        source = dataset.open()
        assert source.classes == ("Forest", "River")
        assert {sample.split for sample in source.samples} == {None}

    def test_an_archive_that_is_damaged(self, home: Path) -> None:
        put("aircraft", home, {"fgvc-aircraft-2013b.tar.gz": gz({"a": b"x" * 9999})[:50]})
        with pytest.raises(DatasetError) as refusal:
            small("aircraft", 6).fetch()
        message = str(refusal.value)
        assert message.startswith("torchvision cannot get FGVC-Aircraft (variants) (")
        assert f"by hand and put them into {home / 'aircraft'}" in message
        assert "\n" not in message
        assert not (home / "aircraft/unpacked").exists()
        assert not (home / "aircraft/.unpacked.part").exists()

    @pytest.mark.parametrize(
        ("images", "without", "said"),
        [
            (10000, (), "has 10000 images, but torchvision's loader finds 6; get its archives"),
            (6, ("data/images/0000002.jpg",), "0000002.jpg, but it is not there"),
        ],
    )
    def test_images_that_are_missing(
        self, images: int, without: tuple[str, ...], said: str, home: Path
    ) -> None:
        put("aircraft", home, aircraft(*without))
        dataset = small("aircraft", images)
        with pytest.raises(DatasetError, match=re.escape(said)):
            dataset.fetch()
        assert not dataset.is_downloaded
        assert not (home / "aircraft/.unpacked.part").exists()
