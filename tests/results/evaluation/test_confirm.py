"""The best plans of a study and its baseline, trained under seeds of their own."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import create_trial

from autotune.errors import StudyError
from autotune.plan import TrainingPolicy, TrialPlan
from autotune.results.diagnosis.headline import describe_confirmation
from autotune.results.evaluation import confirm as confirm_module
from autotune.results.evaluation.confirm import Confirmation, confirm_plans
from autotune.results.evaluation.plan_selection import plans_to_confirm
from autotune.results.study_results import StudyResults
from autotune.results.values.intervals import CONFIDENCE_LEVEL, t_interval
from autotune.results.values.verdict import Verdict
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial.build import build_trial_trainer
from autotune.study.trial.context import build_context
from autotune.study.trial.retrain import read_scores
from autotune.study.trial.trainings import Training
from tests.support.commands.inline import Event, run
from tests.support.commands.inside import contents
from tests.support.commands.runs import start, wait_for
from tests.support.pages.page import page_of
from tests.support.study.small import open_small


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    """A small study that is over, and confirmed with two seeds."""
    made = open_small(
        tmp_path_factory.mktemp("confirm"), search__pruner="none", search__sampler="random"
    )
    run(made)
    confirm_plans(made, top=2, seeds=2)
    return made


def confirmed_again(opened: OpenStudy, top: int = 2, seeds: int = 2) -> Confirmation:
    events: list[Event] = []
    found = confirm_plans(opened, top, seeds, events.append)
    (names,) = (event["names"] for event in events if event["event"] == "trainings")
    ends = [event for event in events if event["event"] == "result"]
    assert [event["done"] for event in ends] == list(range(1, len(names) + 1))
    assert sorted(event["training"] for event in ends) == sorted(names)
    assert sum(not event["is_cached"] for event in ends) == found.trained
    return found


def test_every_plan_is_trained_under_every_seed(opened: OpenStudy) -> None:
    found = confirmed_again(opened)
    assert found.trained == 0 and found.seeds == (1, 2)
    ctx = build_context(opened)
    for one in (found.baseline, *found.plans):
        assert len(one.values) == 2 and one.mean is not None
        assert one.mean.mean == statistics.fmean(value for value in one.values if value)
        training = build_trial_trainer(one.plan, ctx, seed=2)
        last = [result.metrics for result in training.run()][-1]
        assert last is not None and last.accuracy == one.values[1]
    trials = opened.study.get_trials(deepcopy=False)
    for one in found.plans:
        assert one.trial is not None and one.gain is not None and one.mean is not None
        assert trials[one.trial].value == one.search_value
        assert one.selection_bias == pytest.approx((one.search_value or 0.0) - one.mean.mean)
        gains = [
            mine - other
            for mine, other in zip(one.values, found.baseline.values, strict=True)
            if mine is not None and other is not None
        ]
        assert one.gain.mean == pytest.approx(statistics.fmean(gains))
    means = [one.mean.mean for one in found.plans if one.mean]
    assert means == sorted(means, reverse=True)


def test_of_plans_with_equal_means_the_lower_log_loss_comes_first(
    opened: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, training: Training) -> dict[str, Any] | None:
        scores = read_scores(path, training)
        number = next(n for n, plan in plans.items() if plan == training.plan)
        metrics = {"accuracy": 0.5, "log_loss": losses[number]}
        return scores and {**scores, "metrics": metrics}

    found = confirm_plans(opened, top=2, seeds=2)
    plans = {one.trial: one.plan for one in (found.baseline, *found.plans)}
    monkeypatch.setattr(confirm_module, "read_scores", read)
    for least in [one.trial for one in found.plans]:
        losses = {number: 0.1 if number == least else 0.2 for number in plans}
        tied = confirm_plans(opened, top=2, seeds=2)
        assert tied.plans[0].trial == least and tied.plans[0].gain is not None
        assert tied.plans[0].gain.mean == 0.0


def test_seeds_differ_and_no_features_are_made(opened: OpenStudy) -> None:
    before = {name for name in contents(opened.files.cache) if "features" in name}
    assert before
    found = confirmed_again(opened, seeds=3)
    assert found.trained == 3
    assert {name for name in contents(opened.files.cache) if "features" in name} == before
    ctx = build_context(opened)
    plan = found.plans[0].plan
    first, second = (build_trial_trainer(plan, ctx, seed=seed) for seed in (1, 2))
    weights = [one.network.head[-1].weight for one in (first, second)]
    assert (weights[0] != weights[1]).any()


def test_more_seeds_and_plans_add_to_what_is_there(opened: OpenStudy) -> None:
    top = len(plans_to_confirm(StudyResults.from_study(opened.study), 100))
    confirmed_again(opened, top=1, seeds=2)
    found = confirmed_again(opened, top=top + 5, seeds=2)
    assert found.trained == 0 and len(found.plans) == top  # two of them, and no more there are


@pytest.mark.slow
def test_a_study_of_the_same_name_has_values_of_its_own(tmp_path: Path) -> None:
    names = []
    for folder, epochs in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        made = open_small(tmp_path / folder, search__trials=2, training__epochs=epochs)
        run(made)
        confirm_plans(made, 1, 2)
        names.append({path.name for path in made.files.confirmed("small").iterdir()})
    assert len(names[0]) == 4 and not names[0] & names[1]


def test_the_study_remembers_the_verdict(opened: OpenStudy) -> None:
    found = confirmed_again(opened)
    verdict = Verdict.from_attributes(opened.study.user_attrs)
    assert verdict is not None and verdict == found.verdict
    assert verdict.trial == found.plans[0].trial
    said = describe_confirmation(StudyResults.from_study(opened.study))
    assert said.startswith("Confirmed over" if verdict.is_better else "Not confirmed over")
    assert "2 seeds, corrected for choosing among 2" in said
    assert said in page_of(opened.study).of("p")


def test_an_interrupted_training_continues_from_its_last_epoch(opened: OpenStudy) -> None:
    before = confirmed_again(opened)
    files = opened.files
    for path in files.confirmed(opened.name).iterdir():
        path.unlink()

    def stop(event: Event) -> None:
        if event.get("training") == "baseline, seed 2" and event.get("epoch") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        confirm_plans(opened, 2, 2, stop)
    states = [path.suffix for path in files.trainings(opened.name).iterdir()]
    assert states == [".pt"]
    events: list[Event] = []
    found = confirm_plans(opened, 2, 2, events.append)
    epochs = [one["epoch"] for one in events if one["event"] == "epoch"]
    assert found.trained == 3 and epochs == [2, 1, 2, 1, 2]
    assert [one.values for one in found.plans] == [one.values for one in before.plans]
    assert found.baseline.values == before.baseline.values
    assert list(files.trainings(opened.name).iterdir()) == []


@pytest.mark.slow
def test_two_calls_share_the_work_and_one_is_killed(tmp_path: Path) -> None:
    """Of one and of two workers; the values are those of a training in this process."""
    made = open_small(tmp_path, search__trials=2, training__epochs=12)
    run(made)
    arguments = ("confirm", "small", "--storage", made.url, "--top", "1", "--seeds", "4")
    folder = made.files.confirmed("small")
    (tmp_path / "killed").mkdir()
    killed = start(*arguments, "--workers", "2", cwd=tmp_path / "killed")
    other = start(*arguments, "--workers", "1", "--json", cwd=tmp_path)
    wait_for(lambda: folder.is_dir() and any(folder.glob("*.json")))
    killed.kill()
    killed.wait()
    assert other.wait(120) == 0
    output = (tmp_path / "out.txt").read_text()
    assert " of 8: baseline, seed 1: " in output and "8 of 8: " in output
    values = json.loads(output[output.index("{") :])
    assert values["trained"] <= 8 and len(list(folder.glob("*.json"))) == 8
    assert not list(made.files.trainings("small").glob("*.pt"))
    for path in folder.iterdir():
        path.unlink()
    here = confirm_plans(made, 1, 4)
    assert [*here.baseline.values, *here.plans[0].values] == [
        *values["baseline"]["values"],
        *values["plans"][0]["values"],
    ]


@pytest.mark.slow
def test_in_folds(tmp_path: Path) -> None:
    made = open_small(tmp_path, data__folds=2, search__trials=2, training__epochs=1)
    run(made)
    confirm_plans(made, 1, 2)
    found = confirm_plans(made, 1, 2)
    assert found.trained == 0
    training = build_trial_trainer(found.baseline.plan, build_context(made), seed=1)
    (result,) = training.run()
    assert result.metrics is not None
    assert found.baseline.values[0] == result.metrics.accuracy


@pytest.mark.slow
def test_a_plan_that_diverges_is_named_and_not_ranked(tmp_path: Path) -> None:
    made = open_small(tmp_path, search__trials=2, training__epochs=1)
    run(made)
    wild = TrialPlan(made.config().backbones[0], policy=TrainingPolicy("sgd", lr=1e38))
    plan = {attrs.PLAN: wild.to_json()}
    made.study.add_trial(create_trial(value=1.0, user_attrs=plan))
    found = confirm_plans(made, 2, 2)
    assert [one.trial for one in found.plans] == [1, 2]
    assert found.plans[1].mean is None and found.plans[1].values == (None, None)
    assert found.plans[1].failed
    assert found.verdict is not None and found.verdict.trials == (2, 1)
    assert confirm_plans(made, 2, 2).trained == 0
    assert confirm_plans(made, 1, 2).verdict is None
    assert Verdict.from_attributes(made.study.user_attrs) is None


def test_nothing_but_the_baseline(tmp_path: Path) -> None:
    made = open_small(tmp_path, search__trials=1, training__epochs=1)
    with pytest.raises(StudyError, match=r"has no complete trial yet; nothing can be confirmed"):
        confirm_plans(made, 5, 5)
    run(made)
    with pytest.raises(StudyError, match="has no complete trial but the baseline; nothing can"):
        confirm_plans(made, 5, 5)
    assert not made.files.confirmed("small").exists()


def test_a_seed_can_divide_the_images_too(opened: OpenStudy) -> None:
    study_values = confirmed_again(opened).baseline.values
    found = confirm_plans(opened, top=1, seeds=3, splits=True)
    assert found.trained == 6 and found.verdict is not None and found.verdict.splits
    assert found.baseline.values[:2] != study_values
    ctx = build_context(opened)
    own = ctx.resources.of(found.baseline.plan).data
    for value, seed in zip(found.baseline.values, found.seeds, strict=True):
        divided = replace(ctx, resources=ctx.resources.divided_anew(seed))
        data = divided.resources.of(found.baseline.plan).data
        assert data.info.test_fingerprint == own.info.test_fingerprint
        keys = [{one.store.keys[row] for row in one.validation_rows} for one in (own, data)]
        assert keys[0] != keys[1]
        training = build_trial_trainer(found.baseline.plan, divided, seed=seed)
        last = [result.metrics for result in training.run()][-1]
        assert last is not None and last.accuracy == value
    # Divisions share training images: their values say less than as many independent ones.
    plan, info = found.plans[0], opened.study.user_attrs[attrs.DATASET]
    gains = [mine - base for mine, base in zip(plan.values, found.baseline.values, strict=True)]
    least = 1 / info["validation"] / 6**0.5
    wanted = t_interval(gains, CONFIDENCE_LEVEL, least, info["validation"] / info["train"])
    assert plan.gain == wanted
    assert plan.gain.half_width > t_interval(gains, CONFIDENCE_LEVEL, least).half_width
    assert "3 seeds and splits" in describe_confirmation(StudyResults.from_study(opened.study))
    assert confirm_plans(opened, top=1, seeds=3, splits=True).trained == 0
    confirmed_again(opened)


def test_folds_have_no_other_splits(tmp_path: Path) -> None:
    made = open_small(tmp_path, search__trials=2, training__epochs=1, data__folds=2)
    with pytest.raises(StudyError, match=r"needs a study without data\.folds, but 'small' has"):
        confirm_plans(made, 1, 2, splits=True)
