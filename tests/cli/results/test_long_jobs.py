"""Verbs that take long, in a log: lines with the time that is left."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from autotune.display import status as status_module
from tests.support.commands.inside import call
from tests.support.data.images import photo
from tests.support.models.surgery import kept, saved


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "LINE_INTERVAL_S", 0.001)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("refit", "tiny", "-o", "model"),
            r"(best plan|baseline): epoch \d of 3, time left 0:\d\d",
        ),
        (("confirm", "tiny", "--top", "1", "--seeds", "2"), r"seed \d: epoch \d of 3, time left"),
        (("reproduce", "tiny", "0"), r"trial 0: epoch \d of 3, time left 0:\d\d"),
    ],
)
def test_trainings(arguments: tuple[str, ...], line: str, finished: Path, tmp_path: Path) -> None:
    no_trainings = shutil.ignore_patterns("trainings")  # another test may have left some
    shutil.copytree(finished / "storage", tmp_path / "storage", ignore=no_trainings)
    ended = call(*arguments, cwd=tmp_path)
    assert ended.code in (0, 1), ended.err
    assert re.search(rf"(?m)^\d+:\d\d .*{line}", ended.err), ended.err


def test_images_and_exports(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", kept("test_resnet"))
    for number in range(6):
        photo(90, 70, number).save(tmp_path / f"{number}.png")
    images = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    ended = call("predict", str(model), *images, "--batch-size", "1", cwd=tmp_path)
    assert re.search(r"(?m)^\d+:\d\d \d of 6 images, time left 0:\d\d", ended.err), ended.err
    assert len(ended.out.splitlines()) == 7
    ended = call("export", str(model), "--format", "torch-export", cwd=tmp_path)
    assert re.search(r"(?m)^\d+:\d\d writing torch-export", ended.err), ended.err
    assert "writing" not in ended.out
