"""Which images train and validate in which fold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.source import Source
from autotune.data.sources.registry import open_source
from autotune.data.splits.dataset import Dataset
from autotune.data.splits.folds import Fold, folds_fingerprint, make_folds, merge_for_folds
from autotune.data.splits.groups import find_groups
from autotune.data.splits.stratified import make_split
from autotune.data.views.study_data import StudyData
from autotune.errors import DatasetError
from tests.data.splits.test_groups import grouped
from tests.data.splits.test_stratified import listed
from tests.support.data.images import make_class_folders, make_split_folder

SPEC = ImageSpec(8, 12, "bicubic", 0.6, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def cut(source: Source, **data: object) -> tuple[Fold, ...]:
    config = DataConfig.model_validate({"folds": 3, **data})
    groups = find_groups(source, config.group)
    split = merge_for_folds(source, make_split(source, config, groups))
    return make_folds(source, split, config, groups)


def classes_of(source: Source, indices: np.ndarray) -> dict[int, int]:
    return dict(Counter(source.samples[index].label for index in indices))


def refusal(source: Source, **data: object) -> str:
    with pytest.raises(DatasetError) as caught:
        cut(source, **data)
    return str(caught.value)


@pytest.mark.parametrize("limit", [None, 4])
def test_every_image_outside_of_the_test_part_validates_once(limit: int | None) -> None:
    source = listed([40, 20, 9])
    folds = cut(source, train_per_class=limit)
    split = make_split(source, DataConfig(train_per_class=limit))
    judged = np.concatenate([fold.validation for fold in folds])
    assert sorted(judged) == sorted({*range(69)} - {*split.test})
    for fold in folds:
        assert not {*fold.train} & {*fold.validation, *split.test}
        assert sorted(fold.train) == list(fold.train)
        assert sorted(fold.validation) == list(fold.validation)
        counts = classes_of(source, fold.validation)
        assert counts[0] in (10, 11) and counts[1] in (5, 6) and counts[2] in (2, 3)
        if limit is None:
            assert len(fold.train) + len(fold.validation) == len(judged)
        else:
            assert classes_of(source, fold.train) == {0: 4, 1: 4, 2: 4}


def test_folds_follow_the_seed() -> None:
    source = listed([30, 30])
    result = [folds_fingerprint(cut(source, seed=seed)) for seed in (0, 0, 1)]
    assert result[0] == result[1] != result[2]


def test_the_images_of_a_group_stay_together() -> None:
    source = grouped([[3, 3, 4, 2, 5, 3], [1, 2, 3, 4, 5, 6]])
    for one in cut(source):
        inside, outside = (
            {source.samples[index].group for index in part} for part in (one.validation, one.train)
        )
        assert inside and not inside & outside
        assert set(classes_of(source, one.validation)) == {0, 1}


def test_too_few_images_are_refused() -> None:
    assert refusal(listed([40, 6]), folds=8) == (
        "every class needs at least 8 images outside of the test split for data.folds=8, but 'c1' "
        "has 5; lower data.folds, add images or remove the class"
    )
    assert refusal(listed([40, 12]), folds=2, validation=0.1, train_per_class=6) == (
        "every class needs at least 12 images outside of the test split for data.folds=2 with "
        "data.train_per_class=6, but 'c1' has 10; lower data.folds or data.train_per_class, add "
        "images or remove the class"
    )
    assert cut(listed([12, 10]), folds=8)


def test_too_few_groups_are_refused() -> None:
    assert "'c1' has 0 that validate; lower data.folds" in refusal(
        grouped([[2] * 10, [10, 10, 10]]), folds=4
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "f762ba50797f86217b76eab4e6de48f8"),
        (
            {"test": 0.5, "validation": 0.3, "train_per_class": 20},
            "018a79e038e5705810f8c8a7e665c85d",
        ),
    ],
)
def test_without_folds_a_fingerprint_is_what_it_was(data: dict[str, float], expected: str) -> None:
    """Studies that were made before there were folds go on."""

    def fingerprint(**more: object) -> str:
        return Dataset.open("digits", DataConfig.model_validate({**data, **more})).fingerprint

    assert fingerprint() == expected
    folded = {fingerprint(folds=folds) for folds in (2, 3)}
    assert len(folded) == 2 and expected not in folded


def test_a_task_with_folds(tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", {"a": 10, "b": 15})
    (photos / "b" / "003.png").write_bytes(b"")
    data = DataConfig(folds=3, max_unreadable_share=0.2)
    task = StudyData.open(str(photos), data, SPEC, tmp_path / "images")
    source = open_source(str(photos))
    result = cut(source)
    lost = next(i for i, sample in enumerate(source.samples) if sample.key == "b/003.png")
    assert lost in np.concatenate([one.validation for one in result])  # else another image will do
    for ours, theirs in zip(task.folds, result, strict=True):
        for name in ("train", "validation"):
            rows = task.train_rows[getattr(ours, name)]
            expected = [index for index in getattr(theirs, name) if index != lost]
            assert task.store.indices[rows].tolist() == expected
    assert np.array_equal(task.validation_rows, task.train_rows)
    values = task.info.to_json()
    assert (values["train"], values["validation"], values["test"]) == (19, 19, 5)
    assert values["folds"] == [len(fold.train) for fold in task.folds]
    assert len(task.train_validation_views(AugmentConfig(), 2, seed=0)) == 19


def test_a_given_validation_part_joins_the_folds(tmp_path: Path) -> None:
    parts = {"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}
    photos = make_split_folder(tmp_path / "photos", parts)
    info = StudyData.open(str(photos), DataConfig(folds=2), SPEC, tmp_path / "images").info
    assert (info.train, info.test, len(info.folds)) == (10, 2, 2)


def test_a_class_that_a_fold_loses_is_refused(tmp_path: Path) -> None:
    parts = {"train": {"a": 4, "b": 2}, "test": {"a": 1, "b": 1}}
    photos = make_split_folder(tmp_path / "photos", parts)
    (photos / "train" / "b" / "000.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"images of fold [12], but none is left of 'b'"):
        data = DataConfig(folds=2, max_unreadable_share=0.5)
        StudyData.open(str(photos), data, SPEC, tmp_path / "images")


def test_folds_are_those_of_the_manifest(tmp_path: Path) -> None:
    """Images that came later change no fold, and groups stay whole without looking for them."""
    photos = make_class_folders(tmp_path / "photos", {"a": 40, "b": 60})
    data = DataConfig(folds=3, group=r"/(\d\d)\d")
    made = Dataset.open(str(photos), data)
    more = make_class_folders(tmp_path / "more", {"a": 8})
    for file in more.rglob("*.png"):
        file.rename(photos / "a" / f"1{file.name}")
    later = Dataset.open(str(photos), data, made.manifest)
    assert later.num_added == 8
    assert later.fingerprint == made.fingerprint
    for fold, other in zip(made.folds, later.folds, strict=True):
        assert np.array_equal(fold.train, other.train)
        assert np.array_equal(fold.validation, other.validation)
    assert later.groups is not None and made.groups is not None
    assert len(set(later.groups.tolist())) == len(set(made.groups.tolist()))


@pytest.mark.parametrize("limit", [None, 4])
def test_images_outside_of_the_test_split_are_divided_anew(limit: int | None) -> None:
    source = listed([40, 20, 12])
    config = DataConfig(train_per_class=limit)
    first = Dataset(source, make_split(source, config))
    others = [first.divide_anew(config, seed) for seed in (1, 1, 2)]
    assert others[0].split == others[1].split != others[2].split
    for other in others:
        split = other.split
        assert split.test == first.split.test
        assert not {*split.train} & {*split.validation}
        assert not {*split.train, *split.validation} & {*split.test}
        pool = len(source.samples) - len(split.test)
        if limit is None:
            assert len(split.train) + len(split.validation) == pool
        else:
            assert classes_of(source, np.array(split.train)) == dict.fromkeys(range(3), limit)
        by_class = classes_of(source, np.array(split.validation))
        before = classes_of(source, np.array(first.split.validation))
        assert all(abs(by_class[label] - before[label]) <= 2 for label in range(3))
    assert len({other.split.validation for other in others}) == 2


def test_groups_stay_together_when_images_are_divided_anew() -> None:
    source = grouped([[3] * 12, [3] * 12])
    groups = find_groups(source, None)
    config = DataConfig()
    first = Dataset(source, make_split(source, config, groups), groups)
    for seed in range(3):
        split = first.divide_anew(config, seed).split
        names = [
            {source.samples[i].group for i in side} for side in (split.train, split.validation)
        ]
        assert not names[0] & names[1]
