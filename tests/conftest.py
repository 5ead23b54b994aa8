"""Fixtures of all rooms."""

from __future__ import annotations

import gc
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import settings

from tests.support.commands.runs import environment
from tests.support.commands.warm import warm_python
from tests.support.study.databases import Server, connections_closed, start_server

# Read when torch is loaded, here and in every process that a test starts. Threads that spin while
# they wait take the cores from the other tests: ten times the CPU seconds of a small training.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Else pytest rewrites every test file, and each process that a test starts compiles autotune.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# 'make test ARGS=-x' hands its variables on, and users set ours: a test sets what it needs itself.
given_to_make = re.findall(r"(?:^|\s)(\w+)=", os.environ.get("MAKEFLAGS", ""))
for name in list(os.environ):
    is_make = name.startswith("MAKE") or name in ("MFLAGS", "GNUMAKEFLAGS", *given_to_make)
    if is_make or name.startswith("AUTOTUNE_"):
        del os.environ[name]

# What is imported and collected stays: looking for garbage in it takes a fifth of that time.
gc.disable()

# Examples are the same on every run, and a slow machine is no failure.
settings.register_profile("autotune", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("autotune")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A Postgres server, started when the first test asks for it (once per xdist worker)."""
    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def warm() -> Iterator[str]:
    """A program like Python that has imported torch already, for tests with many processes.

    The process of autotune is another one, and ends a moment after the program is killed. Tests of
    what a killed process leaves behind, or of how one starts, take Python itself.
    """
    # Not below pytest's folders: the path of a socket has at most 107 characters.
    with (
        TemporaryDirectory(prefix="warm-") as folder,
        warm_python(Path(folder), environment()) as program,
    ):
        yield str(program)


@pytest.fixture(scope="session", autouse=True)
def migrations_loaded_once() -> Iterator[None]:
    """Load Optuna's migrations once: each opening of a storage imports them four times."""
    from_config = ScriptDirectory.from_config
    scripts: dict[str | None, ScriptDirectory] = {}

    def from_config_once(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in scripts:
            scripts[folder] = from_config(config)
        return scripts[folder]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", from_config_once)
        yield


@pytest.fixture(autouse=True)
def no_outage_before() -> None:
    """Forget outages of earlier tests: for a while after one, no worker counts as dead."""
    retry = sys.modules.get("autotune.storage.rdb.retry")
    if retry is not None:
        vars(retry)["_last_unavailable"] = -math.inf


@pytest.fixture
def closed_connections() -> Iterator[None]:
    """Close what pools have opened by the end of a test."""
    with connections_closed():
        yield


@pytest.fixture
def postgres_url(
    postgres: Server,
    closed_connections: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The URL of a fresh database; the files of its studies go to the test's folder."""
    monkeypatch.chdir(tmp_path)
    return postgres.fresh_database()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, closed_connections: None) -> str:
    """The URL of a storage that is not there yet, of either kind."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(scope="module")
def analyzed_once() -> Iterator[None]:
    """Analyze each backbone once: half of the time of a small study."""
    from tests.support.study.small import backbones_analyzed_once  # imports torch

    with backbones_analyzed_once():
        yield


@pytest.fixture
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have memory that gives out be nobody else's: what holds the machine's memory is luck."""
    from autotune.study.state import oom

    monkeypatch.setattr(oom, "_process_memory", lambda: (2**30, 2**34, 2**34))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow that wait for a server or a browser."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if item.get_closest_marker("long") or item.get_closest_marker("gpu"):
            continue
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if {"postgres", "browser"}.intersection(item.fixturenames) or any(
            isinstance(value, str) and value.startswith("postgres") and ":" not in value
            for value in values
        ):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Take what all tests share out of the garbage collector, which tests often wait for."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Give it back: libraries look for leaks at the end."""
    gc.unfreeze()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("this machine mounts no small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
