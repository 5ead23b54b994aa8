"""Plans that are queued by hand, in studies at every stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autotune.errors import StudyError
from autotune.results.diagnosis.facts import Facts
from autotune.results.diagnosis.space_checks import saturation
from autotune.results.report.trial_table import trial_rows
from autotune.results.study_results import StudyResults
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.study.setup.manual_trials import enqueue_plan
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from autotune.study.state.trial_queue import Claim
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study


def stored(url: str, name: str = "photos", *, trials: int = 4, budget: int = 40) -> OpenStudy:
    """Store a study with complete trials; trial 0 is the baseline."""
    storage = open_storage(url, create=True)
    counts = {"running": 0, "failed": 0, "retried": 0}
    make_study(name, trials=trials, budget=budget, storage=storage, **counts)  # type: ignore[arg-type]
    return open_existing(name, url)


def test_a_worker_trains_it_next(tmp_path: Path) -> None:
    with connections_closed():
        opened = stored(f"sqlite:///{tmp_path}/study.db")
        queued = enqueue_plan(opened, {"layers": 2, "lr": 0.002})
        assert (queued.number, queued.is_running, queued.needs) == (4, False, {})
        assert (queued.waits_for, queued.filled_from) == ("", "the baseline")
        claim = opened.trial_queue().claim("host/1/0")
        assert isinstance(claim, Claim) and claim.trial.number == 4
        trial = opened.study.get_trials()[4]
        assert attrs.trial_plan(trial) == queued.plan
        assert attrs.study_space(opened.study).plan(trial.params) == queued.plan
        assert trial.params.keys() == attrs.study_space(opened.study).distributions.keys()
        assert enqueue_plan(opened, {"layers": 3}).is_running
        results = StudyResults.from_study(opened.study)
        (row,) = trial_rows(results, [results.trials[4]])
        assert row.reason == "enqueued by hand"


def test_a_plan_that_was_tried(tmp_path: Path) -> None:
    with connections_closed():
        opened = stored(f"sqlite:///{tmp_path}/study.db")
        best = StudyResults.from_study(opened.study).best
        assert best is not None
        said = f"trial {best.number} has tried this plan: 0\\."
        for base in (best.number, "best", attrs.trial_plan(best)):
            with pytest.raises(StudyError, match=said):
                enqueue_plan(opened, {}, base)  # type: ignore[arg-type]
        enqueue_plan(opened, {"layers": 2, "lr": 0.002})
        with pytest.raises(StudyError, match="trial 4 waits with this plan"):
            enqueue_plan(opened, {"depth": 2, "training.lr": 0.002})
        assert len(opened.study.get_trials()) == 5


def test_a_plan_of_another_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with connections_closed():
        opened, other = stored(url), stored(url, "flowers", trials=9)
        queued = enqueue_plan(opened, {}, 8, other)
        assert queued.plan == attrs.trial_plan(other.study.get_trials()[8])
        origin = attrs.trial_origin(opened.study.get_trials()[4])
        assert origin == "enqueued by hand, from trial 8 of study flowers"
        with pytest.raises(StudyError, match="has the trials 0 to 8, but got 9"):
            enqueue_plan(opened, {}, 9, other)
        with pytest.raises(StudyError, match="give the values of a plan"):
            enqueue_plan(opened, {})


def test_a_budget_that_is_used_up(tmp_path: Path) -> None:
    with connections_closed():
        opened = stored(f"sqlite:///{tmp_path}/study.db", budget=4)
        queued = enqueue_plan(opened, {"layers": 2, "lr": 0.002})
        assert (queued.waits_for, queued.needs) == ("4 finished trials", {"search.trials": 5})
        assert enqueue_plan(opened, {"layers": 3}).needs == {"search.trials": 6}
        opened.trial_queue().set_budget(Budget(40, patience=1))
        needs = enqueue_plan(opened, {"layers": 4}).needs
        assert needs == {} or set(needs) == {"search.patience"}
        budget = Budget(40, patience=needs.get("search.patience", 1))
        opened.trial_queue().set_budget(budget)
        assert opened.trial_queue().count_startable() > 0


def test_what_people_enqueue_is_no_find_of_the_search(tmp_path: Path) -> None:
    study = make_study(trials=24, gain=-0.1)
    before = saturation(Facts(StudyResults.from_study(study)))
    space = Space.from_json(study.user_attrs[attrs.SPACE])
    trials = study.get_trials()
    best = max(trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE)
    lucky = next(trial for trial in trials[::-1] if trial.state == TrialState.COMPLETE)
    lucky.values = [best + 0.05]
    lucky.user_attrs[attrs.ORIGIN] = attrs.BY_HAND
    assert space.distributions.keys() == lucky.params.keys()
    study.add_trial(lucky)
    assert saturation(Facts(StudyResults.from_study(study)))[:2] == before[:2]


@pytest.mark.slow
def test_many_enqueue_at_once(url: str) -> None:
    with connections_closed():
        stored(url)

        def enqueue(layers: int) -> int | str:
            try:
                return enqueue_plan(open_existing("photos", url), {"layers": layers}).number
            except StudyError as error:
                return str(error)

        with ThreadPoolExecutor(6) as pool:
            ended = list(pool.map(enqueue, [1, 2, 3, 1, 2, 3]))
        assert sorted(one for one in ended if isinstance(one, int)) == [4, 5, 6]
        assert all("waits with this plan" in one for one in ended if isinstance(one, str))
