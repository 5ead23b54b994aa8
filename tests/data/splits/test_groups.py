from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.config.schema import DataConfig
from autotune.data.source import Sample
from autotune.data.splits.groups import find_groups
from autotune.data.splits.stratified import SplitIndices, make_split
from autotune.errors import DatasetError
from tests.data.splits.test_stratified import Listed, check_disjoint, labels, listed


def grouped(groups: list[list[int]]) -> Listed:
    """Make a source: for each class, the sizes of its groups."""
    samples = [
        Sample(f"{label}/{number}/{index}", label, None, f"{label}-{number}")
        for label, sizes in enumerate(groups)
        for number, size in enumerate(sizes)
        for index in range(size)
    ]
    return Listed(tuple(samples), tuple(f"c{label}" for label in range(len(groups))))


def split_of(source: Listed, **data: object) -> SplitIndices:
    groups = find_groups(source, None)
    return make_split(source, DataConfig.model_validate(data), groups)


def parts_of_groups(source: Listed, split: SplitIndices) -> dict[str | None, set[str]]:
    result = defaultdict(set)
    for part in ("train", "validation", "test"):
        for index in getattr(split, part):
            result[source.samples[index].group].add(part)
    return result


def refusal(source: Listed, **data: object) -> str:
    with pytest.raises(DatasetError) as caught:
        split_of(source, **data)
    return str(caught.value)


def test_groups_of_one_split_as_images_do() -> None:
    source = listed([30, 50])
    alone = replace(
        source, samples=tuple(replace(sample, group=sample.key) for sample in source.samples)
    )
    assert find_groups(alone, None) is None
    assert split_of(alone) == make_split(source, DataConfig())


def test_a_group_is_in_one_part_and_the_shares_hold() -> None:
    source = grouped([[4] * 25, [10, 5, 5, 5, 5, 5, 5, 5, 5]])
    split = split_of(source)
    check_disjoint(split, 150)
    assert all(len(parts) == 1 for parts in parts_of_groups(source, split).values())
    assert labels(source, split.test) == {0: 20, 1: 10}
    assert labels(source, split.validation) == {0: 20, 1: 10}
    assert split == split_of(source)
    assert split != split_of(source, seed=1)


def test_single_images_fill_what_groups_leave() -> None:
    source = grouped([[30, 7, 7, *[1] * 56], [40, *[1] * 60]])
    split = split_of(source)
    assert labels(source, split.test) == labels(source, split.validation) == {0: 20, 1: 20}


def test_groups_of_several_classes_stay_together() -> None:
    random = np.random.default_rng(0)
    samples = tuple(
        Sample(f"{index}", int(random.integers(3)), None, f"p{random.integers(60)}")
        for index in range(900)
    )
    source = Listed(samples, ("a", "b", "c"))
    split = split_of(source)
    assert all(len(parts) == 1 for parts in parts_of_groups(source, split).values())
    for part in (split.validation, split.test):
        for label, count in labels(source, part).items():
            size = sum(sample.label == label for sample in samples)
            assert abs(count / size - 0.2) < 0.04


def test_an_expression_names_groups() -> None:
    source = Listed(
        (
            *(Sample(f"{c}/p{i // 2}_{i}.jpg", c, None) for c in (0, 1) for i in range(6)),
            Sample("1/odd.jpg", 1, None),
        ),
        ("a", "b"),
    )
    groups = find_groups(source, r"/(p\d+)_")
    assert groups is not None
    # The patient is the same in both classes; what does not match is alone.
    assert groups.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 3]
    assert find_groups(source, r"^(\d/p\d+)_1") is None
    assert find_groups(source, r"^(x)?\d") is None  # a group of the expression that is not there
    with pytest.raises(DatasetError) as caught:
        find_groups(source, "(patient)")
    assert str(caught.value) == (
        "data.group must match the keys of images, but '(patient)' matches none of the 13, the "
        "first of which is '0/p0_0.jpg'; change it or leave it out"
    )


def test_an_expression_where_every_image_has_a_group_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"each has one already, such as '0-0' of '0/0/0'; lea"):
        find_groups(grouped([[2, 2], [2, 2]]), r"^(\d)")


def test_pairs_join_groups() -> None:
    groups = find_groups(listed([4, 4]), None, np.array([[0, 1], [1, 6]]))
    assert groups is not None
    assert len({groups[0], groups[1], groups[6]}) == 1
    assert len(set(groups.tolist())) == 6


def test_too_few_groups_are_refused() -> None:
    assert refusal(grouped([[5, 5], [1] * 9])) == (
        "every class needs images in train, validation and test, and all images of a group stay "
        "in one split, but the 2 groups of 'c0' leave test without; add images of other groups, "
        "remove the class, or change data.group or data.duplicates"
    )
    assert refusal(grouped([[50, 25, 25], [1] * 99]), train_per_class=55).startswith(
        "every class needs 55 images to train on (data.train_per_class), and all images of a "
        "group stay in one split, but the groups of 'c0' leave 50; lower data.train_per_class, or"
    )


def test_given_parts_are_kept_and_the_rest_is_grouped() -> None:
    samples = tuple(
        Sample(f"{part}/{c}/{i}", c, part, f"{c}-{i // 3}")
        for part, count in (("test", 6), ("train", 30))
        for c in (0, 1)
        for i in range(count)
    )
    source = Listed(samples, ("a", "b"))
    split = split_of(source)
    assert labels(source, split.test) == {0: 6, 1: 6}
    assert labels(source, split.validation) == {0: 6, 1: 6}
    across = [parts for parts in parts_of_groups(source, split).values() if len(parts) > 1]
    assert across and all("test" in parts for parts in across)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(1, 12), min_size=3, max_size=30), min_size=2, max_size=4),
    validation=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_class_is_in_every_part_where_it_has_a_group_for_each(
    groups: list[list[int]], validation: float, test: float, seed: int
) -> None:
    source = grouped(groups)
    split = split_of(source, validation=validation, test=test, seed=seed)
    check_disjoint(split, len(source.samples))
    assert all(len(parts) == 1 for parts in parts_of_groups(source, split).values())
    assert len([*split.train, *split.validation, *split.test]) == len(source.samples)
    for part in (split.train, split.validation, split.test):
        assert set(labels(source, part)) == set(range(len(groups)))
    largest = Counter(sample.group for sample in source.samples).most_common(1)[0][1]
    for label, sizes in enumerate(groups):
        wanted = max(1, round(test * sum(sizes)))
        assert labels(source, split.test)[label] <= wanted + largest
