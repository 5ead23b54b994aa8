from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.data.memory_budget import SHARE, _group_limits, machine_bytes, worker_memory_budget


def test_a_share_of_the_machine_for_each_worker() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine_bytes() <= physical
    assert worker_memory_budget(1) == worker_memory_budget(0) == int(SHARE * machine_bytes())
    assert worker_memory_budget(4) == pytest.approx(worker_memory_budget(1) / 4, abs=1)


def test_a_limit_of_addresses_counts() -> None:
    code = "from autotune.data.memory_budget import machine_bytes; print(machine_bytes())"
    limit = 1 << 32
    if machine_bytes() < limit:
        pytest.skip("a small machine")
    message = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert int(message.stdout) == limit


@pytest.mark.parametrize(
    ("membership", "limits"),
    [
        ("0::/job/step", [100, 300]),
        ("0::/", [300]),
        ("0::/../other", [300]),
        ("7:cpu,cpuacct:/job\n5:memory:/job/step\n1:name=systemd:/job", [50, 900]),
        ("", []),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, membership: str, limits: list[int]) -> None:
    for name, value in {
        "memory.max": "300",
        "job/memory.max": "max",
        "job/step/memory.max": "100",
        "memory/memory.limit_in_bytes": "900",
        "memory/job/step/memory.limit_in_bytes": "50",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(value)
    assert list(_group_limits(membership, tmp_path)) == limits
