"""All mistakes of a study file at once, also those that only the backbone and the images show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ConfigError, Problem
from autotune.models.backbone import Backbone
from autotune.study.setup.definition import define
from tests.support.study.small import small_config


def test_a_good_file_is_defined(tmp_path: Path) -> None:
    loaded: list[Backbone] = []
    definition = define(small_config(tmp_path), on_backbone=loaded.append)
    (backbone,) = definition.backbones
    assert [each.weights_hash for each in loaded] == [backbone.weights_hash]
    assert [layer.index for layer in backbone.layers] == [1, 2, 3, 4, 5]
    assert backbone.spec.size == 16
    assert len(definition.dataset.source.classes) == 10
    assert not (tmp_path / "study.db").exists()


def test_every_mistake_is_reported(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        dataset="digitz",
        backbone="resnt18",
        storage="mysql://host/db",
    )
    with pytest.raises(ConfigError) as caught:
        define(config)
    assert [problem.key for problem in caught.value.problems] == ["storage", "dataset", "backbone"]
    message = str(caught.value)
    assert message.startswith("small: 3 mistakes")
    assert "did you mean 'digits'?" in message
    assert "did you mean 'resnet18'" in message


def test_all_layers_fit_any_backbone(tmp_path: Path) -> None:
    config = small_config(tmp_path, space__trainable_layers={"low": 0, "high": "all"})
    assert define(config).space.max_depth == 5


def problems_of(folder: Path, **overrides: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        define(small_config(folder, **overrides))
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("depth", "last", "reach"), [({"low": 0, "high": 5}, 2, 2), ([0, 3], 8, 3), (5, 8, 5)]
)
def test_the_layers_within_reach_are_looked_at(
    depth: Any, last: int, reach: int, tmp_path: Path
) -> None:
    layers = {"kernel": ["keep", 3, 5], "max_layers": last}
    definition = define(
        small_config(tmp_path, space__trainable_layers=depth, space__layers=layers)
    )
    kernels = {
        name: list(found.choices)
        for name, found in definition.space.distributions.items()
        if name.endswith(".kernel")
    }
    # All of its kernels have three taps a side.
    assert kernels == {f"layer.{i}.kernel": ["keep", 5] for i in range(1, reach + 1)}


def test_a_layer_keeps_what_it_cannot_change(tmp_path: Path) -> None:
    definition = define(small_config(tmp_path, space__layers={"pool": ["keep", "avg3"]}))
    searched = definition.space.distributions
    pooling = [name for name in searched if name.startswith("layer.") and name.endswith(".pool")]
    assert 0 < len(pooling) < 5


UNTRAINED = {"weights": "none", "data__image_size": None}
TOO_DEEP = ("space.trainable_layers", "must be at most 5, the number of layers")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"space__trainable_layers": {"low": 0, "high": 6}}, [TOO_DEEP]),
        ({"space__trainable_layers": {"low": 6, "high": "all"}}, [TOO_DEEP]),
        (
            {
                "backbone": "test_nfnet",
                **UNTRAINED,
                "space__training__parameters": ["all", "norms"],
                "space__layers": {},
            },
            [("space.training.parameters", "'test_nfnet' has no norms that could train alone")],
        ),
        (
            {"space__layers": {"kernel": ["keep", 5], "dropout": [0.1, 0.2], "drop_path": 0.1}},
            [
                (
                    "space.layers.dropout",
                    f"must be keep, but got {share}: it has no dropout (layer 1; nor can layers 2 "
                    "to 5 take it)",
                )
                for share in (0.1, 0.2)
            ],
        ),
        (
            {"space__layers": {"dropout": {"low": 0.1, "high": 0.2}, "max_layers": 1}},
            [
                (
                    "space.layers.dropout",
                    "must be keep, but got 0.1: it has no dropout (layer 1)",
                )
            ],
        ),
        (  # in the order of the file
            {
                "backbone": "levit_128s",
                **UNTRAINED,
                "space__trainable_layers": {"low": 0, "high": 99},
                "space__layers": {"kernel": [3, "keep"], "max_layers": 2},
                "space__head__pool": ["keep", "max"],
            },
            [
                ("space.trainable_layers", "the number of layers"),
                (
                    "space.layers.kernel",
                    "no spatial convolution (layer 1; nor can layer 2 take it)",
                ),
                ("space.head.pool", "cannot pool with 'max'"),
            ],
        ),
    ],
)
def test_a_space_that_the_backbone_cannot_have(
    overrides: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    for problem, (key, text) in zip(problems_of(tmp_path, **overrides), expected, strict=True):
        assert problem.key == key and text in problem.message


@pytest.mark.parametrize("depth", [0, [0], {"low": 0, "high": 0}])
def test_changes_of_layers_that_are_never_trainable(depth: Any, tmp_path: Path) -> None:
    (problem,) = problems_of(
        tmp_path, space__trainable_layers=depth, space__layers={"width": 0.5, "activation": "elu"}
    )
    assert problem.key == "space.trainable_layers"
    assert problem.message.startswith(
        "must be above 0 in some trials because space.layers.width changes trainable layers "
        "alone, but got "
    )
    assert problem.message.endswith("; give a range such as {low: 0, high: 4}")
    define(
        small_config(tmp_path, space__trainable_layers=depth, space__layers={"kernel": ["keep"]})
    )
