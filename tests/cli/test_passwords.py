"""No password can be read in the list of processes, in logs, or in what a study leaves behind."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from tests.support.commands.inside import call
from tests.support.commands.runs import SMALL, autotune, command, environment, start, wait_for
from tests.support.study.databases import Server

PASSWORD = "hidden-c0ffee"
URL = f"postgresql://me:{PASSWORD}@host/db"


@contextmanager
def listed() -> Iterator[set[bytes]]:
    """Note the command lines of all processes, twenty times a second."""
    found: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):  # it has ended
                    found.add(path.read_bytes())

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield found
    finally:
        done.set()
        watch.join()


@pytest.mark.parametrize("given", [("--storage", f"{URL}"), (f"storage='{URL}'",)])
def test_a_password_on_the_command_line_is_warned_of(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    ended = call("run", "digits", *given, "search.trials=0", cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.count("warning: every user of this machine can read a password") == 1
    assert "AUTOTUNE_STORAGE" in ended.err and PASSWORD not in ended.err


def test_a_password_in_the_environment_is_not(tmp_path: Path) -> None:
    ended = call("run", "digits", "search.trials=0", cwd=tmp_path, AUTOTUNE_STORAGE=URL)
    assert ended.code == 2 and "warning" not in ended.err


@pytest.mark.slow
def test_the_password_of_a_storage_is_nowhere(postgres: Server, tmp_path: Path) -> None:
    own = make_url(postgres.require_password("gerda", PASSWORD))
    url = own.set(drivername="postgresql").render_as_string(hide_password=False)
    extra = {"AUTOTUNE_STORAGE": url}
    few = ("training.epochs=12", "search.trials=4", "search.pruner=none", "--name", "tiny")
    with listed() as lines:
        launcher = start("run", "digits", *SMALL, *few, "--workers", "1", cwd=tmp_path, **extra)
        wait_for(lambda: "trial" in (tmp_path / "out.txt").read_text())
        with (tmp_path / "joined.txt").open("w") as output:
            joined = subprocess.run(
                command("worker", "tiny"),
                cwd=tmp_path,
                env=environment(**extra),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=120,
            )
        assert launcher.wait(timeout=120) == 0, (tmp_path / "out.txt").read_text()
        assert joined.returncode == 0, (tmp_path / "joined.txt").read_text()
    assert any(b"autotune.study.engine.worker_main" in line for line in lines)
    assert any(b"\0worker\0tiny" in line for line in lines)
    secret = PASSWORD.encode()
    assert [line for line in lines if secret in line] == []
    assert autotune("report", "tiny", cwd=tmp_path, **extra).returncode == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"artifacts", "reports", "tiny"} <= {path.parent.name for path in files}
    assert [path for path in files if secret in path.read_bytes()] == []
    engine = sqlalchemy.create_engine(own)
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(engine).get_table_names():
            rows = connection.exec_driver_sql(f'SELECT * FROM "{table}"').all()
            assert PASSWORD not in repr(rows), table
    engine.dispose()
