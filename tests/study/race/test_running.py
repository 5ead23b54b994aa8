"""The race among backbones, from the study file to the study of the winners."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file

from autotune.config.schema import StudyConfig
from autotune.display.summary import print_race
from autotune.errors import ChangedStudyError, ConfigError, UserError
from autotune.results.report.markdown import render_markdown
from autotune.results.report.race_table import race_table
from autotune.results.study_results import StudyResults
from autotune.study.race.rounds import find_race
from autotune.study.race.running import remove_rounds, run_race, run_study_with_race
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.state.race_record import RaceEntry, RaceRecord, describe_left_out
from tests.support.commands.inline import workers_inline
from tests.support.models.packages import close_hub
from tests.support.study.small import open_small, small_config

NAMES = ("test_resnet", "test_convnext", "test_efficientnet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    paths = {}
    for name in NAMES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = timm.create_model(name, num_classes=0)
        paths[name] = str(folder / f"{name}.safetensors")
        save_file(model.state_dict(), paths[name])
    return paths


def race_config(folder: Path, weights: Any, entrants: Any = None, **overrides: Any) -> StudyConfig:
    values = {
        "backbone": {"race": list(entrants or NAMES)},
        "weights": weights,
        "space__trainable_layers": {"low": 0, "high": "all"},
        "space__training": {"head_start": ["random", "solved"]},
        "data__image_size": 32,
        "search__trials": 1,
        **overrides,
    }
    return small_config(folder, **values)


@pytest.fixture(scope="module")
def raced(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, str]
) -> Iterator[tuple[StudyConfig, list[dict[str, Any]]]]:
    """Run a race, interrupted once, and the study of its winners."""
    folder = tmp_path_factory.mktemp("raced")
    config = race_config(folder, weights, [*NAMES, "test_vit"])
    events: list[dict[str, Any]] = []
    with workers_inline(), pytest.MonkeyPatch.context() as patch:
        close_hub(patch)
        with pytest.raises(KeyboardInterrupt):
            run_race(config, on_event=_interrupt_at("race, round 2"), workers=1)
        run_study_with_race(config, on_event=events.append, workers=1)
    yield config, events


def _interrupt_at(text: str) -> Any:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "race" and event["lines"] and event["lines"][0].startswith(text):
            raise KeyboardInterrupt

    return on_event


def lines_of(events: list[dict[str, Any]]) -> list[str]:
    return [line for event in events if event["event"] == "race" for line in event["lines"]]


@pytest.mark.slow
def test_the_study_has_the_winners(raced: tuple[StudyConfig, list[dict[str, Any]]]) -> None:
    config, events = raced
    handle = open_existing("small", config.storage)
    record = RaceRecord.from_json(handle.study.user_attrs[attrs.RACE])
    assert 1 <= len(record.kept) <= 2 and set(record.kept) < set(NAMES)
    assert list(handle.config().backbones) == list(record.kept)
    assert handle.config().weights == {name: config.weights_of(name) for name in record.kept}
    assert record.epochs == (0, 1) and record.asked == config.race.to_json()
    assert {entry.backbone: len(entry.values) for entry in record.entries} == {
        **dict.fromkeys(NAMES, 2),
        "test_vit": 0,
    }
    best, *_, last = record.entries
    assert best.backbone == record.kept[0] and best.latency_ms and best.seconds > 0
    assert last.left_out.startswith("the hub cannot be reached (ConnectionError: no route)")
    assert optuna.get_all_study_names(config.storage) == ["small"]
    # Of a race that was interrupted after its heads, these are not solved again.
    opened = [event["progress"].finished for event in events if event["event"] == "opened"]
    assert opened == [3, 0, 0]
    assert lines_of(events)[-1].startswith(f"race: {record.kept[0]}")


@pytest.mark.slow
def test_it_continues_without_another_race(
    raced: tuple[StudyConfig, list[dict[str, Any]]],
) -> None:
    config, _ = raced
    events: list[dict[str, Any]] = []
    with workers_inline():
        assert not run_study_with_race(config, on_event=events.append, workers=1).trained
        changed = config.model_copy(update={"backbone": {"race": list(NAMES), "keep": 1}})
        with pytest.raises(
            ChangedStudyError, match=r"backbone: .* in the study, .*'keep': 1\} now"
        ):
            run_study_with_race(changed, workers=1)
    assert not lines_of(events)


@pytest.mark.slow
def test_a_study_keeps_its_backbone_where_the_file_says_race(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    path = weights["test_resnet"]
    named = race_config(tmp_path, path, backbone="test_resnet")
    events: list[dict[str, Any]] = []
    with workers_inline():
        run_study_with_race(named, workers=1)
        # The same command, after the default of the study file has become a race.
        config = race_config(tmp_path, path, backbone="race", search__trials=2)
        result = run_study_with_race(config, on_event=events.append, workers=1)
        assert result.trained and result.handle.name == "small"
        other = race_config(tmp_path, weights)
        with pytest.raises(ChangedStudyError, match=r"backbone=test_resnet --name small \(make"):
            run_study_with_race(other, workers=1)
    assert lines_of(events) == [
        "race: none, because the study has its backbone: test_resnet",
    ]
    handle = open_existing("small", config.storage)
    assert handle.config().backbones == ("test_resnet",)
    assert attrs.RACE not in handle.study.user_attrs


def test_a_file_of_weights_needs_the_name_of_its_backbone(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    config = race_config(tmp_path, weights["test_resnet"], backbone="race")
    with pytest.raises(ConfigError, match="weights: must be hub or none in a race"):
        run_study_with_race(config, workers=1)
    assert not list(tmp_path.iterdir())


def test_images_are_checked_before_weights_are_loaded(tmp_path: Path) -> None:
    config = race_config(tmp_path, "hub", dataset=str(tmp_path / "nowhere"))
    events: list[dict[str, Any]] = []
    with pytest.raises(ConfigError, match="nowhere"):
        run_study_with_race(config, on_event=events.append, workers=1)
    assert not lines_of(events)


@pytest.mark.slow
def test_the_progress_of_a_race_is_known_before_its_study(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    config = race_config(tmp_path, weights)
    assert find_race("small", config.storage) is None
    with workers_inline(), pytest.raises(KeyboardInterrupt):
        run_race(config, on_event=_interrupt_at("race: validation"), workers=1)
    race = find_race("small", config.storage)
    assert race is not None and (race.number, race.opened.name) == (0, "small.race0")
    names = {name for name in NAMES if name in race.describe()}
    assert "the race is in round 1 (solved head): " in race.describe() and names == set(NAMES)
    console = Console(width=200, record=True, file=io.StringIO())
    print_race(console, race)
    said = console.export_text()
    assert said.startswith("The study 'small' is made when its race has ended; the race is in")
    assert "trials of this round: 3 of 3 finished" in said and "solved head" in said
    assert "out after" not in said


def test_a_study_that_has_the_name_of_a_round_is_kept(
    tmp_path: Path, weights: dict[str, str]
) -> None:
    """It may have had a race of its own."""
    other = open_small(tmp_path, name="small.race1")
    record = RaceRecord({"race": "auto"}, "small", "accuracy", (0,), kept=("test_resnet",))
    other.study.set_user_attr(attrs.RACE, record.to_json())
    config = race_config(tmp_path, weights)
    assert find_race("small", config.storage) is None
    with pytest.raises(UserError, match=r"'small.race1' has the name of a round .* with --name"):
        run_study_with_race(config, workers=1)
    remove_rounds(config)
    assert optuna.get_all_study_names(config.storage) == ["small.race1"]


def test_what_became_of_a_backbone() -> None:
    entries = [RaceEntry("a", values=(0.9, 0.8)), RaceEntry("b", values=(0.8,)), RaceEntry("c")]
    record = RaceRecord({"race": "auto"}, "small", "accuracy", (0, 2, 6), tuple(entries))
    assert [record.outcome(entry) for entry in entries] == ["", "out after: solved head", ""]
    ended = replace(record, kept=("a",))
    assert [ended.outcome(entry) for entry in entries] == [
        *("in the study", "out after: solved head", ""),
    ]


def test_backbones_that_are_left_out_for_one_reason_share_a_line() -> None:
    reasons = {"a": "no hub", "b": "", "c": "too large", "d": "no hub"}
    entries = [RaceEntry(name, left_out=reason) for name, reason in reasons.items()]
    assert describe_left_out(entries) == ["a, d: no hub", "c: too large"]


@pytest.mark.slow
def test_the_race_is_reported(raced: tuple[StudyConfig, list[dict[str, Any]]]) -> None:
    config, _ = raced
    results = StudyResults.from_study(open_existing("small", config.storage).study)
    found = race_table(results)
    assert found is not None and found.text.startswith("Of 4 backbones, test_")
    assert found.titles == (
        *("backbone", "solved head", "tuned, 1 epoch", "parameters", "latency", "license", ""),
    )
    (left_out,) = found.text.partition(" Left out: ")[2].splitlines()
    assert left_out.endswith(".") and len(found.rows) == 3
    assert "## The race among backbones" in render_markdown(results)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"entrants": ["test_resnet", "test_convnet"], "weights": "none"},
            ConfigError,
            "did you mean 'test_convnext'",
        ),
        (
            {"weights": "hub"},
            UserError,
            "no backbone of the race can be had:\n"
            r"  test_resnet, test_convnext, test_efficientnet: the hub .* \(ConnectionError.*\n"
            "without the hub, .* backbone=tf_efficientnet_lite0 .* weights=path/to/file",
        ),
        (
            {"constraints": {"max_parameters": 1000}},
            UserError,
            "test_resnet: 373 k parameters, at most 1.00 k",
        ),
    ],
)
def test_nothing_to_race(
    changes: dict[str, Any],
    error: type[UserError],
    message: str,
    tmp_path: Path,
    weights: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close_hub(monkeypatch)
    config = race_config(tmp_path, **{"weights": weights, **changes})
    with pytest.raises(error, match=message):
        run_study_with_race(config, workers=1)
    assert not list(tmp_path.iterdir())
