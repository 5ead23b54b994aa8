"""How a report says to run the study again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from optuna.study import Study

from autotune.config.schema import StudyConfig
from autotune.results.report.reproduction import commands, study_file
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.budget import Budget
from tests.support.study.studies import make_study

URL = "postgresql://me:secret@db.example.org/studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


def file_of(study: Study, storage_url: str = "") -> str:
    return study_file(StudyResults.from_study(study), storage_url)


def test_the_study_file_defines_the_same_study(study: Study) -> None:
    config = StudyConfig.model_validate(yaml.safe_load(file_of(study, "sqlite:///a.db")))
    assert config.identity() == study.user_attrs[attrs.DEFINITION]
    assert (config.name, config.search.trials, config.storage) == ("digits", 40, "sqlite:///a.db")
    again = make_study(trials=1)
    budget = Budget(7, timeout=60.0, until=1.8e9, device_hours=2.0, patience=3)
    again.set_user_attr(attrs.BUDGET, budget.to_json())  # that of the last run
    search = StudyConfig.model_validate(yaml.safe_load(file_of(again))).search
    assert (search.trials, search.timeout, search.device_hours) == (7, 60.0, 2.0)
    assert search.patience == 3


def test_commands(study: Study) -> None:
    text = commands(StudyResults.from_study(study), URL)
    redacted = "'postgresql://me:***@db.example.org/studies'"
    assert f"autotune best digits --storage {redacted}" in text
    assert f"autotune run digits.yaml --name digits-again --storage {redacted}" in text


def test_commands_copy_a_preset_that_still_says_the_same(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "digits.yaml"
    shipped.write_text(file_of(study), encoding="utf-8")
    monkeypatch.setattr("autotune.config.loading.presets_folder", lambda: tmp_path)
    results = StudyResults.from_study(study)
    assert "autotune cp digits digits.yaml" in commands(results, "")
    for text in (file_of(study).replace("epochs: 10", "epochs: 11"), "dataset: ["):
        shipped.write_text(text, encoding="utf-8")
        assert "autotune cp" not in commands(results, "")
