"""The diagnostics of studies in which the answer is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.facts import Facts, Severity
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.study_results import StudyResults
from autotune.results.values.verdict import Verdict
from autotune.study.state import attrs
from autotune.study.state.budget import EXHAUSTED, StopReason
from tests.support.study.studies import ONE_PARAMETER, curves_of, image_scores_of, make_study

RATE = FloatDistribution(1e-4, 1.0, log=True)
POOL = CategoricalDistribution(["avg", "max", "avgmax"])
IMAGES = 10_000  # the standard error of a difference is about 0.15 points

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
LUCK = "Is the gain larger than what choosing among the trials brings?"


def study_of(*values: float, baseline: float | None = None, direction: str = "maximize") -> Study:
    """Make a study with a baseline, if one is given, and a complete trial of each value."""
    study = optuna.create_study(direction=direction)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["accuracy"])
    study.set_user_attr(attrs.DATASET, {"train": 200, "validation": IMAGES})
    study.set_user_attr(attrs.DEFINITION, {"training": {"epochs": 10}})
    if baseline is not None:
        add(study, baseline, lr=None, **{attrs.ROLE: attrs.BASELINE})
    for value in values:
        add(study, value)
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
    if value is not None and state == TrialState.COMPLETE and math.isfinite(value):
        seed = len(study.get_trials(deepcopy=False))
        attributes = {attrs.IMAGE_SCORES: image_scores_of(value, IMAGES, seed), **attributes}
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


def answered(study: Study, question: str) -> tuple[Severity, str]:
    """Return severity and answer of a question."""
    found = diagnose(Facts(StudyResults.from_study(study)))[question]
    return found.severity, found.answer


LR = "learning rate (training.lr)"


@pytest.mark.parametrize(
    ("value", "lr", "found"),
    [
        (0.9, 0.9, ("action", f"Yes: {LR} = 0.9 at the upper end (1), in trial 5.")),
        (0.9, 1.1e-4, ("action", f"Yes: {LR} = 0.00011 at the lower end (0.0001), in ")),
        (0.9, 0.01, ("ok", "No: trial 5 lies inside the space in every parameter.")),
        # The baseline is best.
        (0.7, 0.9, ("action", f"Yes: {LR} = 0.9 at the upper end (1), in trial 5, the best ")),
    ],
)
def test_edges(value: float, lr: float, found: tuple[str, str]) -> None:
    study = study_of(0.5, 0.5, 0.5, 0.5, baseline=0.8)
    assert answered(study, EDGE)[0] == "unknown"  # of few plans, one is at an edge by chance
    add(study, value, lr=lr)
    severity, text = answered(study, EDGE)
    assert severity == found[0] and text.startswith(found[1])


@pytest.mark.parametrize(
    ("close", "late", "enough", "more"),
    [
        (4, 0.95, ("warning", "Not yet: the best value still rises"), ("action", "Probably: ")),
        (4, 0.9, ("ok", "Yes: "), ("ok", "Hardly: ")),
        (4, 0.9005, ("ok", "Yes: "), ("ok", "Hardly: ")),
        (2, 0.9, ("warning", "Hardly: 2 of 21 other trained plans lie"), ("warning", "Perhaps: ")),
        (0, 0.95, ("warning", "Not yet: "), ("action", "Probably: ")),
    ],
)
def test_enough_trials(
    close: int, late: float, enough: tuple[str, str], more: tuple[str, str]
) -> None:
    study = study_of(baseline=0.8)
    add(study, 0.9)
    for number in range(20):
        # A tenth of a decade of four, and the other end with another pool.
        lr, pool = (0.0125, "max") if number < close else (0.8, "avg")
        add(study, 0.85, lr=lr, pool=pool)
    add(study, late, pool="max" if late != 0.9 else "avg", lr=0.01 if late != 0.9 else 0.8)
    for question, (severity, start) in ((DENSE, enough), (MORE, more)):
        found, text = answered(study, question)
        assert (found, text[: len(start)]) == (severity, start)


def test_a_space_that_is_exhausted_needs_no_more_trials() -> None:
    study = study_of(0.9, baseline=0.8)
    study.set_user_attr(attrs.ENDED, StopReason(EXHAUSTED, "every plan has been tried").to_json())
    text = "every plan of the space has been tried."
    assert answered(study, MORE) == ("ok", f"No: {text}")
    assert answered(study, DENSE) == ("ok", f"Yes: {text}")


_ANSWERS = {  # how an answer to "enough plans?" begins -> how one to "more trials?" does
    "Cannot tell yet": "Cannot tell yet",
    "Not yet": "Probably",
    "Hardly": "Perhaps",
    "Yes": ("Hardly", "No"),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.builds(
        dict,
        trials=st.integers(0, 45),
        running=st.integers(0, 2),
        failed=st.integers(0, 6),
        gain=st.sampled_from([-0.05, 0.0, 0.01, 0.11]),
        objective=st.sampled_from(["accuracy", "macro_f1", "log_loss"]),
        space=st.sampled_from([None, ONE_PARAMETER]),
        seed=st.integers(0, 20),
    )
)
def test_no_two_answers_contradict_each_other(made: dict[str, Any]) -> None:
    results = StudyResults.from_study(make_study(**made))
    found = diagnose(Facts(results))
    enough, more = found[DENSE], found[MORE]
    assert len(found) == 11
    assert more.answer.startswith(_ANSWERS[enough.answer.partition(":")[0]])
    for one in found.values():
        assert one.answer.startswith("Cannot tell yet: ") == (one.severity == "unknown")
        assert one.answer.endswith(".") and "nan" not in one.answer
    texts = " ".join(step.text for step in next_steps(results))
    assert "more trials" not in texts or more.severity != "ok"
    assert bool(texts) == (made["trials"] + made["running"] + made["failed"] != 0) or texts
    answer = find_answer(results)
    assert (answer.trial is None) == (results.best is None)
    assert answer.plain.endswith(".") and answer.text


@pytest.mark.parametrize(
    ("beyond", "failed", "severity"),
    [(0, 0, "unknown"), (2, 0, "ok"), (3, 0, "warning"), (8, 0, "action"), (0, 3, "action")],
)
def test_feasibility(beyond: int, failed: int, severity: str) -> None:
    study = study_of(*[0.8] * 8)
    for _ in range(beyond):
        study.add_trial(create_trial(state=TrialState.PRUNED, constraints={"max_parameters": 1.0}))
    for _ in range(failed):
        add(study, None, state=TrialState.FAIL, **{attrs.REASON: "PlanError: too wide"})
    found, text = answered(study, FEASIBLE)
    assert found == severity
    assert f"{beyond} were beyond" in text or not beyond + failed
    assert severity != "unknown" or text == "Cannot tell yet: 8 finished trials; 10 are needed."


def test_diverged_trials_are_told_with_their_learning_rate() -> None:
    study = study_of()
    for number in range(9):
        value = 0.7 + number / 100
        assert answered(study, STABLE)[0] == "unknown"
        add(study, value, curve=[value - 0.02, value - 0.01, value - 0.001, value])
    add(study, 0.81, curve=[0.8, 0.8, 0.81])
    assert answered(study, STABLE)[0] == "ok"
    reason = {attrs.REASON: "DivergedError: the loss is nan in epoch 2"}
    for lr in (0.5, 0.6):
        add(study, None, lr=lr, state=TrialState.FAIL, **reason)
    severity, text = answered(study, STABLE)
    assert severity == "action"
    assert text.startswith("No: 2 of 12 trainings diverged")
    assert text.endswith("those that diverged had a learning rate of 0.5 or more.")
    # A retry of the same attempt brought it to its end.
    add(study, 0.6, lr=0.5, curve=[0.5, 0.6], **{attrs.RETRIES: [10]})
    assert answered(study, STABLE)[1].startswith("Yes: 1 of 12 trainings diverged")


def test_curves_that_jump() -> None:
    study = study_of()
    for number in range(10):
        add(study, 0.8 + number / 100, curve=[0.3, 0.5, 0.8, 0.7, 0.8 + number / 100])
    severity, text = answered(study, STABLE)
    assert severity == "warning" and "worsens by at most 10.00 points" in text


@pytest.mark.parametrize(
    ("curve", "overfits", "long"),
    [
        ([0.5, 0.7, 0.8, 0.85, 0.899, 0.9], "ok", "ok"),
        ([0.5, 0.6, 0.7, 0.75, 0.8, 0.9], "ok", "warning"),
        ([0.5, 0.9, 0.95, 0.93, 0.91, 0.9], "action", "ok"),
        ([0.5, 0.9, 0.9025, 0.9, 0.9, 0.9], "warning", "ok"),
        ([0.5, 0.9, 0.901, 0.9, 0.9, 0.9], "ok", "ok"),
    ],
)
@pytest.mark.parametrize("minimized", [False, True])
def test_curves_of_the_best(curve: list[float], overfits: str, long: str, minimized: bool) -> None:
    # The same curve upside down, judged by the same images, is the same.
    study = study_of(direction="minimize" if minimized else "maximize")
    curve = [1 - value for value in curve] if minimized else curve
    add(study, curve[-1], curve=curve)
    # Of a single trial it is not known how far values differ by chance.
    is_rising = curve[-1] in (max(curve), min(curve))
    assert answered(study, OVERFIT)[0] == ("ok" if is_rising else "unknown")
    add(study, curve[-1] + (0.001 if minimized else -0.001))
    severity, text = answered(study, OVERFIT)
    assert (severity, answered(study, LONG)[0]) == (overfits, long)
    if overfits == "action":
        start = "It may: trial 0 was best after epoch 3 of 6 and has lost 5.00 points since"
        assert text.startswith(start)


FALLING = [1.0, 0.7, 0.5, 0.4, 0.3, 0.2]
RISING = [0.9, 0.6, 0.5, 0.6, 0.7, 0.8]
STILL, WORSE = [0.5, 0.7, 0.8, 0.85, 0.899, 0.9], [0.5, 0.9, 0.95, 0.93, 0.91, 0.9]


@pytest.mark.parametrize(
    ("values", "losses", "overfits", "long"),
    [
        (
            WORSE,
            (FALLING, RISING),
            ("action", "Yes: the validation loss of trial 0 was lowest after epoch 3 of 6"),
            ("ok", "Its validation loss has been rising since epoch 3"),
        ),
        (
            STILL,
            (FALLING, RISING),
            ("warning", "The accuracy has not suffered from it: the network gets too sure"),
            ("ok", "Its validation loss has been rising since epoch 3"),
        ),
        (
            [0.5, 0.6, 0.7, 0.75, 0.8, 0.9],  # gains while its loss rises
            (FALLING, RISING),
            ("warning", "while the training loss fell by 0.3 nats"),
            ("unknown", "Cannot tell yet: trial 0 gained 10.00 points in its last epoch"),
        ),
        (
            WORSE,
            (RISING, RISING),
            ("warning", "No, but it got worse: "),
            ("ok", "Yes: trial 0 lost 1.00 points in its last epoch"),
        ),
        (
            STILL,
            (FALLING, FALLING),
            ("ok", "No sign of it: the validation loss of trial 0 was lowest after its last"),
            ("warning", "Both losses still fell in its last epoch: that of training by 0.1 nats"),
        ),
        (
            STILL,
            (FALLING, [0.9, 0.6, 0.5, 0.501, 0.502, 0.503]),
            ("ok", "has risen by 0.003 nats since; chance explains "),
            ("ok", "Yes: trial 0 gained 0.10 points"),
        ),
        (
            STILL,
            (FALLING, [0.9, 0.6, 0.5, 0.505, 0.52, 0.53]),
            ("unknown", "Cannot tell yet: the validation loss of trial 0 was lowest after"),
            ("ok", "Yes: trial 0 gained 0.10 points"),
        ),
        (
            WORSE[:4],
            (FALLING[:4], RISING[:4]),
            ("unknown", "Cannot tell yet: trial 0 has the losses of 4 epochs; 5 are needed."),
            ("ok", "Yes: trial 0 lost 2.00 points in its last epoch"),
        ),
    ],
)
def test_losses_of_the_best(
    values: list[float],
    losses: tuple[list[float], list[float]],
    overfits: tuple[str, str],
    long: tuple[str, str],
) -> None:
    study, curves = study_of(), curves_of(*losses, error=0.01)
    add(study, values[-1], curve=values, **{attrs.CURVES: curves})
    add(study, values[-1] - 0.001)
    for question, (severity, text) in ((OVERFIT, overfits), (LONG, long)):
        found = answered(study, question)
        assert found[0] == severity and text in found[1], found


def test_overfitting_is_cured_next_and_counted_among_the_best() -> None:
    study = study_of(baseline=0.5)
    for number in range(4):
        curves = curves_of(FALLING, RISING if number else FALLING, error=0.01)
        value = 0.9 + number / 100
        add(study, value, curve=[*WORSE[:5], value], **{attrs.CURVES: curves})
    text = answered(study, OVERFIT)[1]
    assert "; 3 of the 4 best curves overfit" in text
    steps = [step.text for step in next_steps(StudyResults.from_study(study))]
    assert steps[-1].startswith("Fewer epochs, or more against it: weight decay, dropout")
    assert f"The reason: {text.removeprefix('Yes: ')}" in steps[-1]


def test_a_training_that_still_learns_is_made_longer_next() -> None:
    study = study_of(baseline=0.5)
    add(study, 0.9, curve=STILL, **{attrs.CURVES: curves_of(FALLING, FALLING, error=0.01)})
    *_, step = next_steps(StudyResults.from_study(study))
    assert step.text.startswith("Train for longer, 20 epochs instead of 10: both losses of ")
    assert "training.epochs=20" in step.command and "--name no-name" in step.command


def test_which_parameters_matter() -> None:
    study, few = study_of(), study_of()
    for place in range(30):
        lr, pool = 10 ** (-4 + 4 * place / 29), str(POOL.choices[place % 3])
        for each in (study, few) if place < 12 else (study,):
            add(each, 0.9 - 0.01 * abs(place - 15), lr=lr, pool=pool)
    severity, text = answered(study, MATTER)
    assert severity == "ok" and "lies in learning rate" in text
    text = "Cannot tell yet: 12 complete trials; 20 are needed."
    assert answered(few, MATTER) == ("unknown", text)


@pytest.mark.parametrize(
    ("cut", "severity", "start"),
    [
        ([0.2, 0.25], "ok", "No: none of 4 pruned trials was ahead of trial 4 when cut"),
        ([0.52, 0.552], "warning", "Not likely: 4 of 4 pruned trials were ahead of trial 4"),
        ([0.7, 0.9], "action", "Perhaps: 4 of 4 pruned trials were ahead of trial 4"),
    ],
)
def test_pruning(cut: list[float], severity: str, start: str) -> None:
    study = study_of()
    for final in (0.7, 0.75, 0.8, 0.85, 0.9):
        # At epoch 2 all are where they will be in the end, but for a third of the way.
        add(study, final, curve=[0.3, final - 0.35, final])
    for _ in range(4):
        add(study, cut[-1], curve=cut, state=TrialState.PRUNED)
    found, text = answered(study, PRUNED)
    assert found == severity and text.startswith(start)


def test_a_winner_that_came_from_behind() -> None:
    study = study_of()
    for place in range(9):
        add(study, 0.7, curve=[0.6 + place / 100, 0.7])
    add(study, 0.71, curve=[0.5, 0.71])
    add(study, 0.4, curve=[0.4], state=TrialState.PRUNED)
    severity, text = answered(study, PRUNED)
    assert severity == "warning"
    assert "after epoch 1, the median of the cuts, that was number 10 of the 10 complete" in text


@pytest.mark.parametrize(
    ("values", "noise", "luck"),
    [
        ((0.7, 0.75, 0.9), "ok", "ok"),
        ((0.7, 0.75, 0.801), "action", "action"),
        # 0.32 points, at 0.16 points of noise: too little for the best of 60 equal plans.
        ((*[0.803] * 60, 0.8032), "ok", "action"),
    ],
)
def test_gain_against_noise_and_luck(values: tuple[float, ...], noise: str, luck: str) -> None:
    study = study_of(*values, baseline=0.8)
    severity, text = answered(study, NOISE)
    assert severity == noise
    assert "the standard error of differences on the same 10,000 validation images" in text
    severity, text = answered(study, LUCK)
    assert severity == luck and f"the choice among {len(values) + 1} plans by" in text


@pytest.mark.parametrize(("low", "severity"), [(0.01, "ok"), (-0.01, "warning")])
def test_a_confirmation_counts_more_than_an_estimate(low: float, severity: str) -> None:
    study = study_of(0.7, 0.75, 0.9, baseline=0.8)
    verdict = Verdict(3, 0.88, 0.8, 0.08, low, 0.15, 0.02, 5, (3, 2))
    study.set_user_attr(attrs.CONFIRMED, verdict.to_json())
    assert answered(study, NOISE)[0] == severity
    found, text = answered(study, LUCK)
    assert found == severity
    assert "over 5 seeds the mean of trial 3 is 2.00 points worse than its value" in text


@pytest.mark.parametrize(
    ("best", "found"), [(0.9, "Yes: the gain of 10.0 points is 3.7"), (0.84, "Cannot tell yet: ")]
)
def test_studies_of_older_versions_have_the_largest_noise_there_can_be(
    best: float, found: str
) -> None:
    study = study_of()
    study.set_user_attr(attrs.DATASET, {"train": 400, "validation": 400})
    for value, role in ((0.8, {attrs.ROLE: attrs.BASELINE}), (best, {})):
        add(study, value, **{attrs.IMAGE_SCORES: None, **role})
    text = answered(study, NOISE)[1]
    assert text.startswith(found)
    assert "the largest standard error that a difference can have on the same 400" in text


def test_values_that_are_not_finite_are_left_out() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=float("inf")))
    study.add_trial(create_trial(value=0.5, intermediate_values={3: 0.5, 7: float("nan")}))
    found = diagnose(Facts(StudyResults.from_study(study)))
    assert {one.severity for one in found.values()} <= {"ok", "unknown"}
