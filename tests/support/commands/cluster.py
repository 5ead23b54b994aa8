"""A Ray cluster of one machine, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.commands.serving import free_port

#: What keeps Ray quiet and by itself, for those who start it and those who connect.
QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
CPUS = 2


@contextmanager
def start_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster and yield the environment that leads to it; nothing of it is left."""
    # The path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rc-"))
    address = f"127.0.0.1:{free_port()}"
    extra = {**QUIET, "RAY_TMPDIR": str(folder)}
    with (folder / "out.txt").open("w") as output:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"),
                *(f"--num-cpus={CPUS}", "--num-gpus=0", "--object-store-memory=100000000"),
                *("--include-dashboard=false", "--disable-usage-stats"),
            ],
            env={**os.environ, **extra},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (folder / "out.txt").read_text():
            assert head.poll() is None and time.monotonic() < deadline, (
                folder / "out.txt"
            ).read_text()
            time.sleep(0.2)
        yield {**extra, "RAY_ADDRESS": address}
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True)]
        head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        head.wait(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def worker_pids(study: str) -> list[int]:
    """Find the processes in which Ray runs workers of a study."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or []).startswith(f"ray::autotune {study} ")
    ]
