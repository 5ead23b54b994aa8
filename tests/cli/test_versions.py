"""What a later version of autotune has stored: one message, exit code 2, from every verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna.study import Study

from autotune import __version__
from autotune.errors import FormatError
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.commands.inside import Ended, call
from tests.support.study.studies import make_study

VERBS = {
    "worker": ("worker", "made"),
    "status": ("status", "made"),
    "best": ("best", "made"),
    "report": ("report", "made", "-o", "-", "--format", "json"),
    "refit": ("refit", "made"),
    "confirm": ("confirm", "made"),
    "reproduce": ("reproduce", "made", "0"),
    "layers": ("layers", "--study", "made", "--plan", "0"),
    "doctor": ("doctor", "made"),
    "run": ("run", "digits", "--name", "made"),
}
READERS_OF_PLANS = ("best", "refit", "confirm", "reproduce", "layers", "report", "status")


@pytest.fixture
def folder(tmp_path: Path, closed_connections: None) -> Path:
    return tmp_path


def make(folder: Path) -> Study:
    url = f"sqlite:///{folder / 'storage/autotune.db'}"
    study = make_study("made", trials=6, storage=open_storage(url, create=True))
    study.set_user_attr(attrs.FILES, str(folder / "files"))
    return study


def change_plans(folder: Path, **changes: Any) -> None:
    """Change the plans of all trials, as a later version would have written them."""
    engine = sqlalchemy.create_engine(f"sqlite:///{folder / 'storage/autotune.db'}")
    with engine.begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes "
            "WHERE key = 'plan'"
        ).all()
        for number, text in rows:
            plan = {**json.loads(text), **changes}
            connection.exec_driver_sql(
                "UPDATE trial_user_attributes SET value_json = ? "
                "WHERE trial_user_attribute_id = ?",
                (json.dumps(plan), number),
            )
    engine.dispose()


def refused(verb: str, folder: Path) -> str:
    ended: Ended = call(*VERBS[verb], cwd=folder)
    assert ended.code == 2, ended
    assert ended.err.count("error: ") == 1 and "Traceback" not in ended.err, ended
    said = " ".join(ended.err.split())
    assert "cannot be read" in said and f"this is autotune {__version__}" in said
    return said


def test_a_study_of_a_later_version(folder: Path) -> None:
    make(folder).set_user_attr(attrs.FORMAT, {"format": 99, "autotune": "9.9"})
    for verb in VERBS:
        said = refused(verb, folder)
        assert "the study 'made' was written by autotune 9.9" in said, verb
        assert "format 99" in said and "use autotune 9.9, or a later one" in said, verb


@pytest.mark.parametrize("changes", [{"attention": 3}, {"head": {"kind": "mlp"}}, {"layers": [3]}])
def test_a_plan_that_this_version_does_not_know(changes: dict[str, Any], folder: Path) -> None:
    """Nothing of a plan is dropped silently, wherever it stands."""
    make(folder)
    change_plans(folder, **changes)
    for verb in READERS_OF_PLANS:
        assert "the plan of trial" in refused(verb, folder), verb


def test_a_definition_that_this_version_does_not_know(folder: Path) -> None:
    study = make(folder)
    study.set_user_attr(
        attrs.DEFINITION, {**study.user_attrs[attrs.DEFINITION], "teacher": {"model": "x"}}
    )
    study.set_user_attr(attrs.ENVIRONMENT, {"autotune": "9.8"})
    for verb in ("worker", "refit", "confirm", "reproduce", "layers"):
        said = refused(verb, folder)
        assert "the definition of the study 'made' was written by autotune 9.8" in said, verb
        assert "teacher" in said, verb


def test_a_space_that_this_version_does_not_know(folder: Path) -> None:
    study = make(folder)
    space = study.user_attrs[attrs.SPACE]
    fixed = {**space["fixed"], "training.teacher": 0.5}
    study.set_user_attr(attrs.SPACE, {**space, "fixed": fixed})
    with pytest.raises(FormatError, match=r"no parameter 'training\.teacher'"):
        attrs.study_space(study)
    study.set_user_attr(attrs.SPACE, {**space, "stages": []})
    with pytest.raises(FormatError, match="a space has no 'stages'"):
        attrs.study_space(study)


def test_a_plan_in_a_file(folder: Path) -> None:
    path = folder / "record.json"
    plan = {"backbone": "resnet18", "attention": 1}
    path.write_text(json.dumps({"plan": plan}))
    ended = call("layers", "--plan", str(path), cwd=folder)
    assert ended.code == 2 and "'attention'" in ended.err
    path.write_text(json.dumps({"format": 99, "versions": {"autotune": "9.9"}, "plan": plan}))
    ended = call("layers", "--plan", str(path), cwd=folder)
    assert ended.code == 2 and "was written by autotune 9.9" in " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("attribute", "values", "verb"),
    [
        (attrs.BUDGET, {"trials": 3, "euros": 5}, "doctor"),
        (attrs.ENDED, {"kind": "x", "words": "x", "since": 1}, "status"),
        (attrs.CONFIRMED, {"trial": 1, "trials": [1]}, "report"),
    ],
)
def test_what_a_study_remembers_besides(
    attribute: str, values: dict[str, Any], verb: str, folder: Path
) -> None:
    make(folder).set_user_attr(attribute, values)
    refused(verb, folder)


def test_a_copy_leaves_a_study_of_a_later_version_where_it_is(folder: Path) -> None:
    """It may have files that this version would leave behind."""
    make(folder).set_user_attr(attrs.FORMAT, {"format": 99, "autotune": "9.9"})
    urls = ("--from", "sqlite:///storage/autotune.db", "--to", "sqlite:///copy.db")
    ended = call("storage", "copy", *urls, cwd=folder)
    assert ended.code == 2 and ended.err.count("error: ") == 1
    assert "the study 'made' was written by autotune 9.9" in " ".join(ended.err.split())
    assert not (folder / "copy.db").exists()
