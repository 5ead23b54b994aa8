"""What a configuration answers to mistakes; any text is accepted or refused with its key."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autotune.config.validation import validate
from autotune.errors import ConfigError
from tests.config.test_schema import KEYS, MINIMAL, UNKNOWN, load


def test_all_mistakes_at_once() -> None:
    text = """
        dataset: ''
        space:
          depth: {low: 0, high: 5, stop: 2}
          head:
            dropout: {low: 0.0, high: 0.85, step: 0.1}
            units: [64, 128, 64]
            pool: [avg, maxx]
          training:
            lr: {low: 0.0, high: 1.0, log: true}
            optimizer: adam
        search: {sampler: tpee, trials: 0, prunner: median}
        training:
          objective: accurracy
          epochs: true
          augment:
        lr: 0.1
        bakbone: resnet18
    """
    with pytest.raises(ConfigError) as caught:
        validate(yaml.safe_load(text), "my.yaml")
    assert str(caught.value) == (
        "my.yaml: 16 mistakes\n"
        "  dataset: must not be empty\n"
        "  backbone: is required, but the file does not give it\n"
        "  space.trainable_layers: a range has the keys low, high, step, log, but got 'stop'; did "
        "you mean 'step'?\n"
        "  space.head.units: the values of a choice must differ, but got 64 twice\n"
        "  space.head.dropout: high must be low plus whole steps of 0.1, but got 0.85; the "
        "nearest below is 0.8\n"
        "  space.head.pool: must be one of keep, avg, max, avgmax, but got 'maxx'; did you mean "
        "'max'?\n"
        "  space.training.optimizer: must be one of adamw, sgd, adagrad, but got 'adam'; did you "
        "mean 'adamw'?\n"
        "  space.training.lr: low must be a number above 0 and at most 100, but got 0.0\n"
        "  search.sampler: must be one of gp, tpe, random, or a plugin as my_file.py:name, "
        "but got 'tpee'; did you mean 'tpe'?\n"
        "  search.trials: must be a whole number of at least 1, but got 0\n"
        "  search.prunner: unknown key; search has sampler, pruner, strategy, greedy, "
        "default_plans, warm_start, trials, timeout, device_hours, patience, seed; did you "
        "mean 'pruner'?\n"
        "  training.epochs: must be a whole number of at least 1 and at most 100000, but got "
        "true\n"
        "  training.objective: must be one of accuracy, balanced_accuracy, macro_f1, log_loss, "
        "but got 'accurracy'; did you mean 'accuracy'?\n"
        "  training.augment: must be a section with keys, but got null\n"
        f"  lr: {UNKNOWN}; did you mean 'space.training.lr' or 'baseline.lr'?\n"
        f"  bakbone: {UNKNOWN}; did you mean 'backbone'?"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset", 2024, "must be text, but got 2024; put it in quotes"),
        ("dataset", None, "must be text, but got null"),
        ("search.timeout", 0, "must be a number above 0, but got 0"),
        ("data.test", 1, "must be a number above 0 and below 1, but got 1"),
        (
            "space.layers.kernel",
            "kepe",
            "must be one of keep, 1, 2, 3, 5, 7, but got 'kepe'; did you mean 'keep'?",
        ),
        (
            "space.layers.width",
            8.5,
            "must be keep, a ratio of at least 0.1 and below 8, or a whole number of channels of "
            "at least 8 and at most 65536, but got 8.5",
        ),
        (
            "space.layers.low_rank",
            {"low": 0.5, "high": 1},
            "must be a width or a list of widths, but got {'low': 0.5, 'high': 1}",
        ),
        (
            "space.layers.dropout",
            "kep",
            "must be keep or a number of at least 0 and at most 0.9, but got 'kep'; did you mean "
            "'keep'?",
        ),
        (
            "space.layers.drop",
            0.1,
            "unknown key; space.layers has kernel, width, low_rank, activation, pool, dropout, "
            "drop_path, max_layers; did you mean 'dropout' or 'drop_path'?",
        ),
        ("space.head.batch_norm", "yes", "must be true or false, but got 'yes'"),
        ("space.trainable_layers", [], "a choice needs at least one value, but got an empty list"),
        (
            "space.trainable_layers",
            {"low": 0, "high": 5, "step": 9},
            "high must be low plus whole steps of 9, but got 5; one step is more",
        ),
        (
            "name",
            "my study",
            "a study's name has up to 100 letters, digits and . _ + - and starts with a letter "
            "or digit, but got 'my study'",
        ),
        (
            "seed",
            1,
            f"{UNKNOWN}; did you mean 'data.seed' or 'search.seed'?",
        ),
    ],
)
def test_messages(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{key: value})
    assert str(caught.value) == f"file: 1 mistake\n  {key}: {message}"


def test_keys_that_are_no_text_or_have_dots() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({**MINIMAL, 1: 2, "search.sampler": "gp"}, "file")
    assert [problem.key for problem in caught.value.problems] == ["1", "search.sampler"]
    assert str(caught.value).endswith("in a file, write search: {sampler: ...}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["low", "high", "step", "log", "head", "lr"]) | st.integers(),
                inner,
                max_size=4,
            )
        ),
        max_leaves=6,
    ),
    st.sampled_from([*KEYS, "space", "search", "training.augment", "data", "other"]),
)
def test_whatever_a_file_says_is_accepted_or_refused_with_its_key(value: Any, key: str) -> None:
    try:
        load(**{key: value})
    except ConfigError as error:
        assert all(problem.key.startswith(key) for problem in error.problems)
