"""Studies that differ in their seed alone."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from autotune.results.seeds import SeedComparison
from autotune.results.study_results import StudyResults
from tests.support.study.studies import make_results


def named(seed: int, **options: Any) -> StudyResults:
    made = {"name": f"a-seed{seed}", "seed": seed, "trials": 6, "running": 0, "failed": 0}
    return make_results(**{**made, **options})


def test_the_mean_gain_has_an_interval() -> None:
    comparison = SeedComparison.of([named(2), named(0), named(1)])
    assert comparison is not None and comparison.gain is not None
    assert [each.seed for each in comparison.studies] == [0, 1, 2]
    for each in comparison.studies:
        assert each.best is not None and each.baseline is not None and each.plan
        assert each.gain == each.best - each.baseline
    gains = [each.gain for each in comparison.studies if each.gain is not None]
    assert comparison.gain.mean == pytest.approx(statistics.fmean(gains))
    assert comparison.gain.half_width > 0
    assert comparison.describe().startswith("Mean gain over 3 seeds: ")
    values = comparison.to_json()
    assert values["gain_interval"][0] < values["gain"] < values["gain_interval"][1]


def test_less_is_better_for_a_loss() -> None:
    comparison = SeedComparison.of([named(each, objective="log_loss") for each in (0, 1)])
    assert comparison is not None and comparison.gain is not None and comparison.gain.mean > 0


def test_a_study_without_a_result_has_no_gain() -> None:
    comparison = SeedComparison.of([named(0), named(1, trials=0)])
    assert comparison is not None and comparison.gain is None
    assert comparison.studies[1].best is None
    assert comparison.describe() == "A mean gain needs two studies with a result, but 1 has one."


@pytest.mark.parametrize(
    "others",
    [
        [],
        [{"seed": 0}],
        [{"seed": 1, "objective": "macro_f1"}],
        [{"seed": 1, "space": {"trainable_layers": {"low": 0, "high": 2}}}],
    ],
)
def test_other_studies_are_not_compared_by_seed(others: list[dict[str, Any]]) -> None:
    assert SeedComparison.of([named(0), *(named(**one) for one in others)]) is None
