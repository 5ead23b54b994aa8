"""``autotune run --seeds``: a study under several seeds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import autotune
from autotune.api.study import Study
from autotune.cli.running.run import _run_seeds
from autotune.config.backbones import Race
from autotune.config.loading import load_study_file
from autotune.config.schema import StudyConfig
from autotune.display import console
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, trials_of
from tests.support.study.studies import make_study


@pytest.mark.slow
def test_studies_of_several_seeds_end_in_a_table(tmp_path: Path) -> None:
    given = ("run", "digits", *SMALL, "search.trials=2", "training.epochs=1", "--name", "tiny")
    first = call(*given, "--seeds", "2", cwd=tmp_path)
    assert first.code == 0, first.err
    assert "Mean gain over 2 seeds: " in first.out
    assert first.out.splitlines()[-1].endswith(" compare tiny-seed0 tiny-seed1")
    ended = [trial.datetime_complete for trial in trials_of(tmp_path, "tiny-seed1")]
    more = call(*given, "--seeds", "3", cwd=tmp_path)
    assert more.code == 0 and "Mean gain over 3 seeds: " in more.out
    assert [trial.datetime_complete for trial in trials_of(tmp_path, "tiny-seed1")] == ended
    compared = call("compare", "tiny-seed0", "tiny-seed1", "tiny-seed2", cwd=tmp_path)
    assert "Mean gain over 3 seeds: " in compared.out
    told = call("compare", "tiny-seed0", "tiny-seed1", "--json", cwd=tmp_path)
    seeds = json.loads(told.out)["seeds"]
    assert [each["seed"] for each in seeds["studies"]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--seeds", "1"), "Input should be greater than or equal to 2"),
        (("--seeds", "2", "search.seed=2147483647"), "at most 2147483647, but got 2147483648"),
        (("--seeds", "2", "search.trails=4"), "did you mean 'trials'?"),
        (("--seeds", "2", "--name", "a" * 98), "a study's name has up to 100 letters"),
    ],
)
def test_mistakes_write_nothing(arguments: tuple[str, ...], why: str, tmp_path: Path) -> None:
    ended = call("run", "digits", *arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, ""), ended.out
    assert why in " ".join(ended.err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_seed_counts_also_beside_a_whole_section(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["search.seed=5", "search={trials: 2, seed: 3}"]
    configs = console.load_seeds("digits", given, None, None, 2)
    assert [config.search.seed for config in configs] == [3, 4]
    seeds: list[int] = []

    def stop(self: Study) -> SimpleNamespace:
        assert self._config is not None
        seeds.append(self._config.search.seed)
        return SimpleNamespace(interrupted=len(seeds) == 2)

    monkeypatch.setattr(Study, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        autotune.run_seeds(2, "digits", {"search.seed": 5, "search": {"trials": 2, "seed": 3}})
    assert seeds == [3, 4]


def test_studies_of_all_seeds_have_the_backbones_of_one_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[StudyConfig] = []

    def run_one(stdout: Console, config: StudyConfig) -> Any:
        asked.append(config)
        handle = SimpleNamespace(name=config.name, study=make_study(others={"test_vit": 4}))
        return SimpleNamespace(handle=handle, interrupted=False), None

    monkeypatch.setattr("autotune.display.comparison.print_seeds", lambda *given: None)
    configs = [
        load_study_file("folder", ["dataset=photos", f"search.seed={seed}"], f"photos-seed{seed}")
        for seed in range(3)
    ]
    _run_seeds(Console(file=io.StringIO()), configs, run_one)
    assert asked[0].race == Race() and [one.name for one in asked] == [c.name for c in configs]
    assert [one.backbones for one in asked[1:]] == [("test_resnet.r160_in1k", "test_vit")] * 2
