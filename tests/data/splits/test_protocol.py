from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from autotune.config.schema import DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.sources.registry import open_source
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.protocol import apply_protocol
from autotune.data.views.study_data import StudyData
from autotune.errors import DatasetError
from tests.support.data.images import make_class_folders, make_split_folder

COUNTS = {"ant": 40, "bee": 12, "cat": 11}


@pytest.fixture
def photos(tmp_path: Path) -> str:
    return str(make_class_folders(tmp_path / "photos", COUNTS))


def test_so_many_of_each_class_train_and_validate_and_the_rest_tests(photos: str) -> None:
    data = DataConfig(protocol="10-per-class", validation=0.2)
    dataset = Dataset.open(photos, data)
    source, split = dataset.source, dataset.split

    def counts(rows: tuple[int, ...]) -> Counter[str]:
        return Counter(source.classes[source.samples[row].label] for row in rows)

    assert counts(split.train) == {"ant": 8, "bee": 8, "cat": 8}
    assert counts(split.validation) == {"ant": 2, "bee": 2, "cat": 2}
    assert counts(split.test) == {"ant": 30, "bee": 2, "cat": 1}
    assert not {*split.train} & {*split.test}


def test_folds_are_cut_from_what_does_not_test(photos: str, tmp_path: Path) -> None:
    whole = DataConfig(protocol="10-per-class")
    data = DataConfig(protocol="10-per-class", folds=5)
    spec = ImageSpec(8, 8, "bicubic", 1.0, "center", (0.5,) * 3, (0.5,) * 3)
    without, task = (
        StudyData.open(photos, config, spec, tmp_path / "cache") for config in (whole, data)
    )
    assert (task.info.train, task.info.test) == (30, 33)
    assert task.info.folds == (24,) * 5
    assert without.info.test == 33
    assert task.store.key == without.store.key  # the same images
    assert task.info.fingerprint == Dataset.open(photos, data).fingerprint
    with pytest.raises(DatasetError, match="needs at least 20 images outside of the test split"):
        Dataset.open(photos, DataConfig(protocol="10-per-class", folds=20))


def test_the_seed_draws(photos: str) -> None:
    source = open_source(photos)
    first, second, other = (apply_protocol(source, "10-per-class", seed) for seed in (0, 0, 1))
    assert first.samples == second.samples != other.samples
    assert first.fingerprint == source.fingerprint
    assert first.read(first.samples[0]).size == (20, 16)


def test_a_class_with_too_few(photos: str) -> None:
    with pytest.raises(
        DatasetError, match="needs at least 12 images of each class, but 'cat' has fewer; lower"
    ):
        Dataset.open(photos, DataConfig(protocol="11-per-class"))


def test_images_that_have_parts(tmp_path: Path) -> None:
    root = make_split_folder(tmp_path / "s", {"train": {"a": 4, "b": 4}, "test": {"a": 2, "b": 2}})
    with pytest.raises(DatasetError, match="has the splits test, train; leave data"):
        Dataset.open(str(root), DataConfig(protocol="3-per-class"))


def test_images_in_groups(photos: str, tmp_path: Path) -> None:
    names = sorted(Path(photos).rglob("*.png"))
    rows = [f"{path},{path.parent.name},{path.stem}" for path in names]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,group", *rows]))
    for dataset, expression in ((str(table), None), (photos, "(.)/")):
        with pytest.raises(DatasetError, match=r"in groups that stay together .*; leave data"):
            Dataset.open(dataset, DataConfig(protocol="10-per-class", group=expression))
