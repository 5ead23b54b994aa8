"""The container image and the systemd unit of docs/install.

The image is built and run where a builder and its base are at hand; everywhere else the file is
checked against the checkout.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from autotune.cli.main import app
from tests.support.commands.inside import get_command

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/install"
TEXT = re.sub(r"\\\n\s*", "", (FOLDER / "Containerfile").read_text())
STEPS = re.findall(r"^([A-Z]+) (.+)$", TEXT, re.MULTILINE)
BUILDERS = ("docker", "podman", "buildah")


def test_the_image_has_what_it_copies() -> None:
    """What is copied is there and not ignored, and nothing of a user is."""
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = [name for step, text in STEPS if step == "COPY" for name in text.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists()
        assert name == "." or name in kept, f"{name} is ignored by .dockerignore"
    assert all((ROOT / name).exists() for name in kept)
    for name in (".venv", "storage", ".git", "tests", "photos"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in kept)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_image_starts_the_command_and_not_as_root() -> None:
    steps = dict(STEPS)
    assert steps["ENTRYPOINT"] == '["autotune"]'
    assert STEPS.index(("USER", "1000:1000")) < STEPS.index(("ENTRYPOINT", '["autotune"]'))
    assert steps["VOLUME"] == '["/work", "/data"]' and steps["WORKDIR"] == "/work"
    extras = re.findall(r"^([a-z-]+) =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    (default,) = re.findall(r"^EXTRAS=(.+)$", "\n".join(text for _, text in STEPS), re.MULTILINE)
    assert set(default.split(",")) <= set(extras)


@pytest.mark.parametrize("works", BUILDERS)
def test_the_first_builder_that_works_is_used(works: str, tmp_path: Path) -> None:
    """A docker without an engine is passed over."""
    for name in BUILDERS:
        program = tmp_path / name
        fails = "exit 1" if name != works else "exit 0"
        program.write_text(f'#!/bin/sh\n[ "$1" = info ] && {fails}\necho {name} "$@"\n')
        program.chmod(0o755)
    command = ["make", "--no-print-directory", "image", "TORCH=cpu", "TAG=my/autotune:cpu"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [
        *(works, "build", "--file", "docs/install/Containerfile"),
        *("--build-arg", "TORCH=cpu", "--tag", "my/autotune:cpu", "."),
    ]


def run(*command: str, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs(tmp_path: Path) -> None:
    """Set TEST_BASE_IMAGE to an image that is there where the registry is not reached."""
    works = [one for one in BUILDERS if shutil.which(one) and not run(one, "info").returncode]
    if not works:
        pytest.skip("neither docker, podman nor buildah works here")
    builder, (default,) = works[0], re.findall(r"^ARG BASE=(.+)$", TEXT, re.MULTILINE)
    base = os.environ.get("TEST_BASE_IMAGE") or default
    if run(builder, "pull", base, timeout=600).returncode:
        pytest.skip(f"the base image {base} cannot be had")
    arguments = f"--build-arg BASE={base} --build-arg EXTRAS=heic"
    made = run("make", "image", "TAG=autotune-test", f"ARGS={arguments}", timeout=3000)
    assert made.returncode == 0, made.stderr[-2000:]
    tmp_path.chmod(0o777)
    start = ["run", "--rm", "--volume", f"{tmp_path}:/work", "autotune-test", "autotune"]
    if builder == "buildah":
        container = run("buildah", "from", "autotune-test").stdout.strip()
        start = ["run", "--user", "1000:1000", "--volume", f"{tmp_path}:/work", container]
        start += ["--", "autotune"]
    else:
        start.pop()  # it is the entry point
    study = ("run", "digits", "search.trials=2", "training.epochs=1")
    done = run(builder, *start, *study, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "storage/autotune.db").stat().st_uid == 1000


@pytest.fixture(scope="module")
def unit() -> dict[str, str]:
    text = (FOLDER / "autotune-worker@.service").read_text()
    return dict(re.findall(r"^(\w+)=(.+)$", text, re.MULTILINE))


def test_the_service_starts_a_worker(unit: dict[str, str]) -> None:
    program, verb, *rest = unit["ExecStart"].split()
    assert program.endswith("/.venv/bin/autotune")
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, rest).close()
    assert unit["RestartPreventExitStatus"] == "2" and unit["SuccessExitStatus"] == "130"
    assert int(unit["TimeoutStopSec"]) >= 60  # to end the batch and requeue the trial
    assert "postgresql" not in "".join(unit.values())


def test_systemd_accepts_the_service(unit: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    text = (FOLDER / "autotune-worker@.service").read_text()
    # What is on the machine of a user, and not here.
    text = text.replace(unit["ExecStart"].split()[0], "/bin/true").replace("User=autotune\n", "")
    (tmp_path / "autotune-worker@.service").write_text(text)
    result = run("systemd-analyze", "verify", str(tmp_path / "autotune-worker@.service"))
    assert (result.returncode, result.stderr) == (0, "")
