from __future__ import annotations

import hashlib
import inspect
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.progress import no_progress
from autotune.data.source import Source
from autotune.data.sources.published.caltech import CALTECH101, CALTECH256
from autotune.data.sources.published.stanford_dogs import STANFORD_DOGS as DOGS
from autotune.data.sources.published.stanford_dogs import imagenet_overlap_warning
from autotune.data.sources.published.torchvision_datasets import (
    OXFORD_DATASETS,
    TORCHVISION_DATASETS,
    TorchvisionDataset,
    TorchvisionReader,
)
from autotune.data.sources.registry import (
    dataset_names,
    downloadable,
    fetch_source,
    needs_download,
    open_source,
)
from autotune.errors import DatasetError
from tests.support.commands.serving import Publisher, running_publisher
from tests.support.data.archives import (
    aircraft_archives,
    caltech101_archives,
    caltech256_archives,
    dogs_archives,
    dtd_archives,
    flowers_archives,
    gz,
    jpeg,
    pets_archives,
    sums_of,
)

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
        *("food101", "eurosat", "cifar10", "cifar100", "stl10"),
    ]
    assert {"flowers102", "pets", "dtd", "aircraft"} <= set(dataset_names())


def test_what_is_published_is_complete() -> None:
    """A checksum with a slip would refuse what it should take."""
    for dataset in (DOGS, CALTECH101, CALTECH256, *OXFORD_DATASETS):
        for archive in dataset.archives:
            assert archive.checksum is not None
            algorithm, digest = archive.checksum
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
            assert all(archive.file in url for url in archive.urls)
            assert len(archive.urls) > (dataset not in OXFORD_DATASETS)


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


PARTS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("name", "archives", "classes", "parts", "key"),
    [
        (
            *("aircraft", aircraft_archives, ("A330", "Boeing 707"), PARTS),
            "fgvc-aircraft-2013b/data/images/0000001.jpg",
        ),
        (
            *("pets", pets_archives, ("Abyssinian", "Yorkshire Terrier"), ("train", "test")),
            "oxford-iiit-pet/images/Abyssinian_0.jpg",
        ),
        (
            *("dtd", dtd_archives, ("banded", "zigzagged"), PARTS),
            "dtd/dtd/images/banded/banded_0000.jpg",
        ),
        (
            *("flowers102", flowers_archives, ("passion flower", "pink primrose"), PARTS),
            "flowers-102/jpg/image_00001.jpg",
        ),
    ],
)
def test_those_of_oxford(
    name: str,
    archives: Callable[[], dict[str, bytes]],
    classes: tuple[str, ...],
    parts: tuple[str, ...],
    key: str,
    mirror: Publisher,
) -> None:
    """Their keys are stored in manifests: those that torchvision's own download has given."""
    source = fetched(name, name, archives(), mirror)
    assert {source.classes[sample.label] for sample in source.samples} == set(classes)
    counts = Counter((sample.split, source.classes[sample.label]) for sample in source.samples)
    assert counts == {(part, label): 1 for part in parts for label in classes}
    assert source.samples[0].key == key
    assert source.read(source.samples[0]).size == (24, 24)
    dataset = downloadable(name)
    assert dataset is not None
    assert dataset.verify() == []
    assert sorted(path.name for path in dataset.paths.root.iterdir() if path.is_file()) == sorted(
        [*archives(), "SHA256SUMS", ".lock"]
    )
    (dataset.paths.final / key).unlink()
    with pytest.raises(DatasetError, match=f"'autotune data fetch {name}' makes it again"):
        open_source(name)


@pytest.mark.parametrize("dataset", OXFORD_DATASETS, ids=lambda dataset: dataset.name)
def test_what_torchvision_knows_of_those_of_oxford(dataset: ArchivedDataset) -> None:
    reader = dataset.read
    assert isinstance(reader, TorchvisionReader)
    loader = getattr(torchvision.datasets, reader.loader)
    source = inspect.getsource(loader)
    for archive in dataset.archives:
        (url,) = archive.urls
        prefix = getattr(loader, "_download_url_prefix", "")
        assert url in source or (url.startswith(prefix) and f'"{archive.file}"' in source)
    assert set(reader.splits) in ({"train", "validation", "test"}, {"train", "test"})


def small(name: str, images: int) -> TorchvisionDataset:
    """Return a data set of a loader as if it were published with fewer images."""
    (dataset,) = (entry for entry in TORCHVISION_DATASETS if entry.name == name)
    return replace(dataset, images=images)


class TestLoaded:
    """Loaders of torchvision, with small archives in their layouts."""

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
        (home / "eurosat").mkdir(parents=True)
        (home / "eurosat/EuroSAT.zip").write_bytes(b"no archive")
        with pytest.raises(DatasetError) as refusal:
            small("eurosat", 6).fetch()
        message = str(refusal.value)
        assert message.startswith("torchvision cannot get EuroSAT (RGB) (")
        assert f"by hand and put them into {home / 'eurosat'}" in message
        assert "\n" not in message
        assert not (home / "eurosat/unpacked").exists()
        assert not (home / "eurosat/.unpacked.part").exists()


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        ((), "has 10000 images of 100 classes, but the archives in .* have 6 of 2"),
        (("data/images/0000002.jpg",), r"0000002\.jpg, but it is not there"),
        (("data/images_variant_val.txt",), r"torchvision cannot read FGVC-.* \(FileNotFound"),
        (("data/variants.txt",), r"remove the folder and the archives beside it"),
    ],
)
def test_published_archives_without_what_a_loader_needs(
    without: tuple[str, ...], reason: str, home: Path
) -> None:
    dataset = downloadable("aircraft")
    assert isinstance(dataset, ArchivedDataset)
    archives = aircraft_archives(*without)
    (home / "aircraft").mkdir(parents=True)
    for file, content in archives.items():
        (home / "aircraft" / file).write_bytes(content)
    published = [
        replace(spec, md5=hashlib.md5(archives[spec.file]).hexdigest(), size=None)
        for spec in dataset.archives
    ]
    with pytest.raises(DatasetError, match=reason):
        replace(dataset, archives=tuple(published)).fetch()
    assert not dataset.is_downloaded
    assert not (home / "aircraft/.unpacked.part").exists()
    wrong = [replace(spec, md5="0" * 32, size=None) for spec in dataset.archives]
    with pytest.raises(
        DatasetError, match=r"is not the published file \(MD5 [0-9a-f]{32}, published 0"
    ):
        replace(dataset, archives=tuple(wrong)).fetch()
