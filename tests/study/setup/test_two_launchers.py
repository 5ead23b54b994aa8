"""Two launchers that start at once with the same files: one that fails spares the other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.data.views.study_data import StudyData
from autotune.errors import StudyError
from autotune.storage.paths import StudyPaths
from autotune.study.engine import launcher
from autotune.study.engine.launcher import _open
from autotune.study.setup.definition import Definition
from autotune.study.setup.manifest_store import read_manifest
from autotune.study.setup.opening import OpenStudy, open_or_create
from tests.support.study.small import defined, small_config

pytestmark = pytest.mark.usefixtures("closed_connections")


def definition(folder: Path, name: str) -> Definition:
    return defined(small_config(folder / "deep" / "er", name=name))


def start(folder: Path, name: str) -> OpenStudy:
    return _open(definition(folder, name), lambda event: None)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Have the start of study ``bad`` fail at its end, once something else has happened."""

    def prepare(happens: Callable[[], Any]) -> None:
        def opened(definition: Definition, *given: Any) -> OpenStudy:
            if definition.config.name != "bad":
                return open_or_create(definition, *given)
            happens()
            raise StudyError("it cannot be")

        monkeypatch.setattr(launcher, "open_or_create", opened)

    return prepare


def test_a_start_that_fails_alone_leaves_nothing(
    tmp_path: Path, fails: Callable[[Callable[[], Any]], None]
) -> None:
    files = StudyPaths.from_url(f"sqlite:///{tmp_path}/deep/er/study.db")
    seen: list[Path] = []
    fails(lambda: seen.extend(files.cache.rglob("record.json")))
    with pytest.raises(StudyError):
        start(tmp_path, "bad")
    assert seen  # images were decoded
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_what_another_has_made_meanwhile(
    tmp_path: Path, fails: Callable[[Callable[[], Any]], None]
) -> None:
    good: list[OpenStudy] = []
    tasks: list[StudyData] = []

    def other() -> None:
        good.append(start(tmp_path, "good"))
        config, (spec,) = definition(tmp_path, "good").config, definition(tmp_path, "good").specs
        tasks.append(StudyData.open(config.dataset, config.data, spec, good[0].files.cache))

    fails(other)
    with pytest.raises(StudyError):
        start(tmp_path, "bad")
    (handle,) = good
    assert handle.study.user_attrs and read_manifest(handle.study, handle.files)
    # Its images are those that the other launcher has decoded.
    assert list(handle.files.cache.rglob("record.json"))
    assert len(tasks[0].train_rows) == 50


def test_a_start_goes_on_where_another_one_fails(
    tmp_path: Path,
    fails: Callable[[Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that fails finds the folders of the other, and leaves them, empty or not."""
    fails(lambda: None)
    before = launcher._open_with_images

    def meets_the_failure(defined: Definition, *given: Any) -> OpenStudy:
        if defined.config.name == "good":
            with pytest.raises(StudyError):
                start(tmp_path, "bad")
        return before(defined, *given)

    monkeypatch.setattr(launcher, "_open_with_images", meets_the_failure)
    handle = start(tmp_path, "good")
    assert handle.study.user_attrs and read_manifest(handle.study, handle.files)
