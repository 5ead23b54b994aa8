"""A study that has ended without a result, as every output shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autotune
from autotune.errors import NoResultError
from autotune.study.state import attrs
from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL
from tests.support.study.studies import make_study

REASON = "no trial has a result: of 3 trials 3 diverged"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose study ``made`` has three trials, which diverged."""
    folder = tmp_path_factory.mktemp("none")
    (folder / "storage").mkdir()
    url = f"sqlite:///{folder}/storage/autotune.db"
    study = make_study("made", trials=0, failed=3, retried=0, running=0, storage=url)
    study.set_user_attr(attrs.ENDED, {"kind": "trials", "words": "3 finished trials"})
    study.set_user_attr(attrs.FILES, None)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status", "made"), 1),
        (("status", "made", "--watch"), 1),
        (("doctor", "made"), 1),
        (("best", "made"), 2),
        (("refit", "made"), 2),
        (("confirm", "made"), 2),
        (("report", "made", "--format", "md", "-o", "-"), 0),
        (("report", "made", "--format", "json", "-o", "-"), 0),
    ],
)
def test_every_verb_gives_the_reason(arguments: tuple[str, ...], code: int, folder: Path) -> None:
    ended = call(*arguments, cwd=folder)
    said = ended.out + ended.err
    assert ended.code == code
    assert REASON[1:] in said and "ower the learning rates (space.training.lr)" in said
    if "json" in arguments:
        assert json.loads(ended.out)["no_result"]["reason"] == REASON


def test_python_and_the_page_give_it_too(folder: Path) -> None:
    study = autotune.Study.open("made", f"sqlite:///{folder}/storage/autotune.db")
    assert REASON in repr(study) and REASON in study._repr_html_()
    page = study.report(folder / "page.html").read_text()
    assert REASON[1:] in page and "Lower the learning rates" in page


@pytest.mark.slow
def test_a_run_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("digits", *SMALL, "constraints.max_parameters=9", "search.trials=2", "--name", "it")
    for _ in range(2):  # nor is the next one
        ended = call("run", *options, "--workers", "1", cwd=tmp_path)
        assert ended.code == 1
        assert "No trial has a result: of 2 trials 2 exceeded the limits. Raise" in ended.out
    ended = call("worker", "it", cwd=tmp_path)
    assert ended.code == 1 and "No trial has a result" in ended.out
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoResultError, match=r"'it' has no result\. No trial has a"):
        autotune.Study.open("it").run(progress=False)
