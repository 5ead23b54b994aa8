"""Loggers are made before anything starts; what is missing is said with the way out."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from autotune.config.schema import LOGGERS
from autotune.errors import UserError
from autotune.loggers.opening import open_loggers, open_usable


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        open_loggers([name])
    assert f"{name} needs the package {name}" in str(caught.value)
    assert f"pip install 'autotune[{name}]'" in str(caught.value)
    warnings: list[str] = []
    assert open_usable([name], warnings.append).names == []
    assert "the trials of this worker are not logged there" in warnings[0]


class _Logger:
    def __call__(self, event: object) -> None: ...


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        (_Logger, "give an object: _Logger()"),
        (7, "objects that can be called with an event, but got 7"),
    ],
)
def test_what_is_no_logger_is_refused(given: Any, text: str) -> None:
    with pytest.raises(UserError) as caught:
        open_loggers([given])
    assert text in str(caught.value)


def test_objects_have_the_name_of_their_code() -> None:
    assert open_loggers([_Logger(), print]).names == ["the logger _Logger", "the logger print"]
