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
from tests.support.pages.page import html_of
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


def test_the_study_file_has_the_budgets_of_the_last_run() -> None:
    study = make_study(trials=1)
    budget = Budget(7, timeout=60.0, until=1.8e9, device_hours=2.0, patience=3)
    study.set_user_attr(attrs.BUDGET, budget.to_json())
    search = StudyConfig.model_validate(yaml.safe_load(file_of(study))).search
    assert (search.trials, search.timeout) == (7, 60.0)
    assert (search.device_hours, search.patience) == (2.0, 3)


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
    assert "autotune cp digits digits.yaml" in html_of(study)
    shipped.write_text(file_of(study).replace("epochs: 10", "epochs: 11"), encoding="utf-8")
    assert "autotune cp" not in html_of(study)
    shipped.write_text("dataset: [", encoding="utf-8")
    assert "autotune cp" not in html_of(study)


def test_no_password_on_the_page(study: Study) -> None:
    assert "secret" not in html_of(study, URL)
