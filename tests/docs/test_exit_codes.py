"""The tables of exit codes in docs/troubleshooting.md, held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import autotune
from autotune import errors
from tests.cli.test_surface import SURFACE

PACKAGE = Path(autotune.__file__).parent
PAGE = PACKAGE.parent / "docs/troubleshooting.md"


def rows(title: str) -> list[list[str]]:
    """The rows of the table of the section whose head begins with a title."""
    section = PAGE.read_text().split("## Exit codes", 1)[1]
    table = section[section.index(f"| {title} |") :].split("\n\n", 1)[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_every_code_that_the_command_ends_with_is_in_the_table() -> None:
    told = {int(code) for code, _ in rows("code")}
    classes = [member for member in vars(errors).values() if isinstance(member, type)]
    used = {one.exit_code for one in classes if issubclass(one, errors.AutotuneError)}
    for path in sorted((PACKAGE / "cli").rglob("*.py")):
        used |= {int(one) for one in re.findall(r"(?:Exit|exit)\((\d+)\)", path.read_text())}
    assert told == used | {0}


def test_every_verb_that_ends_with_1_by_itself_says_when() -> None:
    told = {verb: row[1:] for row in rows("verb") for verb in re.findall("`(.+?)`", row[0])}
    assert set(told) <= set(SURFACE)
    for path in sorted((PACKAGE / "cli").rglob("*.py")):
        if "Exit(1)" in path.read_text():
            verbs = [verb for verb in told if verb.split()[0] == path.stem]
            assert [verb for verb in verbs if told[verb][0]], path.stem
