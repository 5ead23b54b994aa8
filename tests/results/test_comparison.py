"""Studies side by side: what they reach after as many trials, and after as much time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from autotune.results.comparison import Comparison
from autotune.results.figures.comparison import comparison_figure
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.study.studies import HOSTILE, make_results

BOTH = {"others": {"convnext_tiny": 7}}
RESHAPED: dict[str, Any] = {
    "space": {
        "trainable_layers": {"low": 0, "high": 3},
        "layers": {"kernel": ["keep", 5], "max_layers": 2},
    }
}


def named(name: str, **options: Any) -> StudyResults:
    return make_results(**{"name": name, "trials": 12, "running": 0, **options})


def test_the_best_value_so_far() -> None:
    results = named("a", failed=1, retried=1)
    (group,) = Comparison.of([results]).studies
    points = group.curve
    assert [point.trials for point in points][-1] == results.progress.finished == group.finished
    # A retried attempt takes time, and no more.
    assert len(points) == results.progress.finished + 1
    assert all(a.device_s < b.device_s for a, b in pairwise(points))
    values = [point.value for point in points if point.value is not None]
    assert values == sorted(values) and results.best is not None
    assert group.after_trials(group.finished) == results.best.values[0]
    assert group.after_trials(group.finished + 1) is None
    assert group.after_device_s(group.device_s) == results.best.values[0]
    assert group.after_device_s(group.device_s + 1) is None
    assert group.after_device_s(0.0) is None
    lower = Comparison.of([named("a", objective="log_loss")]).studies[0]
    values = [point.value for point in lower.curve if point.value is not None]
    assert values == sorted(values, reverse=True)


def test_marks_are_the_ends_of_the_studies_and_some_before() -> None:
    comparison = Comparison.of([named("a", trials=30), named("b"), named("c", trials=0)])
    longest, shortest, empty = comparison.studies
    marks = comparison.trial_marks()
    assert {longest.finished, shortest.finished} <= set(marks) and len(marks) <= 6
    assert marks == sorted(marks) and {5, 10, 20} <= set(marks)
    least, most = shortest.device_s, longest.device_s
    assert comparison.device_marks() == [least / 4, least / 2, least, most]
    assert empty.finished == 1 and empty.best is None  # it failed
    assert Comparison.of([named("c", trials=0)]).device_marks() == []


def test_where_many_studies_end_there_is_no_other_mark() -> None:
    counts = [3, 4, 6, 7, 8, 40]
    studies = [named(f"{n}", trials=n, failed=0, retried=0) for n in counts]
    assert Comparison.of(studies).trial_marks() == counts


def test_trials_are_compared_by_what_varies_inside_a_study() -> None:
    comparison = Comparison.of([named("two", **BOTH), named("one")])
    assert [group.label for group in comparison.groups] == [
        *("two", "two: convnext_tiny", "two: test_resnet.r160_in1k", "one")
    ]
    two, *parts = comparison.groups[:3]
    assert sum(part.finished for part in parts) == two.finished
    assert max(part.after_trials(part.finished) or 0 for part in parts) == two.best.values[0]  # type: ignore[union-attr]
    for part in parts:
        assert {attrs.trial_plan(trial).backbone for trial in part.trials} == {  # type: ignore[union-attr]
            part.label.removeprefix("two: ")
        }


def test_init_counts_where_layers_are_made_anew() -> None:
    results = named("a", trials=20, failed=0, retried=0, **RESHAPED)
    trials = []
    for trial in results.trials:  # every second one begins at random
        init = {"inherit": "none" if trial.number % 2 else "weights"}
        plan = {**trial.user_attrs[attrs.PLAN], **init}
        trial.user_attrs = {**trial.user_attrs, attrs.PLAN: plan}
        trials.append(trial)
    comparison = Comparison.of([replace(results, trials=tuple(trials))])
    labels = [part.label for part in comparison.parts]
    assert labels == ["a: init pretrained", "a: init random"]
    # The baseline has none, for one.
    assert 0 < sum(len(part.trials) for part in comparison.parts) < 20
    assert comparison.plan_rows()["init"][1:] == ["pretrained", "random"]


def changed(key: str, **values: Any) -> StudyResults:
    """Return a study with other values in an attribute."""
    results = named("b")
    attribute = {**results.attributes[key], **values}
    return replace(results, attributes={**results.attributes, key: attribute})


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (named("b", seed=1), ""),
        (named("b", objective="log_loss"), "different metrics: accuracy in a, log_loss in b."),
        (
            changed(attrs.DATASET, fingerprint="ff", name="photos"),
            "different images: digits (360 for validation) in a, photos (",
        ),
        (
            changed(attrs.DEFINITION, data={"validation": 0.5}),
            "Values are measured in different ways: data.",
        ),
        (named("b", trials=0), ""),
    ],
    ids=["seed", "metric", "images", "split", "empty"],
)
def test_what_makes_values_incomparable_is_said(other: StudyResults, text: str) -> None:
    comparison = Comparison.of([named("a"), other])
    assert text in " ".join(comparison.caveats())
    assert bool(comparison.caveats()) == bool(text)


def test_settings_that_differ() -> None:
    comparison = Comparison.of([named("a"), named("b", seed=7), named("c", seed=7, budget=99)])
    assert comparison.settings == {"search.seed": (0, 7, 7)}  # a budget is no part of a definition


def test_what_programs_get() -> None:
    comparison = Comparison.of([named("a"), named("b", trials=0)])
    first, second = comparison.to_json()["groups"]
    assert first["best"] == comparison.studies[0].best.values[0]  # type: ignore[union-attr]
    assert second["best"] is None and second["plan"]["lr"] == "–"
    assert set(first["after_trials"]) == {str(mark) for mark in comparison.trial_marks()}


def test_the_figure_has_a_line_for_every_group() -> None:
    studies = [named("a" + HOSTILE, hostile=True), named("b"), named("c", trials=0)]
    comparison = Comparison.of(studies)
    figure = comparison_figure(comparison)
    assert len(figure.data) == 2 * len(comparison.groups)
    assert "<script>alert" not in str(figure.to_dict())
    group = comparison.studies[1]
    line = next(trace for trace in figure.data if trace.name == "b")
    assert line.y[-1] == group.after_trials(group.finished)
