"""A study over image sizes and strengths of augmentation: defined, trained, refitted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import ConfigError
from autotune.plan import TrialPlan
from autotune.results.evaluation.refit import refit_study
from autotune.results.model.model_folder import load_model
from autotune.study.setup.definition import Definition, define
from autotune.study.setup.initial_trials import _with_images_as
from autotune.study.setup.opening import OpenStudy, check_existing
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from autotune.study.trial.retrain import retrain
from tests.support.commands.inline import run
from tests.support.study.small import defined, open_defined, small_config

POLICY = {"policy": "trivial", "strength": [0.0, 0.5]}
SEVERAL: dict[str, Any] = {
    "data__image_size": [16, 24],
    "training__num_views": 2,
    "training__augment": POLICY,
    "training__epochs": 1,
    "space__layers": {},
    "search__pruner": "none",
}


def definition(folder: Path, **overrides: Any) -> Definition:
    return defined(small_config(folder, **{**SEVERAL, **overrides}))


def test_the_space_has_them_and_the_baseline_the_largest_size(tmp_path: Path) -> None:
    found = definition(tmp_path)
    assert [spec.size for spec in found.specs] == [24, 16]
    space = found.space
    assert space.distributions["image_size"].choices == (16, 24)  # type: ignore[attr-defined]
    assert list(space.distributions)[-2:] == ["image_size", "augment_strength"]
    baseline = space.baseline()
    assert (baseline.image_size, baseline.augment_strength) == (24, 0.0)
    other = replace(baseline, image_size=16, augment_strength=0.5)
    for plan in (baseline, other):
        params = space.params(plan)
        assert params is not None and space.plan(params) == plan
        assert TrialPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert space.params(replace(baseline, image_size=None)) is None
    assert other.describe().endswith(", images of 16 px, augmentation 0.5")


def test_a_plan_of_a_study_with_one_size_is_stored_as_before() -> None:
    assert TrialPlan("resnet18").to_json().keys() == {
        *("backbone", "depth", "layers", "head", "policy", "inherit")
    }


@pytest.mark.parametrize(
    ("backbone", "sizes", "told"),
    [
        ("test_vit", [16, 30, 48, 50], "'test_vit' cannot take images of 50, 30 px (Input height"),
        (
            "test_convnext",
            {"low": 16, "high": 48, "step": 16},
            "cannot take images of 16 px (Calc",
        ),
    ],
)
def test_sizes_that_a_backbone_cannot_take_are_named_at_once(
    tmp_path: Path, backbone: str, sizes: Any, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        define(
            small_config(
                tmp_path,
                **{**SEVERAL, "data__image_size": sizes},
                backbone=backbone,
                weights="none",
            )
        )
    (problem,) = caught.value.problems
    assert problem.key == "backbone" and told in problem.message
    assert problem.message.endswith("leave them out of data.image_size")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__image_size": {"low": 16, "high": 32}}, "a range of sizes needs a step"),
        ({"data__image_size": [*range(16, 64, 4)]}, "must be at most 8 sizes"),
        ({"training__augment": {**POLICY, "policy": "none"}}, "without a policy"),
        ({"training__num_views": 1}, "without views"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        small_config(tmp_path, **{**SEVERAL, **changes})


def test_position_tables_have_a_hash_for_each_size(tmp_path: Path) -> None:
    """A transformer's weights are interpolated, and a worker compares those of its size."""
    transformer = {"backbone": "test_vit", "weights": "none", "data__image_size": [16, 32]}
    found = definition(tmp_path, **transformer, space__trainable_layers=1)
    handle = open_defined(found)
    facts = handle.study.user_attrs[attrs.BACKBONES]["test_vit"]
    assert set(facts["hashes_by_size"]) == {"16", "32"}
    assert len(set(facts["hashes_by_size"].values())) == 2
    resources = build_context(handle).resources
    for size in (16, 32):
        loaded = resources.get("test_vit", size, 0.5)
        assert loaded.backbone.weights_hash == facts["hashes_by_size"][str(size)]
        assert loaded.train.shape == (3, size, size)
    check_existing(found)


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    return open_defined(definition(tmp_path_factory.mktemp("sizes"), search__trials=3))


@pytest.fixture(scope="module")
def finished(handle: OpenStudy) -> OpenStudy:
    """The baseline (24 px, no policy) and two plans of 16 px."""
    space = attrs.study_space(handle.study)
    for strength in (0.0, 0.5):
        plan = replace(space.baseline(), image_size=16, augment_strength=strength)
        handle.study.enqueue_trial(space.params(plan) or {})
    run(handle)
    return handle


def test_strengths_share_all_but_the_views_of_the_training_images(handle: OpenStudy) -> None:
    ctx = build_context(handle)
    backbone = ctx.space.backbone
    none, some, large = (
        ctx.resources.get(backbone, *own) for own in ((16, 0.0), (16, 0.5), (24, 0.5))
    )
    assert none.validation is some.validation and none.data is some.data
    assert torch.equal(none.train.view(0, 0), some.train.view(0, 0))
    assert not torch.equal(none.train.view(0, 1), some.train.view(0, 1))
    assert large.data.store.key != some.data.store.key
    assert ctx.resources.get(backbone, 16, 0.5) is some


def test_every_trial_is_trained_at_its_size_and_again(finished: OpenStudy) -> None:
    trials = finished.study.get_trials()
    plans = [attrs.trial_plan(trial) for trial in trials]
    assert [(p.image_size, p.augment_strength) for p in plans if p] == [
        *((24, 0.0), (16, 0.0), (16, 0.5))
    ]
    ctx = build_context(finished)
    for trial, plan in zip(trials[1:], plans[1:], strict=True):
        assert plan is not None
        again = retrain(plan, ctx)
        assert again.metrics.objective("accuracy") == trial.value
        assert again.predicted.views.shape == (3, 16, 16)


def test_the_model_has_the_size_of_its_plan(finished: OpenStudy, tmp_path: Path) -> None:
    result = refit_study(finished, 2, tmp_path / "model")
    assert result.plan.image_size == 16
    record = json.loads((tmp_path / "model/record.json").read_text())
    assert (record["image_size"], record["plan"]["image_size"]) == (16, 16)
    assert record["preprocessing"]["input_size"] == [3, 16, 16]
    assert load_model(tmp_path / "model").spec.size == 16


def test_plans_of_other_studies_bring_their_size(finished: OpenStudy, tmp_path: Path) -> None:
    """From one size to several, and back."""
    config = small_config(tmp_path, **SEVERAL)
    plan = TrialPlan("test_resnet.letters")
    single = small_config(tmp_path)
    as_searched = _with_images_as(config, plan, open_defined(defined(single)).study)
    assert (as_searched.image_size, as_searched.augment_strength) == (16, 0.3)
    back = _with_images_as(single, replace(plan, image_size=24), finished.study)
    assert back == plan
