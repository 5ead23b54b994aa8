"""The cache may be removed while a study runs, whole or in part: no value changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.study.engine.test_outage import outcome
from tests.support.commands.inline import Event, run
from tests.support.study.small import open_small

STUDY: dict[str, Any] = {
    "search__trials": 4,
    "training__num_views": 2,
    "search__sampler": "random",
}


def every(folder: Path, pattern: str) -> None:
    for path in folder.rglob(pattern):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


PARTS: dict[str, Callable[[Path], None]] = {
    "whole": lambda cache: shutil.rmtree(cache),
    "features": lambda cache: every(cache, "features"),
    "single arrays": lambda cache: every(cache, "0"),
    "records": lambda cache: every(cache, "record.json"),
    "locks": lambda cache: every(cache, "*.lock"),
    "images": lambda cache: every(cache, "images"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    handle = open_small(tmp_path_factory.mktemp("undisturbed"), **STUDY)
    run(handle)
    return outcome(handle)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["ready", "start", "epoch"])
@pytest.mark.parametrize("part", PARTS)
def test_a_cache_that_is_removed_in_mid_run(
    part: str, moment: str, tmp_path: Path, undisturbed: list[Any]
) -> None:
    handle = open_small(tmp_path, **STUDY)
    removed = 0

    def remove(event: Event) -> None:
        nonlocal removed
        if event["event"] == moment and handle.files.cache.exists():
            PARTS[part](handle.files.cache)
            removed += 1

    run(handle, until=remove)
    assert removed
    assert outcome(handle) == undisturbed
    assert all(trial.state != TrialState.FAIL for trial in handle.study.get_trials())
