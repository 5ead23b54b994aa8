"""What ``autotune status`` reads of a large study."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import event

from autotune.display.summary import print_summary, print_workers
from autotune.display.watch import poll
from autotune.storage.rdb import trial_reader
from autotune.storage.rdb.connection import open_storage
from autotune.study.race.rounds import round_name
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.state.race_record import RaceRecord
from tests.support.commands.inside import call
from tests.support.study.studies import make_study


@pytest.mark.usefixtures("closed_connections")
def test_a_status_takes_the_same_number_of_statements_for_any_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_reader, "CHUNK", 8)  # a study of more trials is a large one
    statements = []
    for count in (12, 60):
        url = f"sqlite:///{tmp_path}/{count}.db"
        make_study(storage=open_storage(url, create=True), trials=count, running=2, waiting=1)
        opened = open_existing("digits", url)
        seen: list[str] = []

        def note(*arguments: object, seen: list[str] = seen) -> None:
            if not str(arguments[2]).startswith("BEGIN"):
                seen.append(str(arguments[2]))

        event.listen(opened.storage.engine, "before_cursor_execute", note)
        shown = Console(file=StringIO(), width=120)
        print_workers(shown, opened)
        print_summary(shown, opened, trained=True)
        poll(opened)
        before = len(seen)
        poll(opened)
        assert len(seen) - before <= 12
        statements.append(seen)
    assert statements[0] == statements[1]


def test_a_report_of_an_earlier_study_of_that_name_is_not_shown(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = make_study(storage=open_storage(url, create=True), trials=4)
    study.set_user_attr(attrs.FILES, str(tmp_path / "files"))
    opened = open_existing("digits", url)
    begun = min(attrs.started_at(trial) for trial in opened.study.get_trials())
    report = opened.files.report(opened.name)
    report.parent.mkdir(parents=True)
    report.write_text("")
    for later_s, shown in ((-60, False), (60, True)):
        os.utime(report, (begun + later_s, begun + later_s))
        text = StringIO()
        print_summary(Console(file=text, width=200), opened, trained=True)
        assert ("report         " in text.getvalue()) is shown


@pytest.mark.usefixtures("closed_connections")
def test_the_round_of_a_race_is_shown_before_there_is_a_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/storage/autotune.db"
    storage = open_storage(url, create=True)
    study = make_study(round_name("made", 0), storage=storage, trials=3)
    record = RaceRecord({"race": "auto"}, "small", "accuracy", (0, 2))
    study.set_user_attr(attrs.RACE, record.to_json())
    ended = call("status", "made", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("The study 'made' is made when its race has ended; the race is in")
    ended = call("status", "made-2", cwd=tmp_path)
    assert ended.code == 2 and "has no study 'made-2'" in ended.err
