"""The verbs and options that people and scripts rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import autotune
from autotune.cli.main import app
from tests.support.commands.inside import call, get_command

WHICH = ("study", "overrides", "--name", "--storage")
WORKERS = ("--workers", "--workers-per-gpu", "--gpus")
#: Taking one of these away, or giving it another name, is a change that users notice.
SURFACE = {
    "run": {
        *WHICH,
        *WORKERS,
        *("--seeds", "--engine", "--gpus-per-worker", "--cpus-per-worker"),
    },
    "worker": {*WHICH, "--files", "--wait"},
    "status": {*WHICH, "--watch", "--every"},
    "stop": {*WHICH, "--wait"},
    "enqueue": {
        *("study", "values", "--trial", "--from", "--plan", "--set", "--name", "--storage"),
    },
    "doctor": {*WHICH, "--files", "--fix"},
    "best": {*WHICH},
    "compare": {"study", "--storage", "--output", "-o", "--json"},
    "report": {*WHICH, "--output", "-o", "--format"},
    "dashboard": {*WHICH, "--port", "--public", "--host"},
    "confirm": {*WHICH, *WORKERS, "--top", "--seeds", "--splits", "--json"},
    "reproduce": {*WHICH, "trial", "--predictions"},
    "refit": {*WHICH, *WORKERS, "--trial", "--combine", "--members", "--output", "-o", "--json"},
    "predict": {
        *("model", "images", "--output", "-o", "--top", "--all", "--batch-size", "--heatmaps"),
        *("--set", "--name", "--storage"),
    },
    "export": {"model", "--format", "--output", "-o", "--images", "--set", "--name", "--storage"},
    "layers": {
        *("backbone", "--image-size", "--last", "--why", "--json"),
        *("--plan", "--study", "--name", "--storage"),
    },
    "ls": {"--storage", "--json"},
    "rename": {*WHICH, "new", "--files"},
    "rm": {"study", "--name", "--storage", "--files", "--all", "--yes"},
    "du": {"--storage", "--json"},
    "gc": {"--storage", "--models", "--deleted", "--yes"},
    "cp": {"preset", "target"},
    "validate": {*WHICH},
    "data info": {"dataset", "overrides", "--output", "-o", "--test", "--json"},
    "data fetch": {"name"},
    "data verify": {"name"},
    "data path": {"name"},
    "weights fetch": {"backbones"},
    "storage copy": {"--from", "--to", "--study", "--files"},
    "storage backup": {"--output", "-o", "--storage"},  # the old names
    "storage restore": {"file", "--storage", "--files"},
    "storage upgrade": {"--storage"},
    "storage check": {"--storage"},
    "storage postgres": {"action", "--folder"},
    "storage local": {"--folder", "--stop"},  # the old name
}


def test_the_surface_is_frozen() -> None:
    found: dict[str, set[str]] = {}
    for verb, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        named = {f"{verb} {name}": part for name, part in parts.items()} if parts else {}
        for name, one in (named or {verb: command}).items():
            found[name] = {option for param in one.params for option in param.opts}
    assert found == SURFACE
    assert list(found) == list(SURFACE)


@pytest.mark.parametrize("verb", SURFACE)
def test_every_verb_explains_itself(verb: str, tmp_path: Path) -> None:
    for flag in ("--help", "-h"):
        ended = call(*verb.split(), flag, cwd=tmp_path)
        assert ended.code == 0
        assert f"Usage: autotune {verb} " in ended.out
    assert all(option in ended.out for option in SURFACE[verb] if option.startswith("-"))


def test_no_verb_gives_the_help(tmp_path: Path) -> None:
    shown = call("--help", cwd=tmp_path)
    assert shown.code == 0
    assert all(f" {verb.split()[0]} " in shown.out for verb in SURFACE)
    assert call(cwd=tmp_path).out.strip() == shown.out.strip()


def test_version(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path).out == f"autotune {autotune.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("statsu",), "No such command 'statsu'. Did you mean 'status'?"),
        (("run", "--trials", "3"), "No such option: --trials"),
        (
            ("dashboard", "--port", "0"),
            "Invalid value for '--port': Input should be greater than or equal to 1",
        ),
        (("cp", "digits"), "Missing argument 'target'"),
    ],
)
def test_what_is_no_command(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ended = call(*arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert list(tmp_path.iterdir()) == []


def test_looking_at_a_study_imports_no_torch() -> None:
    """``status``, ``doctor`` and ``best`` answer in a second, ``run`` takes several to begin."""
    program = (
        "import sys, autotune.display.watch, autotune.display.summary\n"
        "import autotune.results.study_results\n"
        "import autotune.study.doctor.checks\n"
        "import autotune.study.setup.opening\n"
        "assert not {'torch', 'timm', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_shell_completes_verbs(tmp_path: Path) -> None:
    words = {
        "_AUTOTUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": "autotune sta",
        "COMP_CWORD": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "autotune"],
        env={**os.environ, **words},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["status"]
