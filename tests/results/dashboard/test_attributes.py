"""The attributes of studies and trials, as they are shown."""

from __future__ import annotations

from optuna.trial import create_trial

from autotune.results.dashboard.attributes import of_study, of_trial
from autotune.study.state import attrs
from tests.support.studies import make_study


def test_attributes_of_a_trial_are_flat_and_short() -> None:
    study = make_study()
    for trial in study.trials:
        shown = of_trial(trial)
        assert all(isinstance(one, str | int | float) for one in shown.values())
        assert all(len(str(one)) <= 80 for one in shown.values())
        assert attrs.PLAN not in shown and attrs.METRICS not in shown
    shown = of_trial(study.trials[0])
    assert (shown["accuracy"], shown["parameters"]) == (0.8417, 24_000)
    assert (shown["role"], shown["device"]) == ("baseline", "NVIDIA H200")
    assert any("earlier_attempts" in of_trial(one) for one in study.trials)


def test_what_is_not_ours_stays() -> None:
    attributes = {"mine": {"a": [1, 2]}, "long": "x" * 100, "yes": True, "n": 3, "x": 1 / 3}
    trial = create_trial(value=0.0, user_attrs=attributes)
    assert of_trial(trial) == {
        "mine": '{"a": [1, 2]}',
        "long": "x" * 79 + "…",
        "yes": "true",
        "n": 3,
        "x": 0.3333,
    }


def test_deviations_over_folds_have_names_of_their_own() -> None:
    attributes = {attrs.METRICS: {"accuracy": 0.5}, attrs.DEVIATIONS: {"accuracy": 0.01234567}}
    trial = create_trial(value=0.5, user_attrs=attributes)
    assert of_trial(trial) == {"accuracy": 0.5, "accuracy_deviation": 0.01235}


def test_attributes_of_a_study() -> None:
    study = make_study()
    study.set_user_attr(attrs.PRECISION, {"resnet": {"NVIDIA H200": "bf16"}})
    study.set_user_attr(attrs.FLOAT32, {"NVIDIA H200": "tf32"})
    study.set_user_attr("mine", "kept")
    assert of_study(study.user_attrs) == {
        "python": "3.11.7",
        "torch": "2.9.0",
        "timm": "1.0.31",
        "precision of resnet on NVIDIA H200": "bf16",
        "float32 on NVIDIA H200": "tf32",
        "files": "/data/digits-files",
        "mine": "kept",
    }
