"""Every command of the documentation is one that there is: program, verb, options, values.

tests/docs/test_commands_run.py runs them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.main import app
from autotune.config.loading import load_study_file, presets
from tests.support.commands.inside import get_command
from tests.support.pages.doc_commands import EXTRAS, ROOT, Step, commands, pages, steps

#: Programs that are not ours and take nothing of ours.
OTHERS = {
    "cd": "part of the shell",
    "mypy": "of the environment, called by make check",
    "ruff": "of the environment, called by make check",
    "sha256sum": "of the system",
    "git": "clones the repository that is here",
    "install": "of the system: writes a file for its owner alone",
    "docker": "of the system; what it runs is started by tests/repository/test_container.py",
}
#: Studies of the examples, made by ``make study DATASET=...`` of what is there called.
EXAMPLES = ("photos", "photos.yaml", "my.yaml", "photos-tpe", "flowers", "digits-seed0")
EXAMPLES += ("digits-seed1", "digits-seed2", *(f"transfer-dtd-seed{seed}" for seed in range(3)))
#: What a command in a sentence has instead of a value.
PLACEHOLDERS = {"N": "1", "DATASET=...": "DATASET=photos", "...": "digits-seed2"}
#: Variables of the environment that are not in the sources of autotune.
FOREIGN = {"PIP_NO_INDEX", "PIP_FIND_LINKS", "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS"}
FOREIGN |= {"HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME"}
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
VARIABLES = set(re.findall(r"^([A-Z_]+) +\?=", MAKEFILE, re.MULTILINE))
ALL = [one for page in pages() for one in commands(page)]


class Wrong(Exception):
    """What is wrong with a command of the documentation."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for command in commands(page):
        for step in steps(command.text):
            try:
                check(filled_in(step) if command.inline else step)
            except Wrong as error:
                # A sentence may name a verb without what it needs.
                if not (command.inline and str(error).startswith("Missing ")):
                    found.append(f"{command}: {error}")
            if step.words[0] == "export":
                monkeypatch.setenv(*step.words[1].split("=", 1))
    assert not found, "\n".join(found)


def test_the_commands_are_found() -> None:
    assert len(ALL) > 150
    assert {one.page for one in ALL} >= {"README.md", "studies/README.md", "docs/cluster.md"}
    texts = {one.text for one in ALL}
    assert "make study DATASET=photos GPUS=0,2 WORKERS=4" in texts
    assert "make doctor DATASET=photos FIX=1" in texts  # at the end of a comment
    assert "pip install 'autotune[public]'" in texts
    assert not any("#" in one.text for one in ALL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("make studdy", "no target 'studdy'"),
        ("make study DATSET=photos", "no variable 'DATSET'"),
        ("make study STUDY=their.yaml", "no study 'their.yaml'"),
        ("make study ARGS=training.epoch=3", "did you mean 'epochs'"),
        ("make study TRIALS=none", "search.trials"),
        ("autotune rnu digits", "No such command 'rnu'"),
        ("autotune run --trials 3", "No such option: --trials"),
        ("autotune run digits --workers two", "--workers"),
        ("autotune run digits search.sampler=gpp", "'gp'"),
        ("autotune cp digit my.yaml", "no study 'digit'"),
        ("autotune validate", "Missing argument"),
        ("AUTOTUNE_STROAGE=x autotune ls", "no variable AUTOTUNE_STROAGE"),
        ("pip install 'autotune[rays]'", "no extra 'rays'"),
        ("pip install autotune-ray", "'autotune-ray'"),
        ("pip install torch --index-url https://x/cpu", "'torch'"),
        ("python benchmarks/nothing.py", "no script"),
        ("python benchmarks/coverage.py --nothing", "no option --nothing"),
        ('python -c "import"', "invalid syntax"),
        ("sbatch docs/cluster/slrum.sh a b", "no script"),
        (".venv/bin/nothing", "no program"),
        ('cd "$(autotune data pth dogs)"', "No such command 'pth'"),
    ],
)
def test_what_is_wrong_is_noticed(text: str, said: str) -> None:
    with pytest.raises(Wrong) as caught:
        for step in steps(text):
            check(step)
    assert said in str(caught.value)


def filled_in(step: Step) -> Step:
    """Put values where something stands for them."""
    return Step(step.environment, tuple(PLACEHOLDERS.get(word, word) for word in step.words))


def check(step: Step) -> None:
    """Check one call of a program.

    Raises:
        Wrong: When there is something that does not exist.
    """
    for name in step.environment:
        if name not in FOREIGN and not known_variable(name):
            raise Wrong(f"there is no variable {name}")
    program, *arguments = step.words
    program = program.removeprefix(".venv/bin/")
    checks: dict[str, Any] = {
        "make": check_make,
        "autotune": check_autotune,
        "python": check_python,
        "pip": check_pip,
        "export": lambda arguments: check(Step(dict([arguments[0].split("=", 1)]), ("cd",))),
        "sbatch": lambda arguments: check_script(arguments[0]),
    }
    if program in checks:
        checks[program](arguments)
    elif program not in OTHERS:
        raise Wrong(f"there is no program {program!r} that this test knows")


@functools.cache
def known_variable(name: str) -> bool:
    """Tell whether the sources or the Makefile read a variable of the environment."""
    if name in VARIABLES:
        return True
    found = subprocess.run(
        ["grep", "-rlw", name, "autotune", "Makefile", "storage/compose.yaml", "docs/cluster"],
        cwd=ROOT,
        capture_output=True,
    )
    return found.returncode == 0


def check_make(arguments: Sequence[str]) -> None:
    """Check a call of make, and the command that it would run."""
    for one in arguments:
        name, given, _ = one.partition("=")
        if given and name not in VARIABLES:
            raise Wrong(f"the Makefile has no variable {name!r}")
        if not given and one not in TARGETS:
            raise Wrong(f"the Makefile has no target {one!r}")
    for line in made_of(tuple(arguments)).splitlines():
        if line.startswith(".venv/bin/"):
            for step in steps(line):
                check(step)


@functools.cache
def made_of(arguments: tuple[str, ...]) -> str:
    """Return what make would run, with everything installed."""
    there = [".venv/bin/autotune", *(f".venv/{one}" for one in EXTRAS)]
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", *(f"-o{one}" for one in there), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
    )
    if told.returncode:
        raise Wrong(told.stderr.strip())
    return told.stdout


def check_autotune(arguments: Sequence[str]) -> None:
    """Have the command parse its arguments, and look up what they name."""
    if arguments == ["--install-completion"]:
        return  # would write into the home
    command: Any = get_command(app)
    context: Any = None
    name = "autotune"
    rest = list(arguments)
    with contextlib.ExitStack() as stack:
        try:
            while True:
                context = stack.enter_context(
                    command.make_context(name, rest, parent=context).scope(cleanup=False)
                )
                if not hasattr(command, "resolve_command"):
                    break
                rest = [*context._protected_args, *context.args]
                name, command, rest = command.resolve_command(context, rest)
        except Exception as error:  # of typer's own click, which has no public name
            if not hasattr(error, "format_message"):
                raise
            raise Wrong(error.format_message()) from error
        given = context.params
    studies = given.get("study") or given.get("preset") or ()
    for study in [studies] if isinstance(studies, str) else studies:
        check_study(study, given.get("overrides") or [])


def check_study(study: str, overrides: Sequence[str]) -> None:
    """Look a study up, and check what the command line replaces of its file."""
    if study not in presets() and study not in EXAMPLES:
        raise Wrong(f"there is no study {study!r}; known are the presets, {', '.join(EXAMPLES)}")
    try:
        load_study_file(study if study in presets() else "folder", list(overrides))
    except Exception as error:
        raise Wrong(str(error)) from error


def check_script(path: str) -> ast.Module | None:
    """Check that a script is there, and one of Python parses."""
    if not (ROOT / path).is_file():
        raise Wrong(f"there is no script {path}")
    return ast.parse((ROOT / path).read_text()) if path.endswith(".py") else None


def check_python(arguments: Sequence[str]) -> None:
    """Check a script with its options, a module or a line of Python."""
    first, *rest = arguments
    if first == "-c":
        try:
            ast.parse(rest[0])
        except SyntaxError as error:
            raise Wrong(str(error)) from error
    elif first == "-m":
        if rest[0] not in ("pytest", "pip", "venv", "zipfile"):
            raise Wrong(f"there is no module {rest[0]!r} that this test knows")
    else:
        script = check_script(first)
        assert script is not None
        strings = {
            node.value
            for node in ast.walk(script)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        for one in rest:
            if one.startswith("--") and one.partition("=")[0] not in strings:
                raise Wrong(f"{first} has no option {one}")


def check_pip(arguments: Sequence[str]) -> None:
    """Check the extra that is installed, and that torch never comes without torchvision."""
    extras = re.findall(r"^([a-z-]+) =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    named = [one for one in arguments[1:] if not one.startswith("https://")]
    options = {"--dest": 2, "--constraint": 2, "--index-url": 1}
    while given := next((one for one in named if one in options), None):
        del named[named.index(given) : named.index(given) + options[given]]
    if {"torch", "torchvision"} <= set(named):
        named = [one for one in named if one not in ("torch", "torchvision")]
    for one in named:
        found = re.fullmatch(
            r"autotune(?:\[([\w-]+)\])?(?: @ git\+.+)?|\.(?:\[([\w-]+)\])?|(?:dist/.+\.whl)"
            r"|git\+file:.+|setuptools|pip|onnxruntime|openvino|litert-torch|coremltools",
            one,
        )
        if found is None:
            raise Wrong(f"what is installed must be autotune, but got {one!r}")
        extra = found[1] or found[2]
        if extra and extra not in extras:
            raise Wrong(f"setup.cfg has no extra {extra!r}")
