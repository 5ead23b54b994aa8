"""The commands that stand in the documentation, found as a reader would find them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
#: What a command may begin with.
PROGRAMS = (
    "autotune",
    "cd",
    "docker",
    "export",
    "git",
    "install",
    "kubectl",
    "make",
    "pip",
    "python",
    "sbatch",
)
#: What setup.cfg offers to install: pip install 'autotune[onnx]'.
_SETUP = (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1]
EXTRAS = tuple(re.findall(r"^([a-z][a-z-]*) =$", _SETUP.split("\n[")[0], re.MULTILINE))
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=\S*")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INNER = re.compile(r"\$\(([^()]*)\)")
#: A command at the end of a comment: ``# or: make study``, ``# says so; make doctor FIX=1``.
_TOLD = re.compile(r"(?:^|[;:] )((?:make|pip|autotune) .*)$")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Args:
        page: The page, relative to the repository.
        line: Where it begins.
        text: The command without what stands around it.
        inline: Whether it stands in a sentence, where it may be the mention of a verb alone.
    """

    page: str
    line: int
    text: str
    inline: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Step:
    """One program that a command calls.

    Args:
        environment: What is set for it alone.
        words: The program and its arguments.
    """

    environment: dict[str, str]
    words: tuple[str, ...]


def pages() -> tuple[Path, ...]:
    docs = sorted((ROOT / "docs").rglob("*.md"))
    names = ("README.md", "CONTRIBUTING.md", "studies/README.md", "storage/README.md")
    others = (ROOT / name for name in names)
    return (*others, *docs)


def commands(page: Path) -> Iterator[Command]:
    text = page.read_text()
    name = str(page.relative_to(ROOT))
    prose = list(text)
    found = []
    for fence in _FENCE.finditer(text):
        _blank(prose, *fence.span())
        if fence[1] in ("", "sh", "shell", "bash", "console"):
            found += list(_lines(name, fence[2], _line_of(text, fence.start(2))))
    for block in re.finditer(r"(?:^(?: {4}|\t).*\n?)+", "".join(prose), re.MULTILINE):
        before = "".join(prose)[: block.start()].splitlines()
        if before and before[-1].strip():  # goes on with a list, not its own block
            continue
        found += list(_lines(name, block[0], _line_of(text, block.start())))
        _blank(prose, *block.span())
    for span in _INLINE.finditer("".join(prose)):
        words = " ".join(span[1].split())
        if " " in words and is_command(words):
            found.append(Command(name, _line_of(text, span.start()), words, inline=True))
    yield from sorted(found, key=lambda one: one.line)


def _blank(text: list[str], start: int, end: int) -> None:
    text[start:end] = ["\n" if one == "\n" else " " for one in text[start:end]]


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _lines(page: str, block: str, first: int) -> Iterator[Command]:
    lines = block.splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number].strip()
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1].rstrip()} {lines[number].strip()}"
        number += 1
        line, comment = without_comment(line.removeprefix("$ "))
        told = _TOLD.search(comment)
        for each in (line, told[1].strip() if told else ""):
            if is_command(each):
                yield Command(page, first + start, each, inline=False)


def without_comment(line: str) -> tuple[str, str]:
    """Cut a line in command and comment, at a # that begins a word and is not quoted."""
    quote = ""
    for position, one in enumerate(line):
        if quote:
            quote = "" if one == quote else quote
        elif one in "'\"":
            quote = one
        elif one == "#" and (position == 0 or line[position - 1].isspace()):
            return line[:position].rstrip(), line[position + 1 :].strip()
    return line.rstrip(), ""


def is_command(line: str) -> bool:
    words = line.split()
    while words and _ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    return bool(words) and (words[0] in PROGRAMS or words[0].startswith(".venv/bin/"))


def steps(text: str) -> list[Step]:
    """Take a command apart: what ``&&`` and ``;`` join, what is set for it, its words.

    What ``$(...)`` runs is its own step, before the one that takes its output.
    """
    inner = [step for found in _INNER.findall(text) for step in steps(found)]
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&;<>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    joined: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word and set(word) <= set("&;"):
            joined.append([])
        elif word and set(word) <= set("<>"):
            redirected = True
        elif redirected:
            redirected = False
        else:
            joined[-1].append(word)
    return [*inner, *(_step(words) for words in joined if words)]


def _step(words: list[str]) -> Step:
    environment = {}
    while words and _ASSIGNMENT.fullmatch(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return Step(environment, tuple(words))
