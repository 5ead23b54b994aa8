"""``autotune reproduce``: its exit code tells whether the values came out the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import create_trial

from autotune.study.state import attrs
from tests.support.connections import connections_closed
from tests.support.inline import run
from tests.support.inside import call
from tests.support.small import open_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of one trial, and a copy of it with other values."""
    folder = tmp_path_factory.mktemp("rerun")
    with connections_closed():
        opened = open_small(folder, search__trials=1)
        run(opened)
        done = opened.study.trials[0]
        curve = {**done.intermediate_values, 2: done.intermediate_values[2] - 0.25}
        attributes = {key: done.user_attrs[key] for key in (attrs.PLAN, attrs.THREADS)}
        other = create_trial(value=curve[2], intermediate_values=curve, user_attrs=attributes)
        opened.study.add_trial(other)
    return folder


@pytest.mark.parametrize(
    ("trial", "code", "words"),
    [
        ("0", 0, "equal bit by bit, after each of 2 epochs"),
        (
            "1",
            1,
            "differs from epoch 2 of 2 on; the last value by +0.25; epoch 2 differs the most, by "
            "+0.25",
        ),
    ],
)
def test_its_exit_code(trial: str, code: int, words: str, folder: Path) -> None:
    with connections_closed():
        ended = call(
            "reproduce", "small", trial, "--storage", f"sqlite:///{folder}/study.db", cwd=folder
        )
    assert ended.code == code, ended
    assert words in ended.out
