"""The cores of a process, and pauses of its garbage collector."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autotune import runtime
from autotune.runtime import gc_paused

FILES = {
    "cpu.max": "max 100000",
    "pod/cpu.max": "350000 100000",
    "pod/box/cpu.max": "max 100000",
    "pod/small/cpu.max": "50000 100000",
    "cpu/cpu.cfs_quota_us": "-1",
    "cpu/cpu.cfs_period_us": "100000",
    "cpu/docker/one/cpu.cfs_quota_us": "150000",
    "cpu/docker/one/cpu.cfs_period_us": "100000",
    "cpu/docker/cpu.cfs_quota_us": "broken",
}


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("membership", "quotas"),
    [
        ("0::/pod/box", [3.5]),  # the limit of a group holds for all below it
        ("0::/pod/small", [0.5, 3.5]),
        ("0::/", []),
        ("0::/of/the/host", []),
        ("4:cpu,cpuacct:/docker/one\n3:memory:/docker/one\n1:name=systemd:/docker/one", [1.5]),
        ("4:cpuset:/docker/one", []),
        ("4:cpuacct,cpu:/docker/one\n0::/pod/small", [1.5, 0.5, 3.5]),
        ("", []),
    ],
)
def test_quotas_of_control_groups(groups: Path, membership: str, quotas: list[float]) -> None:
    assert list(runtime.cpu_quotas(membership, groups)) == quotas


@pytest.mark.parametrize(
    ("quotas", "cores"), [([], 16), ([3.5], 4), ([0.5, 3.5], 1), ([2.0], 2), ([64.0], 16)]
)
def test_a_part_of_a_core_counts_as_one(
    quotas: list[float], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(runtime, "cpu_quotas", lambda membership, root: iter(quotas))
    assert runtime.available_cpus() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="is about Linux")
def test_affinity_counts_and_not_the_machine() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from autotune.runtime import available_cpus; print(available_cpus())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1\n"


def test_torch_uses_no_more_threads_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "available_cpus", lambda: 1)
    try:
        torch.set_num_threads(2)
        runtime.limit_torch_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_collector_pauses_until_the_last_context_ends() -> None:
    with gc_paused():
        with pytest.raises(ValueError, match="broken"), gc_paused():
            raise ValueError("broken")
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_pauses_until_the_last_thread_is_done() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with gc_paused():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with gc_paused():
        thread.start()
        assert entered.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()
