"""A small study of two objectives with a limit, from its run to its model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autotune.results.cheapest import find_cheapest
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL
from tests.support.study.databases import connections_closed

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``autotune run`` has run the study ``two``; its output is out.txt."""
    made = tmp_path_factory.mktemp("two")
    with connections_closed():
        ended = call(
            "run", "digits", *SMALL, "search.trials=8", "search.pruner=none",
            "search.sampler=random", "space.head.hidden_layers=[0, 1]", "space.layers={}",
            "objectives=[accuracy, memory_mb]", "constraints.max_memory_mb=4",
            "--name", "two", "--workers", "1", cwd=made,
        )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    (made / "out.txt").write_text(ended.out, encoding="utf-8")
    return made


def opened_in(folder: Path) -> OpenStudy:
    return open_existing("two", f"sqlite:///{folder}/storage/autotune.db")


def test_run_and_status_list_the_front_and_the_infeasible(folder: Path) -> None:
    opened = opened_in(folder)
    study, progress = opened.study, opened.progress()
    assert progress.infeasible and progress.complete and not progress.pruned
    said = (folder / "out.txt").read_text(encoding="utf-8")
    assert ": infeasible | last " in said
    results = StudyResults.from_study(study)
    ended = call("status", "two", cwd=folder)
    assert (ended.code, ended.err) == (0, "")
    front = ranking.pareto_front(study.get_trials(deepcopy=False), attrs.metric_direction(study))
    for text in (said, ended.out):
        assert (
            f"8 of 8 finished: {progress.complete} complete, 0 pruned, {progress.infeasible} "
            "infeasible, 0 failed" in text
        )
        assert results.format_values(front[0]) in text
        if len(front) > 1:
            assert f"Pareto front, {len(front)} trials" in text


def test_best_is_yaml_with_the_front(folder: Path) -> None:
    opened = opened_in(folder)
    ended = call("best", "two", cwd=folder)
    found = yaml.safe_load(ended.out)
    trials = opened.study.get_trials(deepcopy=False)
    front = ranking.pareto_front(trials, attrs.metric_direction(opened.study))
    assert list(found) == ["study", "trial", "accuracy", "memory_mb", "front", "plan"]
    assert found["trial"] == front[0].number
    assert [[one["accuracy"], one["memory_mb"]] for one in found["front"]] == [
        one.values for one in front
    ]
    assert found["plan"] == front[0].user_attrs[attrs.PLAN]
    # A line for each.
    assert sum(line.startswith("- {trial: ") for line in ended.out.splitlines()) == len(front)


def test_the_report_has_the_front(folder: Path) -> None:
    page = (folder / "storage/autotune.files/reports/two.html").read_text(encoding="utf-8")
    assert "Metric against cost" in page and '<table class="front stacked">' in page


def test_fit_takes_the_best_of_the_front_or_a_trial_of_one_s_choice(folder: Path) -> None:
    opened = opened_in(folder)
    trials = opened.study.get_trials(deepcopy=False)
    best = ranking.best_trial(trials, attrs.metric_direction(opened.study))
    assert best is not None
    ended = call("refit", "two", cwd=folder)
    assert ended.code == 0, ended.err
    assert f"trial {best.number} " in ended.out
    cheapest = find_cheapest(StudyResults.from_study(opened.study))
    assert cheapest is not None
    ended = call("refit", "two", "--trial", "cheapest", cwd=folder)
    assert ended.code == 0, ended.err
    assert f"Refitted: trial {cheapest.trial.number}, the " in ended.out
    refused = call("refit", "two", "--trial", "fastest", cwd=folder)
    assert refused.code == 2
    assert "must be the number of a trial, or 'cheapest', but got 'fastest'" in refused.err


def test_without_a_plan_within_the_limits_every_verb_says_so(tmp_path: Path) -> None:
    ended = call(
        "run", "digits", *SMALL, "search.trials=2", "constraints.max_parameters=1000",
        "--name", "none", "--workers", "1", cwd=tmp_path,
    )  # fmt: skip
    assert (ended.code, ended.err) == (1, "")
    said = " ".join(ended.out.split())
    assert "2 of 2 finished: 1 complete, 0 pruned, 1 infeasible, 0 failed" in said
    assert "No trial has a result: of 2 trials 2 exceeded the limits" in said
    assert "The nearest is trial " in said
    for verb in ("best", "refit"):
        refused = call(verb, "none", cwd=tmp_path)
        assert refused.code == 2
        assert "the study 'none' has no complete trial within the limits; the" in refused.err
    assert call("report", "none", cwd=tmp_path).code == 0
