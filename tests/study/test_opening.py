"""Studies remember their definition and refuse another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

import autotune.models
from autotune.errors import StudyError
from autotune.plan import TrialPlan
from autotune.search.space import Space
from autotune.study import record
from autotune.study.budget import Budget, Ending
from autotune.study.definition import define
from autotune.study.opening import check_existing, differences, open_existing
from tests.support.images import make_class_folders
from tests.support.small import open_defined, open_small, small_config


def test_a_new_study_remembers_everything(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    attributes = opened.study.user_attrs
    config = small_config(tmp_path)
    assert attributes[record.DEFINITION] == config.definition()
    assert Space.from_json(attributes[record.SPACE]) == define(config).space
    assert Budget.of(opened.study) == Budget(trials=3)
    assert Ending.of(opened.study) is None
    assert attributes[record.DATASET]["train"] == 50
    assert len(attributes[record.BACKBONE]["layers"]) == 5
    assert attributes[record.ENVIRONMENT]["optuna"] == optuna.__version__
    assert opened.study.metric_names == ["accuracy"]
    assert opened.study.direction == StudyDirection.MAXIMIZE
    assert opened.config().definition() == config.definition()


def test_the_baseline_is_queued_first_and_once(tmp_path: Path) -> None:
    open_small(tmp_path)
    opened = open_small(tmp_path)
    (trial,) = opened.study.get_trials()
    assert trial.state == TrialState.WAITING
    assert record.is_baseline(trial)
    plan = TrialPlan.from_json(trial.user_attrs[record.PLAN])
    assert (plan.depth, plan.head.hidden, plan.policy.lr) == (0, (), 0.03)
    assert trial.system_attrs["fixed_params"]["depth"] == 0


def test_a_baseline_outside_the_space_has_no_parameters(tmp_path: Path) -> None:
    opened = open_small(tmp_path, space__depth={"low": 2, "high": 3})
    (trial,) = opened.study.get_trials()
    assert trial.system_attrs["fixed_params"] == {}
    assert TrialPlan.from_json(trial.user_attrs[record.PLAN]).depth == 0


def test_log_loss_is_minimised(tmp_path: Path) -> None:
    opened = open_small(tmp_path, training__objective="log_loss")
    assert opened.study.direction == StudyDirection.MINIMIZE


def test_the_budget_may_change_and_the_space_may_not(tmp_path: Path) -> None:
    open_small(tmp_path)
    assert record.budget_of(open_small(tmp_path, search__trials=9).study) == 9
    changed = define(
        small_config(tmp_path, space__depth={"low": 0, "high": 4}, training__epochs=3)
    )
    with pytest.raises(StudyError) as caught:
        check_existing(changed)
    message = str(caught.value)
    assert "the study 'small' exists with another definition" in message
    assert "space.depth: {'low': 0, 'high': 5} in the study, {'low': 0, 'high': 4} now" in message
    assert "training.epochs: 2 in the study, 3 now" in message
    assert "--name small-2" in message
    with pytest.raises(StudyError):
        open_defined(changed)


def test_moved_images_are_the_same_and_changed_ones_are_not(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "here", {"ant": 20, "bee": 20})
    overrides = {"dataset": str(tmp_path / "here"), "data__train_per_class": None}
    open_small(tmp_path, **overrides)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = define(small_config(tmp_path, **{**overrides, "dataset": str(tmp_path / "there")}))
    check_existing(moved)
    next((tmp_path / "there").rglob("*.png")).unlink()
    changed = define(small_config(tmp_path, **{**overrides, "dataset": str(tmp_path / "there")}))
    with pytest.raises(StudyError, match="dataset: "):
        check_existing(changed)


def test_other_weights_are_a_difference_and_another_path_is_not(tmp_path: Path) -> None:
    open_small(tmp_path)
    shipped = Path(autotune.models.__file__).parent / "weights/test_resnet.letters.safetensors"
    shutil.copy(shipped, tmp_path / "copy.safetensors")
    check_existing(define(small_config(tmp_path, weights=str(tmp_path / "copy.safetensors"))))
    with pytest.raises(StudyError, match=r"weights: 'hub \(hash \w+\)' in the study, 'none"):
        check_existing(define(small_config(tmp_path, weights="none")))


def test_a_study_of_others_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    foreign = optuna.create_study(study_name="small", storage=url, direction="maximize")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="was not made by autotune"):
        open_small(tmp_path)
    with pytest.raises(StudyError, match="was not made by autotune"):
        open_existing("small", url)
    assert len(foreign.get_trials()) == 1


def test_unknown_studies_are_named_with_their_neighbours(tmp_path: Path) -> None:
    opened = open_small(tmp_path)
    with pytest.raises(StudyError, match=r"has no study 'smal'; it has small; did you mean"):
        open_existing("smal", opened.url)


def test_differences_name_dotted_keys() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": {"low": 0, "high": 1}}
    new = {"a": {"b": 1, "c": 3}, "d": {"low": 0, "high": 2}}
    assert differences(old, new) == [
        ("a.c", 2, 3),
        ("d", {"low": 0, "high": 1}, {"low": 0, "high": 2}),
    ]
    assert differences(old, old) == []
