"""``autotune run --seeds``: a study under several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.inside import call
from tests.support.runs import SMALL, trials_of


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
