"""What pruning and the caches have saved."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState, create_trial

from autotune.results.diagnosis.savings import Saving, saved_of
from autotune.results.report.html import render_report
from autotune.study.state import attrs
from tests.support.page import Parsed
from tests.support.studies import make_study


def by(study: Any, name: str) -> Saving | None:
    return next((one for one in saved_of(study) if one.by == name), None)


def test_pruning_is_priced_by_each_trial_s_own_epochs() -> None:
    study = make_study(trials=1, running=0, failed=0)
    for epochs, seconds in ((2, 8.0), (5, 10.0)):
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                value=0.5,
                user_attrs={attrs.EPOCHS: epochs, attrs.SECONDS: seconds},
            )
        )
    found = by(study, "pruning")
    assert found is not None
    assert found.counted == "13 of 30 epochs (43 %)"  # of ten epochs each
    assert found.time.startswith("an estimated 42 s, ")  # 8 x 4 s and 5 x 2 s
    study.add_trial(create_trial(state=TrialState.PRUNED, value=0.5, user_attrs={attrs.EPOCHS: 5}))
    found = by(study, "pruning")
    assert found == Saving("pruning", "18 of 40 epochs (45 %)")


def with_caches(*caches: dict[str, Any], folds: tuple[int, ...] = ()) -> Any:
    study = make_study(trials=1, running=0, failed=0)
    dataset = {"train": 200, "validation": 200 if folds else 100, "folds": list(folds)}
    study.set_user_attr(attrs.DATASET, {**study.user_attrs[attrs.DATASET], **dataset})
    plan = study.trials[0].user_attrs[attrs.PLAN]
    for one in caches:
        known = {attrs.EPOCHS: 10, attrs.CACHES: one, attrs.PLAN: plan}
        study.add_trial(create_trial(value=0.5, user_attrs=known))
    return study


def test_features_are_priced_by_those_that_were_computed() -> None:
    once = {"decoded": "once"}
    study = with_caches(
        {**once, "computed": 600, "seconds": 3.0}, {**once, "computed": 0, "seconds": 0.0}, once
    )
    found = by(study, "kept features")
    assert found is not None
    # Two trials of 10 epochs of 300 images; 600 computed at 5 ms, 5,400 not.
    assert found.counted.startswith("5,400 of 6,000 passes of an image through the frozen part")
    assert found.time.startswith("an estimated 27 s, at the 5 ms that each of the 600 computed")
    decoded = by(study, "decoded images")
    assert decoded is not None and decoded.time == ""
    assert decoded.counted.startswith("300 images, decoded at most once, stood for 9,000 showings")
    text = Parsed(render_report(study)).text
    assert found.time in text and decoded.counted in text


def test_features_of_another_study_are_counted_and_not_priced() -> None:
    found = by(with_caches({"decoded": "once", "computed": 0, "seconds": 0.0}), "kept features")
    assert found is not None
    assert (found.counted[:14], found.time) == ("3,000 of 3,000", "")


def test_images_of_folds_train_all_networks_but_one_and_judge_that() -> None:
    study = with_caches({"decoded": "once", "computed": 500, "seconds": 1.0}, folds=(100, 100))
    found = by(study, "kept features")
    assert found is not None and found.counted.startswith("3,500 of 4,000 ")
    decoded = by(study, "decoded images")
    assert decoded is not None and decoded.counted.startswith("200 images, ")


def test_an_attempt_that_was_given_back_counts_once() -> None:
    study = with_caches({"decoded": "once", "computed": 300, "seconds": 1.0})
    study.add_trial(
        create_trial(
            value=0.5,
            user_attrs={**study.trials[-1].user_attrs, attrs.RETRIES: [study.trials[-1].number]},
        )
    )
    found = by(study, "kept features")
    assert found is not None and found.counted.startswith("2,700 of 3,000 ")


def test_what_is_not_recorded_is_not_claimed() -> None:
    assert {one.by for one in saved_of(make_study())} == {"pruning"}
    assert saved_of(make_study(trials=0, running=0, failed=0)) == ()
    assert by(with_caches({"decoded": "anew"}), "decoded images") is None
