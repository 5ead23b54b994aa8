"""The attributes of studies and trials, as they are shown."""

from __future__ import annotations

from optuna.trial import create_trial

from autotune.results.dashboard.attributes import study_attributes, trial_attributes
from autotune.study.state import attrs
from tests.support.study.studies import make_study


def test_attributes_of_a_trial_are_flat_and_short() -> None:
    study = make_study()
    for trial in study.trials:
        shown = trial_attributes(trial)
        assert all(isinstance(one, str | int | float) for one in shown.values())
        assert all(len(str(one)) <= 80 for one in shown.values())
        assert attrs.PLAN not in shown and attrs.METRICS not in shown
    shown = trial_attributes(study.trials[0])
    assert (shown["accuracy"], shown["parameters"]) == (0.8417, 24_000)
    assert (shown["role"], shown["device"]) == ("baseline", "NVIDIA H200")
    assert any("earlier_attempts" in trial_attributes(trial) for trial in study.trials)


def test_what_is_not_ours_stays() -> None:
    attributes = {"mine": {"a": [1, 2]}, "long": "x" * 100, "yes": True, "n": 3, "x": 1 / 3}
    trial = create_trial(value=0.0, user_attrs=attributes)
    assert trial_attributes(trial) == {
        "mine": '{"a": [1, 2]}',
        "long": "x" * 79 + "…",
        "yes": "true",
        "n": 3,
        "x": 0.3333,
    }


def test_deviations_over_folds_have_names_of_their_own() -> None:
    attributes = {attrs.METRICS: {"accuracy": 0.5}, attrs.DEVIATIONS: {"accuracy": 0.01234567}}
    trial = create_trial(value=0.5, user_attrs=attributes)
    assert trial_attributes(trial) == {"accuracy": 0.5, "accuracy_deviation": 0.01235}


def test_attributes_of_a_study() -> None:
    study = make_study()
    study.set_user_attr(attrs.PRECISION, {"resnet": {"NVIDIA H200": "bf16"}})
    study.set_user_attr(attrs.FLOAT32, {"NVIDIA H200": "tf32"})
    study.set_user_attr("mine", "kept")
    assert study_attributes(study.user_attrs) == {
        "python": "3.11.7",
        "torch": "2.9.0",
        "timm": "1.0.31",
        "precision of resnet on NVIDIA H200": "bf16",
        "float32 on NVIDIA H200": "tf32",
        "files": "/data/digits-files",
        "mine": "kept",
    }
