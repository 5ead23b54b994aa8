"""The key ``backbone``: names, lists and races."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.config.backbones import LARGE, SMALL, Race, listed_backbones
from autotune.config.loading import load_study_file, validate
from autotune.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "race", "name"),
    [
        ("race", Race(), "photos"),
        ("{race: auto}", Race(), "photos"),
        ("{race: small, keep: 3}", Race("small", 3), "photos"),
        ("{race: [resnet18, hf-hub:timm/a.b]}", Race(("resnet18", "a.b")), "photos"),
        ("[resnet18, resnet50]", None, "photos"),
    ],
)
def test_races(value: str, race: Race | None, name: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"dataset: photos\nbackbone: {value}\n")
    config = load_study_file(str(tmp_path / "my.yaml"))
    given = load_study_file("folder", ["dataset=photos", f"backbone={value}"])
    assert config.race == given.race == race
    assert config.name == name
    assert given.kept == (race.keep or 2 if race else 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[race, resnet18]", r"must be race alone, or \{race: \['resnet18'\]\} for a race"),
        ("{race: smal}", "one of auto, small, large, but got 'smal'; did you mean 'small'"),
        ("{race: [resnet18]}", "with two or more names, but got"),
        ("{race: [a, a], keep: 2}", "the values of a choice must differ, but got 'a' twice$"),
        ("{race: auto, kep: 2}", "but got the key 'kep'; did you mean 'keep'"),
        ("{race: auto, keep: 9}", "at least 1 and at most 5, but got 9$"),
        ("{keep: 2}", "a race reads {race: names, keep: 2}, but got {'keep': 2}$"),
        ("[1, 2]", "YAML reads 1 as the number 1 and 2 as the number 2"),
    ],
)
def test_other_values(value: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"dataset: photos\nbackbone: {value}\n")
    with pytest.raises(ConfigError, match=message):
        load_study_file(str(tmp_path / "my.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": "mine.pth", "backbone": {"race": "small"}},
            r"weights: must be hub or none in a race, .*BACKBONE=resnet18",
        ),
        ({"weights": {"resnet1": "a.pth"}}, "weights: must name backbones of the study"),
        (
            {"backbone": {"race": "auto", "keep": 2}, "search": {"strategy": "greedy"}},
            "search.strategy: must be joint where there are several backbones",
        ),
    ],
)
def test_what_contradicts_a_race(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate({"dataset": "photos", "backbone": "race", **changes}, "test")


def test_the_backbones_of_a_race() -> None:
    config = validate({"dataset": "photos", "backbone": "race"}, "test")
    assert set(config.backbones) == {*listed_backbones(SMALL), *listed_backbones(LARGE)}
    greedy = validate(
        {"dataset": "d", "backbone": "race", "search": {"strategy": "greedy"}}, "test"
    )
    assert (config.kept, greedy.kept) == (2, 1)
    chosen = config.with_backbones(["resnet18.a1_in1k"])
    assert (chosen.backbone, chosen.weights, chosen.race) == ("resnet18.a1_in1k", "hub", None)
    own = validate(
        {"dataset": "d", "backbone": {"race": ["a", "b"]}, "weights": ["none", "b.pth"]}, "test"
    )
    assert own.with_backbones(["b"]).weights == {"b": "b.pth"}
    assert own.without_race("b").weights == "none"


def test_a_file_of_weights_is_left_to_the_study_that_may_exist() -> None:
    config = validate({"dataset": "d", "backbone": "race", "weights": "mine.pth"}, "test")
    assert "BACKBONE=resnet18" in config.race_weights_problem()
    chosen = config.with_backbones(["resnet18.a1_in1k"])
    assert chosen.weights == {"resnet18.a1_in1k": "mine.pth"}
    assert not chosen.race_weights_problem()


def test_a_race_among_a_list_of_its_own_has_a_study_of_its_own() -> None:
    names = {
        value: load_study_file("folder", ["dataset=photos", *value]).name
        for value in (
            (),
            ("backbone=race",),
            ("backbone={race: [resnet18, resnet50]}",),
            ("backbone=resnet18.a1_in1k",),
        )
    }
    assert list(names.values()) == ["photos", "photos", "photos-race", "photos-resnet18.a1_in1k"]
