"""Keys and values of a study file under the names that they had before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from autotune.config import loading
from autotune.config.loading import load_study_file
from autotune.config.old_names import KEYS, VALUES, with_new_names, with_old_names
from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.errors import ConfigError
from tests.support.commands.inside import call

OLD = {
    "dataset": "digits",
    "backbone": "resnet18",
    "inherit": ["weights", "none"],
    "space": {
        "depth": {"low": 0, "high": 4},
        "layers": {"bridge": ["keep", 0.5], "last": 3},
        "training": {"head_epochs": 2},
    },
    "search": {"order": "greedy", "known_good": False},
    "training": {"views": 4, "clip_norm": 2.0, "amp": "off", "sampling": "plain"},
    "data": {"unreadable_limit": 0.1, "duplicates": "together"},
    "fit": {"ema": 0.9},
}
NEW = {
    "dataset": "digits",
    "backbone": "resnet18",
    "init": ["pretrained", "random"],
    "space": {
        "trainable_layers": {"low": 0, "high": 4},
        "layers": {"low_rank": ["keep", 0.5], "max_layers": 3},
        "training": {"head_only_epochs": 2},
    },
    "search": {"strategy": "greedy", "default_plans": False},
    "training": {
        "num_views": 4,
        "clip_grad_norm": 2.0,
        "precision": "off",
        "sampling": "uniform",
    },
    "data": {"max_unreadable_share": 0.1, "duplicates": "group"},
    "refit": {"ema": 0.9},
}
FILE = "dataset: digits\nbackbone: resnet18\nname: x\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    loading._log_once.cache_clear()
    return tmp_path / "x.yaml"


def test_every_old_name_means_the_new_one() -> None:
    values, renamed = with_new_names(OLD)
    assert values == NEW
    assert set(renamed) > set(KEYS)
    assert (
        len(renamed) == len(KEYS) + sum(map(len, VALUES.values())) - 2
    )  # `data`, `fit`: not there
    assert with_new_names(NEW) == (NEW, {})
    assert with_old_names(NEW) == OLD


def test_what_an_earlier_version_stored_is_read_and_is_equal() -> None:
    old, new = (validate(values, "file").identity() for values in (OLD, NEW))
    assert old == new
    stored = with_old_names(new)
    assert "inherit" in stored and "depth" in stored["space"]
    assert StudyConfig.model_validate(stored).identity() == new
    assert StudyConfig.model_validate(stored).stable_identity() == stored


def test_one_line_lists_the_new_names(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    study.write_text(f"{FILE}search:\n  order: joint\nspace: {{depth: 2}}\n")
    with caplog.at_level(logging.WARNING):
        config = load_study_file(str(study), ["training.views=2"])
        load_study_file(str(study), ["training.views=2"])
    assert (config.space.trainable_layers, config.training.num_views) == (2, 2)
    until = "old names work until autotune 0.3"
    assert caplog.messages == [
        f"{study}: 'search.order' is now called 'search.strategy', 'space.depth' is now called "
        f"'space.trainable_layers'; {until}",
        f"command line: 'training.views' is now called 'training.num_views'; {until}",
    ]


def test_an_override_replaces_a_value_under_either_name(study: Path) -> None:
    study.write_text(f"{FILE}search: {{order: greedy}}\ninherit: data\n")
    for override in ("search.order=joint", "search.strategy=joint", "search={strategy: joint}"):
        assert load_study_file(str(study), [override]).search.strategy == "joint"
    assert load_study_file(str(study)).init == "activations"
    # The name of a study that was made before stays.
    study.write_text(FILE)
    assert load_study_file(str(study), ["init=random"]).name == "x-none"
    assert load_study_file(str(study), ["inherit=none"]).name == "x-none"
    assert load_study_file(str(study), ["init=pretrained"]).name == "x"


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (f"{FILE}search: {{order: joint, strategy: greedy}}\n", []),
        (FILE, ["search.strategy=greedy", "search.order=joint"]),
    ],
)
def test_both_names_at_once_are_a_mistake(text: str, overrides: list[str], study: Path) -> None:
    study.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study_file(str(study), overrides)
    assert "search.strategy: is given twice, also under its old name 'search.order'" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("search.ordr", "did you mean 'strategy'?"),
        ("search.strategi", "did you mean 'strategy'?"),
        ("amp", "did you mean 'training.precision'?"),
        ("inherits", "did you mean 'init'?"),
    ],
)
def test_a_wrong_key_near_an_old_name_leads_to_the_new_one(
    key: str, hint: str, study: Path
) -> None:
    study.write_text(FILE)
    with pytest.raises(ConfigError) as caught:
        load_study_file(str(study), [f"{key}=1"])
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(("old", "new"), [("fit", "refit"), ("rerun", "reproduce")])
def test_a_verb_under_its_old_name(old: str, new: str, tmp_path: Path) -> None:
    result: Any = call(old, "--help", cwd=tmp_path)
    assert result.code == 0 and f"Usage: autotune {new} " in result.out
    assert result.err == (
        f"warning: 'autotune {old}' is now called 'autotune {new}'; the old name works until "
        "autotune 0.3\n"
    )
