"""Hostile texts at the borders: the terminal, CSV and HTML."""

from __future__ import annotations

import csv
import io
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autotune.display.console import VisibleConsole, fail, lines_of_text
from autotune.errors import UserError
from autotune.results.report.formats import render
from autotune.results.study_results import StudyResults
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from autotune.text import (
    VisibleFormatter,
    as_cell,
    error_line,
    first_line,
    format_bytes,
    format_clock,
    format_duration,
    guard_standard_error,
    join_some,
    one_line,
    plural,
    visible,
)
from tests.support.commands.inside import call
from tests.support.study.studies import make_study

HOSTILE = {
    "clears the screen": "\x1b[2J",
    "is a link": "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "goes back in its line": "good\rbad",
    "is a C1 sequence": "\x9b2J",
    "turns the text around": "\u202egnp.exe",
    "isolates": "\u2066a\u2069",
    "is deleted": "a\x7f\x08b",
    "is no UTF-8": "a\udcffb",
    "separates lines": "a\u2028b\x85c",
    "ends in nothing": "a\x00b",
}
#: What may not get out, of all of these.
ACTING = set("\x1b\r\x9b\x07\x08\x7f\x00\x85\u202e\u2066\u2069\u2028\udcff")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_written_out(text: str) -> None:
    assert not ACTING & set(visible(text))
    assert visible("plain, \u00fcml\u00e4ut, \u4e2d, \U0001f600\n\ttab") == (
        "plain, \u00fcml\u00e4ut, \u4e2d, \U0001f600\n\ttab"
    )
    assert one_line("a\nb\tc") == "a\\nb\\tc"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_shows_and_obeys_nothing(text: str, terminal: bool) -> None:
    stream = io.TextIOWrapper(buffer := io.BytesIO(), "utf-8")
    console = VisibleConsole(
        file=stream, force_terminal=terminal, width=60, no_color=True, highlight=False
    )
    table = Table(f"head {text}", title=f"title {text}")
    table.add_row(text)
    for printed in (text, Text(text), table, f"[bold]{text}[/]", "[/wrong]"):
        console.print(printed)
    with console.status(Text(text)):
        pass
    stream.flush()
    output = buffer.getvalue().decode()
    if terminal:  # what rich sends itself: styles, moving the cursor, hiding it
        output = re.sub(r"\x1b\[[0-9;?]*[mKAhl]|\r", "", output)
    assert not ACTING & set(output)
    assert "[bold]" in output and "[/wrong]" in output


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_break_in_a_name_makes_no_line(terminal: bool) -> None:
    """What follows it would look like a message of autotune."""
    stream = io.StringIO()
    console = VisibleConsole(file=stream, force_terminal=terminal, width=90, no_color=True)
    name = "cat\nerror: all is lost"
    table = Table(name, title=name)
    table.add_row(name)
    table.add_row(Text(name, style="bold"))
    styled = Text.assemble(("class", "bold"), f" {name}", style="red")
    for printed in (name, Text(name), table, styled, Group(Text(name), Padding(Text(name), 1))):
        console.print(printed)
    with console.status(name) as status:
        status.update(f"[/x] {name}")
    lines = re.sub(r"\x1b\[[0-9;?]*[mKAhl]|\r", "", stream.getvalue()).splitlines()
    assert not [line for line in lines if line.strip().startswith("error:")], lines
    assert sum("cat\\nerror: all is lost" in line for line in lines) >= 8
    console.print(lines_of_text("a\n  b"))
    assert re.sub(r"\x1b\[[0-9;?]*m", "", stream.getvalue()).endswith("a\n  b\n")


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(UserError("no \x1b[2J [bold]class[/] 'a\udcff' [/x]")) == 2
    assert capsys.readouterr().err == "error: no \\x1b[2J [bold]class[/] 'a\\udcff' [/x]\n"
    fail(UserError("no folder /a\nerror: forged\n  a line of ours"))
    output = capsys.readouterr().err
    assert output == "error: no folder /a\n  error: forged\n  a line of ours\n"


def test_log_records_are_visible_and_indented() -> None:
    record = logging.LogRecord(
        "lib", logging.WARNING, "", 0, "no \x1b[2J %s\nb", ("\u202e",), None
    )
    assert VisibleFormatter("%(message)s").format(record) == "no \\x1b[2J \\u202e\n  b"


def test_what_python_writes_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records without a handler, warnings and tracebacks have names in them too."""
    text = "no \x1b[2J \u202e"
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    lone = logging.getLogger("lone")
    monkeypatch.setattr(lone, "propagate", False)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        guard_standard_error()
        warnings.warn(text, stacklevel=1)
        lone.warning(text)
        try:
            raise ValueError(text)
        except ValueError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    output = capsys.readouterr().err
    assert not ACTING & set(output) and output.count("no \\x1b[2J \\u202e") >= 3
    assert "ValueError" in output and "UserWarning" in output


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\x0d=1"),
        ("\n=1", "'\\n=1"),
        ("  =1", "'  =1"),
        ("\uff1d1", "'\uff1d1"),
        ("-0.5", "-0.5"),
        ("+3", "+3"),
        ("-1e-5", "-1e-5"),
        ("-inf", "-inf"),
        ("a=b", "a=b"),
        ("cat;=1+1", "cat;'=1+1"),
        ("cat; @SUM(A1);b", "cat; '@SUM(A1);b"),
        ("=1;=2", "'=1;'=2"),
        ("a; b", "a; b"),
        ("", ""),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_cells(cell: object, expected: object) -> None:
    assert as_cell(cell) == expected


@pytest.mark.parametrize("form", ["html", "md", "csv", "json"])
def test_reports_of_a_hostile_study(form: str) -> None:
    study = make_study("made", trials=6)
    text = "=1" + "".join(HOSTILE[name] for name in HOSTILE if name != "is no UTF-8")
    study.set_user_attr(
        attrs.DATASET,
        {
            **study.user_attrs[attrs.DATASET],
            "name": text,
            "classes": [text, "=b"],
            "skipped": [[text, text]],
        },
    )
    study.set_user_attr(attrs.ENVIRONMENT, {"python": text})
    trial = study.ask()
    trial.set_user_attr(attrs.REASON, text)
    trial.set_user_attr(attrs.WORKER, f"{text}/1/0")
    study.tell(trial, state=TrialState.FAIL)
    output = render(StudyResults.from_study(study), form).decode()
    if form == "html":  # plotly's own script has characters of all kinds
        start = output.index("<script>")
        output = output[:start]
    assert not ACTING & set(output), sorted(map(ascii, ACTING & set(output)))
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(output)))
        assert rows[-1]["reason"].startswith("'=1") and float(rows[0]["value"]) > 0


def test_a_hostile_name_of_a_study(tmp_path: Path, closed_connections: None) -> None:
    url = f"sqlite:///{tmp_path / 'storage/autotune.db'}"
    make_study("a[/b]\x1b[2J\u202e", trials=3, storage=open_storage(url, create=True))
    result = call("status", "nothing", cwd=tmp_path)  # names the studies that are there
    assert result.code == 2 and not ACTING & set(result.err)
    assert "it has a[/b]\\x1b[2J\\u202e" in result.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (join_some([]), ""),
        (join_some("abc", 3), "a, b, c"),
        (join_some(range(2000), 1), "0 and 1,999 more"),
        (plural(1, "image"), "1 image"),
        (plural(0, "class", "classes"), "0 classes"),
        (format_bytes(1), "1 byte"),
        (format_bytes(1500), "1.5 kB"),
        (format_bytes(999_999), "1.0 MB"),
        (format_bytes(2.34e7), "23 MB"),
        (format_bytes(5e12), "5,000 GB"),
        (format_duration(0.25), "0.25 s"),
        (format_duration(61), "1 min 1 s"),
        (format_duration(4980), "1 h 23 min"),
        (format_duration(90_000), "1 d 1 h"),
        (format_clock(None), "?"),
        (format_clock(61.9), "1:01"),
        (format_clock(3600), "1:00:00"),
        (first_line(ValueError("\nbad\nworse")), "bad"),
        (first_line(ValueError()), "no details"),
        (error_line(ValueError("bad\n  value")), "ValueError: bad value"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert text == expected
