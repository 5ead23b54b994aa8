"""The first page of a dashboard: what every study found, whoever made it and in whatever state."""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.study import Study

from autotune import optuna_private
from autotune.results.dashboard.landing import LandingPage
from autotune.results.dashboard.server import Shown, make_dashboard_server
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.support.pages.page import Parsed
from tests.support.study.databases import connections_closed
from tests.support.study.studies import HOSTILE, make_study

#: A hostile name, with blanks, slashes and Chinese.
ODD = f"a/b 照片 {HOSTILE}"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A storage with a study of every kind."""
    url = f"sqlite:///{tmp_path_factory.mktemp('landing')}/study.db"
    with connections_closed():
        storage = open_storage(url, create=True)
        made = partial(make_study, running=0, failed=0, retried=0, storage=storage)
        made(ODD, trials=5)
        ended = made("ended", trials=3, gain=-0.1)
        ended.set_user_attr(attrs.ENDED, StopReason("trials", "3 finished trials").to_json())
        made("damaged", trials=2).set_user_attr(attrs.CONFIRMED, {"trial": 1})
        made("empty", trials=0)
        half = made("half", trials=2)
        spoil(storage, half, attrs.ENDED, '{"kin')
        foreign = optuna.create_study(study_name="foreign", storage=storage)
        foreign.add_trial(optuna.trial.create_trial(value=0.25))
        many = optuna.create_study(
            study_name="three", storage=storage, directions=["minimize"] * 3
        )
        many.add_trial(optuna.trial.create_trial(values=[1.0, 2.0, 3.0]))
        begun = optuna.create_study(study_name="begun", storage=storage)
        begun.set_user_attr(attrs.UUID, "0f")
        yield url


def spoil(storage: RetryingStorage, study: Study, key: str, text: str) -> None:
    """Store a text that is no JSON, as a value that was cut off."""
    study.set_user_attr(key, {})
    table = optuna_private.models.StudyUserAttributeModel
    change = sqlalchemy.update(table).values(value_json=text)
    with storage.engine.begin() as connection:
        of_study = table.study_id == optuna_private.study_id(study)
        connection.execute(change.where(of_study, table.key == key))


@pytest.fixture
def page(url: str) -> Iterator[LandingPage]:
    with connections_closed():
        yield LandingPage(open_storage(url), url)


def rows_of(page: str) -> dict[str, str]:
    """Return the text of every row by the name of its study."""
    rows = [Parsed(row) for row in re.findall(r"<tr class=.*?</tr>", page, re.DOTALL)]
    return {row.texts[0][1]: row.text for row in rows}


def test_every_study_has_its_answer(page: LandingPage) -> None:
    status, text = page.page()
    assert status == "200 OK" and "<script>alert" not in text
    rows = rows_of(text)
    expected = {
        ODD: ("search alone Baseline 84.2 % → best", "unfinished", "5 of 40"),
        "ended": ("search alone No trial is better", "ended 3 finished trials", "3 of 40"),
        "damaged": ("Cannot be read what 'autotune confirm'", "unreadable"),
        "half": ("Cannot be read JSONDecodeError", "unreadable"),
        "empty": ("Nothing has run yet", "unfinished", "0 of 40"),
        "foreign": ("Best value 0.25 (trial 0)", "other program 1 "),
        "three": ("1 complete trial with 3 objectives", "other program 1 "),
        "begun": ("not made its start was interrupted",),
    }
    assert rows.keys() == expected.keys()
    for name, texts in expected.items():
        assert all(text in rows[name] for text in texts), rows[name]


def test_links_are_below_the_folder_of_the_page(page: LandingPage) -> None:
    for base in ("/tools/", ""):
        links = [link["href"] for link in Parsed(page.page(base)[1]).having("a")]
        assert f"{base}report/1" in links and f"{base}dashboard/studies/1" in links
        assert all(link.startswith(base) for link in links)


def test_only_what_changed_is_read_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune.results import overview

    read: list[str] = []
    read_outcome = overview._read_outcome

    def counted(study: overview.IndexedStudy, storage: RetryingStorage) -> overview.StudyOutcome:
        read.append(study.name)
        return read_outcome(study, storage)

    monkeypatch.setattr(overview, "_read_outcome", counted)
    with connections_closed():
        storage = open_storage(url)
        overviews = overview.StudyOverviews(storage, url)
        first = overviews.read(limit_s=0.0)
        assert len(read) == 1 and sum(study.outcome is None for study in first) == 7
        overviews.read()
        assert len(read) == len(set(read)) == 8
        study = optuna.load_study(study_name="foreign", storage=storage)
        study.add_trial(optuna.trial.create_trial(value=0.125))
        after = {study.name: study for study in overviews.read()}
        assert read[8:] == ["foreign"]
        assert after["foreign"].outcome is not None and after["foreign"].outcome.best == "0.125"


def test_reports_are_made_when_they_are_asked_for(page: LandingPage) -> None:
    status, report = page.report(1)
    # It looks for the artifacts of the study, and so for its images.
    assert status == "200 OK" and "This study has no predictions of single images" in report
    for study_id, status, text in (
        (3, "500 Internal Server Error", "was written by another version"),
        (6, "404 Not Found", "was not made by autotune"),
        (99, "404 Not Found", "There is no such study"),
    ):
        found, message = page.report(study_id)
        assert found == status and text in message.replace("&#39;", "'"), message


def test_an_empty_storage_says_what_to_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with connections_closed():
        page = LandingPage(open_storage(url, create=True), url)
        status, text = page.page()
        assert status == "200 OK" and "autotune run digits --storage" in text
        assert "autotune run folder dataset=path/to/images" in text
        (tmp_path / "study.db").unlink()
        status, text = page.page()
        assert status == "503 Service Unavailable" and "The storage cannot be read" in text


def test_it_stands_before_optuna_dashboard(url: str) -> None:
    with connections_closed():
        shown = Shown.all_studies(url)
        with make_dashboard_server(shown, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            for path, content in (
                ("/", b"autotune"),
                ("/?x=1", b"autotune"),
                ("/dashboard", b"<title>Optuna Dashboard</title>"),
                ("/dashboard/studies/1", b"<title>Optuna Dashboard</title>"),
            ):
                with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
                    assert content in answer.read(), path
            for path in ("/report/99", "/report/x"):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    urllib.request.urlopen(f"{address}{path}", timeout=30)
                with caught.value as refused:
                    assert refused.code == 404
            server.shutdown()
