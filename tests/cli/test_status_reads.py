"""What ``autotune status`` reads of a large study."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import event

from autotune.cli.summary import print_summary, print_workers
from autotune.storage import trials
from autotune.storage.database import open_storage
from autotune.study.opening import open_existing
from tests.support.studies import make_study


@pytest.mark.usefixtures("closed_connections")
def test_a_status_takes_the_same_number_of_statements_for_any_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "CHUNK", 8)  # a study of more trials than that is a large one
    statements = []
    for count in (12, 60):
        url = f"sqlite:///{tmp_path}/{count}.db"
        make_study(storage=open_storage(url, create=True), trials=count, running=2, waiting=1)
        opened = open_existing("digits", url)
        seen: list[str] = []

        def note(*arguments: object, seen: list[str] = seen) -> None:
            seen.append(str(arguments[2]))

        event.listen(opened.storage.engine, "before_cursor_execute", note)
        shown = Console(file=StringIO(), width=120)
        print_workers(shown, opened)
        print_summary(shown, opened, trained=True)
        statements.append([one for one in seen if not one.startswith("BEGIN")])
    assert statements[0] == statements[1]
