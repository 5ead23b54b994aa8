from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autotune.config.schema import DataConfig
from autotune.data.source import Sample, Source
from autotune.data.sources.registry import open_source
from autotune.data.splits.stratified import SplitIndices, make_split, split_fingerprint
from autotune.errors import DatasetError
from tests.support.data.images import make_split_folder


@dataclass(frozen=True)
class Listed:
    """A source that is only a list of samples."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    name: str = "listed"
    fingerprint: str = "0" * 32

    def read(self, sample: Sample) -> Image.Image:
        raise OSError(sample.key)


def listed(counts: list[int], part: str | None = None) -> Listed:
    samples = [
        Sample(f"{label}/{index}", label, part)
        for label, count in enumerate(counts)
        for index in range(count)
    ]
    return Listed(tuple(samples), tuple(f"c{label}" for label in range(len(counts))))


def labels(source: Source, indices: tuple[int, ...]) -> dict[int, int]:
    return dict(Counter(source.samples[index].label for index in indices))


def refusal(source: Source, config: DataConfig) -> str:
    with pytest.raises(DatasetError) as caught:
        make_split(source, config)
    return str(caught.value)


def check_disjoint(split: SplitIndices, size: int) -> None:
    everything = [*split.train, *split.validation, *split.test]
    assert len(set(everything)) == len(everything)
    assert set(everything) <= set(range(size))
    for part in (split.train, split.validation, split.test):
        assert list(part) == sorted(part)


def test_every_class_gives_each_part_its_share() -> None:
    source = listed([100, 50, 10])
    split = make_split(source, DataConfig(validation=0.2, test=0.1))
    check_disjoint(split, 160)
    assert labels(source, split.validation) == {0: 20, 1: 10, 2: 2}
    assert labels(source, split.test) == {0: 10, 1: 5, 2: 1}
    assert labels(source, split.train) == {0: 70, 1: 35, 2: 7}


def test_digits_split_is_the_same_on_every_machine() -> None:
    split = make_split(open_source("digits"), DataConfig())
    assert [len(split.train), len(split.validation), len(split.test)] == [1079, 359, 359]
    assert split.train[:8] == (0, 1, 2, 5, 6, 7, 8, 9)
    assert split_fingerprint(split) == "0ffbff4d30131e18ada8a69d8540c335"


def test_the_seed_decides() -> None:
    source = listed([30, 30])
    one, two = (make_split(source, DataConfig(seed=seed)) for seed in (0, 1))
    assert one == make_split(source, DataConfig(seed=0))
    assert one != two
    assert split_fingerprint(one) != split_fingerprint(two)


def test_train_per_class_leaves_the_surplus_unused() -> None:
    source = listed([40, 60])
    split = make_split(source, DataConfig(train_per_class=5))
    assert labels(source, split.train) == {0: 5, 1: 5}
    assert labels(source, split.validation) == {0: 8, 1: 12}
    assert set(split.train) < set(make_split(source, DataConfig()).train) | set(split.train)
    check_disjoint(split, 100)


def test_a_class_with_too_few_images_is_refused() -> None:
    assert refusal(listed([2, 9, 1]), DataConfig()) == (
        "every class needs at least 3 images for train, validation and test, but 'c0' has 2, "
        "'c2' has 1; add images or remove the class"
    )


def test_too_few_images_for_train_per_class_are_refused() -> None:
    message = refusal(listed([33, 100]), DataConfig(train_per_class=20))
    assert "needs at least 34 images for train, validation and test with data.tr" in message
    assert make_split(listed([34, 100]), DataConfig(train_per_class=20))


def test_shares_that_leave_nothing_are_refused() -> None:
    assert refusal(listed([9, 9]), DataConfig(validation=0.6, test=0.4)) == (
        "the shares of the splits may be 0.999 together, to leave images to train on, but "
        "data.validation=0.6 + data.test=0.4 is more; lower them"
    )


class TestSplitFolders:
    def test_all_parts_are_taken_as_they_are(self, tmp_path: Path) -> None:
        counts = [{"a": 3, "b": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 1}]
        make_split_folder(tmp_path, dict(zip(("train", "val", "test"), counts, strict=True)))
        source = open_source(str(tmp_path))
        split = make_split(source, DataConfig(validation=0.9, test=0.9))
        for part, indices in (
            ("train", split.train),
            ("validation", split.validation),
            ("test", split.test),
        ):
            assert {source.samples[index].split for index in indices} == {part}
        assert [len(split.train), len(split.validation), len(split.test)] == [4, 3, 2]

    @pytest.mark.parametrize(("given", "missing"), [("val", "test"), ("test", "validation")])
    def test_a_missing_part_is_carved_from_train(
        self, given: str, missing: str, tmp_path: Path
    ) -> None:
        make_split_folder(tmp_path, {"train": {"a": 10, "b": 5}, given: {"a": 2, "b": 2}})
        source = open_source(str(tmp_path))
        split = make_split(source, DataConfig(**{"validation": 0.9, "test": 0.9, missing: 0.2}))
        carved = getattr(split, missing)
        assert (labels(source, carved), labels(source, split.train)) == (
            {0: 2, 1: 1},
            {0: 8, 1: 4},
        )
        assert {source.samples[index].split for index in carved} == {"train"}

    def test_too_few_images_are_refused(self, tmp_path: Path) -> None:
        make_split_folder(tmp_path, {"train": {"a": 4, "b": 1}, "test": {"a": 2, "b": 2}})
        message = refusal(open_source(str(tmp_path)), DataConfig())
        assert "needs at least 2 images for train and validation, but 'b' has 1" in message

    def test_train_per_class_holds_for_a_given_part(self, tmp_path: Path) -> None:
        counts = {"a": 3, "b": 2}
        make_split_folder(tmp_path, {"train": counts, "val": counts, "test": counts})
        source = open_source(str(tmp_path))
        split = make_split(source, DataConfig(train_per_class=2))
        assert labels(source, split.train) == {0: 2, 1: 2}
        assert refusal(source, DataConfig(train_per_class=3)) == (
            "every class needs at least 3 images for train with data.train_per_class=3, but 'b' "
            "has 2; add images or remove the class or lower data.train_per_class"
        )


shares = st.floats(0.01, 0.49)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    validation=shares,
    test=shares,
    seed=st.integers(0, 2**31 - 1),
    limit=st.none() | st.integers(1, 12),
)
def test_parts_are_disjoint_and_have_every_class(
    counts: list[int], validation: float, test: float, seed: int, limit: int | None
) -> None:
    source = listed(counts)
    config = DataConfig(validation=validation, test=test, seed=seed, train_per_class=limit)
    try:
        split = make_split(source, config)
    except DatasetError as error:
        needed = int(str(error).split("at least ")[1].split()[0])
        assert min(counts) < needed
        enough = listed([max(count, needed) for count in counts])
        split, source = make_split(enough, config), enough
    assert split == make_split(source, config)
    check_disjoint(split, len(source.samples))
    everyone = set(range(len(counts)))
    for part in (split.train, split.validation, split.test):
        assert set(labels(source, part)) == everyone
    used = len(split.train) + len(split.validation) + len(split.test)
    assert used == len(source.samples) or limit is not None
    assert limit is None or set(labels(source, split.train).values()) == {limit}
