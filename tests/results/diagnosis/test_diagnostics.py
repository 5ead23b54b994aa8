"""The questions of the playbook, asked of studies in which the answer is known."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.diagnostics import Diagnostic, diagnose, luckiest
from autotune.results.report.html import render_report
from autotune.results.values.verdict import Verdict
from autotune.study.state import attrs
from tests.support.page import Parsed
from tests.support.studies import make_study

RATE = FloatDistribution(1e-4, 1.0, log=True)
POOL = CategoricalDistribution(["avg", "max", "avgmax"])
IMAGES = 10_000  # of which one standard error of 90 % is 0.3 points

EDGE = "Does the best plan lie at an edge of the space?"
DENSE = "Were enough plans tried near the best one?"
MORE = "Would more trials help?"
FEASIBLE = "Is much of the space infeasible, or failing?"
STABLE = "Is training stable?"
OVERFIT = "Does the best plan overfit?"
LONG = "Was training long enough?"
MATTER = "Which parameters matter, and which could be fixed?"
PRUNED = "Did pruning cut plans that would have won?"
NOISE = "Is the gain over the baseline larger than the noise?"
LUCK = "Is the gain larger than what choosing among so many trials brings?"


def study_of(direction: str = "maximize", metric: str = "accuracy") -> Study:
    study = optuna.create_study(direction=direction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([metric])
    study.set_user_attr(attrs.DATASET, {"train": 200, "validation": IMAGES})
    study.set_user_attr(attrs.DEFINITION, {"training": {"epochs": 10}})
    return study


def add(
    study: Study,
    value: float | None,
    *,
    lr: float | None = 0.01,
    pool: str = "max",
    curve: Sequence[float] = (),
    state: TrialState = TrialState.COMPLETE,
    **attributes: Any,
) -> None:
    params = {} if lr is None else {"training.lr": lr, "head.pool": pool}
    study.add_trial(
        create_trial(
            state=state,
            value=value,
            params=params,
            distributions={"training.lr": RATE, "head.pool": POOL} if params else {},
            intermediate_values=dict(enumerate(curve, start=1)),
            user_attrs=attributes,
        )
    )


def add_baseline(study: Study, value: float = 0.8) -> None:
    add(study, value, lr=None, **{attrs.ROLE: attrs.BASELINE})


def asked(study: Study, question: str) -> Diagnostic | None:
    return next((one for one in diagnose(study) if one.question == question), None)


def answered(study: Study, question: str) -> tuple[str, str]:
    found = asked(study, question)
    assert found is not None
    assert found.mark == "fine" or found.advice or question == MATTER
    return found.mark, found.answer


@pytest.mark.parametrize(
    ("lr", "mark", "said"),
    [
        (0.9, "act", "Yes: training.lr = 0.9 at the upper end (1)."),
        (1.1e-4, "act", "Yes: training.lr = 0.00011 at the lower end (0.0001)."),
        (0.01, "fine", "No: trial 1 lies inside the space in every parameter."),
    ],
)
def test_edges(lr: float, mark: str, said: str) -> None:
    study = study_of()
    add_baseline(study)
    add(study, 0.9, lr=lr)
    assert answered(study, EDGE) == (mark, said)


def test_the_baseline_is_at_no_edge() -> None:
    study = study_of()
    add_baseline(study)
    add(study, 0.7, lr=0.9)
    assert asked(study, EDGE) is None
    assert asked(study, NOISE) is None


@pytest.mark.parametrize(
    ("near", "mark", "said"), [(4, "fine", "Yes: 4 of"), (2, "look", "Hardly: 2 of")]
)
def test_density(near: int, mark: str, said: str) -> None:
    study = study_of()
    add(study, 0.9)
    for number in range(9):
        # A tenth of a decade of four, and the other end with another pool.
        place = {"lr": 0.0125} if number < near else {"lr": 0.8, "pool": "avg"}
        add(study, 0.85, **place)
    found = answered(study, DENSE)
    assert found[0] == mark
    assert found[1].startswith(f"{said} 9 other trained plans differ from trial 0")
    assert "none comes within the noise (0.30 points)" in found[1]


@pytest.mark.parametrize(
    ("late", "mark", "said"),
    [
        (
            0.95,
            "act",
            "Probably: the last 2 trained plans improved the best value by 5.00 points.",
        ),
        (0.902, "look", "Perhaps a little: the last 2 trained plans improved"),
        (0.9, "fine", "Not likely: the last 2 trained plans brought nothing above trial 3."),
    ],
)
def test_more_trials(late: float, mark: str, said: str) -> None:
    study = study_of()
    for value in (0.8, 0.85, 0.7, 0.9, 0.8, 0.8, late, 0.6):
        add(study, value)
    found = answered(study, MORE)
    assert found[0] == mark and found[1].startswith(said)


@pytest.mark.parametrize(
    ("beyond", "failed", "mark"),
    [(0, 0, "fine"), (3, 0, "look"), (8, 0, "act"), (0, 3, "act"), (0, 0, "fine")],
)
def test_feasibility(beyond: int, failed: int, mark: str) -> None:
    study = study_of()
    for _ in range(8):
        add(study, 0.8)
    for _ in range(beyond):
        study.add_trial(create_trial(state=TrialState.PRUNED, constraints={"max_parameters": 1.0}))
    for _ in range(failed):
        add(study, None, state=TrialState.FAIL, **{attrs.REASON: "PlanError: too wide"})
    found = answered(study, FEASIBLE)
    assert found[0] == mark
    assert f"{beyond} were beyond" in found[1] or not beyond + failed


def test_a_study_that_diverges_is_told_above_which_rate() -> None:
    study = study_of()
    for value in (0.7, 0.75, 0.8, 0.81):
        add(study, value, lr=0.01, curve=[value - 0.02, value - 0.01, value - 0.001, value])
    assert answered(study, STABLE)[0] == "fine"
    reason = {attrs.REASON: "DivergedError: the loss is nan in epoch 2"}
    add(study, None, lr=0.5, state=TrialState.FAIL, **reason)
    mark, said = answered(study, STABLE)
    assert mark == "act"
    assert said.startswith("No: 1 of 5 trainings diverged")
    assert said.endswith("those that diverged had a learning rate of 0.5 or more.")
    # A retry of the same attempt brought it to its end.
    add(study, 0.6, lr=0.5, curve=[0.5, 0.6], **{attrs.RETRIES: [4]})
    assert answered(study, STABLE)[1].startswith("Yes: none of 5 trainings diverged")


def test_curves_that_jump() -> None:
    study = study_of()
    for value in (0.8, 0.81, 0.82, 0.83):
        add(study, value, curve=[0.3, 0.5, 0.8, 0.7, value])
    mark, said = answered(study, STABLE)
    assert mark == "look" and "worsens by at most 10.00 points" in said


@pytest.mark.parametrize(
    ("curve", "overfits", "long"),
    [
        ([0.5, 0.7, 0.8, 0.85, 0.899, 0.9], "fine", "fine"),
        ([0.5, 0.6, 0.7, 0.75, 0.8, 0.9], "fine", "look"),
        ([0.5, 0.9, 0.95, 0.93, 0.91, 0.9], "act", "fine"),
        ([0.5, 0.9, 0.9045, 0.9, 0.9, 0.9], "look", "fine"),
        ([0.5, 0.9, 0.902, 0.9, 0.9, 0.9], "fine", "fine"),
    ],
)
@pytest.mark.parametrize("minimised", [False, True])
def test_curves_of_the_best(curve: list[float], overfits: str, long: str, minimised: bool) -> None:
    study = study_of()
    if minimised:  # the same curve upside down, judged by the same images
        study = study_of("minimize", "accuracy")
        curve = [1 - value for value in curve]
    add(study, curve[-1], curve=curve)
    assert (answered(study, OVERFIT)[0], answered(study, LONG)[0]) == (overfits, long)


def test_overfitting_is_told_with_its_epochs() -> None:
    study = study_of()
    add(study, 0.9, curve=[0.5, 0.9, 0.95, 0.93, 0.9])
    said = "It may: trial 0 was best after epoch 3 of 5 and has lost 5.00 points since"
    assert answered(study, OVERFIT)[1].startswith(said)


def test_which_parameters_matter() -> None:
    study = study_of()
    rates = [10 ** (-4 + 4 * place / 29) for place in range(30)]
    for place, lr in enumerate(rates):
        add(study, 0.9 - 0.01 * abs(place - 15), lr=lr, pool=POOL.choices[place % 3])  # type: ignore[arg-type]
    mark, said = answered(study, MATTER)
    assert mark == "fine"
    assert "lies in training.lr" in said
    few = study_of()
    for one in study.trials[:12]:
        few.add_trial(one)
    mark, said = answered(few, MATTER)
    assert mark == "look" and "12 complete trials make this a hint and no more" in said


def prune(study: Study, *curve: float) -> None:
    add(study, curve[-1], curve=curve, state=TrialState.PRUNED)


@pytest.mark.parametrize(
    ("cut", "mark", "said"),
    [
        ([0.2, 0.25], "fine", "No: none of 4 pruned trials was ahead of trial 4 when cut"),
        ([0.52, 0.552], "look", "Not likely: 4 of 4 pruned trials were ahead of trial 4"),
        ([0.7, 0.9], "act", "Perhaps: 4 of 4 pruned trials were ahead of trial 4"),
    ],
)
def test_pruning(cut: list[float], mark: str, said: str) -> None:
    study = study_of()
    for final in (0.7, 0.75, 0.8, 0.85, 0.9):
        # At epoch 2 all are where they will be in the end, but for a third of the way.
        add(study, final, curve=[0.3, final - 0.35, final])
    for _ in range(4):
        prune(study, *cut)
    found = answered(study, PRUNED)
    assert found[0] == mark and found[1].startswith(said)


def test_a_winner_that_came_from_behind() -> None:
    study = study_of()
    for place in range(9):
        add(study, 0.7, curve=[0.6 + place / 100, 0.7])
    add(study, 0.71, curve=[0.5, 0.71])
    prune(study, 0.4)
    mark, said = answered(study, PRUNED)
    assert mark == "look"
    assert "after epoch 1, the median of the cuts, that was number 10 of the 10 complete" in said


@pytest.mark.parametrize(("best", "noise", "luck"), [(0.9, "fine", "fine"), (0.801, "act", "act")])
def test_gain_against_noise_and_luck(best: float, noise: str, luck: str) -> None:
    study = study_of()
    add_baseline(study)
    for value in (0.7, 0.75, best):
        add(study, value)
    assert answered(study, NOISE)[0] == noise
    assert answered(study, LUCK)[0] == luck
    assert "the standard error on 10,000 validation images" in answered(study, NOISE)[1]


def test_a_gain_above_the_noise_may_be_below_luck() -> None:
    study = study_of()
    add_baseline(study)
    for _ in range(60):
        add(study, 0.79)
    add(study, 0.8085)  # 0.85 points, of 0.39 points of noise
    assert answered(study, NOISE)[0] == "fine"
    mark, said = answered(study, LUCK)
    assert mark == "act" and "the luckiest of 61 equal plans would look 0.91 points" in said


@pytest.mark.parametrize("low", [0.01, -0.01])
def test_what_was_confirmed_counts_more_than_what_is_estimated(low: float) -> None:
    study = study_of()
    add_baseline(study)
    for value in (0.7, 0.75, 0.9):
        add(study, value)
    found = Verdict(3, 0.88, 0.8, 0.08, low, 0.15, 0.02, 5, (3, 2))
    study.set_user_attr(attrs.CONFIRMED, found.to_json())
    assert answered(study, NOISE)[0] == ("fine" if low > 0 else "look")
    mark, said = answered(study, LUCK)
    assert mark == ("fine" if low > 0 else "look")
    assert "over 5 seeds the mean of trial 3 is 2.00 points worse than its value" in said


def test_noise_of_folds_is_the_error_of_their_mean() -> None:
    study = study_of()
    study.set_user_attr(attrs.DATASET, {"train": 400, "validation": 400, "folds": [100] * 4})
    add_baseline(study)
    add(study, 0.9, **{attrs.DEVIATIONS: {"accuracy": 0.02}})
    said = answered(study, NOISE)[1]
    assert "of 1.0 points, the standard error of the mean of 4 folds" in said


def test_luck_of_many() -> None:
    # The means of the largest of so many normal values (Harter 1961, table 1).
    for count, mean in ((2, 0.564), (10, 1.539), (100, 2.508), (400, 2.968)):
        assert luckiest(count) == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize(
    "made",
    [
        {"trials": 0, "running": 0, "failed": 0},
        {"trials": 0, "running": 2, "failed": 1},
        {"trials": 1, "running": 0, "failed": 0},
        {"trials": 2, "running": 0, "failed": 0},
        {"trials": 40, "objective": "log_loss"},
        {"trials": 40, "objectives": ["accuracy", "latency_ms"]},
        {"trials": 40, "others": {"small": 3}},
        {"trials": 40, "gain": -0.05},
        {"trials": 20, "constraints": {"max_latency_ms": 0.1}},
        {"trials": 12, "hostile": True},
    ],
    ids=str,
)
def test_every_kind_of_study_is_asked(made: dict[str, Any]) -> None:
    study = make_study(**made)
    found = diagnose(study)
    assert len({one.question for one in found}) == len(found)
    assert all(one.answer.endswith(".") and "nan" not in one.answer for one in found)
    assert len(found) >= (9 if made["trials"] == 40 and "gain" not in made else 0)
    parsed = Parsed(render_report(study))
    assert [one for one in parsed.of("dt") if one.endswith("?")] == [one.question for one in found]
    assert ("Questions to ask of a study" in parsed.of("h2")) == bool(found)


def test_trials_of_unknown_origin_are_asked_too() -> None:
    study = optuna.create_study()
    assert diagnose(study) == ()
    study.add_trial(create_trial(value=float("inf")))
    study.add_trial(create_trial(value=0.5, intermediate_values={3: 0.5, 7: float("nan")}))
    assert all(one.mark == "fine" for one in diagnose(study))
