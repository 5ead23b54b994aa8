"""Who takes part in the rounds of a race, and who goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.config.backbones import LARGE, SMALL, listed_backbones, presets_folder
from autotune.config.loading import presets, read_yaml
from autotune.models.backbone import license_of
from autotune.study.race.rounds import (
    Score,
    best_so_far,
    choose,
    rank,
    round_config,
    round_name,
    tuned_depth,
    tunings,
)
from tests.support.study.small import small_config


@pytest.mark.parametrize(
    ("depth", "backbones", "changes", "expected"),
    [
        ("all", 12, {}, [(6, 2), (3, 6)]),
        ({"low": 0, "high": "all"}, 4, {}, [(6, 2), (3, 6)]),
        ({"low": 0, "high": 3}, 3, {}, [(3, 6)]),
        ([0, 2], 2, {"training__epochs": 2}, [(3, 1)]),
        ([0, "all"], 12, {"backbone": {"race": "small", "keep": 4}}, [(6, 2), (5, 6)]),
        (0, 12, {}, []),
    ],
)
def test_rounds(
    depth: Any, backbones: int, changes: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    values = {"backbone": "race", "training__epochs": 20, **changes}
    config = small_config(tmp_path, space__trainable_layers=depth, weights="none", **values)
    assert tunings(config, backbones) == expected


def test_the_study_of_a_round(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        name="n" * 100,
        backbone={"race": ["test_resnet", "test_vit", "test_convnext"]},
        weights={"test_vit": "vit.pth", "test_convnext": "convnext.pth"},
        space__trainable_layers={"low": 0, "high": 4},
        data__folds=3,
        constraints={"max_latency_ms": 5, "max_memory_mb": 100},
        objectives=["accuracy", "parameters"],
        search__pruner="none",
        notify="true",
    )
    heads = round_config(config, ["test_vit", "test_resnet"], 0, 0)
    assert heads.name == round_name("n" * 100, 0) and len(heads.name) == 100
    assert heads.weights == {"test_vit": "vit.pth", "test_resnet": "hub"}
    assert heads.space.trainable_layers == 0 and heads.search.trials == 2
    assert heads.constraints.limits == {"latency_ms": 5, "memory_mb": 100}
    tuned = round_config(config, ["test_vit"], 1, 6)
    assert (tuned.backbone, tuned.weights) == ("test_vit", {"test_vit": "vit.pth"})
    assert tuned_depth(config) == tuned.space.trainable_layers == 4
    assert tuned.training.epochs == 6 and tuned.search.trials == 2
    assert tuned.constraints.limits == {"memory_mb": 100}
    for each in (heads, tuned):
        assert each.data.folds is None and each.notify is None and each.objectives is None
        assert not each.cross_field_problems()


def score(value: float | None, *scores: float) -> Score:
    return Score(value, scores)


def test_ranks() -> None:
    scores = {"a": score(0.8), "b": score(0.9), "c": score(None), "d": score(0.9)}
    assert rank(scores, "accuracy") == ["b", "d", "a"]
    assert rank(scores, "log_loss") == ["a", "b", "d"]
    scores |= {
        name: replace(scores[name], log_loss=loss) for name, loss in (("b", 0.3), ("d", 0.2))
    }
    assert rank(scores, "accuracy") == ["d", "b", "a"]


def test_a_backbone_counts_with_the_best_of_its_rounds() -> None:
    heads = {"a": score(0.85), "b": score(0.8), "c": score(0.7)}
    tuned = {"a": score(0.72), "b": score(0.82), "c": score(None)}
    best = best_so_far(heads, tuned, "accuracy")
    assert best == {"b": tuned["b"], "a": heads["a"]}
    assert rank(best, "accuracy") == ["a", "b"]
    assert best_so_far({}, heads, "accuracy") == heads
    losses = best_so_far({"a": score(0.5)}, {"a": score(0.9)}, "log_loss")
    assert losses["a"].value == 0.5


def test_who_is_clearly_behind_does_not_enter() -> None:
    right, half = [1.0] * 40, [1.0, 0.0] * 20
    near = [*[1.0] * 38, 0.0, 0.0]
    scores = {"a": score(1.0, *right), "b": score(0.95, *near), "c": score(0.5, *half)}
    assert choose(["a", "b", "c"], scores, 2) == ["a", "b"]
    assert choose(["a", "c", "b"], scores, 2) == ["a"]
    assert choose(["a", "b", "c"], scores, 1) == ["a"]
    assert choose(["a", "d"], {**scores, "d": score(0.9)}, 2) == ["a", "d"]  # unknown scores


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_default_lists(size: str) -> None:
    entries = read_yaml(presets_folder() / "backbones" / f"{size}.yaml")["backbones"]
    assert 10 <= len(entries) <= 30
    assert listed_backbones(size) == tuple(entry["name"] for entry in entries)
    for entry in entries:
        assert set(entry) == {"name", "parameters", "px", "license", "imagenet", "why"}
        assert license_of(entry["name"]) == entry["license"]
    assert sum(entry["parameters"] for entry in entries) * 4 < {SMALL: 500, LARGE: 3000}[size]
    assert not presets().keys() & {SMALL, LARGE}
