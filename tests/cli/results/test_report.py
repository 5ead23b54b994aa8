"""``autotune report``: its forms, where they go, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.commands.inside import call, contents
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study

FILES = Path("storage/autotune.files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study ``made``."""
    folder = tmp_path_factory.mktemp("made")
    with connections_closed():
        storage = open_storage(f"sqlite:///{folder / 'storage/autotune.db'}", create=True)
        study = make_study("made", trials=6, storage=storage)
        study.set_user_attr(attrs.FILES, str(folder / FILES))
    return folder


def test_every_form_lies_beside_the_study(folder: Path) -> None:
    for form in ("html", "md", "json", "csv", "parquet"):
        ended = call("report", "made", "--format", form, cwd=folder)
        path = FILES / f"reports/made.{form}"
        assert (ended.code, ended.err, ended.out) == (0, "", f"report: {path}\n")
        assert (folder / path).stat().st_size > 500
    assert not StudyPaths(folder / FILES).studies()  # one without logs would be the doctor's


def test_the_ending_is_enough(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    assert call("report", "made", "-o", str(path), cwd=folder).code == 0
    assert pd.read_parquet(path)["number"].tolist() == list(range(9))
    assert list(tmp_path.iterdir()) == [path]


def test_standard_output(folder: Path) -> None:
    before = contents(folder)
    shown = call("report", "made", "--format", "json", "-o", "-", cwd=folder)
    assert (shown.code, shown.err) == (0, "")
    assert json.loads(shown.out)["study"] == "made"
    assert call("report", "made", "-o", "-", "--format", "md", cwd=folder).out.startswith("# St")
    assert call("report", "made", "-o", "-", "--format", "csv", cwd=folder).out.count("\n") == 10
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "md", "-o", "a.json"), "md and the file a.json contradict each other"),
        (("-o", "a.txt"), "a.txt: the ending of a report must be one of html, md, json, csv"),
        (
            ("-o", "-", "--format", "parquet"),
            "standard output takes md, json, csv, yaml, epochs, predictions, but got parq",
        ),
        (("-o", "missing/a.md"), "missing must exist and be writable, to write missing/a.md"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    arguments: tuple[str, ...], said: str, folder: Path
) -> None:
    before = contents(folder)
    ended = call("report", "made", *arguments, cwd=folder)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert contents(folder) == before
