"""Commands that are printed work when they are pasted into a shell, whatever a study is called."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from autotune.storage.paths import StudyPaths
from autotune.study.state import attrs
from autotune.text import shell_quote
from tests.support.commands.inside import Ended, call
from tests.support.study.studies import make_study

ROOT = Path(__file__).parents[3]
NAMES = (
    *("made", "a  b", "it's", 'say "x"', "cost$HOME `id` $(id)", "-dash", "--help", "größe"),
    *("a/b", "../x", "x.yaml", "a=b", "; false", "*", "~", "a\tb\\n", "\x1b[31mred", "100%"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a project")
    make_study("made", trials=4, storage=f"sqlite:///{folder}/a.db", running=0).set_user_attr(
        attrs.FILES, None
    )
    return folder


def renamed(original: Path, folder: Path, name: str, database: str) -> None:
    """Copy the project, and rename its study as the dashboard does."""
    (folder / database).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(original / "a.db", folder / database)
    with closing(sqlite3.connect(folder / database)) as connection:
        connection.execute("UPDATE studies SET study_name = ?", (name,))
        connection.commit()


def words(command: str, program: str = "autotune") -> list[str]:
    """Return the words that a shell passes to the program of a command."""
    shell = f"{program}() {{ printf '%s\\0' \"$@\"; }}; {command}"
    run = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    return run.stdout.split("\0")[:-1]


def printed(ended: Ended, title: str) -> str:
    (command,) = re.findall(rf"^{title} +(.*)$", ended.out, re.MULTILINE)
    return str(command)


@pytest.mark.parametrize(
    ("name", "database"),
    [*((name, "storage/autotune.db") for name in NAMES), ("it's", "my own/it's.db")],
)
def test_the_next_commands_find_the_study(
    name: str, database: str, original: Path, tmp_path: Path
) -> None:
    renamed(original, tmp_path, name, database)
    storage = [] if "autotune" in database else ["--storage", f"sqlite:///{database}"]
    ended = call("status", *storage, "--", name, cwd=tmp_path)
    assert ended.code == 0, ended.err
    command = printed(ended, "winning plan")
    assert ("--storage" in command) == bool(storage)
    best = call(*words(command), cwd=tmp_path)
    assert best.code == 0, best.err
    report = call("report", "--format", "md", *storage, "--", name, cwd=tmp_path)
    assert report.code == 0, report.err
    (written,) = tmp_path.rglob("*.md")
    files = StudyPaths.from_url(f"sqlite:///{tmp_path / database}")
    files.logs(name).mkdir(parents=True)
    assert written.parent == files.root / "reports" and files.studies() == {name}
    command = re.findall("^autotune best .*$", written.read_text(), re.MULTILINE)[0]
    assert call(*words(command), cwd=tmp_path).out == best.out


def test_a_storage_that_the_environment_names_is_not_repeated(
    original: Path, tmp_path: Path
) -> None:
    renamed(original, tmp_path, "made", "other.db")
    named = {"AUTOTUNE_STORAGE": f"sqlite:///{tmp_path}/other.db"}
    ended = call("status", "made", cwd=tmp_path, **named)
    assert printed(ended, "dashboard") == "autotune dashboard made"
    ended = call("report", "made", "--format", "md", "-o", "-", cwd=tmp_path, **named)
    assert "--storage" not in ended.out
    assert "# AUTOTUNE_STORAGE names the storage of the study" in ended.out
    # The default one has to be named where the environment names another one.
    renamed(original, tmp_path, "made", "storage/autotune.db")
    default = "sqlite:///storage/autotune.db"
    ended = call("status", "made", "--storage", default, cwd=tmp_path, **named)
    assert printed(ended, "dashboard") == f"autotune dashboard made --storage {default}"


@pytest.mark.parametrize(
    ("name", "given"), [*((name, "STORAGE") for name in NAMES), ("it's", "1")]
)
def test_where_make_was_used_the_commands_are_its(
    name: str, given: str, original: Path, tmp_path: Path
) -> None:
    renamed(original, tmp_path, name, "other.db")
    url = f"sqlite:///{tmp_path}/other.db"
    extra = {"AUTOTUNE_STORAGE": url, "AUTOTUNE_MAKE": given}
    ended = call("status", "--", name, cwd=tmp_path, **extra)
    command = printed(ended, "winning plan")
    if name.startswith("-") or not name.isprintable():
        assert command.startswith("autotune best ")
        return
    variables = words(command, "make")
    assert ("STORAGE=" in command) == (given == "STORAGE")
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/bin/autotune", *variables],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    again = recipe.stdout.replace(".venv/bin/autotune", "autotune", 1)
    assert call(*words(again), cwd=tmp_path, AUTOTUNE_STORAGE=url).code == 0


def test_the_makefile_says_that_make_was_used(tmp_path: Path) -> None:
    program = tmp_path / "bin/autotune"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$AUTOTUNE_MAKE"\n')
    program.chmod(0o755)
    call_make = ["make", "--no-print-directory", f"VENV={tmp_path}", "-o", str(program), "status"]
    for storage, expected in ((("STORAGE=sqlite:///a.db",), "STORAGE\n"), ((), "1\n")):
        run = subprocess.run(
            [*call_make, *storage], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert run.stdout == expected


@pytest.mark.parametrize("text", [*NAMES, "\udcff", "\u202eright to left", "%b\\0101"])
def test_a_shell_reads_what_was_quoted(text: str) -> None:
    command = ["sh", "-c", f"printf '%s' {shell_quote(text)}"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == os.fsencode(text)


def test_a_renamed_study_can_be_continued(original: Path, tmp_path: Path) -> None:
    """Its name is not one that a new study may have."""
    from autotune.study.setup.opening import open_existing

    renamed(original, tmp_path, "my study", "a.db")
    handle = open_existing("my study", f"sqlite:///{tmp_path}/a.db")
    assert handle.config().name == "my study"
    options = ("validate", "digits", "--name", "my study", "--storage")
    ended = call(*options, "sqlite:///a.db", cwd=tmp_path)
    assert ended.code == 0 and "study 'my study'" in ended.out
    ended = call(*options, "sqlite:///b.db", cwd=tmp_path)
    assert ended.code == 2 and "a study's name has up to" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["server", "my server's"])
def test_the_command_that_is_printed_stops_the_server(folder: str, tmp_path: Path) -> None:
    started = call("storage", "postgres", "start", "--folder", folder, cwd=tmp_path)
    assert started.code == 0, started.err
    *_, command, _ = started.out.splitlines()
    stopped = call(*words(command), cwd=tmp_path)
    assert stopped.out == f"the Postgres server in {folder} is stopped\n"
