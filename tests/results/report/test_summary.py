"""What came out of a study so far, in a few values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.results.report.summary import summarise
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from tests.support.studies import make_study

pytestmark = pytest.mark.usefixtures("closed_connections")
Maker = Callable[..., OpenStudy]


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    def make(**options: Any) -> OpenStudy:
        url = f"sqlite:///{tmp_path}/autotune.db"
        storage = open_storage(url, create=True)
        return OpenStudy(
            make_study(storage=storage, **options), storage, url, StudyPaths.from_url(url)
        )

    return make


def test_summary(made: Maker) -> None:
    opened = made()
    found = summarise(opened)
    trials = opened.study.get_trials(deepcopy=False)
    assert found.progress == attrs.count_progress(trials, 40)
    assert found.baseline is not None and found.baseline.number == 0
    assert found.best is not None and found.best.value == opened.study.best_value
    assert found.difference == "+7.5 points"
    plan = attrs.trial_plan(found.best)
    assert plan is not None
    assert [row.index for row in found.picture] == [5, 4, 3, 2, 1, 0]
    assert [row.index for row in found.picture if row.state == "trainable"] == [
        *range(plan.depth, -1, -1)
    ]
    # The attempt that was lost and tried again is no failure.
    assert found.reasons == (("DivergedError: the loss is nan in epoch 2", 1),)


def test_summary_of_a_loss(made: Maker) -> None:
    assert summarise(made(objective="log_loss")).difference == "0.1800 lower"


def test_summary_before_and_without_a_better_trial(made: Maker) -> None:
    found = summarise(made(trials=0))
    assert (found.best, found.baseline, found.picture, found.difference) == (None, None, (), "")


def test_summary_when_the_baseline_is_best(made: Maker) -> None:
    found = summarise(made(gain=-0.05))
    assert found.best is found.baseline
    assert found.difference == "no trial is better"
