"""No password can be read in the list of processes, in logs, or in what a study leaves behind."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.engine import make_url

from autotune.cli.password_args import without_passwords
from tests.support.postgres import Server
from tests.support.runs import SMALL, autotune, command, environment, start, wait_for

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


@pytest.mark.parametrize(
    ("arguments", "kept", "moved"),
    [
        (["run", "--storage", URL, "--name", "x"], ["run", "--name", "x"], {"": URL}),
        (["run", f"--storage={URL}"], ["run"], {"": URL}),
        (["run", "--storage", "sqlite:///a.db"], ["run", "--storage", "sqlite:///a.db"], {}),
        (["run", "--storage=postgresql://host/db?password=x"], ["run"], None),
        (["run", "--storage"], ["run", "--storage"], {}),
        (["run", "--storage", "sqlite:///a.db", "--storage", URL], ["run"], {"": URL}),
        (
            ["run", "--storage", URL, "--storage", "sqlite:///a.db"],
            ["run", "--storage", "sqlite:///a.db"],
            {},
        ),
        (["run", "--", "--storage", URL], ["run", "--", "--storage", URL], {}),
        (
            ["storage", "copy", "--from", "sqlite:///a.db", "--to", URL],
            ["storage", "copy", "--from", "sqlite:///a.db"],
            {"_TO": URL},
        ),
        (["storage", "copy", f"--from={URL}"], ["storage", "copy"], {"_FROM": URL}),
        ([], [], {}),
    ],
)
def test_what_is_taken_off(
    arguments: list[str], kept: list[str], moved: dict[str, str] | None
) -> None:
    found, variables = without_passwords(arguments)
    assert found == kept
    if moved is None:
        moved = {"": arguments[-1].partition("=")[2]}
    assert variables == {f"AUTOTUNE_STORAGE{end}": url for end, url in moved.items()}


def test_a_password_on_the_command_line_is_taken_off_it(tmp_path: Path) -> None:
    # An address that is for documentation: nobody answers, and the command waits.
    url = f"postgresql://me:{PASSWORD}@192.0.2.77/db"
    process = start("status", "tiny", "--storage", url, cwd=tmp_path)
    line = Path(f"/proc/{process.pid}/cmdline")
    try:
        deadline = time.monotonic() + 30
        while PASSWORD in line.read_text() or "status" not in line.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert line.read_text().split("\0")[-3:-1] == ["status", "tiny"]
    finally:
        process.kill()
        process.wait()


def test_the_storage_is_still_the_one_that_was_named(tmp_path: Path) -> None:
    url = f"postgresql://me:{PASSWORD}@127.0.0.1:9/db"
    given = ("storage", "upgrade", "--storage", url)
    ended = autotune(*given, cwd=tmp_path, AUTOTUNE_STORAGE="other")
    assert ended.returncode == 2
    assert "storage: postgresql://me:***@127.0.0.1:9/db cannot be used" in ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr


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
