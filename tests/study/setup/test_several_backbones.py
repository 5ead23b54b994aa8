"""A study over two backbones: what is checked, what is remembered, and a run from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState

from autotune.errors import ConfigError, Problem, StudyError
from autotune.models.backbone import hash_weights
from autotune.results.diagnosis.space_edges import space_edges
from autotune.results.evaluation.refit import refit_study
from autotune.results.study_results import StudyResults
from autotune.search.space import Space
from autotune.study.engine import launcher
from autotune.study.setup import resources
from autotune.study.setup.definition import define
from autotune.study.setup.opening import OpenStudy, check_existing
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from tests.support.commands.inline import run
from tests.support.commands.inside import call
from tests.support.models.packages import random_model
from tests.support.pages.page import page_of
from tests.support.study.small import open_defined, open_small, small_config

RESNET, EFFICIENTNET = BOTH = ("test_resnet.letters", "test_efficientnet")
TWO: dict[str, Any] = {"backbone": list(BOTH), "weights": "none"}


# Definition


def test_every_backbone_has_its_own_file(tmp_path: Path) -> None:
    """The definition and a worker read it; the study refuses another one."""
    torch.save(random_model(5).state_dict(), tmp_path / "w.pth")
    each = {RESNET: str(tmp_path / "w.pth"), EFFICIENTNET: "none"}
    config = small_config(tmp_path, backbone=[*BOTH], weights=each)
    handle = open_defined(define(config))
    first = build_context(handle).resources.get(RESNET).backbone
    assert first.weights_hash == hash_weights(random_model(5))
    check_existing(define(small_config(tmp_path, backbone=[*BOTH], weights=[*each.values()])))
    with pytest.raises(StudyError) as caught:
        check_existing(define(small_config(tmp_path, backbone=[*BOTH], weights=["hub", "none"])))
    (line,) = (line for line in str(caught.value).splitlines() if line.startswith("  weights"))
    assert f"'{tmp_path}/w.pth of {RESNET} (hash " in line
    assert f"'hub of {RESNET} (hash " in line


def test_every_backbone_is_looked_at(tmp_path: Path) -> None:
    definition = define(small_config(tmp_path, **TWO, space__layers={"pool": ["keep", "avg3"]}))
    assert [backbone.name for backbone in definition.backbones] == [*BOTH]
    assert [len(backbone.layers) for backbone in definition.backbones] == [5, 6]
    assert [spec.interpolation for spec in definition.specs] == ["bilinear", "bicubic"]
    assert definition.space.backbones == BOTH
    assert next(iter(definition.space.distributions)) == "backbone"
    assert "layer.1.pool" in definition.space.distributions
    assert definition.space.limits[EFFICIENTNET].allowed["layer.1.pool"] == ("keep",)
    assert "layer.1.pool" not in definition.space.limits[RESNET].allowed


def problems_of(folder: Path, **overrides: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        define(small_config(folder, **{**TWO, **overrides}))
    return list(caught.value.problems)


def test_the_mistakes_of_all_backbones_are_reported_at_once(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        backbone=["test_resnt", "test_vit", "resnet18.zzz"],
        dataset="digitz",
        data__image_size=9,
    )
    assert [one.key for one in found] == ["dataset", "backbone", "backbone", "backbone"]
    assert "no backbone 'test_resnt'" in found[1].message
    assert "'test_vit' cannot take images of 9 px" in found[2].message
    assert "'resnet18' has no pretrained tag 'zzz'" in found[3].message


def test_a_mistake_is_given_the_name_of_its_backbone(tmp_path: Path) -> None:
    """Its images are not square, which shows before its weights are loaded."""
    (found,) = problems_of(
        tmp_path,
        backbone=[RESNET, "vit_base_patch16_sapiens2"],
        data__image_size=None,
        space__trainable_layers=1,
        space__layers={},
    )
    assert found.message.startswith("'vit_base_patch16_sapiens2': autotune feeds square images")


def test_the_space_has_to_fit_one_of_them(tmp_path: Path) -> None:
    define(small_config(tmp_path, **TWO, space__trainable_layers={"low": 0, "high": 6}))
    assert problems_of(
        tmp_path,
        space__trainable_layers={"low": 0, "high": 7},
        space__layers={"pool": ["keep", "avg3"], "dropout": 0.1, "max_layers": 2},
    ) == [
        Problem(
            "space.trainable_layers",
            f"must be at most 6, the number of layers of {EFFICIENTNET!r}, which has most, but "
            "got 7; 'all' takes what the backbone has",
        ),
        Problem(
            "space.layers.dropout",
            "; ".join(
                f"{name!r} must be keep, but got 0.1: it has no dropout (layer 1; nor can layer 2 "
                "take it)"
                for name in BOTH
            ),
        ),
    ]


def test_a_pooling_that_none_of_them_has(tmp_path: Path) -> None:
    kept = {"data__image_size": None, "space__trainable_layers": 1, "space__layers": {}}
    pools = {"space__head__pool": ["keep", "max"]}
    one_can = small_config(
        tmp_path, **{**TWO, "backbone": ["levit_128s", RESNET]}, **kept, **pools
    )
    assert define(one_can).space.limits["levit_128s"].allowed == {"head.pool": ("keep",)}
    (found,) = problems_of(tmp_path, backbone=["levit_128s", "levit_128"], **kept, **pools)
    assert found.key == "space.head.pool"
    assert "cannot pool with 'max'" in found.message
    assert found.message.endswith("; 'levit_128s' allows keep, avg; 'levit_128' allows keep, avg")


# Opening


@pytest.fixture
def handle(tmp_path: Path) -> OpenStudy:
    return open_small(tmp_path, **TWO)


def test_the_study_remembers_all_of_them(handle: OpenStudy, tmp_path: Path) -> None:
    attributes = handle.study.user_attrs
    assert {name: len(one["layers"]) for name, one in attributes[attrs.BACKBONES].items()} == {
        RESNET: 5,
        EFFICIENTNET: 6,
    }
    assert handle.config().backbones == BOTH
    space = Space.from_json(attributes[attrs.SPACE])
    assert space == define(small_config(tmp_path, **TWO)).space
    plan = attrs.trial_plan(handle.study.get_trials()[0])
    assert plan is not None and plan.backbone == RESNET
    assert len(attrs.backbone_layers(attributes, plan)) == 5
    for other, key in (
        ({"backbone": [RESNET, "test_vit"]}, "backbone: "),
        ({"backbone": [EFFICIENTNET, RESNET]}, "backbone: "),
    ):
        with pytest.raises(StudyError, match=key):
            check_existing(define(small_config(tmp_path, **{**TWO, **other})))


def test_the_hash_of_every_backbone_is_compared(handle: OpenStudy, tmp_path: Path) -> None:
    change_weights(handle, EFFICIENTNET)
    with pytest.raises(StudyError) as caught:
        check_existing(define(small_config(tmp_path, **TWO)))
    lines = str(caught.value).splitlines()
    assert lines[1].startswith(f"  weights: 'none of {EFFICIENTNET} (hash 0000")
    assert len([line for line in lines if line.startswith("  ")]) == 1


def change_weights(handle: OpenStudy, name: str) -> None:
    remembered = handle.study.user_attrs[attrs.BACKBONES]
    changed = {**remembered[name], "weights_hash": "0" * 32}
    handle.study.set_user_attr(attrs.BACKBONES, {**remembered, name: changed})


# What trials train with


def test_each_is_loaded_when_it_is_needed_and_sees_the_same_images_in_its_own_way(
    handle: OpenStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = resources.load_backbone

    def noted(name: str, *arguments: Any, **options: Any) -> Any:
        loaded.append(name)
        return load(name, *arguments, **options)

    monkeypatch.setattr(resources, "load_backbone", noted)
    ctx = build_context(handle)
    assert loaded == []
    second, first = (ctx.resources.get(name) for name in reversed(BOTH))
    assert ctx.resources.get(RESNET) is first
    assert loaded == [EFFICIENTNET, RESNET]
    assert first.data.spec != second.data.spec
    assert first.data.store.key != second.data.store.key
    assert first.data.info == second.data.info
    assert (first.data.train_rows == second.data.train_rows).all()
    assert torch.equal(first.train.labels, second.train.labels)
    assert torch.equal(first.validation.labels, second.validation.labels)
    change_weights(handle, EFFICIENTNET)
    ctx = build_context(handle)
    ctx.resources.get(RESNET)
    with pytest.raises(StudyError, match=f"weights 'none' of '{EFFICIENTNET}' have changed"):
        ctx.resources.get(EFFICIENTNET)


def test_their_views_share_the_memory_of_a_worker(handle: OpenStudy) -> None:
    shared = build_context(handle, workers=2).resources.memory_bytes
    assert shared == build_context(handle).resources.memory_bytes // 2
    first = build_context(handle).resources.get(RESNET)
    enough = first.train.cache_bytes + first.validation.cache_bytes
    assert min(first.train.cache_bytes, first.validation.cache_bytes) > 0
    for given, kept in ((enough, enough), (enough - 1, first.validation.cache_bytes), (0, 0)):
        handle.study.set_user_attr(attrs.CACHE, {"memory_gb": given / 1e9})
        resources = build_context(handle).resources
        assert sum(resources.get(name).cache_bytes for name in (RESNET, EFFICIENTNET)) <= given
        assert resources.get(RESNET).cache_bytes == kept


# From start to end


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    config = small_config(
        tmp_path_factory.mktemp("run"),
        **TWO,
        search__trials=3,
        search__sampler="random",
        search__pruner="none",
        search__default_plans=False,
        training__epochs=1,
        space__trainable_layers={"low": 0, "high": 6},
    )
    events: list[dict[str, Any]] = []
    handle = launcher._open(define(config), events.append)
    decoded = [event for event in events if event["event"] == "decoding"]
    assert sum(one["done"] == one["total"] for one in decoded) == 2
    baseline = handle.study.get_trials()[0].system_attrs["fixed_params"]
    handle.study.enqueue_trial({**baseline, "backbone": EFFICIENTNET, "depth": 6})
    said = [event["plan"] for event in run(handle) if event["event"] == "start"]
    assert all(one.startswith(tuple(f"{name}: " for name in BOTH)) for one in said)
    return handle


def test_both_are_trained(finished: OpenStudy) -> None:
    trials = finished.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    plans = [attrs.trial_plan(trial) for trial in trials]
    assert {plan.backbone for plan in plans if plan} == {*BOTH}
    space = Space.from_json(finished.study.user_attrs[attrs.SPACE])
    for trial, plan in zip(trials, plans, strict=True):
        assert plan is not None
        assert trial.params == space.params(plan)
        assert trial.params["backbone"] == plan.backbone


def test_summary_and_report_name_them(finished: OpenStudy) -> None:
    results = StudyResults.from_study(finished.study)
    assert results.best is not None and results.has_several_backbones
    plan = attrs.trial_plan(results.best)
    assert plan is not None
    page = page_of(finished.study)
    assert f"{RESNET}, {EFFICIENTNET} on digits" in page.text
    assert plan.describe(named=True) in page.text
    assert len(page.having("table", **{"class": "backbones stacked"})) == 1
    for trial in results.trials:
        space_edges(results, trial)


def test_fit_gives_each_its_own_images(finished: OpenStudy, tmp_path: Path) -> None:
    number = next(
        one.number for one in finished.study.get_trials() if one.params["backbone"] == EFFICIENTNET
    )
    result = refit_study(finished, number, tmp_path / "model")
    assert result.plan.backbone == EFFICIENTNET
    assert result.test != result.baseline
    values = json.loads((tmp_path / "model/record.json").read_text())
    assert values["preprocessing"]["interpolation"] == "bicubic"
    assert values["definition"]["backbone"] == [*BOTH]


def test_validate_names_them(tmp_path: Path) -> None:
    names = f"backbone=[{', '.join(BOTH)}]"
    ended = call("validate", "digits", names, "weights=none", "data.image_size=16", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert f"study 'digits-{'+'.join(BOTH)}'" in ended.out
    assert f"{RESNET} with 5 layers, {EFFICIENTNET} with 6 layers" in ended.out
    assert f"searched  backbone: {RESNET}, {EFFICIENTNET}" in ended.out
