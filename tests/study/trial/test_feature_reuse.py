"""Trials that go on from features, in studies."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from autotune.data.cache.array_cache import ArrayCache
from autotune.errors import SplitError
from autotune.plan import TrainingPolicy
from autotune.search.parameters.dimensions import inactive_value
from autotune.search.space import Space
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.study.trial import feature_reuse
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import build_context
from autotune.training.features import Features
from tests.support.commands.inline import run
from tests.support.study.small import open_small


def kept(handle: OpenStudy) -> list[str]:
    return ArrayCache(handle.files.cache).keys("features")


def values(handle: OpenStudy) -> list[float]:
    return [value for trial in handle.study.trials for value in trial.intermediate_values.values()]


def small(folder: Path, **named: Any) -> OpenStudy:
    named = {
        "space__trainable_layers": [0, 1, 2],
        "search__trials": 6,
        "search__sampler": "random",
        **named,
    }
    return open_small(folder, search__pruner="none", training__num_views=2, **named)


@pytest.mark.slow
def test_features_change_no_value_but_by_rounding(tmp_path: Path) -> None:
    on, off = small(tmp_path / "on"), small(tmp_path / "off", cache__features="off")
    run(on)
    run(off)
    assert kept(on) and not kept(off)
    assert [attrs.trial_plan(trial) for trial in on.study.trials] == [
        attrs.trial_plan(trial) for trial in off.study.trials
    ]
    assert values(on) == pytest.approx(values(off), abs=0.06)
    assert all(attrs.UNSPLIT_REASON not in trial.user_attrs for trial in on.study.trials)
    assert all(trial.user_attrs[attrs.CACHES] == {"decoded": "once"} for trial in off.study.trials)


def test_what_is_computed_to_be_kept_is_counted(tmp_path: Path) -> None:
    handle = small(tmp_path, space__trainable_layers=0, space__layers={}, search__trials=2)
    run(handle)
    images = handle.study.user_attrs[attrs.DATASET]
    first, second = (trial.user_attrs[attrs.CACHES] for trial in handle.study.trials)
    # In two epochs two views of the training images, and one of the others.
    assert first.pop("seconds") > 0
    assert first == {"decoded": "once", "computed": 2 * images["train"] + images["validation"]}
    assert second == {"decoded": "once", "computed": 0, "seconds": 0.0}


def test_where_there_is_no_room_nothing_is_counted(tmp_path: Path) -> None:
    handle = small(tmp_path, search__trials=1, cache__disk_gb=2e-5)
    run(handle)
    assert not kept(handle)
    assert handle.study.trials[0].user_attrs[attrs.CACHES] == {"decoded": "anew"}


def test_all_cuts_come_from_the_deepest(tmp_path: Path) -> None:
    handle = small(tmp_path)
    ctx = build_context(handle)
    plans = {plan.depth: plan for plan in map(ctx.space.plan, draws(ctx.space))}
    assert sorted(plans) == [0, 1, 2]
    for depth in (0, 1, 2):
        training = build_trainer(plans[depth], ctx)
        assert isinstance(training.train, Features)
        (root,) = ctx.root_splits.values()
        assert root is not None
        assert (training.train._split.keys == root.keys) == (depth == 2)
        assert training.train._split.prefix(root.keys) is not None


def draws(space: Space) -> list[dict[str, Any]]:
    """Draw the simplest plan of each depth."""
    base = {name: inactive_value(found) for name, found in space.distributions.items()}
    return [{**base, "depth": depth} for depth in (0, 1, 2)]


def test_mixed_images_and_whole_networks_need_no_features(tmp_path: Path) -> None:
    handle = small(
        tmp_path, space__trainable_layers=1, space__training__mixup=0.2, search__trials=2
    )
    ctx = build_context(handle)
    plan = replace(ctx.space.baseline(), policy=TrainingPolicy(mixup=0.2))
    training = build_trainer(plan, ctx)
    assert training.mixing is not None
    assert training.train is training.raw_train
    assert training.unsplit_reason == ""


def test_what_cannot_be_split_trains_whole_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(network: Any, images: Tensor) -> None:
        raise SplitError("the backbone cannot be traced (of this test)")

    monkeypatch.setattr(feature_reuse, "split_network", refuse)
    handle = small(tmp_path, search__trials=2)
    with caplog.at_level(logging.WARNING):
        run(handle)
    reasons = {trial.user_attrs.get(attrs.UNSPLIT_REASON) for trial in handle.study.trials}
    assert reasons == {"the backbone cannot be traced (of this test)"}
    assert not kept(handle)
    said = [one.getMessage() for one in caplog.records if "trains whole" in one.getMessage()]
    assert len(said) == 1
