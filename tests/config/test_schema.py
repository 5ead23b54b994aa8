from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.fields import KERNELS
from autotune.config.loading import apply_overrides
from autotune.config.schema import (
    ACTIVATIONS,
    COSTS,
    HEAD_STARTS,
    INIT,
    LAYER_POOLS,
    OBJECTIVES,
    OPTIMIZERS,
    PARAMETERS,
    POOLS,
    PRUNERS,
    SAMPLERS,
    LayerSpace,
    StudyConfig,
)
from autotune.config.validation import all_keys, validate
from autotune.errors import ConfigError
from autotune.plan import LayerPlan

PARETO = ["accuracy", "latency_ms"]
OBJECTIVE = ["objectives"]
MINIMAL = {"dataset": "digits", "backbone": "resnet18"}
UNKNOWN = f"unknown key; a study file has {', '.join(StudyConfig.model_fields)}"


def kept(*values: Any) -> list[tuple[Any, Any]]:
    """Pair values that are accepted as they are with themselves."""
    return [(value, value) for value in values]


#: Key -> (values that are accepted, and what they become; values that are refused).
KEYS: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "name": ([("a-B_1.2+3", "a-B_1.2+3"), (None, None)], ["", "-a", "a b", "a/b", "x" * 101, 3]),
    "description": ([("", ""), ("What?", "What?")], [None, 3]),
    "dataset": ([("photos/ants", "photos/ants")], ["", "  ", None, 3, ["a"]]),
    "backbone": (
        [("resnet18", "resnet18"), (["a", "b"], ["a", "b"]), (["a"], "a")],
        ["", None, 18, [], ["a", "a"], ["a", 18], {"low": "a", "high": "b"}],
    ),
    "weights": (
        [
            *kept("none", "my.pth", ["x"]),
            (Path("my.pth"), "my.pth"),
            ({"timm/resnet18": Path("x")}, {"resnet18": "x"}),
        ],
        ["", None, False, 3, [], {}, [" "], ["a", 3], [["a"]], {"resnet18": None}, {3: "a"}],
    ),
    "init": (
        [*kept(*INIT), (["activations", "random"], ["activations", "random"])],
        ["weight", None, True, [], ["none", "none"], {"low": 1, "high": 2}],
    ),
    "data.validation": ([(0.1, 0.1), ("1e-1", 0.1)], [0, 1, -0.1, True, None, "x", math.nan]),
    "data.test": ([(0.999, 0.999)], [0, 1, True, [0.1]]),
    "data.splits": (
        [
            *(("auto", "auto"), ("none", "none"), (None, "none")),
            ({"train": "a", "test": ["b", 1]}, {"train": ["a"], "test": ["b", "1"]}),
            ({"train": [0, True]}, {"train": ["0", "True"]}),
        ],
        [
            *("off", ["a"], 1, {}, {"test": "a"}, {"train": []}, {"train": None}),
            *({"train": "a", "tset": "b"}, {"train": "a", "test": "a"}, {"train": {"a": 1}}),
        ],
    ),
    "data.protocol": (
        [(None, None), ("30-per-class", "30-per-class"), ("1-per-class", "1-per-class")],
        ["0-per-class", "30", 30, "-per-class", "30-per-image", True],
    ),
    "data.train_per_class": ([(None, None), (1, 1), (20.0, 20)], [0, 1.5, True, "many"]),
    "data.folds": ([(None, None), (2, 2), (20.0, 20)], [0, 1, 21, 2.5, True, [3, 5]]),
    "data.seed": ([(0, 0), (2**32 - 1, 2**32 - 1)], [-1, 2**32, None, True]),
    "data.image_size": (
        [
            *((None, None), (8, 8), (4096, 4096)),
            *kept([64, 32], {"low": 32, "high": 64, "step": 16}),
        ],
        [7, 4097, 32.5, [32, 32], [None, 32], {"low": 32, "high": 64}, [*range(8, 17)]],
    ),
    "data.max_unreadable_share": ([(0, 0.0), (0.5, 0.5)], [-0.1, 1, True]),
    "data.decode": ([("exact", "exact"), ("fast", "fast")], ["quick", None, True]),
    "data.group": (
        [(None, None), ("^([^/]+)/", "^([^/]+)/"), (r"(\d+)_\w", r"(\d+)_\w")],
        ["abc", "(", "(a", 3, True, ["(a)"], "(?P<1>a)"],
    ),
    "data.duplicates": (
        [("report", "report"), ("group", "group"), (False, "off")],
        ["drop", None, True],
    ),
    "space.trainable_layers": (
        [(0, 0), ([0, 3], [0, 3]), ("all", "all"), ([0, "all"], [0, "all"])],
        [-1, 1.5, True, None, "most", [], [1, 1.0], ["all", "all"]],
    ),
    "space.layers.kernel": (
        [*kept("keep", *KERNELS), (["keep", 3.0, "5"], ["keep", 3, 5])],
        [4, 0, 1.5, True, None, "kep", [], [3, 3.0], {"low": 1, "high": 3}],
    ),
    "space.layers.width": (
        [(0.1, 0.1), (1, 1.0), ("7.5", 7.5), (8.0, 8), ([65536, "keep"], [65536, "keep"])],
        [0.09, 8.5, 65537, 10**400, math.nan, True, None, [2, 2.0], {"low": 0.5, "high": 1}],
    ),
    "space.layers.low_rank": ([("keep", "keep"), ([0.5, 64], [0.5, 64])], [0, "half", -64]),
    "space.layers.activation": (
        [*kept("keep", *ACTIVATIONS), (["keep", "elu"], ["keep", "elu"])],
        ["swish", None, 1, {"low": "relu", "high": "elu"}],
    ),
    "space.layers.pool": (
        [*kept("keep", *LAYER_POOLS), (["max2"], ["max2"])],
        ["max", "max4", None],
    ),
    "space.layers.dropout": (
        [(0, 0.0), (0.9, 0.9), (["keep", 0, "1e-1"], ["keep", 0.0, 0.1])],
        [0.91, -0.1, None, True, ["keep", "keep"], "kep"],
    ),
    "space.layers.drop_path": ([("keep", "keep"), ([0.1], [0.1])], [1, [0.1, 0.1]]),
    "space.layers.max_layers": (
        [(1, 1), (24.0, 24)],
        [0, 1.5, None, [1, 2], {"low": 1, "high": 2}],
    ),
    "space.head.hidden_layers": ([(3, 3), ([0, 2], [0, 2])], [4, -1, True]),
    "space.head.units": ([(1, 1), ([64, 128.0], [64, 128])], [0, 65537, "big", [64, 64]]),
    "space.head.activation": (kept(*ACTIVATIONS), ["keep", None, True]),
    "space.head.batch_norm": (
        [(True, True), (False, False), ([True, False], [True, False])],
        ["yes", 1, None, [], [True, True], [True, 0], {"low": False, "high": True}],
    ),
    "space.head.dropout": ([(0, 0.0), ([0, 0.5], [0.0, 0.5])], [0.96, -0.1, [0, 0.0]]),
    "space.head.pool": (kept(*POOLS), ["mean", None, ["avg", "avg"], []]),
    "space.training.optimizer": (kept(*OPTIMIZERS), ["adam", None, 1]),
    "space.training.lr": (
        [
            *(("1e-4", 1e-4), (100, 100.0), ("auto", "auto")),
            ({"sgd": "0.1", "adamw": [1e-4, 1e-3]}, {"sgd": 0.1, "adamw": [1e-4, 1e-3]}),
        ],
        [0, -1, 101, "fast", math.inf, False, {}, {"adam": 0.1}, {"sgd": 0}, ["auto"]],
    ),
    "space.training.layer_decay": ([(1, 1.0), (0.5, 0.5)], [0, 1.1]),
    "space.training.backbone_lr": ([("0.1", 0.1), ([0.1, 1], [0.1, 1.0])], [0, -1, 101, "low"]),
    "space.training.parameters": (kept(*PARAMETERS), ["norm", None, [], ["all", "all"]]),
    "space.training.weight_decay": (
        [(0, 0.0), (10, 10.0), ("auto", "auto"), ({"sgd": [0, 1]}, {"sgd": [0.0, 1.0]})],
        [-1e-9, 10.1, "none", {"adam": 0.1}, {"sgd": 11}],
    ),
    "space.training.momentum": ([(0, 0.0), (0.999, 0.999)], [1, -0.1, None]),
    "space.training.label_smoothing": ([(0.9, 0.9)], [1, -0.1]),
    "space.training.head_only_epochs": (
        [(0, 0), (3.0, 3), ([0, 2], [0, 2])],
        [-1, 1.5, 20, [0, 30]],
    ),
    "space.training.head_start": (kept(*HEAD_STARTS), ["trained", None, []]),
    "space.training.l2_sp": ([(0, 0.0), ("1e-2", 0.01)], [-0.1, 11, True]),
    "space.training.mixup": ([(0, 0.0), ([0, 0.2], [0.0, 0.2])], [-0.1, 11]),
    "space.training.cutmix": ([(1, 1.0)], [-0.1, 11]),
    "space.custom": ([(None, None), ("a/my.py:change", "a/my.py:change")], ["my.py", "f", 3]),
    "baseline.optimizer": ([(None, None), ("sgd", "sgd")], ["adam", ["sgd", "adamw"]]),
    "baseline.lr": ([(None, None), ("3e-2", 0.03), (1, 1.0)], [0, 101, True, [0.1, 0.2]]),
    "baseline.weight_decay": ([(None, None), (0, 0.0)], [-1, 10.1, {"low": 0, "high": 1}]),
    "baseline.momentum": ([(None, None), (0.5, 0.5)], [1, True]),
    "baseline.label_smoothing": ([(None, None), (0.9, 0.9)], [1, True]),
    "baseline.head_start": ([(None, None), ("solved", "solved")], ["trained", ["random"]]),
    "search.sampler": (
        [*kept(*SAMPLERS), ("../my.py:Mine", "../my.py:Mine")],
        ["grid", None, ["tpe", "gp"], 1, "my.py", "my.txt:Mine", "my.py:a b", "my.py:"],
    ),
    "search.pruner": (
        [*kept(*PRUNERS), (None, "none"), ("my.py:Mine", "my.py:Mine")],
        ["medium", False],
    ),
    "search.strategy": ([("joint", "joint"), ("greedy", "greedy")], ["random", None]),
    "search.greedy.stop": ([("never", "never")], ["always", True]),
    "search.greedy.margin": ([(0, 0.0), ("1e-2", 0.01)], [-0.1, None]),
    "search.greedy.trials_per_stage": ([(None, None), (25, 25)], [0, 1.5]),
    "search.default_plans": ([(True, True), (False, False)], ["yes", 1, None]),
    "search.warm_start": (
        [([], []), (None, []), ("one", ["one"]), (["a", "b"], ["a", "b"])],
        ["", [""], [3], ["a", "a"], True],
    ),
    "search.trials": ([(1, 1), (10**9, 10**9)], [0, -1, 1.5, True, None]),
    "search.timeout": ([(None, None), (60, 60.0), ("1e3", 1000.0)], [0, -1, True, "1h"]),
    "search.device_hours": ([(None, None), (1, 1.0), ("0.5", 0.5)], [0, -1, True]),
    "search.patience": ([(None, None), (10, 10), ("noise", "noise")], [0, 1.5, True, "nois"]),
    "search.seed": ([(0, 0), (2**31 - 1, 2**31 - 1)], [-1, 2**31, None]),
    "training.epochs": ([(1, 1), (20.0, 20), ("20", 20)], [0, 100001, 1.5, True, 10**400]),
    "training.batch_size": ([(2, 2)], [0, 1, 65537, False]),
    "training.objective": (kept(*OBJECTIVES), ["acc", None]),
    "training.sampling": ([("uniform", "uniform"), ("balanced", "balanced")], ["weighted", None]),
    "training.num_views": ([(1, 1), (1024, 1024), ("online", "online")], [0, 1025, "onlin", None]),
    "training.warmup": ([(0, 0.0), (0.9, 0.9)], [1, -0.1]),
    "training.clip_grad_norm": ([(None, None), (1, 1.0)], [0, -1, True]),
    "training.ema": ([(None, None), (0.99, 0.99)], [0, 1]),
    "training.precision": (
        [("auto", "auto"), (False, "off"), ("fp16", "fp16")],
        ["on", True, None],
    ),
    "training.augment.crop": ([(1, 1.0)], [0, 1.1]),
    "training.augment.flip": ([(0, 0.0), (1, 1.0)], [-0.1, 1.1, True]),
    "training.augment.rotate": ([(180, 180.0)], [-1, 181]),
    "training.augment.jitter": ([(1, 1.0)], [-0.1, 1.1]),
    "training.augment.policy": ([("rand", "rand"), (None, "none")], ["auto", True, ["rand"]]),
    "training.augment.strength": (
        [(1, 1.0)],
        [-0.1, 1.1, [], [0.5, 0.5], {"low": 0, "high": 1}],
    ),
    "training.augment.erasing": ([(1, 1.0)], [-0.1, 1.1]),
    "objectives": (
        [(None, None), *kept(*(["accuracy", cost] for cost in COSTS))],
        [
            "accuracy",
            ["accuracy"],
            ["accuracy", "accuracy"],
            ["latency_ms", "accuracy"],
            ["accuracy", "latency"],
            ["accuracy", "latency_ms", "parameters"],
            {},
        ],
    ),
    "constraints.max_parameters": ([(None, None), (10**6, 10**6)], [0, 1.5, [1, 2]]),
    "constraints.max_latency_ms": ([(None, None), (2, 2.0)], [0, -1, True]),
    "constraints.max_memory_mb": ([(None, None), (1.5, 1.5)], [0, "1 GB"]),
    "refit.views": ([("online", "online"), ("study", "study")], ["kept", 8, None]),
    "refit.ema": (
        [("auto", "auto"), (False, "off"), ("off", "off"), ("9.9e-1", 0.99)],
        [0, 1, True, None, "on", -0.1],
    ),
    "cache.disk_gb": ([(None, None), ("1e2", 100.0), (0.5, 0.5)], [0, -1, "1 GB", True]),
    "cache.memory_gb": ([(None, None), (0, 0.0), (2, 2.0)], [-1, "half", [1, 2]]),
    "cache.features": ([("auto", "auto"), (False, "off")], ["on", True, None, ["auto", "off"]]),
    "cache.cuda_graphs": ([("auto", "auto"), (False, "off")], ["on", True, None]),
    "loggers": (
        [
            (None, []),
            ("mlflow", ["mlflow"]),
            (["wandb", "tensorboard"], ["wandb", "tensorboard"]),
        ],
        ["tensorbord", 3, ["mlflow", "mlflow"]],
    ),
    "notify": (
        [(None, None), ("https://host/hook", "https://host/hook"), ("say done", "say done")],
        ["", 3],
    ),
    "storage": ([("sqlite:///a.db", "sqlite:///a.db")], ["", None, 3]),
    "files": ([(None, None), ("/shared", "/shared")], [3]),
}
#: Ranges that are accepted as they are, ranges that become others, and ranges that are refused.
RANGES: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
    *(
        (key, value, value)
        for key, value in (
            ("space.trainable_layers", {"low": 0, "high": 5}),
            ("space.trainable_layers", {"low": 3, "high": 3}),
            ("space.trainable_layers", {"low": 2, "high": 8, "step": 3}),
            ("space.trainable_layers", {"low": 1, "high": 8, "log": True}),
            ("space.trainable_layers", {"low": 0, "high": "all"}),
            ("space.trainable_layers", {"low": 0, "high": "all", "step": 3}),
            ("space.trainable_layers", {"low": 1, "high": "all", "log": True}),
        )
    ),
    ("space.training.lr", {"low": "1e-4", "high": 1}, {"low": 1e-4, "high": 1.0}),
    ("space.training.lr", {"low": 0.1, "high": 1, "log": False}, {"low": 0.1, "high": 1.0}),
    (
        "space.head.dropout",
        {"low": 0, "high": 0.8, "step": 0.1},
        {"low": 0.0, "high": 0.8, "step": 0.1},
    ),
    ("space.head.dropout", {"low": 0, "high": 0.8, "step": None}, {"low": 0.0, "high": 0.8}),
    ("space.layers.dropout", {"low": 0, "high": 0.5}, {"low": 0.0, "high": 0.5}),
    *(
        ("space.trainable_layers", value, None)
        for value in (
            {},
            {"low": 3},
            {"low": 5, "high": 3},
            {"low": 0, "hi": 5},
            {"low": "all", "high": "all"},
            {"low": 0, "high": "all", "step": 0},
            {"low": 1, "high": "all", "step": 2, "log": True},
            {"low": 0, "high": "all", "log": True},
            {"low": 0, "high": "all", "stop": 2},
            {"low": 0, "high": 5, "log": True},
            {"low": 0, "high": 5, "step": 2},
            {"low": 0, "high": 5, "step": 1.5},
            {"low": 0, "high": 5, "step": 0},
            {"low": 0, "high": 5, "step": True},
        )
    ),
    *(
        ("space.training.lr", value, None)
        for value in (
            {"low": 0.1, "high": 1, "log": True, "step": 0.1},
            {"low": 0.1, "high": 1, "log": "yes"},
            {"low": 0, "high": 1},
            {"low": None, "high": 1},
        )
    ),
    ("space.head.dropout", {"low": 0, "high": 0.85, "step": 0.1}, None),
    ("space.head.dropout", {"low": 0, "high": 0.8, "step": 1e-40}, None),
    ("space.head.pool", {"low": "avg", "high": "max"}, None),
    ("space.layers.dropout", {"low": "keep", "high": 0.5}, None),
    ("space.layers.dropout", {"low": 0, "high": 0.95}, None),
]


def load(**overrides: Any) -> StudyConfig:
    return validate(apply_overrides(MINIMAL, overrides), "file")


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def same(first: Any, second: Any) -> bool:
    """Tell whether values and types are equal: 1 is not 1.0 here."""
    return json.dumps(first) == json.dumps(second)


def test_every_key_is_covered_here() -> None:
    assert list(KEYS) == list(all_keys())


@pytest.mark.parametrize(
    ("key", "value", "becomes"),
    [(key, *pair) for key, (accepted, _) in KEYS.items() for pair in accepted],
)
def test_accepted(key: str, value: Any, becomes: Any) -> None:
    assert same(value_of(load(**{key: value}), key), becomes)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (_, refused) in KEYS.items() for value in refused]
)
def test_refused_in_one_line_that_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{key: value})
    [problem] = caught.value.problems
    assert problem.key == key
    assert problem.message
    assert "\n" not in problem.message
    assert "Input" not in problem.message


@pytest.mark.parametrize(("key", "value", "becomes"), RANGES)
def test_ranges(key: str, value: dict[str, Any], becomes: dict[str, Any] | None) -> None:
    if becomes is not None:
        assert same(value_of(load(**{key: value}), key), becomes)
        return
    with pytest.raises(ConfigError) as caught:
        load(**{key: value})
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"objectives": ["macro_f1", "latency_ms"], "training.objective": "accuracy"}, OBJECTIVE),
        ({"objectives": PARETO, "search.pruner": "median"}, ["search.pruner"]),
        ({"objectives": PARETO, "search.patience": 10}, ["search.patience"]),
        ({"objectives": PARETO, "search.strategy": "greedy"}, ["search.strategy"]),
        ({"backbone": ["a", "b"], "search.strategy": "greedy"}, ["search.strategy"]),
        ({"backbone": ["a", "b"], "weights": "my.pth"}, ["weights"]),
        ({"backbone": ["a", "b"], "weights": ["my.pth"]}, ["weights"]),
        ({"backbone": "a", "weights": ["my.pth", "hub"]}, ["weights"]),
        ({"backbone": ["a", "b"], "weights": {"a": "x", "bb": "y"}}, ["weights"]),
        ({"backbone": "a", "weights": {"b": "y"}}, ["weights"]),
        ({"search.strategy": "greedy", "search.default_plans": True}, ["search.default_plans"]),
        ({"search.strategy": "greedy", "search.warm_start": "other"}, ["search.warm_start"]),
    ],
)
def test_keys_that_do_not_go_together(values: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**values)
    assert [problem.key for problem in caught.value.problems] == keys
    assert all("but got" in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("weights", "each"),
    [
        ("none", ["none", "none"]),
        (["x", "hub"], ["x", "hub"]),
        ({"timm/b": "x"}, ["hub", "x"]),
        ({"b": "none", "a": "x"}, ["x", "none"]),
    ],
)
def test_every_backbone_has_its_weights(weights: Any, each: list[str]) -> None:
    config = load(backbone=["a", "b"], weights=weights)
    assert [config.weights_of(name) for name in config.backbones] == each
    assert StudyConfig.model_validate(config.identity()) == config


def test_what_is_left_out_goes_with_what_is_given() -> None:
    pareto = load(objectives=["macro_f1", "latency_ms"])
    assert (pareto.search.pruner, pareto.training.objective) == ("none", "macro_f1")
    assert pareto.directions == {"macro_f1": "maximize", "latency_ms": "minimize"}
    greedy = load(**{"search.strategy": "greedy"})
    assert not greedy.search.default_plans
    assert load().search.default_plans
    for config in (pareto, greedy):
        assert StudyConfig.model_validate(config.identity()) == config


def test_names_that_several_rooms_define_are_equal() -> None:
    from autotune.models.surgery import capabilities, components
    from autotune.search.space import KEY_NAMES

    assert tuple(components.ACTIVATIONS) == ACTIVATIONS
    assert capabilities.KERNELS == KERNELS
    assert tuple(capabilities.POOLS) == LAYER_POOLS
    *keys, last = LayerSpace.model_fields
    fields = [KEY_NAMES.get(field.name, field.name) for field in dataclasses.fields(LayerPlan)]
    assert (keys, last) == (fields, "max_layers")


def test_the_definition_leaves_out_what_may_change() -> None:
    first = load(**{"search.trials": 3, "storage": "sqlite:///a.db", "name": "a"})
    second = load(
        **{"search.timeout": 9, "files": "/x", "description": "?", "cache.features": "off"}
    )
    assert first.identity() == second.identity()
    assert load(**{"search.seed": 1}).identity() != first.identity()


#: Keys that contradict others at some of their values.
CONTRADICTING = (
    *("objectives", "search.pruner", "search.strategy", "space.custom", "weights"),
    "space.training.head_only_epochs",
)
#: Key -> values that are accepted, ranges among them.
ACCEPTED = {
    key: [
        *(value for value, _ in accepted),
        *(value for other, value, becomes in RANGES if other == key and becomes),
    ]
    for key, (accepted, _) in KEYS.items()
    if key not in CONTRADICTING
}


@given(
    st.fixed_dictionaries(
        {}, optional={key: st.sampled_from(values) for key, values in ACCEPTED.items()}
    )
)
def test_a_definition_comes_back_as_it_was(given: dict[str, Any]) -> None:
    config = load(**given)
    stored = json.loads(json.dumps(config.identity()))
    assert same(StudyConfig.model_validate(stored).identity(), config.identity())
