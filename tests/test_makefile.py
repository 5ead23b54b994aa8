"""What make hands on to the command, and that its help tells the truth."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str) -> str:
    """Return what make would do, with an environment that needs no installing."""
    environment = {
        key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LANG")
    }
    result = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/bin/autotune", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return " ".join(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["study"], "run 'digits'"),
        (["study", "DATASET=digits"], "run 'digits'"),
        (["study", "TRIALS=60"], "run 'digits' 'search.trials=60'"),
        (["study", "SAMPLER=gp"], "run 'digits' 'search.sampler=gp'"),
        (["study", "WORKERS=4"], "run 'digits' --workers 4"),
        (["study", "GPUS=0,2"], "run 'digits' --gpus 0,2"),
        (["study", "BACKBONE=resnet18"], "run 'digits' 'backbone=resnet18'"),
        (["study", "BACKBONE=[a.b,c]"], "run 'digits' 'backbone=[a.b,c]'"),
        (["study", "BACKBONE=[a.b, c]"], "run 'digits' 'backbone=[a.b, c]'"),
        (["study", "DATASET=path/to/images"], "run 'folder' 'dataset=path/to/images'"),
        (["study", "STUDY=my.yaml"], "run 'my.yaml'"),
        (["study", "STUDY=my.yaml", "DATASET=x"], "run 'my.yaml' 'dataset=x'"),
        (["study", "NAME=other"], "run 'digits' --name 'other'"),
        (["study", "WEIGHTS=a.pth", "SEED=1"], "run 'digits' 'weights=a.pth' 'search.seed=1'"),
        (["study", "ARGS=training.views=2"], "run 'digits' training.views=2"),
        (["report", "SAMPLER=gp"], "report 'digits' 'search.sampler=gp'"),
        (["best"], "best 'digits'"),
        (["status"], "status 'digits'"),
        (["status", "ARGS=--watch"], "status 'digits' --watch"),
        (["doctor"], "doctor 'digits'"),
        (["doctor", "FIX=1", "NAME=other"], "doctor 'digits' --name 'other' --fix"),
        (["fit"], "fit 'digits'"),
        (["workers", "STUDY=my.yaml"], "worker 'my.yaml'"),
        (["dashboard", "PORT=9000"], "dashboard 'digits' --port 9000"),
        (["validate"], "validate 'digits'"),
        (["layers", "BACKBONE=resnet50.a1_in1k"], "layers 'resnet50.a1_in1k'"),
        (["layers", "ARGS=--plan 3"], "layers --plan 3"),
    ],
)
def test_variables_become_arguments(arguments: list[str], expected: str) -> None:
    assert make(*arguments) == f".venv/bin/autotune {expected}"


def test_the_storage_is_not_on_the_command_line() -> None:
    assert "secret" not in make("study", "STORAGE=postgresql://me:secret@host/db")


def test_help_has_a_line_for_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    result = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listed = {line.split()[0] for line in result.stdout.splitlines()[:-3] if line.strip()}
    assert listed == set(phony.split())
    assert all(len(line.split()) > 2 for line in result.stdout.splitlines() if line.strip())


def test_every_make_target_of_the_readme_exists() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    used = set(re.findall(r"(?:^    |`|&& )make ([a-z-]+)", readme, re.MULTILINE))
    assert used
    assert used <= set(phony.split())


def test_the_constraints_cover_what_setup_asks_for() -> None:
    pinned = {
        re.split(r"==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    setup = (ROOT / "setup.cfg").read_text()
    block = setup.split("[options.extras_require]")
    required = re.findall(
        r"^    ([A-Za-z][\w-]*)(?:\[\w+\])?(?:>=[\d.]+)?$",
        block[0].split("install_requires =")[1] + block[1].split("[tool:pytest]")[0],
        re.MULTILINE,
    )
    assert len(required) > 20
    assert {name.lower().replace("_", "-") for name in required} <= pinned
